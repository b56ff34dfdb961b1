"""Verification stops at images that tell nothing new."""

from __future__ import annotations

import pytest
import torch

from svitc.verification.informative import informative
from svitc.verification.verdict import LayerVerdict, Verdict


@pytest.mark.parametrize(
    ("fired", "used"),
    [
        ([{"a", "b"}], 1),  # all fire
        ([{"a"}, {"a"}, {"b"}], 2),  # the second tells nothing new
        ([{"a"}, {"b"}, set()], 2),
        ([set(), set(), {"a"}], 2),  # a silent network stays so
        ([{"a"}, {"c"}, {"a"}, {"b"}], 3),
    ],
)
def test_images_are_used_as_long_as_they_make_further_neurons_fire(fired, used):
    names = ["a", "b"] if {"c"} not in fired else ["a", "b", "c"]
    verdict = Verdict(layers={name: LayerVerdict(name) for name in names})
    count = 0
    for _, firing in zip(informative([torch.zeros(1)] * 5, verdict), [*fired, set(), set()], strict=False):
        count += 1
        for name in firing:
            verdict.layers[name].firing += 1
    assert count == used
