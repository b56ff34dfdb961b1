"""Weights of few bits: the nearest numbers, scales that leave the least error, and rounding that knows the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svitc.ir.quantized_modules import LEVELS, TERNARY
from svitc.quantization.gptq import BLOCK, DAMPING, compensated, round_weights
from svitc.quantization.weight_grid import nearest, scales, stored_bits

HOLDS = {8: list(range(-127, 128)), 4: list(range(-7, 8)), 2: [-3, -1, 1, 3], TERNARY: [-1, 0, 1]}
FEW = (4, 2, TERNARY)


def random_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(rows: int = 5, columns: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=random_of(seed))


def on_grid(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The whole numbers of weights that lie on a grid, as small as they can be."""
    scale = scales(weight.double(), bits)[:, None]
    whole = nearest(weight.double() / scale, bits)
    assert torch.allclose(whole * scale, weight.double(), rtol=1e-6, atol=0)
    return reduced(whole)


def reduced(whole: torch.Tensor) -> torch.Tensor:
    """Rows of all -3 and 3 are rows of -1 and 1 at another scale."""
    common = np.gcd.reduce(whole.abs().long().numpy(), axis=1)
    return whole / torch.from_numpy(common).clamp_min(1)[:, None]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(numbers=st.lists(st.floats(-200, 200), min_size=1, max_size=20), bits=st.sampled_from([*HOLDS]))
def test_nearest(numbers, bits):
    x = torch.tensor(numbers).double()
    found = nearest(x, bits)
    levels = torch.tensor(HOLDS[bits]).double()
    assert bool(torch.isin(found, levels).all())
    assert torch.equal((x - found).abs(), (x[:, None] - levels).abs().amin(1))


def test_nearest_keeps_what_it_holds():
    for bits, levels in HOLDS.items():
        assert nearest(torch.tensor(levels).double(), bits).tolist() == levels
        assert LEVELS[bits] == max(levels) and len(levels) <= 2 ** max(bits, 2)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), bits=st.sampled_from(FEW), power=st.integers(-100, 100), seed=st.integers(0, 9))
def test_a_grid_is_found_again(data, bits, power, seed):
    """Also where a row does not reach the largest level."""
    rows = []
    for _ in range(data.draw(st.integers(1, 4))):
        most = data.draw(st.sampled_from([n for n in HOLDS[bits] if n > 0]))
        allowed = [n for n in HOLDS[bits] if abs(n) <= most]
        rows.append([most, *data.draw(st.lists(st.sampled_from(allowed), min_size=7, max_size=7))])
    whole = torch.tensor(rows).double()
    scale = torch.rand(len(rows), generator=random_of(seed)).double().add(0.5) * 2.0**power
    weight = whole * scale[:, None]
    again = scales(weight, bits)[:, None]
    found = nearest(weight / again, bits)
    assert torch.allclose(found * again, weight, rtol=1e-13, atol=0), "no error is left"
    assert torch.equal(reduced(found), reduced(whole))
    floats = weight.float()
    hessian = correlated(8, seed)
    for rounded in (round_weights(floats, bits), round_weights(floats, bits, hessian)):
        assert torch.allclose(rounded, floats, rtol=3e-7, atol=0), "and rounding them again does nothing"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from(FEW),
    columns=st.integers(1, 40),
    heavy=st.sampled_from([0.0, 2.0, 9.0]),
)
def test_scales_are_never_worse_than_the_largest_weights(seed, bits, columns, heavy):
    weight = weights(6, columns, seed).double()
    weight[:, 0] *= 1 + heavy  # one weight that is far out
    importance = torch.rand(columns, generator=random_of(seed)).double()

    def error(scale: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return ((weight - nearest(weight / scale[:, None], bits) * scale[:, None]).square() * by).sum(1)

    plain, weighted = scales(weight, bits), scales(weight, bits, importance)
    assert bool((plain > 0).all() and (weighted > 0).all())
    largest = weight.abs().amax(1) / LEVELS[bits]
    ones, slack = torch.ones_like(importance), 1 + 1e-6
    for scale, by in ((plain, ones), (weighted, importance)):
        for factor in (1.0, 0.8, 0.6, 0.4, 0.2):
            assert bool((error(scale, by) <= error(largest * factor, by) * slack + 1e-30).all())
    assert bool((error(weighted, importance) <= error(plain, importance) * slack + 1e-30).all())


def test_eight_bits_take_the_largest_weight():
    weight = weights().double()
    assert torch.equal(scales(weight, 8), weight.abs().amax(1) / 127)
    whole = weights() / scales(weight, 8)[:, None]
    assert torch.equal(round_weights(weights(), 8), round_weights(weights(), 8, correlated(12, 0)))
    assert torch.allclose(on_grid8(round_weights(weights(), 8)), whole.round())


def on_grid8(weight: torch.Tensor) -> torch.Tensor:
    return weight.double() / (weight.double().abs().amax(1, keepdim=True) / 127)


@pytest.mark.parametrize(("bits", "least", "most"), [(2, 0.115, 0.123), (4, 0.0118, 0.0138)])
def test_the_error_of_normal_weights(bits, least, most):
    """Max, 1960, table II: four equally spaced levels leave 0.1188 of the variance; 15 lie between his 14 and 16."""
    weight = weights(3, 20_000).double()
    off = (round_weights(weight, bits) - weight).square().mean(1) / weight.square().mean(1)
    assert bool(((off > least) & (off < most)).all()), off


# with data


def correlated(columns: int, seed: int) -> torch.Tensor:
    """Second moments of spikes that fire together, some often and some hardly ever."""
    few = columns // 6 + 1
    mix = torch.randn(few, columns, generator=random_of(seed)).double()
    spikes = torch.randn(4000, few, generator=random_of(seed + 1)).double() @ mix
    rates = torch.linspace(-1.5, 0.5, columns)[torch.randperm(columns, generator=random_of(seed))]
    spikes = (spikes + rates * math.sqrt(few) > 0).double()
    return spikes.T @ spikes / len(spikes)


def loss(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    off = (rounded - weight).double()
    return float(torch.einsum("oi,ij,oj->", off, hessian, off))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", FEW)
def test_rounding_that_knows_the_data_loses_less(bits, seed):
    hessian = correlated(48, seed)
    weight = weights(16, 48, seed)
    plain, knowing = round_weights(weight, bits), round_weights(weight, bits, hessian)
    assert loss(weight, knowing, hessian) < 0.6 * loss(weight, plain, hessian)
    on_grid(knowing, bits)


@pytest.mark.parametrize("bits", FEW)
def test_inputs_that_never_meet_make_up_for_nothing(bits):
    importance = torch.rand(12, generator=random_of(1)).double() ** 3
    importance[4] = 0
    weight = weights().double()
    damped = importance + DAMPING * importance.mean()
    scale = scales(weight, bits, damped)
    assert torch.equal(compensated(weight, scale, bits, damped.diag()), nearest(weight / scale[:, None], bits))
    found = round_weights(weight, bits, importance.diag())
    scale = scales(found, bits)[:, None]
    assert torch.allclose(found, nearest(weight / scale, bits) * scale, rtol=1e-12, atol=0)
    assert not torch.allclose(found, round_weights(weight, bits)), "the importance counts"


def one_by_one(weight: torch.Tensor, bits: int, hessian: torch.Tensor) -> torch.Tensor:
    """The published rule, column by column, with the inverse of what is left taken anew each time."""
    diagonal = hessian.diagonal()
    damping = 0.01 * diagonal.mean()
    scale = scales(weight, bits, diagonal + damping)
    left = weight.clone()
    todo = sorted(range(len(hessian)), key=lambda i: -float(diagonal[i]))
    found = torch.empty_like(weight)
    while todo:
        rest = torch.tensor(todo)
        inverse = torch.linalg.inv(hessian[rest][:, rest] + damping * torch.eye(len(todo)).double())
        i = todo.pop(0)
        found[:, i] = nearest(left[:, i] / scale, bits) * scale
        left[:, rest] -= ((left[:, i] - found[:, i]) / inverse[0, 0])[:, None] * inverse[0]
    return found


@pytest.mark.parametrize("columns", [1, 10, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
@pytest.mark.parametrize("bits", FEW)
def test_columns_in_blocks_are_columns_one_by_one(bits, columns):
    hessian = correlated(columns, 3)
    weight = weights(3, columns).double()
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    damped = hessian + DAMPING * diagonal.mean() * torch.eye(columns).double()
    scale = scales(weight, bits, damped.diagonal())
    levels = compensated(weight[:, order], scale, bits, damped[order][:, order])
    published = one_by_one(weight, bits, hessian)
    assert torch.allclose(levels * scale[:, None], published[:, order], rtol=1e-6, atol=1e-9)


# what weights can be


@pytest.mark.parametrize("bits", [*HOLDS])
def test_nothing_stays_nothing(bits):
    weight = weights()
    weight[[0, 3]] = 0
    for hessian in (None, correlated(12, 0)):
        found = round_weights(weight, bits, hessian)
        assert float(found[[0, 3]].abs().max()) < 1e-25 and bool((scales(weight.double(), bits) > 0).all())
        assert float(found[[1, 2, 4]].abs().amin(1).max()) < 3 and bool(found[[1, 2, 4]].any(1).all())
        others = round_weights(weight[[1, 2, 4]], bits, hessian)
        assert torch.equal(found[[1, 2, 4]], others), "rows do not matter to others"


@pytest.mark.parametrize("bits", [*HOLDS])
def test_a_layer_that_read_nothing_is_rounded_to_the_nearest(bits):
    assert torch.equal(round_weights(weights(), bits, torch.zeros(12, 12).double()), round_weights(weights(), bits))


@pytest.mark.parametrize("bits", FEW)
def test_inputs_that_never_fired(bits):
    """They are damped, cost next to nothing, and get finite weights."""
    hessian = correlated(12, 0)
    hessian[3:9] = 0
    hessian[:, 3:9] = 0
    found = round_weights(weights(), bits, hessian)
    on_grid(found, bits)
    fires = [i for i in range(12) if not 3 <= i < 9]
    both = (found, round_weights(weights(), bits))
    ours, plain = (loss(weights()[:, fires], each[:, fires], hessian[fires][:, fires]) for each in both)
    assert ours < plain


@pytest.mark.parametrize("bits", [*HOLDS])
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-12, 1e12, 1e30, 1e37])
def test_tiny_and_huge_weights(bits, size):
    weight, hessian = weights().double(), correlated(12, 0)
    for about in (None, hessian, hessian * 1e-12, hessian * 1e12):
        found = round_weights((weight * size).float(), bits, about)
        want = round_weights((weight * size).float().double() / size, bits, about)
        assert bool(found.isfinite().all()) and torch.allclose(found.double() / size, want, rtol=1e-5, atol=1e-7)
    assert bool(round_weights(weights() * 1e-45, bits, hessian).isfinite().all())


@pytest.mark.parametrize("bits", [*HOLDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_and_shape_stay_and_arguments_too(bits, dtype):
    weight, hessian = weights(3, 7).to(dtype), correlated(7, 0)
    before, then = weight.clone(), hessian.clone()
    found = round_weights(weight, bits, hessian)
    assert found.dtype == dtype and found.shape == weight.shape
    assert torch.equal(weight, before) and torch.equal(hessian, then)


def test_stored_bits():
    for numbers, bits in [
        ([1, -1], 2),
        ([3, -3, 1], 2),
        ([0, 1], 2),
        ([-1, 0, 1], 2),
        ([0, 1, 3], 4),
        ([1, 2, 3], 4),
        ([0], 2),
        ([7, -7], 4),
        ([5, 1], 4),
        ([8], 8),
        ([-127, 3], 8),
        ([-8, 1], 4),
        ([-8, 8], 8),
        ([-9, 1], 8),
        ([], 2),
    ]:
        assert stored_bits(torch.tensor(numbers, dtype=torch.int8)) == bits, numbers


@settings(max_examples=80, deadline=None, derandomize=True)
@given(numbers=st.lists(st.one_of(st.integers(-4, 4), st.integers(-127, 127)), min_size=1, max_size=6))
def test_stored_bits_are_the_fewest_that_hold_them(numbers):
    holds = HOLDS | {4: range(-8, 8)}  # rounding does not use -8, but training may
    fits = [max(bits, 2) for bits, levels in holds.items() if set(numbers) <= set(levels)]
    assert stored_bits(torch.tensor(numbers, dtype=torch.int8)) == min(fits)
