"""Feature maps are read behind the activation, batch by batch, and the net is left as it was."""

import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision

from baselines.errors import UserError
from baselines.models.lenet import lenet5
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.kit import features
from methods.kit.features import Site


def used(net):
    """The net with BN statistics and shifts away from the identity."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, -0.2, 0.5)
    return net


def convolutions(net):
    return [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)]


def normed(x, conv, bn):
    """Convolution and batch normalisation (eval mode), written out."""
    x = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    shape = (1, -1, 1, 1)
    x = (x - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
    return x * bn.weight.view(shape) + bn.bias.view(shape)


def expected_maps(net, x):
    """Every feature map of a CIFAR ResNet by its definition: behind the ReLU, for conv2 behind the sum."""
    maps = {"conv1": normed(x, net.conv1, net.bn1).clamp(min=0)}
    x = maps["conv1"]
    for stage in ("layer1", "layer2", "layer3"):
        for i, block in enumerate(getattr(net, stage)):
            inner = normed(x, block.conv1, block.bn1).clamp(min=0)
            x = (normed(inner, block.conv2, block.bn2) + block.shortcut(x)).clamp(min=0)
            maps[f"{stage}.{i}.conv1"], maps[f"{stage}.{i}.conv2"] = inner, x
    return maps


def farthest(net, x):
    """Largest difference between the streamed maps and those of the definition; inf where shapes differ."""
    found = {}
    batches = [(x[:3], None), (x[3:], None)]

    def see(names, maps):
        for name in names:
            found.setdefault(name, []).append(maps.clone())

    features.stream(net, x[:1], convolutions(net), batches, see)
    expected = expected_maps(net, x)
    assert found.keys() == expected.keys()
    return max((torch.cat(found[name]) - maps).abs().max().item() for name, maps in expected.items())


@torch.no_grad()
def test_maps_are_those_behind_the_relu():
    assert farthest(used(tiny_resnet()), torch.randn(5, 3, 16, 16)) < 1e-5


@torch.no_grad()
def test_the_oracle_catches_maps_read_before_the_relu(monkeypatch):
    monkeypatch.setattr(features, "ACTIVATIONS", (torch.nn.BatchNorm2d,))
    assert farthest(used(tiny_resnet()), torch.randn(5, 3, 16, 16)) > 0.1


def test_sites_of_the_baselines():
    sites = features.sites(VGG(width=0.125), torch.zeros(1, 3, 32, 32), ["features.0", "features.40"])
    assert sites == {"features.0": Site("features.2"), "features.40": Site("features.42")}
    sites = features.sites(ResNetCifar(8), torch.zeros(1, 3, 32, 32), ["conv1", "layer2.0.conv1", "layer2.0.conv2"])
    assert list(sites.values()) == [Site("relu"), Site("layer2.0.relu1"), Site("layer2.0.relu2")]


def test_one_relu_called_three_times_and_a_projection():
    net = torchvision.models.resnet50()
    sites = features.sites(net, torch.zeros(1, 3, 32, 32), convolutions(net))
    assert sites["conv1"] == Site("relu")
    for block in ("layer1.0", "layer4.0"):
        for call, conv in enumerate(("conv1", "conv2", "conv3")):
            assert sites[f"{block}.{conv}"] == Site(f"{block}.relu", call)
        assert sites[f"{block}.downsample.0"] == Site(f"{block}.relu", 2)
    assert sites["layer3.5.conv3"] == Site("layer3.5.relu", 2)


def test_a_convolution_without_activation_is_read_itself():
    sites = features.sites(lenet5(), torch.zeros(1, 1, 28, 28), ["conv1", "conv2"])
    assert sites == {"conv1": Site("conv1"), "conv2": Site("conv2")}
    net = torchvision.models.mobilenet_v2()  # the last convolution of a block has no activation: linear bottleneck
    sites = features.sites(net, torch.zeros(1, 3, 32, 32), convolutions(net))
    assert sites["features.2.conv.2"] == Site("features.2.conv.2")
    assert sites["features.2.conv.0.0"] == Site("features.2.conv.0.2")


def test_means_weigh_every_image_equally():
    net, x = used(tiny_resnet()), torch.randn(7, 3, 16, 16)
    batches = [(x[:4], None), (x[4:6], None), (x[6:], None)]
    names = ["layer2.0.conv2", "conv1"]
    means = features.channel_means(net, x[:1], names, batches, lambda maps: maps.amax((2, 3)))
    assert list(means) == names
    with torch.no_grad():
        for name, maps in expected_maps(net, x).items():
            if name in names:
                assert torch.allclose(means[name], maps.amax((2, 3)).double().mean(0), atol=1e-5)


def test_without_images():
    with pytest.raises(UserError, match="ask for at least one"):
        features.channel_means(
            TinyPlain(), torch.zeros(1, 3, 16, 16), ["features.0"], [], lambda maps: maps.sum((2, 3))
        )


def test_no_map_outlives_its_batch():
    net, kept, alive = TinyPlain(), [], []

    def see(names, maps):
        kept.append(weakref.ref(maps))

    def batches():
        for _ in range(3):
            alive.append(sum(ref() is not None for ref in kept))
            yield torch.randn(2, 3, 16, 16), None

    features.stream(net, torch.zeros(1, 3, 16, 16), convolutions(net), batches(), see)
    assert len(kept) == 6 and alive == [0, 0, 0]


def test_the_net_is_left_as_it_was():
    net = tiny_resnet().train()
    net.layer1.eval()
    modes = [module.training for module in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}

    def see(names, maps):
        assert not net.training and not maps.requires_grad
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features.stream(net, torch.zeros(1, 3, 16, 16), ["conv1"], [(torch.randn(2, 3, 16, 16), None)], see)
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
