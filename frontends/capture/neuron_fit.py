"""Find the neuron that a region of elementwise operations computes, by running it.

The spikes alone give the parameters: the least current that fires at the first step is threshold / gain; with half of
it before, the second step tells what the membrane keeps, and with more of it before, how it is reset. A neuron with
these parameters counts only if its spikes and its membrane equal those of the region, bit for bit, on many currents,
among them many at and next to the threshold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from svitc.frontends.capture.integer_spikes import operation
from svitc.frontends.capture.neuron_regions import Region
from svitc.ir import ops

PROBES = 4096  # neurons that are tried at once
SEED = 0
LARGEST = 1e6  # current, in units of the least one that fires, with which every neuron fires as much as it can
MAX_LEVELS = 255
# Operations whose last bits depend on the library, so that no number of currents would show a neuron to be equal
INEXACT = {"exp", "sigmoid", "tanh", "pow"}
CLOSE = 1e-4  # relative; of a measured parameter and the number that it is taken for


@dataclass(frozen=True)
class Measured:
    """What the spikes of a region tell.

    Attributes:
        least: Least current that fires at the first step, in float32.
        levels: Largest number of spikes in a step.
        keep: Factor of the membrane from step to step; 1 for a single step.
        hard_reset: Whether the membrane is 0 after a spike; otherwise the threshold is subtracted.
        literals: Numbers that the region uses.
    """

    least: float
    levels: int
    keep: float
    hard_reset: bool
    literals: Sequence[float]

    @property
    def ratio(self) -> float:
        """threshold / gain; a neuron that counts fires from half of it on."""
        return self.least * (2 if self.levels > 1 else 1)


def fit(region: Region) -> nn.Module | None:
    """Return the neuron that a region computes, or None.

    Where a region's last operations change the spikes, such as a division by their largest number, they are left to
    ``region.after``.
    """
    if region.constants or any(operation(node) in INEXACT for node in region.nodes):
        return None
    measured = _measure(region)
    while measured is None and region.peel():
        measured = _measure(region)
    if measured is None:
        return None
    probes = _probes(measured, region.steps)
    values = region.run(probes)
    membranes = [probes, *(v for v in values.values() if v.shape == probes[0].shape)]
    spikes = torch.stack([values[node] for node in region.results])
    candidates = itertools.chain(_candidates(measured, literal=True), _candidates(measured, literal=False))
    return next((n for n in candidates if _equals(n, probes, spikes, membranes)), None)


def _measure(region: Region) -> Measured | None:
    """Return the parameters of a region that fires 0 at rest and whole numbers of spikes, else None."""

    def fires(*currents: float) -> float:
        x = torch.zeros(region.steps, 1)
        x[: len(currents), 0] = torch.tensor(currents)
        return float(region.run(x)[region.results[len(currents) - 1]].float().reshape(-1)[0])

    exponents = torch.arange(-40, 41)
    x = torch.zeros(region.steps, len(exponents) * 2)
    x[0] = torch.cat([2.0**exponents, -(2.0**exponents)])
    try:
        first = region.run(x)[region.results[0]].float()
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return None  # the region does not run on other shapes, or its type depends on the device
    if first.shape != x[0].shape or bool(first[len(exponents) :].ne(0).any()):
        return None
    positive = first[: len(exponents)]
    levels = positive.max().item()
    if not (positive == positive.round()).all() or not 1 <= levels <= MAX_LEVELS or positive[0] != 0:
        return None
    if bool((positive.diff() < 0).any()) or fires(2.0**40) != levels:
        return None
    least = _least_float(lambda value: fires(value) >= 1)
    if least is None:
        return None
    if region.steps == 1:
        return Measured(least, int(levels), 1.0, True, region.literals())
    unit = least * (2 if levels > 1 else 1)
    low = _boundary(lambda value: fires(least / 2, value) >= 1, unit)
    high = _boundary(lambda value: fires(unit * 1.25, value) >= 1, unit)
    if low is None or high is None:
        return None
    keep, left = (least - low) / (least / 2), least - high
    return Measured(least, int(levels), keep, abs(left) < CLOSE * unit, region.literals())


def _least_float(holds: Callable[[float], bool]) -> float | None:
    """Return the least positive float32 for which a condition holds that holds from there on."""
    low, high = 0, int(np.float32(2.0**40).view(np.int32))  # bit patterns are ordered as the positive floats are
    if not holds(float(np.int32(high).view(np.float32))):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if holds(float(np.int32(middle).view(np.float32))):
            high = middle
        else:
            low = middle
    return float(np.int32(high).view(np.float32))


def _boundary(holds: Callable[[float], bool], unit: float) -> float | None:
    """Return the least number within 4 units of 0 for which a condition holds, to float32's accuracy."""
    low, high = -4 * unit, 4 * unit
    if holds(low) or not holds(high):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _candidates(m: Measured, literal: bool) -> Iterator[nn.Module]:
    """Yield neurons with the measured parameters: SpikingJelly's first, then those of a free form.

    Args:
        m: The parameters.
        literal: Whether thresholds are numbers that the region uses; otherwise they are as measured.
    """
    reset = 0.0 if m.hard_reset else None
    fire = surrogate.ATan()
    keeps = _near(m.keep, [*_derived(m.literals), 1.0])
    if m.levels == 1:
        for threshold in _thresholds(m, 1.0, literal):
            if 1.0 in keeps:
                yield neuron.IFNode(threshold, reset, fire, step_mode="m")
        taus = _near(1 / (1 - m.keep), [*_derived(m.literals), 2.0]) if 0 < m.keep < 1 - CLOSE else ()
        for tau in (tau for tau in taus if tau > 1):  # which SpikingJelly's neurons ask for
            for decay_input in (False, True):
                for threshold in _thresholds(m, 1 / tau if decay_input else 1.0, literal):
                    yield neuron.LIFNode(tau, decay_input, threshold, reset, fire, step_mode="m")
    elif not m.hard_reset and 0 < m.keep < 1 - CLOSE:
        for tau in (tau for tau in _near(1 / (1 - m.keep), [1 / (1 - k) for k in keeps if k != 1]) if tau > 1):
            for threshold in _thresholds(m, 1.0, literal):
                yield neuron.ILIFNode(tau, threshold, surrogate.MultiLevelSpikeCount(m.levels), step_mode="m")
    yield from _leaky(m, keeps, literal)
    yield from _parametric(m, reset, literal)


def _leaky(m: Measured, keeps: Iterable[float], literal: bool) -> Iterator[nn.Module]:
    """Yield neurons of the form ``keep * v + gain * x``."""
    if m.levels > 1 and m.hard_reset:
        return
    for keep in keeps:
        gains = dict.fromkeys([1.0, *((1 - keep,) if keep != 1 else ()), *(g for g in _derived(m.literals) if g > 0)])
        for gain in gains:
            for threshold in _thresholds(m, gain, literal):
                for strict in (False, True) if m.levels == 1 else (False,):
                    yield ops.LeakyNeuron(keep, gain, threshold, m.hard_reset, strict, m.levels)


def _parametric(m: Measured, reset: float | None, literal: bool) -> Iterator[nn.Module]:
    """Yield PLIF neurons, whose 1/tau multiplies instead of dividing by tau."""
    if m.levels > 1 or not 0 < m.keep < 1 - CLOSE:
        return
    for rate in _near(1 - m.keep, _derived(m.literals)):
        w = torch.logit(torch.tensor(rate, dtype=torch.float64)).float()
        exact = next((w + k * 2.0**-26 for k in range(-64, 65) if (w + k * 2.0**-26).sigmoid() == _float32(rate)), None)
        if exact is None:
            continue
        for decay_input in (False, True):
            for threshold in _thresholds(m, rate if decay_input else 1.0, literal):
                node = neuron.ParametricLIFNode(2.0, decay_input, threshold, reset, surrogate.ATan(), step_mode="m")
                node.w.data = exact
                yield node


def _thresholds(m: Measured, gain: float, literal: bool) -> list[float]:
    """Return the thresholds that the least current can mean."""
    value = m.ratio * gain
    return _near(value, _derived(m.literals)) if literal else [_float32(value)]


def _derived(literals: Iterable[float]) -> list[float]:
    """Return numbers, and what is commonly computed from them."""
    numbers = [n for n in literals if n and math.isfinite(n)]
    derived = [*numbers, *(1 - n for n in numbers), *(1 / n for n in numbers), *(1 - 1 / n for n in numbers)]
    derived += [1 / (1 - n) for n in numbers if n != 1] + [1.0]
    return [n for n in dict.fromkeys(derived) if n > 0]


def _near(value: float, numbers: Iterable[float]) -> list[float]:
    """Return the positive numbers that a measured value may stand for, the nearest first, without repetitions."""
    close = [n for n in dict.fromkeys(numbers) if n > 0 and abs(n - value) <= CLOSE * abs(value)]
    return sorted(close, key=lambda n: abs(n - value))


def _probes(m: Measured, steps: int) -> torch.Tensor:
    """Return currents ``[T, PROBES]`` that tell neurons apart, many of them at or next to the threshold."""
    generator = torch.Generator().manual_seed(SEED)
    quarter = PROBES // 4
    unit = m.ratio
    normal = torch.randn(steps, quarter, generator=generator) * unit * max(1, m.levels / 2)
    positive = torch.rand(steps, quarter, generator=generator) * unit * 1.5 * m.levels
    eighths = torch.randint(-8, 17 * m.levels, (steps, quarter), generator=generator) * (unit / 8)
    picks = torch.tensor([0.0, m.least, _below(m.least), _above(m.least), m.least / 2, -m.least, 1.5 * m.least, 1e-3])
    picks = torch.cat([picks, torch.tensor([unit, unit / 2, unit * 1e-20, unit * LARGEST, -unit * LARGEST])])
    special = picks[torch.randint(len(picks), (steps, quarter), generator=generator)]
    return torch.cat([normal, positive, eighths, special], dim=1)


def _equals(node: nn.Module, x: torch.Tensor, spikes: torch.Tensor, membranes: Sequence[torch.Tensor]) -> bool:
    """Return whether a neuron fires the same spikes, and its membrane is a value of the region at every step."""
    fired, charged = _simulate(node, x)
    if not torch.equal(fired, spikes.float()):
        return False
    inputs, values = membranes[0], membranes[1:]
    return all(any(torch.equal(h, value) for value in (inputs[t], *values)) for t, h in enumerate(charged))


def _simulate(node: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a neuron's spikes, and its membrane at each step before a reset."""
    with torch.no_grad():
        if isinstance(node, ops.LeakyNeuron):
            return node.trace(x)
        functional.reset_net(node)
        node.store_v_seq = True  # type: ignore[assignment]
        spikes, after = node(x), node.v_seq
        functional.reset_net(node)
        node.store_v_seq = False  # type: ignore[assignment]
        before = torch.cat([torch.zeros_like(x[:1]), after[:-1]])  # type: ignore[index]
        return spikes, [_charge(node, current, v) for current, v in zip(x, before, strict=True)]


def _charge(node: nn.Module, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the membrane of one of SpikingJelly's neurons after its current, before it fires; it rests at 0."""
    if isinstance(node, neuron.ILIFNode):
        return (1.0 - 1.0 / node.tau) * v + x
    if isinstance(node, neuron.LIFNode):
        return functional.lif_charge(x, v, node.tau, node.decay_input, node.v_reset)
    if isinstance(node, neuron.ParametricLIFNode):
        rate = node.w.sigmoid()
        return v + (x - v) * rate if node.decay_input else v - v * rate + x
    return v + x


def _float32(number: float) -> float:
    return float(np.float32(number))


def _below(number: float) -> float:
    return float(np.nextafter(np.float32(number), np.float32(0)))


def _above(number: float) -> float:
    return float(np.nextafter(np.float32(number), np.float32(np.inf)))
