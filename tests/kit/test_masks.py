"""Masks of single weights against numpy, and what a pruned net no longer uses against searches over its connections."""

import copy

import numpy as np
import pytest
import torch
from oracle import mutant
from torch import nn

from baselines.errors import UserError
from baselines.models.lenet import lenet5, lenet_300_100
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.kit import masks

IMAGE = torch.zeros(1, 3, 16, 16)


def tensors():
    """Three tensors of very different sizes of weights."""
    torch.manual_seed(0)
    return {"a": torch.randn(4, 3, 3, 3), "b": 0.1 * torch.randn(6, 10), "c": 3 * torch.randn(5, 6)}


def drops_the_smallest(module, sparsity):
    """Oracle: numpy's sort of all magnitudes says which ones go."""
    values = tensors()
    every = np.sort(np.abs(np.concatenate([v.numpy().ravel() for v in values.values()])))
    threshold = every[int(len(every) * sparsity)]
    keep, _ = module.largest(values, sparsity)
    return all(np.array_equal(keep[n].numpy(), np.abs(v.numpy()) >= threshold) for n, v in values.items())


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25])
def test_the_smallest_magnitudes_of_all_tensors_go(sparsity):
    assert drops_the_smallest(masks, sparsity)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weight.detach().abs().cpu()", "weight.detach().cpu()"),
        ("every.argsort(stable=True)", "every.argsort(stable=True, descending=True)"),
        ("int(len(every) * sparsity + SLACK)", "int(len(every) * sparsity) + 1"),
    ],
    ids=["signed", "largest go", "one more"],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert not drops_the_smallest(mutant(masks, old, new), 0.25)


def test_the_number_that_goes_is_exact_and_ties_go_in_order():
    keep, clamped = masks.largest({"a": torch.ones(4, 25)}, 0.57)  # 100 * 0.57 is 56.99... in floating point
    assert keep["a"].flatten().tolist() == [False] * 57 + [True] * 43
    assert clamped == []


def test_no_tensor_is_emptied():
    keep, clamped = masks.largest(tensors(), 0.9)
    assert clamped == ["b"]
    assert keep["b"].flatten().nonzero().item() == tensors()["b"].abs().argmax()


def is_beyond_numpys_deviation(module, quality):
    """Oracle: numpy's population deviation of the whole tensor, zeros included."""
    weight = tensors()["a"] + 0.3
    weight[0] = 0
    keep, _ = module.beyond("a", weight, quality)
    flat = weight.numpy().astype(np.float64)
    return np.array_equal(keep.numpy(), np.abs(flat) >= quality * flat.std())


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0, 2.0])
def test_thresholds_are_quality_times_deviation(quality):
    assert is_beyond_numpys_deviation(masks, quality)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("std(unbiased=False)", "std()"),
        ("size >= quality * weight.detach().cpu().double().std", "size >= quality * weight[weight != 0].double().std"),
        ("quality * weight.detach().cpu().double().std(unbiased=False)", "quality * size.double().mean()"),
    ],
    ids=["sample deviation", "of the survivors", "mean"],
)
def test_the_oracle_catches_another_deviation(old, new):
    torch.manual_seed(0)
    changed = mutant(masks, old, new)
    few = torch.tensor([1.0, 1.04, -1.0, -1.08])  # a population of four: between the two deviations lies a weight
    numpy_says = np.abs(few.numpy().astype(np.float64)) >= few.numpy().astype(np.float64).std()
    same = np.array_equal(changed.beyond("few", few, 1.0)[0].numpy(), numpy_says)
    assert not (same and is_beyond_numpys_deviation(changed, 1.0))


def test_the_largest_weight_stays():
    keep, clamped = masks.beyond("a", tensors()["a"], 100.0)
    assert clamped and keep.flatten().nonzero().item() == tensors()["a"].abs().argmax()
    assert masks.beyond("a", tensors()["a"], 1.0)[1] is False


def zeros_stay(module):
    """Whether weights that are zero are zero after steps of SGD with momentum and decay, and the others have moved."""
    torch.manual_seed(1)
    net = TinyPlain()
    weights = module.weights(net)
    keep, _ = module.largest(weights, 0.7)
    module.prune(weights, keep)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    after_step = module.hold(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-2, nesterov=True)
    for step in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.randn(8, 3, 16, 16)), torch.arange(8) % 4).backward()
        optimizer.step()
        after_step(step)
    held = all(bool((w[before[n] == 0] == 0).all()) for n, w in weights.items())
    moved = all(bool((w[before[n] != 0] != before[n][before[n] != 0]).any()) for n, w in weights.items())
    return held and moved and any(bool((w == 0).any()) for w in weights.values())


def test_removed_weights_never_come_back():
    assert zeros_stay(masks)


def test_the_oracle_catches_revived_weights():
    assert not zeros_stay(mutant(masks, "for weight, gone in removed:", "for weight, gone in removed[1:]:"))
    assert not zeros_stay(mutant(masks, "(weight, weight.detach() == 0)", "(weight, weight.detach() != 0)"))


def test_the_survivors_move_as_if_the_removed_weights_were_not_there():
    """One layer, trained once with held zeros and once without the inputs that they belong to."""
    torch.manual_seed(0)
    whole, small = nn.Linear(6, 3), nn.Linear(4, 3)
    with torch.no_grad():
        whole.weight[:, 4:] = 0
        small.weight.copy_(whole.weight[:, :4])
        small.bias.copy_(whole.bias)
    x, y = torch.randn(16, 6), torch.arange(16) % 3
    after_step = masks.hold(whole)
    for net, seen, hook in ((whole, x, after_step), (small, x[:, :4], lambda step: None)):
        optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9, weight_decay=1e-2)
        for step in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(seen), y).backward()
            optimizer.step()
            hook(step)
    assert torch.allclose(whole.weight[:, :4], small.weight, atol=1e-6)


# -- what is not used ------------------------------------------------------------------------------------------------


def cut(net, share, seed):
    """The net with that share of its weights zeroed by lot."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in masks.weights(net).values():
            weight.mul_(torch.rand_like(weight) >= share)
    return net


def reached(matrices):
    """Per layer of neurons, True where a neuron is on a path from the first to the last one: breadth-first, twice."""
    forwards = [np.ones(matrices[0].shape[1], bool)]
    for matrix in matrices:
        forwards.append(((matrix != 0) & forwards[-1]).any(1))
    backwards = [np.ones(matrices[-1].shape[0], bool)]
    for matrix in reversed(matrices):
        backwards.append(((matrix != 0) & backwards[-1][:, None]).any(0))
    return [f & b for f, b in zip(forwards, reversed(backwards), strict=True)]


def leaves_only_paths(module, seed):
    """Oracle for a multi-layer perceptron: a weight stays if and only if both of its neurons are on a path."""
    net = cut(lenet_300_100(), 0.99, seed)
    layers = [net.ip1, net.ip2, net.ip3]
    before = [layer.weight.detach().numpy().copy() for layer in layers]
    biases = [layer.bias.detach().numpy().copy() for layer in layers]
    alive = reached(before)
    module.prune_unused(net, torch.zeros(1, 1, 28, 28))
    for layer, weight, bias, into, out in zip(layers, before, biases, alive[:-1], alive[1:], strict=True):
        last = layer is net.ip3  # an output without inputs still has its bias
        if not np.array_equal(layer.weight.detach().numpy(), np.where(out[:, None] & into, weight, 0)):
            return False
        if not np.array_equal(layer.bias.detach().numpy(), bias if last else np.where(out, bias, 0)):
            return False
    return not all(a.all() for a in alive[1:-1])


@pytest.mark.parametrize("seed", range(3))
def test_what_is_on_no_path_goes(seed):
    assert leaves_only_paths(masks, seed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(param.data != 0).double() *", "param.data *"),
        ('(not name.endswith("bias"))', "True"),
    ],
    ids=["signed weights", "biases feed neurons"],
)
def test_the_oracle_catches_another_search(old, new):
    assert not all(leaves_only_paths(mutant(masks, old, new), seed) for seed in range(3))


def takes_the_bias_of_a_linear_neuron(module):
    """Whether a filter of LeNet-5's first convolution, which no ReLU follows, goes with its readers and its bias."""
    net = lenet5()
    with torch.no_grad():
        net.conv1.weight[3] = 0
    module.prune_unused(net, torch.zeros(1, 1, 28, 28))
    return not net.conv2.weight[:, 3].any() and net.conv1.bias[3] == 0 and bool(net.conv1.bias[4] != 0)


def test_a_bias_without_readers_goes():
    assert takes_the_bias_of_a_linear_neuron(masks)
    assert not takes_the_bias_of_a_linear_neuron(mutant(masks, "for _ in range(2):", "for _ in range(1):"))


def changes_nothing(net, prune_unused, image):
    """Whether removing what is unused leaves the function as it is, if nothing but connections carries a signal."""
    with torch.no_grad():
        for name, param in net.named_parameters():
            if name.endswith("bias"):
                param.zero_()
    x = torch.randn(3, *image.shape[1:])
    net.eval()
    before, count = net(x), sum(int(p.count_nonzero()) for p in net.parameters())
    prune_unused(net, image)
    return torch.allclose(before, net(x), atol=1e-6), count - sum(int(p.count_nonzero()) for p in net.parameters())


@pytest.mark.parametrize("build", [TinyPlain, tiny_resnet], ids=["plain", "residual"])
def test_without_biases_the_function_stays(build):
    for seed in range(3):
        same, fewer = changes_nothing(cut(build(), 0.95, seed), masks.prune_unused, IMAGE)
        assert same and fewer > 0


def test_a_dead_filter_takes_its_readers_and_its_batch_normalisation_with_it():
    net = TinyPlain()
    nn.init.normal_(net.features[1].bias)
    whole = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net.features[0].weight[2] = 0  # no inputs
        net.classifier[1].weight[:, 5 * 16 : 6 * 16] = 0  # channel 5 of the second convolution has no outputs
    masks.prune_unused(net, IMAGE)
    assert not net.features[4].weight[:, 2].any() and not net.features[4].weight[5].any()
    for bn, channel in ((net.features[1], 2), (net.features[5], 5)):
        assert bn.weight[channel] == 0 and bn.bias[channel] == 0
    assert net.features[0].bias[2] == 0 and net.features[4].bias[5] == 0
    rest = [c for c in range(8) if c != 2]
    assert torch.equal(net.features[0].weight[rest], whole["features.0.weight"][rest])
    assert torch.equal(net.features[1].bias[rest], whole["features.1.bias"][rest])


def test_a_residual_channel_lives_on_while_one_convolution_feeds_it():
    net = tiny_resnet()
    nn.init.ones_(net.layer1[0].bn2.bias)
    with torch.no_grad():
        net.layer1[0].conv2.weight[3] = 0
    masks.prune_unused(net, IMAGE)
    assert net.layer1[0].bn2.bias[3] == 1 and net.layer1[0].bn2.weight[3] == 0
    assert net.layer2[0].conv1.weight[:, 3].any() and net.conv1.weight[3].any()


def stem():
    """A net with a strided convolution and a padded max-pool, as ResNet-50 begins."""
    first = [nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*first, nn.Conv2d(4, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))


@pytest.mark.parametrize("build", [TinyPlain, tiny_resnet, stem], ids=["plain", "residual", "padded pool"])
def test_a_whole_net_is_used(build):
    net = build()
    before = copy.deepcopy(net.state_dict())
    masks.prune_unused(net, IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(param.requires_grad and param.grad is None for param in net.parameters())


def test_weights_that_only_read_padding_are_unused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4, 2))
    masks.prune_unused(net, torch.zeros(1, 3, 1, 1))
    assert net[0].weight.flatten(2).any(2).all() and int(net[0].weight.count_nonzero()) == 12


def test_bad_values():
    for call, sentence in (
        (lambda: masks.largest(tensors(), 1.0), r"sparsity 1.0 lies outside \[0, 1\)"),
        (lambda: masks.largest(tensors(), float("nan")), "sparsity nan lies outside"),
        (lambda: masks.largest({"a": torch.tensor([1.0, float("nan")])}, 0.5), "weights of a are not finite"),
        (lambda: masks.beyond("a", torch.ones(3), -1.0), "quality -1.0 of a is no threshold"),
        (lambda: masks.weights(nn.ReLU()), "no weights to prune"),
    ):
        with pytest.raises(UserError, match=sentence):
            call()
