"""The loop: budgets, schedules, callbacks, resume, progress; and that the test set cannot be reached."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines import base
from baselines import task as tasks
from baselines.base import Recipe
from baselines.data import DataOptions
from baselines.errors import UserError
from baselines.task import SMOKE_STEPS, Engine, Normalise, Task, accuracy, fastest, seed_everything


def task(name="tiny_plain_synthetic", **options):
    baseline = base.load(name)
    return Task(baseline, baseline.data(DataOptions()), **{"budget": "paper", **options})


def net(seed=0, name="tiny_plain_synthetic"):
    seed_everything(seed)
    return base.load(name).net(4)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "budget, calls, steps",
    [
        ("paper", [(2, None)], [16]),
        ("short", [(50, None)], [8]),
        ("short", [(10, 40), (30, 40)], [2, 6]),
        ("short", [(1, 3)] * 3, [3, 2, 3]),
        ("smoke", [(30, None)], [SMOKE_STEPS]),
        ("smoke", [(30, 390)] * 13, [1] * 13),
        ("zero", [(30, None)], [0]),
    ],
)
def test_the_budget_decides_the_steps(budget, calls, steps):
    t, model = task(budget=budget), net()
    taken = []
    for epochs, of in calls:
        before = t.meter.steps
        t.train(model, epochs, of=of)
        taken.append(t.meter.steps - before)
    assert taken == steps
    assert t.meter.images == 32 * sum(steps) and t.meter.train_calls == sum(s > 0 for s in steps)


@pytest.mark.parametrize(
    "budget, granted",
    [
        ("paper", [400, 11, 2, 0]),
        ("short", [40, 2, 1, 0]),
        ("smoke", [3, 3, 2, 0]),
        ("zero", [1, 1, 1, 0]),
    ],
)
def test_the_budget_decides_the_rounds_of_a_search(budget, granted):
    assert [task(budget=budget).rounds(n) for n in (400, 11, 2, 0)] == granted


def test_more_epochs_than_declared_are_refused():
    t, model = task(), net()
    t.train(model, 1, of=2)
    with pytest.raises(ValueError, match="3 epochs in total but declared of=2"):
        t.train(model, 2, of=2)


def test_one_step_equals_sgd_by_hand():
    t, model = task(budget="smoke"), net()
    seen = []

    def loss(m, x, y):
        seen.append((x, y))
        return F.cross_entropy(m(x), y)

    twin = copy.deepcopy(model).train()
    t.train(model, 1, loss=loss, lr=0.3)
    recipe = base.load("tiny_plain_synthetic").finetune
    momentum = [torch.zeros_like(p) for p in twin.parameters()]
    for i, (x, y) in enumerate(seen):
        grads = torch.autograd.grad(F.cross_entropy(twin(x), y), [*twin.parameters()])
        for p, g, m in zip(twin.parameters(), grads, momentum, strict=True):
            g = g + recipe.weight_decay * p.detach()
            m.mul_(recipe.momentum).add_(g)
            p.data -= 0.3 * recipe.factor(i / len(seen)) * (g + recipe.momentum * m)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_schedules():
    step = Recipe(1, 1.0, schedule="step", milestones=(0.5, 0.75))
    assert [round(step.factor(s), 6) for s in (0, 0.49, 0.5, 0.8)] == [1, 1, 0.1, 0.01]
    cosine = Recipe(1, 1.0, warmup=0.1)
    assert cosine.factor(0.05) == pytest.approx(0.5) and cosine.factor(0.5) == pytest.approx(0.5)
    sizes = Recipe(1, 1.0, sizes=((0.5, 8), (0.8, 12)))
    assert [sizes.size(s) for s in (0, 0.5, 0.8)] == [8, 12, None]


def test_callbacks_run_in_order_and_extra_modules_learn():
    t, model, extra = task(budget="short"), net(), nn.Linear(4, 4)
    before, order = copy.deepcopy(extra.state_dict()), []
    t.train(
        model,
        1,
        loss=lambda m, x, y: F.cross_entropy(extra(m(x)), y),
        also_train=[extra],
        after_backward=lambda i: order.append(("backward", i)),
        after_step=lambda i: order.append(("step", i)),
        after_epoch=lambda e: order.append(("epoch", e)),
    )
    assert order == [w for i in range(8) for w in (("backward", i), ("step", i))] + [("epoch", 0)]
    assert not torch.equal(before["weight"], extra.weight)


def test_the_whole_update_can_be_replaced():
    t, model = task(budget="smoke"), net()
    calls = []

    def step(m, x, y, optimizer):
        calls.append(optimizer)
        return F.cross_entropy(m(x), y)

    before = copy.deepcopy(model)
    t.train(model, 1, step=step, optimizer=lambda params: torch.optim.Adam(params, 1e-3))
    assert len(calls) == SMOKE_STEPS and isinstance(calls[0], torch.optim.Adam)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))


def test_data_can_be_replaced():
    t, seen = task(), []
    few = t.train_set.subset(torch.arange(8))
    t.train(net(), 3, data=few, loss=lambda m, x, y: seen.append(len(y)) or F.cross_entropy(m(x), y))
    assert seen == [8, 8, 8]


@pytest.mark.parametrize("stop", range(4))
def test_a_killed_run_continues_to_the_same_network(tmp_path, stop):
    """Killed in call ``stop``: finished calls are loaded, and the end is the same to the last bit."""

    def method(t, killed_in=None):
        model, memory = net(), {"seen": 0}
        for call in range(3):

            def remember(i, call=call):
                if call == killed_in and i == 3:
                    raise KeyboardInterrupt
                memory["seen"] += 1
                memory["drawn"] = float(torch.rand(())) + np.random.rand() + random.random()

            t.train(model, 1, of=3, after_step=remember, state=[memory])
            model.features[0].weight.data += torch.randn(()) + float(np.random.randn()) + random.random()
        return model, memory, t

    want, memory, whole = method(task())
    if stop < 3:
        with pytest.raises(KeyboardInterrupt):
            method(task(journal=tmp_path), stop)
    else:
        method(task(journal=tmp_path))
    got, memory_again, again = method(task(journal=tmp_path))
    assert same(want, got) and memory_again == memory and memory["seen"] == 24
    assert again.meter.steps == whole.meter.steps and again.meter.train_calls == 3
    assert again.curve == whole.curve and len(whole.curve) == 24


def test_an_unfinished_call_goes_on_from_its_last_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("baselines.task.Journal.SECONDS", -1.0)
    want = net()
    task().train(want, 4)
    counted = []

    def kill(i):
        if i == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task(journal=tmp_path).train(net(), 4, after_step=kill)
    got = net()
    task(journal=tmp_path).train(got, 4, after_step=counted.append)
    assert counted == [*range(16, 32)], "two of four epochs were finished"
    assert same(want, got)


def test_same_seed_same_network_other_seed_another():
    nets = []
    for seed in (0, 0, 1):
        model = net()
        task(seed=seed).train(model, 1)
        nets.append(model)
    assert same(nets[0], nets[1]) and not same(nets[0], nets[2])


def test_the_test_set_cannot_be_reached_from_a_task():
    baseline = base.load("tiny_plain_synthetic")
    data = baseline.data(DataOptions())
    t = Task(baseline, data, net(), budget="smoke")
    hidden = {data.test.x.data_ptr(), id(data.test), id(data)}
    seen, todo = set(), [t]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        assert id(thing) not in hidden
        if isinstance(thing, torch.Tensor):
            assert thing.data_ptr() not in hidden
        todo += [*getattr(thing, "__dict__", {}).values()]
        todo += [*(thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else [])]
    assert len(seen) > 20


def test_holdout_keeps_the_validation_images_out_of_training():
    t = task(holdout=True)
    images = {x.numpy().tobytes() for x in t.train_set.x}
    assert len(t.train_set) == 231 and len(t._validation) == 25
    assert not images & {x.numpy().tobytes() for x in t._validation.x}
    assert len(task().train_set) == 256


def test_batches_are_deterministic_plain_training_images():
    t = task()
    first, second = [*t.batches(50, 20)], [*t.batches(50, 20)]
    assert [len(y) for _, y in first] == [20, 20, 10]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    want = (t.train_set.x.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    got = first[0][0][0]
    assert min((got - image).abs().max() for image in want) < 1e-5


def test_streams_are_independent_of_each_other_and_of_training():
    t = task()
    a, b, again = (next(t.stream(name))[0] for name in ("a", "b", "a"))
    assert torch.equal(a, again) and not torch.equal(a, b)


def test_normalise_equals_the_formula():
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    want = (x.float() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torch.allclose(Normalise(mean, std, Engine())(x), want, atol=1e-6)


def test_accuracy_counts_by_hand():
    logits = torch.tensor([[3.0, 2, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 9, 0, 1, 0, 0]])
    y = torch.tensor([0, 0, 1, 3])

    class Fixed(nn.Module):
        def forward(self, x):
            return logits

    got = accuracy(Fixed(), [(torch.zeros(4, 1), y)], subset=(0, 3))
    assert got == {"top1": 25.0, "top5": 75.0, "subset_top1": 50.0}


def test_zero_training_leaves_the_network_alone():
    t, model = task(budget="zero"), net()
    before = copy.deepcopy(model)
    t.train(model, 40)
    assert same(before, model) and t.meter.train_calls == 0 and not model.training


def test_teacher_student_stages_and_siblings():
    t = task("tiny_resnet_synthetic", dense=net(name="tiny_resnet_synthetic"))
    assert not any(p.requires_grad for p in t.teacher.parameters()) and not t.teacher.training
    assert [name for name, _ in t.stages(t.fresh())] == ["layer1", "layer2", "layer3"]
    assert sum(p.numel() for p in t.student().parameters()) < sum(p.numel() for p in t.fresh().parameters())
    with pytest.raises(KeyError, match="no sibling 'x'"):
        t.sibling("x")
    with pytest.raises(UserError, match="has no trained net to teach with"):
        _ = task().teacher


def test_an_unknown_budget_is_refused():
    with pytest.raises(UserError, match=r"has no budget 'paper'. Choose one of: smoke, zero, short"):
        task("lenet300_mnist5k", budget="paper")


def test_the_engine_is_chosen_by_measurement():
    precision, channels_last = fastest(net(), torch.zeros(1, 3, 16, 16), torch.device("cpu"), 8)
    assert precision in ("fp32", "bf16") and isinstance(channels_last, bool)


@pytest.mark.parametrize(
    ("slow", "batches"), [(3.9, 4), (4.1, 2)], ids=["slower on two images only", "hopeless on two images"]
)
def test_what_is_hopeless_on_two_images_is_not_measured_on_a_batch(monkeypatch, slow, batches):
    tried = []

    def step(engine, model, x, y):
        tried.append((engine.precision, engine.channels_last, len(x)))
        assert len(x) == len(y)
        if len(x) == 2:
            return slow if engine.precision == "bf16" else 1.0
        return 0.5 if engine.precision == "bf16" else 0.9 if engine.channels_last else 1.0

    monkeypatch.setattr(tasks, "_step_seconds", step)
    chosen = fastest(net(), torch.zeros(1, 3, 16, 16), torch.device("cpu"), 8)
    assert [size for *_, size in tried] == [2] * 4 + [8] * batches
    assert chosen == (("bf16", False) if batches == 4 else ("fp32", True))


@pytest.mark.parametrize(("seconds", "steps"), [(10.0, 3), (10.1, 1)], ids=["at the limit", "long"])
def test_a_long_step_is_not_repeated(monkeypatch, seconds, steps):
    began = []

    def clock():
        began.append(0)
        return len(began) // 2 * seconds

    monkeypatch.setattr(tasks.time, "perf_counter", clock)
    took = tasks._step_seconds(Engine(), net(), torch.randn(2, 3, 16, 16), torch.zeros(2, dtype=torch.long))
    assert took == pytest.approx(seconds) and len(began) == 2 * steps


def test_estimate_and_the_shorter_budget(capsys):
    from baselines.progress import MEASURED, Progress

    t = task()
    progress = Progress()
    progress.whole(10**9)
    for _ in range(MEASURED):
        progress.step(t, torch.tensor(1.0), 32)
    said = capsys.readouterr().out
    assert "left (" in said and "images/s" in said and "budget=short would take about" in said


def test_a_search_says_once_a_minute_how_many_nets_it_has_judged(monkeypatch, capsys):
    from baselines import progress

    clock = [1000.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    t, model = task(), net()
    said = []
    for clock[0] in (1010.0, 1061.0, 1100.0, 1122.0):
        said.append((f"{t.validate(model):.2f} % right", capsys.readouterr().out))
    assert [out for _, out in said[::2]] == ["", ""]
    for nets, (right, out) in ((2, said[1]), (4, said[3])):
        assert out == f"{nets} nets validated, the last with {right}\n"


def test_a_resumed_training_counts_on_and_estimates_what_is_left(monkeypatch, tmp_path):
    """Two calls of 16 and 32 steps, kept behind step 8 of the second one."""
    from baselines.progress import MEASURED, Progress

    seen, left = [], []
    monkeypatch.setattr(tasks.Journal, "SECONDS", -1.0)
    monkeypatch.setattr(Progress, "_estimate", lambda self, *_: left.append(self.total - self.done))

    def method(t, stop=None):
        for epochs in (2, 4):

            def after_step(number, epochs=epochs):
                seen.append((t._progress.done, t._progress.total))
                if (epochs, number) == (4, stop):
                    raise KeyboardInterrupt

            t.train(net(), epochs, of=6, after_step=after_step)

    with pytest.raises(KeyboardInterrupt):
        method(task(journal=tmp_path), 12)
    assert seen == [(n, 48) for n in range(29)] and left == [48 - MEASURED]
    seen.clear()
    method(task(journal=tmp_path))
    assert seen == [(n, 48) for n in range(24, 48)] and left[1:] == [24 - MEASURED]
