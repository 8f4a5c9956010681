"""Pack everything that the matrix needs on a machine without a network, and bring its records back.

    python scripts/bundle.py --sheets SHEETS --prepare 'python3 unpack.py --root "$REPRO_DATA"'
    bash bundle/part1/run.sh run WORK OUT 25 --budget short        (there; part1, part2 ... side by side)
    python scripts/bundle.py --collect records.tar                 (here, with the file from OUT)

The folder ``bundle`` holds part1, part2 ..., each of at most 60 MB. Parts that cannot travel together are brought one
after the other with ``bash partN/run.sh stage WORK``. Run by hand: wheels are for the target, not for this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repro.record import Record

ROOT = Path(__file__).resolve().parent.parent
MEGABYTE = 1_000_000
LARGEST = 60
RESERVE = 20_000  # bytes of a part kept free for run.sh
LINE = 70  # bytes of a line of checksums besides the name
WHEELS = (
    "hydra-core",
    "omegaconf",
    "torch-pruning",
    "mlxtend",
    "pillow-jxl-plugin",
    "stable-baselines3",
    "gymnasium",
    "farama-notifications",
    "tensorly",
)
BUILT = ("antlr4-python3-runtime",)  # published as source only; pure Python
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MEMBER = re.compile(r"results/records/([a-z0-9_]+)/([a-z]+)/([a-z0-9_]+)/([0-9a-f]{12})\.json")
LARGEST_RECORD = 4 * MEGABYTE

RUN = r"""#!/usr/bin/env bash
# run.sh stage WORK                          put the parts beside this one into WORK
# run.sh run WORK OUT MINUTES [ARGUMENT...]  the same, install, then scripts/reproduce.py with the ARGUMENTs;
#                                            OUT/records.tar is rewritten after each run
set -euo pipefail
bundle=@BUNDLE@
total=@TOTAL@
prepare=@PREPARE@
python=${PYTHON:-python3}

fail() { echo "run.sh: $*" >&2; exit 2; }
usage='usage: run.sh stage WORK | run.sh run WORK OUT MINUTES [ARGUMENT...]'
[ $# -ge 2 ] || fail "$usage"
verb=$1
mkdir -p "$2"
work=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")/.." && pwd)

if [ "$(cat "$work/bundle" 2>/dev/null)" != "$bundle" ]; then
  rm -rf "$work/wheels" "$work/project" "$work/sheets" "$work/site" "$work/staged" "$work/prepared"
  mkdir -p "$work/staged"
  echo "$bundle" > "$work/bundle"
fi
for part in "$here"/part*/; do
  name=$(basename "$part")
  [ "$(cat "$part/BUNDLE" 2>/dev/null)" = "$bundle" ] || continue
  [ ! -e "$work/staged/$name" ] || continue
  (cd "$part" && sha256sum --check --quiet SHA256SUMS) || fail "$name is damaged: bring it again"
  for folder in wheels project sheets; do
    if [ -d "$part/$folder" ]; then
      mkdir -p "$work/$folder"
      cp -R "$part/$folder/." "$work/$folder/"
    fi
  done
  touch "$work/staged/$name"
done
staged=$(ls "$work/staged" | wc -l)
echo "run.sh: $((staged)) of $total parts are in $work"

case $verb in
  stage) exit 0 ;;
  run) [ $# -ge 4 ] || fail "$usage" ;;
  *) fail "$usage" ;;
esac
[ "$staged" -eq "$total" ] || fail "bring the missing parts with 'run.sh stage $work' first"
mkdir -p "$3"
out=$(cd "$3" && pwd)
minutes=$4
shift 4
case $minutes in '' | *[!0-9]*) fail "MINUTES is '$minutes': give a whole number" ;; esac

if [ -d "$work/wheels" ] && [ ! -d "$work/site" ]; then
  rm -rf "$work/site.new"
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$work/site.new" "$work"/wheels/*.whl
  mv "$work/site.new" "$work/site"
fi
export PYTHONPATH="$work/project:$work/site" REPRO_DATA="$work/data" REPRO_CACHE="$work/cache" PYTHONUNBUFFERED=1
export REPRO_COMMIT=@COMMIT@
mkdir -p "$REPRO_DATA" "$work/results/records"
if [ -n "$prepare" ] && [ ! -e "$work/prepared" ]; then
  (cd "$work/sheets" && bash -euc "$prepare")
  touch "$work/prepared"
fi
if [ ! -e "$work/seeded" ]; then
  [ ! -d "$work/project/results" ] || cp -R "$work/project/results/." "$work/results/"
  sleep 1  # records made from here on are newer, also on file systems that count whole seconds
  touch "$work/seeded"
fi
left=$((minutes - (SECONDS + 59) / 60))
[ "$left" -gt 0 ] || fail "$minutes min were used up by the set-up, which is done now: run the same again"
cd "$work/project"
exec "$python" scripts/reproduce.py --results "$work/results" --minutes "$left" \
  --archive "$out/records.tar" --newer "$work/seeded" "$@"
"""


# ------------------------------------------------------------------------------------------------------ packing


def pinned(names: Iterable[str]) -> list[str]:
    """NAME==VERSION as installed here, for versions that fit one another; packages that are not installed as given."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in names:
        try:
            found.append(f"{name}=={version(name)}")
        except (PackageNotFoundError, ValueError):
            found.append(name)
    return found


def wheel_commands(folder: Path, names: Iterable[str], python: str, platforms: Iterable[str]) -> list[list[str]]:
    """The pip commands that fill ``folder``: wheels of ``names`` for the target, and those that are built here."""
    pip = [sys.executable, "-m", "pip"]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    target += [word for name in platforms for word in ("--platform", name)]
    return [
        [*pip, "download", "--quiet", "--no-deps", *target, "--dest", str(folder), *pinned(names)],
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *pinned(BUILT)],
    ]


def fetch_wheels(folder: Path, names: Iterable[str], python: str, platforms: Iterable[str]) -> None:
    """Download and build the wheels; UserError with pip's last line where one cannot be had."""
    from baselines.errors import UserError

    for words in wheel_commands(folder, names, python, platforms):
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"pip could not get the wheels for Python {python} ({last}): see --platform and --with.")


def sources(root: Path) -> list[Path]:
    """The project's files, relative to ``root``: what git tracks, and new files that it does not ignore."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({Path(name) for name in listed if name and (root / name).is_file()})


def commit(root: Path) -> str:
    """The commit that is checked out, with "+" where the Python files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "*.py") else "")


def contents(wheels: Path, root: Path, sheets: Path | None) -> dict[str, Path]:
    """What travels: path in the bundle -> file here."""
    from baselines.errors import UserError

    found = {f"wheels/{p.name}": p for p in sorted(wheels.glob("*.whl"))}
    found |= {f"project/{name.as_posix()}": root / name for name in sources(root)}
    if sheets is not None:
        if not sheets.is_dir():
            raise UserError(f"--sheets {sheets} is not a folder.")
        files = sorted(p for p in sheets.rglob("*") if p.is_file())
        found |= {f"sheets/{p.relative_to(sheets).as_posix()}": p for p in files}
    return found


def split(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in parts of at most ``limit`` bytes: the largest first, each into the first part that it fits."""
    from baselines.errors import UserError

    parts: list[list[str]] = []
    free: list[int] = []
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        size = sizes[name]
        if size > limit:
            raise UserError(
                f"{name} has {size / MEGABYTE:.1f} MB, but a part holds {limit / MEGABYTE:.1f} MB: leave it out, or "
                "bring it in pieces that --prepare puts together."
            )
        place = next((i for i, room in enumerate(free) if size <= room), None)
        if place is None:
            parts.append([])
            free.append(limit)
            place = len(parts) - 1
        parts[place].append(name)
        free[place] -= size
    return parts


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_part(folder: Path, names: Iterable[str], found: dict[str, Path], bundle: str) -> None:
    """Copy the files of one part, with their checksums and the bundle's name."""
    sums = []
    for name in sorted(names):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found[name], target)
        sums.append(f"{sha256(target)}  {name}\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SHA256SUMS").write_text("".join(sums))
    (folder / "BUNDLE").write_text(f"{bundle}\n")


def script(bundle: str, total: int, prepare: str, made_from: str) -> str:
    """run.sh with the facts of this bundle filled in."""
    values = {"BUNDLE": bundle, "TOTAL": str(total), "PREPARE": prepare, "COMMIT": made_from}
    return re.sub("@([A-Z]+)@", lambda match: shlex.quote(values[match[1]]), RUN)


def pack(out: Path, found: dict[str, Path], limit: int, prepare: str = "", made_from: str = "") -> list[Path]:
    """Write ``found`` into part1, part2 ... under ``out``, which replace those of an earlier bundle."""
    sizes = {name: path.stat().st_size + len(name.encode()) + LINE for name, path in found.items()}
    parts = split(sizes, limit - RESERVE)
    bundle = hashlib.sha256("\n".join(f"{n} {sha256(p)}" for n, p in sorted(found.items())).encode()).hexdigest()[:16]
    for old in out.glob("part[0-9]*"):
        shutil.rmtree(old)
    folders = []
    for number, names in enumerate(parts, 1):
        folder = out / f"part{number}"
        write_part(folder, names, found, bundle)
        (folder / "run.sh").write_text(script(bundle, len(parts), prepare, made_from))
        (folder / "run.sh").chmod(0o755)
        folders.append(folder)
    return folders


# --------------------------------------------------------------------------------------------------- collecting


def members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The members of an archive of records; UserError if any is something else, before anything is unpacked."""
    from baselines.errors import UserError

    for member in tar.getmembers():
        if not member.isfile() or not MEMBER.fullmatch(member.name) or member.size > LARGEST_RECORD:
            raise UserError(
                f"The archive holds '{member.name}', which is not a record file (results/records/BASELINE/BUDGET/"
                "METHOD/ID.json): nothing was unpacked. Collect only archives that run.sh wrote."
            )
    return tar.getmembers()


def collect(archive: Path, results: Path) -> dict[str, int]:
    """Take the records of ``archive`` into ``results``: how many were new, replaced an older run, or were kept out.

    All are read as records first: a single bad one is a UserError, and nothing is written.
    """
    from baselines.errors import UserError

    try:
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory() as folder:
            found = [unpacked(tar, member, Path(folder)) for member in members(tar)]
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{archive} cannot be read as a tar archive ({error}): fetch it again.") from error
    count = dict.fromkeys(("new", "replaced", "older than ours"), 0)
    for record in found:
        count[take(record, results)] += 1
    return count


def unpacked(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> Record:
    """One member as a checked record that lies where it says it belongs."""
    from baselines.errors import UserError
    from repro.record import load

    path = folder / Path(member.name).name
    path.write_bytes(tar.extractfile(member).read())
    record = load(path)
    if f"results/records/{record.place().as_posix()}" != member.name:
        raise UserError(f"The record '{member.name}' says that it belongs at {record.place()}: nothing was unpacked.")
    return record


def take(record: Record, results: Path) -> str:
    """Save one record unless a newer run of the same thing is there."""
    from repro.record import load

    path = results / "records" / record.place()
    if path.exists():
        ours, theirs = (str(r.provenance.get("created", "")) for r in (load(path), record))
        if ours >= theirs:
            return "older than ours"
        record.save(results)
        return "replaced"
    record.save(results)
    return "new"


# ----------------------------------------------------------------------------------------------------- command


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--python-version", default="3.12", help="Python of the target (default: 3.12)")
    add("--platform", action="append", help=f"wheel platform of the target (default: {' '.join(PLATFORMS)})")
    add("--with", dest="extra", nargs="+", default=[], metavar="PACKAGE", help="more packages than the usual ones")
    add("--wheels", type=Path, metavar="DIR", help="take the wheels of this folder instead of downloading them")
    add("--sheets", type=Path, metavar="DIR", help="folder of data files, copied as they are")
    add("--prepare", default="", metavar="COMMAND", help="run once on the target, in the sheets, to fill $REPRO_DATA")
    add("--limit", type=float, default=LARGEST, metavar="MB", help=f"largest part (default and most: {LARGEST})")
    add("--out", type=Path, default=ROOT / "bundle", help="where to (default: the ignored folder bundle)")
    add("--collect", type=Path, metavar="TAR", help="take the records of an archive into --results, pack nothing")
    add("--results", type=Path, default=ROOT / "results", help="folder of the results (default: the project's)")
    return parser.parse_args(arguments)


def bundle(options: argparse.Namespace) -> list[Path]:
    """Fetch, split, write."""
    from baselines.errors import UserError

    if not 1 <= options.limit <= LARGEST:
        raise UserError(f"--limit {options.limit:g} is not a size from 1 to {LARGEST} MB.")
    if options.out.exists() and any(not p.name.startswith("part") for p in options.out.iterdir()):
        raise UserError(f"--out {options.out} holds other files than a bundle: give an empty or a new folder.")
    with tempfile.TemporaryDirectory() as folder:
        wheels = options.wheels or Path(folder)
        if options.wheels is None:
            fetch_wheels(wheels, [*WHEELS, *options.extra], options.python_version, options.platform or PLATFORMS)
        found = contents(wheels, ROOT, options.sheets)
        return pack(options.out, found, int(options.limit * MEGABYTE), options.prepare, commit(ROOT))


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with a sentence."""
    options = parse(arguments)
    from baselines.errors import UserError

    try:
        if options.collect:
            print(", ".join(f"{n} {name}" for name, n in collect(options.collect, options.results).items()))
            return 0
        for folder in bundle(options):
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            print(f"{folder}: {size / MEGABYTE:.1f} MB")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
