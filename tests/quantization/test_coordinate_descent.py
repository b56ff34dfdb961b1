"""Coordinate descent: never worse than where it begins, and in the end no single change is better."""

from __future__ import annotations

import pytest
import torch

from svitc.ir.quantized_modules import TERNARY
from svitc.quantization.coordinate_descent import refine
from svitc.quantization.gptq import compensated
from svitc.quantization.weight_grid import nearest, scales

LEVELS = {4: range(-7, 8), 2: (-3, -1, 1, 3), TERNARY: (-1, 0, 1)}
ROWS, COLUMNS = 6, 14


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Let the columns be two blocks, the last one incomplete."""
    monkeypatch.setattr("svitc.quantization.coordinate_descent.BLOCK", 8)


def problem(seed: int, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weights, a Hessian of correlated inputs, scales and the integers that GPTQ finds."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=generator).double()
    inputs = (torch.randn(400, 4, generator=generator) @ torch.randn(4, COLUMNS, generator=generator) > 0.5).double()
    hessian = inputs.T @ inputs / len(inputs) + 0.01 * torch.eye(COLUMNS).double()
    scale = scales(weight, bits, hessian.diagonal())
    return weight, hessian, scale, compensated(weight, scale, bits, hessian)


def errors(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Return the squared error of each output, ``[out]``."""
    off = weight - rounded
    return ((off @ hessian) * off).sum(1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", LEVELS)
def test_no_row_gets_worse_and_the_layer_gets_better(bits, seed):
    weight, hessian, scale, levels = problem(seed, bits)
    start = levels.clone()
    before = errors(weight, levels * scale[:, None], hessian)
    after = errors(weight, refine(weight, levels, scale, bits, hessian), hessian)
    assert bool((after <= before * (1 + 1e-12)).all()) and float(after.sum()) < {4: 0.99, 2: 0.95, TERNARY: 0.95}[
        bits
    ] * float(before.sum())
    assert torch.equal(levels, start), "the arguments stay"


@pytest.mark.parametrize("bits", LEVELS)
def test_in_the_end_no_other_level_and_no_other_scale_is_better(bits):
    weight, hessian, scale, levels = problem(0, bits)
    found = refine(weight, levels, scale, bits, hessian)
    least = errors(weight, found, hessian)
    step = scales(found, bits)[:, None]
    whole = nearest(found / step, bits)
    assert torch.allclose(whole * step, found, rtol=1e-12, atol=0), "on the grid"
    for factor in (0.999, 1.001):
        assert bool((errors(weight, found * factor, hessian) > least).all())
    for column in range(COLUMNS):
        for level in LEVELS[bits]:
            other = whole.clone()
            other[:, column] = level
            assert bool((errors(weight, other * step, hessian) >= least * (1 - 1e-12)).all()), (column, level)


@pytest.mark.parametrize("bits", LEVELS)
def test_weights_on_the_grid_stay_there(bits):
    _, hessian, scale, levels = problem(1, bits)
    weight = levels * scale[:, None]
    assert torch.allclose(refine(weight, levels, scale, bits, hessian), weight, rtol=1e-12, atol=0)
