"""The closed list of canonical operations. Whatever is not here is refused by name, never guessed.

Modules (``call_module``)
    Conv1d, Conv2d, Linear, BatchNorm1d, BatchNorm2d, MaxPool2d, AvgPool2d of torch.nn;
    IFNode, LIFNode, ParametricLIFNode, ILIFNode of SpikingJelly in multi-step mode, whose first
    dimension is time.
Functions (``call_function``)
    einops.rearrange(x, pattern, **sizes)   any chain of views, in named axes
    einops.repeat(x, pattern, **sizes)      a static image shown at every time step
    operator.add, sub, mul (x, y)           two tensors, broadcast; mul and truediv also by a number
    torch.matmul(x, y)
    torch.mean, torch.sum (x, dim=(…), keepdim=…)   dims are not negative
    take_block(x, dim, index, count)        one of ``count`` equal blocks of a dimension
Parameters (``get_attr``)
    a parameter or buffer that is added or multiplied, such as a layer scale.
"""

from __future__ import annotations

import operator
from typing import Any

import einops
import torch
from spikingjelly.activation_based import neuron
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
NEURONS = (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, neuron.ILIFNode)
MODULES = (*CONVOLUTIONS, nn.Linear, *BATCH_NORMS, *POOLS, *NEURONS)

ELEMENTWISE = (operator.add, operator.sub, operator.mul, operator.truediv)
REDUCTIONS = (torch.mean, torch.sum)
VIEWS = (einops.rearrange, einops.repeat)


def take_block(x: torch.Tensor, dim: int, index: int, count: int) -> torch.Tensor:
    """Block ``index`` of the ``count`` equal blocks of dimension ``dim``: ``x.chunk(count, dim)[index]``."""
    if x.shape[dim] % count:
        raise ValueError(f"{x.shape[dim]} elements do not make {count} equal blocks")
    return x.chunk(count, dim)[index]


FUNCTIONS = (*ELEMENTWISE, *REDUCTIONS, *VIEWS, torch.matmul, take_block)


def is_neuron(module: Any) -> bool:
    """Whether ``module`` is one of the neurons that svitc knows; a subclass may behave differently and is not."""
    return type(module) in NEURONS


def is_batch_norm(module: Any) -> bool:
    return isinstance(module, BATCH_NORMS)


def is_projection(module: Any) -> bool:
    """A layer with weights that makes new channels from old ones: convolution or linear."""
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))
