"""Denton et al.'s approximations against numpy on planted weights, real data and impulses; what is fixed; budgets."""

import copy
import itertools

import numpy as np
import pytest
import torch
from oracle import mutant, size_of, toy_task, worn
from torch import nn

from baselines import base
from baselines.errors import UserError
from baselines.models.lenet import lenet5, lenet_300_100
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.kit import factor
from methods.low_rank import svd
from methods.low_rank.svd import SVD


def rng():
    return np.random.default_rng(0)


def eye(size):
    return torch.eye(size).double()


def kernel_of(net, channels, size):
    """The dense kernel (outputs, channels, height, width) that a stack of layers amounts to, from impulses."""
    side = [2 * n - 1 for n in size]
    impulses = torch.zeros(channels, channels, *side)
    impulses[range(channels), range(channels), size[0] - 1, size[1] - 1] = 1
    with torch.no_grad():
        bias = net(torch.zeros(1, channels, *side))
        found = (net(impulses) - bias).flip(2, 3).transpose(0, 1).double().numpy()
    rows, columns = ((have - n) // 2 for have, n in zip(found.shape[2:], size, strict=True))  # a padding gives more
    return found[:, :, rows : rows + size[0], columns : columns + size[1]]


def truncated(matrix, rank):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


# -- biclustering


def nested_by_numpy(block, first, second):
    """The paper's two SVDs of one cell (f, c, s): the second one on the right vectors of the first."""
    f, c, s = block.shape
    left, values, right = truncated(block.reshape(f, c * s), second)
    again, more, rest = truncated(right.reshape(second, c, s).transpose(1, 0, 2).reshape(c, second * s), first)
    vectors = (again * more @ rest).reshape(c, second, s).transpose(1, 0, 2)
    return np.einsum("fk,k,kcs->fcs", left, values, vectors)


def line_distance(rows):
    """The sum of the squared distances of rows to the line nearest to them."""
    return (np.linalg.svd(rows, compute_uv=False)[1:] ** 2).sum()


def clusters_of(layer, into, out):
    """The clusters of input channels and of output channels: given here, and looked at in an oracle of their own."""
    cells = svd.Nested(layer, eye(layer.in_channels), (into, out), rng())
    return cells.inputs.numpy(), cells.outputs.numpy()


def cells_are_nested_svds(module):
    """Every cell of the kernel that runs is numpy's two SVDs of that cell of the dense one."""
    torch.manual_seed(1)
    for layer, (into, out), ranks in (
        (nn.Conv2d(6, 8, 3), (2, 2), (2, 3)),
        (nn.Conv2d(6, 8, (3, 2)), (3, 2), (1, 2)),
        (nn.Conv2d(4, 6, 3), (1, 3), (3, 1)),
        (nn.Conv2d(6, 4, 3), (2, 1), (2, 4)),
    ):
        inputs, outputs = clusters_of(layer, into, out)
        net = module.Nested(layer, eye(layer.in_channels), (into, out), rng()).build(*ranks)
        dense = layer.weight.detach().double().numpy()
        ours = kernel_of(net, layer.in_channels, layer.kernel_size)
        for c, f in itertools.product(inputs, outputs):
            block = dense[np.ix_(f, c)]
            expected = nested_by_numpy(block.reshape(*block.shape[:2], -1), *ranks).reshape(block.shape)
            if not np.allclose(ours[np.ix_(f, c)], expected, atol=1e-5):
                return False
    return True


def test_each_cell_is_two_svds():
    assert cells_are_nested_svds(svd)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("factor.nested_svd(self.cells, first, second)", "factor.nested_svd(self.cells, second, first)"),
        (".transpose(1, 2).flatten(2).flatten(0, 1)", ".flatten(2, 3).transpose(1, 2).flatten(0, 1)"),
        ("self.inputs.flatten().repeat(self.out)", "self.inputs.flatten().repeat_interleave(self.out)"),
        ("self.outputs.flatten() if self.out > 1", "self.outputs.flatten().argsort() if self.out > 1"),
        ('torch.einsum("gcd,gdshf->hgcsf", root, parts)', 'torch.einsum("gcd,gdshf->ghcsf", root, parts)'),
    ],
)
def test_numpys_cells_catch_a_changed_line(old, new):
    try:
        assert not cells_are_nested_svds(mutant(svd, old, new))
    except (RuntimeError, ValueError) as error:  # the mutant's layers do not fit each other
        assert "size" in str(error) or "shape" in str(error)


def clusters_are_equal_and_near(module):
    """Sizes as asked for, every channel once; planted lines of inputs and of outputs are found."""
    g, layer = np.random.default_rng(3), nn.Conv2d(8, 12, 3)
    of_input, of_output = g.permutation(np.repeat([0, 1], 4)), g.permutation(np.repeat([0, 1, 2], 4))
    planted = g.normal(size=(3, 2, 9))[of_output][:, of_input]
    layer.weight.data = (
        torch.tensor(planted * g.normal(size=(12, 1, 1)) * g.normal(size=(8, 1))).float().view(12, 8, 3, 3)
    )
    cells = module.Nested(layer, eye(8), (2, 3), rng())
    if cells.inputs.shape != (2, 4) or cells.outputs.shape != (3, 4) or cells.cells.shape != (6, 4, 9, 4):
        return False
    weight = layer.weight.detach().double().flatten(2).numpy()
    by_input, by_output = weight.transpose(1, 0, 2).reshape(8, -1), weight.reshape(12, -1)
    for rows, found, planted in ((by_input, cells.inputs, of_input), (by_output, cells.outputs, of_output)):
        if sorted(found.flatten().tolist()) != list(range(len(rows))):
            return False
        best = sum(line_distance(rows[planted == label]) for label in set(planted))
        if sum(line_distance(rows[members]) for members in found.numpy()) > best + 1e-6:
            return False
    return True


def test_clusters_have_equal_sizes_and_lie_around_lines():
    assert clusters_are_equal_and_near(svd)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "factor.equal_clusters(kernel.flatten(1), self.into",
            "factor.equal_clusters(torch.eye(len(kernel)), self.into",
        ),
        ("(kernel.flatten(0, 1).T, self.out", "(kernel.reshape(kernel.shape[2], -1), self.out"),
        ("parts = kernel[self.inputs][..., self.outputs]", "parts = kernel[self.inputs][..., self.outputs.T]"),
    ],
)
def test_planted_clusters_catch_a_changed_line(old, new):
    assert not clusters_are_equal_and_near(mutant(svd, old, new))


def full_rank_changes_nothing(module):
    """With all ranks, in any metric, the layers compute what the layer does."""
    torch.manual_seed(0)
    x, mixed = torch.randn(2, 8, 9, 10), torch.randn(8, 8).double()
    for options in ({"padding": 1}, {"stride": 2, "padding": 1, "bias": False}, {"dilation": (2, 1)}):
        layer = nn.Conv2d(8, 12, 3, **options)
        for into, out in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 3), (8, 12)):
            for covariance in (eye(8), mixed @ mixed.T):
                cells = module.Nested(layer, covariance, (into, out), rng())
                if cells.ranks(1.0) != (min(8 // into, 9 * 12 // out), min(12 // out, 9 * 8 // into)):
                    return False
                if not torch.allclose(cells.build(8 // into, 12 // out)(x), layer(x), atol=1e-5):
                    return False
    return True


def test_at_full_rank_the_function_is_the_same():
    assert full_rank_changes_nothing(svd)
    linear, x = nn.Linear(6, 4), torch.randn(3, 6)
    assert torch.allclose(factor.Matrix(linear, eye(6)).build(4)(x), linear(x), atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("first = (self.inverse @ entry).mT", "first = entry.mT"),
        ("self.inverse = inverse.repeat(self.out, 1, 1)", "self.inverse = inverse.repeat_interleave(self.out, 0)"),
        ("return min(first, second * entries), min(second, first * entries)", "return first - 1, second"),
    ],
)
def test_full_rank_catches_a_changed_line(old, new):
    assert not full_rank_changes_nothing(mutant(svd, old, new))


def outer_products_come_back(module):
    """Two planted orthogonal terms in each of the 2 x 2 cells: K = 2 gives the kernel back, K = 1 the larger terms."""
    g, layer = np.random.default_rng(0), nn.Conv2d(6, 8, 3)
    inputs, outputs = np.split(g.permutation(6), 2), np.split(g.permutation(8), 2)
    dense, larger = np.zeros((8, 6, 9)), np.zeros((8, 6, 9))
    for c, f in itertools.product(inputs, outputs):
        parts = [np.linalg.qr(g.normal(size=(n, 2)))[0] for n in (4, 3, 9)]
        for k, (size, kernel) in enumerate(((3, larger), (1, dense))):
            kernel[np.ix_(f, c)] = size * np.einsum("f,c,s->fcs", *(part[:, k] for part in parts))
    dense += larger
    layer.weight.data = torch.tensor(dense).float().view(8, 6, 3, 3)
    cells = module.Outer(layer, eye(6), (2, 2), rng())
    cells.inputs, cells.outputs = torch.tensor(np.array(inputs)), torch.tensor(np.array(outputs))  # the planted ones
    blocks = [dense[np.ix_(f, c)].transpose(1, 2, 0) for f in outputs for c in inputs]
    cells.cells = torch.tensor(np.stack(blocks))
    for rank, kernel in ((1, larger), (2, dense)):
        net = cells.build(rank)
        if not np.allclose(kernel_of(net, 6, (3, 3)), kernel.reshape(8, 6, 3, 3), atol=1e-4):
            return False
        if [m.groups for m in net if isinstance(m, nn.Conv2d)] != [4, 4 * rank, 2]:
            return False
        if sum(cells.sizes(rank)) != sum(p.numel() for p in net.parameters()) - 8:
            return False
    return cells.ranks(0.89) == (1,) and cells.ranks(0.91) == (2,)


def test_outer_products_rebuild_a_tensor_of_orthogonal_terms():
    assert outer_products_come_back(svd)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return self.layers(entry, core[:, None], leave)", "return self.layers(entry, core[:, None].flip(3), leave)"),
        ("share, float(self.cells.square().sum())),)", "share / 2, float(self.cells.square().sum())),)"),
        ("return cells * channels * rank, cells * rank * (entries + filters)", "return 0, cells * rank * filters"),
    ],
)
def test_planted_terms_catch_a_changed_line(old, new):
    assert not outer_products_come_back(mutant(svd, old, new))


# -- colours


def planted_colours(colours=4, filters=12):
    """A first convolution whose filters have one of a few colours each, of either sign, in a random order."""
    g, layer = np.random.default_rng(5), nn.Conv2d(3, filters, 3)
    colour = np.repeat(np.linalg.qr(g.normal(size=(colours, 3)))[0], filters // colours, axis=0)[g.permutation(filters)]
    layer.weight.data = (
        torch.tensor(np.einsum("fc,fs->fcs", colour, g.normal(size=(filters, 9)))).float().view(-1, 3, 3, 3)
    )
    return layer


def colours_are_found(module):
    """Planted colours give the kernel back; of any filters each keeps its strongest part, in one of equal clusters."""
    layer = planted_colours()
    net = module.Colours(layer, eye(3), 4, rng()).build(4)
    if not np.allclose(kernel_of(net, 3, (3, 3)), layer.weight.detach(), atol=1e-5):
        return False
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 12, 3)
    ours = kernel_of(module.Colours(layer, eye(3), 4, rng()).build(4), 3, (3, 3)).reshape(12, 3, 9)
    dense, shared = layer.weight.detach().double().flatten(2).numpy(), []
    for kept, whole in zip(ours, dense, strict=True):
        (own,), (value,), (spatial,) = (part.T if i == 0 else part for i, part in enumerate(truncated(whole, 1)))
        left, values, right = np.linalg.svd(kept)
        strength = np.sign((own @ left[:, 0]) * (spatial @ right[0]))
        if not np.isclose(values[0], value) or values[1] > 1e-5 or not np.isclose(abs(spatial @ right[0]), 1):
            return False
        if strength < 0:  # the kept part points away from the filter
            return False
        shared.append(left[:, 0] * np.sign(left[np.abs(left[:, 0]).argmax(), 0]))
    _, counts = np.unique(np.round(shared, 4), axis=0, return_counts=True)
    return counts.tolist() == [3, 3, 3, 3]


def test_every_filter_keeps_one_of_a_few_colours():
    assert colours_are_found(svd)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("spatial = sign * values[clusters]", "spatial = values[clusters]"),
        ("shared = factor.svd(own[clusters].mT, 1)[0]", "shared = own[clusters].mean(1)[..., None]"),
        ("* right[clusters, 0]", "* right[clusters.flip(1), 0]"),
        ("writes=clusters.flatten())", "writes=clusters.flatten().argsort())"),
    ],
)
def test_planted_colours_catch_a_changed_line(old, new):
    assert not colours_are_found(mutant(svd, old, new))


# -- the metric


def dead_and_mixed(task):
    """TinyPlain with correlated and dead channels, and what its hidden linear layer reads of 60 images: (60, 192)."""
    torch.manual_seed(2)
    net = worn(TinyPlain(), 0, 0.3)
    net.features[5].weight.data[:4] = net.features[5].bias.data[:4] = 0
    images = torch.cat([x for x, _ in task.batches(60)])
    with torch.no_grad():
        return net, net.features(images).flatten(1).double().numpy()


def linear_layers_lose_least_on_the_data(module):
    """||XW - XW'||^2 is the sum of squares of the singular values of XW left out; the rank is that of W itself."""
    task = toy_task(baseline="tiny_plain_synthetic")
    net, reads = dead_and_mixed(task)
    dense = net.classifier[1].weight.detach().double().numpy()
    net = module.SVD(energy=0.8, images=60, layerwise=False).compress(net, task)
    if not isinstance(net.classifier[1], nn.Sequential):
        return False
    pair = [part.weight.detach().double().numpy() for part in net.classifier[1]]
    own, rank = np.linalg.svd(dense, compute_uv=False) ** 2, len(pair[0])
    if task.details["ranks"]["classifier.1"] != (rank,) or rank != 1 + (own.cumsum() < 0.8 * own.sum()).sum():
        return False
    lost = ((reads @ (dense - pair[1] @ pair[0]).T) ** 2).sum()
    return np.isclose(lost, (np.linalg.svd(reads @ dense.T, compute_uv=False)[rank:] ** 2).sum(), rtol=0.02)


def test_a_linear_layer_loses_least_on_the_data():
    assert linear_layers_lose_least_on_the_data(svd)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('if self.metric == "data" else {}', "if not self.metric else {}"),
        ("return factor.Matrix(layer, covariance)", "return factor.Matrix(layer, covariance @ covariance)"),
        ("task.batches(self.images)) if self", "task.batches(5)) if self"),
        ("names, {})", "names, factor.covariances(model, names, task.batches(60)))"),
    ],
)
def test_the_data_catch_a_changed_line(old, new):
    assert not linear_layers_lose_least_on_the_data(mutant(svd, old, new))


def test_the_inverse_of_the_root_belongs_to_the_metric():
    changed = mutant(factor, "(self.inverse @ left).T", "left.T")
    linear, x = nn.Linear(6, 4), torch.randn(3, 6)
    covariance = torch.diag(torch.arange(1.0, 7.0).double())
    assert torch.allclose(factor.Matrix(linear, covariance).build(4)(x), linear(x), atol=1e-5)
    assert not torch.allclose(changed.Matrix(linear, covariance).build(4)(x), linear(x), atol=1e-2)


def error_on(x, layer, net):
    with torch.no_grad():
        return float((layer(x) - net(x)).square().mean())


def the_covariance_helps(module, kind, ranks):
    """Whether the outputs on correlated channels are much nearer to the layer's with their covariance than without."""
    torch.manual_seed(0)
    layer, mixed = nn.Conv2d(8, 12, 3, padding=1), torch.randn(8, 8) * 0.5 ** torch.arange(8.0)
    x, covariance = torch.einsum("dc,nchw->ndhw", mixed, torch.randn(20, 8, 10, 10)), (mixed @ mixed.T).double()
    plain, weighted = (getattr(module, kind)(layer, c, (2, 2), rng()).build(*ranks) for c in (eye(8), covariance))
    return error_on(x, layer, weighted) < 0.8 * error_on(x, layer, plain)


@pytest.mark.parametrize(("kind", "ranks"), [("Nested", (2, 3)), ("Outer", (6,))])
def test_on_correlated_channels_the_covariance_helps(kind, ranks):
    assert the_covariance_helps(svd, kind, ranks)
    own = "factor.roots(covariance[self.inputs[:, :, None], self.inputs[:, None]])"
    wrong = "self.inputs.flip(1)[:, :, None]"
    for other in ("torch.eye(4).expand(self.into, 4, 4).double()", f"covariance[{wrong}, self.inputs[:, None]]"):
        assert not the_covariance_helps(mutant(svd, own, f"factor.roots({other})"), kind, ranks)


def test_images_of_one_channel_repeated_need_one_colour():
    """Digits as three equal channels: in the metric of the data every filter is of one colour, whatever its weights."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 12, 3, padding=1), torch.randn(4, 1, 8, 8).expand(-1, 3, -1, -1)
    net = svd.Colours(layer, torch.ones(3, 3).double(), 1, rng()).build(1)
    assert torch.allclose(net(x), layer(x), atol=2e-3) and not torch.allclose(
        svd.Colours(layer, eye(3), 1, rng()).build(1)(x), layer(x), atol=0.1
    )


# -- the whole of it


def test_which_layer_is_approximated_how():
    task = toy_task()
    net = SVD(energy=0.6, images=8).compress(tiny_resnet(), task)
    kinds = [type(m).__name__ for m in net.conv1], [type(m).__name__ for m in net.layer2[0].conv2]
    assert kinds == (["Conv2d", "Conv2d", "Reorder"], ["Reorder", *["Conv2d"] * 3, "Reorder"])
    assert [m.groups for m in net.conv1[:2]] == [1, 4] and [m.groups for m in net.layer2[0].conv2[1:4]] == [4, 4, 2]
    net = SVD(energy=0.6, images=8, colours=0).compress(tiny_resnet(), toy_task())
    assert [m.groups for m in net.conv1[:3]] == [1, 2, 2]  # 3 channels form no 2 clusters of equal size
    task = toy_task()
    net = SVD(energy=0.6, images=8, conv="outer", input_clusters=48).compress(tiny_resnet(), task)
    cores = [m for m in net.layer3[0].conv2 if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [m.groups for m in cores] == [16 * 2 * task.details["ranks"]["layer3.0.conv2"][0]]


@pytest.mark.parametrize("layerwise", [True, False])
def test_nothing_is_replaced_where_nothing_gets_smaller(layerwise):
    dense, task = tiny_resnet().eval(), toy_task(budget="smoke")
    net = SVD(energy=1.0, colours=0, metric="frobenius", layerwise=layerwise).compress(copy.deepcopy(dense), task)
    assert task.details["ranks"] == {} and len(task.details["dense"]) == 7 and task.meter.train_calls == 0
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), dense.state_dict().values(), strict=True))


def pointwise():
    """1x1 convolutions with and without a stride around one with a stride, as in a bottleneck."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def shapes_of(name):
    """A net, and the shape of its inputs."""
    makers = {"vgg": lambda: VGG(width=0.125), "resnet": lambda: ResNetCifar(14), "lenet5": lenet5, "1x1": pointwise}
    return makers[name](), (1, 28, 28) if name == "lenet5" else (3, 32, 32)


POINTS = [*itertools.product(("vgg", "resnet", "1x1"), (0.3, 0.5, 0.7)), ("lenet5", 0.5)]


@pytest.mark.parametrize(("name", "share"), POINTS)
def test_operating_points_save_their_share_of_the_macs(name, share):
    dense, shape = shapes_of(name)
    task = toy_task(shape, noisy=4)
    net = SVD(macs_reduction=share, images=4, layerwise=False).compress(copy.deepcopy(dense), task)
    (params, macs), (whole_params, whole) = size_of(net, shape), size_of(dense, shape)
    assert 1 - share - 0.07 < macs / whole <= 1 - share and params < whole_params
    assert task.cost(net).macs == macs
    assert net(torch.randn(2, *shape)).isfinite().all()


def test_outer_products_meet_a_budget_as_well():
    dense, task = tiny_resnet(), toy_task()
    settings = {"conv": "outer", "input_clusters": 48, "images": 8, "layerwise": False}
    net = SVD(macs_reduction=0.5, **settings).compress(copy.deepcopy(dense), task)
    assert 0.4 < size_of(net, (3, 16, 16))[1] / size_of(dense, (3, 16, 16))[1] <= 0.5


def test_linear_layers_five_times_smaller():
    task = toy_task((1, 28, 28), noisy=20)
    net = SVD(**SVD.recipes["lenet300_mnist5k"] | {"images": 20}).compress(lenet_300_100(), task)
    assert size_of(net, (1, 28, 28))[1] <= 266_200 / 5
    assert isinstance(net.ip1, nn.Sequential) and net.ip1[0].bias is None and net.ip1[1].bias is not None


# -- training


def trained(cls, **fields):
    """The net, what each fine-tuning asked for, and which tensors it changed."""
    torch.manual_seed(0)
    task, calls = toy_task(budget="smoke"), []
    train = task.train

    def watched(model, epochs, **options):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train(model, epochs, **options)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        calls.append((epochs, options["of"], changed))
        return model

    task.train = watched
    net = cls(energy=0.7, images=8, **fields).compress(worn(tiny_resnet(), 0, 0.3), task)
    return net, calls, task


ORDER = ["conv1", "bn1"] + [
    f"layer{stage}.0.{name}{i}" for stage in (1, 2, 3) for i in (1, 2) for name in ("conv", "bn")
]


def what_is_below_stays(cls):
    """After each layer, exactly the modules that run behind it change; behind the last there is none."""
    try:
        net, calls, task = trained(cls, classifier=True)
    except ValueError:  # asks for more epochs than it has declared
        return False
    replaced = list(task.details["ranks"])
    if replaced[-1] != "linear" or len(calls) != len(replaced) - 1 or any(of != len(calls) for _, of, _ in calls):
        return False
    for name, (_, _, changed) in zip(replaced, calls, strict=False):
        above = [*ORDER, "linear"][ORDER.index(name) + 1 :]
        if {owner for owner in [*ORDER, "linear"] if any(key.startswith(f"{owner}.") for key in changed)} != set(above):
            return False
        means = {key for key in changed if key.endswith("running_mean")}
        if means != {f"{owner}.running_mean" for owner in above if "bn" in owner}:
            return False
    return all(p.requires_grad for p in net.parameters())


def test_what_is_below_is_fixed_and_what_is_above_is_trained():
    assert what_is_below_stays(SVD)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("order[: order.index(part[-1]) + 1] if self.layerwise else []", "order[: order.index(part[-1])]"),
        ("order[: order.index(part[-1]) + 1] if self.layerwise else []", "[]"),
        ("of=self.epochs * trainings", "of=self.epochs * len(order)"),
        ("if self.layerwise else 0", "if not self.layerwise else 0"),
    ],
)
def test_the_changes_catch_a_changed_line(old, new):
    assert not what_is_below_stays(mutant(svd, old, new).SVD)


def test_each_layer_is_approximated_as_training_has_left_it():
    """With much training of the layers above, the factors are not those of the dense net's weights."""
    start = worn(tiny_resnet(), 0, 0.3)
    task = toy_task(budget="smoke")
    factors = {}
    for lr in (0.0, 0.5):
        net = SVD(energy=0.7, images=8, lr=lr).compress(copy.deepcopy(start), task)
        task = toy_task(budget="smoke")
        factors[lr] = kernel_of(net.layer3[0].conv2, 16, (3, 3))
    assert not np.allclose(factors[0.0], factors[0.5], atol=1e-2)


def test_blocks_and_all_at_once():
    _, calls, task = trained(SVD, blockwise=True)
    assert len(calls) == 4 and task.details["dense"] == []
    assert {key.split(".")[2] for key in calls[1][2] if key.startswith("layer1.")} == {"bn2"}
    _, calls, task = trained(SVD, layerwise=False)
    assert [(epochs, of) for epochs, of, _ in calls] == [(1.0, 1.0)]
    assert any(key.startswith("conv1.") for key in calls[0][2]) and "conv1" in task.details["ranks"]


def test_the_classifier_is_the_last_and_stays_unless_asked_for():
    net, calls, task = trained(SVD)
    assert isinstance(net.linear, nn.Linear) and "linear" not in task.details["ranks"] and len(calls) == 7
    net, calls, task = trained(SVD, classifier=True)
    assert len(net.linear) == 2 and list(task.details["ranks"])[-1] == "linear" and len(calls) == 7


def test_every_recipe_names_a_baseline_and_its_share():
    for key, fields in SVD.recipes.items():
        assert key.split("/")[0] in base.names()
        assert SVD(**fields).macs_reduction == (int(key[-2:]) / 100 if "/macs" in key else fields["macs_reduction"])
    assert SVD.recipes["resnet56_cifar10"]["macs_reduction"] == 0.5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"conv": "cp"}, "There is no conv 'cp': choose one of svd, outer"),
        ({"metric": "maha"}, "There is no metric 'maha': choose one of data, frobenius"),
        ({"input_clusters": 0}, "input_clusters=0 is too few: give at least 1"),
        ({"colours": -1}, "colours=-1 is too few: give at least 0"),
        ({"images": 0}, "images=0 is too few: give at least 1"),
        ({"energy": 0.0}, r"energy=0.0 lies outside \(0, 1\]"),
        ({"macs_reduction": 0.999}, "0.999 is out of reach: at the lowest ranks"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        SVD(**{"images": 4, **fields}).compress(tiny_resnet(), toy_task())


def test_a_net_that_has_diverged():
    net = TinyPlain()
    net.features[0].weight.data[0] = float("nan")
    for metric in svd.CHOICES["metric"]:
        with pytest.raises(UserError, match="not finite"):
            SVD(images=4, metric=metric).compress(net, toy_task(baseline="tiny_plain_synthetic"))
