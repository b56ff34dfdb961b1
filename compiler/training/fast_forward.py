"""A program that runs fast in training: the same layers and weights, laid out and joined for the processor.

Three things, which change nothing but the order of sums:

- values lie channels-last from the first layer on, where pooling and batch norm are several times faster than
  channels-first, and a 1x1 convolution over tokens is one matrix product;
- what comes before the first neuron is computed once, not at every time step (passes/inference/hoist_repeat.py);
- an LIF or IF neuron is one operation for all time steps, which keeps its membranes and spikes and nothing else,
  with SpikingJelly's own equations and surrogate gradient. In float32 and float64 its spikes are SpikingJelly's, bit
  for bit; in bfloat16 it rounds once a step where SpikingJelly rounds three times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import neuron, surrogate
from torch import fx, nn

from svitc.data.inputs import time_average
from svitc.ir import ops
from svitc.ir.neuron_dynamics import NeuronDynamics, dynamics_of
from svitc.ir.program import Program

# surrogates whose gradient is a static function of the distance from the threshold
SURROGATES = (
    surrogate.Sigmoid,
    surrogate.ATan,
    surrogate.PiecewiseQuadratic,
    surrogate.PiecewiseExp,
    surrogate.SoftSign,
    surrogate.SuperSpike,
    surrogate.Erf,
)


@dataclass(frozen=True)
class Constants:
    """A neuron's numbers.

    Attributes:
        neuron: its equations.
        detach: whether no gradient passes through the reset.
        surrogate: type of the surrogate function.
        parameters: its arguments.
    """

    neuron: NeuronDynamics
    detach: bool
    surrogate: type[surrogate.SurrogateFunctionBase]
    parameters: Mapping[str, float]


def constants(module: nn.Module) -> Constants | None:
    """A neuron's numbers, or None for a neuron that runs as SpikingJelly wrote it."""
    if type(module) not in (neuron.LIFNode, neuron.IFNode):
        return None
    node: Any = module
    fire = node.surrogate_function
    if node.step_mode != "m" or type(fire) not in SURROGATES or not fire.spiking:
        return None
    if not isinstance(fire.alpha, (int, float)):
        return None
    return Constants(dynamics_of(module), node.detach_reset, type(fire), {"alpha": float(fire.alpha)})


def spikes(x: torch.Tensor, c: Constants) -> torch.Tensor:
    """Spikes ``[T, …]`` of a neuron at rest on currents ``[T, …]``, in the currents' type and layout."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Spikes.apply(x, c)
    return _integrate(x, c, None)


def _room(x: torch.Tensor) -> torch.Tensor:
    """Like ``x [T, …]``, time outermost, each step in the layout of ``x``'s own; ``x`` may be one step repeated."""
    one = torch.empty_like(x[0])
    return torch.empty_strided((len(x), *one.shape), (one.numel(), *one.stride()), dtype=x.dtype, device=x.device)


def _integrate(x: torch.Tensor, c: Constants, membranes: torch.Tensor | None) -> torch.Tensor:
    """Spikes; ``membranes``, if given, is filled with what is compared with the threshold."""
    fired = _room(x)
    h = torch.empty_like(x[0])
    n = c.neuron
    v = torch.full_like(x[0], n.rest)
    once = x.dtype in (torch.bfloat16, torch.float16) and n.tau is not None and n.decay_input and n.rest == 0
    for t in range(len(x)):
        if membranes is not None:
            h = membranes[t]
        if n.tau is None:
            torch.add(v, x[t], out=h)
        elif once:
            torch.lerp(v, x[t], 1 / n.tau, out=h)
        elif n.decay_input:
            torch.sub(x[t], v - n.rest if n.rest else v, out=h).div_(n.tau).add_(v)
        else:
            torch.sub(v, torch.sub(v, n.rest).div_(n.tau), out=h).add_(x[t])
        torch.ge(h, n.threshold, out=fired[t])
        # spikes are 0 or 1, so each of these is exact
        if n.reset is None:
            torch.sub(h, fired[t], alpha=n.threshold, out=v)
        else:
            torch.addcmul(h, h, fired[t], value=-1, out=v)
            if n.rest:
                v.add_(fired[t], alpha=n.rest)
    return fired


class _Spikes(torch.autograd.Function):
    """All time steps of a neuron. With ``h`` the membrane, ``s`` its spike and ``g'`` the surrogate's slope:

    dL/dx[t] = gain * g'(h[t]) * dL/ds[t] + leak * dL/dx[t+1] * keep[t]

    where ``keep`` is what a membrane passes on to the next step: 1 - s after a hard reset, 1 after a soft one, and
    more where gradients pass through the reset.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, c: Constants) -> torch.Tensor:
        membranes = _room(x)
        fired = _integrate(x, c, membranes)
        ctx.save_for_backward(fired, membranes)
        ctx.constants = c
        return fired

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        fired, membranes = ctx.saved_tensors
        c: Constants = ctx.constants
        n = c.neuron
        slope = None
        if c.surrogate is surrogate.Sigmoid and c.detach:
            alpha = c.parameters["alpha"]
            shift = torch.tensor(-alpha * n.threshold, dtype=fired.dtype)
            s = torch.add(shift, membranes, alpha=alpha).sigmoid_()
            into = torch.empty_like(fired)
            torch.ops.aten.sigmoid_backward.grad_input(gradients[0], s, grad_input=into)
            into.mul_(alpha * n.gain)
            passed = s[0]  # no longer needed: room for one step
        else:
            distance = membranes - n.threshold
            slope = c.surrogate.backward(torch.ones_like(distance), distance, **c.parameters)
            into = torch.mul(gradients[0], slope, out=torch.empty_like(fired)).mul_(n.gain)
            passed = torch.empty_like(fired[0])
        for t in range(len(fired) - 2, -1, -1):
            after = into[t + 1]
            if n.reset is None:
                passed.copy_(after)
                if slope is not None and not c.detach:
                    passed.addcmul_(after, slope[t], value=-n.threshold)
            else:
                torch.addcmul(after, after, fired[t], value=-1, out=passed)
                if slope is not None and not c.detach:
                    passed.addcmul_(after, slope[t] * (n.rest - membranes[t]))
            into[t].add_(passed, alpha=n.keep)
        return into, None


class _Runner(fx.Interpreter):
    """Runs a canonical graph, the layers named above in their fast form."""

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        module, x = self.fetch_attr(target), args[0]
        if ops.has_state(module):
            c = constants(module)
            if c is not None:
                return spikes(x, c)
            # membranes stay float32 under autocast: SpikingJelly would keep them in the type of their input
            module.reset()
            with torch.autocast(x.device.type, enabled=False):
                y = module(x if x.dtype == torch.float64 else x.float())
            module.reset()
            return y.to(x.dtype)
        if isinstance(module, nn.Conv1d) and module.kernel_size == (1,) and _is_plain(module):
            return F.linear(x.transpose(1, 2), module.weight.squeeze(2), module.bias).transpose(1, 2)
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and x.ndim == 4:
            return module(x.contiguous(memory_format=torch.channels_last))
        if isinstance(module, nn.BatchNorm1d) and x.ndim == 3:
            return _batch_norm(module, x.unsqueeze(3)).squeeze(3)  # tokens are an image of width 1
        if isinstance(module, nn.BatchNorm2d):
            return _batch_norm(module, x)
        return module(*args, **kwargs)


def _is_plain(module: nn.Conv1d) -> bool:
    return module.groups == 1 and module.stride == (1,) and module.padding in ((0,), "valid")


class _Aligned(torch.autograd.Function):
    """The identity; its gradient lies channels-last.

    PyTorch's batch norm (2.13, CPU) computes a wrong gradient where the incoming one lies otherwise than the input
    and the image is one pixel wide.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous(memory_format=torch.channels_last)


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Batch norm over ``[N, C, H, W]``, channels-last."""
    momentum = module.momentum
    if module.training and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / float(module.num_batches_tracked)
    learning = module.training or module.running_mean is None
    y = F.batch_norm(
        x.contiguous(memory_format=torch.channels_last),
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        learning,
        momentum or 0.0,
        module.eps,
    )
    return _Aligned.apply(y)


class FastForward(nn.Module):
    """A program's module, run fast, from reset membranes each time.

    Args:
        program: is run as it is: its weights are shared, and it stays its owner's to prepare and to move.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.inner = program.module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, classes]``, averaged over time, float32 (float64 for a float64 input)."""
        y = _Runner(self.inner).run(x)
        return time_average(y if y.dtype == torch.float64 else y.float())
