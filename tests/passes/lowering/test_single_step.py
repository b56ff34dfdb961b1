"""A program of one step has the types of all steps with a time of 1; what mixes steps is named and refused."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from support.families import FAMILIES
from support.measured import family
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.program import Program
from svitc.passes.pipelines import step_program

T = 4


def lif() -> nn.Module:
    return neuron.LIFNode(decay_input=False, step_mode="m")


def steps_norm() -> nn.Module:
    norm = layer.TemporalEffectiveBatchNorm2d(T, 4)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


class Steps(nn.Module):
    """Spikes of each step, which ``tail`` reads."""

    def __init__(self, tail, **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.fire, self.head, self.tail = nn.Conv2d(2, 4, 1), lif(), nn.Linear(4, 5), tail
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        x = self.fire(self.conv(x.flatten(0, 1)).unflatten(0, (T, -1)))
        return self.tail(self, x.mean((3, 4)))


def program_of(tail, **parts: nn.Module) -> Program:
    torch.manual_seed(0)
    return capture(Steps(tail, **parts).eval(), InputSpec((T, 2, 4, 4)))


def running(program: Program) -> list[str]:
    return [m.kind for m in step_program(program).module.modules() if isinstance(m, ops.RunningReduction)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_one_running_mean(name):
    program = family(name)
    step = step_program(program)
    sizes = {
        a.size for n in step.graph.nodes if n.op != "output" for d in step.type_of(n) for a in d if a.kind == "time"
    }
    assert sizes <= {1} and running(program) == ["mean"]


EXACT = {
    "mean": (lambda m, x: m.head(x).mean(0), ["mean"]),
    "sum before a layer": (lambda m, x: m.head(x.sum(0) / T), ["sum"]),
    "largest": (lambda m, x: m.head(x.amax(0)), ["largest"]),
    "cumulative": (lambda m, x: m.head(x.cumsum(0)).amin(0), ["sum", "smallest"]),
    "cumulative, returned": (lambda m, x: m.head(x).cumsum(0), ["sum", "mean"]),
    "last step": (lambda m, x: m.head(x)[-1], []),
    "every step": (lambda m, x: m.head(x), ["mean"]),
}


@pytest.mark.parametrize(("tail", "kinds"), EXACT.values(), ids=EXACT)
def test_reductions_over_time_run_along(tail, kinds):
    assert running(program_of(tail)) == kinds


MIXING = {
    "attention over time": (
        lambda m, x: m.head(x.transpose(0, 1) @ x.permute(1, 2, 0) @ x.transpose(0, 1)).mean(1),
        {},
    ),
    "a gate of all steps": (lambda m, x: m.head(x * x.mean(0, keepdim=True)).mean(0), {}),
    "time as channels": (lambda m, x: m.over(x.permute(1, 0, 2).flatten(1)), {"over": nn.Linear(4 * T, 5)}),
    "PSN": (lambda m, x: m.head(m.psn(x)).mean(0), {"psn": neuron.PSN(T)}),
    "TEBN": (
        lambda m, x: m.head(m.norm(x[..., None, None]).flatten(2)).mean(0),
        {"norm": steps_norm()},
    ),
    "softmax over time": (lambda m, x: m.head(x.softmax(0)).mean(0), {}),
    "convolution over time": (
        lambda m, x: m.head(m.over(x.permute(1, 2, 0)).permute(2, 0, 1)).mean(0),
        {"over": nn.Conv1d(4, 4, 3, padding=1)},
    ),
    "shifted by a step": (lambda m, x: m.head(x.roll(1, 0)).mean(0), {}),
    "first step": (lambda m, x: m.head(x)[0], {}),
    "difference of steps": (lambda m, x: m.head(x[1:] - x[:-1]).mean(0), {}),
    "a list of steps": (lambda m, x: list(m.head(x)), {}),
    "groups of steps": (lambda m, x: m.head(x.unflatten(0, (2, 2)).mean(1)).mean(0), {}),
}
WORDS = {  # what is said of the user's own line
    "PSN": "the neuron in psn computes",
    "first step": "an index or a loop over time steps in the model takes single time steps",
    "difference of steps": "a slice in the model takes some of the time steps",
    "a list of steps": "Return all steps as one tensor",
    "a gate of all steps": "A cumulative sum in its place",
    "groups of steps": "a reshape in the model",
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_steps_is_refused_by_name(name):
    tail, parts = MIXING[name]
    with pytest.raises(UnsupportedError, match="no exact form of one time step per call") as refusal:
        step_program(program_of(tail, **parts))
    assert "without --streaming" in refusal.value.hint and "take_block" not in refusal.value.message
    assert f"test_single_step.py:{tail.__code__.co_firstlineno}: " in refusal.value.where
    assert WORDS.get(name, "") in str(refusal.value)
