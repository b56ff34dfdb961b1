"""Record the values of a program while it runs, and stimulate it so that every neuron has something to do."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.program import Program

STIMULUS_SEED = 0


class Recorder(fx.Interpreter):
    """Runs a program and keeps what each neuron receives and fires, and what it feeds on.

    Attributes:
        currents: each neuron's input.
        spikes: what it fires on that.
        fed: what its readers get: its spikes, or the ones given instead.
    """

    def __init__(self, program: Program, spikes: dict[str, torch.Tensor] | None = None) -> None:
        super().__init__(program.module)
        self.program, self.given = program, spikes
        self.currents: dict[str, torch.Tensor] = {}
        self.spikes: dict[str, torch.Tensor] = {}
        self.fed: dict[str, torch.Tensor] = {}

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        module = self.fetch_attr(target)
        if not ops.is_neuron(module):
            return super().call_module(target, args, kwargs)
        self.currents[target] = args[0]
        self.spikes[target] = super().call_module(target, args, kwargs)
        self.fed[target] = self.given[target] if self.given is not None else self.spikes[target]
        return self.fed[target]

    @classmethod
    def record(
        cls, program: Program, x: torch.Tensor, spikes: dict[str, torch.Tensor] | None = None
    ) -> tuple[Recorder, torch.Tensor]:
        program.module.eval()
        program.reset()
        recorder = cls(program, spikes)
        with torch.inference_mode():
            logits = recorder.run(x)
        program.reset()
        return recorder, logits


def stimulate(module: nn.Module | None, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random spikes of a neuron's shape: a fifth fire, integer neurons any of their counts."""
    fired = torch.rand(like.shape, generator=generator) < 0.2
    counts = torch.randint(1, dynamics_of(module).max_spikes + 1, like.shape, generator=generator)
    return (fired * counts).to(like.dtype)
