"""The classes of a quantized program's source: layers with int8 weights, and an image as whole numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from svitc.ir import ops
from svitc.ir.program import Program
from svitc.ir.quantized_modules import FixedPoint, QuantizedConv1d, QuantizedConv2d, QuantizedLinear

EXACTLY = (
    "It does not train: it is the reference that the ONNX file equals, spike by spike. Weights are int8 and spikes",
    "whole numbers, so that sums are exact. Batch norms are folded into the layers before them, and so are leaks",
    "and thresholds of neurons wherever that can be done.",
)

QUANTIZED = '''\
class Quantized(nn.Module):
    """A layer with int8 weights W: (W x) * scale + bias, with one scale and one bias for each channel.

    For x of whole numbers, such as spikes, the sums stay below 2^24, where float32 is exact in any order. A scale
    has so few bits that its product with the sum is exact, too. Adding the bias rounds, once.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        shape = self.weight.shape
        del self.weight, self.bias
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(shape[0]))
        self.register_buffer("bias", torch.zeros(shape[0]))

    def forward(self, x):
        shape = [-1] + [1] * (self.weight.ndim - 2)
        return self.sums(x, self.weight.to(x.dtype)) * self.scale.view(shape) + self.bias.view(shape)
'''

_CONVOLUTION = '''\
class QuantizedConv{n}d(Quantized, nn.Conv{n}d):
    """A {word}-dimensional convolution with int8 weights."""

    def sums(self, x, w):
        return nn.functional.conv{n}d(x, w, None, self.stride, self.padding, self.dilation, self.groups)
'''

_LINEAR = '''\
class QuantizedLinear(Quantized, nn.Linear):
    """A linear layer with int8 weights."""

    def sums(self, x, w):
        return nn.functional.linear(x, w)
'''

_FIXED_POINT = '''\
class FixedPoint(nn.Module):
    """A real input as a whole number of steps, a power of two, within -limit to limit."""

    def __init__(self, step, limit):
        super().__init__()
        self.step, self.limit = step, limit

    def forward(self, x):
        return (x * (1 / self.step)).round().clamp(-self.limit, self.limit)
'''

CLASSES = {
    QuantizedConv1d: _CONVOLUTION.format(n=1, word="one"),
    QuantizedConv2d: _CONVOLUTION.format(n=2, word="two"),
    QuantizedLinear: _LINEAR,
    FixedPoint: _FIXED_POINT,
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
            yield from (*QUANTIZED.splitlines(), "", "")
        for kind, text in CLASSES.items():
            if kind in self.kinds:
                yield from (*text.splitlines(), "", "")


def fixed_point(module: FixedPoint) -> str:
    """The call that makes one: ``FixedPoint(2**-9, 2048)``."""
    exponent = math.frexp(module.step)[1] - 1
    step = f"2**{exponent}" if exponent < 0 else repr(module.step)
    return f"FixedPoint({step}, {module.limit})"
