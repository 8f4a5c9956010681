"""ABCPruner: the colony against a second one on the same random numbers, what nets inherit, planted structures."""

import copy
import math

import numpy as np
import pytest
import torch
import torchvision
from oracle import dead_filters, live_filters, mutant, size_of, toy_task, worn
from scipy import stats
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from baselines.task import Task, seed_of
from methods.kit import search, surgery
from methods.search import abcpruner
from methods.search.abcpruner import ABCPruner, Colony, Source, blocks, picks

LENGTH, HIGHEST, SIZE, CYCLES, LIMIT, CHANGES = 5, 8, 4, 12, 3, 2


# -- the colony, on recorded random numbers


class Tape:
    """A generator that keeps what it has drawn."""

    def __init__(self, seed):
        self.rng, self.drawn = np.random.default_rng(seed), []

    def __getattr__(self, name):
        def draw(*args, **options):
            value = getattr(self.rng, name)(*args, **options)
            self.drawn.append(value.tolist() if hasattr(value, "tolist") else value)
            return value

        return draw


def uneven(code):
    """A fitness with few values, so that ties are common."""
    return 10.0 + (3 * code[0] + code[1] * code[2] + code[4]) % 7


def by_hand(drawn, fitness):
    """(what every code was worth, in the order of asking; the sources) of a colony that draws these numbers."""
    numbers, worth = iter(drawn), {}

    def ask(code):
        if tuple(code) not in worth:
            worth[tuple(code)] = fitness(tuple(code))
        return worth[tuple(code)]

    codes = [next(numbers) for _ in range(SIZE)]
    values, tries = [ask(code) for code in codes], [0] * SIZE

    def bee(j):
        partner = (j + next(numbers)) % SIZE
        assert partner != j
        places, shares, new = next(numbers), next(numbers), list(codes[j])
        assert len(places) == len(shares) == CHANGES
        for place, share in zip(places, shares, strict=True):
            moved = math.trunc(codes[j][place] + share * (codes[j][place] - codes[partner][place]))
            new[place] = 1 if moved < 1 else HIGHEST if moved > HIGHEST else moved
        if ask(new) > values[j]:
            codes[j], values[j], tries[j] = new, ask(new), 0
        else:
            tries[j] += 1

    for _ in range(CYCLES):
        for j in range(SIZE):
            bee(j)
        fit = [0.9 * value / max(values) + 0.1 for value in values]
        taken = j = 0
        while taken < SIZE:
            if next(numbers) < fit[j]:
                bee(j)
                taken += 1
            j = 0 if j == SIZE - 1 else j + 1
        j = tries.index(max(tries))
        if tries[j] >= LIMIT:
            codes[j], tries[j] = next(numbers), 0
            values[j] = ask(codes[j])
    assert next(numbers, None) is None
    return list(worth.items()), [(tuple(c), v, t) for c, v, t in zip(codes, values, tries, strict=True)]


def same_as_by_hand(module):
    """Whether the colony asks for the same codes in the same order and ends with the same sources."""
    for seed in range(4):
        tape = Tape(seed)
        colony = module.Colony(uneven, LENGTH, HIGHEST, SIZE, tape)
        for _ in range(CYCLES):
            colony.cycle(LIMIT, CHANGES)
        try:
            known, sources = by_hand(tape.drawn, uneven)
        except (AssertionError, StopIteration, TypeError):
            return False
        ours = [(s.code, s.fitness, s.trials) for s in colony.sources]
        if (list(colony.known.items()), ours) != (known, sources):
            return False
    return True


def test_the_colony_does_what_the_second_one_does():
    assert same_as_by_hand(abcpruner)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("r * (own[i] - other[i])", "r * (other[i] - own[i])"),
        ("int(own[i] + r", "round(own[i] + r"),
        ("), 1), self.highest)", "), 1), 99)"),
        ("other[i])), 1)", "other[i])), 0)"),
        ("self.rng.integers(1, len(self.sources))", "self.rng.integers(0, len(self.sources))"),
        ("if reached > self.sources[j].fitness", "if reached >= self.sources[j].fitness"),
        ("Source(tuple(code), reached)", "Source(tuple(code), reached, self.sources[j].trials)"),
        ("self.sources[j].trials += 1", "self.sources[j].trials = 1"),
        ("0.9 * (value", "0.5 * (value"),
        ("worn.trials >= limit", "worn.trials > limit"),
        ("worn = max(", "worn = min("),
        ("for j in picks(self.sources, self.rng):", "for j in reversed([*picks(self.sources, self.rng)]):"),
    ],
)
def test_the_second_colony_catches_a_changed_line(old, new):
    assert not same_as_by_hand(mutant(abcpruner, old, new))


# -- what it draws


def first_digits_are_even(module):
    """Chi-square: every digit from 1 to the highest is as likely."""
    colony = module.Colony(lambda code: 1.0, 6, HIGHEST, 1000, np.random.default_rng(1))
    digits = np.array([source.code for source in colony.sources]).ravel()
    counts = np.bincount(digits, minlength=HIGHEST + 1)[1:]
    return digits.min() == 1 and digits.max() == HIGHEST and stats.chisquare(counts).pvalue > 0.001


def test_first_codes_are_uniform():
    assert first_digits_are_even(abcpruner)
    assert not first_digits_are_even(mutant(abcpruner, "integers(1, self.highest + 1", "integers(1, self.highest"))


def onlookers_take_by_fitness(module):
    """Chi-square: of its visits, the share at which source j is taken is 0.9 fit / max fit + 0.1."""
    fitness, takes, visits = [10.0, 35.0, 70.0, 50.0, 0.0], np.zeros(5), np.zeros(5)
    for seed in range(1500):
        tape = Tape(seed)
        for j in module.picks([module.Source((1,), value) for value in fitness], tape):
            takes[j] += 1
        np.add.at(visits, np.arange(len(tape.drawn)) % 5, 1)
    p = 0.9 * np.array(fitness) / 70 + 0.1
    free = p < 1
    score = ((takes - p * visits)[free] ** 2 / (visits * p * (1 - p))[free]).sum()
    return takes.sum() == 1500 * 5 and takes[2] == visits[2] and stats.chi2.sf(score, free.sum()) > 0.001


def test_onlookers_prefer_fit_sources():
    assert onlookers_take_by_fitness(abcpruner)


@pytest.mark.parametrize(
    ("old", "new"), [("0.9 * (value", "0.85 * (value"), ("1.0) + 0.1", "1.0) + 0.05"), ("value / max(", "value / sum(")]
)
def test_frequencies_catch_a_changed_chance(old, new):
    assert not onlookers_take_by_fitness(mutant(abcpruner, old, new))


def test_sources_without_any_fitness_are_taken_in_turn():
    assert list(picks([Source((1,), 0.0)] * 3, np.random.default_rng(0))) == [0, 1, 2]


def test_a_bee_moves_few_digits_and_never_out_of_range():
    asked = []
    colony = Colony(lambda code: asked.append(code) or 5.0, 9, 6, 4, np.random.default_rng(2))
    changed = np.zeros(9, int)
    for _ in range(300):
        before, seen = [source.code for source in colony.sources], len(asked)
        colony.cycle(10**9, 3)  # no scout: nothing is fitter, so no source ever moves
        assert [source.code for source in colony.sources] == before
        for code in asked[seen:]:
            differ = [sum(a != b for a, b in zip(code, own, strict=True)) for own in before]
            assert min(differ) <= 3 and all(1 <= digit <= 6 for digit in code)
            changed += np.array(code) != np.array(before[int(np.argmin(differ))])
    assert changed.min() > 0  # the last digit as well


def test_only_the_source_tried_most_is_drawn_anew():
    for limit, trials, drawn in [(5, [4, 1, 2], None), (5, [4, 7, 5], 1), (5, [1, 5, 5], 1), (1, [0, 0, 3], 2)]:
        colony = Colony(lambda code: 1.0, 20, 9, 3, np.random.default_rng(3))
        colony._try = lambda j, changes: None
        before = [source.code for source in colony.sources]
        for source, count in zip(colony.sources, trials, strict=True):
            source.trials = count
        colony.cycle(limit, 2)
        moved = [j for j in range(3) if colony.sources[j].code != before[j]]
        assert moved == ([] if drawn is None else [drawn])
        assert [s.trials for s in colony.sources] == [0 if j == drawn else trials[j] for j in range(3)]


# -- a planted structure


def planted(seed, length=10):
    """Every layer has a share of live filters; fitness: on how many filters the code's choice and that share agree."""
    live = np.random.default_rng(seed).integers(1, 11, length)
    return lambda code: 100 - 10 * float(np.abs(np.array(code) - live).mean())


def searched(size, cycles, limit):
    """Best fitness over 5 planted nets of the colony, of as many random codes, and of the best uniform code."""
    bees, lots, even = [], [], []
    for seed in range(5):
        fitness, rng = planted(seed), np.random.default_rng(200 + seed)
        colony = Colony(fitness, 10, 10, size, np.random.default_rng(100 + seed))
        for _ in range(cycles):
            colony.cycle(limit, 2)
        bees.append(max(colony.known.values()))
        lots.append(max(map(fitness, rng.integers(1, 11, (len(colony.known), 10)))))
        even.append(max(fitness([digit] * 10) for digit in range(1, 11)))
    return bees, lots, even


def test_the_colony_finds_planted_shares_better_than_chance_and_than_uniform(capsys):
    """As long as the README's ImageNet example; the published 2 cycles of 3 sources are too short for a difference."""
    bees, lots, even = searched(10, 50, 5)
    assert stats.mannwhitneyu(bees, lots, alternative="greater").pvalue < 0.01
    assert stats.mannwhitneyu(bees, even, alternative="greater").pvalue < 0.01
    with capsys.disabled():
        print("\nfitness of planted structures: colony, as many random codes, the best uniform code")
        for setting in [(3, 2, 2), (10, 10, 5), (10, 50, 5)]:
            means = [f"{np.mean(found):.1f}" for found in searched(*setting)]
            print(f"  {setting[0]} sources, {setting[1]} cycles, limit {setting[2]}: {', '.join(means)}")


@pytest.mark.parametrize(
    ("old", "new"),
    [("if reached > self.sources[j].fitness", "if reached < self.sources[j].fitness"), ("r * (own", "0 * (own")],
)
def test_a_broken_colony_is_no_better_than_chance(monkeypatch, old, new):
    monkeypatch.setattr(f"{__name__}.Colony", mutant(abcpruner, old, new).Colony)
    bees, lots, _ = searched(10, 50, 5)
    assert stats.mannwhitneyu(bees, lots, alternative="greater").pvalue > 0.01


def agreement(net, live):
    """``planted``'s fitness by what is left in a net: live filters that are missing and dead ones that are there."""
    alive = live_filters(net)
    dead = [m.out_channels for m in net if isinstance(m, nn.Conv2d)] - alive
    return 100 - 10 * float((live - alive + dead).mean())


def searches_as_on_codes(module, seed):
    """Whether ``compress`` finds on a planted net, cut by the surgery, what the colony finds on ``planted``'s codes."""
    live = np.random.default_rng(seed).integers(1, 11, 10)
    stub = Stub(lambda net: agreement(net, live), budget="paper", shape=(3, 4, 4))
    stub.task.seed = seed
    with_l1 = {"alpha": 1.0, "sources": 5, "cycles": 3, "limit": 2, "inherit": "l1", "calibration": 2}
    net = stub.compress(module.ABCPruner, dead_filters(live, seed), **with_l1)
    colony = Colony(planted(seed), 10, 10, 5, np.random.default_rng(seed_of(seed, "abcpruner")))
    for _ in range(3):
        colony.cycle(2, 2)
    details, best = stub.task.details, max(colony.known, key=colony.known.get)
    same = details["code"] == list(best) and details["evaluations"] == len(colony.known)
    return same and agreement(net, live) == pytest.approx(colony.known[best])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_net_is_searched_as_its_codes_are(seed):
    assert searches_as_on_codes(abcpruner, seed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('if reached > best["fitness"]', "if True"),
        ("weight.abs().flatten(1)", "weight.neg().flatten(1)"),
        ("reached = task.validate(net)", "reached = task.validate(model)"),
    ],
)
def test_a_planted_net_catches_another_search(old, new):
    assert not searches_as_on_codes(mutant(abcpruner, old, new), 0)


# -- compress, with training and validation replaced


class Stub:
    """What ``compress`` trains and validates: nets as they came, fitness by ``worth``, nothing learned."""

    def __init__(self, worth=None, net=None, **options):
        self.task, self.calls, self.entered = toy_task(**options), [], []
        self.worth, self.net = worth or (lambda net: float(len(self.entered))), net
        self.task.train, self.task.validate = self.train, lambda net: self.worth(net)

    def train(self, net, epochs, of, lr):
        self.calls.append((epochs, of, lr))
        self.entered.append(copy.deepcopy(net))
        with torch.no_grad():
            next(net.parameters()).add_(1)  # one mark for each training
        return net

    def compress(self, cls=ABCPruner, dense=None, **fields):
        return cls(**fields).compress(copy.deepcopy(dense or used()), self.task)


def used():
    torch.manual_seed(7)
    return worn(TinyPlain(channels=(16, 24)), mean=0, std=0.5)


def rows_of(part, whole):
    """Which rows of ``whole`` those of ``part`` are, bit for bit: (rows,)."""
    same = (part.flatten(1)[:, None] == whole.flatten(1)[None]).all(2)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


def inherited(net, dense):
    """The filters of both convolutions that a pruned TinyPlain has kept, in order; AssertionError if it is not one."""
    first = rows_of(net.features[0].weight, dense.features[0].weight)
    kept = [first, rows_of(net.features[4].weight, dense.features[4].weight[:, first])]
    for i, chosen in zip((0, 4), kept, strict=True):
        assert (chosen.diff() > 0).all()
        assert torch.equal(net.features[i].bias, dense.features[i].bias[chosen])
        for name, value in net.features[i + 1].state_dict().items():
            whole = dense.features[i + 1].state_dict()[name]
            assert torch.equal(value, whole[chosen] if whole.dim() else whole)
    columns = dense.classifier[1].weight.unflatten(1, (24, 16))[:, kept[1]].flatten(1)
    assert torch.equal(net.classifier[1].weight, columns)
    assert torch.equal(net.classifier[3].weight, dense.classifier[3].weight)
    return [chosen.tolist() for chosen in kept]


def test_nets_inherit_filters_bit_for_bit_in_their_order():
    stub, dense = Stub(), used()
    stub.compress(dense=dense, alpha=1.0)
    found = [inherited(net, dense) for net in stub.entered[:-1]]
    assert len({str(kept) for kept in found}) == len(found) >= 5
    assert {len(kept[0]) for kept in found} - {1} and any(15 in kept[0] for kept in found)


def lots_are_even(module):
    """Chi-square: each of the 16 filters is as likely among the 8 that stay, whatever the seed and the code."""
    stub, net, counts, seen = Stub(), used(), np.zeros(16), set()
    parts = module.blocks(surgery.layers(net, stub.task.example))
    for stub.task.seed in range(150):
        for code in [(5, 3), (5, 8)]:
            keep = module.ABCPruner()._select(net, stub.task, parts, code)[0]["features.0"]
            counts += keep.numpy()
            seen.add(str(keep.tolist()))
    n, p = 300, 0.5
    score = ((counts - n * p) ** 2 / (n * p * (1 - p))).sum() * 15 / 16
    return counts.sum() == n * 8 and len(seen) > 290 and stats.chi2.sf(score, 15) > 0.001


def test_filters_are_drawn_evenly_anew_for_each_code_and_seed():
    assert lots_are_even(abcpruner)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('f"abcpruner {code}"', '"abcpruner"'),
        ('seed_of(task.seed, f"', 'seed_of(0, f"'),
        ("torch.rand(layer.width, generator=lot)", "torch.linspace(0, 0.2, layer.width) + torch.rand(layer.width)"),
    ],
)
def test_frequencies_catch_a_changed_lot(old, new):
    assert not lots_are_even(mutant(abcpruner, old, new))


def keeps_largest_norms(module):
    stub, dense = Stub(), used()
    stub.compress(module.ABCPruner, dense=dense, alpha=1.0, inherit="l1")
    norms = np.abs(dense.features[0].weight.detach().numpy()).sum((1, 2, 3))
    found = [inherited(net, dense)[0] for net in stub.entered[:-1]]
    return all(kept == sorted(np.argsort(-norms)[: len(kept)]) for kept in found)


def test_l1_keeps_the_filters_of_largest_norm():
    assert keeps_largest_norms(abcpruner)
    assert not keeps_largest_norms(mutant(abcpruner, "weight.abs().flatten(1)", "weight.flatten(1)"))


def goes_on_from_the_fittest(module):
    """Whether the net returned is the one that scored best, trained twice: for its fitness, then for good."""
    worth = [30.0, 50.0, 40.0, 50.0, 20.0, 70.0, 10.0, 70.0, *[5.0] * 20]
    stub = Stub(lambda net: worth[len(stub.calls) - 1])
    dense, cycles = used(), 2
    net = stub.compress(module.ABCPruner, dense=dense, alpha=1.0, cycles=cycles)
    fittest = stub.entered[5]
    twice = next(fittest.parameters()) + 1 + 1
    return torch.equal(next(net.parameters()), twice) and stub.task.details["fitness"] == 70.0


def test_the_fittest_goes_on_from_its_trained_weights():
    assert goes_on_from_the_fittest(abcpruner)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('if reached > best["fitness"]', 'if reached >= best["fitness"]'),
        ('if reached > best["fitness"]', "if True"),
        ("code=list(code), net=net", "code=list(code), net=surgery.remove(copy.deepcopy(model), task.example, keep)"),
    ],
)
def test_the_stub_catches_another_winner(old, new):
    assert not goes_on_from_the_fittest(mutant(abcpruner, old, new))


def is_calibrated(module):
    """Whether a net's statistics, when it is scored, are those of its own maps on the calibration images."""
    gaps = []

    @torch.no_grad()
    def score(net):
        maps = [net.features[0](images) for images, _ in stub.task.batches(60)]
        mean = torch.stack([each.mean((0, 2, 3)) for each in maps]).mean(0)
        gaps.append((net.features[1].running_mean - mean).abs().max().item())
        return 1.0

    stub = Stub(score)
    stub.compress(module.ABCPruner, calibration=60)
    return max(gaps) < 1e-5


def test_statistics_are_measured_before_a_structure_is_scored():
    assert is_calibrated(abcpruner)
    assert not is_calibrated(mutant(abcpruner, "search.calibrate(net, task.batches(self.calibration))", "pass"))


@pytest.mark.parametrize(
    ("budget", "cycles", "most"), [("paper", 10, 220), ("short", 1, 31), ("smoke", 3, 73), ("zero", 1, 31)]
)
def test_no_code_is_trained_twice_and_the_total_is_declared(monkeypatch, budget, cycles, most):
    trained = []

    def select(self, model, task, parts, code):
        trained.append(code)
        return {}, []

    monkeypatch.setattr(ABCPruner, "_select", select)
    monkeypatch.setattr(surgery, "remove", lambda net, example, keep: net)
    monkeypatch.setattr(search, "of_filters", lambda model, example, keep, rewards: {"rewards": rewards})
    stub = Stub(lambda net: float(sum(trained[-1]) % 11), budget=budget)
    stub.compress(sources=10, cycles=10, limit=5)
    assert len(set(trained)) == len(trained) == len(stub.calls) - 1 <= most
    total = 2.0 * most + 150.0
    assert stub.calls == [(2.0, total, 0.01)] * len(trained) + [(150.0, total, 0.01)]
    found = stub.task.details
    assert [entry["cycles"] for entry in found["search"]] == list(range(cycles + 1))
    assert found["search"][-1]["evaluations"] == found["evaluations"] == len(trained)
    fitness = [entry["fitness"] for entry in found["search"]]
    assert fitness == sorted(fitness) and tuple(found["code"]) in trained
    assert found["rewards"] == [sum(code) % 11 for code in trained] and max(found["rewards"]) == found["fitness"]


class Killed(BaseException):
    pass


def test_a_killed_search_takes_the_same_decisions(tmp_path):
    """After a kill in the middle of the search and in front of the last training; nothing is trained again."""

    def run(folder, kill=None):
        data = synthetic(DataOptions(), train=64, test=4)
        task = Task(base.load("tiny_plain_synthetic"), data, budget="smoke", seed=3, journal=folder)
        train = task.train

        def watched(net, *args, **options):
            net = train(net, *args, **options)
            if task.meter.train_calls == kill:
                raise Killed
            return net

        task.train = watched
        net = ABCPruner().compress(copy.deepcopy(used()), task)
        history = [{k: v for k, v in entry.items() if k != "training_seconds"} for entry in task.details["search"]]
        return net, history, task.meter

    whole, decisions, meter = run(tmp_path / "whole")
    for kill in (5, meter.train_calls - 1):
        with pytest.raises(Killed):
            run(tmp_path / "killed", kill)
    net, again, spent = run(tmp_path / "killed")
    assert again == decisions and spent.steps == meter.steps and spent.validations == meter.validations
    for ours, theirs in zip(net.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_dead_filters_are_found_in_a_real_net():
    """Five layers with 2, 9, 4, 7 and 3 of 10 filters alive; fitness reads the pruned net: dead kept or live lost."""
    torch.manual_seed(1)
    alive, layers, into = (2, 9, 4, 7, 3), [], 3
    for live in alive:
        conv, norm = nn.Conv2d(into, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        for tensor in (conv.weight, norm.weight, norm.bias):
            tensor.data[torch.randperm(10)[live:]] = 0
        dead = (conv.weight == 0).flatten(1).all(1)
        norm.weight.data[:], norm.bias.data[:] = (~dead).float(), 0
        layers, into = [*layers, conv, norm, nn.ReLU()], 10
    dense = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4)).eval()

    def agreement(net):
        norms = [module for module in net if isinstance(module, nn.BatchNorm2d)]
        wrong = [live - int(n.weight.sum()) + int((n.weight == 0).sum()) for n, live in zip(norms, alive, strict=True)]
        return 100 - 2 * sum(wrong)

    stub = Stub(agreement)
    fields = {"alpha": 1.0, "inherit": "l1", "sources": 6, "cycles": 5, "limit": 5}
    net = stub.compress(dense=dense, **fields)
    uniform = max(100 - 2 * sum(abs(digit - live) for live in alive) for digit in range(1, 11))
    assert agreement(net) == stub.task.details["fitness"] > uniform + 5
    assert list(stub.task.details["kept"].values()) == stub.task.details["code"]
    assert list(stub.task.details["policy"].values()) == [digit / 10 for digit in stub.task.details["code"]]
    assert len(set(stub.task.details["uniform"].values())) == 1  # layers as wide as each other: one count for all


# -- structures


def pruned(net, code, shape=(3, 32, 32), **fields):
    """The untrained net with the structure of a code."""
    task = toy_task(shape)
    parts = blocks(surgery.layers(net, task.example))
    keep, clamped = ABCPruner(**fields)._select(net, task, parts, code)
    return surgery.remove(net, task.example, keep), clamped


def as_printed(net, shape):
    """(params, MACs as the authors' counter has them, output channels of convolutions).

    It adds to the MACs four per output of a batch normalisation, one per biased output, and a linear layer's again.
    """
    extra, channels = 0, 0

    def count(module, _, out):
        nonlocal extra, channels
        if isinstance(module, nn.BatchNorm2d):
            extra += 4 * out.numel()
        elif isinstance(module, nn.Conv2d):
            channels += out.shape[1]
            extra += out.numel() * (module.bias is not None)
        else:
            extra += module.weight.numel()

    kinds = nn.BatchNorm2d | nn.Conv2d | nn.Linear
    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, kinds)]
    params, macs = size_of(net, shape)
    for hook in hooks:
        hook.remove()
    return params, macs + extra, channels


def one_linear_layer():
    net = VGG()
    net.classifier = nn.Linear(512, 10)
    return net


VGG16_80 = (8, 5, 7, 7, 8, 4, 6, 2, 4, 1, 3, 3, 5)
RESNET56_70 = (2, 2, 3, 7, 5, 3, 6, 7, 2, 4, 6, 6, 5, 7, 6, 4, 6, 4, 2, 5, 7, 1, 2, 5, 6, 6, 6)
RESNET50_50 = (2, 3, 5, 2, 4, 3, 3, 4, 4, 4, 3, 5, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("make", "code", "side", "dense", "printed", "within"),
    [
        (one_linear_layer, VGG16_80, 32, (14_728_266, 314.59, 4224), (1.67, 82.81, 1639), 0.006),
        (ResNetCifar, RESNET56_70, 32, (853_018, 127.62, 2032), (0.39, 58.54, 1482), 0.006),
        (torchvision.models.resnet50, RESNET50_50, 224, (25_557_032, 4135.69, 26560), (9.1, 1295.4, 21426), 0.16),
    ],
    ids=["VGG-16 80%", "ResNet-56 70%", "ResNet-50 50%"],
)
def test_printed_sizes_are_those_of_nets_that_exist(make, code, side, dense, printed, within):
    """The codes behind the rows are not published: these, searched for, give the printed sizes with channels gone."""
    net, shape = make(), (3, side, side)
    params, macs, channels = as_printed(net, shape)
    assert (params, round(macs / 1e6, 2), channels) == pytest.approx(dense, rel=1e-5)
    small, _ = pruned(net, code, (3, 64, 64) if side == 224 else shape)
    params, macs, channels = as_printed(small, shape)
    assert channels == printed[2] and abs(macs / 1e6 - printed[1]) < within and abs(params / 1e6 - printed[0]) < 0.006


def widths_are_tenths(module):
    """Whether every inner convolution has int(c * digit / 10) filters, at least 1, in whole-number arithmetic."""
    for make in (lambda: VGG(width=0.25), lambda: ResNetCifar(20)):
        dense, task = make(), toy_task((3, 32, 32))
        parts = module.blocks(surgery.layers(dense, task.example))
        code = tuple(np.random.default_rng(4).integers(1, 11, len(parts)).tolist())
        keep = module.ABCPruner(alpha=1.0)._select(dense, task, parts, code)[0]
        for number, part in zip(code, parts, strict=True):
            for layer in part:
                if int(keep[layer.name].sum()) != max(1, layer.width * number // 10):
                    return False
    return True


def test_widths_are_tenths_rounded_down():
    assert widths_are_tenths(abcpruner)
    assert not widths_are_tenths(mutant(abcpruner, 'for share in shares], "keep")', 'for share in shares], "removed")'))


def test_digits_stand_for_layers_and_for_blocks():
    def names(net, side=32):
        found = blocks(surgery.layers(net.eval(), torch.zeros(1, 3, side, side)))
        return [[layer.name for layer in part] for part in found]

    vgg, resnet50 = names(VGG(width=0.125)), names(torchvision.models.resnet50(), 64)
    assert len(vgg) == 13 and vgg[-1] == ["features.40"]
    assert names(tiny_resnet(), 16) == [[f"layer{i}.0.conv1"] for i in (1, 2, 3)]
    assert len(names(ResNetCifar(56))) == 27 and len(resnet50) == 16
    assert resnet50[0] == ["layer1.0.conv1", "layer1.0.conv2"] and all(len(part) == 2 for part in resnet50)


def test_of_a_bottleneck_both_inner_convolutions_get_the_digit():
    net, clamped = pruned(torchvision.models.resnet50(), (3, *[10] * 14, 1), (3, 64, 64), alpha=1.0)
    block = net.layer1[0]
    assert (block.conv1.out_channels, block.conv2.out_channels, block.conv3.out_channels) == (19, 19, 256)
    assert net.layer4[2].conv2.out_channels == 51 and net.conv1.out_channels == 64 and clamped == []
    assert net(torch.randn(2, 3, 64, 64)).isfinite().all()


def test_a_layer_keeps_one_filter_and_is_named():
    net, clamped = pruned(TinyPlain(), (1, 1), (3, 16, 16))
    assert (net.features[0].out_channels, net.features[4].out_channels, clamped) == (1, 1, ["features.0"])


@pytest.mark.parametrize("make", [lambda: VGG(width=0.25), lambda: ResNetCifar(20)])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_operating_points_save_their_share_of_the_macs(make, share):
    dense, whole = make(), size_of(make(), (3, 32, 32))[1]
    count = len(blocks(surgery.layers(dense, torch.zeros(1, 3, 32, 32))))
    for seed in range(2):
        code = tuple(np.random.default_rng(seed).integers(1, 8, count).tolist())
        net, _ = pruned(make(), code, macs_reduction=share)
        left = size_of(net, (3, 32, 32))[1] / whole
        assert 1 - share - 0.06 < left <= 1 - share


def test_a_scaled_code_keeps_its_proportions():
    net, _ = pruned(TinyPlain(channels=(60, 60)), (6, 3), (3, 16, 16), macs_reduction=0.8)
    first, second = net.features[0].out_channels, net.features[4].out_channels
    assert first < 60 and abs(first - 2 * second) <= 2


# -- the edges


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"alpha": 0.05}, r"alpha=0.05 lies outside \[0.1, 1\]"),
        ({"alpha": 1.2}, r"alpha=1.2 lies outside \[0.1, 1\]"),
        ({"sources": 1}, "sources=1 leaves the bees nothing to do: give 2 or more"),
        ({"cycles": 0}, "cycles=0 leaves the bees nothing to do: give 1 or more"),
        ({"limit": 0}, "limit=0 leaves the bees nothing to do"),
        ({"changes": 0}, "changes=0 leaves the bees nothing to do"),
        ({"inherit": "l2"}, "There is no inherit 'l2': choose 'random' or 'l1'"),
        ({"macs_reduction": 1.0}, r"1.0 lies outside \[0, 1\)"),
        ({"macs_reduction": 0.999}, "0.999 is out of reach"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        Stub().compress(**fields)


@pytest.mark.parametrize(("alpha", "highest"), [(0.1, 1), (0.3, 3), (0.7, 7), (0.35, 3), (1.0, 10)])
def test_codes_end_at_alpha(monkeypatch, alpha, highest):
    digits = set()

    def select(self, model, task, parts, code):
        digits.update(code)
        return {}, []

    monkeypatch.setattr(ABCPruner, "_select", select)
    monkeypatch.setattr(surgery, "remove", lambda net, example, keep: net)
    monkeypatch.setattr(search, "of_filters", lambda *args: {})
    Stub(budget="paper").compress(alpha=alpha, sources=40, cycles=1)
    assert digits == set(range(1, highest + 1))


def test_every_recipe_is_for_a_net_of_the_paper_or_an_operating_point():
    for key, fields in ABCPruner.recipes.items():
        net, _, variant = key.partition("/")
        assert ("macs" in variant) == ("macs_reduction" in fields)
        assert (net.startswith("vgg16")) == (fields.get("alpha") == 0.8 and variant != "80")
    assert {row.recipe for row in ABCPruner.reported} <= set(ABCPruner.recipes) and len(ABCPruner.reported) == 7
    assert ABCPruner.recipes["resnet50_imagenet/30"]["alpha"] == 0.3
