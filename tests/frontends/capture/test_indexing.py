"""An index of several lists, a mask or a matrix of positions takes what PyTorch takes."""

from __future__ import annotations

import pytest
import torch

from svitc.frontends.capture.indexing import by_lists

ALL = slice(None)
X = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) > 0.5
INDICES = [
    (ALL, [0, 1], ALL, [2, 3]),
    (ALL, ALL, [1, 2], [3, 4]),
    (..., MASK),
    MASK[:4, :6],
    (slice(1, 3), torch.tensor([[0, 1], [2, 3]])),
    torch.tensor([[0, 3]]),
    (ALL, [True, False, True, True, False, False]),
    (ALL, [-1, 0], slice(0, 8, 2), [1]),
    (0, ALL, [1, 2], [1, 2]),
    ([0, 1], 1, ALL, [0, 1]),
    (torch.tensor([0, 1]), ALL, torch.tensor([[1], [2]])),
]


@pytest.mark.parametrize("number", range(len(INDICES)))
def test_lists_take_what_pytorch_takes(number):
    index = INDICES[number]
    got, want = by_lists(X, index), X[index]
    assert got.shape == want.shape and torch.equal(got, want)


@pytest.mark.parametrize("index", [(ALL, [0, 1]), 0, (ALL, 2), (..., slice(1, 3)), None, (0, ALL, [1, 2])], ids=str)
def test_plain_indices_are_left(index):
    assert by_lists(X, index) is None
