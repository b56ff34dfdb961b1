"""Classes in the source of a quantized program: layers with integer weights, and the quantization of the input."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator

from svitc.ir import ops, standalone_layers
from svitc.ir.program import Program
from svitc.ir.quantized_modules import WIDE_BITS, FixedPoint, QuantizedConv1d, QuantizedConv2d, QuantizedLinear

REFERENCE_NOTE = (
    "It does not train: it is the reference that the ONNX file equals, spike by spike. Weights are integers and spikes",
    "whole numbers, so that sums are exact. Batch norms are folded into the layers before them, and so are leaks",
    "and thresholds of neurons wherever that can be done.",
)

# class in the program -> class whose source is written to model.py
CLASSES: dict[type, type] = {
    QuantizedConv1d: standalone_layers.QuantizedConv1d,
    QuantizedConv2d: standalone_layers.QuantizedConv2d,
    QuantizedLinear: standalone_layers.QuantizedLinear,
    FixedPoint: standalone_layers.FixedPoint,
}
QUANTIZED_NAMES = ("Quantized", *(kind.__name__ for kind in CLASSES))


class Quantized:
    """Quantized layers of a program.

    Attributes:
        weights: number of integer weights.
        wide: number of those that have 16 bits.
        kinds: classes of layers whose source must be written to model.py.
    """

    def __init__(self, program: Program) -> None:
        calls = (n for n in program.graph.nodes if n.op == "call_module")
        layers = {str(n.target): program.module_of(n) for n in calls}
        quantized = [layer for layer in layers.values() if layer is not None and ops.is_quantized(layer)]
        self.weights = sum(layer.get_buffer("weight").numel() for layer in quantized)
        wide = [layer for layer in quantized if layer.bits == WIDE_BITS]
        self.wide = sum(layer.get_buffer("weight").numel() for layer in wide)
        self.kinds = {type(layer) for layer in layers.values()} & set(CLASSES)

    def definitions(self) -> Iterator[str]:
        """Yield the lines of the classes."""
        if self.weights:
            yield from definition(standalone_layers.Quantized)
        for kind, standalone in CLASSES.items():
            if kind in self.kinds:
                yield from definition(standalone)


def definition(standalone: Callable) -> Iterator[str]:
    """Yield the lines of a class or function that needs only torch, and two blank lines."""
    yield from (*inspect.getsource(standalone).splitlines(), "", "")


def fixed_point(module: FixedPoint) -> str:
    """Return the expression that creates a fixed-point layer, such as ``FixedPoint(2**-9, 2048)``."""
    exponent = math.frexp(module.step)[1] - 1
    step = f"2**{exponent}" if exponent < 0 else repr(module.step)
    return f"FixedPoint({step}, {module.limit})"
