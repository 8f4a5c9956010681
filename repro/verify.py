"""A record made again: the same run with the same configuration, and whether it gives the same numbers.

Nothing is written beside the dense net and its measurement in the cache. On the machine, with the packages and threads
of the record, the two have to be equal in every field but time, latency and provenance. Elsewhere arithmetic rounds
differently, and they have to agree within ``POINTS`` of accuracy and ``SHARE`` of every size.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines import parallel, weights
from baselines.data import DataOptions
from baselines.errors import UserError
from repro import registry
from repro.config import ALLOWED, BaselineOptions, DeviceOptions, ResultsOptions, RunConfig
from repro.ground import Ground, dense_net, given_net, prepare
from repro.record import ACCURACIES, Record, is_stale, load_all, pick, plain

if TYPE_CHECKING:
    from methods.base import Method

POINTS = 1.0  # percentage points
SHARE = 0.01
MOST_THREADS = 1024
NOT_COMPARED = ("latency", "provenance")
PLACE = ("device", "packages", "python", "threads", "processes", "precision", "channels_last")


@dataclass(frozen=True)
class Verdict:
    """``holds``, a sentence that says how, and the fields that differ, each with both values."""

    holds: bool
    sentence: str
    fields: list[str]


def verify(run: str, given: dict[str, str]) -> Verdict:
    """Make the record whose id is or begins with ``run`` again, and compare.

    ``given``: results.dir, cache, data.root, device.name, baseline.weights and baseline.teacher, each as on the command
    line. UserError for an unknown id, a stale record, or weights or data other than the record's.
    """
    folder = given.get("results.dir", "results")
    records = {record.id: record for record in load_all(folder)[0]}
    old = records[pick(run, records, folder)]
    if is_stale(old, registry.ROOT):
        raise UserError(
            f"The record {old.id} is stale: the code of {old.method} that made it has changed since, so there is "
            "nothing to verify. Run it again."
        )
    new = again(old, given)
    return parallel.from_first(compare(old, new) if new else None)


def again(old: Record, given: dict[str, str]) -> Record | None:
    """The record made anew; None on all processes but the first."""
    from repro.run import made, made_dense, resolved_options

    ground = prepare(configured(old, given))
    if ground.data.sha256 != old.provenance["data_sha256"]:
        raise UserError(f"The data of {old.baseline} here are not those of {old.id}: pass theirs, data.root=FOLDER.")
    if resolved_options(ground) != old.options:
        raise UserError(
            f"{old.id} was made with {old.options}, not {resolved_options(ground)}: give baseline.teacher=."
        )
    if old.kind == "train":
        with tempfile.TemporaryDirectory() as cache:  # not the net that is in the cache
            return made_dense(dataclasses.replace(ground, cache=Path(cache)))
    if old.given_weights:
        _check_weights(ground, old)
    found = made(ground, dense_net(ground), resume=False)
    return found and found[0]


def configured(old: Record, given: dict[str, str]) -> RunConfig:
    """The configuration that gives the record; UserError where it does not say enough."""
    _check_says(old)
    part = re.fullmatch(r".*\[(\d+)x(\d+|all)\]", old.options["data"])
    classes, images = part.groups() if part else (None, "all")
    at = old.provenance
    return RunConfig(
        method=_method(old),
        baseline=BaselineOptions(old.baseline, given.get("baseline.weights"), given.get("baseline.teacher")),
        data=DataOptions(
            root=given.get("data.root"),
            classes=int(classes) if classes else None,
            per_class=None if images == "all" else int(images),
            holdout=old.options["holdout"],
        ),
        budget=old.budget,
        seed=old.seed,
        start=old.parent,
        results=ResultsOptions(given.get("results.dir")),
        device=DeviceOptions(
            given.get("device.name", "cpu" if at["device"].startswith("cpu ") else "auto"),
            at["precision"],
            at["channels_last"],
            at["threads"],
        ),
        cache=given.get("cache"),
        latency=0.0,
    )


def _check_says(old: Record) -> None:
    """UserError where the record lacks something that a run needs, or holds something else there."""
    at, options = old.provenance, old.options
    threads = at.get("threads")
    says = {
        "options.data": isinstance(options.get("data"), str),
        "options.holdout": isinstance(options.get("holdout"), bool),
        "provenance.data_sha256": "data_sha256" in at,
        "provenance.device": isinstance(at.get("device"), str),
        "provenance.precision": at.get("precision") in ALLOWED["device.precision"],
        "provenance.channels_last": isinstance(at.get("channels_last"), bool),
        "provenance.threads": type(threads) is int and 0 < threads <= MOST_THREADS,
    }
    if lacking := [name for name, right in says.items() if not right]:
        raise UserError(f"The record {old.id} has no usable {', '.join(lacking)}: it cannot be made again.")


def _method(old: Record) -> Method:
    """The method with the record's hyper-parameters; UserError where they are not its fields."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    cls = registry.method_class(old.method)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), old.hyperparameters))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"The record {old.id} has hyper-parameters that {old.method} does not take: {why}.") from error


def _check_weights(ground: Ground, old: Record) -> None:
    net, want = given_net(ground), old.provenance["dense_sha256"]
    if net is None or weights.digest(net.state_dict()) != want:
        raise UserError(
            f"{old.id} was made from given weights (SHA-256 {want[:12]}…), which are not here: pass their file, "
            "baseline.weights=FILE."
        )


def compare(old: Record, new: Record) -> Verdict:
    """Whether the new record holds up the old one, as exactly as the places of both allow."""
    counted = {rule: count for rule, count in new.counted.items() if rule in old.counted}
    new = dataclasses.replace(new, counted=counted)  # the old one may be from before a rule was there
    if old.stored is None:  # or before that was measured
        new = dataclasses.replace(new, stored=None)
    one, two = (comparable(record) for record in (old, new))
    differ = [f"{name}: {a} -> {b}" for name, a, b in differences(one, two)]
    name = f"{old.method} on {old.baseline} ({old.id})"
    if not differ:
        return Verdict(True, f"{name} holds: every field is equal.", [])
    there, here = ({"processes": 1} | record.provenance for record in (old, new))
    elsewhere = [key for key in PLACE if there.get(key) != here.get(key)]
    if elsewhere and not (far := list(_far(one, two))):
        where = f"made with another {', '.join(elsewhere)}"
        told = f"{name} holds within {POINTS:g} points of accuracy and {SHARE:.0%} of every size ({where})."
        return Verdict(True, told, differ)
    shown = [f"{name}: {a} -> {b}" for name, a, b in far] if elsewhere else differ
    return Verdict(False, f"{name} does not hold: {len(shown)} fields differ.", shown)


def comparable(record: Record) -> dict[str, Any]:
    """What of a record has to be equal: all but latency, provenance and whatever is counted in seconds."""
    found = {k: v for k, v in plain(dataclasses.asdict(record)).items() if k not in NOT_COMPARED}
    return _timeless(found)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.endswith("seconds")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def differences(one: Any, two: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value of one, value of two) wherever two JSON values differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted(one.keys() | two.keys()):
            yield from differences(one.get(key), two.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from differences(a, b, f"{name}[{i}]")
    elif one != two:
        yield name, one, two


def _far(one: dict[str, Any], two: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What differs by more than another place explains: status, accuracies and sizes."""
    pairs = {"status": (one["status"], two["status"])}
    for net in ("dense", "compressed"):
        pairs |= {f"{net}.{key}": (one[net][key], two[net][key]) for key in one[net]}
    for name, (a, b) in pairs.items():
        numbers = all(isinstance(value, (int, float)) for value in (a, b))
        allowed = POINTS if name.endswith(tuple(ACCURACIES)) else SHARE * abs(a) if numbers else 0
        if (abs(a - b) > allowed) if numbers else a != b:
            yield name, a, b
