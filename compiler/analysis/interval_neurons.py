"""Intervals of neurons: how many spikes a neuron fires at least and at most, given an interval of its input current.

Every neuron with a membrane charges, fires and resets, with rest = v_reset, or 0 for a soft reset, at every
one of T steps:

    h = keep * v + (1 - keep) * rest + gain * x         IF  1, 1     LIF, PLIF  1 - 1/tau, 1/tau (input decays) or 1
    s = h >= threshold                                   ILIF  s = round(clip(h / threshold, 0, D)), 1 - 1/tau, 1
    v = rest if s (hard) or h - s * threshold (soft)     v = rest before the first step, unless it starts elsewhere

keep and gain are not negative, so h is greatest where v and x are. As long as both ends of h give the same s, the ends
of v follow exactly: a neuron that has never fired was never reset, and the upper end of h is the plain sum

    h(t) = rest + gain * x * (1 + keep + ... + keep^t)       silent where that stays below the threshold,

while one that has always fired starts from rest (hard), or from the remainder of h (soft), at every step. Where the
ends differ in s, a neuron that fires 0 or 1 may do either, and later steps add nothing; one that counts continues from

    min(h.low, -threshold/2)  ..  max(min(h.high, threshold/2), h.high - D * threshold)

Margin. The network computes in float32, in any order of summation, and the bounds must hold there, too. A sum of n
terms has an error of at most n u times their magnitudes, u = 2^-24. So every interval carries the sum of the magnitudes
and n, and h must keep away from a threshold by n u + 1e-4 times the magnitudes (1e-4 for kernels that do not add term
by term).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from svitc.ir import ops
from svitc.ir.neuron_dynamics import NeuronDynamics, dynamics_of

UNIT = 2.0**-24  # of float32
SAFETY = 1e-4


@dataclass(frozen=True)
class Interval:
    """Lower and upper bounds of a value, channel by channel, float64.

    Attributes:
        low, high: the bounds.
        magnitude: upper bound of the sum of the absolute terms since the last spikes.
        terms: the number of roundings in such a sum.
    """

    low: torch.Tensor
    high: torch.Tensor
    magnitude: torch.Tensor
    terms: int

    @property
    def constant(self) -> torch.Tensor:
        """Return where the value is the same for every input."""
        return (self.low == self.high) & self.low.isfinite()

    def with_zero(self) -> Interval:
        """Return the interval extended to hold 0."""
        return Interval(self.low.clamp(max=0), self.high.clamp(min=0), self.magnitude, self.terms)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor], terms: int = 0) -> Interval:
        """Apply the same change of shape, or a sum of ``terms`` terms, to all three tensors."""
        return Interval(change(self.low), change(self.high), change(self.magnitude), self.terms + terms)

    def fitted(self, shape: tuple[int, ...]) -> Interval:
        """Return the interval with another shape.

        Where the size of a dimension differs, its elements are joined into one, which is repeated.
        """
        low, high, magnitude = self.low, self.high, self.magnitude
        for i, (size, new_size) in enumerate(zip(low.shape, shape, strict=True)):
            if size not in (1, new_size):
                low, high, magnitude = low.amin(i, True), high.amax(i, True), magnitude.amax(i, True)
        return Interval(low.expand(shape), high.expand(shape), magnitude.expand(shape), self.terms)


def fire(module: nn.Module, x: Interval, steps: int) -> Interval | None:
    """Return the interval of a neuron's spikes on currents within ``x``; None where its output is not spikes.

    Args:
        module: the neuron.
        x: interval of its input current.
        steps: T; ignored for a neuron without a membrane.
    """
    neuron = dynamics_of(module) if ops.is_neuron(module) else None
    if neuron is None or not neuron.fires:
        return None
    if not neuron.has_state:
        margin = (SAFETY + (x.terms + 1) * UNIT) * x.magnitude
        if neuron.counts:
            low, high = _counts(neuron, x.low - margin, x.high + margin)
        else:
            margin = margin + SAFETY * abs(neuron.threshold)
            low = (x.low - margin > neuron.threshold).double()
            high = (~(x.high + margin < neuron.threshold)).double()
        return Interval(low, high, high, 0)
    keep, gain, threshold, rest = neuron.keep, neuron.gain, neuron.threshold, neuron.rest
    if keep < 0:
        return None
    low = high = torch.full_like(x.low, neuron.initial)
    magnitude = low.abs()
    fewest, greatest = torch.full_like(low, neuron.max_spikes), torch.zeros_like(low)
    for step in range(steps):
        low, high = (keep * v + ((1 - keep) * rest + gain * end) for v, end in ((low, x.low), (high, x.high)))
        magnitude = keep * magnitude + ((1 - keep) * abs(rest) + gain * x.magnitude + abs(threshold))
        margin = (SAFETY + (x.terms + 4 * (step + 1)) * UNIT) * magnitude
        if neuron.counts:
            few, many = _counts(neuron, low - margin, high + margin)
        else:  # a comparison with nan is False: the neuron may fire or not
            few, many = (low - margin >= threshold).double(), (~(high + margin < threshold)).double()
        fewest, greatest = torch.minimum(fewest, few), torch.maximum(greatest, many)
        low, high = _reset(neuron, (low, high), (few, many), margin)
    return Interval(fewest, greatest, greatest, 0)


def _counts(neuron: NeuronDynamics, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fewest and most spikes of a neuron that counts.

    The rounding of halves does not matter: the ends keep a margin from them.
    """
    few, many = ((end / neuron.threshold).clamp(0, neuron.max_spikes).round() for end in (low, high))
    return few.nan_to_num(0.0), many.nan_to_num(float(neuron.max_spikes))


def _reset(
    neuron: NeuronDynamics,
    charged: tuple[torch.Tensor, torch.Tensor],
    spikes: tuple[torch.Tensor, torch.Tensor],
    margin: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ends of the membrane after a step.

    Args:
        neuron: its dynamics.
        charged: the ends before firing.
        spikes: the fewest and the most spikes.
        margin: how far rounding may have moved the ends.
    """
    (low, high), (few, many), threshold = charged, spikes, neuron.threshold
    if neuron.reset is not None:
        return torch.where(few > 0, neuron.reset, low), torch.where(few > 0, neuron.reset, high)
    least = low.clamp(max=-threshold / 2) - margin
    greatest = torch.maximum(high.clamp(max=threshold / 2) + margin, high - neuron.max_spikes * threshold)
    same = few == many
    return torch.where(same, low - few * threshold, least), torch.where(same, high - few * threshold, greatest)
