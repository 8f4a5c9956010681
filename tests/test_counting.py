"""Counting rules against loops over filters; layers against hooks; bit-operations; what a record says of layers."""

import copy
import io
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import mutant, size_of
from test_records import a_record, measured
from torch import nn

from baselines import base
from baselines.cost import cost, layer_macs
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.base import Reported
from methods.kit import surgery
from methods.kit.coding import Coding, attach, attach_input
from repro import checks, counting, show, structures
from repro.counting import counted, layer_costs
from repro.measure import layers
from repro.verdict import contradictions, counts, structure

X = torch.zeros(1, 3, 16, 16)


def lively(net):
    """The net with no parameter that is zero."""
    for p in net.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return net


# -- HRank's rule, filter by filter


def parts(net):
    """(layer, its BN or None, pixels of its maps) by name, written down from the definition of the two tiny nets."""
    if isinstance(net, TinyPlain):
        f, c = net.features, net.classifier
        return {"f0": (f[0], f[1], 256), "f4": (f[4], f[5], 64), "c1": (c[1], None, 1), "c3": (c[3], None, 1)}
    found = {"conv1": (net.conv1, net.bn1, 256), "linear": (net.linear, None, 1)}
    for stage, pixels in (("layer1", 256), ("layer2", 64), ("layer3", 16)):
        (block,) = getattr(net, stage)
        found |= {f"{stage}.1": (block.conv1, block.bn1, pixels), f"{stage}.2": (block.conv2, block.bn2, pixels)}
    return found


def by_hand(dense, net):
    """Every filter that is left counts with all inputs of the dense net; loops in numpy, nothing of the counter."""
    params = operations = 0
    for name, (old, _, pixels) in parts(dense).items():
        new, norm, _ = parts(net)[name]
        tensors = [t for t in (new.weight, new.bias, *((norm.weight, norm.bias) if norm else ())) if t is not None]
        arrays = [t.detach().numpy() for t in tensors]
        for index in range(new.weight.shape[0]):
            if not any(np.any(array[index] != 0) for array in arrays):
                continue
            inputs = old.weight.detach().numpy()[0].size
            params += inputs + (new.bias is not None)
            operations += inputs * pixels + (isinstance(new, nn.Linear) and new.bias is not None)
    return params, operations


def narrower():
    """Filters that are gone, and every way of being zero or not quite."""
    dense = lively(TinyPlain())
    net = lively(TinyPlain(channels=(5, 9)))
    conv, bn = net.features[4], net.features[5]
    with torch.no_grad():
        conv.weight[:5], conv.bias[:5] = 0, 0
        bn.weight[:2], bn.bias[:2] = 0, 0  # silent: 0 and 1; the BN of 2 and 3 is not zero, nor is the bias of 4
        bn.weight[2], bn.bias[3] = 0, 0
        bn.weight[4], bn.bias[4], conv.bias[4] = 0, 0, 1
        net.classifier[1].weight[3], net.classifier[1].bias[3] = 0, 0  # silent: there is no BN
        net.classifier[1].weight[4] = 0
    return dense, net


def masked():
    """A residual net, pruned inside its blocks and masked on its stream by the project's surgery."""
    dense = lively(tiny_resnet())
    net, keep = copy.deepcopy(dense), {}
    for name, layer in surgery.layers(net, X).items():
        keep[name] = torch.arange(layer.width) >= layer.width // 3
    return dense, surgery.remove(net, X, keep)


def gap(module, make):
    """Counts of the rule less those by hand, for the compressed and for the dense net."""
    dense, net = make()
    got = module.hrank_out_only(dense, net, X)
    expected = (*by_hand(dense, net), *by_hand(dense, dense))
    return [a - b for a, b in zip(got.values(), expected, strict=True)]


@pytest.mark.parametrize("make", [narrower, masked])
def test_out_only_is_what_a_loop_over_filters_counts(make):
    assert gap(counting, make) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (narrower, "len(new[name].weight) - silent[name]", "len(new[name].weight)"),
        (masked, "len(new[name].weight) - silent[name]", "len(new[name].weight)"),
        (narrower, "_out_only(layer, len(new[name].weight)", "_out_only(new[name], len(new[name].weight)"),
        (narrower, "for vector in (norm.weight, norm.bias)", "for vector in (norm.weight,)"),
        (narrower, "for vector in (norm.weight, norm.bias)", "for vector in (norm.bias,)"),
        (narrower, "in (layer.bias, *(vector", "in (None, *(vector"),
        (narrower, "(biases * places if isinstance(layer, nn.Linear) else 0)", "biases * places"),
        (masked, "biases = 0 if layer.bias is None else filters", "biases = 0"),
        (masked, "_out_only(layer, len(layer.weight), macs", "_out_only(layer, len(layer.weight) - 1, macs"),
    ],
)  # fmt: skip
def test_the_loop_catches_a_changed_line(make, old, new):
    assert any(gap(mutant(counting, old, new), make))


def test_a_filter_is_never_silent_behind_a_normalisation_without_parameters():
    dense = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)))
    net = copy.deepcopy(dense)
    with torch.no_grad():
        net[0].weight[:2], net[0].bias[:2] = 0, 0
    assert counted(dense, net, X)["hrank_out_only"]["params"] == 16
    net[1] = nn.Identity()
    assert counted(dense, net, X)["hrank_out_only"]["params"] == 8
    net[1] = lively(nn.BatchNorm2d(4))
    net[1].bias = None
    net[1].weight.data[:1] = 0
    assert counted(dense, net, X)["hrank_out_only"]["params"] == 12


@pytest.mark.parametrize(
    ("how", "params", "macs", "dense_params", "dense_macs", "physical"),
    [
        (structures.HRANK_56, 489_359, 62_715_530, 848_954, 125_485_706, (545_324, 65_065_600)),
        (structures.HRANK_VGG16, 4_808_145, 116_629_002, 14_982_474, 313_464_330, (1_353_859, 43_232_112)),
        (structures.HRANK_50, 13_773_764, 1_549_652_456, 25_503_912, 4_089_185_256, (6_980_575, 685_136_865)),
    ],
)
def test_hranks_published_figures_come_from_the_nets_that_hrank_returns(
    how, params, macs, dense_params, dense_macs, physical
):
    side = 224 if how is structures.HRANK_50 else 32
    found = counted(how.args[1](), how(), torch.zeros(1, 3, side, side))
    expected = {"params": params, "macs": macs, "dense_params": dense_params, "dense_macs": dense_macs}
    assert found["hrank_out_only"] == expected
    assert (found["mac"]["params"], found["mac"]["macs"]) == physical


def test_counting_leaves_the_nets_as_they_were():
    dense, net = narrower()
    net.features.train(), net.classifier.eval()
    before = copy.deepcopy(net.state_dict())
    counted(dense, net, X)
    assert net.features[1].training and not net.classifier.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*net.modules(), *dense.modules()))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# -- what is not zero


def sparse():
    """A net that has lost filters and single weights, and a dense one that has zeros as well."""
    dense, net = narrower()
    with torch.no_grad():
        dense.features[0].weight[1, 2], dense.features[4].bias[3], dense.classifier[3].weight[:, ::2] = 0, 0, 0
        net.features[0].weight[::2, 1], net.classifier[1].weight[5:9, 7], net.features[5].bias[6] = 0, 0, 0
    return dense, net


def not_zero(net):
    """(params, MACs) that are not zero: numpy on every parameter, and pixels of the maps for each weight."""
    params = sum(np.count_nonzero(p.detach().numpy()) for p in net.parameters())
    return params, sum(pixels * np.count_nonzero(m.weight.detach().numpy()) for m, _, pixels in parts(net).values())


def extra(module, make):
    """Counts of the rule less numpy's, for the compressed and for the dense net."""
    dense, net = make()
    got = module.RULES["nonzero"](dense, net, X)
    expected = (*not_zero(net), *not_zero(dense))
    return [a - b for a, b in zip(got.values(), expected, strict=True)]


@pytest.mark.parametrize("make", [sparse, masked])
def test_nonzero_is_what_numpy_counts(make):
    assert extra(counting, make) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"nonzero": ("nonzero", "effective_macs", 1)', '"nonzero": ("params", "effective_macs", 1)'),
        ('"nonzero": ("nonzero", "effective_macs", 1)', '"nonzero": ("nonzero", "macs", 1)'),
        ('"nonzero": ("nonzero", "effective_macs", 1)', '"nonzero": ("nonzero", "effective_macs", 2)'),
        ('"dense_params": getattr(dense, params)', '"dense_params": dense.params'),
        ("operations * getattr(dense, macs)", "operations * dense.macs"),
    ],
    ids=["all params", "all MACs", "two per MAC", "all of the dense params", "all of the dense MACs"],
)
def test_numpy_catches_a_changed_count(old, new):
    assert any(extra(mutant(counting, old, new), sparse))


def from_the_costs(module, rule):
    """Whether a record that knows no rule gives the counts that the rule takes on the networks."""
    dense, net = sparse()
    costs = [replace(measured(), **asdict(cost(one, X))) for one in (dense, net)]
    record = a_record(dense=costs[0], compressed=costs[1])
    found = module.of_costs(rule, *costs)
    return found == counted(dense, net, X)[rule] == counts(record, rule)


@pytest.mark.parametrize("rule", list(counting.TAKEN))
def test_a_record_from_before_a_rule_gives_the_same_counts(rule):
    assert from_the_costs(counting, rule)
    assert not from_the_costs(mutant(counting, "getattr(compressed, params)", "dense.params"), rule)


def test_a_record_from_before_hranks_rule_has_no_such_counts_and_recorded_ones_go_first():
    own = {"params": 1, "macs": 2, "dense_params": 3, "dense_macs": 4}
    assert counts(a_record(), "hrank_out_only") is None
    assert counts(a_record(counted={"nonzero": own}), "nonzero") == own


# -- which rules there are


def test_two_per_mac_doubles_the_operations_and_no_parameter():
    found = counted(*narrower(), X)
    assert list(found) == ["mac", "two_per_mac", "nonzero", "hrank_out_only"]
    assert found["two_per_mac"] == {k: v * (2 if k.endswith("macs") else 1) for k, v in found["mac"].items()}
    dense, net = narrower()
    sizes = [*size_of(net, (3, 16, 16)), *size_of(dense, (3, 16, 16))]
    assert list(found["mac"].values()) == sizes


class Attends(nn.Module):
    """A convolution, and a product that no layer makes."""

    def __init__(self, out=4):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, out, 3), nn.Linear(out, 2)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.head((tokens @ tokens.transpose(1, 2) @ tokens).mean(1))


def replaced(index, module):
    net = TinyPlain()
    net.features[index] = module
    return net


@pytest.mark.parametrize(
    ("dense", "net"),
    [
        (ResNetCifar(14), ResNetCifar(8)),  # a student: fewer layers
        (TinyPlain(), tiny_resnet()),
        (TinyPlain(), replaced(4, nn.Sequential(nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 12, 1)))),  # low rank
        (TinyPlain(), replaced(4, nn.Conv2d(8, 12, 1))),  # another kernel
        (TinyPlain(), TinyPlain(channels=(9, 12))),  # wider
        (TinyPlain(channels=(8, 8)), TinyPlain(channels=(8, 8), hidden=25)),
        (Attends(), Attends(2)),
    ],
)
def test_a_rule_without_a_meaning_is_absent(dense, net):
    assert list(counted(dense, net, X)) == ["mac", "two_per_mac", "nonzero"]


def test_the_checks_know_the_same_rules():
    assert checks.RULES is counting.RULES


def test_a_printed_reduction_is_held_against_the_dense_net_of_its_own_rule():
    count = {"params": 600, "macs": 1, "dense_params": 800, "dense_macs": 2}
    record = a_record(counted={"hrank_out_only": count}, dense=measured(params=1_000))
    row = Reported("net", "row", "Table 1", params=600.0, params_reduction=25.0, rule="hrank_out_only")
    share = Reported("net", "row", "Table 1", params_reduction=25.0, rule="hrank_out_only")
    assert structure(share, [record]) == "params exact"
    assert contradictions(row, record) == []
    (sentence,) = contradictions(row, replace(record, counted={}))
    assert "of this net's 1,000 are 40.0 % fewer" in sentence


# -- MACs layer by layer


class Twice(nn.Module):
    """One layer used twice, at two sizes, one never, and a product of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 5, 1)
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.matrix = nn.Parameter(torch.ones(4, 6))

    def forward(self, x):
        x = F.max_pool2d(self.conv(x), 2)
        return self.inner(self.conv(x)).mean((2, 3)) @ self.matrix


def test_a_layer_that_is_used_twice_counts_twice_and_nothing_is_lost():
    found = layer_macs(Twice(), torch.zeros(2, 3, 16, 16))
    assert found == {"": 24, "conv": 27 * 256 + 27 * 64, "unused": 0, "inner.0": 12 * 64}
    assert cost(Twice(), X).macs == sum(found.values())
    with torch.device("meta"):
        assert layer_macs(Twice(), torch.zeros(1, 3, 16, 16)) == found


def test_zeros_of_a_layer_that_is_used_twice_are_skipped_twice():
    net = Twice()
    with torch.no_grad():
        net.conv.weight[0] = 0
    got = cost(net, X)
    assert got.macs - got.effective_macs == 9 * 256 + 9 * 64


def hooked(net, x):
    """MACs of the convolutions and linear layers: outputs times weights of one filter."""
    found, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def count(module, _, out, name=name):
                found[name] = found.get(name, 0) + out.numel() * module.weight[0].numel()

            hooks.append(module.register_forward_hook(count))
    net.eval()(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", base.names())
def test_the_layers_of_every_baseline_add_up_to_the_flop_counter(name):
    from torch.utils.flop_counter import FlopCounterMode

    b = base.load(name)
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 16, 16) if name.startswith("tiny") else (3, 32, 32)
    for build in (b.net, b.student):
        net, x = build(10).eval(), torch.zeros(1, *shape)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(x)
        found = layer_macs(net, x)
        assert sum(found.values()) == counter.get_total_flops() // 2 == cost(net, x).macs
        assert found == hooked(net, x)


def test_the_sum_catches_a_call_that_replaces_another():
    from baselines import cost as module

    wrong = mutant(module, "flops[running[-1]] += ", "flops[running[-1]] = ")
    assert wrong.layer_macs(Twice(), X) != layer_macs(Twice(), X)
    wrong = mutant(module, "running.pop()", "None")
    assert wrong.layer_macs(TinyPlain(), X) == layer_macs(TinyPlain(), X)  # leaves only: nothing runs between them
    assert wrong.layer_macs(Twice(), X) != layer_macs(Twice(), X)


# -- what a layer costs


def bits(module=counting):
    """Bit-operations of a net with binary, ternary and 4-bit weights, and with 1- and 8-bit inputs."""
    net = TinyPlain()
    attach(net.features[0], "weight", Coding("codebook", bits=4))
    attach(net.features[4], "weight", Coding("binary"))
    attach_input(net.features[4], 1)
    attach(net.classifier[1], "weight", Coding("ternary"))
    attach(net.classifier[1], "bias", Coding("dense", bits=16))
    attach_input(net.classifier[1], 8)
    return [layer.bit_ops for layer in module.layer_costs(net, X).values()]


BITS = [27 * 8 * 256 * 4 * 32, 72 * 12 * 64 * 1 * 1, 192 * 24 * 2 * 8, 24 * 4 * 32 * 32]


def test_bit_operations_are_macs_times_bits_of_weight_and_input():
    assert bits() == BITS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("coding.weight_bits if coding else 32", "32"),
        ("(coding.weight_bits if coding else 32) * input_bits(module)", "(coding.weight_bits if coding else 32) * 32"),
        ('f"{name}.weight".lstrip(".")', 'f"{name}.bias".lstrip(".")'),
    ],
)
def test_the_bits_catch_a_changed_line(old, new):
    assert bits(mutant(counting, old, new)) != BITS


def test_a_layer_has_its_own_parameters_and_no_others():
    net = Twice()
    with torch.no_grad():
        net.conv.weight[0], net.conv.bias[1] = 0, 0
    found = layer_costs(net, X)
    assert [(c.out, c.into, c.params, c.nonzero) for c in found.values()] == [
        (0, 0, 24, 24), (3, 1, 30, 20), (5, 3, 20, 20), (4, 3, 16, 16),
    ]  # fmt: skip


def test_the_layers_of_a_record_say_what_is_left_in_the_place_of_each():
    dense = TinyPlain()
    net = replaced(4, nn.Sequential(nn.Conv2d(8, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 12, 1, bias=False)))
    net.classifier = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Identity(), nn.Linear(192, 4))
    rows = {row["name"]: row for row in layers(dense, net, X)}
    assert list(rows) == ["features.0", "features.4", "classifier.1", "classifier.3"]
    assert rows["features.0"] == {
        "name": "features.0", "dense": [8, 3], "compressed": [8, 3], "params": [224, 224], "nonzero": [224, 224],
        "macs": [55_296] * 2, "bit_ops": [55_296 * 1024] * 2,
    }  # fmt: skip
    part = rows["features.4"]
    assert (part["compressed"], part["params"], part["macs"]) == (None, [876, 146 + 24], [55_296, 9_216 + 1_536])
    assert rows["classifier.1"]["compressed"] is None and rows["classifier.1"]["macs"] == [192 * 24, 0]
    assert rows["classifier.3"]["compressed"] == [4, 192]
    for i, whole in enumerate((dense, net)):
        assert sum(row["macs"][i] for row in rows.values()) == size_of(whole, (3, 16, 16))[1]


def test_the_layer_table_adds_up_to_the_network():
    dense, net = masked()
    nets = [dict(zip(("params", "macs"), size_of(one, (3, 16, 16)), strict=True)) for one in (dense, net)]
    bits = [measured(**one, bit_ops=1024 * one["macs"]) for one in nets]
    text = rendered(a_record(dense=bits[0], compressed=bits[1], layers=layers(dense, net, X)))
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.strip()}
    assert rows["layer1.0.conv1"].startswith("8 -> 6 8 576 -> 432")
    whole = [f"{nets[0][k]:,} -> {nets[1][k]:,}" for k in ("params", "macs")]
    assert rows["network"].startswith(whole[0]) and whole[1] in rows["network"]
    norms = [sum(p.numel() for m in one.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
             for one in (dense, net)]  # fmt: skip
    assert rows["elsewhere"].startswith(f"{norms[0]} -> {norms[1]}") and rows["elsewhere"].endswith(" 0 0")


def test_the_layer_table_of_an_old_record_has_shapes_only():
    rows = rendered(a_record()).splitlines()
    assert next(line.split() for line in rows if "features.0" in line) == ["features.0", "64", "->", "1", "3"]
    assert next(line.split() for line in rows if "network" in line)[1:4] == ["1,000", "->", "500"]


def rendered(record):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    console.print(show.layer_table(record))
    return console.file.getvalue()
