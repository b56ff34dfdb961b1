"""Neurons of a quantized program: functions from the currents of all steps, one value each, to spikes in the
target's small type.

After FoldNeuronScale nearly every neuron is plain: threshold 1, reset 0, an input that is not multiplied by 1/tau. With
time constant 2 the membrane then loses half of itself at every step. It need not if the currents and the thresholds
double from step to step: all numbers are scaled by powers of two, which changes no bit of their mantissas. If they are
negated as well, a hard reset is one ThresholdedRelu: it keeps numbers above the negated threshold and makes the others
0. In a streaming file nothing doubles, as any number of steps may follow, but the membrane that goes from step to step
is the negated one.

Where one current serves for all steps (the first neurons after a static image), no membrane is needed: the current
alone decides when a neuron fires first, and after each hard reset everything repeats.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from svitc.onnx.function_body import FunctionBody
from svitc.onnx.neuron_functions import NeuronBody, NeuronKind
from svitc.onnx.unrolled.step_gain import PERIOD, factor


@dataclass(frozen=True)
class UnrolledKind:
    """Everything that the function of a neuron depends on.

    Attributes:
        kind: the neuron; ``static`` if one current serves for all steps.
        spike: element type of the spikes.
        gain: 0, or 1 or -1 if the current of step t, counted from 0, is given times 2^t or -2^t, where the powers start
            again after ``PERIOD`` steps (step_gain.py).
    """

    kind: NeuronKind
    spike: ir.DataType
    gain: int = 0

    @property
    def name(self) -> str:
        """Return the name of the kind of neuron."""
        return self.kind.name

    @property
    def static(self) -> bool:
        """Return whether one current serves for all steps."""
        return self.kind.static

    @property
    def carried(self) -> bool:
        """Return whether the membrane is an input and an output."""
        return self.kind.carried

    @property
    def takes_decay(self) -> bool:
        """Return whether PLIF's learned 1/tau is an input, after the currents."""
        return self.kind.takes_decay

    @property
    def constants(self) -> dict[str, float]:
        """Return the scalar inputs that follow the currents and PLIF's decay, by name, in order."""
        kind = self.kind
        if not self.plain:
            return kind.constants
        if self.periodic:
            least = first_firing(kind.name == "LIF", kind.steps)
            return {f"least{m}": least[m - 1] for m in first_steps(least)}
        constants = {
            f"threshold{t}" if t else "threshold": self.level(t)
            for t in range(min(kind.steps, PERIOD) if self.gain else 1)
        }
        if self.gain and kind.steps > PERIOD:
            constants["restart"] = self.kept * factor(self.gain, 0) / factor(self.gain, PERIOD - 1)
        if kind.start is not None:  # what is left of it at the first step, at that step's scale
            constants["start"] = kind.start * self.kept * factor(self.gain, 0)
        if self.kept != 1 and not self.gain and (kind.steps > 1 or kind.carried):
            constants["keep"] = self.kept
        return constants

    @property
    def periodic(self) -> bool:
        """Return whether a neuron that first fires at step m, counted from 1, fires at every multiple of m."""
        return (
            self.plain
            and self.kind.name != "Leaky"
            and self.kind.static
            and self.kind.reset is not None
            and self.kind.start is None
        )

    @property
    def plain(self) -> bool:
        """Return whether the short form of the equations applies, which gives the same bits as SpikingJelly's."""
        kind = self.kind
        if kind.threshold != 1 or kind.reset or kind.counts:
            return False
        if kind.name == "Leaky":
            return kind.gain == 1
        return kind.name == "IF" or (kind.name == "LIF" and kind.tau == 2 and not kind.decay_input)

    @property
    def negated(self) -> bool:
        """Return whether the membrane that goes from step to step is the negated one."""
        return self.plain and self.carried and self.kind.reset is not None

    @property
    def kept(self) -> float:
        """Return the factor of the membrane of the step before, where the short form of the equations applies."""
        return {"IF": 1.0, "LIF": 0.5}.get(self.kind.name, self.kind.keep)

    def level(self, t: int) -> float:
        """Return the threshold at step ``t``, scaled by the gain and negated as the membrane is."""
        return self.kind.threshold * factor(self.gain, t) * (-1 if self.negated else 1)

    @property
    def title(self) -> str:
        """Return the function's name; two kinds may have the same one."""
        gain = {0: "", 1: "_doubled", -1: "_doubled_negative"}[self.gain]
        return f"{self.kind.title}_steps{gain}" + "_negated" * self.negated

    @property
    def formula(self) -> str:
        """Return the documentation that is written into the file: the equations."""
        power = "2^t" if self.kind.steps <= PERIOD else f"2^(t mod {PERIOD})"
        gained = f" Currents of step t are given times {'-' * (self.gain < 0)}{power}." if self.gain else ""
        return self.kind.formula + gained + " The membrane before and after it is given as -v." * self.negated

    @property
    def inputs(self) -> list[str]:
        """Return the names of the inputs."""
        currents = [f"x{t}" for t in range(1 if self.kind.static else self.kind.steps)]
        membrane, decay = ["v"] if self.carried else [], ["decay"] if self.takes_decay else []
        return [*currents, *membrane, *decay, *self.constants]

    def body(self, values: Iterable[ir.Value]) -> FunctionBody:
        """Emit the nodes, which read these values as the inputs."""
        body = (_Periodic if self.periodic else _UnrolledBody)(self, values)
        fired = body.counts() if self.kind.counts else body.fired()
        spikes = [body.op("Cast", f"spikes{t}", step, to=self.spike.value) for t, step in enumerate(fired)]
        body.outputs = [*spikes, *body.membranes]
        return body


class _UnrolledBody(NeuronBody):
    """The body of a neuron whose currents and spikes are one value for each step."""

    def __init__(self, unrolled: UnrolledKind, values: Iterable[ir.Value]) -> None:
        super().__init__(unrolled.kind, unrolled.inputs, values)
        self.unrolled = unrolled

    def currents(self) -> list[ir.Value]:
        """Return the input current at each step."""
        return [self.inputs["x0" if self.kind.static else f"x{t}"] for t in range(self.kind.steps)]

    def threshold(self, t: int) -> ir.Value:
        """Return the threshold at step ``t``, scaled by the gain."""
        step = t % PERIOD if self.unrolled.gain else 0
        return self.inputs[f"threshold{step}" if step else "threshold"]

    def fires(self) -> str:
        """Return the operator that compares the membrane with the threshold."""
        if self.unrolled.negated:
            return "Less" if self.kind.strict else "LessOrEqual"
        return "LessOrEqual" if self.unrolled.gain < 0 else super().fires()

    def charge(self, t: int, x: ir.Value, v: ir.Value | None) -> ir.Value:
        """Emit the membrane potential before firing; see ``NeuronBody.charge``."""
        if not self.unrolled.plain:
            return super().charge(t, x, v)
        if v is None:
            return x
        if v is self.inputs.get("start"):
            return self.op("Add", f"h{t}", v, x)
        kept = v
        for name, applies in (("keep", True), ("restart", t % PERIOD == 0)):
            if applies and name in self.inputs:
                kept = self.op("Mul", f"left{t}", v, self.inputs[name])
        return self.op("Sub" if self.unrolled.negated else "Add", f"h{t}", kept, x)

    def reset(self, t: int, h: ir.Value, fired: ir.Value) -> ir.Value:
        """Emit the membrane after firing, from the membrane ``h`` before it."""
        if not self.unrolled.plain or self.kind.reset is None:
            if self.kind.reset is None:
                return self.op("Where", f"v{t}", fired, self.op("Sub", f"low{t}", h, self.threshold(t)), h)
            return super().reset(t, h, fired)
        # ThresholdedRelu compares with >, so its alpha is the next lower float where numbers of the threshold itself
        # are kept, or spent; a Where would take four times as long
        level = np.float32(self.unrolled.level(t))
        below = float(np.nextafter(level, np.float32(-np.inf)))
        if self.unrolled.gain < 0 or self.unrolled.negated:
            return self.op("ThresholdedRelu", f"v{t}", h, alpha=below if self.kind.strict else float(level))
        below = float(level) if self.kind.strict else below
        return self.op("Sub", f"v{t}", h, self.op("ThresholdedRelu", f"spent{t}", h, alpha=below))


class _Periodic(_UnrolledBody):
    """The body of a hard-reset neuron whose current is the same at every step: comparisons alone."""

    def fired(self) -> list[ir.Value]:
        """Return whether the neuron fires, for each step t, counted from 1.

        It does if its first spike is at a step m that divides t. That holds for currents
        ``least_m <= x < least_(m - 1)``.
        """
        firsts = [m for m in range(1, self.kind.steps + 1) if f"least{m}" in self.inputs]
        by = {m: self.op("GreaterOrEqual", f"by{m}", self.inputs["x0"], self.inputs[f"least{m}"]) for m in firsts}
        return [self._any(t, firsts, by) for t in range(1, self.kind.steps + 1)]

    def _any(self, t: int, firsts: list[int], by: dict[int, ir.Value]) -> ir.Value:
        """Emit whether the first spike is at a step that divides ``t``, counted from 1.

        Args:
            t: time step.
            firsts: the steps at which a neuron may fire first, in ascending order.
            by: for each of them, whether the neuron has fired by then.
        """
        fired: ir.Value | None = None
        low = 0  # index of the first step of a run of divisors
        for i, m in enumerate(firsts):
            if t % m:
                low = i + 1
                continue
            if i + 1 < len(firsts) and t % firsts[i + 1] == 0:
                continue  # part of the range that ends there or later
            part = by[m]
            if low:
                before = firsts[low - 1]
                later = self.op("Not", f"s{t - 1}_after{before}", by[before])
                part = self.op("And", f"s{t - 1}_at{m}", part, later)
            fired = part if fired is None else self.op("Or", f"s{t - 1}_by{m}", fired, part)
        assert fired is not None
        return fired


@functools.cache
def first_firing(leaks: bool, steps: int) -> tuple[float, ...]:
    """Return the smallest constant current with which a neuron of threshold 1 has fired by each step, in float32.

    Args:
        leaks: whether the membrane halves at every step.
        steps: number of steps.
    """
    currents = []
    for step in range(1, steps + 1):

        def fires(bits: int, step: int = step) -> bool:
            x = np.int32(bits).view(np.float32)
            v = x
            for _ in range(step - 1):
                v = v * np.float32(0.5 if leaks else 1) + x
            return bool(v >= 1)

        # over bit patterns, which are ordered as the positive floats are
        least = bisect_left(range(int(np.float32(1).view(np.int32))), True, key=fires)
        currents.append(float(np.int32(least).view(np.float32)))
    return tuple(currents)


def first_steps(least: tuple[float, ...]) -> list[int]:
    """Return the steps, from 1, at which some current makes a neuron fire for the first time (``first_firing``).

    A membrane that leaks comes so close to its limit within 24 steps that no other current fires later.
    """
    return [m for m, current in enumerate(least, 1) if m == 1 or current < least[m - 2]]


__all__ = ["UnrolledKind", "first_firing", "first_steps"]
