"""MobileNet: the net in numpy, its images shrunk by hand, sizes, strides, costs, weight decay, and its description."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
from oracle import mutant, size_of, toy_task, worn
from torch import nn

from baselines import base
from baselines.cost import cost
from baselines.errors import UserError
from baselines.models.tiny import tiny_resnet
from baselines.models.vgg import VGG
from methods.compact import mobilenet_v1
from methods.compact.mobilenet_v1 import STRIDES, WIDTHS, MobileNet, MobileNetV1, strides
from repro import architecture
from repro.interchange import session, to_onnx

SMALL = {"num_classes": 5, "widths": (8, 9, 10, 11), "strides": (2, 1, 2, 1)}


# -- the net -----------------------------------------------------------------------------------------------------------


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def layer(x, filters, stride, bn, depthwise):
    """Convolution with k // 2 zeros around, batch normalisation and ReLU of one image (C, H, W), written out."""
    k = filters.shape[-1]
    x = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2))
    rows, columns = ((side - k) // stride + 1 for side in x.shape[1:])
    out = np.zeros((len(filters), rows, columns))
    for row in range(rows):
        for column in range(columns):
            window = x[:, row * stride : row * stride + k, column * stride : column * stride + k]
            products = filters[:, 0] * window if depthwise else (filters * window).sum(1)
            out[:, row, column] = products.sum((1, 2))
    mean, var, weight, bias = (array(t)[:, None, None] for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return np.maximum((out - mean) / np.sqrt(var + bn.eps) * weight + bias, 0)


def by_hand(net, x, pace):
    """Logits of one image: a convolution, then a depthwise and a pointwise one for each width, the mean, a linear."""
    parts = list(net.features)
    convs, norms = parts[0::3], parts[1::3]
    assert all(isinstance(m, nn.ReLU) for m in parts[2::3]) and len(convs) == 2 * len(pace) - 1
    x = layer(x, array(convs[0].weight), pace[0], norms[0], depthwise=False)
    for i, stride in enumerate(pace[1:]):
        x = layer(x, array(convs[1 + 2 * i].weight), stride, norms[1 + 2 * i], depthwise=True)
        x = layer(x, array(convs[2 + 2 * i].weight), 1, norms[2 + 2 * i], depthwise=False)
    return array(net.classifier.weight) @ x.mean((1, 2)) + array(net.classifier.bias)


def lively(net):
    """The net with BN as after a training and weights under which its logits depend on the image."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
    return worn(net, 0, 0.5, gain=1)


def is_a_mobilenet(module):
    """Oracle: the logits are those of numpy, and the shapes of the filters those of the paper."""
    net = lively(module.MobileNet(**SMALL))
    shapes = [tuple(m.weight.shape) for m in net.features if isinstance(m, nn.Conv2d)]
    right = [(8, 3, 3, 3)]
    for into, out in itertools.pairwise(SMALL["widths"]):
        right += [(into, 1, 3, 3), (out, into, 1, 1)]
    if shapes != right:
        return False
    logits = []
    for image in (torch.randn(3, 9, 11), torch.zeros(3, 9, 11)):
        with torch.no_grad():
            logits.append(net(image[None])[0].numpy())
        if not np.allclose(logits[-1], by_hand(net, array(image), SMALL["strides"]), atol=1e-5):
            return False
    return not np.allclose(*logits, atol=0.01)


def test_the_net_is_that_of_numpy():
    assert is_a_mobilenet(mobilenet_v1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("stride, groups=inputs)", "stride)"),
        ("convolution(inputs, inputs, 3, stride, groups=inputs)", "convolution(inputs, inputs, 3, 1, groups=inputs)"),
        ("layers += convolution(inputs, outputs, 1)", "layers += convolution(inputs, outputs, 3)"),
        ("max(LEAST, int(n * width))", "max(LEAST, int(n * width)) // 8 * 8"),
    ],
)
def test_numpy_catches_a_changed_line(old, new):
    assert not is_a_mobilenet(mutant(mobilenet_v1, old, new))


def shrinks_bilinearly(module):
    """Oracle: each pixel of the smaller image is the mean of the four around its centre, weighted by nearness."""
    image = torch.randn(3, 12, 12)
    for side in (6, 9, 5):
        net, seen = module.MobileNet(**SMALL, side=side).eval(), []
        net.features.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0]))
        matrix = np.zeros((side, 12))
        for i in range(side):
            centre = min(max((i + 0.5) * 12 / side - 0.5, 0), 11)
            low = min(int(centre), 10)
            matrix[i, low], matrix[i, low + 1] = 1 - (centre - low), centre - low
        net(image[None])
        if not np.allclose(seen[0], matrix @ array(image) @ matrix.T, atol=1e-5):
            return False
    return True


def test_images_are_shrunk_bilinearly():
    assert shrinks_bilinearly(mobilenet_v1)
    assert not shrinks_bilinearly(mutant(mobilenet_v1, "align_corners=False", "align_corners=True"))
    assert not shrinks_bilinearly(mutant(mobilenet_v1, 'mode="bilinear", align_corners=False', 'mode="nearest"'))


# -- what it costs -----------------------------------------------------------------------------------------------------


def saves_as_the_paper_says(module):
    """Oracle: a depthwise and a pointwise convolution together cost 1/N + 1/D^2 of an ordinary one, by the counter."""
    image = torch.zeros(1, 12, 7, 7)
    for outputs, kernel in ((16, 3), (40, 5), (24, 3)):
        pair = [*module.convolution(12, 12, kernel, groups=12), *module.convolution(12, outputs, 1)]
        whole = cost(nn.Conv2d(12, outputs, kernel, padding=kernel // 2), image).macs
        if not math.isclose(cost(nn.Sequential(*pair), image).macs / whole, 1 / outputs + 1 / kernel**2):
            return False
    return True


def test_a_separable_convolution_costs_what_the_paper_says():
    assert saves_as_the_paper_says(mobilenet_v1)
    wrong = mutant(mobilenet_v1, "kernel // 2, groups=groups, bias", "kernel // 2, bias")
    assert not saves_as_the_paper_says(wrong)


def counted(widths, pace, side, classes):
    """(params, MACs) from arithmetic alone."""
    side = math.ceil(side / pace[0])
    layers = [(widths[0], 3, 9, side)]
    for (into, out), stride in zip(itertools.pairwise(widths), pace[1:], strict=True):
        side = math.ceil(side / stride)
        layers += [(into, 1, 9, side), (out, into, 1, side)]
    params = sum(out * into * taps + 2 * out for out, into, taps, _ in layers)
    macs = sum(out * into * taps * side**2 for out, into, taps, side in layers)
    return params + (widths[-1] + 1) * classes, macs + widths[-1] * classes


AMC = (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)


@pytest.mark.parametrize(
    ("fields", "side", "size"),
    [
        ({}, 224, (4_231_976, 568_740_352)),
        ({}, 192, (4_231_976, 418_121_728)),
        ({}, 160, (4_231_976, 290_675_200)),
        ({}, 128, (4_231_976, 186_400_768)),
        ({"side": 128}, 224, (4_231_976, 186_400_768)),
        ({"width": 0.75}, 224, (2_585_560, 325_400_448)),
        ({"width": 0.75, "side": 128}, 224, (2_585_560, 106_770_432)),
        ({"widths": AMC}, 224, (2_408_232, 293_870_000)),
    ],
)
def test_published_sizes(fields, side, size):
    with torch.device("meta"):
        assert size_of(MobileNet(**fields), (3, side, side)) == size
    if "width" not in fields:
        assert counted(fields.get("widths", WIDTHS), STRIDES, fields.get("side", side), 1000) == size


def test_thin_layers_keep_eight_channels():
    assert size_of(MobileNet(4, 0.01), (3, 16, 16)) == counted((*(8,) * 12, 10, 10), STRIDES, 16, 4)


# -- small images ------------------------------------------------------------------------------------------------------

KUANGLIU = (1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # of the port for 32 x 32: 64, (128, 2), 128, (256, 2) ...


def halves_at_the_right_places(module):
    """Oracle: as the port for CIFAR on 32 pixels; the last map has 2 pixels or more, and with one more halving 1."""
    if module.strides(32) != KUANGLIU or module.strides(224) != module.STRIDES:
        return False
    for side in range(1, 300):
        found, last = module.strides(side), side
        for stride in found:
            last = math.ceil(last / stride)
        kept = [i for i, stride in enumerate(found) if stride == 2]
        whole = [i for i, stride in enumerate(module.STRIDES) if stride == 2]
        if kept != whole[len(whole) - len(kept) :] or (last < 2 and side > 1) or (len(kept) < 5 and last > 2):
            return False
    return True


def test_halvings_are_left_out_from_the_front():
    assert halves_at_the_right_places(mobilenet_v1)
    assert (strides(16).count(2), strides(8).count(2), strides(1).count(2)) == (3, 2, 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("found[found.index(2)] = 1", "found[len(found) - 1 - found[::-1].index(2)] = 1"),
        ("LAST_MAP = 2", "LAST_MAP = 4"),
        ("math.ceil(side / math.prod(found)) < LAST_MAP", "side // math.prod(found) < LAST_MAP"),
    ],
)
def test_the_places_catch_a_changed_line(old, new):
    assert not halves_at_the_right_places(mutant(mobilenet_v1, old, new))


def test_on_cifar_it_is_the_port():
    net, shape = MobileNet(10, strides=strides(32)), (3, 32, 32)
    assert size_of(net, shape) == counted(WIDTHS, KUANGLIU, 32, 10) == (3_217_226, 46_354_432)
    assert net.features(torch.zeros(1, *shape)).shape == (1, 1024, 2, 2)


def test_a_smaller_resolution_costs_by_its_square():
    whole, half = (MobileNet(10, strides=strides(64), side=side) for side in (None, 32))
    fixed = 1024 * 10
    assert size_of(whole, (3, 64, 64))[1] - fixed == 4 * (size_of(half, (3, 64, 64))[1] - fixed)


# -- compress ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 16, 16), (1, 28, 28), (3, 33, 33)])
def test_the_net_is_for_the_tasks_images_and_classes(shape):
    task, dense = toy_task(shape), tiny_resnet()
    net = MobileNetV1(width=0.1, resolution=0.75).compress(dense, task)
    assert task.from_scratch and net.side == round(0.75 * shape[1]) and net.strides == strides(shape[1])
    with torch.no_grad():
        assert net(torch.randn(1, *shape)).shape == (1, 4)
    assert MobileNetV1(width=0.1).compress(dense, toy_task(shape)).side is None


def test_the_dense_net_is_left_alone_and_the_epochs_are_asked_for():
    task, dense, asked = toy_task(budget="smoke"), tiny_resnet(), []
    before, train = copy.deepcopy(dense.state_dict()), task.train
    task.train = lambda net, epochs, **options: asked.append(epochs) or train(net, epochs, **options)
    net = MobileNetV1(width=0.01, epochs=7).compress(dense, task)
    assert asked == [7] and task.meter.steps > 0 and all(p.isfinite().all() for p in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def decays_all_but_depthwise(module):
    """Oracle: a step without a gradient shrinks each parameter by lr * decay, and no depthwise filter at all."""
    net = module.MobileNet(**SMALL)
    method, params = module.MobileNetV1(lr=0.5, weight_decay=0.1), list(net.parameters())
    before = [p.detach().clone() for p in params]
    optimizer = method.optimizer(net, iter(params))
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    depthwise = {f"features.{i}.weight" for i, m in enumerate(net.features) if getattr(m, "groups", 1) > 1}
    assert len(depthwise) == 3
    # the first Nesterov step: lr * (1 + momentum) * decay
    for (name, after), old in zip(net.named_parameters(), before, strict=True):
        if not torch.allclose(after, old if name in depthwise else old * (1 - 0.5 * 1.9 * 0.1), atol=1e-6):
            return False
    return True


def test_depthwise_filters_have_no_weight_decay():
    assert decays_all_but_depthwise(mobilenet_v1)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"weight_decay": 0.0', '"weight_decay": self.weight_decay'), ("and m.groups > 1}", "and m.groups == 1}")],
)
def test_the_step_catches_a_changed_line(old, new):
    assert not decays_all_but_depthwise(mutant(mobilenet_v1, old, new))


@pytest.mark.parametrize("fields", [{"width": 0.1}, {"width": 0.1, "resolution": 0.5}])
def test_described_as_data_and_built_again_and_in_onnx(fields):
    net = MobileNetV1(**fields).compress(tiny_resnet(), toy_task())
    root = architecture.choose_root(net, base.load("tiny_resnet_synthetic"), 4)
    built = architecture.build(json.loads(json.dumps(architecture.describe(net, root))))
    built.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(net(x), built.eval()(x))
        assert torch.allclose(session(to_onnx(net, x))(x), net(x), atol=1e-4)


def test_on_mnist_it_is_smaller_than_the_quarter_width_vgg16():
    dense = size_of(VGG(width=0.25), (3, 32, 32))
    for key, fields in MobileNetV1.recipes.items():
        if key.startswith("vgg16_mnist5k"):
            ours = size_of(MobileNet(10, fields["width"], strides=strides(32)), (3, 32, 32))
            assert ours[0] < dense[0] and ours[1] < dense[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 0.0}, r"The width 0 lies outside \(0, 1\]"),
        ({"width": 1.5}, r"The width 1.5 lies outside \(0, 1\]"),
        ({"resolution": -1.0}, r"The resolution -1 lies outside \(0, 1\]"),
        ({"resolution": float("nan")}, r"The resolution nan lies outside \(0, 1\]"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=words):
        MobileNetV1(**fields).compress(tiny_resnet(), toy_task())
