"""K-means of one dimension against brute force and scikit-learn, and tied weights against a net whose parameters are
the centroids themselves."""

import copy
import warnings

import numpy as np
import pytest
import torch
from oracle import mutant
from sklearn.cluster import KMeans
from torch import nn

from baselines.errors import UserError
from methods.kit import cluster


def random(seed=0):
    return np.random.default_rng(seed)


def survivors(n=4000, density=0.3, seed=0):
    """Weights of a pruned layer, float32 values in float64: two peaks, none near zero."""
    values = random(seed).normal(size=n).astype(np.float32).astype(np.float64)
    return values[np.abs(values) >= np.quantile(np.abs(values), 1 - density)]


# -- k-means ---------------------------------------------------------------------------------------------------------


def is_a_minimum(module, seeds=range(3)):
    """Whether no weight is nearer to another centroid, centroids are the means of their weights (none has none), and
    the cost is no higher than with the first centroids."""
    for seed in seeds:
        for start in ("linear", "random", "density"):
            for k in (1, 2, 7, 31):
                values = survivors(seed=seed)
                first = module.first_centroids(values, k, start, random(seed))
                centroids, labels = module.lloyd(values, first)
                if labels.max() >= len(centroids):
                    return False
                distances = np.abs(values[:, None] - centroids)
                own = distances[np.arange(len(values)), labels]
                if (own**2).sum() > (np.abs(values[:, None] - first).min(1) ** 2).sum() + 1e-9:
                    return False
                means = [values[labels == c].mean() for c in range(len(centroids)) if (labels == c).any()]
                if len(means) != len(centroids) or not np.allclose(means, centroids, rtol=0, atol=1e-12):
                    return False
                if (own > distances.min(1) + 1e-12).any():
                    return False
    return True


def test_no_reassignment_lowers_the_cost_and_centroids_are_means():
    assert is_a_minimum(cluster)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ROUNDS = 100_000", "ROUNDS = 3"),
        ("middles = (centres[1:] + centres[:-1]) / 2", "middles = centres[1:]"),
        ("[filled] / counts[filled]", "[filled] / (counts[filled] + 1)"),
        ("(np.cumsum(filled) - 1)[labels]", "labels"),
        ("centres[filled], (np", "centres, (np"),
    ],
    ids=["stops early", "not the midpoints", "no means", "labels of empty clusters too", "empty clusters stay"],
)
def test_the_oracle_catches_a_changed_line(old, new):
    assert not is_a_minimum(mutant(cluster, old, new))


def is_scikit_learns(module, n, k, start):
    """Whether scikit-learn's Lloyd from the same centroids ends at the same clusters, where none gets empty."""
    values = survivors(n)
    first = module.first_centroids(values, k, start, random())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = KMeans(k, init=first[:, None], n_init=1, tol=0, max_iter=10_000, algorithm="lloyd")
        theirs.fit(values[:, None])
    centroids, labels = module.lloyd(values, first)
    rank = theirs.cluster_centers_[:, 0].argsort().argsort()
    return (
        len(centroids) == k
        and np.array_equal(rank[theirs.labels_], labels)
        and np.allclose(np.sort(theirs.cluster_centers_[:, 0]), centroids, rtol=0, atol=1e-9)
    )


@pytest.mark.parametrize(("n", "k", "start"), [(4000, 15, "density"), (30_000, 31, "random"), (2000, 4, "linear")])
def test_equals_scikit_learn_from_the_same_centroids(n, k, start):
    assert is_scikit_learns(cluster, n, k, start)


def test_scikit_learn_catches_another_minimum():
    late = mutant(cluster, "np.sort(centroids)\n", "np.sort(centroids) + 0.3\n")
    assert is_a_minimum(late) and not is_scikit_learns(late, 4000, 15, "density")


def test_an_empty_cluster_stays_may_fill_and_is_left_out_in_the_end():
    values = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
    centroids, labels = cluster.lloyd(values, np.array([-9.0, 0.5, 5.0, 10.0]))
    assert centroids.tolist() == [1.0, 10.5] and labels.tolist() == [0, 0, 0, 1, 1]
    values = np.array([0.0] * 9 + [4.0, 20.0])  # 4 is nearer to 3 than to 5.2, until 3 has become 0.4
    centroids, labels = cluster.lloyd(values, np.array([3.0, 5.2, 20.0]))
    assert centroids.tolist() == [0.0, 4.0, 20.0] and labels.tolist() == [0] * 9 + [1, 2]


def test_equal_weights_are_one_value():
    centroids, labels = cluster.lloyd(np.full(5, 0.25), np.linspace(0.25, 0.25, 4))
    assert centroids.tolist() == [0.25] and labels.tolist() == [0] * 5


# -- where it starts -------------------------------------------------------------------------------------------------


def starts_as_the_paper_says(module):
    """Equal steps over the range; k of the values, by lot; where the share of smaller values reaches each mid-step."""
    values, k = survivors(), 13
    linear, chosen, dense = (module.first_centroids(values, k, start, random()) for start in cluster.STARTS)
    steps = np.diff(linear)
    if linear[0] != values.min() or linear[-1] != values.max() or not np.allclose(steps, steps[0]):
        return False
    if len(set(chosen)) != k or not set(chosen) <= set(values):
        return False
    if np.array_equal(chosen, module.first_centroids(values, k, "random", random(1))):
        return False
    levels = (np.arange(k) + 0.5) / k
    below = np.array([[(values < c).mean(), (values <= c).mean()] for c in dense])
    return bool(((below[:, 0] < levels) & (levels <= below[:, 1])).all())


def test_the_three_starts():
    assert starts_as_the_paper_says(cluster)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("np.linspace(values.min(), values.max(), k)", "np.linspace(-abs(values).max(), abs(values).max(), k)"),
        ("random.choice(values, min(k, len(values)), replace=False)", "values[:k]"),
        ("(np.arange(k) + 0.5) / k", "np.linspace(0, 1, k)"),
    ],
    ids=["symmetric range", "the first k", "steps with the ends"],
)
def test_the_oracle_catches_another_start(old, new):
    assert not starts_as_the_paper_says(mutant(cluster, old, new))


# -- sharing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_share_moves_what_is_not_zero_to_its_nearest_centroid(memory):
    torch.manual_seed(0)
    before = torch.randn(6, 4, 3, 3) * (torch.rand(6, 4, 3, 3) < 0.5)
    weight = nn.Parameter(before.clone().to(memory_format=memory))
    assert cluster.share("w", weight, 5, "density", random()) == 5
    after = weight.detach()
    values = after[after != 0].unique()
    assert len(values) == 5 and torch.equal(after == 0, before == 0) and not (after == 0).signbit().any()
    nearest = (before[before != 0][:, None] - values).abs().argmin(1)
    assert torch.equal(after[before != 0], values[nearest])


def test_share_of_few_and_of_no_weights():
    for start in cluster.STARTS:
        few = nn.Parameter(torch.tensor([0.0, 0.5, -1.0, 0.0]))
        assert cluster.share("w", few, 7, start, random()) == 2
        assert few.tolist() == [0.0, 0.5, -1.0, 0.0]
        assert cluster.share("w", nn.Parameter(torch.zeros(3)), 7, start, random()) == 0


def test_bad_values():
    ones, broken = nn.Parameter(torch.ones(3)), nn.Parameter(torch.tensor([1.0, float("nan")]))
    for weight, k, start, sentence in (
        (broken, 2, "linear", "weights of w are not finite"),
        (ones, 0, "linear", "0 clusters hold no weight"),
        (ones, 2, "k-means++", r"no start 'k-means\+\+' for k-means"),
    ):
        with pytest.raises(UserError, match=sentence):
            cluster.share("w", weight, k, start, random())


# -- training tied weights -------------------------------------------------------------------------------------------


class Looked(nn.Module):
    """A linear layer whose only parameters are its centroids: Sec. 3.3 of Deep Compression, and autograd does Eq. 3."""

    def __init__(self, weight, bias):
        super().__init__()
        values, where = np.unique(weight.detach().numpy(), return_inverse=True)
        self.where, self.removed = torch.from_numpy(where.reshape(weight.shape)), weight.detach() == 0
        self.centroids, self.bias = nn.Parameter(torch.from_numpy(values)), nn.Parameter(bias.detach().clone())

    def weight(self):
        """(out, in), with zeros where the weights were."""
        return torch.where(self.removed, 0.0, self.centroids[self.where])

    def forward(self, x):
        """(N, out)."""
        return nn.functional.linear(x, self.weight(), self.bias)


def shared_layer():
    """A linear layer of 40 x 30 with some zeros and 7 values."""
    torch.manual_seed(0)
    layer = nn.Linear(30, 40)
    layer.weight.data.mul_(torch.rand(40, 30) < 0.4)
    cluster.share("w", layer.weight, 7, "linear", random())
    return layer


def trained(net, before=None, behind=None, drift=0.0, steps=5):
    """SGD with momentum and decay on fixed data; ``drift`` is added to one weight of a group after every step."""
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-2, nesterov=True)
    for step in range(steps):
        x, y = torch.randn(16, 30, generator=generator), torch.arange(16)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(x), y).backward()
        if before:
            before(step)
        optimizer.step()
        if drift:
            net.weight.data[-1] += drift * (net.weight.data[-1] != 0)
        if behind:
            behind(step)
    return net


def moves_as_centroids(module, drift=0.0):
    """Whether tied weights end where the centroids of the other net end: equal in each group, bit for bit, and zero."""
    layer = shared_layer()
    start, other = copy.deepcopy(layer), Looked(layer.weight, layer.bias)
    trained(layer, *module.tie([layer.weight]), drift=drift)
    expected = trained(other).weight().detach()
    ours, groups = layer.weight.detach(), start.weight.detach()
    whole = all(len(ours[groups == value].unique()) == 1 for value in groups.unique())
    moved = not torch.allclose(ours[groups != 0], groups[groups != 0], atol=1e-3)
    zeros = bool((ours[groups == 0] == 0).all()) and not ours[groups == 0].signbit().any()
    return whole and moved and zeros and torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("drift", [0.0, 1e-7])
def test_tied_weights_move_as_one_parameter(drift):
    assert moves_as_centroids(cluster, drift)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.where(shared, sums, 0.0)[labels]", "(sums / labels.bincount())[labels]"),
        ("torch.where(shared, sums, 0.0)[labels]", "sums[labels]"),
        ("weight.grad.copy_(", "weight.grad.clone().copy_("),
        ("weight.data.copy_(", "weight.data.clone().copy_("),
        ('torch.long).scatter_reduce_(0, labels, places, "amin")', "torch.long) - 1"),
    ],
    ids=["mean", "zeros trained", "each for itself", "not shared again", "all like the last"],
)
def test_the_oracle_catches_another_training(old, new):
    changed = mutant(cluster, old, new)
    assert not (moves_as_centroids(changed) and moves_as_centroids(changed, drift=1e-7))


def gradients_are_sums(module):
    """Whether every weight that is left has the sum of its group's gradients, in numpy, and every zero none."""
    layer, plain = shared_layer(), shared_layer()
    before, _ = module.tie([layer.weight])
    x, y = torch.randn(16, 30, generator=torch.Generator().manual_seed(3)), torch.arange(16)
    for net in (layer, plain):
        nn.functional.cross_entropy(net(x), y).backward()
    before(0)
    theirs, weight = plain.weight.grad.numpy().astype(np.float64), plain.weight.detach().numpy()
    expected = np.zeros_like(theirs)
    for value in set(weight.ravel()) - {0.0}:
        expected[weight == value] = theirs[weight == value].sum()
    return np.allclose(layer.weight.grad.numpy(), expected, atol=1e-7)


def test_the_gradient_of_a_centroid_is_the_sum_of_its_weights_gradients():
    assert gradients_are_sums(cluster)
    assert not gradients_are_sums(mutant(cluster, "torch.where(shared, sums, 0.0)[labels]", "sums[labels]"))


def test_a_weight_without_a_gradient_is_left_alone():
    layer, unused = shared_layer(), shared_layer()
    before, behind = cluster.tie([layer.weight, unused.weight])
    kept = unused.weight.detach().clone()
    trained(layer, before, behind)
    assert torch.equal(unused.weight.detach(), kept)
