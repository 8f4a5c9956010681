"""One thread, one throw-away cache, the same random numbers for every test."""

import os
import shutil
import tempfile

import pytest
import torch


def pytest_configure(config):
    """A temporary cache and one thread, also for the processes that tests start."""
    config.repro_cache = tempfile.mkdtemp(prefix="repro-cache-")
    os.environ["REPRO_CACHE"] = config.repro_cache
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_unconfigure(config):
    """Remove the cache."""
    shutil.rmtree(config.repro_cache, ignore_errors=True)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers for a test alone as for the whole suite."""
    from baselines.task import seed_everything

    seed_everything(0)
