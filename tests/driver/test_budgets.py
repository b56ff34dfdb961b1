"""Budgets in bytes and in parameters are met by the file that is written."""

from __future__ import annotations

import functools

import onnx
import pytest

import svitc
from support.families import FAMILIES
from support.measured import family


@functools.cache
def compiler_of(name: str) -> svitc.Compiler:
    """Return the compiler of a family, which exports the original once for all budgets."""
    return svitc.Compiler(family(name), options=svitc.CompileOptions(images=1, no_data="uniform"))


@pytest.mark.parametrize("budget", ["0.9", "0.78", "0.5", "0.3"])
@pytest.mark.parametrize("name", FAMILIES)
def test_budgets_are_met_on_the_written_bytes(name, budget):
    done = compiler_of(name).compile(budget)
    memory = done.report["memory"]
    assert float(budget) - 0.01 < memory["ratio"] <= float(budget)
    stored = sum(
        len(t.raw_data) or 4 * len(t.float_data) + 8 * len(t.int64_data)
        for t in onnx.load_from_string(done.onnx).graph.initializer
    )
    assert memory["compiled_bytes"] == stored == memory["ratio"] * memory["original_bytes"]
    assert done.verdict.passed


@pytest.mark.parametrize(("budget", "most"), [("params=60%", 0.6), ("params=100000", 100000 / 162754)])
def test_parameter_budgets(digits, budget, most):
    parameters = svitc.compile(digits, budget, images=1, no_data="uniform").report["parameters"]
    assert most - 0.01 < parameters["ratio"] <= most
    assert parameters["original"] == 162754


def test_byte_budgets(digits):
    memory = svitc.compile(digits, "400kB", images=1, no_data="uniform").report["memory"]
    assert 0.99 * 400_000 < memory["compiled_bytes"] <= 400_000
