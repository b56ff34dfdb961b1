"""Options of the test run, and what tests of many rooms share."""

from __future__ import annotations

from collections import defaultdict

import pytest

import svitc
from support.paths import DIGITS
from svitc.ir.program import Program

QUICK_TESTS_PER_FILE = 3


def pytest_addoption(parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the files of tests/golden anew")
    parser.addoption("--quick", action="store_true", help="one case of a few tests of each file, all golden files")


def pytest_collection_modifyitems(config, items) -> None:
    """With --quick, keep the first case of the first tests of each file, and every golden file."""
    if not config.getoption("--quick"):
        return
    kept, left = [], []
    seen: dict[str, set[str]] = defaultdict(set)
    for item in items:
        path, _, name = item.nodeid.partition("::")
        tests, name = seen[path], name.partition("[")[0]
        first = name not in tests and len(tests) < QUICK_TESTS_PER_FILE and not item.get_closest_marker("slow")
        if first:
            tests.add(name)
        (kept if first or path.endswith("test_golden.py") else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture(scope="session")
def digits() -> Program:
    """The demo's program, as it is loaded; not to be changed."""
    return svitc.load(DIGITS)
