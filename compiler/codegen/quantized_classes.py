"""The classes of a quantized program's source: layers with int8 weights, and an image as whole numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

from svitc.ir import ops, standalone_layers
from svitc.ir.program import Program
from svitc.ir.quantized_modules import FixedPoint, QuantizedConv1d, QuantizedConv2d, QuantizedLinear

EXACTLY = (
    "It does not train: it is the reference that the ONNX file equals, spike by spike. Weights are int8 and spikes",
    "whole numbers, so that sums are exact. Batch norms are folded into the layers before them, and so are leaks",
    "and thresholds of neurons wherever that can be done.",
)

# classes of the program -> classes whose source stands in model.py
CLASSES: dict[type, type] = {
    QuantizedConv1d: standalone_layers.QuantizedConv1d,
    QuantizedConv2d: standalone_layers.QuantizedConv2d,
    QuantizedLinear: standalone_layers.QuantizedLinear,
    FixedPoint: standalone_layers.FixedPoint,
}
QUANTIZED_NAMES = ("Quantized", *(kind.__name__ for kind in CLASSES))


class Quantized:
    """What a program has of quantized layers.

    Attributes:
        weights: number of int8 weights, each counted as often as the file stores it.
        kinds: of layers that need a class of their own.
    """

    def __init__(self, program: Program) -> None:
        calls = (n for n in program.graph.nodes if n.op == "call_module")
        layers: dict[str, Any] = {str(n.target): program.module_of(n) for n in calls}
        self.weights = sum(int(m.weight.numel()) for m in layers.values() if ops.is_quantized(m))
        self.kinds = {type(module) for module in layers.values()} & set(CLASSES)

    def definitions(self) -> Iterator[str]:
        """Lines of the classes."""
        if self.weights:
            yield from definition(standalone_layers.Quantized)
        for kind, standalone in CLASSES.items():
            if kind in self.kinds:
                yield from definition(standalone)


def definition(standalone: type) -> Iterator[str]:
    """Yield the lines of a class of ``standalone_layers``, and the blank ones after it."""
    yield from (*inspect.getsource(standalone).splitlines(), "", "")


def fixed_point(module: FixedPoint) -> str:
    """The call that makes one: ``FixedPoint(2**-9, 2048)``."""
    exponent = math.frexp(module.step)[1] - 1
    step = f"2**{exponent}" if exponent < 0 else repr(module.step)
    return f"FixedPoint({step}, {module.limit})"
