"""One thread, one throw-away cache, the same random numbers for every test."""

import os
import shutil
import sys
import tempfile

import pytest
import torch

LONGEST = ["test_resume", "test_sweeps", "test_structures", "test_contract", "test_parallel", "test_faults", "test_amc"]


def pytest_configure(config):
    """A temporary cache and one thread, also for the processes that tests start."""
    config.repro_cache = tempfile.mkdtemp(prefix="repro-cache-")
    os.environ["REPRO_CACHE"] = config.repro_cache
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_unconfigure(config):
    """Remove the cache."""
    shutil.rmtree(config.repro_cache, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """The files that take longest come first: the last one to end is a short one."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers for a test alone as for the whole suite."""
    from baselines.task import seed_everything

    seed_everything(0)


@pytest.fixture(scope="module", autouse=True)
def as_they_were():
    """A file of tests leaves no name of the suite's modules bound to something else: later files would use it."""
    roots = ("baselines", "methods", "repro")
    own = [module for name, module in sys.modules.items() if name.partition(".")[0] in roots]
    before = [(module, dict(vars(module))) for module in own]
    yield
    changed = [
        f"{module.__name__}.{name}" for module, names in before for name, value in names.items()
        if vars(module).get(name) is not value
    ]  # fmt: skip
    assert not changed
