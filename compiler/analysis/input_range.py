"""The range of a program's input, which a quantized program rounds to whole numbers of steps.

A value outside the range becomes the nearest one inside, which is another network without a word. So the range is
declared by the user, measured on images, or derived from the model: from the normalization that its checkpoint names,
or from the first batch norm. A convolution without bias whose outputs have the root mean square r, and whose weights
have the absolute sum s, must have seen inputs of at least r / s; where that is more than normalized pixels ever are,
the model takes others, such as pixels from 0 to 255 or mean-free ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from svitc.ir import ops
from svitc.ir.program import Program

PIXELS = 4.0  # normalized pixels lie within +-2.7
COUNTS = 256.0  # largest number of events of a pixel in one frame
BYTES, WORDS = 2.0**8, 2.0**16  # pixels of 8 and of 16 bits, which the model itself scales
MARGIN = 4.0  # what a value can be, in units of the least that a batch norm proves
SMALL = 0.5  # a range below this needs finer steps than normalized pixels


@dataclass(frozen=True)
class InputRange:
    """The range of a program's input.

    Attributes:
        low, high: the smallest and the largest value.
        source: ``declared``, ``measured``, ``normalization``, ``batch norm`` or ``assumed``.
    """

    low: float
    high: float
    source: str

    @property
    def span(self) -> float:
        """Largest magnitude of a value."""
        return max(-self.low, self.high)


def input_range(program: Program, measured: Sequence[float] | None = None) -> InputRange:
    """Return the range of a program's input.

    Args:
        program: a program with its batch norms.
        measured: the smallest and the largest value of some images, if there are any.
    """
    kept = program.info.get("input_range")
    if kept is not None:
        return InputRange(float(kept["low"]), float(kept["high"]), str(kept["source"]))
    usual = usual_span(program)
    assumed = InputRange(-usual, usual, "assumed")
    if measured is not None:
        largest = max(abs(measured[0]), abs(measured[1]))
        span = 2.0 ** math.ceil(math.log2(largest)) if largest > 0 else usual
        within = SMALL < span <= usual
        return InputRange(-usual, usual, "measured") if within else InputRange(-span, span, "measured")
    normalize = program.info.get("normalize")
    if normalize and not program.input.events:
        ends = [(end - m) / s for m, s in zip(normalize["mean"], normalize["std"], strict=True) for end in (0.0, 1.0)]
        span = max(usual, *(abs(end) for end in ends))
        return InputRange(-span, span, "normalization")
    least = least_input(program)
    if least is None or least <= usual:
        return assumed
    likely = next((end for end in (BYTES, WORDS) if least <= end and not program.input.events), None)
    span = likely or 2.0 ** math.ceil(math.log2(MARGIN * least))
    return InputRange(-span, span, "batch norm")


def usual_span(program: Program) -> float:
    """Return the largest magnitude that an input is taken to have where nothing else is known."""
    return COUNTS if program.input.events else PIXELS


def least_input(program: Program) -> float | None:
    """Return a magnitude that the inputs of training must have reached, from the first batch norms; None if unknown."""
    placeholder = next(node for node in program.graph.nodes if node.op == "placeholder")
    bounds = [_least(program, conv, norm) for conv, norm in _first_norms(program, placeholder)]
    return max((bound for bound in bounds if bound is not None), default=None)


def _first_norms(program: Program, node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Return the projections that read the input, each with the batch norm behind it."""
    found = []
    for reader in node.users:
        if reader.target in ops.VIEWS or isinstance(program.module_of(reader), ops.PADS):
            found += _first_norms(program, reader)
        elif ops.is_projection(program.module_of(reader)):
            found += [(reader, norm) for norm in _norms_behind(program, reader)]
    return found


def _norms_behind(program: Program, node: fx.Node) -> list[fx.Node]:
    """Return the batch norms that read a value, looking through views."""
    norms = []
    for reader in node.users:
        if ops.is_batch_norm(program.module_of(reader)):
            norms.append(reader)
        elif reader.target in ops.VIEWS:
            norms += _norms_behind(program, reader)
    return norms


def _least(program: Program, conv: fx.Node, norm: fx.Node) -> float | None:
    layer: Any = program.module_of(conv)
    statistics: Any = program.module_of(norm)
    mean, variance = statistics.running_mean.detach().double(), statistics.running_var.detach().double()
    sums = layer.weight.detach().double().abs().flatten(1).sum(1)
    if bool((mean == 0).all() and (variance == 1).all()) or len(mean) != len(sums):  # never trained
        return None
    bias = 0.0 if layer.bias is None else layer.bias.detach().double()
    root_mean_square = (variance + (mean - bias).square()).sqrt()
    used = sums > 0
    return float((root_mean_square[used] / sums[used]).max()) if bool(used.any()) else None


__all__ = ["InputRange", "input_range", "least_input", "usual_span"]
