"""AMC: what stays and how it is refitted against numpy, budgets from the definition, a planted structure end to end."""

import copy
import math

import numpy as np
import pytest
import torch
from oracle import dead_filters, live_filters, mutant, size_of, toy_task
from scipy import stats
from torch import nn
from torchvision.models import resnet50

from baselines.errors import UserError
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from baselines.task import seed_of
from methods.kit import search
from methods.kit.search import Counts, Space
from methods.search import amc
from methods.search.amc import AMC

NETS = {"tiny_plain_synthetic": TinyPlain, "tiny_resnet_synthetic": tiny_resnet}
SHAPE = (3, 16, 16)


def weights_of(net):
    return {name: m.weight.detach() for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def compressed(cls=AMC, baseline="tiny_plain_synthetic", budget="smoke", accuracy=None, **fields):
    """(the net, its task): ``compress`` on a tiny net; with ``accuracy`` that is what every candidate has."""
    torch.manual_seed(1)
    task = toy_task(budget=budget, baseline=baseline)
    if accuracy is not None:
        task.validate = lambda net: accuracy
    return cls(**fields).compress(NETS[baseline](), task), task


# -- channels --------------------------------------------------------------------------------------------------------


def refits_like_numpy(module):
    """Whether the refitted weights are numpy's least squares of the whole layer's outputs on the kept channels."""
    rng = np.random.default_rng(0)
    inputs, weight = rng.normal(size=(200, 5, 4)) + rng.normal(size=(200, 1, 1)), rng.normal(size=(3, 5, 4))
    keep = np.array([True, False, True, True, False])
    targets = inputs.reshape(200, 20) @ weight.reshape(3, 20).T
    want, *_ = np.linalg.lstsq(inputs[:, keep].reshape(200, 12), targets, rcond=None)
    gram = torch.from_numpy(inputs.reshape(200, 20).T @ inputs.reshape(200, 20))
    found = module.refit(gram, torch.from_numpy(weight), torch.from_numpy(keep)).numpy()
    return np.allclose(found[:, keep].reshape(3, 12), want.T) and not found[:, ~keep].any()


def test_least_squares():
    assert refits_like_numpy(amc)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("found = reconstruct.solve(gram[kept][:, kept], targets)", "found = weight.flatten(1).T[kept]"),
        ("keep.repeat_interleave(weight.shape[2])", "keep.repeat(weight.shape[2])"),
        ("gram[kept] @ weight", "gram[kept].sign() @ weight"),
    ],
    ids=["old weights", "other entries", "other samples"],
)
def test_the_oracle_catches_another_refit(old, new):
    assert not refits_like_numpy(mutant(amc, old, new))


def samples_what_is_read(module):
    """Whether the sums of products are those of what a linear layer, which has one place per image, reads."""
    torch.manual_seed(0)
    net, task = TinyPlain().eval(), toy_task()
    channels = module.Channels(net, task, module.AMC(images=64, locations=1))
    read = torch.cat([net.features(x).flatten(1) for x, _ in task.batches(64)]).detach().double().numpy()
    (reader,) = channels.readers["features.4"]
    return reader.name == "classifier.1" and np.allclose(channels.grams[reader], read.T @ read, rtol=1e-4)


def test_samples():
    assert samples_what_is_read(amc)
    assert not samples_what_is_read(mutant(amc, "task.batches(method.images)", "task.batches(32)"))
    assert not samples_what_is_read(mutant(amc, "sums.add(rows, rows", "sums.add(rows - rows.mean(0), rows"))


def keeps_what_is_read_most(module):
    """Whether the filters that stay are those whose channels the next layer reads with the largest weights."""
    torch.manual_seed(0)
    net, task = TinyPlain(), toy_task()
    for norm in (net.features[1], net.features[5]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    for weight in weights_of(net).values():
        nn.init.normal_(weight, 0.2)
    channels = module.Channels(net, task, module.AMC(images=8))
    pruned = channels.prune(copy.deepcopy(net), (0.5, 7 / 12))
    reads = weights_of(net)["features.4"].numpy(), weights_of(net)["classifier.1"].reshape(24, 12, 16).numpy()
    for norm, read, count in ((1, reads[0], 4), (5, reads[1], 7)):
        sums = np.abs(read).sum(axis=tuple(i for i in range(read.ndim) if i != 1))
        want = np.sort(np.argsort(-sums)[:count])
        if not np.array_equal(pruned.features[norm].weight.detach(), net.features[norm].weight.detach()[want]):
            return False
    return pruned.features[0].out_channels == 4 and pruned.features[4].in_channels == 4


def test_the_largest_inputs_stay():
    assert keeps_what_is_read_most(amc)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("descending=True", "descending=False"),
        ("weight.double().abs().sum((0, 2))", "weight.double().sum((0, 2))"),
        ("weight.double().abs().sum((0, 2))", "weight.double().abs().amax((0, 2))"),
    ],
    ids=["smallest", "signed", "largest entry"],
)
def test_the_oracle_catches_other_scores(old, new):
    assert not keeps_what_is_read_most(mutant(amc, old, new))


def macs_with(baseline, kept):
    """MACs of a tiny net by the widths of its inner layers, from the definition."""
    if baseline == "tiny_plain_synthetic":
        first, second = kept
        return 256 * 27 * first + 64 * 9 * first * second + 16 * second * 24 + 24 * 4
    stem, sides, widths = 256 * 27 * 8, (256, 64, 16), (8, 8, 12, 16)
    blocks = sum(
        side * 9 * n * (widths[i] + widths[i + 1]) for i, (side, n) in enumerate(zip(sides, kept, strict=True))
    )
    return stem + blocks + 16 * 4


def spends_its_budget(cls, baseline, reduction):
    """Whether the net has at most the MACs of the budget, and would have more with a channel more somewhere."""
    net, task = compressed(cls, baseline, macs_reduction=reduction, images=16)
    whole = size_of(NETS[baseline](), SHAPE)[1]
    kept = [net.get_submodule(name).out_channels for name in task.details["policy"]]
    wider = [macs_with(baseline, [n + (i == j) for j, n in enumerate(kept)]) for i in range(len(kept))]
    macs = size_of(net, SHAPE)[1]
    return macs == macs_with(baseline, kept) and macs <= whole * (1 - reduction) < max(wider)


@pytest.mark.parametrize("baseline", list(NETS))
def test_the_budget_of_macs(baseline):
    assert all(spends_its_budget(AMC, baseline, reduction) for reduction in (0.3, 0.5))


def test_the_oracle_catches_another_budget():
    other = mutant(amc, "whole * (1 - method.macs_reduction)", "whole * method.macs_reduction")
    assert not spends_its_budget(other.AMC, "tiny_plain_synthetic", 0.3)


@pytest.mark.parametrize("baseline", list(NETS))
def test_no_episode_exceeds_the_budget(baseline):
    net, task, rng = NETS[baseline](), toy_task(baseline=baseline), np.random.default_rng(0)
    channels = amc.Channels(net, task, AMC(images=2, locations=1, macs_reduction=0.4))
    for _ in range(100):
        actions = ()
        while len(actions) < len(channels.names):
            actions += (channels.space.execute(actions, rng.random()),)
        assert macs_with(baseline, channels.counts.of(actions)) <= 0.6 * size_of(net, SHAPE)[1]


def test_inside_of_blocks_only():
    net, task = compressed(baseline="tiny_resnet_synthetic", macs_reduction=0.6, images=8)
    assert list(task.details["policy"]) == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    assert [net.get_submodule(f"layer{i}.0.conv2").out_channels for i in (1, 2, 3)] == [8, 12, 16]


def test_rounding():
    net, _ = compressed(rounding=4, macs_reduction=0.4, images=8)
    assert net.features[0].out_channels % 4 == 0 and net.features[4].out_channels % 4 == 0


@pytest.mark.parametrize(
    ("build", "actions"),
    [(lambda: VGG(width=0.25), 13), (lambda: ResNetCifar(56, 10), 27), (lambda: resnet50(num_classes=10), 33)],
    ids=["VGG-16", "ResNet-56", "ResNet-50"],
)
def test_the_recipes_are_within_reach(build, actions, monkeypatch):
    monkeypatch.setattr(amc, "grams", lambda *args: {})
    net, task = build().eval(), toy_task(shape=(3, 32, 32))
    channels = amc.Channels(net, task, AMC(images=1, locations=1, macs_reduction=0.7))
    least = channels.counts.total(channels.counts.least)
    assert len(channels.names) == actions and least < 0.3 * size_of(net, (3, 32, 32))[1]
    weights = amc.Weights(net, task, AMC(**AMC.recipes["resnet56_cifar10/fine_grained"]))
    assert weights.counts.least.sum() < 0.4 * weights.counts.sizes.sum() and len(weights.names) == len(weights_of(net))


# -- single weights --------------------------------------------------------------------------------------------------


def prunes_single_weights(cls, sparsity=0.7):
    """Whether as many weights stay as should, the largest of each layer, and the others stay zero in the training."""
    task = toy_task(budget="smoke")
    torch.manual_seed(1)
    net, seen = TinyPlain(), {}
    dense, train = copy.deepcopy(weights_of(net)), task.train

    def watch(model, *args, **options):
        seen.update(copy.deepcopy(weights_of(model)))
        return train(model, *args, **options)

    task.train = watch
    trained = weights_of(cls(granularity="weight", sparsity=sparsity).compress(net, task))
    total = sum(weight.numel() for weight in dense.values())
    if not (1 - sparsity - 0.001) * total < sum(int(w.count_nonzero()) for w in trained.values()) <= 0.3001 * total:
        return False
    for name, weight in dense.items():
        kept = seen[name] != 0
        largest = weight.abs().flatten().sort(descending=True).values[: int(kept.sum())]
        if kept.sum() < 0.2 * weight.numel() or weight[kept].abs().min() < largest.min():
            return False
        if not torch.equal(trained[name] != 0, kept) or not torch.equal(seen[name][kept], weight[kept]):
            return False
    return True


def test_fine_grained_pruning():
    assert prunes_single_weights(AMC)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("None if channel else masks.hold(model)", "None"),
        ("1 - left / weights[name].numel()", "left / weights[name].numel()"),
        ("float(sizes.sum()) * (1 - method.sparsity)", "float(sizes.sum()) * method.sparsity"),
        ("method.lowest)\n        states", "0.0)\n        states"),
    ],
    ids=["weights come back", "share kept for share gone", "goal", "no least"],
)
def test_the_oracle_catches_other_weights(old, new):
    assert not prunes_single_weights(mutant(amc, old, new).AMC)


# -- rewards ---------------------------------------------------------------------------------------------------------


def rewards_as_published(module, error=0.25):
    """Whether one episode's reward is -error, -error * log(MACs) or -error * log(params) of the net that it gave."""
    fields = {"budget": "paper", "accuracy": 100 * (1 - error), "warmup": 1, "episodes": 0, "epochs": 0.0, "images": 8}
    for granularity in ("channel", "weight"):
        for reward in ("error", "macs", "params"):
            net, task = compressed(module.AMC, granularity=granularity, reward=reward, **fields)
            params, macs = size_of(net, SHAPE)
            if granularity == "weight":
                params = sum(int(p.count_nonzero()) for p in net.parameters())
                places = {"features.0": 256, "features.4": 64, "classifier.1": 1, "classifier.3": 1}
                macs = sum(places[name] * int(weight.count_nonzero()) for name, weight in weights_of(net).items())
            want = -error * {"error": 1, "macs": math.log(macs), "params": math.log(params)}[reward]
            if task.details["rewards"] != [pytest.approx(want, abs=1e-6)]:
                return False
    return True


def test_rewards():
    assert rewards_as_published(amc)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("macs, params = cost.effective_macs, cost.nonzero", "pass"),
        ('"macs": math.log(macs), "params": math.log(params)', '"macs": math.log(params), "params": math.log(macs)'),
        ("1 - task.validate(candidate) / 100", "task.validate(candidate) / 100"),
    ],
    ids=["zeros count", "swapped", "accuracy"],
)
def test_the_oracle_catches_other_rewards(old, new):
    assert not rewards_as_published(mutant(amc, old, new))


# -- the whole method ------------------------------------------------------------------------------------------------


def finds_a_planted_structure(cls):
    """Whether a net with 5 of 8 and 4 of 12 live filters loses just the others: its outputs stay what they were."""
    torch.manual_seed(2)
    net, task = TinyPlain(), toy_task(budget="paper")
    for weight in weights_of(net).values():
        nn.init.normal_(weight, 0, 0.3)
    with torch.no_grad():  # dead filters, and nothing reads them, as weight decay leaves them
        for conv, dead in ((0, [0, 3, 5]), (4, [0, 1, 2, 4, 7, 8, 9, 11])):
            for tensor in (net.features[conv].weight, net.features[conv + 1].weight, net.features[conv + 1].bias):
                tensor[dead] = 0
            reader = net.features[4].weight if conv == 0 else net.classifier[1].weight.view(24, 12, 16)
            reader[:, dead] = 0
    search.calibrate(net, task.batches(500))
    ((x, _),) = task.batches(64)
    want = net(x).detach()
    task.validate = lambda candidate: 100 * math.exp(-float((candidate(x) - want).detach().square().mean()))
    reduction = 1 - (macs_with("tiny_plain_synthetic", (5, 4)) + 1) / size_of(net, SHAPE)[1]
    fields = {"macs_reduction": reduction, "warmup": 6, "episodes": 8, "epochs": 0.0, "images": 64}
    found = cls(**fields).compress(net, task)
    widths = found.features[0].out_channels, found.features[4].out_channels
    return widths == (5, 4) and torch.allclose(found(x), want, atol=1e-3)


def test_a_planted_structure_is_found():
    assert finds_a_planted_structure(AMC)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pruner.prune(model, found.actions)", "pruner.prune(model, found.episodes[0][1])"),
        ("-error * {", "error * {"),
        ("descending=True", "descending=False"),
    ],
    ids=["not the best", "rewards errors", "smallest stay"],
)
def test_the_oracle_catches_a_structure_missed(old, new):
    assert not finds_a_planted_structure(mutant(amc, old, new).AMC)


LIVE = np.array([9] * 4 + [2] * 4)  # of 10 filters in each of eight convolutions
EPISODES, WARMUP, SEEDS = 45, 15, range(5)


def macs_of(widths):
    """Of that net on 4 x 4 pixels, from the definition."""
    return sum(16 * 9 * a * b for a, b in zip([3, *widths], widths, strict=False)) + 4 * widths[-1]


GOAL = 1.05 * macs_of(LIVE.tolist())  # MACs that may stay


def share_kept(widths):
    """Of its live filters, what a layer keeps on average: from the definition, dead ones going first."""
    return float((np.minimum(widths, LIVE) / LIVE).mean())


def live_filters_kept(cls, seed):
    """(``share_kept`` by the net found, the same where all layers lose alike).

    What is judged is the net that the surgery and the refit have left, by the BN scales that are not zero.
    """
    net, task = dead_filters(LIVE, seed), toy_task((3, 4, 4), "paper", noisy=16)

    def validate(candidate):
        share = float((live_filters(candidate) / LIVE).mean())
        assert share == share_kept([m.out_channels for m in candidate if isinstance(m, nn.Conv2d)])
        return 100 * share

    task.seed, task.validate = seed, validate
    fields = {"macs_reduction": 1 - GOAL / macs_of([10] * 8), "images": 16, "calibration": 16, "epochs": 0.0}
    found = cls(warmup=WARMUP, episodes=EPISODES - WARMUP, **fields).compress(net, task)
    assert len(task.details["rewards"]) == EPISODES
    widths = [m.out_channels for m in found if isinstance(m, nn.Conv2d)]
    assert macs_of(widths) <= GOAL < max(macs_of([n + (i == j) for j, n in enumerate(widths)]) for i in range(8))
    return validate(found) / 100, share_kept(10 * np.array(list(task.details["uniform"].values())))


def lucky(seed):
    """What random search of as many episodes finds; no net is needed for it, as ``live_filters_kept`` has shown."""
    counts = Counts(np.full(8, 10), lambda widths: float(macs_of(widths.tolist())), GOAL, AMC.lowest)
    space = Space(np.eye(8), np.ones(8), counts.bounds, counts.snap)
    reward, seed = (lambda actions: share_kept(counts.of(actions))), seed_of(seed, "amc")
    return search.search(space, reward, EPISODES, EPISODES, seed).reward


def test_the_search_beats_random_search_and_equal_shares():
    """Nearly all live filters are found; rank-sum tests over five planted nets, pruned and refitted as always."""
    found, uniform = zip(*(live_filters_kept(AMC, seed) for seed in SEEDS), strict=True)
    assert np.median(found) > 0.98
    by_chance = [lucky(50 + seed) for seed in SEEDS]
    for others in (by_chance, uniform):
        assert stats.mannwhitneyu(found, others, alternative="greater").pvalue < 0.05


def test_what_the_record_says():
    for budget, episodes in (("zero", 2), ("smoke", 6)):
        _, task = compressed(budget=budget, images=8)
        details = task.details
        assert len(details["rewards"]) == episodes >= details["evaluations"] == task.meter.validations
        assert details["search_seconds"] > 0 and set(details["policy"]) == {"features.0", "features.4"}
        assert all(0.2 <= share <= 1 for share in details["policy"].values())
        shapes = {"features.0": 8, "features.4": 12}
        kinds = (details[kind] for kind in ("uniform", "policy"))
        widths = [[round(kind[name] * width) for name, width in shapes.items()] for kind in kinds]
        alike, found = (macs_with("tiny_plain_synthetic", kept) for kept in widths)
        assert alike <= found and abs(widths[0][0] / 8 - widths[0][1] / 12) < 1 / 8


def test_a_caller_may_have_switched_gradients_off():
    told, blind = (run(budget="zero", images=8)[1].details for run in (compressed, torch.no_grad()(compressed)))
    assert told["rewards"] == blind["rewards"] and told["policy"] == blind["policy"]


def test_the_same_seed_finds_the_same():
    first, again = (compressed(images=8)[1].details for _ in range(2))
    assert first["rewards"] == again["rewards"] and first["policy"] == again["policy"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"granularity": "filter"}, "There is no granularity 'filter': choose one of channel, weight"),
        ({"reward": "latency"}, "There is no reward 'latency': choose one of error, macs, params"),
        ({"macs_reduction": 1.0}, r"macs_reduction 1.0 lies outside \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity -0.1 lies outside \[0, 1\)"),
        ({"macs_reduction": 0.95}, "A budget of 0.0500 of the whole is out of reach"),
        ({"images": 0}, "images=0 leaves nothing to reconstruct from"),
        ({"lowest": 2.0}, "At least 2.0 of each layer"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        AMC(**{"images": 2, **fields}).compress(TinyPlain(), toy_task())
