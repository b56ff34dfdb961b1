"""Neurons written by hand, as research code writes them: an autograd function for the spike, and a membrane that a
Python loop over time steps carries. Each class names the code bases that do so."""

from __future__ import annotations

import torch
from einops import rearrange
from spikingjelly.activation_based import neuron
from torch import nn


class Spiking(nn.Module):
    """A layer that emits spikes; the check that all neurons fire looks for this class."""


class AtanSpike(torch.autograd.Function):
    """A step at 0 in the forward pass, the derivative of an arcus tangent in the backward pass."""

    @staticmethod
    def forward(ctx, x, alpha):
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        alpha = ctx.alpha
        return alpha / 2 / (1 + (torch.pi / 2 * alpha * x).square()) * gradient, None


class RectangleSpike(torch.autograd.Function):
    """A step above a threshold of 0.5, and a gradient of 1 around it."""

    THRESHOLD = 0.5
    WIDTH = 0.5

    @staticmethod
    def forward(ctx, membrane):
        ctx.save_for_backward(membrane)
        return membrane.gt(RectangleSpike.THRESHOLD).float()

    @staticmethod
    def backward(ctx, gradient):
        (membrane,) = ctx.saved_tensors
        near = (membrane - RectangleSpike.THRESHOLD).abs() < RectangleSpike.WIDTH
        return gradient * near.float() / (2 * RectangleSpike.WIDTH)


class RoundClamp(torch.autograd.Function):
    """Rounding of what is clipped to ``[low, high]``, with a straight-through gradient inside of it."""

    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return torch.round(torch.clamp(x, low, high))

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        inside = (x > ctx.low) & (x < ctx.high)
        return gradient * inside.to(gradient.dtype), None, None


class MembraneUpdate(Spiking):
    """LIF of MS-ResNet and of its descendants: slice assignment into zeros, a decay of 0.25, reset to 0."""

    DECAY = 0.25

    def forward(self, x):
        membrane = torch.zeros_like(x[0])
        spike = torch.zeros_like(x[0])
        output = torch.zeros_like(x)
        previous = 0
        for step in range(x.shape[0]):
            membrane = previous * self.DECAY * (1 - spike.detach()) + x[step] if step >= 1 else x[step]
            spike = RectangleSpike.apply(membrane)
            previous = membrane.clone()
            output[step] = spike
        return output


class NodeLIF(Spiking):
    """LIF node in the style of BrainCog: the threshold is a parameter, state is attributes, time is in the batch."""

    def __init__(self, step, tau=2.0, threshold=0.5):
        super().__init__()
        self.step, self.tau = step, tau
        self.threshold = nn.Parameter(torch.tensor(threshold), requires_grad=False)
        self.membrane, self.spike = 0.0, 0.0

    def node_reset(self):
        self.membrane, self.spike = 0.0, 0.0

    def integrate(self, current):
        self.membrane = self.membrane + (current - self.membrane) / self.tau

    def fire(self):
        self.spike = AtanSpike.apply(self.membrane - self.threshold, 2.0)
        self.membrane = self.membrane * (1 - self.spike.detach())

    def forward(self, x):
        x = rearrange(x, "(t b) ... -> t b ...", t=self.step)
        spikes = []
        for step in range(self.step):
            self.integrate(x[step])
            self.fire()
            spikes.append(self.spike)
        return rearrange(torch.stack(spikes), "t b ... -> (t b) ...")


class MultiSpike(Spiking):
    """Integer spikes of E-SpikeFormer: 0 to ``levels``, divided by ``levels``, without a membrane."""

    def __init__(self, levels=4):
        super().__init__()
        self.levels = levels

    def extra_repr(self):
        return f"levels={self.levels}"

    def forward(self, x):
        return RoundClamp.apply(x, 0, self.levels) / self.levels


class IntegerLIF(Spiking):
    """I-LIF of SpikeYOLO: integer spikes, a soft reset by their count, and a membrane that decays between steps."""

    def __init__(self, levels=4, decay=0.25):
        super().__init__()
        self.levels, self.decay = levels, decay

    def forward(self, x):
        spikes = torch.zeros_like(x)
        membrane = 0
        for step in range(x.shape[0]):
            membrane = (membrane - spikes[step - 1]) * self.decay + x[step] if step > 0 else x[step]
            spikes[step] = RoundClamp.apply(membrane, 0, self.levels)
        return spikes


class NormalizedIntegerLIF(IntegerLIF):
    """NI-LIF of Spike2Former: I-LIF whose spikes are divided by their largest number."""

    def forward(self, x):
        return super().forward(x) / self.levels


class SignedIF(Spiking):
    """IF of the Spiking Wavelet Transformer: spikes of both signs, and a soft reset."""

    def __init__(self, threshold=1.0):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        membrane = torch.zeros_like(x[0])
        spikes = []
        for current in x:
            membrane = membrane + current
            positive = AtanSpike.apply(membrane - self.threshold, 2.0)
            negative = AtanSpike.apply(-membrane - self.threshold, 2.0)
            spike = positive - negative
            membrane = membrane - spike * self.threshold
            spikes.append(spike)
        return torch.stack(spikes, dim=0)


class ScaledIF(Spiking):
    """IF after conversion from a network with QCFS activations: threshold per layer, half of it at the start.

    The membrane that does not start at 0 is the conversion's rounding: Bu et al., "Optimal ANN-SNN Conversion for
    High-accuracy and Ultra-low-latency Spiking Neural Networks", ICLR 2022, section 4.
    """

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]), requires_grad=False)
        self.neuron = neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode="s")

    def forward(self, x):
        outputs = []
        for step, current in enumerate(x.unbind(0)):
            current = current / self.scale
            if step == 0:
                current = current + 0.5
            outputs.append(self.neuron(current) * self.scale)
        return torch.stack(outputs)


class TrackedIF(Spiking):
    """ST-BIF+ of SpikeZIP: a tracer of the spikes so far keeps their sum within a range; spikes have both signs.

    Args:
        threshold: Size of a spike.
        low, high: Range of the sum of spikes, both inclusive.
    """

    def __init__(self, threshold, low, high):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))
        self.register_buffer("low", torch.tensor(float(low)))
        self.register_buffer("high", torch.tensor(float(high)))

    def forward(self, x):
        charge = torch.zeros_like(x[0]) + 0.5
        tracer = torch.zeros_like(x[0])
        outputs = []
        for step in range(x.size(0)):
            charge = charge + x[step] / self.threshold
            up = (charge - 1 >= 0) & (tracer < self.high)
            down = (charge < 0) & (tracer > self.low)
            spike = up.to(x.dtype) - down.to(x.dtype)
            tracer = tracer + spike
            charge = charge - spike
            outputs.append(spike * self.threshold)
        return torch.stack(outputs)
