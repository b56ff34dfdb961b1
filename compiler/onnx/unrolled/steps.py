"""How a value of a quantized program is stored: one ONNX value for each time step, and where time is in its type."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from svitc.ir.axes import Axis, Dim, Dims, Kind
from svitc.onnx.builder import FLOAT


@dataclass(frozen=True)
class Steps:
    """A value of the program and how it is stored in the ONNX graph.

    Attributes:
        values: one ONNX value for each time step; a single one if it serves for all steps (a static image) or if the
            value has no time.
        dims: layout of each ONNX value.
        view: its dimensions in the program, time included, in the same tokens.
        dtype: element type. Whole numbers are stored in the target's spike type, or as int32.
        unit: what a stored 1 stands for.
        gain: if not 0, step t holds ``factor(gain, t)`` times the value (step_gain.py).
        offset: added to the stored numbers, so that unsigned bytes can hold negative ones.
        parameter: path of the parameter, for a value that no node computes.
        time_order: the tokens of time in the order in which ``values`` counts them, where a view has moved them;
            None for the order in which ``view`` has them.
    """

    values: tuple[ir.Value, ...]
    dims: Dims
    view: Dims
    dtype: ir.TensorType = FLOAT
    unit: float = 1.0
    gain: int = 0
    offset: int = 0
    parameter: str = ""
    time_order: Dim | None = None

    @property
    def timeless(self) -> Dims:
        """Return the dimensions of one step's value."""
        return timeless(self.view)

    @property
    def static(self) -> bool:
        """Return whether one value serves for all steps."""
        return len(self.values) == 1

    @property
    def time(self) -> Dim:
        """Return the tokens of time, outermost first: step t is the t-th of their product."""
        if self.time_order is not None:
            return self.time_order
        return tuple(token for dim in self.view for token in dim if token.kind == Kind.TIME)


def timeless(view: Dims) -> Dims:
    """Return a view without its time axes: the dimensions of one step's value."""
    return tuple(tuple(token for token in dim if token.kind != Kind.TIME) for dim in view)


def leading_time(dims: Dims) -> tuple[int, int] | None:
    """Return the first dimension that begins with time, and the number of its axes that are time.

    Axes of size 1 do not count, as they have no token in a layout. None where no dimension begins with time.
    """
    for i, dim in enumerate(dims):
        stored = [axis for axis in dim if axis.size != 1 or axis.kind == Kind.BATCH]
        count = next((j for j, axis in enumerate(stored) if axis.kind != Kind.TIME), len(stored))
        if count:
            return i, count
    return None


def time_axes(dims: Dims) -> list[tuple[int, Axis]]:
    """Return the time axes of a type that are not of size 1, each with the index of its dimension."""
    return [(i, axis) for i, dim in enumerate(dims) for axis in dim if axis.kind == Kind.TIME and axis.size != 1]


__all__ = ["Steps", "leading_time", "time_axes", "timeless"]
