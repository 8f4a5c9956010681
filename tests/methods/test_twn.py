"""Ternary weight networks: thresholds against an exhaustive search and numpy, the update by hand, the file's size."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import mutant, toy_task
from torch import nn

from baselines.errors import UserError
from baselines.models.tiny import TinyPlain, tiny_resnet
from baselines.models.vgg import VGG
from methods.quantization import twn
from methods.quantization.twn import LAYER, TWN
from repro import codec


def weights_of(net):
    return {n: m.weight.detach() for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def worn(net):
    """Another normal distribution for every filter, as a training leaves them."""
    torch.manual_seed(0)
    for weight in weights_of(net).values():
        for i, kernel in enumerate(weight):
            kernel.normal_(0.02, 0.1 + 0.05 * i)
    return net


# -- the nearest ternary weights -------------------------------------------------------------------------------------

TRITS = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 10), -1).reshape(-1, 10)
TRITS = TRITS[np.abs(TRITS).sum(1) > 0]


def nearest(weight):
    """alpha * T of the smallest ||W - alpha * T||^2: all T in {-1, 0, 1}^10 but zero, each with its best alpha >= 0."""
    alpha = np.maximum(TRITS @ weight / (TRITS**2).sum(1), 0)
    errors = ((weight - alpha[:, None] * TRITS) ** 2).sum(1)
    return alpha[errors.argmin()] * TRITS[errors.argmin()]


def is_the_nearest(module):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=10), rng.laplace(size=10), rng.uniform(-1, 1, 10), np.r_[3.0, rng.normal(0, 0.1, 9)]]
    weights += [np.r_[[1.0] * 4, [-1.0] * 3, [0.2] * 3], np.full(10, -0.5), np.r_[0.7, [0.0] * 9]]
    weights = np.stack(weights).astype(np.float32)
    ours = module.ternary(torch.tensor(weights), 0.75, exact=True).numpy()
    theirs = np.stack([nearest(w.astype(np.float64)) for w in weights])
    alone = module.ternary(torch.tensor(weights[0].reshape(5, 2)), 0.75, exact=True, per_filter=False).numpy()
    return np.allclose(ours, theirs, atol=1e-6) and np.allclose(alone.ravel(), theirs[0], atol=1e-6)


def test_the_exact_threshold_is_that_of_an_exhaustive_search():
    assert is_the_nearest(twn)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".square() / counts", " / counts"),
        (".square() / counts", ".square()"),
        (".gather(1, best + 1)", ".gather(1, best)"),
        ("best_threshold(sizes, per_filter) if exact else ", ""),
    ],
    ids=["not squared", "not divided", "one short", "never exact"],
)
def test_the_exhaustive_search_catches_a_changed_line(old, new):
    assert not is_the_nearest(mutant(twn, old, new))


def expected(weight, factor, per_filter):
    """alpha * T in float64 numpy, one filter (or the layer) at a time."""
    found = np.zeros(weight.shape)
    for index in range(len(weight)) if per_filter else [slice(None)]:
        w = weight[index].astype(np.float64)
        kept = np.abs(w) > factor * np.abs(w).mean()
        found[index] = np.where(kept, np.sign(w) * np.abs(w)[kept].mean(), 0)
    return found


def follows_numpy(cls, factor=0.75, per_filter=True, classifier=False):
    """Whether ``compress`` leaves what numpy makes of the trained weights, when nothing is trained."""
    for build in (TinyPlain, tiny_resnet):
        net = worn(build())
        theirs = [w.numpy().copy() for w in weights_of(net).values()]
        ours = [w.numpy() for w in weights_of(cls(scratch=False).compress(net, toy_task())).values()]
        wanted = [expected(w, factor, per_filter) for w in theirs]
        if not classifier:
            wanted[-1] = theirs[-1]
        if not all(np.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(ours, wanted, strict=True)):
            return False
    return True


def test_threshold_and_scale_are_those_of_2022_by_default():
    assert follows_numpy(TWN)


def test_threshold_and_scale_of_2016():
    assert follows_numpy(partial(TWN, **LAYER), factor=0.7, per_filter=False, classifier=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("factor: float = 0.75", "factor: float = 0.7"),
        ("kept = sizes > delta", "kept = weight > delta"),
        ("(sizes * kept).sum(one, keepdim=True)", "sizes.sum(one, keepdim=True)"),
        ("range(1 if per_filter else 0, weight.dim())", "range(0 if per_filter else 1, weight.dim())"),
        ("skip_last=not self.classifier", "skip_first=True, skip_last=not self.classifier"),
    ],
    ids=["factor of 2016", "signed", "mean over all", "axes swapped", "first layer real"],
)
def test_numpy_catches_a_changed_line(old, new):
    assert not follows_numpy(mutant(twn, old, new).TWN)


def test_a_filter_of_zeros_stays_one():
    weight = torch.randn(3, 4)
    weight[1] = 0
    for exact in (False, True):
        found = twn.ternary(weight, 0.75, exact=exact)
        assert found.isfinite().all() and not found[1].any() and found[0].any()


# -- the update ------------------------------------------------------------------------------------------------------


def trains_as_by_hand(cls):
    """Oracle: softmax regression in numpy: the gradient at alpha * T, momentum and decay of the real weights."""
    torch.manual_seed(0)
    net, task, batches, latent = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), toy_task(budget="smoke"), [], []
    w, b = (p.detach().numpy().astype(np.float64) for p in net[1].parameters())
    train = task.train

    def loss(model, x, y):
        batches.append((x.flatten(1).numpy().astype(np.float64), y.numpy()))
        return F.cross_entropy(model(x), y)

    def watched(model, *args, **options):
        train(model, *args, loss=loss, **options)
        latent.append(model[1].parametrizations.weight.original.detach().numpy().copy())

    task.train = watched
    fields = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}
    baked = cls(scratch=False, classifier=True, **fields).compress(net, task)[1].weight.detach().numpy()
    velocity = [np.zeros_like(w), np.zeros_like(b)]
    for step, (x, y) in enumerate(batches):
        logits = x @ expected(w, 0.75, True).T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        delta = (p / p.sum(1, keepdims=True) - np.eye(4)[y]) / len(y)
        grads = [delta.T @ x + 0.1 * w, delta.sum(0) + 0.1 * b]
        velocity = [0.8 * v + g for v, g in zip(velocity, grads, strict=True)]
        rate = 0.05 * (1 + math.cos(math.pi * step / len(batches))) / 2
        w, b = w - rate * velocity[0], b - rate * velocity[1]
    near = np.allclose(latent[0], w, rtol=1e-3, atol=1e-5)
    return len(batches) == 4 and near and np.allclose(baked, expected(w, 0.75, True), rtol=1e-3, atol=1e-5)


def test_the_gradient_at_the_ternary_weights_moves_the_real_ones():
    assert trains_as_by_hand(TWN)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return quant.through(latent, ", "return latent if self.training else quant.through(latent, "),
        ("weight_decay=self.weight_decay", "weight_decay=0.0"),
        ("self.lr, self.momentum, weight", "self.lr, weight"),
        ("optimizer=self._sgd)", "optimizer=self._sgd, after_step=quant.clip(net, 0.02))"),
    ],
    ids=["real weights forward", "no decay", "no momentum", "clipped"],
)
def test_the_update_by_hand_catches_a_changed_line(old, new):
    assert not trains_as_by_hand(mutant(twn, old, new).TWN)


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, LAYER, {"exact": True}], ids=["filter", "layer", "exact"])
def test_the_file_holds_a_twentieth(fields):
    method = TWN(scratch=False, **fields)
    net = method.compress(worn(VGG(width=0.25)), toy_task())
    packed = codec.pack(net)
    state, _ = codec.unpack(packed.data)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    ternary = weights_of(net) if method.classifier else dict(list(weights_of(net).items())[:-1])
    count = sum(w.numel() for w in ternary.values())
    scales = sum(len(w) if method.per_filter else 1 for w in ternary.values())
    taken = sum(packed.bits[f"{name}.weight"] for name in ternary)
    assert 1.6 * count <= taken - 32 * scales < 1.6 * count + 8 * len(ternary)
    others = sum(packed.bits[key] for key in packed.bits) - taken
    assert 8 * len(packed.data) < 2 * count + others + 8 * 4000  # 2 bits, 1/16; the header is below 4,000 bytes
    for weight in ternary.values():
        for values in weight.flatten(1) if method.per_filter else [weight.flatten()]:
            assert len(values[values != 0].abs().unique()) == 1 and (values == 0).any()


def test_it_starts_from_new_weights_unless_told():
    task = toy_task(budget="smoke")
    assert not any(p.isnan().any() for p in TWN().compress(TinyPlain(), task).parameters())
    assert task.from_scratch
    task = toy_task(budget="smoke")
    net = TinyPlain()
    assert TWN(scratch=False).compress(net, task) is net and not task.from_scratch


@pytest.mark.parametrize("factor", [-0.1, 1.0, float("nan")])
def test_bad_factors(factor):
    with pytest.raises(UserError, match=r"factor=.* lies outside \[0, 1\)"):
        TWN(factor=factor).compress(TinyPlain(), toy_task())
