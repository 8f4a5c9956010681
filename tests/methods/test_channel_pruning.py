"""Channel pruning: LASSO by its optimality conditions, the refit by numpy, the residual target written out."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import mutant, size_of, worn
from oracle import toy_task as task_for
from torch import nn

from baselines.errors import UserError
from baselines.models.imagenet import vgg16
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.filter_pruning import channel_pruning
from methods.filter_pruning.channel_pruning import RESNET50_2X, VGG16_5X, ChannelPruning
from methods.kit import reconstruct, surgery
from methods.kit.reconstruct import Moments

used = functools.partial(worn, mean=0, std=0.5)


# -- LASSO


def problem(seed, samples=300, channels=12):
    """Correlated columns of different sizes, one of them empty, and a target that needs most of them."""
    g = np.random.default_rng(seed)
    z = g.normal(size=(samples, channels)) @ g.normal(size=(channels, channels)) * g.uniform(0.1, 2, channels)
    z[:, 3] = 0
    return z, z @ g.normal(size=channels) + g.normal(size=samples)


def is_optimal(module, count, seeds=range(4)):
    """Whether the coefficients are as many as asked and fulfil the conditions of Karush, Kuhn and Tucker."""
    for seed in seeds:
        z, y = problem(seed)
        b, penalty = module.lasso(torch.tensor(z.T @ z), torch.tensor(z.T @ y), len(z), count)
        slope = z.T @ (y - z @ b) / len(z)  # of 1/(2N) ||y - z b||^2, with its sign turned
        inside, slack = b != 0, 1e-3 * penalty
        if inside.sum() != count or penalty <= 0:
            return False
        if np.abs(slope[inside] - penalty * np.sign(b[inside])).max() > slack:
            return False
        if np.abs(slope[~inside]).max() > penalty + slack:
            return False
    return True


@pytest.mark.parametrize("count", [1, 4, 8])
def test_lasso_fulfils_the_optimality_conditions_with_the_count_asked_for(count):
    assert is_optimal(channel_pruning, count)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("np.sqrt(len(root) / samples)", "1.0"),
        ("unit * root[:, None] * vectors.T", "unit * values[real][:, None] * vectors.T"),
        ("np.count_nonzero(found) > count", "np.count_nonzero(found) > count + 1"),
        ("return best, high", "return best, low"),
        ("(vectors.T @ products) / root", "vectors.T @ products"),
        ("fit_intercept=False", "fit_intercept=False, positive=True"),
    ],
)
def test_the_conditions_catch_a_changed_line(old, new):
    assert not is_optimal(mutant(channel_pruning, old, new), 4)


def test_channels_by_their_coefficients_then_by_what_would_come_next():
    z, y = problem(1)
    gram, products = torch.tensor(z.T @ z), torch.tensor(z.T @ y)
    b, _ = channel_pruning.lasso(gram, products, len(z), 4)
    keep = channel_pruning.strongest(b, gram, products, 4)
    assert torch.equal(keep, torch.tensor(b != 0))
    more = channel_pruning.strongest(b, gram, products, 5)
    slope = np.where(b != 0, 0, np.abs(z.T @ (y - z @ b)))
    assert more[keep].all() and more[slope.argmax()] and more.sum() == 5


def test_a_layer_that_gives_nothing_keeps_its_first_channels():
    nothing = torch.zeros(4, 4).double()
    b, _ = channel_pruning.lasso(nothing, nothing[0], 10, 2)
    assert channel_pruning.strongest(b, nothing, nothing[0], 2).tolist() == [True, True, False, False]


# -- least squares


def rows(seed=0, samples=200, channels=6, size=4, outputs=3):
    """Inputs (samples, channels, size), a kernel, and what its outputs lack."""
    g = np.random.default_rng(seed)
    x = g.normal(size=(samples, channels * size)) @ g.normal(size=(channels * size,) * 2) + g.normal(
        size=channels * size
    )
    return (
        x.reshape(samples, channels, size),
        g.normal(size=(outputs, channels, size)),
        g.normal(size=(samples, outputs)) + 1,
    )


def moments_of(x, gap):
    moments = Moments()
    moments.add(torch.tensor(x).flatten(1), torch.tensor(gap))
    return moments


def rebuilds_as_numpy(module, intercept):
    """Whether the refitted kernel and intercept are those of numpy's least squares on the channels that stay."""
    x, weight, gap = rows()
    keep = np.array([True, False, True, True, False, False])
    target = np.einsum("mck,ock->mo", x, weight) + gap
    columns = x[:, keep].reshape(len(x), -1)
    if intercept:
        columns = np.column_stack([columns, np.ones(len(x))])
    right = np.linalg.lstsq(columns, target)[0]
    moments = moments_of(x, gap)
    change, shift = module.refit(moments, torch.tensor(weight), torch.tensor(keep), intercept)
    ours = (weight + change.numpy())[:, keep].reshape(3, -1).T
    constant = right[-1] if intercept else 0
    same = np.allclose(ours, right[:12], atol=1e-7) and np.allclose(shift.numpy(), constant, atol=1e-7)
    return same and not change[:, ~keep].any()


@pytest.mark.parametrize("intercept", [False, True])
def test_the_refit_is_numpys_least_squares(intercept):
    assert rebuilds_as_numpy(channel_pruning, intercept)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("xx[kept][:, ~kept] @ lost + xy[kept]", "xy[kept]"),
        ("xx[kept][:, ~kept] @ lost + xy[kept]", "xx[kept][:, ~kept] @ lost"),
        ("moments.y + moments.x[~kept] @ lost", "moments.y"),
        ("found.T.reshape(outputs, -1, size)", "found.reshape(outputs, -1, size)"),
    ],
)
def test_numpy_catches_a_changed_line(old, new):
    assert not rebuilds_as_numpy(mutant(channel_pruning, old, new), True)


class FakeOutput:
    """As much of an output as by_channel looks at."""

    def __init__(self, weight, intercept):
        self.weight, self.intercept = torch.tensor(weight), intercept


def sums_as_from_rows(module, intercept):
    """Whether the products of the channels' parts of the output are those of the rows themselves."""
    x, weight, gap = rows()
    gram, products, squares = module.by_channel(moments_of(x, gap), FakeOutput(weight, intercept))
    z = np.einsum("mck,ock->moc", x, weight)
    y = z.sum(2) + gap
    if intercept:
        z, y = z - z.mean(0), y - y.mean(0)
    found, right = (gram, products, squares), (np.einsum("moc,mod->cd", z, z), np.einsum("moc,mo->c", z, y))
    return all(np.allclose(a, b) for a, b in zip(found, (*right, (weight**2).sum((0, 2))), strict=True))


@pytest.mark.parametrize("intercept", [False, True])
def test_sums_per_channel_are_those_of_the_rows(intercept):
    assert sums_as_from_rows(channel_pruning, intercept)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("xx * (flat.T @ flat)", "xx + 0 * (flat.T @ flat)"),
        ("target = xx @ flat.T + xy", "target = xx @ flat.T"),
        ("moments.products(output.intercept)", "moments.products(False)"),
        (".view(count, size, count, size).sum((1, 3))", ".view(size, count, size, count).sum((0, 2))"),
    ],
)
def test_the_rows_catch_a_changed_line(old, new):
    assert not sums_as_from_rows(mutant(channel_pruning, old, new), True)


# -- the whole of it


def narrow():
    """A net in which every sample is one image: the layer that reads the pruned one has a single place."""
    net = nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1),
        nn.BatchNorm2d(9),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(9, 5, 2, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5, 4),
    )
    sizes = torch.tensor([0.1, 3, 0.2, 2, 0.3, 1, 0.1, 3, 0.2])
    used(net)[4].weight.data *= sizes.view(1, -1, 1, 1)
    net[1].weight.data /= sizes
    net[1].bias.data /= sizes
    return net


def normed(x, bn):
    shape = (1, -1, 1, 1)
    x = (x - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
    return x * bn.weight.view(shape) + bn.bias.view(shape)


def coordinate_descent(z, y, penalty, sweeps=3000):
    """LASSO in numpy, one coefficient after another."""
    b, norms = np.zeros(z.shape[1]), (z**2).sum(0)
    rest = y.copy()
    for _ in range(sweeps):
        for c in range(len(b)):
            rest += z[:, c] * b[c]
            slope = z[:, c] @ rest
            b[c] = np.sign(slope) * max(abs(slope) - penalty, 0) / norms[c]
            rest -= z[:, c] * b[c]
    return b


@torch.no_grad()
def follows_the_paper(cls, count=4):
    """Whether ``compress`` leaves what LASSO and least squares in numpy leave, on images as rows."""
    torch.manual_seed(2)
    net, task = narrow(), task_for()
    images = torch.cat([x for x, _ in task.batches(60)])
    maps = net[:4](images).double().numpy().reshape(60, 9, 4)
    scale = (net[5].weight / (net[5].running_var + net[5].eps).sqrt()).double().numpy()
    kernel = net[4].weight.double().numpy().reshape(5, 9, 4) * scale[:, None, None]
    z = np.einsum("nck,ock->noc", maps, kernel)
    y = z.sum(2)
    z, y = z - z.mean(0), y - y.mean(0)
    z, y = z.reshape(-1, 9) / np.sqrt((kernel**2).sum((0, 2))), y.ravel()
    low, high = 0.0, np.abs(z.T @ y).max()
    for _ in range(40):
        middle = (low + high) / 2
        chosen = coordinate_descent(z, y, middle) != 0
        low, high = (middle, high) if chosen.sum() > count else (low, middle)
        if chosen.sum() == count:
            break
    kept = np.flatnonzero(chosen)
    pruned = cls(ratios=(5 / 9, 0), images=60, locations=2).compress(copy.deepcopy(net), task)
    if not torch.equal(pruned[0].weight, net[0].weight[kept]):
        return False
    columns = np.column_stack([maps[:, kept].reshape(60, -1), np.ones(60)])
    right = columns @ np.linalg.lstsq(columns, net[:6](images).flatten(1).double().numpy())[0]
    return np.allclose(pruned[:6](images).flatten(1).numpy(), right, atol=1e-4)


def test_compress_follows_the_paper():
    assert follows_the_paper(ChannelPruning)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("gram / torch.outer(norm, norm), products / norm  #", "gram, products  #"),
        ("target = xx @ flat.T + xy", "target = xy"),
        ("output.add(*refit(", "(lambda *_: None)(*refit("),
        ("coefficients, _ = lasso(gram, products,", "coefficients, _ = lasso(gram, -gram[0],"),
    ],
)
def test_the_written_out_steps_catch_a_changed_line(old, new):
    assert not follows_the_paper(mutant(channel_pruning, old, new).ChannelPruning)


def everywhere(x, layer, locations, generator):
    """Every place of every image once, instead of random ones."""
    with torch.no_grad():
        n, _, height, width = layer(x).shape
    grid = torch.meshgrid(*(torch.arange(k) for k in (n, height, width)), indexing="ij")
    return reconstruct.Places(*(part.flatten() for part in grid))


@torch.no_grad()
def far_from_the_best_sum(cls, images=20):
    """How much better than the pruned net least squares in numpy rebuild the sum that ends its last block, relatively.

    The shortcut of that block is off, because the blocks before it are pruned; all else is as ``compress`` left it.
    """
    torch.manual_seed(3)
    dense, task = used(tiny_resnet()), task_for()
    x = torch.cat([x for x, _ in task.batches(images)])
    net = cls(ratio=0.5, images=images).compress(copy.deepcopy(dense), task)
    sums, parts = [], []
    for whole in (dense, net):
        block = whole.layer3[0]
        before = whole.layer2(whole.layer1(normed(whole.conv1(x), whole.bn1).relu()))
        inner = normed(block.conv1(before), block.bn1).relu()
        shortcut = block.shortcut(before)
        sums.append(normed(block.conv2(inner), block.bn2) + shortcut)
        parts = [inner, shortcut]
    inner, shortcut = parts
    columns = F.unfold(inner, 3, padding=1).permute(0, 2, 1).flatten(0, 1).double().numpy()
    columns = np.column_stack([columns, np.ones(len(columns))])
    target = (sums[0] - shortcut).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    best = ((target - columns @ np.linalg.lstsq(columns, target)[0]) ** 2).sum()
    return float(((sums[0] - sums[1]) ** 2).sum()) / best - 1


def test_the_sum_of_shortcut_and_branch_is_rebuilt_as_well_as_can_be(monkeypatch):
    monkeypatch.setattr(reconstruct, "draw", everywhere)
    assert abs(far_from_the_best_sum(ChannelPruning)) < 1e-5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("gap = sum_then - sum_now if end else", "gap ="),  # the target without Y1 - Y1'
        ("running_mean -= shift", "running_mean += shift"),
        ("kernel + (change / divisor[:, None, None])", "kernel + change"),
    ],
)
def test_the_residual_target_catches_a_changed_line(monkeypatch, old, new):
    changed = mutant(reconstruct, old, new)
    monkeypatch.setattr(changed, "draw", everywhere)
    monkeypatch.setattr(channel_pruning, "Output", changed.Output)
    assert far_from_the_best_sum(ChannelPruning) > 1e-3


def test_inputs_come_from_the_pruned_net(monkeypatch):
    monkeypatch.setattr(reconstruct, "draw", everywhere)
    never_masked = mutant(channel_pruning, "surgery.mask(model, {name: keep[name]}, layers)", "pass").ChannelPruning
    assert far_from_the_best_sum(never_masked) > 1e-3


@pytest.mark.parametrize("make", [tiny_resnet, lambda: ResNetCifar(14, 4)])
def test_dead_channels_go_and_nothing_else_changes(make):
    dense, task = used(make()), task_for()
    for module in dense.modules():
        if hasattr(module, "bn1") and module is not dense:
            module.bn1.weight.data[::2] = module.bn1.bias.data[::2] = 0
    net = ChannelPruning(ratio=0.5, images=30).compress(copy.deepcopy(dense), task)
    x = torch.randn(4, 3, 16, 16)
    assert net.layer2[0].conv2.in_channels == dense.layer2[0].conv2.in_channels // 2
    assert torch.allclose(net(x), dense(x), atol=1e-3)


def test_a_layer_with_two_readers():
    """As ResNet-50's stem has them: a block's first convolution and its projection, which is no end of a branch."""
    from torchvision.models.resnet import Bottleneck, ResNet

    dense = used(ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=8))
    dense.bn1.weight.data[::2] = 0
    dense.bn1.bias.data[::2] = -1
    task, x = task_for((3, 32, 32)), torch.randn(2, 3, 32, 32)
    net = ChannelPruning(ratios=(0.5, *[0.0] * 16), images=2).compress(copy.deepcopy(dense), task)
    first, projection = net.layer1[0].conv1, net.layer1[0].downsample[0]
    assert (net.conv1.out_channels, first.in_channels, projection.in_channels) == (32, 32, 32)
    assert torch.allclose(net(x), dense(x), atol=1e-3)


def test_better_than_leaving_the_kernels_as_they_are(monkeypatch):
    """On images of its own: the refit halves the error of the same choice without it, and more."""
    dense = used(tiny_resnet())
    x, errors = torch.cat([images for images, _ in task_for().batches(64)])[40:], []
    for add in (reconstruct.Output.add, lambda *_: None):
        monkeypatch.setattr(reconstruct.Output, "add", add)
        net = ChannelPruning(ratio=0.5, images=40, locations=50).compress(copy.deepcopy(dense), task_for())
        errors.append((net(x) - dense(x)).square().mean().item())
    assert errors[0] < 0.5 * errors[1]


# -- published structures, dials, edges


def test_vgg16_5x():
    """The method's widths and removal at the released rates; the first filters stay, for the sake of time."""
    with torch.device("meta"):
        net = vgg16()
    net, example = net.to_empty(device="cpu"), torch.zeros(1, 3, 32, 32)
    layers = surgery.layers(net, example)
    widths, clamped = reconstruct.widths(net, example, layers, None, VGG16_5X, None)
    keep = {name: torch.arange(layers[name].width) < width for name, width in widths.items()}
    assert size_of(surgery.remove(net, example, keep), (3, 224, 224)) == (130_879_294, 3_515_283_520)
    assert clamped == [] and list(widths.values()) == [24, 22, 41, 51, 108, 89, 111, 184, 276, 228, 512, 512, 512]


def test_the_released_widths():
    assert len(VGG16_5X) == 13 and len(RESNET50_2X) == 53
    assert [int(64 * (1 - r) + 1e-9) for r in RESNET50_2X[:8]] == [64, 64, 64, 55, 64, 51, 39, 64]
    for key, fields in ChannelPruning.recipes.items():
        assert ("macs" in key) <= ("macs_reduction" in fields) and ("macs_reduction" in fields) != ("ratios" in fields)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_operating_points_save_their_share_of_the_macs(share):
    dense, task = ResNetCifar(14), task_for((3, 32, 32))
    net = ChannelPruning(macs_reduction=share, images=2).compress(copy.deepcopy(dense), task)
    left = size_of(net, (3, 32, 32))[1] / size_of(dense, (3, 32, 32))[1]
    assert 1 - share - 0.06 < left <= 1 - share


def test_one_filter_is_left_at_95_percent():
    task, net = task_for(), used(TinyPlain())
    net = ChannelPruning(ratio=0.95, images=4).compress(net, task)
    assert task.details == {"clamped": ["features.0", "features.4"], "kept": {"features.0": 1, "features.4": 1}}
    assert net(torch.randn(2, 3, 16, 16)).isfinite().all() and net.classifier[1].in_features == 16


def test_at_95_percent_of_the_macs_the_run_ends_with_clamped_layers(monkeypatch):
    monkeypatch.setattr(channel_pruning, "STEPS", 2)  # how many stay is decided before LASSO
    dense, task = ResNetCifar(20), task_for((3, 32, 32))
    whole = size_of(dense, (3, 32, 32))[1]
    net = ChannelPruning(macs_reduction=0.95, images=2).compress(dense, task)
    assert size_of(net, (3, 32, 32))[1] <= 0.05 * whole and net(torch.randn(2, 3, 32, 32)).isfinite().all()
    assert task.details["clamped"] and all(task.details["kept"][name] == 1 for name in task.details["clamped"])


def test_nothing_is_pruned_at_ratio_0():
    dense = tiny_resnet().eval()
    net = ChannelPruning(ratio=0.0, images=2).compress(copy.deepcopy(dense), task_for())
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), dense.state_dict().values(), strict=True))


def test_one_fine_tuning_at_the_end():
    task = task_for(budget="smoke")
    ChannelPruning(ratio=0.5, images=4).compress(used(tiny_resnet()), task)
    assert task.meter.train_calls == 1 and task.curve[0][2] == pytest.approx(1e-5)


def test_the_order_of_the_dials():
    kept = []
    for fields in ({"ratio": 0.25, "ratios": (0.9, 0.9)}, {"macs_reduction": 0.2, "ratio": 0.9}, {}):
        task = task_for()
        ChannelPruning(images=2, **fields).compress(TinyPlain(), task)
        kept.append(list(task.details["kept"].values()))
    assert kept[0] == [6, 9] and kept[2] == [4, 6] and kept[1][1] > 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": 1.0}, r"ratio 1.0 of .* lies outside \[0, 1\)"),
        ({"ratios": (0.5, 0.5)}, "2 pruning ratios were given, but there are 7 convolutions"),
        ({"ratios": (0, 0, 0.5, 0, 0, 0, 0)}, "0.5 is for layer1.0.conv2, whose outputs are added"),
        ({"images": 0}, "images=0 leaves nothing to reconstruct from"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        ChannelPruning(**{"images": 2, **fields}).compress(tiny_resnet(), task_for())
