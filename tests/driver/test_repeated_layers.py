"""Layers that are called at every time step, and time that is not the outer dimension, through the whole pipeline."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

import svitc
from svitc.errors import UnsupportedError
from svitc.passes.policies import Uniform

EXAMPLE = torch.rand(2, 3, 8, 8)


class Cell(nn.Module):
    """A ConvLSTM cell whose gates are one convolution, split into blocks at each time step."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(3 + 4, 3 * 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        hidden = x.new_zeros(x.shape[0], 4, *x.shape[2:])
        memory, spikes = hidden.clone(), []
        for _ in range(3):
            forget, take, pass_on = self.gates(torch.cat((x, hidden), 1)).chunk(3, 1)
            memory = forget.sigmoid() * memory + take.sigmoid()
            hidden = (pass_on.sigmoid() * memory > 0.35).to(x)
            spikes.append(hidden)
        return self.head(torch.stack(spikes).mean((0, 3, 4)))


class BatchBeforeTime(nn.Module):
    """A repeated image whose steps are merged with the batch as the inner dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.lif, self.head = neuron.LIFNode(step_mode="m"), nn.Linear(6, 5)

    def forward(self, x):
        y = self.conv(x.unsqueeze(1).repeat(1, 2, 1, 1, 1).flatten(0, 1)).unflatten(0, (-1, 2))
        y = self.norm(y.transpose(1, 2)).permute(2, 0, 1, 3, 4)
        return self.head(self.lif(y).mean((0, 3, 4)))


class Reset(nn.Module):
    """A membrane that truth values reset."""

    def __init__(self, threshold: float = 0.1) -> None:
        super().__init__()
        self.conv, self.head, self.threshold = nn.Conv2d(3, 6, 3), nn.Linear(6, 5), threshold

    def forward(self, x):
        membrane = self.conv(x)
        spikes = (membrane > self.threshold).float()
        return self.head((torch.where(spikes.bool(), torch.zeros_like(membrane), membrane) + spikes).mean((2, 3)))


@pytest.mark.parametrize("kind", [Cell, BatchBeforeTime, Reset])
def test_the_file_computes_the_model(kind):
    torch.manual_seed(0)
    model = kind().eval()
    done = svitc.compile(model, EXAMPLE, budget=1.0, no_data="uniform", policy=Uniform())
    assert done.verdict.passed
    functional.reset_net(model)
    with torch.inference_mode():
        assert torch.allclose(done.program(EXAMPLE), model(EXAMPLE), atol=1e-6)


def test_an_infinite_threshold_is_refused_with_what_to_write():
    with pytest.raises(UnsupportedError, match="a comparison with inf") as error:
        svitc.capture(Reset(float("inf")).eval(), EXAMPLE)
    assert "finite" in str(error.value.hint)
