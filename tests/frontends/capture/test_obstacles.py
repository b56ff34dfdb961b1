"""A refusal names all obstacles of a model, and nothing that is none."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec


def lif():
    return neuron.LIFNode(step_mode="m")


class Block(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.conv, self.lif, self.function = nn.Conv2d(8, 8, 3, padding=1), lif(), function

    def forward(self, x):
        return x + self.lif(self.function(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])))


class Net(nn.Module):
    def __init__(self, *functions) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*map(Block, functions))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).unsqueeze(0).repeat(2, 1, 1, 1, 1)
        return self.head(self.blocks(x).mean((0, 3, 4)))


def singular(x):
    return x * torch.linalg.svdvals(x).mean(-1)[..., None, None]


def special(x):
    return torch.special.bessel_j0(x)


def across(x):
    return x - x.mean(1, keepdim=True)


def error_of(*functions) -> UnsupportedError:
    with pytest.raises(UnsupportedError) as caught:
        capture(Net(*functions).eval(), InputSpec((3, 8, 6)))
    return caught.value


def test_one_obstacle_is_told_as_it_is():
    error = error_of(lambda x: x, special)
    assert error.message == "blocks.1: special_bessel_j0 is not an operation that svitc can represent"
    assert error.where is not None and __file__ in error.where


def test_all_obstacles_are_told_at_once():
    text = str(error_of(across, lambda x: x, special, singular))
    assert text.startswith("3 obstacles:\n  1. mean in blocks.0: it runs across the batch")
    assert "\n  2. blocks.2: special_bessel_j0 is not" in text and "\n  3. blocks.3: linalg_svdvals is not" in text
    assert text.count(f"     at {__file__}:") == 3


def test_the_same_line_in_several_blocks_is_told_once():
    text = str(error_of(special, special, singular))
    assert text.startswith("2 obstacles:") and text.count("bessel_j0") == 1 and "(and 1 more times)" in text


def test_what_fails_behind_an_obstacle_alone_is_not_told():
    def reshaped(x):
        y = torch.special.bessel_j0(x).permute(3, 4, 2, 0, 1)
        return y.reshape(x.shape) + x

    assert "obstacles" not in error_of(reshaped).message
