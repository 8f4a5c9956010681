"""One process at a time: locks on files, also between machines that share a folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from baselines.errors import UserError

POLL = 0.5  # seconds between two looks at a lock that another process holds


@contextlib.contextmanager
def alone(folder: Path, name: str, what: str) -> Iterator[None]:
    """Hold the lock ``name`` of ``folder``; wait, with a sentence about ``what``, while another process holds it.

    The operating system lets go of a lock when its process ends, however it ends.
    """
    with attempt(folder, name) as mine:
        if mine:
            yield
            return
    print(f"Another process is busy with {what}: waiting until it is done.", file=sys.stderr, flush=True)
    with attempt(folder, name, patience=-1):
        yield


@contextlib.contextmanager
def attempt(folder: Path, name: str, patience: float = 0) -> Iterator[bool]:
    """Whether the lock could be had within ``patience`` seconds (-1: however long it takes); held in the block."""
    from filelock import FileLock, Timeout

    folder = folder / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock", mode=0o666)
    try:
        lock.acquire(timeout=patience, poll_interval=POLL)
    except Timeout:
        yield False
        return
    except NotImplementedError as error:
        raise UserError(f"The file system of {folder} knows no locks: give a folder on another one.") from error
    try:
        yield True
    finally:
        lock.release()
