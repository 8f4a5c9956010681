"""Low-rank factors against numpy: decompositions, clusters, covariances, layers by direct summation, budgets."""

import itertools

import numpy as np
import pytest
import torch
from oracle import mutant, toy_task
from torch import nn

from baselines.errors import UserError
from baselines.models.tiny import TinyPlain, tiny_resnet
from methods.kit import factor


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def decaying(m, n, seed=0):
    """A matrix whose singular values fall fast, numpy float64."""
    g = np.random.default_rng(seed)
    return g.normal(size=(m, min(m, n))) * 0.7 ** np.arange(min(m, n)) @ g.normal(size=(min(m, n), n))


# -- matrices


def truncation_is_the_best(module, shapes=((6, 9), (9, 6), (7, 7))):
    """Eckart and Young: the error at rank k is the root of the sum of the squares of the singular values left out."""
    for seed, (m, n) in enumerate(shapes):
        matrix = decaying(m, n, seed)
        values = np.linalg.svd(matrix, compute_uv=False)
        for rank in range(1, min(m, n) + 1):
            left, found, right = (part.numpy() for part in module.svd(torch.tensor(matrix), rank))
            error = np.linalg.norm(matrix - left * found @ right)
            right_ranks = left.shape == (m, rank) and right.shape == (rank, n) and np.allclose(found, values[:rank])
            if not right_ranks or not np.isclose(error, np.sqrt((values[rank:] ** 2).sum()), atol=1e-10):
                return False
    return True


def test_the_truncated_svd_is_the_best_of_its_rank():
    assert truncation_is_the_best(factor)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(left * sign)[..., :rank]", "left[..., :rank]"),
        ("(right * sign.mT)[..., :rank, :]", "(right * sign.mT)[..., -rank:, :]"),
        ("values[..., :rank], (right", "values[..., :rank].square(), (right"),
    ],
)
def test_eckart_and_young_catch_a_changed_line(old, new):
    assert not truncation_is_the_best(mutant(factor, old, new))


def test_signs_are_fixed():
    matrix = torch.tensor(normal(3, 6, 5))
    left = factor.svd(matrix)[0].numpy()
    assert (np.take_along_axis(left, np.abs(left).argmax(1)[:, None], 1) > 0).all()
    assert torch.allclose(factor.svd(-matrix)[0].abs(), factor.svd(matrix)[0].abs())
    assert torch.allclose(factor.svd(-matrix)[0], factor.svd(matrix)[0])


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (1, 4), (2, 3, 6)])
def test_energies_are_squared_singular_values(shape):
    matrix = normal(*shape)
    assert np.allclose(factor.energies(torch.tensor(matrix)), np.linalg.svd(matrix, compute_uv=False) ** 2)


def ranks_are_lowest(module):
    """Whether each rank is the first in numpy's list of those that keep the share."""
    for seed in range(5):
        energy = np.sort(np.random.default_rng(seed).exponential(size=9))[::-1].copy()
        for share, total in itertools.product((0.0, 0.3, 0.5, 0.9, 0.999), (energy.sum(), 2 * energy.sum())):
            enough = [k for k in range(1, 10) if energy[:k].sum() >= share * total]
            if module.rank_for(torch.tensor(energy), share, total) != min(enough, default=9):
                return False
    return True


def test_the_rank_is_the_lowest_that_keeps_the_share():
    assert ranks_are_lowest(factor)
    energy = torch.tensor([4.0, 3.0, 2.0, 1.0]).double()
    assert [factor.rank_for(energy, share) for share in (0.4, 0.41, 0.7, 0.9, 0.901, 1.0)] == [1, 2, 2, 3, 4, 4]
    assert factor.rank_for(torch.tensor([5.0, 0, 0]).double(), 1.0) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".sum()) + 1, len(energy))", ".sum()), len(energy))"),
        ("kept = energy.cumsum(0)", "kept = energy.sqrt().cumsum(0)"),
        ("if total is None else total", ""),
    ],
)
def test_numpys_list_catches_a_changed_line(old, new):
    assert not ranks_are_lowest(mutant(factor, old, new))


# -- tensors


def truncated(matrix, rank):
    """(left, values, right) of numpy's SVD at this rank."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


def nested_by_numpy(cell, first, second):
    """The paper's two SVDs, one after the other, multiplied out: (c, s, f)."""
    c, s, f = cell.shape
    left, values, right = truncated(cell.reshape(c * s, f).T, second)
    again, more, rest = truncated(right.reshape(second, c, s).transpose(1, 0, 2).reshape(c, second * s), first)
    vectors = (again * more @ rest).reshape(c, second, s)
    return np.einsum("cks,k,fk->csf", vectors, values, left)


def nested_as_numpy(module):
    cells = normal(3, 5, 4, 6)
    for first, second in ((5, 6), (2, 3), (4, 2), (1, 1)):
        entry, core, leave = module.nested_svd(torch.tensor(cells), first, second)
        if entry.shape != (3, 5, first) or core.shape != (3, first, 4, second) or leave.shape != (3, 6, second):
            return False
        product = torch.einsum("bci,bisk,bfk->bcsf", entry, core, leave).numpy()
        if not np.allclose(product, [nested_by_numpy(cell, first, second) for cell in cells]):
            return False
    return True


def test_two_svds_as_numpys():
    assert nested_as_numpy(factor)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("outputs = left * values[:, None]", "outputs = left"),
        ("svd(vectors.flatten(2), first)", "svd(vectors.flatten(2) * values.max(), first)"),
        ("svd(cells.permute(0, 3, 1, 2).flatten(2), second)", "svd(cells.permute(0, 3, 2, 1).flatten(2), second)"),
    ],
)
def test_numpys_two_svds_catch_a_changed_line(old, new):
    assert not nested_as_numpy(mutant(factor, old, new))


def rank_one_from(cell, seed):
    """The squared norm of the best rank-one term of (c, s, f) that power iteration finds from one random start."""
    g = np.random.default_rng(seed)
    a, b, c = (g.normal(size=n) for n in cell.shape)
    for _ in range(50):
        a = np.einsum("csf,s,f->c", cell, b, c)
        b = np.einsum("csf,c,f->s", cell, a / np.linalg.norm(a), c)
        c = np.einsum("csf,c,s->f", cell, a / np.linalg.norm(a), b / np.linalg.norm(b))
        b, c = b / np.linalg.norm(b), c / np.linalg.norm(c)
    return np.einsum("csf,s,f->c", cell, b, c) @ np.einsum("csf,s,f->c", cell, b, c)


def terms_are_right(module):
    """Each term solves least squares in each of its factors, given the others; a dominant one is the best one."""
    cells = 0.2 * normal(4, 4, 5, 6)
    for seed, cell in enumerate(cells):
        cell += np.einsum("c,s,f->csf", *(normal(n, seed=seed) for n in cell.shape))
    entry, core, leave = (part.numpy() for part in module.rank_one_terms(torch.tensor(cells), 3))
    for b, cell in enumerate(cells):
        rest = cell
        for k in range(3):
            a, s, f = entry[b, :, k], core[b, :, k], leave[b, :, k]
            after = rest - np.einsum("c,s,f->csf", a, s, f)
            slopes = [np.einsum("csf,s,f->c", after, s, f), np.einsum("csf,c,f->s", after, a, f)]
            slopes.append(np.einsum("csf,c,s->f", after, a, s))
            energy = (rest**2).sum() - (after**2).sum()
            flat = all(np.abs(slope).max() < 1e-3 * np.linalg.norm(a) for slope in slopes)
            if not flat or not np.isclose(a @ a, energy) or not np.allclose([s @ s, f @ f], 1):
                return False
            if k == 0 and a @ a < (1 - 1e-6) * max(rank_one_from(cell, seed) for seed in range(5)):
                return False
            rest = after
    return True


def test_each_outer_product_is_the_best_of_what_is_left():
    assert terms_are_right(factor)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("terms.append(_rank_one(rest))", "terms.append(_rank_one(cells))"),
        ("for _ in range(SWEEPS):", "for _ in range(1):"),
        ('inputs = torch.einsum("bcsf', 'inputs = 2 * torch.einsum("bcsf'),
        ('_unit(torch.einsum("bsf,bs->bf", planes, entries))', "_unit(planes.sum(1))"),
    ],
)
def test_least_squares_catches_a_changed_line(old, new):
    assert not terms_are_right(mutant(factor, old, new))


def test_outer_products_of_a_matrix_are_its_singular_vectors():
    matrix = decaying(5, 7)
    entry, _, leave = factor.rank_one_terms(torch.tensor(matrix)[None, :, None], 3)
    left, values, right = truncated(matrix, 3)
    assert np.allclose(torch.einsum("bck,bfk->cf", entry, leave), left * values @ right, atol=1e-4)


def test_a_tensor_of_orthogonal_terms_is_taken_apart_again():
    parts = [np.linalg.qr(normal(n, 3, seed=n))[0] for n in (4, 5, 6)]
    cell = np.einsum("ck,sk,fk,k->csf", *parts, [3.0, 2.0, 1.0])
    entry, core, leave = factor.rank_one_terms(torch.tensor(cell)[None], 3)
    assert np.allclose(entry.square().sum(1), [9, 4, 1])
    assert np.allclose(torch.einsum("bck,bsk,bfk->bcsf", entry, core, leave)[0], cell, atol=1e-6)


def test_nothing_is_left_of_a_tensor_of_zeros():
    assert all(part.isfinite().all() for part in factor.rank_one_terms(torch.zeros(2, 3, 4, 5).double(), 2))


# -- clusters


def line_distances(rows, members):
    """Squared distances of all rows to the line nearest to some of them."""
    direction = np.linalg.svd(rows[members])[2][0]
    return (rows**2).sum(1) - (rows @ direction) ** 2


def no_swap_helps(module):
    """Equal sizes; no two rows would be nearer, in sum, to each other's lines; planted lines come back."""
    for seed, (n, count) in enumerate(((12, 2), (12, 3), (12, 4), (20, 2))):
        rows = normal(n, 5, seed=seed)
        clusters = module.equal_clusters(torch.tensor(rows), count, np.random.default_rng(0)).numpy()
        if sorted(clusters.flatten()) != list(range(n)) or clusters.shape != (count, n // count):
            return False
        far = np.stack([line_distances(rows, members) for members in clusters])
        for a, b in itertools.combinations(range(count), 2):
            for i, j in itertools.product(clusters[a], clusters[b]):
                if far[b, i] + far[a, j] < far[a, i] + far[b, j] - 1e-9:
                    return False
    lines, order = normal(3, 6), np.random.default_rng(1).permutation(12)
    rows = (np.repeat(lines, 4, axis=0) * normal(12, 1, seed=2))[order]
    found = module.equal_clusters(torch.tensor(rows), 3, np.random.default_rng(0)).numpy()
    return {frozenset(members) for members in found} == {
        frozenset(np.flatnonzero(order // 4 == line)) for line in range(3)
    }


def test_no_swap_of_two_rows_brings_them_nearer_to_the_lines():
    assert no_swap_helps(factor)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(np.repeat(along**2, size, axis=1), maximize=True)", "(np.repeat(along**2, size, axis=1))"),
        ("along = np.stack([_along(gram, labels == cluster)", "along = np.stack([along[:, cluster]"),
        ("np.repeat(along**2, size, axis=1)", "np.repeat(along, size, axis=1)"),
        ("vectors[:, -1]", "vectors[:, 0]"),
    ],
)
def test_swaps_catch_a_changed_line(old, new):
    assert not no_swap_helps(mutant(factor, old, new))


def test_one_cluster_as_many_clusters_as_rows_and_rows_of_zeros():
    rows, random = torch.tensor(normal(6, 4)), np.random.default_rng(0)
    assert factor.equal_clusters(rows, 1, random).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert sorted(factor.equal_clusters(rows, 6, random).flatten().tolist()) == [0, 1, 2, 3, 4, 5]
    assert factor.equal_clusters(torch.zeros(6, 4).double(), 2, random).shape == (2, 3)
    for count in (0, 4):
        with pytest.raises(UserError, match=f"6 channels cannot form {count} clusters of equal size"):
            factor.equal_clusters(rows, count, random)


def test_divisors():
    assert [factor.divisor(n, most) for n, most in ((16, 6), (64, 48), (3, 2), (20, 6), (7, 48))] == [4, 32, 1, 5, 7]


# -- the inputs of layers


def moments_by_numpy(model, task):
    """E[x x^T] of the inputs of TinyPlain's four layers, from maps that slices of the net give."""
    maps = torch.cat([x for x, _ in task.batches(30)])
    model = model.eval()
    reads = {"features.0": maps, "features.4": model.features[:4](maps)}
    flat = model.features(maps).flatten(1)
    reads |= {"classifier.1": flat, "classifier.3": model.classifier[:3](flat)}
    found = {}
    for name, x in reads.items():
        rows = x.detach().double().numpy()
        rows = rows.transpose(0, 2, 3, 1).reshape(-1, rows.shape[1]) if rows.ndim == 4 else rows
        found[name] = np.mean([np.outer(row, row) for row in rows], axis=0)
    return found


def covariances_as_numpy(module):
    model, task = TinyPlain(), toy_task()
    expected = moments_by_numpy(model, task)
    found = module.covariances(model, expected, task.batches(30, batch_size=7))
    return all(np.allclose(found[name], value, rtol=1e-4, atol=1e-6) for name, value in expected.items())


def test_covariances_are_means_over_images_and_places():
    assert covariances_as_numpy(factor)
    changed = mutant(factor, "return double(flat.T @ flat), len(flat)", "return double(flat.T @ flat), len(x)")
    assert not covariances_as_numpy(changed)
    changed = mutant(factor, "(x.movedim(1, -1) if x.dim() == 4 else x)", "x.reshape(-1, x.shape[1])[:, None]")
    assert not covariances_as_numpy(changed)


def test_covariances_of_nothing_and_of_a_net_that_has_diverged():
    model = TinyPlain()
    with pytest.raises(UserError, match="No image was given"):
        factor.covariances(model, ["features.4"], [])
    model.features[0].weight.data[0] = float("inf")
    with pytest.raises(UserError, match=r"inputs of features\.4 are not finite"):
        factor.covariances(model, ["features.4"], toy_task().batches(4))


def test_roots_of_covariances():
    """The square of the root is the covariance, the inverse undoes it; what is missing has an inverse all the same."""
    rows = normal(2, 3, 5)
    found = torch.tensor(np.einsum("bnc,bnd->bcd", rows, rows))
    root, inverse = (part.numpy() for part in factor.roots(found))
    assert np.allclose(root @ inverse, np.eye(5)) and np.allclose(root, root.transpose(0, 2, 1))
    largest = np.linalg.eigvalsh(found.numpy())[:, -1].max()
    assert np.abs(root @ root - found.numpy()).max() < 2e-6 * largest
    assert np.allclose(np.stack(factor.roots(torch.zeros(4, 4).double())), np.eye(4))


# -- layers


def convolved(x, weight, stride, padding, dilation, groups):
    """A convolution by its definition, in numpy: no bias."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    outputs, into, kh, kw = weight.shape
    height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    result = np.zeros((len(x), outputs, height, width))
    for o, c, i, j in itertools.product(range(outputs), range(into), range(kh), range(kw)):
        channel = o // (outputs // groups) * into + c
        rows, columns = i * dh + sh * np.arange(height), j * dw + sw * np.arange(width)
        result[:, o] += weight[o, c, i, j] * padded[:, channel][:, rows][:, :, columns]
    return result


GEOMETRIES = [
    ((3, 3), {"padding": 1}),
    ((3, 3), {"stride": 2, "padding": 1}),
    ((3, 2), {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)}),
    ((1, 1), {"stride": 2}),
]


def chain_is_the_dense_kernel(module):
    """1x1 - kernel - 1x1 in groups, with channels reordered, against a convolution with the kernel multiplied out."""
    for size, options in GEOMETRIES:
        layer = nn.Conv2d(6, 4, size, **options)
        entry, core, leave = normal(2, 3, 2), normal(2, 2, *size, 3), normal(2, 2, 3, seed=1)  # of 2 cells
        reads, writes = np.array([4, 0, 2, 5, 1, 3]), np.array([2, 0, 3, 1])
        dense = np.zeros((4, 6, *size))
        for g in range(2):
            block = np.einsum("ci,iyxk,fk->fcyx", entry[g], core[g], leave[g])
            dense[np.ix_(writes[2 * g : 2 * g + 2], reads[3 * g : 3 * g + 3])] = block
        x, shape = normal(2, 6, 7, 8, seed=2), (layer.stride, layer.padding, layer.dilation)
        expected = convolved(x, dense, *shape, 1) + layer.bias.detach().double().numpy()[:, None, None]
        weights = (
            torch.tensor(entry).mT.flatten(0, 1)[..., None, None],
            torch.tensor(core).permute(0, 4, 1, 2, 3).flatten(0, 1),
            torch.tensor(leave).flatten(0, 1)[..., None, None],
        )
        net = module.chain(layer, weights, torch.tensor(reads), torch.tensor(writes))
        ours = net(torch.tensor(x).float()).detach().numpy()
        if ours.shape != expected.shape or not np.allclose(ours, expected, atol=1e-4):
            return False
    return True


def test_layers_compute_the_kernel_that_the_factors_make():
    assert chain_is_the_dense_kernel(factor)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_reorder(writes.argsort(), layer)", "_reorder(writes, layer)"),
        ("bias = bias[writes.to(bias.device)]", "bias = bias[writes.argsort().to(bias.device)]"),
        ("made.append(_reorder(reads, layer))", "made.append(_reorder(reads.argsort(), layer))"),
        ("i == spatial, bias)", "i == 0, bias)"),
        ('for key in ("stride", "padding", "dilation", "padding_mode")', 'for key in ("stride", "padding")'),
    ],
)
def test_the_dense_kernel_catches_a_changed_line(old, new):
    try:
        assert not chain_is_the_dense_kernel(mutant(factor, old, new))
    except RuntimeError as error:  # the mutant builds layers that do not fit
        assert "size" in str(error)


def test_a_linear_layer_and_a_layer_with_the_stride_first():
    layer = nn.Linear(5, 4).double()
    first, second = torch.tensor(normal(2, 5)), torch.tensor(normal(4, 2))
    net, x = factor.chain(layer, (first, second)), torch.tensor(normal(3, 5))
    assert [type(m) for m in net] == [nn.Linear, nn.Linear] and net[0].bias is None and net[0].weight.dtype == x.dtype
    assert np.allclose(net(x).detach(), x.numpy() @ (second @ first).T.numpy() + layer.bias.detach().numpy())
    net = factor.chain(nn.Conv2d(5, 4, 1, stride=2, bias=False), (first[..., None, None], second[..., None, None]))
    assert [m.stride for m in net] == [(2, 2), (1, 1)] and net[1].bias is None


def test_the_order_of_channels_is_saved():
    first, second, x = factor.Reorder(4), factor.Reorder(4), torch.randn(2, 3, 2, 2)
    first.order.copy_(torch.tensor([2, 0, 1, 2]))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), x[:, [2, 0, 1, 2]]) and not list(first.parameters())


def test_kernels_and_replacing():
    net = TinyPlain()
    weight = net.features[4].weight
    assert np.allclose(factor.kernel(net.features[4])[3, 5, 7], weight[7, 3, 1, 2].item())
    assert factor.kernel(net.classifier[3]).shape == (24, 1, 4)
    net.set_submodule("classifier.3", nn.Identity())
    assert isinstance(net.classifier[3], nn.Identity)


def test_places_in_order_of_execution():
    runs = factor.places(tiny_resnet().train(), torch.zeros(1, 3, 16, 16))
    assert list(runs)[:6] == ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2"]
    assert runs["layer2.0.conv1"] == (256, 64) and runs["layer3.0.conv2"] == (16, 16) and runs["linear"] == (1, 1)

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.unused = nn.Linear(3, 2), nn.Conv2d(3, 3, 3, stride=2), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.first(x).mean((2, 3)))

    net = Backwards()
    assert factor.places(net, torch.zeros(2, 3, 7, 9)) == {"first": (63, 12), "last": (1, 1)}
    assert net.training and not net.first._forward_hooks
    modules = nn.ModuleDict(
        {"plain": nn.Conv2d(4, 4, 3), "grouped": nn.Conv2d(4, 4, 3, groups=2), "bn": nn.BatchNorm2d(4)}
    )
    assert factor.candidates(modules, modules) == ["plain"]


def test_what_is_fixed_does_not_change():
    net = TinyPlain()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with factor.fixed(net, ["features.0", "features.1"]):
        net.train()(torch.randn(8, 3, 16, 16)).square().sum().backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("features.0.", "features.1.")) for name in changed)
    assert {"features.4.weight", "features.5.running_mean", "classifier.3.bias"} <= changed
    assert all(p.requires_grad for p in net.parameters()) and not net._forward_pre_hooks


# -- budgets


def matrices(seeds=range(4)):
    """Linear layers of different sizes with falling singular values, and where they run."""
    found, runs = {}, {}
    for seed, (outputs, inputs, here) in zip(seeds, ((12, 20, 9), (30, 8, 4), (10, 10, 1), (16, 24, 2)), strict=True):
        layer = nn.Linear(inputs, outputs)
        layer.weight.data = torch.tensor(decaying(outputs, inputs, seed)).float()
        found[f"layer{seed}"], runs[f"layer{seed}"] = factor.Matrix(layer, torch.eye(inputs).double()), (here, here)
    return found, runs


def macs_of(found, runs, ranks, rest=300):
    """MACs of the layers at these ranks, from the definition."""
    total = rest
    for name, one in found.items():
        outputs, inputs = one.layer.weight.shape
        total += runs[name][1] * (ranks[name][0] * (outputs + inputs) if name in ranks else outputs * inputs)
    return total


def the_largest_share_is_taken(module):
    """Whether no step of the energies that would keep more meets the budget, of all that there are."""
    found, runs = matrices()
    whole = macs_of(found, runs, {})

    def at(share):
        ranks = {}
        for name, one in found.items():
            energy = np.linalg.svd(one.layer.weight.detach().double().numpy(), compute_uv=False) ** 2
            rank = 1 + int((energy.cumsum() < share * energy.sum() * (1 - 1e-9)).sum())
            if rank * sum(one.layer.weight.shape) < one.layer.weight.numel():
                ranks[name] = (rank,)
        return ranks

    costs = np.array([macs_of(found, runs, at(share)) for share in np.linspace(0, 1, 501)])
    for reduction in (0.0, 0.3, 0.5, 0.7):
        try:
            share, ranks = module.plan(found, runs, whole, 0.9, reduction)
        except UserError:  # out of reach, says a mutant
            return False
        best = costs[costs <= whole * (1 - reduction)].max()
        if ranks != at(share) or not best <= macs_of(found, runs, ranks) <= whole * (1 - reduction):
            return False
    return module.plan(found, runs, whole, 0.9, None) == (0.9, at(0.9))


def test_a_budget_takes_the_largest_share_that_meets_it():
    assert the_largest_share_is_taken(factor)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(middle, high) if macs(middle) <= goal", "(middle, high) if macs(middle) <= 0.9 * goal"),
        ("goal, low, high = whole * (1 - reduction)", "goal, low, high = whole * (1 - reduction / 2)"),
        ("saved = (weights - behind) * out - before * into", "saved = weights - behind - before"),
        ("if saved > 0 and before + behind < weights:", "if True:"),
    ],
)
def test_all_steps_catch_a_changed_line(old, new):
    assert not the_largest_share_is_taken(mutant(factor, old, new))


def test_a_layer_that_saves_weights_but_no_macs_stays():
    class Strided(factor.Matrix):
        def sizes(self, rank):
            return rank * self.weight.shape[0], rank * self.weight.shape[1]

    layer = nn.Linear(8, 8)
    one = {"a": Strided(layer, torch.eye(8).double())}
    assert factor.plan(one, {"a": (1, 1)}, 64, 0.1, None)[1] == {"a": (1,)}
    assert factor.plan(one, {"a": (20, 1)}, 64, 0.1, None)[1] == {}


@pytest.mark.parametrize(
    ("energy", "reduction", "words"),
    [
        (0.0, None, r"energy=0.0 lies outside \(0, 1\]"),
        (1.1, None, r"energy=1.1 lies outside \(0, 1\]"),
        (0.9, 1.0, r"MACs reduction 1.0 lies outside \[0, 1\)"),
        (0.9, 0.99, r"0.99 is out of reach: at the lowest ranks it is 0\.\d{4}"),
    ],
)
def test_budgets_that_cannot_be_met(energy, reduction, words):
    found, runs = matrices()
    with pytest.raises(UserError, match=words):
        factor.plan(found, runs, macs_of(found, runs, {}), energy, reduction)
