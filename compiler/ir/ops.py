"""The complete list of canonical operations. Any other operation is refused with a message that names it.

Modules (``call_module``)
    Conv1d, Conv2d, Linear, BatchNorm1d, BatchNorm2d, MaxPool2d, AvgPool2d, ZeroPad2d of torch.nn;
    IFNode, LIFNode, ParametricLIFNode, ILIFNode of SpikingJelly in multi-step mode, and LeakyNeuron, whose first
    dimension is time; IntegerSpike and Step, neurons without state, for inputs with any dimensions;
    RunningReduction, only in programs of one step;
    in quantized programs: QuantizedConv1d, QuantizedConv2d, QuantizedLinear, FixedPoint (quantized_modules.py).
Functions (``call_function``)
    einops.rearrange(x, pattern, **sizes)   any chain of views, with named axes
    einops.repeat(x, pattern, **sizes)      a static image, repeated at every time step
    operator.add, sub, mul (x, y)           two tensors, broadcast; mul and truediv also by a number
    torch.matmul(x, y)
    torch.mean, torch.sum (x, dim=(…), keepdim=…)   dims are not negative
    take_block(x, dim, index, count)        one of ``count`` equal blocks of a dimension
    take_range(x, dim, start, stop)         part of a dimension; only for export, when channel counts are final
    any operator of operators/registry.py   activations, comparisons, concatenation and others
Parameters (``get_attr``)
    a parameter or buffer that is added or multiplied, such as a layer scale.
"""

from __future__ import annotations

import operator
from typing import TypeGuard

import einops
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.ir import standalone_layers
from svitc.ir.operators.registry import OPERATORS
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
    """Return block ``index`` of the ``count`` equal blocks of dimension ``dim``: ``x.chunk(count, dim)[index]``."""
    if x.shape[dim] % count:
        raise ValueError(f"{x.shape[dim]} elements do not make {count} equal blocks")
    return x.chunk(count, dim)[index]


def take_range(x: torch.Tensor, dim: int, start: int, stop: int) -> torch.Tensor:
    """Return elements ``start`` to ``stop`` (exclusive) of dimension ``dim``. Used only in programs for inference."""
    return x.narrow(dim, start, stop - start)


class IntegerSpike(standalone_layers.IntegerSpike):
    """Neuron without state that fires 0 to ``levels`` spikes at once: its input, clipped and rounded.

    Args:
        levels: largest number of spikes.
        rounding: how halves are rounded, ``half_even`` or ``half_up``; the latter is ``floor(x + 0.5)``.
    """

    ROUNDINGS = ("half_even", "half_up")
    levels: int

    def __init__(self, levels: int = 4, rounding: str = "half_even") -> None:
        if levels < 1 or rounding not in self.ROUNDINGS:
            raise ValueError(f"no integer spikes of {levels} levels, rounded {rounding}")
        super().__init__(levels, rounding == "half_up")
        self.rounding = rounding

    def reset(self) -> None:
        """Do nothing, as there is no membrane. SpikingJelly's functions call this method on every neuron."""

    def extra_repr(self) -> str:
        return f"levels={self.levels}, rounding={self.rounding!r}"


class Step(standalone_layers.Step):
    """Neuron without state that fires where its input reaches a threshold: a comparison in a model's code.

    Args:
        threshold: the threshold.
        strict: whether an input that equals the threshold does not fire.
    """

    def reset(self) -> None:
        """Do nothing, as there is no membrane. SpikingJelly's functions call this method on every neuron."""

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, strict={self.strict}"


class LeakyNeuron(standalone_layers.LeakyNeuron):
    """Neuron of the form in which people write them by hand, with the order of operations of ``h`` as given here.

        h = keep * v + gain * x
        s = h >= threshold                      levels > 1: s = round(clip(h / threshold, 0, levels))
        v = h * (1 - s) or h - s * threshold;   v = 0 before the first step

    Args:
        keep: factor of the membrane voltage of the previous time step, from 0 to 1.
        gain: factor of the input.
        threshold: membrane voltage at which it fires.
        hard_reset: whether a spike sets the membrane to 0; otherwise it subtracts the threshold.
        strict: whether a membrane that equals the threshold does not fire.
        levels: largest number of spikes in a time step; more than 1 only with a soft reset.
    """

    step_mode = "m"

    def __init__(
        self,
        keep: float,
        gain: float = 1.0,
        threshold: float = 1.0,
        hard_reset: bool = True,
        strict: bool = False,
        levels: int = 1,
    ) -> None:
        if not 0 <= keep <= 1 or gain <= 0 or threshold <= 0 or levels < 1:
            raise ValueError(f"no neuron keeps {keep}, with gain {gain}, threshold {threshold} and {levels} levels")
        if levels > 1 and (hard_reset or strict):
            raise ValueError("a neuron that counts spikes has a soft reset, and rounds")
        super().__init__(keep, gain, threshold, hard_reset, strict, levels)

    def reset(self) -> None:
        """Do nothing, as no membrane is kept between calls. SpikingJelly's functions call this on every neuron."""

    def trace(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the spikes, and the membrane at each step before it fires."""
        v, charged, spikes = torch.zeros_like(x[0]), [], []
        for current in x:
            charged.append(self.charge(v, current))
            spikes.append(self.fire(charged[-1]))
            v = self.reset_membrane(charged[-1], spikes[-1])
        return torch.stack(spikes), charged

    def extra_repr(self) -> str:
        reset = "hard" if self.hard_reset else "soft"
        text = f"keep={self.keep}, gain={self.gain}, threshold={self.threshold}, {reset} reset"
        return text + (", strict" if self.strict else "") + (f", levels={self.levels}" if self.levels > 1 else "")


class RunningReduction(nn.Module):
    """A reduction over the time steps so far; only in the program of a single step, which is lowered and never run.

    Args:
        kind: ``sum``, ``mean``, ``largest`` or ``smallest``.
    """

    KINDS = ("sum", "mean", "largest", "smallest")

    def __init__(self, kind: str) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"no running reduction is called {kind}")
        super().__init__()
        self.kind = kind

    def extra_repr(self) -> str:
        return self.kind


STATEFUL_NEURONS = (*NEURONS, LeakyNeuron)
STATELESS_NEURONS = (IntegerSpike, Step)
MODULES = (
    *CONVOLUTIONS,
    nn.Linear,
    *BATCH_NORMS,
    *POOLS,
    *PADS,
    *STATEFUL_NEURONS,
    *STATELESS_NEURONS,
    FixedPoint,
    RunningReduction,
)
FUNCTIONS = (*ELEMENTWISE, *REDUCTIONS, *VIEWS, torch.matmul, take_block, take_range, *OPERATORS)


def is_neuron(module: object) -> bool:
    """Return whether ``module`` is a canonical neuron. Subclasses are not, because they may behave differently."""
    return type(module) in (*STATEFUL_NEURONS, *STATELESS_NEURONS)


def has_state(module: object) -> bool:
    """Return whether ``module`` is a canonical neuron with a membrane, which keeps state between time steps."""
    return type(module) in STATEFUL_NEURONS


def is_batch_norm(module: object) -> TypeGuard[nn.BatchNorm2d]:
    """Return whether ``module`` is a batch norm."""
    return isinstance(module, BATCH_NORMS)


def is_projection(module: object) -> TypeGuard[nn.Conv2d]:
    """Return whether ``module`` is a layer with weights that computes new channels: a convolution or linear layer."""
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def is_quantized(module: object) -> bool:
    """Return whether ``module`` is a layer with integer weights."""
    return isinstance(module, tuple(QUANTIZED.values()))
