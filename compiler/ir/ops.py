"""The closed list of canonical operations. Whatever is not here is refused by name, never guessed.

Modules (``call_module``)
    Conv1d, Conv2d, Linear, BatchNorm1d, BatchNorm2d, MaxPool2d, AvgPool2d, ZeroPad2d of torch.nn;
    IFNode, LIFNode, ParametricLIFNode, ILIFNode of SpikingJelly in multi-step mode, whose first
    dimension is time; IntegerSpike, a neuron without state, on values of any dimensions;
    quantized programs: QuantizedConv1d, QuantizedConv2d, QuantizedLinear, FixedPoint (quantized_modules.py).
Functions (``call_function``)
    einops.rearrange(x, pattern, **sizes)   any chain of views, in named axes
    einops.repeat(x, pattern, **sizes)      a static image shown at every time step
    operator.add, sub, mul (x, y)           two tensors, broadcast; mul and truediv also by a number
    torch.matmul(x, y)
    torch.mean, torch.sum (x, dim=(…), keepdim=…)   dims are not negative
    take_block(x, dim, index, count)        one of ``count`` equal blocks of a dimension
    take_range(x, dim, start, stop)         part of a dimension; only before export, where widths are final
Parameters (``get_attr``)
    a parameter or buffer that is added or multiplied, such as a layer scale.
"""

from __future__ import annotations

import operator
from typing import Any, TypeGuard

import einops
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.ir import standalone_layers
from svitc.ir.quantized_modules import QUANTIZED, FixedPoint

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
PADS = (nn.ZeroPad2d,)
NEURONS = (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, neuron.ILIFNode)

ELEMENTWISE = (operator.add, operator.sub, operator.mul, operator.truediv)
REDUCTIONS = (torch.mean, torch.sum)
VIEWS = (einops.rearrange, einops.repeat)


def take_block(x: torch.Tensor, dim: int, index: int, count: int) -> torch.Tensor:
    """Block ``index`` of the ``count`` equal blocks of dimension ``dim``: ``x.chunk(count, dim)[index]``."""
    if x.shape[dim] % count:
        raise ValueError(f"{x.shape[dim]} elements do not make {count} equal blocks")
    return x.chunk(count, dim)[index]


def take_range(x: torch.Tensor, dim: int, start: int, stop: int) -> torch.Tensor:
    """Elements ``start`` to ``stop`` of dimension ``dim``; only in programs that no longer train."""
    return x.narrow(dim, start, stop - start)


class IntegerSpike(standalone_layers.IntegerSpike):
    """A neuron without state that fires 0 to ``levels`` spikes at once: its input, clipped and rounded.

    Args:
        levels: the most spikes.
        rounding: of halves, ``half_even`` or ``half_up``; the latter is ``floor(x + 0.5)``.
    """

    ROUNDINGS = ("half_even", "half_up")
    levels: int

    def __init__(self, levels: int = 4, rounding: str = "half_even") -> None:
        if levels < 1 or rounding not in self.ROUNDINGS:
            raise ValueError(f"no integer spikes of {levels} levels, rounded {rounding}")
        super().__init__(levels, rounding == "half_up")
        self.rounding = rounding

    def reset(self) -> None:
        """There is no membrane."""

    def extra_repr(self) -> str:
        return f"levels={self.levels}, rounding={self.rounding!r}"


STATELESS_NEURONS = (IntegerSpike,)
MODULES = (*CONVOLUTIONS, nn.Linear, *BATCH_NORMS, *POOLS, *PADS, *NEURONS, *STATELESS_NEURONS, FixedPoint)
FUNCTIONS = (*ELEMENTWISE, *REDUCTIONS, *VIEWS, torch.matmul, take_block, take_range)


def is_neuron(module: Any) -> bool:
    """Whether ``module`` is one of the neurons that svitc knows; a subclass may behave differently and is not."""
    return type(module) in (*NEURONS, *STATELESS_NEURONS)


def has_state(module: Any) -> bool:
    """Whether ``module`` is a neuron whose membrane runs on from step to step, along its first dimension."""
    return type(module) in NEURONS


def is_batch_norm(module: Any) -> TypeGuard[nn.BatchNorm2d]:
    return isinstance(module, BATCH_NORMS)


def is_projection(module: Any) -> TypeGuard[nn.Conv2d]:
    """A layer with weights that makes new channels from old ones: convolution or linear."""
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def is_quantized(module: Any) -> bool:
    """Whether ``module`` is a layer with int8 weights."""
    return isinstance(module, tuple(QUANTIZED.values()))
