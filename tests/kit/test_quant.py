"""Straight-through estimators against written rules and numpy; latent weights in training, after a kill, and baked."""

import copy

import numpy as np
import pytest
import torch
from oracle import mutant, toy_task
from scipy.stats import binomtest
from torch import nn
from torch.nn.utils import parametrize

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.task import Journal, Task, seed_everything
from methods.kit import quant
from methods.kit.coding import Coding, attach, codings
from repro import architecture, codec
from repro.interchange import session, to_onnx

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Scaled(nn.Module):
    """sign(w) * mean|w| of every filter: two values each."""

    def forward(self, latent):
        sizes = latent.detach().abs().flatten(1).mean(1)
        return quant.through(latent, quant.signs(latent) * sizes.view(-1, *[1] * (latent.dim() - 1)))


class Coin(nn.Module):
    """Random signs in training, signs otherwise."""

    def forward(self, latent):
        return quant.through(latent, quant.random_signs(latent) if self.training else quant.signs(latent))


def weights_of(net):
    return {name: m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


# -- estimators ------------------------------------------------------------------------------------------------------


def follows_the_hard_tanh(module):
    """Oracle: numpy's signs with sign(0) = 1, and a gradient that passes where |x| <= 1 and nowhere else."""
    x = np.array([-3, -1.0001, -1, -0.4, -0.0, 0.0, 0.4, 1, 1.0001, 3], np.float32)
    latent = torch.tensor(x, requires_grad=True)
    signs = module.sign(latent)
    if not torch.equal(signs, module.signs(latent)):
        return False
    (signs * torch.arange(1.0, 11)).sum().backward()
    wanted = np.where(np.abs(x) <= 1, np.arange(1, 11), 0)
    return signs.tolist() == [1.0 if v >= 0 else -1.0 for v in x] and np.array_equal(latent.grad.numpy(), wanted)


def test_sign_has_the_gradient_of_the_hard_tanh():
    assert follows_the_hard_tanh(quant)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x.abs().le_(1)", "x.abs().lt_(1)"),
        ("x.abs().le_(1).mul_(grad), None", "grad, None"),
        ("x.clone().ge_(0)", "x.clone().gt_(0)"),
        ("torch.where(x >= 0, 1.0, -1.0)", "torch.where(x > 0, 1.0, -1.0)"),
    ],
    ids=["open interval", "no saturation", "sign of zero", "sign of zero in eval mode"],
)
def test_the_oracle_catches_another_estimator(old, new):
    assert not follows_the_hard_tanh(mutant(quant, old, new))


def is_as_likely_as_said(module, dtype=torch.float32):
    """Oracle: an exact binomial test of clip((x + 1) / 2, 0, 1) for each x; at 0 and 1 it is certain."""
    torch.manual_seed(0)
    for x in (-2.0, -1.0, -0.75, -0.25, 0.0, 0.5, 0.875, 1.0, 2.0):
        found = module.random_signs(torch.full((4000,), x, dtype=dtype))
        if found.dtype != dtype or not (found.abs() == 1).all():
            return False
        if binomtest(int((found > 0).sum()), 4000, min(max((x + 1) / 2, 0.0), 1.0)).pvalue < 1e-4:
            return False
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_signs_are_as_likely_as_the_hard_sigmoid_says(dtype):
    assert is_as_likely_as_said(quant, dtype)


@pytest.mark.parametrize("new", ["x.detach().float().sigmoid()", "(x.detach().float() + 1)"], ids=["soft", "no half"])
def test_the_oracle_catches_another_probability(new):
    assert not is_as_likely_as_said(mutant(quant, "(x.detach().float() + 1) / 2", new))


def hands_on(module):
    """Oracle: forward the very values, two in a filter; backward the very gradient."""
    torch.manual_seed(0)
    latent = torch.randn(4, 50, requires_grad=True)
    values = torch.where(latent >= 0, 0.37, -0.37)
    out, grad = module.through(latent, values), torch.randn(4, 50)
    out.backward(grad)
    return len(out.unique()) == 2 and torch.equal(out, values) and torch.equal(latent.grad, grad)


def test_through_hands_on_values_and_gradient_exactly():
    assert hands_on(quant)
    leaky = mutant(quant, "return _Through.apply(x, values.detach())", "return x + (values - x).detach()")
    assert not hands_on(leaky)


def test_sign_activation_trains_exports_and_is_described():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), quant.SignActivation(stochastic=True), nn.Flatten(), nn.Linear(784, 4))
    torch.manual_seed(0)
    assert not torch.equal(net[:2](IMAGES), net[:2](IMAGES))
    net(IMAGES).square().sum().backward()
    assert net[0].weight.grad.any()
    net.eval()
    assert torch.equal(net[:2](IMAGES), torch.where(net[0](IMAGES) >= 0, 1.0, -1.0))
    assert torch.allclose(session(to_onnx(net, IMAGES))(IMAGES), net(IMAGES), atol=1e-4)
    root = architecture.choose_root(net, base.load("tiny_plain_synthetic"), 4)
    assert architecture.build(architecture.describe(net, root))[1].stochastic


# -- latent weights --------------------------------------------------------------------------------------------------


def test_layers_in_order_first_and_last_on_demand():
    net = TinyPlain()
    every = ["features.0", "features.4", "classifier.1", "classifier.3"]
    assert list(quant.layers(net)) == every
    assert list(quant.layers(net, skip_first=True)) == every[1:]
    assert list(quant.layers(net, skip_last=True)) == every[:-1]
    with pytest.raises(UserError, match="No layer is left to quantise"):
        quant.layers(nn.Sequential(nn.Linear(2, 2)), skip_last=True)
    with pytest.raises(UserError, match=r"call quant.install first"):
        quant.bake(net, Coding("binary"))


def test_passes_see_quantised_weights_and_updates_move_latent_ones():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3, bias=False))
    start = net[0].weight.detach().clone()
    quant.install(quant.layers(net), Scaled())
    x = torch.randn(5, 6)
    values = start.sign() * start.abs().mean(1, keepdim=True)
    out = net(x)
    assert torch.allclose(out, x @ values.T)
    out.sum().backward()
    torch.optim.SGD(net.parameters(), 0.5).step()
    (latent,) = quant.latents(net).values()
    assert torch.allclose(latent, start - 0.5 * x.sum(0))
    quant.clip(net, 0.25)(0)
    assert torch.allclose(latent, (start - 0.5 * x.sum(0)).clamp(-0.25, 0.25))


@pytest.mark.parametrize("name", ["tiny_plain_synthetic", "tiny_resnet_synthetic"])
def test_a_baked_net_is_plain_and_its_file_is_exact(name):
    torch.manual_seed(0)
    baseline = base.load(name)
    net = baseline.net(4)
    before, order = copy.deepcopy(net), list(net.state_dict())
    quant.install(quant.layers(net, skip_first=True), Scaled())
    net.eval()
    with torch.no_grad():
        logits = net(IMAGES)
        quant.bake(net, Coding("binary"))
        assert torch.equal(net(IMAGES), logits)
    for name, module in net.named_modules():
        assert type(module) is type(before.get_submodule(name))
        assert not parametrize.is_parametrized(module) and not module._forward_pre_hooks
    assert list(net.state_dict()) == order and all(p.requires_grad for p in net.parameters())
    names = list(weights_of(net))
    assert set(codings(net)) == {f"{name}.weight" for name in names[1:]}
    assert torch.equal(weights_of(net)[names[0]], weights_of(before)[names[0]])
    for name in names[1:]:
        for kernel in weights_of(net)[name].detach().flatten(1):
            assert len(kernel.unique()) == 2 and len(kernel.abs().unique()) == 1
    state, _ = codec.unpack(codec.pack(net).data)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert architecture.describe(net, architecture.choose_root(net, baseline, 4))["changes"] == []


class Trits(nn.Module):
    """-1, 0 and 1, with the zeros' sign left on them."""

    def forward(self, latent):
        return quant.through(latent, latent.sign() * (latent.abs() > 0.1))


def bakes_positive_zeros(module):
    """Oracle: numpy finds zeros in every layer, and no sign bit on any."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 4), nn.Linear(4, 4))
    attach(net[1], "weight", Coding("ternary", per_channel=False))
    module.install(module.layers(net), Trits())
    module.bake(net, Coding("ternary"))
    zeros = [w[w == 0] for w in (m.weight.detach().numpy() for m in net)]
    assert [c.per_channel for c in codings(net).values()] == [True, False]  # what was declared before stays
    return all(len(z) and not np.signbit(z).any() for z in zeros)


def test_baked_zeros_are_positive():
    assert bakes_positive_zeros(quant)
    assert not bakes_positive_zeros(mutant(quant, "getattr(module, WEIGHT) + 0.0", "getattr(module, WEIGHT).clone()"))


def test_restore_leaves_the_latent_weights():
    net = TinyPlain()
    before = copy.deepcopy(net.state_dict())
    quant.install(quant.layers(net), Scaled())
    quant.restore(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert list(net.state_dict()) == list(before) and not codings(net)


def test_low_precision_passes_see_two_values_too():
    net = nn.Sequential(nn.Linear(64, 4, bias=False))
    quant.install(quant.layers(net), Scaled())
    with torch.autocast("cpu", torch.bfloat16):
        multiplied = net(torch.eye(64)).T
    assert multiplied.dtype == torch.bfloat16 and net[0].weight.dtype == torch.float32
    assert all(len(row.unique()) == 2 and len(row.abs().unique()) == 1 for row in multiplied)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kill_at", [1, 3])
def test_a_killed_training_ends_at_the_same_latent_weights(tmp_path, monkeypatch, kill_at):
    monkeypatch.setattr(Journal, "SECONDS", 0.0)
    data = synthetic(DataOptions(), train=64, test=4)

    def trained(journal=None, until=None):
        seed_everything(3)
        net = TinyPlain()
        quant.install(quant.layers(net), Coin())
        keep = quant.clip(net)

        def after_step(step):
            if step == until:
                raise Killed
            keep(step)

        task = Task(base.load("tiny_plain_synthetic"), data, budget="smoke", journal=journal)
        task.train(net, 1, after_step=after_step)
        return {name: weight.detach() for name, weight in quant.latents(net).items()}

    whole = trained()
    with pytest.raises(Killed):
        trained(tmp_path, kill_at)
    resumed = trained(tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# -- how it trains ---------------------------------------------------------------------------------------------------


def scales_by_fans(module):
    """Oracle: rates by the formula, fans counted with numpy from the shapes; each parameter in one group."""
    net = TinyPlain()
    shapes = {name: tuple(w.shape) for name, w in weights_of(net).items()}
    module.install(module.layers(net), Scaled())
    latent = {name: net.get_submodule(name).parametrizations.weight.original for name in shapes}
    groups = module.groups(net, net.parameters(), 0.01, 2.0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    if sum(len(g["params"]) for g in groups) != len(rates) or len(rates) != len(list(net.parameters())):
        return False
    for name, (out, into, *kernel) in shapes.items():
        taps = int(np.prod(kernel))
        if not np.isclose(rates.pop(id(latent[name])), 0.01 * (taps * out + taps * into) / 1.5):
            return False
    return set(rates.values()) == {0.01}


def test_rates_are_scaled_by_fans():
    assert scales_by_fans(quant)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr / glorot(weight) ** power", "lr * glorot(weight) ** power"),
        ("lr / glorot(weight) ** power", "lr / glorot(weight)"),
        ("taps = weight[0, 0].numel()", "taps = 1"),
    ],
    ids=["multiplied", "no power", "without the taps"],
)
def test_the_oracle_catches_other_rates(old, new):
    assert not scales_by_fans(mutant(quant, old, new))


def test_outputs_are_normalised_behind_a_linear_layer_only():
    net = tiny_resnet()
    quant.normalise_outputs(net)
    assert [type(m) for m in net.linear] == [nn.Linear, nn.BatchNorm1d]
    root = architecture.choose_root(net, base.load("tiny_resnet_synthetic"), 4)
    assert architecture.describe(net, root)
    plain = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten())
    quant.normalise_outputs(plain)
    assert [type(m) for m in plain] == [nn.Conv2d, nn.Flatten]


def is_the_square_hinge(module):
    """Oracle: the loss in float64 numpy, one term at a time."""
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.randint(5, (6,))
    terms = [max(0.0, 1 - (1 if labels[i] == j else -1) * float(logits[i, j])) ** 2 for i in range(6) for j in range(5)]
    return np.isclose(float(module.square_hinge(logits, labels)), np.mean(terms), rtol=1e-5)


def test_square_hinge():
    assert is_the_square_hinge(quant)
    assert not is_the_square_hinge(mutant(quant, ".clamp(min=0).square().mean()", ".clamp(min=0).mean()"))


def test_a_task_trains_a_quantised_net():
    net, task = tiny_resnet(), toy_task(budget="smoke")
    quant.install(quant.layers(net), Scaled())
    before = {name: w.detach().clone() for name, w in quant.latents(net).items()}
    task.train(net, 1, after_step=quant.clip(net))
    assert all(not torch.equal(w, before[name]) for name, w in quant.latents(net).items())
