"""What a search has found out about the nets it validated, kept on disk: a killed one only goes over it again."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

from baselines.faults import whole_file


class Validations:
    """Digest, top-1 and seconds of every net that a run validated, by its number in the run's order, in one file."""

    SECONDS = 1.0  # least time between two writings: what took less is as fast to do again

    def __init__(self, path: Path) -> None:
        self.path, self.written_at = path, float("-inf")
        self.nets = _read(path) if path.exists() else {}

    def known(self, number: int, digest: str) -> tuple[float, float] | None:
        """(top-1 in percent, seconds) of the ``number``-th net, where it was the net of this digest."""
        name, *found = self.nets.get(str(number), (None,))
        return tuple(found) if name == digest else None

    def keep(self, number: int, digest: str, top1: float, seconds: float) -> None:
        """Add one net; the file is written at most once in ``SECONDS``."""
        self.nets[str(number)] = (digest, top1, seconds)
        if time.perf_counter() - self.written_at > self.SECONDS:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as temporary:
                temporary.write_text(json.dumps(self.nets))
            self.written_at = time.perf_counter()


def _read(path: Path) -> dict[str, tuple[str, float, float]]:
    """The nets in a file; none, with a sentence, where it is damaged."""
    with contextlib.suppress(Exception):  # of the system, the decoder and whatever does not fit
        found = {key: (name, top1, seconds) for key, (name, top1, seconds) in json.loads(path.read_text()).items()}
        if all(isinstance(n, float) for _, *numbers in found.values() for n in numbers):
            return found
    print(f"{path} is damaged and is not used: its nets are validated again.", file=sys.stderr, flush=True)
    return {}
