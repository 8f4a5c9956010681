"""What can go wrong on a machine: its sentence, files that appear whole or not at all, and a polite end by signals."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

from baselines.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
AGAIN = "What was finished is kept: give the same command again and it goes on from there."


class Stopped(BaseException):
    """The process was asked to end by SIGTERM, as Slurm does before it takes a node away."""


def sentence(error: BaseException) -> UserError | None:
    """What a full disk, a folder that cannot be written or too little memory means; None for any other error."""
    if out_of_memory(error):
        return UserError(f"There is not enough memory ({_first_line(error)}). {AGAIN} Use a device with more memory.")
    if not isinstance(error, OSError) or error.errno not in (*FULL, *REFUSED):
        return None
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in FULL:
        return UserError(f"The disk is full or its quota is used up{where}: make room, then start again. {AGAIN}")
    return UserError(
        f"Nothing can be written there{where}: {error.strerror}. Give folders that can be written: cache= for nets, "
        f"results.dir= for records. {AGAIN}"
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is Python's, CUDA's or torch's CPU allocator's way to say that there is too little memory."""
    told = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in MEMORY)
    return told or isinstance(error, MemoryError)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(". ")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it behind the block; removed where the block fails."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Signals:
    """The signal that waits for the end of a training step, and how many trainings are under way."""

    waiting: BaseException | None = None
    depth = 0


def on_signal(number: int, frame: object) -> None:
    """Handler of SIGINT and SIGTERM: at once outside of a training (and at a second Ctrl-C), else behind the step.

    SIGTERM may well come twice, from Slurm and from the parent that hands it on.
    """
    ask = KeyboardInterrupt() if number == signal.SIGINT else Stopped()
    if not _Signals.depth or (_Signals.waiting and number == signal.SIGINT):
        raise ask
    _Signals.waiting = ask


@contextlib.contextmanager
def signals_handled() -> Iterator[None]:
    """``on_signal`` for SIGINT and SIGTERM within the block; nothing outside of the main thread."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        old = [signal.signal(number, on_signal) for number in numbers]
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        _Signals.waiting = None
        for number, handler in zip(numbers, old, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def steps() -> Iterator[None]:
    """Within the block (a training) a signal waits until ``asked_to_stop`` is looked at."""
    _Signals.depth += 1
    try:
        yield
    finally:
        _Signals.depth -= 1


def asked_to_stop() -> BaseException | None:
    """What to raise once the training is on disk; None where no signal came."""
    return _Signals.waiting
