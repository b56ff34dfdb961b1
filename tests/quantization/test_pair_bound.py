"""The bound on neighbouring weights: which are neighbours, and how large two may be together."""

from __future__ import annotations

import pytest
import torch

from svitc.onnx.unrolled.im2col import kernel_of
from svitc.quantization.pair_bound import largest_pair, pair_limit


@pytest.mark.parametrize(("largest", "limit"), [(1, 32767), (129, 254), (130, 252), (200, 163), (255, 128)])
def test_limit(largest, limit):
    assert pair_limit(largest) == limit
    assert largest * limit <= 32767 < largest * (limit + 1)


def pair_in_rows(rows: list[int]) -> int:
    """The largest sum of one sign of rows 2i and 2i + 1, in plain words."""
    pairs = [rows[i : i + 2] for i in range(0, len(rows), 2)]
    return max(abs(sum(w for w in pair if w * sign > 0)) for pair in pairs for sign in (1, -1))


@pytest.mark.parametrize("shape", [(6, 8), (6, 7), (4, 1), (5, 6, 3, 3), (5, 7, 3, 3), (5, 3, 2), (3, 1, 3, 3)])
def test_neighbours_are_those_of_the_files_rows(shape):
    weight = torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(0))
    kernel = kernel_of(weight.numpy().reshape(*shape[:2], -1))
    found = largest_pair(weight).tolist()
    rows = [pair_in_rows(kernel[:, i].tolist()) for i in range(shape[0])]
    if shape[1] % 2 == 0 or len(shape) == 2:
        assert found == rows
    else:  # a convolution's kernel pairs the channels of each tap
        taps = weight.flatten(2) if len(shape) > 2 else weight[..., None]
        alone = [max(pair_in_rows(taps[i, :, k].tolist()) for k in range(taps.shape[2])) for i in range(shape[0])]
        assert found == [max(pair) for pair in zip(rows, alone, strict=True)]


def test_opposite_signs_do_not_add_up():
    assert largest_pair(torch.tensor([[127, -127, 0, 0], [-100, -28, 1, 2], [0, 90, 90, 0]])).tolist() == [127, 128, 90]
