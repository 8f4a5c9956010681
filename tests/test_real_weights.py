"""Public weights re-measured on the real test sets; runs where $REPRO_DATA holds the data and a folder ``weights``.

A machine without them (a clean clone has neither) skips this file: nothing else depends on it.
"""

import os
from pathlib import Path

import pytest
import torch

from baselines.data import DataOptions
from methods.controls.dense import Dense
from repro.config import BaselineOptions, DeviceOptions, RunConfig
from repro.ground import dense_net, prepare
from repro.measure import measure

ROOT = Path(os.environ.get("REPRO_DATA", "no data"))
RIGHT = {  # baseline: (file, or None for the project's own, data, images right at top-1 and top-5 of how many)
    "resnet56_cifar10": ("resnet56_cifar10", "cifar10.npz", 9339, None, 10_000),
    "vgg16_cifar10": ("vgg16_cifar10", "cifar10.npz", 9181, None, 10_000),
    "resnet56_cifar100": (None, "cifar100.npz", 6743, None, 10_000),
    "resnet50_imagenette": ("resnet50_imagenet", "imagenette2k", 332, 456, 500),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_published_accuracy_is_measured_again(name, tmp_path):
    file, data, top1, top5, images = RIGHT[name]
    path = ROOT / "weights" / f"{file}.safetensors" if file else None
    if (path and not path.is_file()) or not (ROOT / data).exists():
        pytest.skip(f"{data} or the weights {file} are not in $REPRO_DATA")
    torch.set_num_threads(os.cpu_count() or 1)
    cfg = RunConfig(
        method=Dense(),
        baseline=BaselineOptions(name, path and str(path)),
        data=DataOptions(root=str(ROOT)),
        budget="zero",
        device=DeviceOptions(precision="fp32", channels_last=True),
        cache=str(tmp_path),
    )
    ground = prepare(cfg)
    got = measure(ground, dense_net(ground).model, None)
    assert round(got.top1 * images / 100) == top1
    assert top5 is None or round(got.top5 * images / 100) == top5
