"""Every method x every check of the contract. A failure that a method declares is an expected one, and strict."""

import pytest

from repro import checks
from repro.registry import entries

ENTRIES = entries()
CASES = [(name, check, baseline) for name, entry in ENTRIES.items() for check, baseline in checks.cases(entry)]


@pytest.mark.parametrize(
    ("name", "check", "baseline"), CASES, ids=["-".join(part for part in case if part) for case in CASES]
)
def test_contract(name, check, baseline):
    result = checks.judge(ENTRIES[name], check, baseline)
    if result.status == "expected":
        pytest.xfail(result.sentence)
    if result.status == "skipped":
        pytest.skip(result.sentence)
    assert result.status == "passed", result.sentence


def test_the_first_methods_are_among_them():
    assert {"dense", "random_filter", "l1_filter", "hrank", "kd"} <= set(ENTRIES)
