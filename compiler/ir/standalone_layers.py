"""Layers whose source is copied to model.py without changes.

Therefore these classes need only torch and have no type annotations, and their docstrings address the reader of a
model.py. Programs run the same classes; subclasses in ``ops`` and ``quantized_modules`` add what only svitc needs.
"""

from __future__ import annotations

import torch
from torch import nn


class Quantized(nn.Module):
    """A layer with int8 or int16 weights W: (W x) * scale + bias, with one scale and one bias for each channel.

    For x of whole numbers, such as spikes, the sums stay below 2^24, where float32 is exact in any order. A scale
    has so few bits that its product with the sum is exact, too. Adding the bias rounds, once; with int16 weights,
    scales are powers of two and biases lie on a grid, and nothing rounds at all.
    """

    def __init__(self, *args, bits=8, **kwargs):
        super().__init__(*args, **kwargs)
        self.bits = bits
        shape = self.weight.shape
        del self.weight, self.bias
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int16 if bits > 8 else torch.int8))
        self.register_buffer("scale", torch.ones(shape[0]))
        self.register_buffer("bias", torch.zeros(shape[0]))

    def forward(self, x):
        shape = [-1] + [1] * (self.weight.ndim - 2)
        return self.sums(x, self.weight.to(x.dtype)) * self.scale.view(shape) + self.bias.view(shape)


class QuantizedConv1d(Quantized, nn.Conv1d):
    """A one-dimensional convolution with integer weights."""

    def sums(self, x, w):
        return nn.functional.conv1d(x, w, None, self.stride, self.padding, self.dilation, self.groups)


class QuantizedConv2d(Quantized, nn.Conv2d):
    """A two-dimensional convolution with integer weights."""

    def sums(self, x, w):
        return nn.functional.conv2d(x, w, None, self.stride, self.padding, self.dilation, self.groups)


class QuantizedLinear(Quantized, nn.Linear):
    """A linear layer with integer weights."""

    def sums(self, x, w):
        return nn.functional.linear(x, w)


class FixedPoint(nn.Module):
    """A real input as a whole number of steps, a power of two, within -limit to limit."""

    def __init__(self, step, limit):
        super().__init__()
        self.step, self.limit = step, limit

    def forward(self, x):
        return (x * (1 / self.step)).round().clamp(-self.limit, self.limit)


class Integer(torch.autograd.Function):
    """Whole numbers from 0 to levels; the gradient passes wherever nothing was clipped."""

    @staticmethod
    def forward(ctx, x, levels, half_up):
        ctx.save_for_backward((x >= 0) & (x <= levels))
        x = x.clamp(0, levels)
        return (x + 0.5).floor() if half_up else x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


class IntegerSpike(nn.Module):
    """A neuron without membrane that fires 0 to levels spikes at once: its input, rounded."""

    def __init__(self, levels, half_up=False):
        super().__init__()
        self.levels, self.half_up = levels, half_up

    def forward(self, x):
        return Integer.apply(x, self.levels, self.half_up)


class Heaviside(torch.autograd.Function):
    """1 where x reaches the threshold, else 0; the gradient is that of an arc tangent."""

    @staticmethod
    def forward(ctx, x, threshold, strict):
        ctx.save_for_backward(x - threshold)
        return (x > threshold if strict else x >= threshold).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (1 + (torch.pi * ctx.saved_tensors[0]) ** 2), None, None


class Step(nn.Module):
    """A neuron without membrane that fires where its input reaches a threshold, or exceeds it if strict."""

    def __init__(self, threshold=0.0, strict=False):
        super().__init__()
        self.threshold, self.strict = threshold, strict

    def forward(self, x):
        return Heaviside.apply(x, self.threshold, self.strict)


class LeakyNeuron(nn.Module):
    """A neuron that keeps a part of its membrane, h = keep * v + gain * x, and fires 0 to levels spikes in a step."""

    def __init__(self, keep, gain=1.0, threshold=1.0, hard_reset=True, strict=False, levels=1):
        super().__init__()
        self.keep, self.gain, self.threshold = keep, gain, threshold
        self.hard_reset, self.strict, self.levels = hard_reset, strict, levels

    def forward(self, x):
        v, spikes = torch.zeros_like(x[0]), []
        for current in x:
            h = self.charge(v, current)
            spikes.append(self.fire(h))
            v = self.reset_membrane(h, spikes[-1])
        return torch.stack(spikes)

    def charge(self, v, x):
        return self.keep * v + (x if self.gain == 1 else self.gain * x)

    def fire(self, h):
        if self.levels > 1:
            return Integer.apply(h / self.threshold, self.levels, False)
        return Heaviside.apply(h, self.threshold, self.strict)

    def reset_membrane(self, h, spikes):
        return h * (1 - spikes) if self.hard_reset else h - spikes * self.threshold
