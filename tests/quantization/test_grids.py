"""Weights that lie on a uniform grid already: which are recognized, and that their integers and steps are exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svitc.quantization.grids import grid_of, odd_part, with_bits
from svitc.quantization.weight_grid import stored_bits

LEVELS = {
    "binary": (2, [-1, 1]),
    "ternary": (2, [-1, 0, 1]),
    "odd": (2, [-3, -1, 1, 3]),
    **{f"{bits} bits": (bits, list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))) for bits in range(2, 9)},
}
STORED = {"binary": 2, "ternary": 2, "odd": 2, "2 bits": 4, "3 bits": 4, "4 bits": 4}


def drawn(name: str, rows: int = 6, columns: int = 60, seed: int = 0) -> torch.Tensor:
    """Integers of these levels; each row has the extreme ones and the unit, so that it has no common divisor."""
    levels = LEVELS[name][1]
    integers = torch.tensor(levels)[torch.randint(len(levels), (rows, columns), generator=generator(seed))]
    integers[:, :3] = torch.tensor([min(levels), max(levels), 1])
    return integers.double()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("channels", [False, True], ids=["per tensor", "per channel"])
def test_a_grid_is_recognized_from_its_values(name, channels):
    integers = drawn(name)
    step = torch.rand(6 if channels else 1, 1, generator=generator(1)) * 0.1 + 0.01
    weight = integers.float() * step
    grid = grid_of(weight.reshape(6, 15, 2, 2))
    assert grid is not None and grid.bits == LEVELS[name][0]
    assert stored_bits(grid.integers) == STORED.get(name, 8)
    assert torch.equal(grid.integers, integers)
    assert torch.equal((grid.integers * grid.step[:, None]).float(), weight), "bit for bit"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(LEVELS)), seed=st.integers(0, 999), power=st.integers(-60, 60))
def test_factors_of_channels_leave_the_integers(name, seed, power):
    integers = drawn(name, seed=seed)
    weight = integers.float() * (torch.rand(1, generator=generator(seed)) + 0.5)
    factors = (torch.rand(2, 6, 1, generator=generator(seed + 1)).double() * 4 - 2) * 2.0**power
    for factor in factors:  # as a batch norm and a neuron's factor are folded: each rounded once
        weight = (weight.double() * factor).float()
    grid = grid_of(weight)
    turned = integers * factors.prod(0).sign()
    assert (grid is None) == bool((turned > 127).any()), "int8 does not hold 128, which a negative factor makes of -128"
    if grid is None:
        return
    assert torch.equal(grid.integers, turned) and grid.bits == LEVELS[name][0]
    error = (grid.integers * grid.step[:, None] - weight.double()).abs()
    assert bool((error <= 2.0**-21 * weight.abs()).all())


def test_a_step_has_as_few_bits_as_it_can():
    weight = drawn("4 bits").float() * torch.tensor([0.25, 0.375, 0.3, 5 / 64, 3.0, 2.0**-30])[:, None]
    grid = grid_of(weight)
    assert grid is not None
    assert odd_part(grid.step).tolist()[:2] == [1, 3] and odd_part(grid.step).tolist()[3:] == [5, 3, 1]
    assert torch.equal((grid.integers * grid.step[:, None]).float(), weight)


def test_real_numbers_are_on_no_grid():
    weight = torch.randn(32, 9, generator=generator(0))
    assert grid_of(weight) is None
    weight = drawn("4 bits").float() * 0.3
    weight[5, 7] *= 1 + 2.0**-16
    assert grid_of(weight) is None, "one weight beside the grid"
    weight[5, 7] = torch.nan
    assert grid_of(weight) is None


def test_a_few_weights_are_no_evidence():
    assert grid_of(torch.randn(100, 1, generator=generator(0))) is None
    assert grid_of(torch.zeros(8, 8)) is None
    weight = drawn("ternary").float() * 0.1
    weight[2] = 0
    grid = grid_of(weight)
    assert grid is not None and not grid.integers[2].any() and grid.step[2] == 1
    few = grid_of(weight[:, :3], min_evidence=0)
    assert few is not None and torch.equal(few.integers, grid.integers[:, :3])


def test_nine_bits_are_too_many():
    integers = torch.arange(-200, 200).double().reshape(4, 100)
    assert grid_of(integers) is None
    assert grid_of(integers[1:3]) is not None


def test_with_bits():
    numbers = torch.tensor([1.0, 5.0, 0.3, 1e-30, 7e20]).double()
    for bits in (1, 3, 8, 24):
        short = with_bits(numbers, torch.full_like(numbers, bits))
        assert bool((odd_part(short) < 2**bits + (bits == 1)).all())
        assert bool(((short / numbers - 1).abs() <= 2.0**-bits).all())
