"""Channels that count are not removed as constant ones, whatever an analysis says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

import svitc
from support.families import FAMILIES, warm
from svitc.driver.lossless_check import check_removal
from svitc.errors import InternalError
from svitc.passes.canonical.remove_constant_channels import remove_constant_channels
from svitc.passes.pruning.prune import Prune
from svitc.planning.plan import Plan


@pytest.fixture(scope="module")
def program() -> svitc.Program:
    torch.manual_seed(0)
    make, shape = FAMILIES["spikformer"]
    model = warm(make(T=2), shape)
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[:3], norm.bias[:3] = 0.0, -1.0  # three channels never fire
    return svitc.capture(model, svitc.InputSpec(shape))


def test_constant_channels_are_removed(program):
    clean, record = remove_constant_channels(program)
    assert record["removed"] >= 3
    check_removal(program, clean, record)


def test_a_removed_channel_that_counts_is_found(program):
    group = next(g for g in program.groups if g.frozen is None and g.heads == 1)
    keep = np.ones((1, group.axis.size), dtype=bool)
    keep[0, -1] = False
    wrong = program.copy()
    Prune(Plan({group.name: keep}))(wrong)
    with pytest.raises(InternalError, match="without the 1 channels"):
        check_removal(program, wrong, {"removed": 1, "folded": 0})
    check_removal(program, wrong, {"removed": 1, "folded": 1})  # not compared: biases are rounded


@pytest.mark.parametrize("structure", [list, lambda parts: {"scores": parts[0], "further": tuple(parts[1:])}])
def test_all_outputs_are_compared(structure):
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif, self.head = nn.Conv2d(3, 8, 3), neuron.LIFNode(step_mode="m"), nn.Conv2d(8, 4, 1)
            self.further = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.lif(self.conv(x).repeat(2, 1, 1, 1, 1)).mean(0)
            return structure([self.head(x).mean((2, 3)), self.further(x).mean((2, 3))])

    model = Several().eval()
    with torch.no_grad():
        model.conv.weight[:2], model.conv.bias[:2] = 0.0, -1.0  # two channels never fire
    program = svitc.capture(model, svitc.InputSpec((3, 8, 8)))
    clean, record = remove_constant_channels(program)
    assert record["removed"] == 2
    check_removal(program, clean, record)
    with torch.no_grad():
        clean.module.get_submodule("further").bias += 0.1
    with pytest.raises(InternalError, match="without the 2 channels"):
        check_removal(program, clean, record)
