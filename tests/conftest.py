"""Options of the test run, and what tests of many rooms share."""

from __future__ import annotations

import pytest

import svitc
from support.paths import DIGITS
from svitc.ir.program import Program


def pytest_addoption(parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the files of tests/golden anew")


@pytest.fixture(scope="session")
def digits() -> Program:
    """The demo's program, as it is loaded; not to be changed."""
    return svitc.load(DIGITS)
