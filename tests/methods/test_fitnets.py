"""FitNets: both losses in float64 numpy, what each stage trains, and how lambda falls."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracle import mutant, worn
from torch import nn

from baselines import base
from baselines.data import DataOptions, synthetic
from baselines.errors import UserError
from baselines.models.resnet_cifar import ResNetCifar
from baselines.models.tiny import tiny_resnet
from baselines.task import Journal, Task
from methods.distillation import fitnets
from methods.distillation.fitnets import FitNets

PREFIX = ("conv1.", "bn1.", "layer1.", "layer2.")  # the student up to its middle stage


def task_for(net, budget="paper", journal=None):
    """128 images in batches of 32."""
    data = synthetic(DataOptions(), train=128, test=4)
    return Task(base.load("tiny_resnet_synthetic"), data, net, budget=budget, journal=journal)


def teacher_net():
    torch.manual_seed(1)
    return worn(tiny_resnet(), 0.2, 0.3, gain=2)


def calls_of(cls, task, **fields):
    """What compress hands to each train call, with weights and statistics as after a training; nothing is trained."""
    calls = []

    def train(net, epochs, of=None, **options):
        calls.append(SimpleNamespace(net=worn(net, 0.1, 0.3, gain=2), epochs=epochs, of=of, **options))
        for module in options.get("also_train", ()):
            worn(module, 0.1, 0.3)
        return net

    task.train = train
    cls(**fields).compress(None, task)
    return calls


def middle_map(net, x):
    """The output of layer2, layer by layer."""
    with torch.no_grad():
        return net.layer2(net.layer1(torch.relu(net.bn1(net.conv1(x)))))


def regressed(maps, regressor):
    """The regressor in float64: 1x1 convolution, BN with running statistics, ReLU."""
    state = {key: value.double().numpy() for key, value in regressor.state_dict().items()}
    maps = np.einsum("oc,nchw->nohw", state["0.weight"][:, :, 0, 0], maps.double().numpy())
    mean, var, gain, shift = (
        state[f"1.{key}"][None, :, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return np.maximum((maps - mean) / np.sqrt(var + 1e-5) * gain + shift, 0)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def entropies(student, teacher, labels, temperature):
    """H(labels, P_S) and H(P_T at tau, P_S at tau), averaged over the images."""
    hard = -log_softmax(student)[np.arange(len(labels)), labels].mean()
    p, q = np.exp(log_softmax(np.float64(teacher) / temperature)), log_softmax(np.float64(student) / temperature)
    return hard, -(p * q).sum(1).mean()


def hint_error(cls):
    """Relative error of stage 1's loss against 1/2 ||u_h(x) - r(v_g(x))||^2, the mean over images."""
    task = task_for(teacher_net())
    call = calls_of(cls, task)[0]
    x, y = next(task.batches(16))
    (regressor,) = call.also_train
    gap = middle_map(task.teacher, x).double().numpy() - regressed(middle_map(call.net, x), regressor)
    right = 0.5 * (gap**2).reshape(len(x), -1).sum(1).mean()
    assert right > 1
    return abs(call.loss(call.net, x, y).item() / right - 1)


def test_hint_loss_is_that_of_numpy():
    assert hint_error(FitNets) < 1e-5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return 0.5 * (predicted", "return 1.0 * (predicted"),
        (".flatten(1).sum(1).mean()", ".flatten(1).mean(1).mean()"),
        ("*([nn.ReLU()] if bool((hint >= 0).all()) else [])", ""),
        ("[(len(names) - 1) // 2]", "[0]"),
    ],
    ids=["no half", "mean over features", "no ReLU", "first stage"],
)
def test_the_hint_oracle_catches_a_changed_line(old, new):
    with np.errstate(all="ignore"):
        try:
            assert hint_error(mutant(fitnets, old, new).FitNets) > 1e-2
        except ValueError:  # maps of another stage have another shape
            assert new == "[0]"


def weights_of_the_teacher(cls):
    """Each step's lambda in stage 2, as it follows from the loss: (loss - H(labels)) / H(teacher)."""
    task = task_for(teacher_net())
    call = calls_of(cls, task, hint_epochs=1.0, epochs=2.0)[1]
    x, y = next(task.batches(16))
    with torch.no_grad():
        student, teacher = call.net(x).numpy(), task.teacher(x).numpy()
    hard, soft = entropies(student, teacher, y.numpy(), 3.0)
    found = []
    for step in range(8):
        found.append((call.loss(call.net, x, y).item() - hard) / soft)
        call.after_step(step)
    return np.array(found)


def test_the_loss_is_that_of_numpy_and_lambda_falls_linearly_from_4_to_1():
    assert np.abs(weights_of_the_teacher(FitNets) - np.linspace(4, 1, 8)).max() < 1e-5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max(1, steps - 1)", "max(1, steps)"),
        ('clock["step"] = step + 1', "pass"),
        ("done * (self.lambda_end - self.lambda_start)", "done * (self.lambda_start - self.lambda_end)"),
        ("weight * soft  # Eq. 2", "weight * self.temperature**2 * soft"),
        ("F.softmax(targets.float() / self.temperature, dim=1)", "F.softmax(targets.float(), dim=1)"),
        ("F.cross_entropy(logits.float() / self.temperature, softened)", "F.cross_entropy(logits.float(), softened)"),
        ("return F.cross_entropy(logits.float(), labels) + ", "return "),
    ],
)
def test_the_total_oracle_catches_a_changed_line(old, new):
    assert np.abs(weights_of_the_teacher(mutant(fitnets, old, new).FitNets) - np.linspace(4, 1, 8)).max() > 1e-2


def run(module, journal=None, **fields):
    """compress of a method's module on one start: the student before and after, the regressor before and after."""
    task, regressors = task_for(teacher_net(), journal=journal), []
    real = module.regressor_for

    def watched(*maps):
        made = real(*maps)
        regressors.extend([copy.deepcopy(made), made])
        return made

    module.regressor_for = watched
    torch.manual_seed(7)
    before = task.student()
    torch.manual_seed(7)
    try:
        after = module.FitNets(**fields).compress(None, task)
    finally:
        module.regressor_for = real
    return SimpleNamespace(before=before, after=after, regressors=regressors, task=task)


def changed(before, after):
    """The names of all weights and statistics that are not the same."""
    one, two = before.state_dict(), after.state_dict()
    assert one.keys() == two.keys()
    return {key for key in one if not torch.equal(one[key], two[key])}


def only_the_guided_part_learns(module):
    """Whether stage 1 changes all weights and statistics up to the guided layer and the regressor, and no others."""
    done = run(module, hint_epochs=2.0, epochs=0.0)
    guided = {key for key in done.before.state_dict() if key.startswith(PREFIX)}
    regressor = set(done.regressors[0].state_dict())
    return changed(done.before, done.after) == guided and changed(*done.regressors) == regressor


def test_stage_1_trains_the_student_up_to_the_guided_layer_and_the_regressor():
    assert only_the_guided_part_learns(fitnets)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("distill.outputs(net, [name], x, whole=False)", "distill.outputs(net, [name], x)"),
        ("loss=stage_1, also_train=[regressor]", "loss=stage_1, also_train=[]"),
        ("hint_loss(regressor(layer(net, guided, x))", "hint_loss(regressor(layer(net, guided, x).detach())"),
    ],
    ids=["statistics of later layers", "a regressor that does not learn", "a student that does not learn"],
)
def test_that_oracle_catches_a_changed_line(old, new):
    assert not only_the_guided_part_learns(mutant(fitnets, old, new))


def test_both_stages_lower_their_losses_and_the_regressor_is_not_shipped():
    done = run(fitnets, hint_epochs=4.0, epochs=4.0, hint_lr=0.03)
    losses = [value for _, value, _ in done.task.curve]
    half = next(i for i, (_, _, lr) in enumerate(done.task.curve) if lr == 0.05)
    assert losses[half - 1] < 0.8 * losses[0] and losses[-1] < losses[half]
    assert changed(done.before, done.after) == set(done.before.state_dict())
    assert type(done.after) is type(done.before) and not done.after.training
    assert done.task.meter.train_calls == 2 and done.task.from_scratch
    assert done.task.details == {"hint": "layer2", "guided": "layer2"}


def test_the_dense_net_and_the_teacher_are_left_alone():
    dense = teacher_net()
    before, task = copy.deepcopy(dense.state_dict()), task_for(dense, "smoke")
    FitNets().compress(dense, task)
    for net in (dense, task.teacher):
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def joint_error(cls):
    """Relative error of the joint loss against cross-entropy + beta * mean((u_h(x) - r(v_g(x)))^2)."""
    task = task_for(teacher_net())
    (call,) = calls_of(cls, task, beta=100.0)
    x, y = next(task.batches(16))
    gap = middle_map(task.teacher, x).double().numpy() - regressed(middle_map(call.net, x), call.also_train[0])
    with torch.no_grad():
        hard, _ = entropies(call.net(x).numpy(), task.teacher(x).numpy(), y.numpy(), 1.0)
    return abs(call.loss(call.net, x, y).item() / (hard + 100 * (gap**2).mean()) - 1)


def test_the_joint_loss_is_that_of_numpy():
    assert joint_error(FitNets) < 1e-5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.beta * gap", "gap"),
        ("gap = F.mse_loss(", "gap = hint_loss("),
        ("(logits.float(), y) + self", "(logits.float(), y) * 0 + self"),
    ],
)
def test_the_joint_oracle_catches_a_changed_line(old, new):
    assert joint_error(mutant(fitnets, old, new).FitNets) > 1e-3


class Killed(Exception):
    """Stands for the end of the process."""


def killed_in(module, stage, call, journal, monkeypatch):
    """A run that ends in the ``call``-th step of a stage, then is started again and reaches its end."""
    holder, name = (module, "hint_loss") if stage == 1 else (module.FitNets, "objective")
    real, seen = getattr(holder, name), []

    def dying(*args):
        seen.append(1)
        if len(seen) == call:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(holder, name, dying)
        with pytest.raises(Killed):
            run(module, journal, hint_epochs=3.0, epochs=3.0)
    return run(module, journal, hint_epochs=3.0, epochs=3.0).after


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_killed_inside_a_stage_goes_on_as_if_nothing_had_happened(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(Journal, "SECONDS", -1.0)  # keep every epoch
    whole = run(fitnets, hint_epochs=3.0, epochs=3.0).after
    assert not changed(whole, killed_in(fitnets, stage, 10, tmp_path, monkeypatch))


def test_that_catches_a_lambda_which_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Journal, "SECONDS", -1.0)
    module = mutant(fitnets, ", state=[clock]", "")
    whole = run(module, hint_epochs=3.0, epochs=3.0).after
    assert changed(whole, killed_in(module, 2, 10, tmp_path, monkeypatch))


def test_the_regressor_takes_any_map_that_is_not_smaller():
    small, large = torch.rand(2, 5, 4, 6), torch.rand(2, 3, 9, 7)
    made = fitnets.regressor_for(large, small)
    assert made[0].kernel_size == (6, 2) and made.eval()(large).shape == small.shape
    assert isinstance(made[-1], nn.ReLU) and not isinstance(fitnets.regressor_for(large, small - 0.5)[-1], nn.ReLU)


def test_layers_can_be_named():
    task = task_for(teacher_net(), "smoke")
    FitNets(hint="layer3", guided="layer2.0").compress(None, task)
    assert task.details == {"hint": "layer3", "guided": "layer2.0"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 0.0}, "temperature 0.0 is not positive"),
        ({"lambda_start": -1.0}, "lambda_start=-1.0 is not a number from 0"),
        ({"lambda_end": float("nan")}, "lambda_end=nan is not a number from 0"),
        ({"beta": -100.0}, "beta=-100.0 is not a number from 0"),
        ({"hint": "layer9"}, "no layer 'layer9'"),
        ({"hint": "layer1", "guided": "layer3"}, r"\(8, 4, 4\), smaller maps than the hint's \(8, 16, 16\)"),
        ({"guided": "linear"}, r"the guided layer gives \(4,\)"),
    ],
)
def test_bad_values(fields, words):
    with pytest.raises(UserError, match=f"(?i){words}"):
        FitNets(**fields).compress(None, task_for(teacher_net(), "smoke"))


def test_a_net_without_stages_needs_a_name():
    task = task_for(teacher_net(), "smoke")
    task.stages = lambda net: []
    with pytest.raises(UserError, match="no named stage"):
        FitNets().compress(None, task)


def test_the_recipes_name_layers_of_both_nets():
    for key, fields in FitNets.recipes.items():
        found, classes = base.load(key.split("/")[0]), 10
        with torch.device("meta"):
            nets = found.net(classes), found.student(classes)
        for net, name in zip(nets, (fields.get("hint", ""), fields.get("guided", "")), strict=True):
            assert name in dict(net.named_modules()) and (not name or name in found.stages)


def test_another_teacher_of_the_family():
    """A deeper sibling as the teacher: the same stages, so the same defaults."""
    task = task_for(teacher_net(), "smoke")
    task._teacher = ResNetCifar(14, 4, widths=(8, 12, 16))
    FitNets().compress(None, task)
    assert task.details["hint"] == "layer2"
