"""Fast execution of a program in training: the same layers and weights, with faster memory layouts and neurons.

Three measures, which change nothing but the order of sums:

- Tensors are channels-last from the first layer on. Pooling and batch norm are several times faster than with
  channels-first, and a 1x1 convolution over tokens is one matrix product.
- The layers before the first neuron are computed once, not at every time step (passes/inference/hoist_repeat.py).
- An LIF or IF neuron is one operation over all time steps, which keeps only membrane potentials and spikes for the
  backward pass. It has the equations and the surrogate gradient of SpikingJelly. In float32 and float64 its spikes
  equal those of SpikingJelly bit for bit; in bfloat16 it rounds once per time step, where SpikingJelly rounds three
  times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import neuron, surrogate
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.neuron_dynamics import NeuronDynamics, dynamics_of
from svitc.ir.outputs import as_tuple, required_scores
from svitc.ir.program import Program

# surrogate functions whose gradient is a static method of the distance from the threshold
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
class NeuronConstants:
    """The constants of a neuron layer that runs in its fast form.

    Attributes:
        neuron: its equations.
        detach: whether the reset is detached, so that no gradient passes through it.
        surrogate: type of the surrogate function.
        parameters: arguments of the surrogate function.
    """

    neuron: NeuronDynamics
    detach: bool
    surrogate: type[surrogate.SurrogateFunctionBase]
    parameters: Mapping[str, float]


def neuron_constants(module: nn.Module) -> NeuronConstants | None:
    """Return the constants of a neuron, or None for a neuron that must run as SpikingJelly implements it."""
    if type(module) not in (neuron.LIFNode, neuron.IFNode):
        return None
    node: Any = module
    fire = node.surrogate_function
    if node.step_mode != "m" or type(fire) not in SURROGATES or not fire.spiking:
        return None
    if not isinstance(fire.alpha, (int, float)):
        return None
    return NeuronConstants(dynamics_of(module), node.detach_reset, type(fire), {"alpha": float(fire.alpha)})


def spikes(x: torch.Tensor, c: NeuronConstants) -> torch.Tensor:
    """Return the spikes of a neuron, from its initial membrane on.

    Args:
        x: input currents, ``[T, …]``.
        c: the neuron's constants.

    Returns:
        Spikes ``[T, …]``, in the type and memory layout of the currents.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Spikes.apply(x, c)
    return _integrate(x, c, None)


def _empty_steps(x: torch.Tensor) -> torch.Tensor:
    """Allocate a tensor like ``x [T, …]``, time outermost, each time step in the memory layout of ``x[0]``.

    ``x`` may be an expanded view that repeats one time step.
    """
    one = torch.empty_like(x[0])
    return torch.empty_strided((len(x), *one.shape), (one.numel(), *one.stride()), dtype=x.dtype, device=x.device)


def _integrate(x: torch.Tensor, c: NeuronConstants, membranes: torch.Tensor | None) -> torch.Tensor:
    """Return the spikes of all time steps.

    Args:
        x: input currents, ``[T, …]``.
        c: the neuron's constants.
        membranes: filled with the membrane potentials before the reset, ``[T, …]``; None to leave them out.
    """
    spiked = _empty_steps(x)
    h = torch.empty_like(x[0])
    n = c.neuron
    v = torch.full_like(x[0], n.initial)
    use_lerp = x.dtype in (torch.bfloat16, torch.float16) and n.tau is not None and n.decay_input and n.rest == 0
    for t in range(len(x)):
        if membranes is not None:
            h = membranes[t]
        if n.tau is None:
            torch.add(v, x[t], out=h)
        elif use_lerp:
            torch.lerp(v, x[t], 1 / n.tau, out=h)
        elif n.decay_input:
            torch.sub(x[t], v - n.rest if n.rest else v, out=h).div_(n.tau).add_(v)
        else:
            torch.sub(v, torch.sub(v, n.rest).div_(n.tau), out=h).add_(x[t])
        torch.ge(h, n.threshold, out=spiked[t])
        # spikes are 0 or 1, so that the resets are exact
        if n.reset is None:
            torch.sub(h, spiked[t], alpha=n.threshold, out=v)
        else:
            torch.addcmul(h, h, spiked[t], value=-1, out=v)
            if n.rest:
                v.add_(spiked[t], alpha=n.rest)
    return spiked


class _Spikes(torch.autograd.Function):
    """All time steps of a neuron, with its surrogate gradient.

    With the membrane potential ``h`` before the reset, the spike ``s`` and the derivative ``g'`` of the surrogate:

        dL/dx[t] = gain * g'(h[t]) * dL/ds[t] + keep * dL/dx[t+1] * reset'[t]

    where ``reset'`` is the derivative of the potential after the reset with respect to ``h``: 1 - s for a hard reset
    and 1 for a soft reset, with another term where gradients pass through the reset.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, c: NeuronConstants) -> torch.Tensor:
        membranes = _empty_steps(x)
        spiked = _integrate(x, c, membranes)
        ctx.save_for_backward(spiked, membranes)
        ctx.constants = c
        return spiked

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        spiked, membranes = ctx.saved_tensors
        c: NeuronConstants = ctx.constants
        n = c.neuron
        slope = None
        if c.surrogate is surrogate.Sigmoid and c.detach:
            alpha = c.parameters["alpha"]
            shift = torch.tensor(-alpha * n.threshold, dtype=spiked.dtype)
            s = torch.add(shift, membranes, alpha=alpha).sigmoid_()
            dx = torch.empty_like(spiked)
            torch.ops.aten.sigmoid_backward.grad_input(gradients[0], s, grad_input=dx)
            dx.mul_(alpha * n.gain)
            carried = s[0]  # s is no longer needed: reuse its memory for one time step
        else:
            distance = membranes - n.threshold
            slope = c.surrogate.backward(torch.ones_like(distance), distance, **c.parameters)
            dx = torch.mul(gradients[0], slope, out=torch.empty_like(spiked)).mul_(n.gain)
            carried = torch.empty_like(spiked[0])
        for t in range(len(spiked) - 2, -1, -1):
            dx_next = dx[t + 1]
            if n.reset is None:
                carried.copy_(dx_next)
                if slope is not None and not c.detach:
                    carried.addcmul_(dx_next, slope[t], value=-n.threshold)
            else:
                torch.addcmul(dx_next, dx_next, spiked[t], value=-1, out=carried)
                if slope is not None and not c.detach:
                    carried.addcmul_(dx_next, slope[t] * (n.rest - membranes[t]))
            dx[t].add_(carried, alpha=n.keep)
        return dx, None


class _Runner(fx.Interpreter):
    """Interpreter of a canonical graph that runs neurons, convolutions, pooling and batch norms in their fast forms."""

    def call_module(self, target: fx.node.Target, args: tuple, kwargs: dict) -> object:
        """Run one layer, in its fast form where it has one."""
        module, x = self.fetch_attr(str(target)), args[0]
        if ops.has_state(module):
            c = neuron_constants(module)
            if c is not None:
                return spikes(x, c)
            # keep membranes in float32 under autocast; SpikingJelly would give them the type of the input
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
    """The identity, whose gradient is made channels-last.

    Batch norm in PyTorch 2.13 computes a wrong gradient on the CPU where the incoming gradient has another memory
    layout than the input and the image is one pixel wide.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous(memory_format=torch.channels_last)


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Apply batch norm to ``[N, C, H, W]``, channels-last."""
    momentum = module.momentum
    if module.training and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / float(module.num_batches_tracked)
    use_batch_statistics = module.training or module.running_mean is None
    y = F.batch_norm(
        x.contiguous(memory_format=torch.channels_last),
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        use_batch_statistics,
        momentum or 0.0,
        module.eps,
    )
    return _Aligned.apply(y)


class FastForward(nn.Module):
    """A program's network in its fast form; membrane potentials are reset before each call.

    Args:
        program: the program to run. Weights are shared with it; the caller prepares it and moves it to its device.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.inner = program.module
        self.scores = required_scores(program.graph, program.info)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, classes]`` averaged over time, in float32 (float64 for a float64 input)."""
        outputs = as_tuple(_Runner(self.inner).run(x))
        return self.scores.of([y if y.dtype == torch.float64 else y.float() for y in outputs])
