"""Download data sets into the data root: ``python scripts/fetch_data.py mnist cifar10 cifar100 imagenette``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

NAMES = ("mnist", "cifar10", "cifar100", "imagenette")


def present(name: str, root: Path) -> Path | None:
    """The file or folder of ``name`` under ``root`` if it is there and complete; UserError if it is damaged."""
    from baselines.data import read_npz

    if name == "imagenette":
        folders = (root / folder for folder in ("imagenette2k", "imagenette2-320", "imagenette2"))
        return next((f for f in folders if (f / "train").is_dir() and (f / "val").is_dir()), None)
    path = root / f"{name}.npz"
    if path.exists():
        read_npz(path, name)
        return path
    return None


def main(arguments: list[str] | None = None) -> int:
    """Fetch every named set; the exit status is 2 if one could not be had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--root", help="data root (default: $REPRO_DATA, else ~/.cache/repro-compression/data)")
    options = parser.parse_args(arguments)

    from baselines.data import DataOptions, data_root, fetch
    from baselines.errors import UserError

    root = data_root(DataOptions(root=options.root))
    status = 0
    for name in dict.fromkeys(options.names):
        try:
            found = present(name, root)
            print(f"{name}: already in {found}" if found else f"{name}: written to {fetch(name, root)}", flush=True)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
