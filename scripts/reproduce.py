"""The runs behind every table, as data, and the loop that makes the ones that are missing.

    python scripts/reproduce.py --list
    python scripts/reproduce.py --budget short --only hrank,l1_filter resnet56 --weights-dir WEIGHTS --minutes 55

A run with a fresh record is skipped, so the command can be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repro.record import Record

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = {
    "resnet56_cifar10": "resnet56_cifar10.safetensors",
    "resnet50_imagenette": "resnet50_imagenet.safetensors",
    "vgg16_cifar10": "vgg16_cifar10.safetensors",
}
HARMLESS = ("device.", "cache=", "data.root=", "latency=", "verbose=")
START_UP = 30.0  # seconds of a run outside its meter: imports, data, measuring
MARGIN = 1.25  # estimates are stretched by this factor
MINUTES = {"smoke": 1, "zero": 3, "short": 15, "paper": 120}  # where there is nothing to go by
OWN_RECIPE, NO_RECIPE = "", "none"


@dataclass(frozen=True)
class Cell:
    """One line of a table: a method on a baseline at a budget, run once for every seed.

    ``recipe``: "" the baseline's own, "none" the method's defaults, else the variant's name. ``settings`` are
    hyper-parameters on top. ``given``: the dense net comes from a file of --weights-dir. ``parent``: each run starts
    from that cell's run with the same seed, which has to be there before it. ``tier``: the cells of a lower one are all
    run first.
    """

    method: str
    baseline: str
    budget: str
    seeds: tuple[int, ...] = (0,)
    recipe: str = OWN_RECIPE
    settings: dict[str, float | bool | str] = field(default_factory=dict)
    given: bool = False
    parent: Cell | None = None
    tier: int = 0


@dataclass(frozen=True)
class Job:
    """One run: a cell with one of its seeds."""

    cell: Cell
    seed: int

    def __str__(self) -> str:
        cell = self.cell
        recipe = "" if cell.recipe in (OWN_RECIPE, NO_RECIPE) else f" [{cell.recipe}]"
        settings = "".join(f" {key}={value}" for key, value in cell.settings.items())
        start = f" after ({self.parent})" if self.parent else ""
        return f"{cell.method}{recipe}{settings} {cell.baseline} {cell.budget} seed {self.seed}{start}"

    @property
    def parent(self) -> Job | None:
        """The run that this one starts from."""
        return Job(self.cell.parent, self.seed) if self.cell.parent else None


def board(baseline: str, budget: str, rows: str, seeds: tuple[int, ...] = (0, 1, 2), given: bool = False) -> list[Cell]:
    """Cells of one board; ``rows`` holds METHOD or METHOD/VARIANT, the most valuable first."""
    named = (row.partition("/") for row in rows.split())
    return [Cell(method, baseline, budget, seeds, variant, given=given) for method, _, variant in named]


def zero_board(baseline: str, images: int | None = None) -> list[Cell]:
    """Right after pruning, no training: every one-shot criterion at uniform ratios. Only random has several seeds.

    ``images``: how many the activations are taken from, where 500 (APoZ: its 1,000) of 224 x 224 pixels cost too much.
    Channel pruning then takes more samples of each: least squares have 4,608 unknowns in ResNet-50's last blocks.
    Network slimming's limit makes its one threshold a uniform ratio: the scales are those of the trained net.
    """
    fewer, images = {"images": images} if images else {}, images or 500
    cells = [Cell("dense", baseline, "zero", given=True)]
    for ratio in (0.1, 0.3, 0.5, 0.7, 0.9):
        for method, settings, seeds in (
            ("hrank", {"ratio": ratio, "layerwise": False, "images": images}, (0,)),
            ("l1_filter", {"ratio": ratio}, (0,)),
            ("random_filter", {"ratio": ratio}, (0, 1, 2)),
            ("apoz", {"ratio": ratio, "rounds": 1, **fewer}, (0,)),
            ("entropy", {"ratio": ratio, "layerwise": False, "images": images}, (0,)),
            ("thinet", {"ratio": ratio, "layerwise": False, "images": images}, (0,)),
            ("channel_pruning", {"ratio": ratio, "images": images, "locations": 5000 // images}, (0,)),
            ("network_slimming", {"ratio": ratio, "limit": ratio, "scratch": False}, (0,)),
        ):
            cells.append(Cell(method, baseline, "zero", seeds, NO_RECIPE, settings, given=True))
    return cells


def at_macs(
    percent: int, baseline: str, budget: str, seeds: tuple[int, ...] = (0, 1, 2), given: bool = False
) -> list[Cell]:
    """Every structured method, and its controls, with ``percent`` of the MACs removed."""
    cells = [Cell(method, baseline, budget, seeds, f"macs{percent}", given=given) for method in STRUCTURED.split()]
    return [*cells, *without_recipes(percent / 100, baseline, budget, seeds, given)]


def without_recipes(
    share: float, baseline: str, budget: str, seeds: tuple[int, ...] = (0, 1, 2), given: bool = False
) -> list[Cell]:
    """The structured methods that can remove any share of the MACs at once."""
    settings = {"macs_reduction": share}
    return [
        Cell(method, baseline, budget, seeds, NO_RECIPE, {**settings, **more}, given=given)
        for method, more in (("random_filter", {}), ("l1_filter", {}), ("hrank", {"layerwise": False}))
    ]


def half(baseline: str, seeds: tuple[int, ...], given: bool = False) -> list[Cell]:
    """Every structured method, and its controls, at half of the MACs, short."""
    return at_macs(50, baseline, "short", seeds, given)


def widths_of(cells: Iterable[Cell]) -> list[Cell]:
    """The control of structured methods at sizes of their own: by lot, as many filters as each left in every layer."""
    settings = {"scope": "parent", "epochs": 30, "lr": 0.01}
    return [replace(c, method="random_filter", recipe=NO_RECIPE, settings=settings, parent=c) for c in cells]


def trained_anew(cells: Iterable[Cell], variants: Iterable[str] = (OWN_RECIPE,)) -> list[Cell]:
    """The control of structures: those that these runs found, trained from new weights as the dense net is."""
    return [replace(c, method="scratch", recipe=v, settings={}, parent=c) for c in cells for v in variants]


def as_sparse_as(cells: Iterable[Cell]) -> list[Cell]:
    """The controls of weight pruning: by magnitude and by lot, as many weights as each run left in every layer."""
    settings = {"scope": "parent", "lr": 0.005}
    return [
        replace(c, method=control, recipe=NO_RECIPE, settings=settings, parent=c)
        for c in cells
        for control in ("magnitude", "random_weight")
    ]


def at_rate(cells: Iterable[Cell], rate: float) -> list[Cell]:
    """These runs fine-tuned at another learning rate: whether theirs is why they lose, in so short a training."""
    return [replace(c, settings={**c.settings, "finetune_lr" if c.method == "gal" else "lr": rate}) for c in cells]


def all_at_once(cells: Iterable[Cell]) -> list[Cell]:
    """Scored and pruned in one step: where 32 layers, each scored from the training images anew, would take hours."""
    return [replace(c, settings={**c.settings, "layerwise": False}) for c in cells]


def as_hrank(shares: Iterable[float], baseline: str, seeds: tuple[int, ...], given: bool = False) -> list[Cell]:
    """The controls of HRank at these shares of the MACs, fine-tuned at its learning rate."""
    cells = [cell for share in shares for cell in without_recipes(share, baseline, "short", seeds, given)]
    return at_rate([cell for cell in cells if cell.method != "hrank"], 0.01)


def finetuned_more(cells: Iterable[Cell]) -> list[Cell]:
    """More training behind the last cut, which has 4 of a pass's 46 steps in network slimming, 23 in GAL, 11 in APoZ.

    Network slimming's 60 epochs before the cut and 5 after it are changed over, GAL has a tenth of its game before it,
    and APoZ's four rounds are one.
    """
    shares = {
        "network_slimming": {"sparse_epochs": 5.0, "epochs": 60.0},
        "gal": {"epochs": 10.0},
        "apoz": {"rounds": 1},
    }
    return [replace(c, settings=shares[c.method]) for c in cells]


STRUCTURED = "thinet channel_pruning network_slimming apoz entropy ssl gal"
LOW_RATE = "thinet/macs50 channel_pruning/macs50 apoz/macs50 entropy/macs50"
LATE = "gal/macs50 network_slimming/macs50"  # which cut late in the time they have
SPARSE = "han_pruning magnitude/2x magnitude/4x magnitude/8x magnitude/16x magnitude/32x"
SEARCH = "amc amc/fine_grained abcpruner abcpruner/macs50 combination_pruning"
DEEP = "deep_compression deep_compression/PQ deep_compression/P"
BINARY = "binaryconnect binaryconnect/stochastic bnn xnor_net xnor_net/scaled xnor_net/bwn"
BITS = f"{DEEP} twn twn/layer twn/exact {BINARY}"
HAN = f"dense han_pruning magnitude/han random_weight/han {DEEP}"
GROUPS = "ssl ssl/LeNet-3 ssl/shapes ssl/shapes-5"
LENET = f"{HAN} twn binaryconnect bnn xnor_net xnor_net/bwn svd"
CONVNET = "dense twn binaryconnect bnn xnor_net xnor_net/bwn"
COMBINATION = "combination_pruning combination_pruning/ddpg combination_pruning/three_sigma"
FC = f"dense {COMBINATION}"
FIG5 = "dense combination_pruning l1_filter/weight_sum apoz/survey"
DISTILLATION = "student fitnets at at/gradient at/kd"
TAB4 = f"dense l1_filter random_filter/l1_A {COMBINATION} gal entropy/survey"
REPDISTILLER = "student kd fitnets/repdistiller at"
COMPACT = "ghostnet ghostnet/s4 ghostnet/inherit mobilenet_v1 mobilenet_v1/w025"
LOW_RANK = "svd svd/outer svd/oneshot svd/macs30 svd/macs70"
DIALLED = ("vgg16_mnist5k", "resnet56_cifar10", "vgg16_cifar10", "resnet56_cifar100", "resnet50_imagenette")
OTHERS = (
    *("lenet300_mnist5k", "lenet5_mnist5k", "vgg16fc_mnist5k", "bnn_convnet_mnist5k", "vggsmall_mnist5k"),
    *("lenet300_mnist", "lenet5_mnist", "vgg16fc_cifar10", "bnn_convnet_cifar10", "vggsmall_cifar10"),
)
TIERS = {"short": 1, "paper": 3}  # of the operating points; one more: the other recipes
EXCLUDED = {  # baselines without a run
    "resnet50_imagenet": "ImageNet is not free to fetch, and one training takes a day of several GPUs",
    "tiny_plain_synthetic": "of the contract checks, at budget smoke",
    "tiny_resnet_synthetic": "of the contract checks, at budget smoke",
}
DIALS = {  # sizes that no recipe names, of methods that are told their size by something else than MACs
    "deep_compression": [{"conv_bits": bits, "fc_bits": bits} for bits in (2, 3, 4, 6, 8)],
    "han_pruning": [{"quality": quality} for quality in (0.5, 0.75, 1.0, 1.25, 1.5)],
    "combination_pruning": [{"sparsity": share} for share in (0.5, 0.6, 0.7, 0.8, 0.9)],
    "ghostnet": [{"ratio": ratio} for ratio in (2, 3, 4, 5)],
    "mobilenet_v1": [{"width": width} for width in (1.0, 0.75, 0.5, 0.25)],
}
MNIST = "dense hrank l1_filter random_filter/hrank random_filter/l1_A kd hrank/oneshot"
RESNET56 = "dense hrank/oneshot l1_filter random_filter/hrank random_filter/l1_B"
VGG16 = "dense hrank/oneshot l1_filter random_filter/hrank random_filter/l1_A"


def matrix() -> list[Cell]:
    """Every cell behind the tables: what a table needs, the most valuable first; then all that the methods can do."""
    found: dict[tuple, Cell] = {}
    for cell in (*needed(), *operating_points(), *every_recipe()):
        found.setdefault(run_of(cell), cell)
    return list(found.values())


def needed() -> list[Cell]:
    """The cells that answer a question on their own."""
    return [
        *board("vgg16_mnist5k", "short", MNIST),
        *zero_board("resnet56_cifar10"),
        *zero_board("resnet50_imagenette", images=100),
        *board("resnet56_cifar10", "short", f"{RESNET56} hrank", (0, 1), given=True),
        *board("vgg16_mnist5k", "short", f"{STRUCTURED} {SPARSE}"),
        *half("vgg16_mnist5k", (0, 1, 2)),
        *widths_of(board("vgg16_mnist5k", "short", "thinet channel_pruning network_slimming entropy gal apoz")),
        *at_rate(board("vgg16_mnist5k", "short", "entropy thinet gal apoz apoz/macs50"), 0.01),
        *half("resnet56_cifar10", (0, 1), given=True),
        *as_hrank((0.5,), "resnet56_cifar10", (0, 1), given=True),
        *as_hrank((0.5, 0.735), "vgg16_mnist5k", (0, 1, 2)),
        *board("resnet56_cifar10", "short", "apoz entropy network_slimming thinet gal", (0, 1), given=True),
        *at_rate(board("resnet56_cifar10", "short", f"{LOW_RATE} ghostnet", (0,), given=True), 0.01),
        *at_rate(board("resnet56_cifar10", "short", "gal", (1,), given=True), 0.01),  # the seed with a block removed
        *board("vgg16_mnist5k", "short", f"{SEARCH} {BITS}"),
        *trained_anew(board("vgg16_mnist5k", "short", "thinet/macs50 network_slimming/macs50")),
        *as_sparse_as(board("vgg16_mnist5k", "short", "han_pruning amc/fine_grained")),
        *board("vgg16fc_mnist5k", "short", FC),
        *at_rate(as_sparse_as(board("vgg16fc_mnist5k", "short", "combination_pruning combination_pruning/ddpg")), 0.05),
        *at_rate(as_sparse_as(board("vgg16fc_mnist5k", "short", "combination_pruning/three_sigma")), 0.1),
        *board("resnet56_cifar100", "short", FIG5, (0, 1)),
        Cell("magnitude", "resnet56_cifar100", "short", (0, 1), NO_RECIPE, {"sparsity": 0.8}),
        # by lot, as wide as FIG5's l1_filter leaves every layer, and trained as long at the same rate
        Cell("random_filter", "resnet56_cifar100", "short", (0, 1), NO_RECIPE, {"ratio": 0.8, "rounding": "keep"}),
        *board("resnet56_cifar10", "short", "amc deep_compression twn xnor_net bnn", (0, 1), given=True),
        *board("lenet300_mnist5k", "short", LENET),
        *board("lenet5_mnist5k", "short", LENET),
        *board("lenet300_mnist", "paper", HAN),
        *board("lenet5_mnist", "paper", f"{HAN} {GROUPS} apoz"),
        *board("bnn_convnet_mnist5k", "short", CONVNET),
        *board("vgg16_mnist5k", "short", f"{DISTILLATION} {COMPACT} {LOW_RANK}"),
        *without_recipes(0.735, "vgg16_mnist5k", "short"),  # MACs and parameters of the student and of Ghost-VGG16, s=4
        *board("resnet56_cifar10", "short", "student kd fitnets at ghostnet svd svd/oneshot", (0, 1), given=True),
        *board("resnet56_cifar10", "short", "han_pruning mobilenet_v1 abcpruner binaryconnect", (0, 1), given=True),
        *as_sparse_as(board("resnet56_cifar10", "short", "han_pruning", (0, 1), given=True)),
        *trained_anew(board("resnet56_cifar10", "short", "abcpruner", (0, 1), given=True)),
        *board("resnet50_imagenette", "short", "dense", (0,), given=True),
        *half("resnet50_imagenette", (0,), given=True),
        *at_macs(30, "resnet50_imagenette", "short", (0,), given=True),
        *as_hrank((0.5, 0.3), "resnet50_imagenette", (0,), given=True),
        *finetuned_more(board("resnet50_imagenette", "short", "network_slimming/macs50 apoz/macs30", (0,), given=True)),
        *all_at_once(board("resnet50_imagenette", "short", "entropy/macs50 entropy/macs30", (0,), given=True)),
        *at_rate(board("resnet50_imagenette", "short", f"{LATE} thinet/macs50", (0,), given=True), 0.01),
        *at_rate(finetuned_more(board("resnet50_imagenette", "short", f"{LATE} apoz/macs30", (0,), given=True)), 0.01),
        *board("vgg16_cifar10", "short", f"{TAB4} hrank/oneshot random_filter/hrank hrank", (0, 1), given=True),
        *at_rate(board("vgg16_cifar10", "short", "gal", (0,), given=True), 0.01),
        *widths_of(board("vgg16_cifar10", "short", "gal", (0,), given=True)),
        *board("resnet56_cifar100", "short", REPDISTILLER, (0,)),
        *board("resnet56_cifar100", "paper", f"{RESNET56} {REPDISTILLER} l1_filter/weight_sum hrank"),
        *board("vgg16_cifar10", "paper", f"{VGG16} ghostnet hrank/HRank-1 hrank/HRank-3 student kd hrank"),
        *trained_anew(board("vgg16_cifar10", "paper", "l1_filter"), (OWN_RECIPE, "B")),
        *board("resnet50_imagenette", "paper", "dense hrank l1_filter random_filter", given=True),
        *board("resnet56_cifar10", "paper", f"{RESNET56} l1_filter/A hrank/HRank-1 hrank/HRank-3 hrank", given=True),
        *trained_anew(board("resnet56_cifar10", "paper", "l1_filter l1_filter/A", given=True), (OWN_RECIPE, "B")),
    ]


def operating_points() -> list[Cell]:
    """What methods with a dial give at up to five of its values, and their controls; half of the MACs first."""
    cells = []
    for baseline, budget in places(DIALLED):
        seeds, given = seeds_of(baseline, budget), is_given(baseline, budget)
        here = [cell for percent in (50, 30, 70) for cell in at_macs(percent, baseline, budget, seeds, given)]
        dials = DIALS.items() if baseline in DIALLED[:3] else ()
        here += [Cell(m, baseline, budget, seeds, settings=v, given=given) for m, values in dials for v in values]
        cells += [replace(cell, tier=TIERS[budget]) for cell in here]
    return cells


def every_recipe() -> list[Cell]:
    """Every recipe of every method, short and paper, but for those of the baselines in EXCLUDED.

    ``scratch`` takes the structure of ``l1_filter`` at half of the MACs.
    """
    from repro.registry import entries

    cells = []
    for baseline, budget in places((*DIALLED, *OTHERS)):
        seeds, given, tier = seeds_of(baseline, budget)[:1], is_given(baseline, budget), TIERS[budget] + 1
        parent = Cell("l1_filter", baseline, budget, seeds, NO_RECIPE, {"macs_reduction": 0.5}, given)
        for method, entry in entries().items():
            names = [name.partition("/") for name in (entry.cls.recipes if entry.cls else ())]
            variants = [variant for net, _, variant in names if net == baseline]
            if method == "scratch":
                here = trained_anew([parent], variants)
            else:
                here = [Cell(method, baseline, budget, seeds, v, given=given) for v in variants]
            cells += [replace(cell, tier=tier) for cell in here]
    return cells


def places(names: Iterable[str]) -> list[tuple[str, str]]:
    """(baseline, budget) of the boards of ``names`` with training: all short ones first."""
    from baselines import base

    names = list(names)
    return [(name, budget) for budget in TIERS for name in names if budget in base.load(name).budgets]


def seeds_of(baseline: str, budget: str) -> tuple[int, ...]:
    """The seeds that a board of operating points has."""
    if baseline in ("resnet56_cifar100", "resnet50_imagenette"):
        return (0,)
    return (0, 1) if budget == "short" and not baseline.endswith("mnist5k") else (0, 1, 2)


def is_given(baseline: str, budget: str) -> bool:
    """Whether the dense net of a board comes from a file: VGG-16 at budget paper is trained as its papers do."""
    return baseline in WEIGHTS and (baseline, budget) != ("vgg16_cifar10", "paper")


def run_of(cell: Cell) -> tuple:
    """What a run of ``cell`` is known by, but for its seed and its weights."""
    before = run_of(cell.parent) if cell.parent else None
    return cell.method, cell.baseline, cell.budget, json.dumps(hyperparameters(cell), sort_keys=True), before


def jobs(cells: Iterable[Cell]) -> list[Job]:
    """The runs of ``cells`` by their tiers; on one board, seed 0 of every cell comes before seed 1 of any."""
    cells = list(cells)
    boards = list(dict.fromkeys((c.tier, c.baseline, c.budget) for c in cells))
    found = []
    for board in sorted(boards, key=lambda board: board[0]):
        here = [c for c in cells if (c.tier, c.baseline, c.budget) == board]
        seeds = sorted({s for c in here for s in c.seeds})
        found += [Job(c, seed) for seed in seeds for c in here if seed in c.seeds]
    return found


def select(cells: Iterable[Cell], only: Iterable[str] = (), budget: str | None = None) -> list[Cell]:
    """Cells at ``budget`` in which every word of ``only`` (or one of its comma-separated parts) occurs.

    A word is looked for in the names of method, baseline and budget.
    """

    def wanted(cell: Cell) -> bool:
        names = (cell.method, cell.baseline, cell.budget)
        return all(any(part in name for part in word.split(",") if part for name in names) for word in only)

    return [c for c in cells if wanted(c) and budget in (None, c.budget)]


def hyperparameters(cell: Cell) -> dict:
    """The hyper-parameters that a run of ``cell`` has, as its record writes them; UserError for an unknown recipe."""
    from baselines.errors import UserError
    from repro.record import plain
    from repro.registry import method_class

    cls = method_class(cell.method)
    key = f"{cell.baseline}/{cell.recipe}" if cell.recipe else cell.baseline
    if cell.recipe not in (OWN_RECIPE, NO_RECIPE) and key not in cls.recipes:
        known = ", ".join(k for k in cls.recipes if k.split("/")[0] == cell.baseline) or "none for this baseline"
        raise UserError(f"{cell.method} has no recipe '{key}' (it has: {known}): mend the matrix in reproduce.py.")
    values = {} if cell.recipe == NO_RECIPE else cls.recipes.get(key, {})
    return plain(dataclasses.asdict(cls(**{**values, **cell.settings})))


def read(folder: Path) -> Iterator[Record]:
    """The valid records below ``folder``."""
    from baselines.errors import UserError

    for path in sorted(folder.rglob("*.json")):
        try:
            about = path.stat()
            yield _load(path, about.st_ino, about.st_mtime_ns)
        except UserError as error:
            print(error, file=sys.stderr)


@functools.cache
def _load(path: Path, inode: int, modified: int) -> Record:
    """A record, parsed once as long as its file stays the same."""
    from repro.record import load

    return load(path)


def shipped(cell: Cell) -> bool:
    """Whether the project itself brings the dense net of ``cell``."""
    from baselines.weights import CHECKPOINTS

    return (CHECKPOINTS / f"{cell.baseline}_{'short' if cell.budget == 'zero' else cell.budget}.safetensors").is_file()


def is_of(record: Record, job: Job, parent: str | None) -> bool:
    """Whether ``record`` is a plain run of ``job`` from the record ``parent``: no other teacher, no images held out."""
    cell = job.cell
    return (
        (record.kind, record.method, record.baseline) == ("run", cell.method, cell.baseline)
        and (record.budget, record.seed, record.given_weights) == (cell.budget, job.seed, cell.given or shipped(cell))
        and record.parent == parent
        and not record.options.get("holdout")
        and "teacher_sha256" not in record.options
        and record.hyperparameters == hyperparameters(cell)
    )


def find(job: Job, results: Path) -> Record | None:
    """The newest record of ``job`` under ``results``."""
    folder = results / "records" / job.cell.baseline / job.cell.budget / job.cell.method
    parent = find(job.parent, results) if job.parent else None
    if job.parent and parent is None:
        return None
    found = [r for r in read(folder) if is_of(r, job, parent and parent.id)]
    return max(found, key=lambda r: str(r.provenance.get("created", "")), default=None)


def state(job: Job, results: Path, stale: set[str] | None = None) -> str:
    """fresh, stale (the code changed since) or missing; ``stale``: the ids of all stale records, where known."""
    record = find(job, results)
    if record is None:
        return "missing"
    return "stale" if record.id in (stale_among([record]) if stale is None else stale) else "fresh"


def stale_among(records: Iterable[Record]) -> set[str]:
    """The ids of the records that the code has changed since."""
    from repro.record import stale_ids
    from repro.registry import ROOT as METHODS

    return stale_ids(records, METHODS)


def devices() -> set[str]:
    """What records call this machine's device; older ones say of a CPU only its kind."""
    import torch

    from repro.provenance import device_name

    if torch.cuda.is_available():
        return {device_name(torch.device("cuda"))}
    return {device_name(torch.device("cpu")), f"cpu ({platform.machine()})"}


def meters(results: Path, baseline: str = "*", budget: str = "*") -> dict[tuple[str, str, str], float]:
    """The longest run, in seconds, by (method, baseline, budget), of the records made on this kind of device."""
    found: dict[tuple[str, str, str], float] = {}
    here = devices()
    for folder in sorted((results / "records").glob(f"{baseline}/{budget}")):
        for record in read(folder):
            if "seconds" in record.meter and record.provenance.get("device") in here:
                key = (record.method, record.baseline, record.budget)
                found[key] = max(found.get(key, 0.0), record.meter["seconds"] + START_UP)
    return found


def estimate(job: Job, results: Path, walls: dict[tuple[str, str, str], float], default: float | None) -> float:
    """Seconds that ``job`` may take, on the safe side.

    From runs of the same baseline and budget: those of this call (``walls``), else the meters of records made on
    this kind of device; those of the same method where there are some. Nothing to go by: ``default``, else MINUTES.
    """
    cell = job.cell
    for source in (lambda: walls, lambda: meters(results, cell.baseline, cell.budget)):
        timed = {key[0]: seconds for key, seconds in source().items() if key[1:] == (cell.baseline, cell.budget)}
        if timed:
            return MARGIN * timed.get(cell.method, max(timed.values()))
    return MINUTES[cell.budget] * 60.0 if default is None else default


def command(job: Job, results: Path, weights: Path | None, extra: Iterable[str] = ()) -> list[str]:
    """The command line of one run."""
    cell = job.cell
    words = [f"method={cell.method}", f"baseline={cell.baseline}", f"budget={cell.budget}", f"seed={job.seed}"]
    if cell.recipe:
        name = NO_RECIPE if cell.recipe == NO_RECIPE else f"{cell.method}-{cell.baseline}-{cell.recipe}"
        words.append(f"recipe={name}")
    words += [f"method.{key}={value}" for key, value in cell.settings.items()]
    if cell.given:
        words.append(f"baseline.weights={quoted(weights_of(cell, weights))}")
    if job.parent and (parent := find(job.parent, results)):
        words.append(f"start={parent.id}")
    return [sys.executable, "-m", "repro", "run", *words, f"results.dir={quoted(results)}", *extra]


def quoted(path: Path | None) -> str:
    """A path as Hydra's grammar takes it."""
    return "'" + str(path).replace("'", "\\'") + "'"


def weights_of(cell: Cell, folder: Path | None) -> Path | None:
    """The file of given weights for ``cell`` in ``folder``; None where it is not there."""
    path = folder / WEIGHTS[cell.baseline] if folder else None
    return path.resolve() if path and path.is_file() else None


def run(words: list[str], limit: float | None, log: Path) -> int | None:
    """Run one command in the project, its output in ``log``; its exit status, or None if ``limit`` seconds ended it.

    A run that is ended leaves no half-written record: records appear under their name only when they are complete.
    """
    with open(log, "w") as out:
        process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            stop(process)


def stop(process: subprocess.Popen) -> None:
    """End a process and its workers: first politely."""
    for how, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, how)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def archive(results: Path, target: Path, since: float) -> None:
    """Pack the records written after the time ``since`` into ``target``, replaced in one step."""
    temporary = target.with_name(f"{target.name}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(temporary, "w") as tar:
        for path in sorted((results / "records").rglob("*.json")):
            if path.stat().st_mtime >= since:
                tar.add(path, f"results/{path.relative_to(results).as_posix()}")
    os.replace(temporary, target)


@dataclass
class Plan:
    """How the matrix is run: where records go, how long it may take, and what runs one command (see ``run``)."""

    results: Path
    weights: Path | None = None
    extra: tuple[str, ...] = ()
    minutes: float | None = None
    default: float | None = None
    after: Callable[[], None] = lambda: None
    runner: Callable[[list[str], float | None, Path], int | None] = run
    clock: Callable[[], float] = time.monotonic


def work(todo: Iterable[Job], plan: Plan) -> dict[str, int]:
    """Run the jobs that have no fresh record, one line each; how many were done, fresh, busy, failed, waiting.

    A job that another process (also on another machine with the same folder of results) is at is left to it.
    """
    from repro import locks

    start, walls = plan.clock(), {}
    count = dict.fromkeys(("done", "fresh", "busy", "failed", "no weights", "no parent", "no time"), 0)
    for job in todo:
        left = None if plan.minutes is None else plan.minutes * 60 - (plan.clock() - start)
        with locks.attempt(plan.results, lock_of(job)) as mine:
            result, said = attempt(job, plan, left, walls) if mine else ("busy", "another process is at it")
        count[result] += 1
        print(f"{result:10}  {job}  {said}".rstrip(), flush=True)
        if result in ("done", "failed"):
            plan.after()
    return count


def lock_of(job: Job) -> str:
    """The name of the lock on ``job``."""
    return f"job-{hashlib.sha256(str(job).encode()).hexdigest()[:12]}"


def attempt(job: Job, plan: Plan, left: float | None, walls: dict[tuple[str, str, str], float]) -> tuple[str, str]:
    """One job: (what became of it, the rest of its line)."""
    from baselines.errors import UserError

    try:
        if state(job, plan.results) == "fresh":
            return "fresh", ""
        if job.cell.given and weights_of(job.cell, plan.weights) is None:
            return "no weights", f"needs {WEIGHTS[job.cell.baseline]} in the folder of --weights-dir"
        if job.parent and find(job.parent, plan.results) is None:
            return "no parent", f"needs the run of {job.parent} first"
        seconds = estimate(job, plan.results, walls, plan.default)
        if left is not None and seconds > left:
            return "no time", f"needs about {seconds / 60:.1f} min, {max(left, 0) / 60:.1f} left"
        return perform(job, plan, left, walls)
    except UserError as error:
        return "failed", str(error)


def perform(job: Job, plan: Plan, left: float | None, walls: dict[tuple[str, str, str], float]) -> tuple[str, str]:
    """Run one job and look for its record."""
    began = plan.clock()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        status = plan.runner(command(job, plan.results, plan.weights, plan.extra), left, log)
        output = log.read_text(errors="replace") if log.exists() else ""
    seconds = plan.clock() - began
    key = (job.cell.method, job.cell.baseline, job.cell.budget)
    walls[key] = max(walls.get(key, 0.0), seconds)
    if status is None:
        return "no time", f"ended after {seconds / 60:.1f} min, nothing recorded"
    if status != 0:
        return "failed", f"exit status {status}; its last lines:\n{tail(output)}"
    if state(job, plan.results) != "fresh":
        return "failed", f"exit status 0 but no record of this run in {plan.results}; its last lines:\n{tail(output)}"
    record = find(job, plan.results)
    top1 = "diverged" if record.compressed.top1 is None else f"top1 {record.compressed.top1:.2f}"
    return "done", f"{seconds / 60:.1f} min  {top1}"


def tail(output: str, lines: int = 15) -> str:
    """The last lines, indented."""
    return "\n".join(f"    {line}" for line in output.splitlines()[-lines:])


def show(todo: Iterable[Job], plan: Plan) -> None:
    """One line a job: its state and how long it may take; then, for every board, what is to be done."""
    walls, stale, left = meters(plan.results), stale_among(read(plan.results / "records")), {}
    for job in todo:
        now, minutes = state(job, plan.results, stale), 0.0
        if now != "fresh":
            minutes = estimate(job, plan.results, walls, plan.default) / 60
        print(f"{now:8}  {job}" + (f"  about {minutes:.1f} min" if minutes else ""))
        left.setdefault(f"{job.cell.baseline} {job.cell.budget}", []).append(minutes)
    left["in all"] = [minutes for board in left.values() for minutes in board]
    for name, board in left.items():
        print(f"{name}: {sum(map(bool, board))} of {len(board)} runs to do, about {sum(board) / 60:.1f} h")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--list", action="store_true", help="show the runs and their state, run nothing")
    add("--only", nargs="+", default=[], metavar="WORD", help="every WORD in method, baseline or budget; a,b: either")
    add("--budget", choices=("smoke", "zero", "short", "paper"), help="runs at this budget")
    add("--minutes", type=float, help="start no run that would end later than this, and end one that does")
    add("--estimate", type=float, metavar="MINUTES", help="of a run with nothing to go by (default: by budget)")
    add("--weights-dir", type=Path, metavar="DIR", help=f"folder of given weights: {', '.join(WEIGHTS.values())}")
    add("--results", type=Path, default=ROOT / "results", help="folder of the results (default: the project's)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=f"passed to every run: {' '.join(HARMLESS)}")
    add("--archive", type=Path, metavar="FILE", help="after each run, rewrite this tar of the records made")
    add("--newer", type=Path, metavar="FILE", help="the archive holds records newer than FILE (default: this call's)")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> tuple[list[Job], Plan]:
    """Judge the options; UserError with one sentence for what cannot be."""
    from baselines.errors import UserError

    for word in options.set:
        if not word.startswith(HARMLESS):
            raise UserError(f"--set {word} would change what is run; it takes {', '.join(HARMLESS)} only.")
    if options.minutes is not None and not options.minutes > 0:
        raise UserError(f"--minutes {options.minutes:g} leaves no time: give a number above 0.")
    if options.weights_dir and not options.weights_dir.is_dir():
        raise UserError(f"--weights-dir {options.weights_dir} is not a folder.")
    todo = jobs(select(matrix(), options.only, options.budget))
    if not todo:
        raise UserError("No run of the matrix is left by --only and --budget: see them all with --list alone.")
    results = options.results.resolve()
    since = options.newer.stat().st_mtime if options.newer else time.time()
    after = (lambda: archive(results, options.archive, since)) if options.archive else (lambda: None)
    default = None if options.estimate is None else options.estimate * 60
    plan = Plan(results, options.weights_dir, tuple(options.set), options.minutes, default, after)
    return todo, plan


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 1 if a run failed, 2 for a wrong command line."""
    options = parse(arguments)
    from baselines.errors import UserError
    from baselines.faults import sentence

    try:
        todo, plan = prepare(options)
        if options.list:
            show(todo, plan)
            return 0
        count = work(todo, plan)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if (told := sentence(error)) is None:
            raise
        print(told, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(", ".join(f"{n} {name}" for name, n in count.items() if n))
    return 1 if count["failed"] else 0


def interrupted(number: int, frame: object) -> None:
    """A polite request to end is the same as Ctrl-C: the run under way is ended too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    sys.exit(main())
