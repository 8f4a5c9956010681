"""The command line: ``python -m repro COMMAND [KEY=VALUE ...]``."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.errors import UserError
from baselines.faults import AGAIN, Stopped, sentence, signals_handled

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

    from repro.config import RunConfig
    from repro.record import Record

HELP = ("-h", "--help")
SWEEP = ("-m", "--multirun")
SHOW = ("-c", "--cfg")
SHOWN = ("job", "hydra", "all")
SLURM = "hydra/launcher=submitit_slurm"


@dataclass(frozen=True)
class Verb:
    """One command: what it does in a line, how it is called, and the function that gets its words."""

    summary: str
    usage: str
    do: Callable[[list[str]], int]
    help: Callable[[list[str]], str] = lambda words: ""


class Job:
    """What Hydra calls for every run of a sweep, in this process or (with a launcher) in another one."""

    def __init__(self, work: Callable[[RunConfig], None], sweep: bool) -> None:
        """``work`` gets the configuration of one run."""
        self.work, self.sweep, self.process, self.failed = work, sweep, os.getpid(), 0

    def __call__(self, cfg: DictConfig) -> None:
        """Do one run; bad input ends this run only, with its sentence (where torchrun started several processes: the
        sweep, as the others cannot know that this one would go on to its next run)."""
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        if self.failed and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            return
        away = os.getpid() != self.process
        try:
            if away and "joblib" in HydraConfig.get().launcher._target_:
                apart(self.work, HydraConfig.get())
                return
            config = OmegaConf.to_object(cfg)
            if away and config.device.threads is None:
                config.device.threads = threads(HydraConfig.get().launcher)
            self.work(config)
        except Exception as fault:
            self.failed += 1
            error = fault if isinstance(fault, UserError) else sentence(fault)
            if error is None:
                raise
            words = " ".join(HydraConfig.get().overrides.task)
            told = UserError(f"{words}: {error}" if self.sweep and words else str(error))
            if away:
                raise told from error
            print(told, file=sys.stderr, flush=True)


def apart(work: Callable[[RunConfig], None], hydra: HydraConf) -> None:
    """Do one run of a joblib sweep in a process of its own: joblib ends all its workers when one of them is killed.

    UserError where the process fails, which has told why, or is killed.
    """
    import subprocess

    words = list(hydra.overrides.task)
    if not any(word.startswith("device.threads=") for word in words):
        words.append(f"device.threads={threads(hydra.launcher)}")
    process = subprocess.Popen([sys.executable, "-m", "repro", work.__name__.removesuffix("_one"), *words])
    try:
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status < 0:
        raise UserError(f"The run was killed by signal {-status}. {AGAIN}")
    if status:
        raise UserError(f"The run failed with exit status {status}; it has told why.")


def threads(launcher: DictConfig) -> int:
    """Threads for each worker of a sweep, so that together they use the cores once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers := launcher.get("n_jobs"):  # joblib; -1: one worker a core
        return max(1, cores // workers) if workers > 0 else 1
    remote = (launcher.get("ray") or {}).get("remote") or {}
    return int(launcher.get("cpus_per_task") or remote.get("num_cpus") or 1)


def lost(error: Exception) -> UserError | None:
    """The sentence for a worker that a launcher has lost; None where the error is no launcher's."""
    if type(error).__module__.split(".")[0] not in ("joblib", "submitit", "ray"):
        return None
    return UserError(f"A worker of the sweep was lost ({type(error).__name__}). {AGAIN}")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the words ask; the exit status: 0, 1 a check failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    with signals_handled():
        return _guarded(argv)


def _guarded(argv: Sequence[str] | None) -> int:
    """``main`` with every expected fault as a sentence."""
    verb, *words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        for word in words:
            _check_signs(word)
        if verb in (*HELP, "help"):
            print(overview())
            return 0
        command = find(verb)
        if set(words) & set(HELP):
            print(f"{command.summary}\n\n  {command.usage}\n\n{command.help(words)}".rstrip())
            return 0
        return command.do(words)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Stopped. {AGAIN}", file=sys.stderr)
        return 130
    except Stopped:
        print(f"Stopped by SIGTERM. {AGAIN}", file=sys.stderr)
        return 143
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, RuntimeError, MemoryError) as error:
        told = sentence(error)
        if told is None:
            raise
        print(told, file=sys.stderr)
        return 2


def _check_signs(word: str) -> None:
    """UserError for line breaks, NUL and other control characters, and for bytes that are no text."""
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in word):
        raise UserError(f"{word!a:.80} holds a control character or is not UTF-8: give printable text.")


def find(verb: str) -> Verb:
    """The command called ``verb``; UserError where there is none."""
    if verb not in VERBS:
        import difflib

        close = difflib.get_close_matches(verb, VERBS, 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UserError(f"There is no command '{verb}'.{hint} Choose one of: {', '.join(VERBS)}.")
    return VERBS[verb]


def overview() -> str:
    """The help of the whole command line."""
    lines = ["Neural-network compression: one runner, fixed baselines, records, leaderboards.", ""]
    lines += ["  python -m repro COMMAND [KEY=VALUE ...]", "", "Commands:"]
    lines += [f"  {name:12} {verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "Examples:", *(f"  {verb.usage}" for verb in VERBS.values())]
    return "\n".join([*lines, "", "`python -m repro COMMAND --help` says more about one command."])


# ------------------------------------------------------------------------------- commands that Hydra configures


def compose(words: Sequence[str], work: Callable[[RunConfig], None], without: Sequence[str] = ()) -> int:
    """Let Hydra make the configuration (or, with -m, each of several) and give it to ``work``; the exit status."""
    from baselines import parallel
    from repro import config

    words, sweep = config.quoted(words), bool(set(words) & set(SWEEP))
    overrides = _overrides(words)
    methods = config.check(overrides, sweep, without)
    if sweep:
        _check_slurm(words)
    config.register(methods)
    job = Job(work, sweep)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised to here, and told in one sentence
    import hydra

    flags = [word for word in words if word not in overrides]  # first, as Hydra takes none in between
    given, sys.argv = sys.argv, [config.NAME, *flags, *overrides]
    try:
        hydra.main(config_path=None, config_name=config.NAME, version_base="1.3")(job)()
    except Exception as error:
        told = config.translate(error) or lost(error)
        if told is None:
            raise
        raise told from error
    finally:
        sys.argv = given
    if job.failed:
        return 2
    parallel.leave()
    return 0


def _check_slurm(words: Sequence[str]) -> None:
    """UserError for a sweep to be started by Slurm where there is no Slurm."""
    import shutil

    if SLURM in words and not shutil.which("srun"):
        raise UserError(
            f"{SLURM}, but there is no Slurm on this machine (no command srun): start the sweep on a node of its "
            "cluster, or with hydra/launcher=joblib or ray."
        )


def _overrides(words: Sequence[str]) -> list[str]:
    """The KEY=VALUE words among Hydra's flags and their values; UserError where a flag is unknown."""
    found = []
    for before, word in zip(["", *words], words, strict=False):
        if word in (*SWEEP, *SHOW, "--resolve") or (before in SHOW and word in SHOWN):
            continue
        if before in SHOW or word.startswith("-"):
            flags = "-m (run all combinations), --cfg job (show the configuration, run nothing), --help"
            raise UserError(f"'{word}' is not known here. Choose one of: {flags}, KEY=VALUE.")
        found.append(word)
    if set(words) & set(SWEEP) and set(words) & set(SHOW):
        raise UserError("-m runs all combinations and --cfg runs none: leave out one of them.")
    if words and words[-1] in SHOW:
        raise UserError(f"'{words[-1]}' needs a word after it. Choose one of: {', '.join(SHOWN)}.")
    return found


def _run(words: list[str]) -> int:
    return compose(words, run_one, OF_MEASURE)


def run_one(cfg: RunConfig) -> None:
    """Compress one net, record it and say what came out."""
    from repro import show
    from repro.run import results_dir, run

    record = run(cfg)
    if record is not None:
        show.summary(record, Path(results_dir(cfg), "records", record.place()), verbose=cfg.verbose)


def _train(words: list[str]) -> int:
    return compose(words, train_one, (*WITHOUT_METHOD, *OF_MEASURE))


def train_one(cfg: RunConfig) -> None:
    """Train one dense net, record it and say how good it is."""
    from repro import show
    from repro.run import results_dir, train_dense

    record = train_dense(cfg)
    if record is not None:
        show.summary(record, Path(results_dir(cfg), "records", record.place()))


def _measure(words: list[str]) -> int:
    return compose(words, measure_one, WITHOUT_METHOD)


def measure_one(cfg: RunConfig) -> None:
    """Measure the nets in the cache again."""
    from repro.measure import refresh

    written, left = refresh(cfg)
    print(*written, *left, sep="\n", end="\n" if written or left else "")
    print(f"{len(written)} records of {cfg.baseline.name} were measured again, {len(left)} were left as they are.")


# ------------------------------------------------------------------------------------------- the other commands


def pairs(words: Sequence[str], allowed: Sequence[str]) -> dict[str, str]:
    """The KEY=VALUE words as a dict; UserError for any other key."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in allowed or not equals or not value:
            raise UserError(f"'{word}' is not an option here. Choose one of: {', '.join(f'{k}=...' for k in allowed)}.")
        found[key] = value
    return found


def _list(words: list[str]) -> int:
    from repro import show

    if words not in ([], ["--json"]):
        raise UserError(f"'{' '.join(words)}' is not an option of list: give --json or nothing.")
    show.listing_json() if words else show.listing()
    return 0


def _check(words: list[str]) -> int:
    from repro import checks, registry, show

    chosen = pairs(words, ["method"]).get("method")
    names = chosen.split(",") if chosen else list(registry.entries())
    for name in names:
        if name not in registry.entries():
            registry.method_class(name)
    good = [show.checked(name, checks.run_all(name)) for name in names]
    return 0 if all(good) else 1


def _leaderboard(words: list[str]) -> int:
    folder = pairs(words, ["results.dir"]).get("results.dir", "results")
    from baselines import base
    from repro import claims, leaderboard, registry, surveys

    records, status = _all_records(folder)
    usable = {name: entry.cls for name, entry in registry.entries().items() if entry.cls}
    baselines = {name: base.load(name) for name in base.names()}
    boards = leaderboard.build(records, usable, baselines)
    texts = surveys.files(surveys.build(records, boards, usable, baselines))
    texts |= claims.files(claims.evaluate(boards, records, usable))
    texts |= {**leaderboard.files(boards), "README.md": leaderboard.readme(boards)}
    written = leaderboard.write(boards, folder, texts=texts)
    print(f"{len(records)} records made these files:", *written, sep="\n  ")
    return status


def _site(words: list[str]) -> int:
    given = pairs(words, ["out", "results.dir"])
    from repro import site

    records, status = _all_records(given.get("results.dir", "results"))
    print(f"Site of {len(records)} records: {site.write(records, given.get('out', 'site'))}")
    return status


def _all_records(folder: str) -> tuple[list[Record], int]:
    """The valid records, and the exit status: 2 where there are others, which are named."""
    from repro.record import load_all

    records, problems = load_all(folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not records:
        raise UserError(f"There are no records below {Path(folder, 'records')}: make one with `python -m repro run`.")
    return records, 2 if problems else 0


def _report(words: list[str]) -> int:
    given = pairs(words, ["run", "out", "results.dir"])
    from repro.report import write

    print(f"Report: {write(given.get('run'), given.get('results.dir', 'results'), given.get('out'))}")
    return 0


def _export(words: list[str]) -> int:
    given = pairs(words, ["run", "format", "out", "results.dir", "cache"])
    for key in ("run", "format"):
        if key not in given:
            raise UserError(f"export needs {key}=...: {VERBS['export'].usage}.")
    from repro.config import default_cache
    from repro.export import export

    out, results = Path(given.get("out", ".")), Path(given.get("results.dir", "results"))
    cache = Path(given.get("cache") or default_cache()).expanduser()
    print(*export(given["run"], given["format"], out, results, cache), sep="\n")
    return 0


def _export_help(words: list[str]) -> str:
    return """Options:
  run=                   id of a record, or the first digits of it (4 at least)
  format=packed          ID.packed and ID.json, which this project loads on any machine without pickle
  format=onnx            ID.onnx: weights inside, any batch size, runs without PyTorch
  format=pt2             ID.pt2 of torch.export: written, never loaded here (loading one can run code that is in it)
  out=                   folder to write to (else the working folder)
  results.dir=           where the records are (else ./results)
  cache=                 folder of the compressed nets (else $REPRO_CACHE, else ~/.cache/repro-compression)"""


def _verify(words: list[str]) -> int:
    given = pairs(words, ["run", *VERIFY])
    if "run" not in given:
        raise UserError(f"verify needs run=...: {VERBS['verify'].usage}.")
    from baselines import parallel
    from repro import config
    from repro.verify import verify

    config.check(config.quoted(f"{key}={value}" for key, value in given.items() if key in VERIFY))
    verdict = verify(given.pop("run"), given)
    if parallel.rank() == 0:
        print(verdict.sentence, *verdict.fields, sep="\n  ")
    parallel.leave()
    return 0 if verdict.holds else 1


def _verify_help(words: list[str]) -> str:
    from repro import show, verify

    lines = [f"  {'run=':22} id of a record, or the first digits of it (4 at least)"]
    lines += [line for line in show.options().splitlines() if line.split("=")[0].strip() in VERIFY]
    return "\n".join(["Options:", *lines, "", *(verify.__doc__ or "").splitlines()[2:]])


def _structures(words: list[str]) -> int:
    if words not in ([], ["--json"]):
        raise UserError(f"'{' '.join(words)}' is not an option of structures: give --json or nothing.")
    from repro import show, structures

    found = structures.compare()
    show.structures_json(found) if words else show.structures(found)
    return 1 if any(one.result == "differs" for one in found) else 0


def _run_help(words: list[str]) -> str:
    from repro import show

    chosen = [word.removeprefix("method=") for word in words if word.startswith("method=")]
    text = f"Options:\n{show.options(OF_MEASURE)}\n  {'method.FIELD=':22} a hyper-parameter of the method\n"
    text += "\nFlags:\n  -m                     run all combinations of KEY=a,b,c\n"
    text += "  --cfg job              show the configuration, run nothing\n\n"
    names = chosen[0].split(",") if chosen else []
    return text + ("\n\n".join(map(show.method_help, names)) or "Add method=NAME to see the fields of a method.")


def _train_help(words: list[str]) -> str:
    from repro import show

    return f"Options:\n{show.options((*WITHOUT_METHOD, *OF_MEASURE))}"


def _measure_help(words: list[str]) -> str:
    from repro import show

    return f"Options:\n{show.options(WITHOUT_METHOD)}"


OF_MEASURE = ("only",)  # options that no other command has
WITHOUT_METHOD = ("method", "recipe", "start")
VERIFY = ("results.dir", "cache", "data.root", "device.name", "baseline.weights", "baseline.teacher")
VERBS: dict[str, Verb] = {
    "run": Verb("compress a net, measure it, record it", "python -m repro run method=hrank", _run, _run_help),
    "train": Verb("train a dense net", "python -m repro train baseline=vgg16_cifar10 seed=0", _train, _train_help),
    "leaderboard": Verb(
        "make the tables from the records", "python -m repro leaderboard results.dir=results", _leaderboard
    ),
    "list": Verb("show methods, recipes and baselines", "python -m repro list [--json]", _list),
    "check": Verb("check a method against the contract", "python -m repro check method=hrank", _check),
    "measure": Verb(
        "measure cached nets again", "python -m repro measure baseline=vgg16_mnist5k", _measure, _measure_help
    ),
    "structures": Verb(
        "build published networks again and compare their sizes", "python -m repro structures [--json]", _structures
    ),
    "verify": Verb("make a record again and compare", "python -m repro verify run=ID", _verify, _verify_help),
    "export": Verb(
        "write the net of a run as a file", "python -m repro export run=ID format=onnx", _export, _export_help
    ),
    "report": Verb("make a page of one record", "python -m repro report run=ID [out=FILE.html]", _report),
    "site": Verb("make web pages of all records", "python -m repro site [out=FOLDER] [results.dir=results]", _site),
}

if __name__ == "__main__":
    from repro.__main__ import main as importable  # a sweep's other processes find Job under this name

    sys.exit(importable())
