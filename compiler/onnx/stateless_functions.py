"""Functions of neurons without a membrane, which accept values of any layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from torch import nn

from svitc.ir.neuron_dynamics import dynamics_of
from svitc.onnx.function_body import FunctionBody


class StatelessKind:
    """What all neurons without a membrane have in common: one function for any layout, and no decay."""

    static: ClassVar[bool] = False
    carried: ClassVar[bool] = False
    takes_decay: ClassVar[bool] = False

    @property
    def constants(self) -> dict[str, float]:
        """Return the scalar inputs that follow the current, by name, in order."""
        raise NotImplementedError

    @property
    def inputs(self) -> list[str]:
        """Return the names of the inputs."""
        return ["x", *self.constants]


@dataclass(frozen=True)
class IntegerKind(StatelessKind):
    """Everything that the function of a neuron without a membrane depends on.

    Attributes:
        levels: largest number of spikes.
        half_up: whether halves are rounded up, as ``floor(x + 0.5)`` does; otherwise to even numbers.
    """

    levels: int
    half_up: bool = False
    name: ClassVar[str] = "IntegerSpike"

    @property
    def title(self) -> str:
        """Return the function's name, such as ``IntegerSpike_max4``."""
        return f"{self.name}_max{self.levels}" + "_halfup" * self.half_up

    @property
    def constants(self) -> dict[str, float]:
        """Return the scalar inputs that follow the current, by name, in order."""
        return {"zero": 0.0, "most": float(self.levels)} | ({"half": 0.5} if self.half_up else {})

    @property
    def formula(self) -> str:
        """Return the documentation of the function that is written into the file."""
        clipped = f"clip(x, 0, {self.levels})"
        return f"s = floor({clipped} + 0.5)." if self.half_up else f"s = round({clipped}), halves to even numbers."

    def body(self, values: Iterable[ir.Value]) -> FunctionBody:
        """Emit the nodes, which read these values as the inputs."""
        body = FunctionBody(self.inputs, values)
        x, zero, most, *half = body.inputs.values()
        clipped = body.op("Clip", "clip", x, zero, most)
        if self.half_up:
            spikes = body.op("Floor", "spikes", body.op("Add", "raised", clipped, *half))
        else:
            spikes = body.op("Round", "spikes", clipped)
        body.outputs = [spikes]
        return body


@dataclass(frozen=True)
class StepKind(StatelessKind):
    """Everything that the function of a comparison with a threshold depends on.

    Attributes:
        threshold: the threshold.
        strict: whether an input that equals the threshold does not fire.
    """

    threshold: float
    strict: bool = False
    name: ClassVar[str] = "Step"

    @property
    def title(self) -> str:
        """Return the function's name; the threshold is an input."""
        return self.name + "_strict" * self.strict

    @property
    def constants(self) -> dict[str, float]:
        """Return the scalar input that follows the current."""
        return {"threshold": self.threshold}

    @property
    def formula(self) -> str:
        """Return the documentation of the function that is written into the file."""
        return f"s = x {'>' if self.strict else '>='} {self.threshold:g}."

    def body(self, values: Iterable[ir.Value]) -> FunctionBody:
        """Emit the nodes, which read these values as the inputs."""
        body = FunctionBody(self.inputs, values)
        fired = body.op("Greater" if self.strict else "GreaterOrEqual", "fired", *body.inputs.values())
        body.outputs = [body.op("Cast", "spikes", fired, to=ir.DataType.FLOAT.value)]
        return body


def stateless_kind_of(module: nn.Module) -> IntegerKind | StepKind:
    """Return the kind of a neuron without a membrane."""
    dynamics = dynamics_of(module)
    if dynamics.kind == "Step":
        return StepKind(dynamics.threshold, dynamics.strict)
    return IntegerKind(dynamics.max_spikes, dynamics.half_up)
