"""Combination pruning: thresholds against numpy and scipy, the budget in every episode, who touches what."""

import copy
import functools

import numpy as np
import pytest
import torch
from oracle import mutant, toy_task
from scipy import stats
from torch import nn

from baselines import base
from baselines.errors import UserError
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.filter_pruning.entropy import Entropy
from methods.filter_pruning.l1_filter import L1Filter
from methods.search import combination_pruning
from methods.search.combination_pruning import CombinationPruning
from methods.structured_sparsity.gal import GAL

PLAIN = "tiny_plain_synthetic"
NETS = {"plain": TinyPlain, "residual": tiny_resnet}
CONV, FC = nn.Conv2d, nn.Linear


def arrays(net, kind):
    """Layer -> its weights as float64, of the layers of one kind."""
    return {n: m.weight.detach().double().numpy() for n, m in net.named_modules() if isinstance(m, kind)}


def spread(net, seed=0):
    """The net with normal weights, each layer of another mean and deviation."""
    g = torch.Generator().manual_seed(seed)
    for i, module in enumerate(m for m in net.modules() if isinstance(m, CONV | FC)):
        module.weight.data = (torch.randn(module.weight.shape, generator=g) + 0.3 * (i % 3 - 1)) * 0.1 * (i + 1)
    return net


def pruned(cls, net, budget="zero", task=None, **fields):
    """What ``compress`` makes of a copy of the net, and the task's details."""
    task = task or toy_task(baseline=PLAIN, budget=budget)
    torch.manual_seed(0)
    return cls(**fields).compress(copy.deepcopy(net), task), task.details


# -- the threshold


def numpys(weight, sigmas, magnitudes):
    """What numpy leaves of a weight below mu + sigmas * sigma."""
    values = np.abs(weight) if magnitudes else weight
    return np.where(np.abs(weight) < np.mean(values) + sigmas * np.std(values), 0, weight)


def thresholds_are_numpys(cls, magnitudes=True, whole=True):
    """Whether mode three_sigma leaves of each layer what numpy leaves, and tells the thresholds."""
    for build in NETS.values():
        dense = spread(build())
        for sigmas in (1.0, 2.0, 3.0):
            fields = {"mode": "three_sigma", "sigmas": sigmas, "magnitudes": magnitudes, "whole": whole}
            net, details = pruned(cls, dense, **fields)
            for name, weight in arrays(dense, CONV | FC if whole else FC).items():
                values = np.abs(weight) if magnitudes else weight
                right = numpys(weight, sigmas, magnitudes)
                ours = arrays(net, CONV | FC)[name]
                if right.any() and not np.array_equal(ours, right):
                    return False
                if not right.any() and (np.count_nonzero(ours), ours.ravel()[np.abs(weight).argmax()]) != (
                    1,
                    weight.ravel()[np.abs(weight).argmax()],
                ):
                    return False
                if not np.isclose(details["thresholds"][name], values.mean() + sigmas * values.std()):
                    return False
    return True


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("magnitudes", [True, False])
def test_thresholds_are_mean_and_deviations(magnitudes, whole):
    assert thresholds_are_numpys(CombinationPruning, magnitudes, whole)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("values.abs() if of_magnitudes else values", "values"),
        ("values.mean() + sigmas", "sigmas"),
        ("sigmas * values.std(unbiased=False)", "values.std(unbiased=False)"),
        ("sigmas * values.std(unbiased=False)", "sigmas * values.var(unbiased=False)"),
        ("size >= limits[name]", "weight.cpu() >= limits[name]"),
        ("keep[name].view(-1)[size.argmax()] = True", "pass"),
    ],
    ids=["signed", "no mean", "always one", "variance", "negative ones go", "nothing stays"],
)
def test_numpy_catches_a_changed_line(old, new):
    assert not thresholds_are_numpys(mutant(combination_pruning, old, new).CombinationPruning)


def shares_are_scipys(cls):
    """Whether a normal layer loses 68.27, 95.45, 99.73 % by signed weights, and the half-normal's shares by |w|."""
    dense = nn.Sequential(nn.Flatten(), nn.Linear(768, 400))
    nn.init.normal_(dense[1].weight, 0, 0.02, generator=torch.Generator().manual_seed(0))
    n, half = dense[1].weight.numel(), stats.halfnorm(scale=0.02)
    for sigmas in (1, 2, 3):
        signed = 1 - 2 * stats.norm.sf(sigmas)
        assert round(100 * signed, 2) == {1: 68.27, 2: 95.45, 3: 99.73}[sigmas]
        for magnitudes, share in ((False, signed), (True, half.cdf(half.mean() + sigmas * half.std()))):
            net, details = pruned(cls, dense, mode="three_sigma", sigmas=float(sigmas), magnitudes=magnitudes)
            zeros = float((net[1].weight == 0).double().mean())
            # a threshold from the layer's own mean and deviation moves the share by less than counting does
            if abs(zeros - share) > 4 * (share * (1 - share) / n) ** 0.5:
                return False
            assert details["sparsities"]["1"] == pytest.approx(zeros)
    return True


def test_the_shares_of_a_normal_layer():
    assert shares_are_scipys(CombinationPruning)
    for old, new in (
        ("values.abs() if of_magnitudes else values", "values if of_magnitudes else values.abs()"),
        ("sigmas * values.std(unbiased=False)", "sigmas * values.abs().median()"),
    ):
        assert not shares_are_scipys(mutant(combination_pruning, old, new).CombinationPruning)


# -- the search


def every_episode_keeps_the_budget(cls, sparsities=(0.642, 0.9)):
    """Whether every judged net has the given share of zeros in its convolutions, the smallest of each, and no other."""
    for build in NETS.values():
        dense = spread(build())
        before, linear = arrays(dense, CONV), arrays(dense, FC)
        for sparsity in sparsities:
            task, shares, policies = toy_task(baseline=PLAIN, budget="smoke"), [], set()

            def judge(net, before=before, linear=linear, shares=shares, policies=policies):
                left = arrays(net, CONV)
                shares.append(1 - sum(map(np.count_nonzero, left.values())) / sum(w.size for w in left.values()))
                policies.add(tuple(map(np.count_nonzero, left.values())))
                for name, old in before.items():
                    stays, size = left[name] != 0, np.abs(old)
                    if stays.mean() < 0.05 - 1e-9 or not np.array_equal(left[name][stays], old[stays]):
                        shares.append(-1)
                    if not stays.all() and size[~stays].max() > size[stays].min():
                        shares.append(-1)
                if any(not np.array_equal(weight, linear[name]) for name, weight in arrays(net, FC).items()):
                    shares.append(-1)
                return 50.0

            task.validate, task.train = judge, lambda net, *args, **options: net
            net, details = pruned(cls, dense, task=task, mode="ddpg", sparsity=sparsity)
            judge(net)
            if len(shares) != details["evaluations"] + 1 or len(details["rewards"]) != 6:
                return False
            if np.abs(np.array(shares) - sparsity).max() > 1e-3 or (sparsity == 0.642 and len(policies) < 4):
                return False
            sizes = {name: weight.size for name, weight in before.items()}
            kept = sum(details["policy"][name] * size for name, size in sizes.items()) / sum(sizes.values())
            if abs(1 - kept - shares[-1]) > 1e-9:
                return False
            alike = [details["uniform"][name] * size for name, size in sizes.items()]
            if not np.allclose(alike, [max((1 - sparsity) * size, 0.05 * size) for size in sizes.values()], atol=1):
                return False
    return True


def test_every_episode_keeps_the_budget():
    assert every_episode_keeps_the_budget(CombinationPruning)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("* (1 - self.sparsity)", "* self.sparsity"),
        ("goal, self.lowest)", "None, self.lowest)"),
        ("goal, self.lowest)", "goal)"),
        ("order[: len(order) - count]", "order[count:]"),
        ("for n, m in model.named_modules() if n in weights and isinstance(m, nn.Conv2d)",
         "for n, m in model.named_modules() if n in weights"),
        ("copy.deepcopy(model)\n", "model\n"),
    ],
    ids=["what stays", "no budget", "no least", "largest go", "linear layers too", "no copy"],
)  # fmt: skip
def test_the_budget_catches_a_changed_line(old, new):
    assert not every_episode_keeps_the_budget(mutant(combination_pruning, old, new).CombinationPruning, (0.9,))


SHARES = (0.9, 0.1, 0.6)  # of zeros in the planted net


def planted():
    """A net without normalisation whose convolutions have these shares of zeros: they can go, and nothing else."""
    g = torch.Generator().manual_seed(1)
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)]
    for conv, share in zip(convs, SHARES, strict=True):
        n = conv.weight.numel()
        values = torch.randn(n, generator=g).sign() * (0.5 + torch.rand(n, generator=g)) * (2 / n) ** 0.5 * 3
        values[torch.randperm(n, generator=g)[: round(share * n)]] = 0
        conv.weight.data = values.view_as(conv.weight)
    layers = [part for conv in convs for part in (conv, nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))


def finds_the_zeros(cls):
    """Whether the best policy takes less than half of the good weights that the same share of every layer takes."""
    dense, task = planted(), toy_task((3, 8, 8), "paper", PLAIN)
    images = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = dense(images).argmax(1)
    task.validate = torch.no_grad()(lambda net: 100 * float((net(images).argmax(1) == labels).float().mean()))
    task.train = lambda net, *args, **options: net
    sizes = {name: weight.size for name, weight in arrays(dense, CONV).items()}
    zeros = [round(share * size) for share, size in zip(SHARES, sizes.values(), strict=True)]
    sparsity = sum(zeros) / sum(sizes.values())
    net, _ = pruned(cls, dense, task=task, mode="ddpg", sparsity=sparsity, warmup=15, episodes=25)
    left = sum(np.count_nonzero(w) for w in arrays(net, CONV).values())
    harm = sum(sizes.values()) - sum(zeros) - left
    uniform = sum(max(0, round(sparsity * n) - z) for n, z in zip(sizes.values(), zeros, strict=True))
    return harm < uniform / 2


def test_the_search_finds_the_layers_that_can_lose_weights():
    assert finds_the_zeros(CombinationPruning)


def test_the_planted_net_catches_a_search_for_the_worst():
    worst = mutant(combination_pruning, "task.validate(pruned) / 100 - 1", "-task.validate(pruned)")
    assert not finds_the_zeros(worst.CombinationPruning)


DEAD = (0.9,) * 4 + (0.1,) * 4  # shares of zeros in eight convolutions of equal size
EPISODES, WARMUP, SEEDS = 45, 15, range(5)


def dead_weights(seed):
    """A net of convolutions with these shares of zeros."""
    g = torch.Generator().manual_seed(seed)
    convs = [nn.Conv2d(8, 8, 3, padding=1) for _ in DEAD]
    for conv, share in zip(convs, DEAD, strict=True):
        conv.weight.data = torch.randn(conv.weight.shape, generator=g)
        conv.weight.data.view(-1)[torch.randperm(576, generator=g)[: round(share * 576)]] = 0
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def shares_kept(cls, seed, warmup=WARMUP):
    """(share of its live weights that a layer keeps on average, found; the same where all layers lose alike).

    As many weights may stay as are live, and 5 % more. ``warmup`` episodes are random: all is random search.
    """
    dense, task = dead_weights(seed), toy_task((8, 4, 4), "paper", PLAIN)
    live = np.array([np.count_nonzero(weight) for weight in arrays(dense, CONV).values()])

    def kept(counts):
        return float(np.minimum(np.array(counts) / live, 1).mean())

    task.seed, task.train = seed, lambda net, *args, **options: net
    task.validate = lambda net: 100 * kept([np.count_nonzero(weight) for weight in arrays(net, CONV).values()])
    fields = {"mode": "ddpg", "sparsity": 1 - 1.05 * live.sum() / (576 * len(DEAD)), "calibration": 1}
    net, details = pruned(cls, dense, task=task, warmup=warmup, episodes=EPISODES - warmup, **fields)
    assert len(details["rewards"]) == EPISODES
    return task.validate(net) / 100, kept(576 * np.array(list(details["uniform"].values())))


@functools.cache
def lucky():
    """What random search of as many episodes finds, from ten seeds."""
    return [shares_kept(CombinationPruning, 50 + seed, EPISODES)[0] for seed in range(10)]


def worse_than_chance_and_uniform(cls):
    """P-values of rank-sum tests: five searches against random ones of as many episodes, and against equal shares."""
    found, uniform = zip(*(shares_kept(cls, seed) for seed in SEEDS), strict=True)
    return [stats.ranksums(found, others, alternative="greater").pvalue for others in (lucky(), uniform)]


def test_the_search_beats_random_search_and_equal_shares():
    assert max(worse_than_chance_and_uniform(CombinationPruning)) < 0.05


def test_chance_catches_a_search_that_never_learns():
    idle = mutant(combination_pruning, "warmup + episodes, warmup, seed_of", "warmup + episodes, 999, seed_of")
    assert max(worse_than_chance_and_uniform(idle.CombinationPruning)) > 0.05


# -- who touches what


def each_part_has_its_own_criterion(cls):
    """Whether convolutions lose the budget's share, not a threshold's, and linear layers a threshold's, or neither."""
    for build in NETS.values():
        dense = spread(build())
        before = {kind: arrays(dense, kind) for kind in (CONV, FC)}
        below = {kind: {n: numpys(w, 1.0, True) for n, w in before[kind].items()} for kind in (CONV, FC)}
        for fields, searched, cut in (
            ({"mode": "combination"}, True, (FC,)),
            ({"mode": "ddpg"}, True, ()),
            ({"mode": "three_sigma"}, False, (CONV, FC)),
            ({"mode": "three_sigma", "whole": False}, False, (FC,)),
        ):
            net, details = pruned(cls, dense, sparsity=0.5, sigmas=1.0, **fields)
            after = {kind: arrays(net, kind) for kind in (CONV, FC)}
            zeros = sum(np.count_nonzero(w == 0) for w in after[CONV].values())
            half = abs(zeros / sum(w.size for w in after[CONV].values()) - 0.5) < 1e-3
            same = {kind: all(np.array_equal(after[kind][n], w) for n, w in before[kind].items()) for kind in before}
            right = {kind: all(np.array_equal(after[kind][n], w) for n, w in below[kind].items()) for kind in before}
            if half != searched or right[CONV] != (CONV in cut) or right[FC] != (FC in cut):
                return False
            if same[FC] != (not cut) or same[CONV] != (not searched and CONV not in cut):
                return False
            if ("policy" in details) != searched or ("thresholds" in details) != bool(cut):
                return False
    return True


def test_each_part_has_its_own_criterion():
    assert each_part_has_its_own_criterion(CombinationPruning)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('if self.mode == "three_sigma" and self.whole else linear', 'if self.mode == "three_sigma" else linear'),
        ('if self.mode == "three_sigma" and self.whole else linear', "if self.whole else linear"),
        ('if self.mode != "ddpg"', 'if self.mode == "three_sigma"'),
        ('if self.mode != "three_sigma":', "if True:"),
        ("if name not in convs}", "}"),
    ],
    ids=["always whole", "whole after a search", "no threshold", "always a search", "no layer is linear alone"],
)
def test_the_parts_catch_a_changed_line(old, new):
    assert not each_part_has_its_own_criterion(mutant(combination_pruning, old, new).CombinationPruning)


# -- retraining


def zeros_are_held(cls):
    """Whether what is zero when the retraining begins is zero when it ends, while the rest has moved."""
    for build, baseline in ((TinyPlain, PLAIN), (tiny_resnet, "tiny_resnet_synthetic")):
        task = toy_task(budget="smoke", baseline=baseline)
        net, _ = pruned(cls, build(), task=task, warmup=1, episodes=1)
        before, after = arrays(task.entered_training, CONV | FC), arrays(net, CONV | FC)
        for name, weight in before.items():
            gone = weight == 0
            if not gone.any() or after[name][gone].any() or np.array_equal(after[name], weight):
                return False
    return True


def test_zeros_are_held():
    assert zeros_are_held(CombinationPruning)
    free = mutant(combination_pruning, ", after_step=masks.hold(model)", "")
    assert not zeros_are_held(free.CombinationPruning)


def test_one_retraining_for_the_epochs_asked():
    task, asked = toy_task(baseline=PLAIN), []
    task.train = lambda net, *args, **options: asked.append((args, options["lr"])) or net
    CombinationPruning(epochs=7.0, lr=0.02).compress(TinyPlain(), task)
    assert asked == [((7.0,), 0.02)]


def test_statistics_fit_the_pruned_net():
    """A batch through the pruned net leaves every BN's output with mean 0 and deviation 1, in the search as after."""
    task, seen = toy_task(baseline=PLAIN), []

    def judge(net):
        outputs = []
        hooks = [m.register_forward_hook(lambda m, _, out: outputs.append((m, out.clone()))) for m in (net[1], net[5])]
        net.eval()
        with torch.no_grad():
            for x, _ in task.batches(64, batch_size=64):
                net(x)
        for hook in hooks:
            hook.remove()
        for norm, out in outputs:
            seen.append(((out - norm.bias[:, None, None]) / norm.weight[:, None, None]).transpose(0, 1).flatten(1))
        return 50.0

    task.validate = lambda net: judge(net.features)
    task.batches = lambda n, batch_size=64, batches=task.batches: batches(n, batch_size)
    net = CombinationPruning(calibration=64).compress(TinyPlain(), task)
    judge(net.features)
    assert len(seen) == 6  # two episodes and the end, two norms each
    for out in seen:
        alive = out.std(1) > 0.5
        assert torch.allclose(out.mean(1), torch.zeros(len(out)), atol=1e-3) and alive.any()
        assert torch.allclose(out[alive].std(1), torch.ones(int(alive.sum())), atol=1e-2)


# -- recipes and edges


def test_the_recipes_remove_the_printed_shares():
    from_table = {key: row.params_reduction for row in CombinationPruning.reported if (key := row.recipe)}
    for key, name, classes in (
        ("vgg16fc_cifar10/ddpg", "vgg16fc_cifar10", 10),
        ("resnet56_cifar100/params70", "resnet56_cifar100", 100),
    ):
        with torch.device("meta"):
            net = base.load(name).net(classes)
        convs = sum(m.weight.numel() for m in net.modules() if isinstance(m, CONV))
        gone = CombinationPruning.recipes[key]["sparsity"] * convs / sum(p.numel() for p in net.parameters())
        assert round(100 * gone, 2) == from_table[key]


def test_every_row_is_one_command():
    rows = {row.recipe: row for row in CombinationPruning.reported}
    modes = {key: CombinationPruning(**CombinationPruning.recipes[key]) for key in rows}
    assert [modes[f"vgg16fc_cifar10{end}"].mode for end in ("", "/ddpg", "/three_sigma")] == list(
        combination_pruning.MODES
    )
    for k in (1, 2, 3):
        method = CombinationPruning(**CombinationPruning.recipes[f"resnet56_cifar100/{k}sigma"])
        assert (method.mode, method.whole, method.sigmas) == ("three_sigma", False, k)
    assert round(rows["resnet56_cifar100/3sigma"].top1 - 71.5, 2) == -35.61


def test_the_rows_of_table_4():
    """Six rows, which print what went and what was lost; four methods have them."""
    methods = {CombinationPruning: "Table 4", Entropy: "Table 4 of Xu", GAL: "Table 4 of Xu", L1Filter: "Table 4 of Xu"}
    rows = [row for cls, source in methods.items() for row in cls.reported if row.source.startswith(source)]
    assert [(row.params_reduction, row.delta, row.top1) for row in rows] == [
        (28.08, -0.75, None), (99.05, -6.11, None), (83.33, -1.55, None),
        (43.0, -2.06, None), (77.46, -6.86, None), (64.08, -7.13, None),
    ]  # fmt: skip
    assert {row.rule for row in CombinationPruning.reported} == {"nonzero"}
    assert {row.baseline for row in rows[:3]} == {"vgg16fc_cifar10"}
    assert {row.baseline for row in rows[3:]} == {"vgg16_cifar10"}


def test_fully_connected_layers_begin_as_normal_as_the_criterion_supposes():
    """Uniform ones, as torch makes them, would lose everything: their greatest magnitude lies below the threshold."""
    torch.manual_seed(0)
    net, half = base.load("vgg16fc_mnist5k").net(10), stats.halfnorm
    _, details = pruned(CombinationPruning, net, task=toy_task((3, 32, 32)), mode="three_sigma", whole=False)
    assert len(details["sparsities"]) == 3
    for share in details["sparsities"].values():
        assert share == pytest.approx(half.cdf(half.mean() + 3 * half.std()), abs=3e-3)


def test_a_caller_may_have_switched_gradients_off():
    dense = spread(TinyPlain())
    (net, told), blind = pruned(CombinationPruning, dense), torch.no_grad()(pruned)(CombinationPruning, dense)
    assert told["rewards"] == blind[1]["rewards"] and told["policy"] == blind[1]["policy"]
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), blind[0].parameters(), strict=True))


def test_a_net_that_was_pruned_before_keeps_its_zeros():
    dense = spread(TinyPlain())
    dense.features[0].weight.data[:4] = 0
    net, _ = pruned(CombinationPruning, dense, sparsity=0.5)
    assert not net.features[0].weight[:4].any()


def test_equal_weights_stay():
    dense = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    nn.init.constant_(dense[1].weight, 0.1)
    net, details = pruned(CombinationPruning, dense, mode="three_sigma")
    assert net[1].weight.all() and details["clamped"] == []


def test_no_layer_is_emptied():
    dense = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    dense[1].weight.data = torch.linspace(1, 2, 768 * 4).view(4, 768)
    net, details = pruned(CombinationPruning, dense, mode="three_sigma")
    assert details["clamped"] == ["1"] and int(net[1].weight.count_nonzero()) == 1 and net[1].weight[3, -1] == 2


LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
CONVS = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def broken():
    """A net with weights that are not numbers."""
    net = TinyPlain()
    net.features[4].weight.data[0, 0, 0, 0] = float("nan")
    return net


@pytest.mark.parametrize(
    ("net", "fields", "words"),
    [
        (TinyPlain(), {"mode": "sigma"}, "no mode 'sigma': choose one of combination, ddpg, three_sigma"),
        (TinyPlain(), {"sparsity": 1.0}, r"sparsity 1.0 lies outside \(0, 1\)"),
        (TinyPlain(), {"sparsity": 0.9, "lowest": 0.2}, "out of reach"),
        (TinyPlain(), {"mode": "three_sigma", "sigmas": -1.0}, "sigmas=-1.0 is no threshold"),
        (LINEAR, {}, "no convolution to search: take mode=three_sigma"),
        (CONVS, {"mode": "three_sigma", "whole": False}, "no linear layer for a threshold: take whole=true"),
        (broken(), {"mode": "three_sigma"}, "weights of features.4 are not finite"),
        (broken(), {"mode": "ddpg"}, "weights of features.4 are not finite"),
    ],
)
def test_bad_values(net, fields, words):
    with pytest.raises(UserError, match=words):
        pruned(CombinationPruning, net, **fields)


def test_a_net_without_linear_layers_is_searched():
    net, details = pruned(CombinationPruning, CONVS, sparsity=0.5)
    assert int((net[0].weight == 0).sum()) == 54 and details["thresholds"] == {}
