"""Deep Compression: what is left and shared against numpy, and the real files against sizes counted from the weights.

The tables of the paper stand here as they are printed; what its bits and shares give is computed from them.
"""

import copy
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from oracle import mutant, toy_task
from torch import nn

from baselines.errors import UserError
from baselines.models.lenet import lenet5, lenet_300_100
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.weight_sharing import deep_compression
from methods.weight_sharing.deep_compression import LENET5, LENET300, DeepCompression
from repro import codec

PLAIN = "tiny_plain_synthetic"
MNIST = (1, 28, 28)
# Tables 2 and 3: weights, share left (%), bits of a weight PQ and PQH, of a distance PQ and PQH, rates PQ and PQH (%)
TABLE_2 = {
    "ip1": (235_200, 8, 6, 4.4, 5, 3.7, 3.1, 2.32),
    "ip2": (30_000, 9, 6, 4.4, 5, 4.3, 3.8, 3.04),
    "ip3": (1_000, 26, 6, 4.3, 5, 3.2, 15.7, 12.70),
}
TABLE_3 = {
    "conv1": (500, 66, 8, 7.2, 5, 1.5, 78.5, 67.45),
    "conv2": (25_000, 12, 8, 7.2, 5, 3.9, 6.0, 5.28),
    "ip1": (400_000, 8, 5, 4.5, 5, 4.5, 2.7, 2.45),
    "ip2": (5_000, 19, 5, 5.2, 5, 3.7, 6.9, 6.13),
}
NETS = {  # net, shares of its recipe, its table, printed totals: bytes left in percent with PQ and PQH
    "LeNet-300-100": (lenet_300_100, "lenet300_mnist5k", TABLE_2, 3.1, 2.49),
    "LeNet-5": (lenet5, "lenet5_mnist5k", TABLE_3, 3.05, 2.55),
}


def task_for(budget="zero", shape=(3, 16, 16), baseline=PLAIN):
    return toy_task(shape, budget, baseline)


def normal(build, seed=0):
    """The net with weights from N(0, 1)."""
    torch.manual_seed(seed)
    net = build()
    for weight in layers_of(net).values():
        nn.init.normal_(weight)
    return net


def layers_of(net):
    return {name: m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def arrays(net):
    return {name: weight.detach().numpy().copy() for name, weight in layers_of(net).items()}


def compressed(cls=DeepCompression, net=None, budget="zero", shape=(3, 16, 16), **fields):
    return cls(**fields).compress(net or normal(TinyPlain), task_for(budget, shape))


# -- pruning ---------------------------------------------------------------------------------------------------------


def reaches_the_densities(cls):
    """Whether numpy's largest n - int(n * (1 - density)) weights of each layer stay, as they were, and no other."""
    for build, key, *_ in NETS.values():
        net = normal(build)
        before, densities = arrays(net), cls.recipes[key]["densities"]
        after = arrays(compressed(cls, net, shape=MNIST, densities=densities, quantise=False))
        for (name, old), density in zip(before.items(), densities, strict=True):
            smallest = np.abs(old).ravel().argsort(kind="stable")[: int(old.size * (1 - density) + 1e-6)]
            old.ravel()[smallest] = 0
            if not np.array_equal(old, after[name]):
                return False
    return True


def test_the_published_shares_are_reached_exactly():
    assert reaches_the_densities(DeepCompression)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1 - target**share)", "target**share)"),
        ("for k in range(1, self.iterations + 1):", "for k in range(self.iterations):"),
        ("masks.largest({name: weight}, 1", "masks.largest({name: -weight.exp()}, 1"),
    ],
    ids=["share removed", "one iteration short", "signed"],
)
def test_the_oracle_catches_other_shares(old, new):
    assert not reaches_the_densities(mutant(deep_compression, old, new).DeepCompression)


def test_the_recipes_hold_the_shares_of_the_tables():
    for (_, key, table, *_), densities in zip(NETS.values(), (LENET300, LENET5), strict=True):
        assert [row[1] for row in table.values()] == [round(100 * d) for d in densities]
        assert DeepCompression.recipes[key]["densities"] == densities


def follows_numpy(cls):
    """Whether each iteration k of K drops what is below k / K of the quality times the deviation of the layer."""
    net = normal(TinyPlain)
    expected = arrays(net)
    for left in expected.values():
        for k in (1, 2, 3):
            left[np.abs(left) < 0.9 * k / 3 * left.astype(np.float64).std()] = 0
    after = arrays(compressed(cls, net, quality=0.9, iterations=3, quantise=False, densities=(0.5,) * 4))
    return all(np.array_equal(after[name], left) for name, left in expected.items())


def test_thresholds_are_quality_times_deviation():
    assert follows_numpy(DeepCompression)
    assert not follows_numpy(mutant(deep_compression, "target * share)", "target)").DeepCompression)


# -- weight sharing --------------------------------------------------------------------------------------------------


class Seen:
    """What happens around the ``train`` calls: weights before and behind each, and its keywords."""

    def __init__(self, cls=DeepCompression, budget="smoke", net=None, **fields):
        self.task, self.calls = task_for(budget), []
        self.train, self.task.train = self.task.train, self.watch
        self.out = cls(**{"iterations": 2, "quality": 0.7, **fields}).compress(net or normal(TinyPlain), self.task)

    def watch(self, model, epochs, **options):
        before = arrays(model)
        result = self.train(model, epochs, **options)
        self.calls.append((before, arrays(model), epochs, options))
        return result


def shares_by_kmeans(cls, **fields):
    """Whether the weights left are replaced by means of theirs, nearest first, at most 2^bits - 1 in a layer.

    Compared are the weights behind the last retraining with those before the centroids are trained.
    """
    seen = Seen(cls, "zero", **fields)
    (_, pruned, *_), (shared, *_) = seen.calls[-2:]
    for name, values in shared.items():
        old, new = pruned[name], values
        left = old != 0
        centroids = np.unique(new[left])
        bits = fields["conv_bits"] if values.ndim == 4 else fields["fc_bits"]
        if not np.array_equal(new != 0, left) or len(centroids) > 2**bits - 1:
            return False
        means = [old[new == c].astype(np.float64).mean() for c in centroids]
        distances = np.abs(old[left][:, None].astype(np.float64) - centroids)
        own = np.abs(old[left].astype(np.float64) - new[left])
        if not np.allclose(means, centroids, atol=1e-6) or (own > distances.min(1) + 1e-6).any():
            return False
        if len(centroids) < min(2**bits - 1, 3):
            return False
    return True


FEW = {"conv_bits": 4, "fc_bits": 3}


@pytest.mark.parametrize("start", ["linear", "random", "density"])
def test_the_weights_left_become_the_centroids_of_kmeans(start):
    assert shares_by_kmeans(DeepCompression, start=start, **FEW)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2 ** storage[name].bits - 1, self", "2 ** storage[name].bits, self"),
        ("self.conv_bits if conv else self.fc_bits", "self.fc_bits"),
        ("self.conv_bits if conv else self.fc_bits", "self.conv_bits"),
        ("2 ** storage[name].bits - 1, self", "storage[name].bits // 2, self"),
    ],
    ids=["no room for the filler", "one size for all", "the other size for all", "too few"],
)
def test_the_oracle_catches_other_numbers_of_values(old, new):
    changed = mutant(deep_compression, old, new).DeepCompression
    found = [shares_by_kmeans(changed, start="density", conv_bits=c, fc_bits=f) for c, f in ((4, 3), (3, 4))]
    assert not all(found)


def linear_reaches_farthest(cls):
    """Whether centroids span more of the range of the weights left when k-means begins with equal steps over it."""
    reach = {}
    for start in ("linear", "random", "density"):
        (_, pruned, *_), (shared, *_) = Seen(cls, "zero", start=start, **FEW).calls[-2:]
        reach[start] = np.mean([np.ptp(shared[name]) / np.ptp(pruned[name]) for name in pruned])
    return reach["linear"] > max(reach["random"], reach["density"])


def test_a_linear_start_keeps_the_large_weights():
    """Sec. 3.2 and 6.2."""
    assert linear_reaches_farthest(DeepCompression)
    other = mutant(deep_compression, "self.start, random)", "'density', random)")
    assert not linear_reaches_farthest(other.DeepCompression)


def trains_the_centroids(cls):
    """Whether every train call leaves zeros zero, and the last one moves whole clusters, each to a value of its own."""
    for build in (TinyPlain, tiny_resnet):
        seen = Seen(cls, net=normal(build), **FEW)
        for before, after, *_ in seen.calls:
            if any((after[name][old == 0] != 0).any() for name, old in before.items()):
                return False
        before, after, *_ = seen.calls[-1]
        for name, old in before.items():
            values = [np.unique(after[name][old == value]) for value in np.unique(old)]
            if any(len(found) > 1 for found in values) or np.array_equal(after[name], old):
                return False
    return True


def test_clusters_move_as_one_and_zeros_stay():
    assert trains_the_centroids(DeepCompression)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("after_backward=after_backward, after_step=after_step,", "after_step=masks.hold(model),"),
        ("after_backward=after_backward, after_step=after_step,", "after_step=lambda step: None,"),
        ("lr=self.lr, after_step=masks.hold(model)", "lr=self.lr"),
        ("lr=self.centroid_lr,", "lr=0.0,"),
    ],
    ids=["weights by themselves", "nothing held", "pruned ones revive", "not trained"],
)
def test_the_oracle_catches_another_training(old, new):
    assert not trains_the_centroids(mutant(deep_compression, old, new).DeepCompression)


def follows_eq_3(cls):
    """Whether one step of plain SGD moves each centroid by the rate times the sum of its weights' gradients (numpy)."""
    task, x = task_for(), torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = []

    def train(model, epochs, of, lr, after_backward=None, after_step=None):
        if after_backward is None:
            return
        before = arrays(model)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(8) % 4).backward()
        grads = {name: weight.grad.numpy().astype(np.float64) for name, weight in layers_of(model).items()}
        after_backward(0)
        with torch.no_grad():
            for weight in layers_of(model).values():
                weight -= lr * weight.grad
        after_step(0)
        for name, after in arrays(model).items():
            expected = before[name].astype(np.float64)
            for value in np.unique(before[name][before[name] != 0]):
                cluster = before[name] == value
                expected[cluster] -= lr * grads[name][cluster].sum()
            found.append(np.allclose(after, expected, atol=1e-6) and not np.array_equal(after, before[name]))

    task.train = train
    cls(quality=0.7, iterations=1, centroid_lr=0.01, **FEW).compress(normal(TinyPlain).eval(), task)
    return len(found) == 4 and all(found)


def test_a_centroid_moves_by_the_sum_of_its_gradients():
    assert follows_eq_3(DeepCompression)
    changed = "after_backward=lambda step: None, after_step=after_step,"
    alone = mutant(deep_compression, "after_backward=after_backward, after_step=after_step,", changed)
    assert not follows_eq_3(alone.DeepCompression)


# -- the files -------------------------------------------------------------------------------------------------------


def stored(array, bits):
    """(zeros before each stored weight, stored weights): a filler zero behind 2^bits - 1 zeros of a longer gap."""
    zeros, values, gap = [], [], 0
    for value in array.ravel().tolist():
        if value or gap == 2**bits - 1:
            zeros.append(gap)
            values.append(value)
            gap = 0
        else:
            gap += 1
    while values and not values[-1]:  # zeros at the end are not stored
        zeros.pop()
        values.pop()
    return np.array(zeros), np.array(values)


def entropy(symbols):
    """Bits a symbol."""
    share = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return float(-(share * np.log2(share)).sum())


def words(packed, name):
    """Bytes of the words of a layer's distances and of its weights, by the file's header; none without Huffman."""
    size = struct.unpack_from("<4sBI", packed.data)[2]
    for row in json.loads(zlib.decompress(packed.data[17 : 17 + size])):
        if row[0] == f"{name}.weight":
            return row[4][3::4]  # counts: entries | lengths, width, bytes | values | lengths, width, bytes
    raise AssertionError(name)


def huffman_lengths_fit(cls, net, shape, **fields):
    """Whether a word takes from the entropy to a bit more, for weights and distances of the file of every layer."""
    net = compressed(cls, copy.deepcopy(net), shape=shape, **fields)
    packed = codec.pack(net)
    state, _ = codec.unpack(packed.data)
    for name in layers_of(net):
        zeros, values = stored(state[f"{name}.weight"].numpy(), 5)
        sizes = words(packed, name)
        if len(sizes) != 2:
            return False
        for symbols, size in zip((zeros, values), sizes, strict=True):
            least = entropy(symbols) * len(symbols)
            if not least <= 8 * size <= least + len(symbols) + 8:
                return False
    return True


def test_huffman_words_take_from_the_entropy_to_one_bit_more():
    for build, key, *_ in NETS.values():
        assert huffman_lengths_fit(DeepCompression, normal(build), MNIST, **DeepCompression.recipes[key])
    plain = mutant(deep_compression, "huffman=self.huffman)", "huffman=False)").DeepCompression
    assert not huffman_lengths_fit(plain, normal(TinyPlain), (3, 16, 16))


def sizes_follow(cls, index=(5, 5)):
    """Whether P and PQ take the bytes counted from the weights, and files give back every bit."""
    for quantise in (False, True):
        fields = {"conv_index_bits": index[0], "fc_index_bits": index[1], **FEW}
        net = compressed(cls, quality=1.4, huffman=False, quantise=quantise, **fields)
        packed = codec.pack(net)
        state, _ = codec.unpack(packed.data)
        for name, array in arrays(net).items():
            conv = array.ndim == 4
            zeros, values = stored(array, index[0] if conv else index[1])
            distances = -(-len(zeros) * (index[0] if conv else index[1]) // 8)
            book = 4 * len(np.unique(values)) - (-len(values) * (4 if conv else 3) // 8)
            if packed.bits[f"{name}.weight"] != 8 * (distances + (book if quantise else 4 * len(values))):
                return False
            if state[f"{name}.weight"].numpy().tobytes() != array.tobytes():
                return False
            if quantise and len(np.unique(values)) > 2 ** (4 if conv else 3):
                return False
    return True


@pytest.mark.parametrize("index", [(5, 5), (8, 5), (2, 3)], ids=str)
def test_files_have_the_size_that_the_weights_say(index):
    assert sizes_follow(DeepCompression, index)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.conv_index_bits if conv else self.fc_index_bits", "self.fc_index_bits"),
        ("sparse=sparse,", "sparse=None,"),
        ("huffman=self.huffman)", "huffman=True)"),
        ('attach(model.get_submodule(name), "weight", coding)', "continue"),
    ],
    ids=["one size of distance", "not sparse", "always Huffman-coded", "not declared"],
)
def test_the_oracle_catches_another_storage(old, new):
    changed = mutant(deep_compression, old, new).DeepCompression
    try:
        assert not sizes_follow(changed, (2, 3))
    except UserError as error:
        assert "distinct values" in str(error)


def test_the_stages_share_their_training():
    """P is the net that PQ quantises, PQH is PQ in fewer bytes: also at a budget that divides the epochs."""
    nets, recipes = {}, DeepCompression.recipes
    for stage in ("/P", "/PQ", ""):
        fields = {**recipes[f"vgg16_mnist5k{stage}"], "densities": (0.5, 0.3, 0.2, 0.6), "conv_bits": 5}
        nets[stage] = compressed(budget="smoke", **fields)
    pruned, shared, coded = (nets[stage] for stage in ("/P", "/PQ", ""))
    for name, array in arrays(pruned).items():
        assert np.array_equal(array != 0, arrays(shared)[name] != 0)
        assert len(np.unique(array)) > len(np.unique(arrays(shared)[name]))
    assert all(torch.equal(value, coded.state_dict()[name]) for name, value in shared.state_dict().items())
    sizes = [len(codec.pack(net).data) for net in (TinyPlain(), pruned, shared, coded)]
    assert sizes == sorted(sizes, reverse=True)
    assert [set(row) for row in (recipes["lenet5_mnist5k"], recipes["lenet5_mnist5k/PQ"])] == [
        {"densities", "lr"},
        {"densities", "lr", "huffman"},
    ]


def rates(packed, net):
    """Dense bytes over bytes in the file: of the weights alone, and of the whole file with biases and header."""
    bits = sum(packed.bits[f"{name}.weight"] for name in layers_of(net))
    dense = sum(weight.numel() for weight in layers_of(net).values())
    return 32 * dense / bits, 4 * sum(p.numel() for p in net.parameters()) / len(packed.data)


def naive(table, bits, index):
    """The paper's rule, taken literally: share * (bits of a weight + bits of a distance) / 32."""
    kept = sum(row[0] * row[1] / 100 * (row[bits] + row[index]) / 32 for row in table.values())
    return sum(row[0] for row in table.values()) / kept


def weighted(table, column):
    """The rates printed for the layers, added up: bytes left in percent."""
    return sum(row[0] * row[column] for row in table.values()) / sum(row[0] for row in table.values())


def test_where_the_printed_rates_come_from(capsys):
    """The docstring's figures from the paper's tables; and what real files of weights from N(0, 1) take."""
    figures = {"LeNet-300-100": (35.6, 47.9, 2.44), "LeNet-5": (37.0, 41.4, 2.73)}
    for title, (build, key, table, *printed) in NETS.items():
        rule, layers = (naive(table, 2, 4), naive(table, 3, 5)), (weighted(table, 6), weighted(table, 7))
        assert (round(rule[0], 1), round(rule[1], 1), round(layers[1], 2)) == figures[title]
        found = []
        for stage in ("/P", "/PQ", ""):
            net = compressed(net=normal(build), shape=MNIST, **DeepCompression.recipes[f"{key}{stage}"])
            found.append(rates(codec.pack(net), net))
        with capsys.disabled():
            print(f"\n{title}, PQ and PQH: printed totals", *(f"{100 / share:.1f}x" for share in printed), end="; ")
            print("printed layers", *(f"{100 / share:.1f}x" for share in layers), end="; ")
            print("printed bits alone", *(f"{rate:.1f}x" for rate in rule), end="; ")
            print("files of N(0, 1) P, PQ, PQH", *(f"{w:.1f}x ({f:.1f}x whole)" for w, f in found), end=" ")
        assert found[0] < found[1] < found[2] and rule[0] > found[1][0] > 0.85 * rule[0]
    without = {**TABLE_3, "ip1": (*TABLE_3["ip1"][:7], 8 * (4.5 + 4.5) / 32)}
    assert round(weighted(without, 7), 2) == NETS["LeNet-5"][4] != round(weighted(TABLE_3, 7), 2)


# -- at the edges ----------------------------------------------------------------------------------------------------


def test_layers_of_one_weight_still_end():
    task = task_for("smoke")
    net = DeepCompression(quality=50.0).compress(normal(TinyPlain), task)
    assert set(task.details["clamped"]) == set(layers_of(net)) and set(task.details["values"].values()) == {1}
    assert codec.pack(net).data and net(torch.randn(2, 3, 16, 16)).isfinite().all()


def test_recipes_fit_their_nets():
    for key, net in (("vgg16_cifar10", VGG()), ("vgg16_mnist5k", VGG(width=0.25)), ("lenet5_mnist5k", lenet5())):
        assert len(DeepCompression.recipes[key]["densities"]) == len(layers_of(net))


def test_epochs_are_divided_over_all_trainings():
    seen = Seen(iterations=3, epochs=10.0, centroid_epochs=5.0)
    assert [call[2] for call in seen.calls] == [10.0, 10.0, 10.0, 5.0]
    assert {call[3]["of"] for call in seen.calls} == {35.0}


def test_bad_values():
    for fields, sentence in (
        ({"iterations": 0}, "iterations=0 prunes nothing"),
        ({"quality": -1.0}, "quality -0.2 of .* is no threshold"),
        ({"densities": (0.5, 0.5)}, "2 densities were given, but there are 4 layers with weights"),
        ({"densities": (0.5, 0.5, 0.5, 0.0)}, r"density 0.0 lies outside \(0, 1\]"),
        ({"conv_bits": 0}, "codebook of 0 bits"),
        ({"fc_index_bits": 0}, "Distances of 0 bits"),
        ({"start": "kmeans"}, "There is no start 'kmeans'"),
    ):
        with pytest.raises(UserError, match=sentence):
            compressed(**fields)
