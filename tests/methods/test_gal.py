"""GAL: FISTA, the game and the training against written-out steps, and nets without structures against masked ones."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from oracle import mutant, size_of
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.lenet import lenet5
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from baselines.task import Task
from methods.kit import gates
from methods.structured_sparsity import gal
from methods.structured_sparsity.gal import GAL
from repro import architecture

CIFAR, TINY = (3, 32, 32), (3, 16, 16)


def task_for(shape=TINY, budget="zero", **options):
    """A task on toy data whose example has the given (C, H, W); at budget zero nothing is trained."""
    task = Task(base.load("tiny_plain_synthetic"), synthetic(DataOptions(), train=64, test=4), budget=budget, **options)
    task.example = torch.zeros(1, *shape)
    return task


def used(net):
    """The net with BN statistics and shifts as after a training."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.2, 0.3)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, module.in_features**-0.5)
    return net.eval()


# -- FISTA -----------------------------------------------------------------------------------------------------------


def problem(rows=40, columns=25):
    """(A, b) of mean squares / 2 with badly conditioned columns, whose best answer has zeros."""
    g = np.random.default_rng(0)
    a = g.normal(size=(rows, columns)) + g.normal(size=(rows, 1))
    truth = np.where(np.arange(columns) % 3 == 0, g.uniform(0.5, 2, columns), -0.2)
    return a, a @ truth + 0.1 * g.normal(size=rows)


def objective(a, b, m, penalty):
    return ((a @ m - b) ** 2).mean() / 2 + penalty * np.abs(m).sum()


def ours(module, a, b, lr, penalty, steps, start):
    """The masks after each step of the method's FISTA on the problem."""
    matrix, right = torch.from_numpy(a), torch.from_numpy(b)
    mask, path = nn.Parameter(torch.from_numpy(start.copy())), []
    fista = module.FISTA([mask], lr, penalty)
    for _ in range(steps):
        fista.extrapolate()
        fista.zero_grad()
        ((matrix @ mask - right).square().mean() / 2).backward()
        fista.step()
        fista.extrapolate()
        fista.settle()
        path.append(mask.detach().numpy().copy())
    return path


def theirs(a, b, lr, penalty, steps, start, momentum=True):
    """Beck and Teboulle's iterations (SIAM J. Imaging Sciences 2009, Eqs. 4.1 to 4.3) over m >= 0; or plain ISTA."""
    x, y, t, path = start.copy(), start.copy(), 1.0, []
    for _ in range(steps):
        z = y - lr * a.T @ (a @ y - b) / len(b)
        new = np.maximum(np.sign(z) * np.maximum(np.abs(z) - lr * penalty, 0), 0)
        t_next = (1 + (1 + 4 * t * t) ** 0.5) / 2
        y = new + (t - 1) / t_next * (new - x) if momentum else new
        x, t = new, t_next
        path.append(x)
    return path


def is_fista(module):
    a, b = problem()
    start = np.random.default_rng(1).normal(size=a.shape[1])
    lr = 1 / np.linalg.eigvalsh(a.T @ a / len(b))[-1]
    pairs = zip(ours(module, a, b, lr, 0.05, 60, start), theirs(a, b, lr, 0.05, 60, start), strict=True)
    return all(np.allclose(one, two, rtol=1e-9, atol=1e-10) for one, two in pairs)


def test_steps_are_those_of_fista():
    assert is_fista(gates)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1 + 4 * alpha**2", "1 + 2 * alpha**2"),
        ('(group["alpha"] - 1)', 'group["alpha"]'),
        ('/ following(group["alpha"])', '/ (1 + group["alpha"])'),
        ('"alpha": 0.0}', '"alpha": 1.0}'),
        ('group["lr"] * group["penalty"])', 'group["penalty"])'),
        ('state["mask"] - last', 'last - state["mask"]'),
        ('mask - group["lr"]', 'mask + group["lr"]'),
        (".clamp_min(0)", ""),
    ],
)
def test_the_written_out_steps_catch_a_changed_line(old, new):
    assert not is_fista(mutant(gates, old, new))


def gaps(module, steps=200):
    """How far FISTA and ISTA are above the least value (scikit-learn's); and the bound of FISTA's Theorem 4.4."""
    from sklearn.linear_model import Lasso

    (a, b), penalty = problem(), 0.05
    best = Lasso(penalty, positive=True, fit_intercept=False, tol=1e-13, max_iter=10**6).fit(a, b).coef_
    assert 3 < (best == 0).sum() < 23
    lipschitz, start = np.linalg.eigvalsh(a.T @ a / len(b))[-1], np.ones(a.shape[1])
    fast = ours(module, a, b, 1 / lipschitz, penalty, steps, start)
    slow = theirs(a, b, 1 / lipschitz, penalty, steps, start, momentum=False)
    least = objective(a, b, best, penalty)
    values = [np.array([objective(a, b, m, penalty) for m in path]) - least for path in (fast, slow)]
    return *values, 2 * lipschitz * ((start - best) ** 2).sum() / np.arange(2, steps + 2) ** 2


def test_fista_reaches_the_lasso_and_sooner_than_ista():
    fast, slow, bound = gaps(gates)
    assert (fast <= bound).all() and -1e-9 < fast[-1] < 1e-6 and slow[-1] > 50 * abs(fast[-1])
    fast, slow, _ = gaps(mutant(gates, "push * state", "0 * state"))
    assert np.allclose(fast, slow, rtol=1e-6) and fast[-1] > 1e-6


def is_the_best_mask(module):
    """Whether no m >= 0 on a fine grid has a lower (m - v)^2 / 2 + t * m than ``shrink(v, t)`` has."""
    grid = np.arange(0, 3, 1e-3)
    for v in np.linspace(-2, 2, 41):
        for t in (0.0, 0.1, 0.7):
            m = float(module.shrink(torch.tensor([v]), t))
            if m < 0 or (m - v) ** 2 / 2 + t * m > ((grid - v) ** 2 / 2 + t * grid).min() + 1e-9:
                return False
    return True


def test_shrinking_by_brute_force():
    assert is_the_best_mask(gates)
    for old, new in (("(values - threshold)", "(values.abs() - threshold)"), (".clamp_min(0)", "")):
        assert not is_the_best_mask(mutant(gates, old, new))


# -- the game --------------------------------------------------------------------------------------------------------


def numpy_losses(critic, real, fake, mu):
    """What the discriminator and the student minimise, in float64."""

    def sigmoid(x):
        for layer in critic:
            x = x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        return 1 / (1 + np.exp(-x))

    told, doubted = sigmoid(real), sigmoid(fake)
    tells = -np.log(told).mean() - np.log(1 - doubted).mean() - np.log(doubted).mean()
    return tells, mu * ((real - fake) ** 2).mean() - np.log(doubted).mean()


def plays_the_game(module):
    torch.manual_seed(0)
    critic = module.discriminator(10)
    shapes = [tuple(layer.weight.shape) for layer in critic]
    rightly = shapes == [(128, 10), (256, 128), (128, 256), (1, 128)]
    rightly &= all(0.009 < layer.weight.std() < 0.011 and not layer.bias.any() for layer in critic)
    for layer in critic:
        nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
        nn.init.normal_(layer.bias)
    real, fake = 2 * torch.randn(6, 10), 2 * torch.randn(6, 10)
    found = [module.critic_loss(critic, real, fake).item(), module.student_loss(critic, real, fake, 0.3).item()]
    return bool(rightly) and found == pytest.approx(numpy_losses(critic, real.numpy(), fake.numpy(), 0.3), rel=1e-5)


def test_losses_are_those_of_numpy():
    assert plays_the_game(gal)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bce(told, yes)", "bce(told, no)"),
        ("bce(doubted, no) + bce(doubted, yes)", "bce(doubted, no)"),
        ("fake.new_ones(len(fake), 1)", "fake.new_zeros(len(fake), 1)"),
        ("mu * F.mse_loss(fake, real) +", "mu * F.l1_loss(fake, real) +"),
        (
            "told, doubted = critic(real), critic(fake)",
            "told, doubted = critic(real).sigmoid(), critic(fake).sigmoid()",
        ),
        ("128, 256, 128, 1)", "128, 128, 128, 1)"),
        ("nn.init.normal_(layer.weight, 0, 0.01)", "pass"),
    ],
)
def test_numpy_catches_another_loss(old, new):
    assert not plays_the_game(mutant(gal, old, new))


# -- the training ----------------------------------------------------------------------------------------------------

RATES = (1.0, 0.7, 0.5, 0.4, 0.2)


def masked_plain(net, x, m):
    """TinyPlain with a mask behind each of its three hidden activations."""
    x = net.features[:4](x) * m[0].view(-1, 1, 1)
    x = net.features[4:](x) * m[1].view(-1, 1, 1)
    return net.classifier[3](net.classifier[:3](x) * m[2])


def written_out(net, critic, batches, every, sparse, mu, lr, mask_lr):
    """Five rounds of the alternating updates on paper: discriminator, weights, and masks every so often."""
    dense, student = copy.deepcopy(net).eval(), copy.deepcopy(net).train()
    m = [torch.full((n,), 0.8) for n in (8, 12, 24)]
    before, alpha = m, None
    players = {"critic": list(critic.parameters()), "student": list(student.parameters())}
    speed = {key: [torch.zeros_like(p) for p in params] for key, params in players.items()}

    def descend(key, loss, inputs=()):
        grads = torch.autograd.grad(loss, [*players[key], *inputs])
        with torch.no_grad():
            for p, v, g in zip(players[key], speed[key], grads[: len(speed[key])], strict=True):
                v.mul_(0.9).add_(g + 2e-4 * p)
                p.sub_(lr * rate * v)
        return grads[len(speed[key]) :]

    for number, (x, rate) in enumerate(zip(batches, RATES, strict=True), 1):
        turn = number % every == 0
        following = (1 + (1 + 4 * alpha**2) ** 0.5) / 2 if alpha else 1.0
        push = (alpha - 1) / following if turn and alpha else 0.0
        y = [(one + push * (one - two)).requires_grad_() for one, two in zip(m, before, strict=True)]
        fake, real = masked_plain(student, x, y), dense(x).detach()
        told, doubted = critic(real), critic(fake.detach())
        descend("critic", (torch.log1p(torch.exp(-told)) + torch.log1p(torch.exp(doubted))
                           + torch.log1p(torch.exp(-doubted))).mean())  # fmt: skip
        loss = mu * ((fake - real) ** 2).mean() + torch.log1p(torch.exp(-critic(fake))).mean()
        grads = descend("student", loss, y)
        if turn:
            moved = [a.detach() - mask_lr * rate * (g + sparse) for a, g in zip(y, grads, strict=True)]
            before, m, alpha = m, [v.clamp(min=0) for v in moved], following
    return masked_plain(student.eval(), batches[0], m).detach()


def trained(module, net, critic, batches, every, **fields):
    """The outputs of the method's own net after the same rounds; labels are missing. Nothing reaches zero."""
    task, asked = task_for(), []
    task.steps = lambda epochs, of: every * 100

    def train(model, epochs, of, **options):
        asked.append((epochs, of, sorted(options)))
        if "step" in options:
            optimizer = options["optimizer"](list(model.train().parameters()))
            optimizer.param_groups[0]["initial_lr"] = optimizer.param_groups[0]["lr"]
            for number, (x, rate) in enumerate(zip(batches, RATES, strict=True)):
                optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["initial_lr"] * rate
                options["step"](model, x, None, optimizer)
                options["after_step"](number)
        return model.eval()

    task.train = train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "discriminator", lambda classes: copy.deepcopy(critic))
        out = module.GAL(mask_mean=0.8, mask_std=0.0, epochs=3.0, finetune_epochs=2.0, **fields).compress(net, task)
    assert asked[1] == (2.0, 5.0, ["lr"]) and asked[0][:2] == (3.0, 5.0)
    assert size_of(out, TINY) == size_of(TinyPlain(), TINY)
    return out(batches[0]).detach()


def trains_as_written(module, every):
    torch.manual_seed(3)
    net = used(TinyPlain())
    critic = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 1))
    batches = list(torch.randn(len(RATES), 16, *TINY))
    fields = {"sparse": 0.3, "mu": 0.5, "lr": 0.02, "mask_lr": 0.15}
    right = written_out(net, copy.deepcopy(critic), batches, every, **fields)
    found = trained(module, copy.deepcopy(net), critic, batches, every, **fields)
    return (right - found).abs().max() < 1e-4 * right.abs().max()


@pytest.mark.parametrize("every", [1, 2])
def test_training_is_as_written_out(every):
    assert trains_as_written(gal, every)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fista.extrapolate()", "pass"),
        ("(number + 2) % every", "(number + 1) % every"),
        ("self.mask_lr * rate", "self.mask_lr"),
        ("self.lr * rate, ", "self.lr, "),
        ("fista.zero_grad()", "pass"),
        ("if id(p) not in own]", "]"),
        ("        fista.settle()", "        fista.extrapolate()"),
        ("copy.deepcopy(model).eval()", "copy.deepcopy(model).train()"),
        ("momentum=0.9", "momentum=0.8"),
        ("descend(critic_loss(critic, real, fake.detach()), tell)", "pass"),
    ],
)
def test_the_written_out_training_catches_a_changed_line(old, new):
    changed = mutant(gal, old, new)
    assert not (trains_as_written(changed, 1) and trains_as_written(changed, 2))


def test_gradients_reach_masks_and_not_the_dense_net():
    torch.manual_seed(0)
    model, critic = used(tiny_resnet()), gal.discriminator(4)
    dense = copy.deepcopy(model).requires_grad_(False)
    before = copy.deepcopy(dense.state_dict())
    ends = gates.branches(model)
    masks = gates.install(model, gates.channels(model, torch.zeros(1, *TINY)) | ends)
    assert {name: len(mask) for name, mask in masks.items()} == {
        "layer1.0.conv1": 8, "layer2.0.conv1": 12, "layer3.0.conv1": 16, "layer1.0": 1, "layer2.0": 1, "layer3.0": 1,
    }  # fmt: skip
    x = torch.randn(4, *TINY)
    for mask in masks.values():
        mask.data[: len(mask) // 2] = 0  # a channel that is off can come back: its mask still has a gradient
    gal.student_loss(critic, dense(x), model.train()(x), 1.0).backward()
    assert all((mask.grad != 0).all() for mask in masks.values())
    assert all(p.grad is None for p in dense.parameters())
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def goes_on(module, folder, monkeypatch):
    """Whether a training that is killed in its third epoch and started again ends at the same network, bit for bit."""
    monkeypatch.setattr("baselines.task.Journal.SECONDS", -1.0)
    torch.manual_seed(0)
    dense, whole = used(tiny_resnet()), module.student_loss
    fields = {"epochs": 4.0, "finetune_epochs": 1.0, "updates": 4, "mask_lr": 0.1, "mask_mean": 0.7, "mask_std": 0.3}

    def run(journal=None, stop=None):
        count = []

        def counted(*args):
            count.append(1)
            if len(count) == stop:
                raise KeyboardInterrupt
            return whole(*args)

        torch.manual_seed(1)
        monkeypatch.setattr(module, "student_loss", counted)
        task = task_for(budget="paper", journal=journal)
        return module.GAL(**fields).compress(copy.deepcopy(dense), task).state_dict(), len(count)

    want, steps = run()
    assert steps == 8
    with pytest.raises(KeyboardInterrupt):
        run(folder, stop=6)
    got, steps = run(folder)
    assert steps == 4  # two epochs of two steps were kept
    return want.keys() == got.keys() and all(torch.equal(want[key], got[key]) for key in want)


def test_an_unfinished_training_goes_on_where_it_was(tmp_path, monkeypatch):
    assert goes_on(gal, tmp_path, monkeypatch)


@pytest.mark.parametrize("kept", ["critic, tell", "critic, fista", "tell, fista"])
def test_all_that_the_step_remembers_is_kept(kept, tmp_path, monkeypatch):
    assert not goes_on(mutant(gal, "state=[critic, tell, fista]", f"state=[{kept}]"), tmp_path, monkeypatch)


# -- folding and removal ---------------------------------------------------------------------------------------------


def with_masks(cls, given):
    """The method with the learning replaced by masks that are given; what it does with them is its own."""

    class Given(cls):
        def _learn(self, model, dense, masks, task):
            self.names = list(masks)
            for name, mask in masks.items():
                mask.data.copy_(given(name, len(mask)))

    return Given


def sparse_masks(seed=0):
    """A function of name and size: about half of the masks 0, never all of a layer; the first block stays."""
    generator, kept = torch.Generator().manual_seed(seed), {}

    def given(name, size):
        if name not in kept:
            value = (torch.rand(size, generator=generator) + 0.3) * (torch.rand(size, generator=generator) > 0.5)
            if size > 1 or name == "layer1.0":
                value[-1] = 1.3
            kept[name] = value
        return kept[name]

    return given, kept


def spots(net):
    """Name of a structure -> (module, "in" or "out") where its mask acts, written down net by net."""
    if isinstance(net, TinyPlain):
        return {"features.0": (net.features[4], "in"), "features.4": (net.features[7], "out"),
                "classifier.1": (net.classifier[3], "in")}  # fmt: skip
    if isinstance(net, VGG):
        found = {n: (net.features[int(n.split(".")[1]) + 2], "out") for n in names_of(net, nn.Conv2d)}
        return found | {"classifier.0": (net.classifier[3], "in")}
    if isinstance(net, nn.Sequential):
        return {"conv1": (net.conv2, "in"), "conv2": (net.pool2, "out"), "ip1": (net.ip2, "in")}
    found = {} if isinstance(net, ResNetCifar) else {"conv1": (net.maxpool, "out")}
    for name, block in net.named_modules():
        if hasattr(block, "conv2") and "." in name:
            found[f"{name}.conv1"] = (block.conv2, "in")
            found |= {f"{name}.conv2": (block.conv3, "in")} if hasattr(block, "conv3") else {}
            found[name] = (block.bn3 if hasattr(block, "bn3") else block.bn2, "out")
    return found


def names_of(net, kind):
    return [name for name, module in net.named_modules() if isinstance(module, kind)]


@torch.no_grad()
def masked_outputs(net, masks, x):
    """Logits of the net whose structures are multiplied by their masks."""
    handles = []
    for name, (module, where) in spots(net).items():
        value = masks[name]

        def shaped(t, value=value):
            return t * (value if t.dim() == 2 else value.view(-1, 1, 1))

        if where == "in":
            handles.append(module.register_forward_pre_hook(lambda m, args, shaped=shaped: shaped(args[0])))
        else:
            handles.append(module.register_forward_hook(lambda m, args, out, shaped=shaped: shaped(out)))
    result = net(x)
    for handle in handles:
        handle.remove()
    return result


NETS = {
    "plain": (TinyPlain, TINY),
    "resnet": (tiny_resnet, TINY),
    "vgg": (lambda: VGG(width=0.125), CIFAR),
    "lenet": (lenet5, (1, 28, 28)),
    "bottlenecks": (
        lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 2, 2, 1], width_per_group=16),
        (3, 64, 64),
    ),
}


@torch.no_grad()
def gap(cls, name, seed=0):
    """Largest difference in logits of the net that lost its structures and the masked one; and the two sizes."""
    torch.manual_seed(seed)
    make, shape = NETS[name]
    dense, x = used(make()), torch.randn(3, *shape)
    given, masks = sparse_masks(seed)
    task = task_for(shape)
    out = with_masks(cls, given)().compress(copy.deepcopy(dense), task)
    assert set(masks) == set(spots(dense))
    right = masked_outputs(dense, masks, x)
    return (out(x) - right).abs().max().item() / right.abs().max().item(), out, task, masks


@pytest.mark.parametrize("name", NETS)
def test_the_net_without_the_structures_is_the_masked_one(name):
    far, out, task, masks = gap(GAL, name)
    assert far < 1e-5
    assert not any(isinstance(m, gates.Gated) or m._forward_hooks or m._forward_pre_hooks for m in out.modules())
    blocks = [n for n in masks if n.startswith("layer") and n.count(".") == 1]
    gone = [n for n in blocks if masks[n] == 0]
    left = {n: int((v > 0).sum()) for n, v in masks.items() if n not in blocks and not n.startswith(tuple(gone))}
    assert task.details == {"clamped": [], "kept": left, "removed_blocks": gone}
    assert bool(gone) == (name in ("resnet", "bottlenecks"))
    widths = {n: len(out.get_submodule(n).weight) for n in left}
    assert widths == left


@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("plain", gates, "repeat_interleave(self.inputs)", "repeat(self.inputs)"),
        ("resnet", gates, "self.inner.bias.mul_(self.gates)", "pass"),
        ("plain", gates, "weight.mul_(self.scale(", "weight.add_(self.scale("),
        ("vgg", gates, "keep[name] &= score > 0", "keep[name] &= score > 0.5"),
        ("bottlenecks", gates, "nn.Sequential(shortcut, nn.ReLU())", "shortcut"),
        ("resnet", gates, "norms[-1]", "norms[0]"),
        ("resnet", gal, "and not value > 0]", "and value > 0]"),
        ("plain", gal, "if not (values[name] > 0).any():", "if True:"),
    ],
)
def test_the_masked_net_catches_a_changed_line(monkeypatch, name, file, old, new):
    changed = mutant(file, old, new)
    method = gal if file is gates else changed
    monkeypatch.setattr(method, "gates", changed if file is gates else gates)
    assert gap(method.GAL, name)[0] > 1e-3


@pytest.mark.parametrize(
    ("baseline", "make", "shape"),
    [("resnet56_cifar10", lambda: ResNetCifar(56), CIFAR), ("resnet50_imagenet", torchvision.models.resnet50, CIFAR)],
)
def test_a_net_without_some_blocks_can_be_written_down(baseline, make, shape):
    off = ("layer2.0", "layer3.2") if "56" in baseline else ("layer2.0", "layer3.2", "layer4.0")
    method = with_masks(GAL, lambda name, size: torch.full((size,), float(name not in off)))(channels=False)
    out = method.compress(make(), task_for(shape))
    assert isinstance(out.layer3[2], nn.Identity) and isinstance(out.layer2[0], nn.Sequential)
    classes = 10 if "56" in baseline else 1000
    description = architecture.describe(out, {"baseline": baseline, "net": "net", "classes": classes})
    twin = architecture.build(description)
    twin.load_state_dict(out.state_dict())
    x = torch.randn(2, *shape)
    assert torch.equal(twin.eval()(x), out(x))


@pytest.mark.parametrize(("recipe", "blocks"), [("resnet56_cifar10", 10), ("resnet56_cifar10/GAL-0.8", 16)])
def test_whole_blocks_explain_the_printed_macs(recipe, blocks):
    off = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(1, 9)][:blocks]
    method = with_masks(GAL, lambda name, size: torch.full((size,), float(name not in off)))(**GAL.recipes[recipe])
    macs = size_of(method.compress(ResNetCifar(56), task_for(CIFAR)), CIFAR)[1]
    row = next(row for row in GAL.reported if row.recipe == recipe)
    assert f"{macs / 1e6:.2f}" == f"{row.macs / 1e6:.2f}"
    assert len(method.names) == 27


# -- limits and dials ------------------------------------------------------------------------------------------------


def ramp(name, size):
    """Masks between 0 and 1, of other sizes in each layer; every fifth is 0."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    value = torch.rand(size, generator=generator) ** (1 + size % 3)
    return torch.where(torch.arange(size) % 5 == 4, 0.0, value)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.95])
def test_macs_budget_takes_the_smallest_masks_of_the_net(share):
    net, task = used(VGG(width=0.125)), task_for(CIFAR)
    masks = {name: ramp(name, len(net.get_submodule(name).weight)) for name in spots(net)}
    whole = size_of(net, CIFAR)[1]
    out = with_masks(GAL, lambda name, size: masks[name])(macs_reduction=share).compress(net, task)
    left = size_of(out, CIFAR)[1]
    assert left <= (1 - share) * whole and (left > 0.95 * (1 - share) * whole or share < 0.5)
    # one threshold for the net: what stays in any layer is larger than what went from another, but for clamped layers
    kept, clamped = task.details["kept"], task.details["clamped"]
    ordered = {name: mask.sort(descending=True).values for name, mask in masks.items() if name not in clamped}
    lowest = min(float(mask[kept[name] - 1]) for name, mask in ordered.items())
    assert lowest >= max(float(mask[kept[name]]) for name, mask in ordered.items() if kept[name] < len(mask))
    assert lowest > 0 and all(kept[name] == 1 for name in clamped) and (share < 0.9 or clamped)
    assert out(torch.randn(2, *CIFAR)).isfinite().all()


def test_masks_at_zero_go_even_where_the_macs_would_allow_them():
    some = with_masks(GAL, ramp)(macs_reduction=0.01).compress(used(TinyPlain()), task_for())
    none = with_masks(GAL, ramp)().compress(used(TinyPlain()), task_for())
    assert size_of(some, TINY) == size_of(none, TINY) < size_of(TinyPlain(), TINY)


def test_a_removed_block_counts_towards_the_macs():
    def given(name, size):
        return torch.zeros(1) if name == "layer2.0" else torch.linspace(0.1, 1, size)

    whole = size_of(tiny_resnet(), TINY)[1]
    for share in (0.1, 0.6):
        task = task_for()
        out = with_masks(GAL, given)(macs_reduction=share).compress(used(tiny_resnet()), task)
        assert task.details["removed_blocks"] == ["layer2.0"] and size_of(out, TINY)[1] <= (1 - share) * whole
        assert set(task.details["kept"]) == {"layer1.0.conv1", "layer3.0.conv1"}
        assert (sum(task.details["kept"].values()) == 24) == (share == 0.1)


def test_layers_without_a_positive_mask_keep_a_filter_that_works():
    task, net = task_for(), used(TinyPlain())
    out = with_masks(GAL, lambda name, size: torch.zeros(size))().compress(net, task)
    assert task.details["clamped"] == ["features.0", "features.4", "classifier.1"]
    assert list(task.details["kept"].values()) == [1, 1, 1]
    assert out.features[0].out_channels == out.classifier[1].out_features == 1
    assert all(parameter.any() for parameter in (out.features[4].weight, out.classifier[1].weight))


def test_nothing_but_shortcuts_may_be_left():
    task = task_for()
    out = with_masks(GAL, lambda name, size: torch.zeros(size))().compress(used(tiny_resnet()), task)
    assert task.details == {"clamped": [], "kept": {}, "removed_blocks": ["layer1.0", "layer2.0", "layer3.0"]}
    assert names_of(out, nn.Conv2d) == ["conv1"] and out(torch.randn(2, *TINY)).isfinite().all()


@pytest.mark.parametrize("fields", [{"sparse": 1e4}, {"macs_reduction": 0.8}, {"mask_mean": -9.0}], ids=str)
@pytest.mark.parametrize("make", [TinyPlain, tiny_resnet])
def test_far_pruning_still_ends(make, fields):
    task = task_for(budget="smoke")
    out = GAL(**fields).compress(used(make()), task)
    assert task.meter.train_calls == 2 and set(task.details) == {"clamped", "kept", "removed_blocks"}
    assert out(torch.randn(2, *TINY)).isfinite().all()


@pytest.mark.parametrize(("budget", "epochs", "steps", "updates"), [("short", 100.0, 1, 1), ("paper", 5.0, 10, 5)])
def test_masks_are_updated_as_often_as_asked_where_there_are_steps(budget, epochs, steps, updates):
    task, asked, count = task_for(budget=budget), [], []
    task.train = lambda model, *args, **options: asked.append(options) or model.eval()
    GAL(epochs=epochs, updates=5).compress(used(TinyPlain()), task)
    assert task.steps(epochs, epochs + 100) == steps
    fista = asked[0]["state"][2]
    fista.step, fista.extrapolate = lambda: count.append(1), lambda: None
    for number in range(steps):
        asked[0]["after_step"](number)
    assert len(count) == updates


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sparse": -0.1}, "sparse=-0.1 is too small"),
        ({"mu": -1.0}, "mu=-1.0 is too small"),
        ({"mask_std": -1.0}, "mask_std=-1.0 is too small"),
        ({"updates": 0}, "updates=0 is too small: give a number from 1 on"),
        ({"macs_reduction": 1.0}, r"macs_reduction=1.0 needs channels=true and a share in \[0, 1\)"),
        ({"macs_reduction": 0.5, "channels": False}, "macs_reduction=0.5 needs channels=true"),
        ({"channels": False}, "no residual blocks to put masks on"),
        ({"macs_reduction": 0.999}, "out of reach"),
    ],
)
def test_bad_values(fields, words):
    task = task_for(budget="smoke")
    with pytest.raises(UserError, match=words):
        GAL(**fields).compress(TinyPlain(), task)
    assert task.meter.train_calls == 0


def test_rows_agree_with_their_reductions():
    dense = {"vgg16_cifar10": (14.98e6, 313.73e6), "resnet56_cifar10": (0.85e6, 125.49e6)}
    for row in GAL.reported:
        assert row.recipe in GAL.recipes
        if row.params is None:
            assert row.delta is not None  # a survey's run, which prints no sizes
            continue
        for new, old, share in zip((row.params, row.macs), dense.get(row.baseline, ()),
                                   (row.params_reduction, row.macs_reduction), strict=False):  # fmt: skip
            assert share == pytest.approx(100 * (1 - new / old), abs=0.1)
