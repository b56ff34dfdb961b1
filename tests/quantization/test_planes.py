"""Planes of 16-bit weights: what they stand for, and that no pair of them saturates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from svitc.quantization.pair_bound import INT16_MAX, largest_pair
from svitc.quantization.planes import levels, split


@pytest.mark.parametrize("largest_input", [1, 4, 127, 128, 255])
def test_planes_are_the_weights_and_no_pair_saturates(largest_input: int) -> None:
    largest = levels(largest_input)
    weight = np.arange(-largest, largest + 1, dtype=np.int16)
    high, low, base = split(weight)
    assert (base * high.astype(np.int64) + low == weight).all() and high.dtype == low.dtype == np.int8
    for plane in (high, low):
        extremes = torch.tensor([[int(plane.max())] * 2, [int(plane.min())] * 2])
        assert largest_input * int(largest_pair(extremes).max()) <= INT16_MAX


def test_inputs_of_seven_bits_leave_all_sixteen() -> None:
    assert levels(127) > 2**14 > levels(128)
