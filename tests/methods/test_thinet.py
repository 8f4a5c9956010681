"""ThiNet: its greedy search and scales against brute force on the rows, and its published structures.

The structures come from ``compress`` at the published rates on untrained nets and two small images of noise: widths do
not depend on the images. Sizes are counted on 224 x 224. VGG-16's fully connected layers are left uninitialised.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
from oracle import mutant, size_of, worn
from oracle import toy_task as task_for
from torch import nn

from baselines.errors import UserError
from baselines.models.imagenet import resnet50_caffe, vgg16, vgg16_gap
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.filter_pruning import thinet
from methods.filter_pruning.thinet import VGG16_CONV, VGG16_TINY, ThiNet, resnet50_rates

IMAGENET = (3, 224, 224)


# -- the greedy search


def contributions(samples=200, channels=8, seed=0):
    """Rows as a layer gives them: correlated channels of different sizes, of both signs."""
    g = np.random.default_rng(seed)
    mixed = g.normal(size=(samples, channels)) @ g.normal(size=(channels, channels)) + g.normal(size=channels)
    return mixed * g.uniform(0.1, 2, channels)


def error(x, channels):
    """Squared error of the next layer's output without these channels."""
    return (x[:, list(channels)].sum(1) ** 2).sum()


def every_step_is_the_best(module, channels, count, seeds=range(5)):
    """Whether each chosen channel, of all that remain, keeps the error smallest; errors anew from the rows."""
    for seed in seeds:
        x = contributions(channels=channels, seed=seed)
        removed = module.greedy(torch.tensor(x.T @ x), count)
        if len(set(removed)) != count:
            return False
        for step, chosen in enumerate(removed):
            errors = {c: error(x, [*removed[:step], c]) for c in range(channels) if c not in removed[:step]}
            if chosen != min(errors, key=errors.get):
                return False
    return True


@pytest.mark.parametrize(("channels", "count"), [(8, 3), (8, 7), (64, 32)])
def test_every_greedy_step_is_the_best_of_all_that_remain(channels, count):
    assert every_step_is_the_best(thinet, channels, count, range(5 if channels == 8 else 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("added += 2 * products[:, best]", "added += products[:, best]"),
        ("added += 2 * products[:, best]", "added += 0"),
        ("added[best] = np.inf", "added[best] = 0"),
        ("int(added.argmin())", "int(np.where(np.isinf(added), -np.inf, added).argmax())"),
    ],
)
def test_brute_force_catches_a_changed_line(old, new):
    assert not every_step_is_the_best(mutant(thinet, old, new), 8, 5)


def test_of_equal_channels_the_first_goes():
    assert thinet.greedy(torch.ones(4, 4).double() + torch.eye(4).double(), 2) == [0, 1]


def test_the_final_set_need_not_be_the_best_one(capsys):
    """Each step is the best one, their sum is not: the error with 4 of 8 channels gone beside the best subset's."""
    ratios = []
    for seed in range(20):
        x = contributions(seed=seed)
        found = error(x, thinet.greedy(torch.tensor(x.T @ x), 4))
        best = min(error(x, subset) for subset in itertools.combinations(range(8), 4))
        ratios.append(found / best)
    with capsys.disabled():
        best = sum(ratio < 1 + 1e-9 for ratio in ratios)
        print(f"\n4 of 8 channels go: greedy finds the best subset in {best} of 20 draws; ", end="")
        print(f"its error is {np.mean(ratios):.3f} times the best on average, {max(ratios):.3f} at worst ", end="")
    assert min(ratios) >= 1 - 1e-9 and max(ratios) > 1.01


# -- the scales


def scales_are_least_squares(module):
    for seed in range(3):
        x = contributions(seed=seed)
        keep = torch.tensor([True, False, True, True, False, True, True, False])
        y = x.sum(1)
        ours = module.scales(torch.tensor(x.T @ x), torch.tensor(x.T @ y)[:, None], keep).numpy()
        right = np.ones(8)
        right[keep.numpy()] = np.linalg.lstsq(x[:, keep.numpy()], y)[0]
        if not np.allclose(ours, right, atol=1e-8):
            return False
    return True


def test_scales_are_those_of_numpys_least_squares():
    assert scales_are_least_squares(thinet)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("output[keep] - present.sum(1, keepdim=True)", "output[keep]"),
        ("result[keep] += reconstruct", "result[keep] -= reconstruct"),
        ("present = gram[keep][:, keep]", "present = gram[keep][:, keep] + 1"),
    ],
)
def test_numpy_catches_a_changed_line(old, new):
    assert not scales_are_least_squares(mutant(thinet, old, new))


# -- the whole of it


def narrow():
    """A net in which every sample is one image: the layer that reads the pruned one has one filter and one place."""
    net = nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1),
        nn.BatchNorm2d(9),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(9, 1, 8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1, 4),
    )
    nn.init.uniform_(net[1].weight, 0.5, 1.5)
    nn.init.normal_(net[1].bias, 0, 0.5)
    return net.eval()


@torch.no_grad()
def follows_the_paper(cls):
    """Whether ``compress`` leaves the filters and kernels that the paper's steps leave, written out in numpy."""
    torch.manual_seed(4)
    net, task = narrow(), task_for()
    maps = torch.cat([net[:4](images) for images, _ in task.batches(40)]).double()
    x = torch.einsum("nchw,chw->nc", maps, net[4].weight[0].double()).numpy()
    removed = []
    for _ in range(9 - 5):
        removed.append(min((c for c in range(9) if c not in removed), key=lambda c: error(x, [*removed, c])))
    kept = [c for c in range(9) if c not in removed]
    factors = np.linalg.lstsq(x[:, kept], x.sum(1))[0]
    pruned = cls(ratios=(0.4, 0), images=40, locations=3).compress(copy.deepcopy(net), task)
    rescaled = net[4].weight[0, kept].double().numpy() * factors[:, None, None]
    return (
        torch.equal(pruned[0].weight, net[0].weight[kept])
        and torch.equal(pruned[1].bias, net[1].bias[kept])
        and np.allclose(pruned[4].weight[0].numpy(), rescaled, atol=1e-5)
        and torch.equal(pruned[4].bias, net[4].bias)
    )


def test_compress_follows_the_paper():
    assert follows_the_paper(ThiNet)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(reader.part(patches) * filters[chosen]).sum(2)", "reader.part(patches).sum(2)"),
        ("layer.width - width)] = False", "layer.width - width)[::-1][1:]] = False"),
        ("reader.set(model, weight * scales", "reader.set(model, weight + 0 * scales"),
        ("task.batches(self.images)", "task.batches(3)"),
    ],
)
def test_the_written_out_steps_catch_a_changed_line(old, new):
    assert not follows_the_paper(mutant(thinet, old, new).ThiNet)


def used(net):
    """The net with BN statistics away from the identity, and every second filter inside of its blocks dead."""
    worn(net, mean=0, std=0.5)
    for block in (net.layer1[0], net.layer2[0], net.layer3[0]):
        block.bn1.weight.data[::2] = block.bn1.bias.data[::2] = 0
    return net


@pytest.mark.parametrize("layerwise", [True, False])
def test_dead_channels_go_and_nothing_else_changes(layerwise):
    dense, x = used(tiny_resnet()), torch.randn(4, 3, 16, 16)
    task = task_for()
    net = ThiNet(ratio=0.5, images=20, layerwise=layerwise).compress(copy.deepcopy(dense), task)
    assert task.details["kept"] == {"layer1.0.conv1": 4, "layer2.0.conv1": 6, "layer3.0.conv1": 8}
    assert torch.equal(net.layer2[0].conv1.weight, dense.layer2[0].conv1.weight[1::2])
    assert torch.allclose(net(x), dense(x), atol=1e-4)


def test_a_layer_with_two_readers():
    """As ResNet-50's stem has them: a block's first convolution and its projection."""
    from torchvision.models.resnet import Bottleneck, ResNet

    dense = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=8).eval()
    dense.bn1.weight.data[::2] = 0
    nn.init.uniform_(dense.layer1[0].bn3.weight)
    task, x = task_for((3, 32, 32)), torch.randn(2, 3, 32, 32)
    net = ThiNet(ratios=(0.5, *[0.0] * 16), images=2).compress(copy.deepcopy(dense), task)
    assert (net.conv1.out_channels, net.layer1[0].conv1.in_channels, net.layer1[0].downsample[0].in_channels) == (
        32,
    ) * 3
    assert torch.allclose(net(x), dense(x), atol=1e-4)


def test_each_layer_is_chosen_and_scaled_in_the_net_as_it_is_then():
    """Without training, all at once is the same as one after the other; the first choice changes the second scales."""
    torch.manual_seed(0)
    dense, x = TinyPlain(), torch.randn(2, 3, 16, 16)
    nets = [
        ThiNet(images=30, **fields).compress(copy.deepcopy(dense), task_for())
        for fields in ({"ratio": 0.4}, {"ratio": 0.4, "layerwise": False}, {"ratios": (0, 0.4)})
    ]
    assert torch.allclose(nets[0](x), nets[1](x), atol=1e-6)
    assert not torch.allclose(nets[0].classifier[1].weight, nets[2].classifier[1].weight, atol=1e-3)


# -- training


def test_fine_tuning_after_each_layer_and_longer_after_the_last():
    calls = {}
    for fields in ({}, {"blockwise": True}, {"layerwise": False}):
        task, asked = task_for(budget="smoke"), []
        train = task.train
        task.train = lambda model, epochs, asked=asked, train=train, **o: (
            asked.append((epochs, o["lr"])),
            train(model, epochs, **o),
        )
        ThiNet(ratios=(0, 0.5, 0, 0.5, 0, 0.5, 0), images=4, lr=1e-4, **fields).compress(used(tiny_resnet()), task)
        calls[tuple(fields)] = asked
    each, last = (1.0, 1e-4), (12.0, 1e-3)
    assert calls == {(): [each, each, last], ("blockwise",): [each, each, last], ("layerwise",): [last]}


def test_a_block_is_pruned_as_a_whole():
    losing = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1"]
    assert ThiNet(blockwise=True)._parts(losing) == [
        ["conv1"],
        ["layer1.0.conv1", "layer1.0.conv2"],
        ["layer1.1.conv1"],
    ]
    assert ThiNet()._parts(losing) == [[name] for name in losing]


# -- published structures


def vgg16_without_weights():
    """VGG-16 for ImageNet whose 123 million fully connected weights take no time to draw."""
    with torch.device("meta"):
        net = vgg16()
    for module in net.to_empty(device="cpu").features:
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return net


def pruned(make, ratios):
    """What the method's code leaves at these rates, and how many layers were clamped."""
    task = task_for((3, 32, 32))
    return ThiNet(ratios=ratios, images=2, layerwise=False).compress(make(), task)


@pytest.mark.parametrize(
    ("make", "ratios", "size"),
    [
        (vgg16_without_weights, VGG16_CONV, (131_452_552, 4_791_205_888)),
        (vgg16_gap, VGG16_TINY, (1_325_368, 1_004_578_816)),
        (resnet50_caffe, resnet50_rates(0.3), (16_945_246, 2_440_026_340)),
        (resnet50_caffe, resnet50_rates(0.5), (12_381_864, 1_706_426_368)),
    ],
    ids=["ThiNet-Conv", "ThiNet-Tiny", "ThiNet-70", "ThiNet-50"],
)
def test_published_structures(make, ratios, size):
    assert size_of(pruned(make, ratios), IMAGENET) == size


def test_thinet_gap_is_as_printed():
    params, macs = size_of(pruned(vgg16_gap, VGG16_CONV), IMAGENET)
    assert (round(params / 1e4), round(2 * macs / 1e7)) == (832, 934)  # 8.32M and 9.34B, two operations per MAC


def test_every_recipe_fits_its_net():
    counts = {"vgg16": 13, "resnet50": 53}
    for key, fields in ThiNet.recipes.items():
        if "ratios" in fields:
            assert len(fields["ratios"]) == counts[key.split("_")[0]]
        assert ("macs" in key) == ("macs_reduction" in fields)
    rates = resnet50_rates(0.3)
    assert rates[:8] == (0, 0, 0.3, 0.3, 0, 0.3, 0.3, 0) and rates.count(0.3) == 32


@pytest.mark.parametrize(("make", "side"), [(lambda: VGG(width=0.25), 32), (lambda: ResNetCifar(20), 32)])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_operating_points_save_their_share_of_the_macs(make, side, share):
    dense, task = make(), task_for((3, side, side))
    net = ThiNet(macs_reduction=share, images=2, layerwise=False).compress(copy.deepcopy(dense), task)
    left = size_of(net, (3, side, side))[1] / size_of(dense, (3, side, side))[1]
    assert 1 - share - 0.06 < left <= 1 - share


# -- the edges


def test_one_filter_is_left_at_95_percent():
    task, net = task_for(), TinyPlain()
    net = ThiNet(ratio=0.95, images=4).compress(net, task)
    assert task.details == {"clamped": ["features.0", "features.4"], "kept": {"features.0": 1, "features.4": 1}}
    assert net(torch.randn(2, 3, 16, 16)).isfinite().all() and net.classifier[1].in_features == 16


def test_at_95_percent_of_the_macs_the_run_ends_with_clamped_layers():
    dense, task = ResNetCifar(20), task_for((3, 32, 32))
    whole = size_of(dense, (3, 32, 32))[1]
    net = ThiNet(macs_reduction=0.95, images=2, layerwise=False).compress(dense, task)
    assert size_of(net, (3, 32, 32))[1] <= 0.05 * whole and net(torch.randn(2, 3, 32, 32)).isfinite().all()
    assert task.details["clamped"] and all(task.details["kept"][name] == 1 for name in task.details["clamped"])


def test_nothing_is_pruned_at_rate_0():
    dense, task = tiny_resnet().eval(), task_for()
    net = ThiNet(ratio=0.0, images=2).compress(copy.deepcopy(dense), task)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), dense.state_dict().values(), strict=True))


def test_the_order_of_the_dials():
    kept = []
    for fields in ({"ratio": 0.25, "ratios": (0.9, 0.9)}, {"macs_reduction": 0.2, "ratio": 0.9}, {}):
        task = task_for()
        ThiNet(images=2, **fields).compress(TinyPlain(), task)
        kept.append(list(task.details["kept"].values()))
    assert kept[0] == [6, 9] and kept[2] == [4, 6] and kept[1][1] > 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": 1.0}, r"ratio 1.0 of .* lies outside \[0, 1\)"),
        ({"ratios": (0.5, 0.5)}, "2 pruning ratios were given, but there are 7 convolutions"),
        ({"ratios": (0.5, 0, 0, 0, 0, 0, 0)}, "0.5 is for conv1, whose outputs are added"),
        ({"images": 0}, "images=0 leaves nothing to reconstruct from"),
        ({"locations": 0}, "locations=0 leaves nothing to reconstruct from"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        ThiNet(**{"images": 2, **fields}).compress(tiny_resnet(), task_for())


def test_a_net_that_has_diverged():
    net = TinyPlain()
    net.features[0].bias.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite: the network has diverged"):
        ThiNet(images=2).compress(net, task_for())
