"""Data sets: splits, augmentation against a naive loop, and sentences for files that are missing or damaged."""

import struct

import numpy as np
import pytest
import torch

from baselines.data import ArraySplit, Augment, DataOptions, fetch, imagenet, imagenette, mnist5k, stored, synthetic
from baselines.errors import UserError


def arrays(n=20, classes=10):
    random = np.random.RandomState(1)
    x = random.randint(0, 256, (n, 32, 32, 3)).astype(np.uint8)
    return {"x_train": x, "y_train": np.arange(n).astype(np.uint8) % classes, "x_test": x, "y_test": np.arange(n) % 10}


def test_mnist5k_is_stratified_disjoint_and_padded():
    data = mnist5k(DataOptions())
    assert [len(data.train), len(data.test)] == [2500, 2500]
    for split in (data.train, data.test):
        assert split.y.bincount().tolist() == [250] * 10
        assert split.shape() == (3, 32, 32)
        assert split.x[:, :2].max() == 0 and split.x[:, :, -2:].max() == 0
    images = {image.numpy().tobytes() for image in data.train.x}
    assert not images & {image.numpy().tobytes() for image in data.test.x}
    small = mnist5k(DataOptions(), side=28, channels=1)
    assert torch.equal(small.train.x[..., 0], data.train.x[:, 2:-2, 2:-2, 1])


def test_data_is_the_same_every_time_and_its_hash_says_so():
    first, second = synthetic(DataOptions()), synthetic(DataOptions())
    assert first.sha256 == second.sha256 and set(first.sha256) == {"x_train", "y_train", "x_test", "y_test"}
    assert first.sha256["x_train"] != synthetic(DataOptions(), train=128).sha256["x_train"]


@pytest.mark.parametrize("augment", [Augment(), Augment(crop=2), Augment(crop=2, flip=True)])
def test_batched_augmentation_equals_a_loop_over_images(augment):
    random = np.random.RandomState(0)
    x = random.randint(0, 256, (12, 6, 6, 3)).astype(np.uint8)
    split = ArraySplit(torch.from_numpy(x), torch.arange(12))
    got = [*split.epoch(augment, 5, torch.Generator().manual_seed(3))]
    assert [len(y) for _, y in got] == [5, 5], "only full batches"
    generator = torch.Generator().manual_seed(3)  # the same draws, used image by image
    order = torch.randperm(12, generator=generator).tolist()
    place = torch.randint(0, 2 * augment.crop + 1, (2, 12), generator=generator).tolist()
    mirror = (torch.rand(12, generator=generator) < 0.5).tolist() if augment.flip else [False] * 12
    images, labels = torch.cat([x for x, _ in got]), torch.cat([y for _, y in got])
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        pad = augment.crop
        canvas = np.pad(x[order[i]], ((pad, pad), (pad, pad), (0, 0)))
        want = canvas[place[0][i] : place[0][i] + 6, place[1][i] : place[1][i] + 6]
        want = want[:, ::-1] if mirror[i] else want
        assert label == order[i] and np.array_equal(image.permute(1, 2, 0).numpy(), want)
    assert not augment.flip or 0 < sum(mirror) < 12


def test_resized_crops_stay_inside_and_the_full_box_is_the_image():
    from baselines.data import resized_boxes, resized_crop

    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    whole = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(3, 2, 3)
    assert torch.allclose(resized_crop(x, whole), x.float(), atol=1e-3)
    mirrored = torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(3, 2, 3)
    assert torch.allclose(resized_crop(x, mirrored), x.flip(3).float(), atol=1e-3)
    boxes = resized_boxes(500, torch.Generator().manual_seed(0))
    reach = boxes[:, [0, 1], [0, 1]].abs() + boxes[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-5, "a box leaves the image"


def test_cifar_reads_the_npz(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **arrays())
    data = stored("cifar10", DataOptions(root=str(tmp_path)))
    assert torch.equal(data.train.x, torch.from_numpy(arrays()["x_train"])) and data.train.y.dtype == torch.int64


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.write_bytes(b"not a zip"), "cannot be read as cifar10"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be read as cifar10"),
        (lambda path: np.savez(path, x_train=np.zeros(3)), "cannot be read as cifar10"),
        (lambda path: np.savez(path, **{**arrays(), "x_test": np.zeros((20, 28, 28))}), r"x_test is float64 \(20, 28"),
        (lambda path: np.savez(path, **{**arrays(), "y_train": np.full(20, 99)}), "labels of train lie outside 0..9"),
    ],
)
def test_a_damaged_file_is_named_and_the_way_out_too(tmp_path, damage, words):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays())
    damage(path)
    with pytest.raises(UserError, match=words) as caught:
        stored("cifar10", DataOptions(root=str(tmp_path)))
    assert str(path) in str(caught.value) and "scripts/fetch_data.py cifar10" in str(caught.value)


def test_missing_data_names_the_path_and_the_command(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", offline)
    with pytest.raises(UserError, match=r"no cifar100 in .*no network.*scripts/fetch_data.py cifar100") as caught:
        stored("cifar100", DataOptions(root=str(tmp_path)))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(UserError, match=r"no ImageNet in .*expected train/<wnid>"):
        imagenet(DataOptions(root=str(tmp_path)))
    with pytest.raises(UserError, match=r"no download for 'svhn'\. Choose one of: mnist, cifar10, cifar100, "):
        fetch("svhn", tmp_path)


def idx(values):
    """The bytes of an IDX file of uint8: magic number (type, dimensions), big-endian sizes, values."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def test_mnist_comes_through_torchvision_once_and_is_kept(tmp_path, monkeypatch):
    import torchvision.datasets

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random, digits = np.random.RandomState(0), {}
    for part, name, n in (("train", "train", 30), ("test", "t10k", 20)):
        x, y = random.randint(0, 256, (n, 28, 28), np.uint8), random.randint(0, 10, n, np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(x))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(y))
        digits[part] = x, y
    data = stored("mnist", DataOptions(root=str(tmp_path)))
    assert (data.name, data.num_classes, data.train.shape()) == ("mnist", 10, (1, 28, 28))
    for part, (x, y) in digits.items():
        split = getattr(data, part)
        assert np.array_equal(split.x[..., 0], x) and np.array_equal(split.y, y) and split.x.dtype == torch.uint8
    monkeypatch.delattr(torchvision.datasets, "MNIST")
    assert stored("mnist", DataOptions(root=str(tmp_path))).sha256 == data.sha256
    np.savez(tmp_path / "mnist.npz", **arrays())
    with pytest.raises(UserError, match=r"x_train is uint8 \(20, 32, 32, 3\).*expected uint8 \(N, 28, 28, 1\)"):
        stored("mnist", DataOptions(root=str(tmp_path)))


def folders(root, wnids, per_class, parts=("train", "val"), size=(30, 24)):
    from PIL import Image

    for part in parts:
        for k, wnid in enumerate(wnids):
            (root / part / wnid).mkdir(parents=True)
            for i in range(per_class):
                Image.new("RGB", size, (20 * k, 10 * i, 90)).save(root / part / wnid / f"{wnid}_{i}.JPEG")


def test_imagenet_subset_is_deterministic_and_named(tmp_path):
    folders(tmp_path / "imagenet", ["n01", "n02", "n03"], 4)
    data = imagenet(DataOptions(root=str(tmp_path), classes=2, per_class=3))
    assert data.name == "imagenet[2x3]" and len(data.train) == 6 and data.num_classes == 3
    assert data.subset == (0, 1), "accuracy among the subset's classes is a number of its own"
    assert [f.name for f in data.test.files] == ["n01_0.JPEG", "n01_1.JPEG", "n01_2.JPEG"] + [
        f"n02_{i}.JPEG" for i in range(3)
    ]
    whole = imagenet(DataOptions(root=str(tmp_path)))
    assert whole.name == "imagenet" and whole.subset is None and whole.sha256 != data.sha256
    data.train.workers = 0
    x, y = next(data.train.epoch(Augment(), 4, torch.Generator().manual_seed(0)))
    assert x.shape == (4, 3, 224, 224) and x.dtype == torch.uint8 and set(y.tolist()) <= {0, 1}
    data.train.y = torch.arange(6)  # names the file
    shares = [slice(0, 6), slice(0, 2), slice(2, 6)]
    whole, *parts = (next(data.train.epoch(Augment(), 6, torch.Generator().manual_seed(0), part))[1] for part in shares)
    assert torch.equal(torch.cat(parts), whole) and [len(part) for part in parts] == [2, 4]


def test_imagenette_keeps_the_labels_of_the_thousand(tmp_path):
    from baselines.data import IMAGENETTE

    folders(tmp_path / "imagenette2k", list(IMAGENETTE), 1, size=(300, 224))
    data = imagenette(DataOptions(root=str(tmp_path)))
    assert data.num_classes == 1000 and data.train.y.tolist() == list(IMAGENETTE.values()) == list(data.subset)
    assert data.train.shape() == (3, 224, 224)
    (tmp_path / "imagenette2k" / "val" / "n01440764" / "broken.JPEG").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken.JPEG cannot be read as an image"):
        imagenette(DataOptions(root=str(tmp_path)))


def test_a_subset_is_refused_where_there_is_none():
    with pytest.raises(UserError, match="not of mnist5k"):
        mnist5k(DataOptions(classes=3))
