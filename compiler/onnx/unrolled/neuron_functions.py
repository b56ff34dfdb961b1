"""Neurons of a quantized program: functions from the currents of all steps, each a value of its own, to spikes in the
target's small type.

After FoldNeuronScale nearly every neuron is plain: threshold 1, reset 0, an input that does not leak. For time constant
2 the membrane then loses half of itself at every step; with currents that are doubled from step to step, and thresholds
likewise, it need not: all numbers are scaled by powers of two, which changes no bit of their mantissas. Where they are
negated as well, a hard reset is one ThresholdedRelu: it keeps what is above minus the threshold and makes the rest 0.

Where one current serves for all steps (a static image's first neurons), there is no membrane at all: the current alone
says when a neuron fires first, and after each hard reset everything repeats.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from svitc.onnx.neuron_functions import DOMAIN, KIND_KEY, NeuronKind, _Body
from svitc.onnx.unrolled.step_gain import factor


@dataclass(frozen=True)
class UnrolledKind:
    """All that the function of a neuron depends on.

    Attributes:
        kind: the neuron; ``static`` where one current serves for all steps.
        spike: type of the spikes.
        gain: 0, or the current of step t, counted from 0, is given times 2^t or -2^t (step_gain.py).
    """

    kind: NeuronKind
    spike: ir.DataType
    gain: int = 0

    @property
    def takes_decay(self) -> bool:
        return self.kind.takes_decay

    @property
    def constants(self) -> dict[str, float]:
        """Scalars that the function takes after its currents and PLIF's decay, by name, in order."""
        kind = self.kind
        if not self.plain:
            return kind.constants
        if self.periodic:
            return {f"least{m}": least for m, least in enumerate(first_firing(kind.name == "LIF", kind.steps), 1)}
        found = {f"threshold{t}" if t else "threshold": self.level(t) for t in range(kind.steps if self.gain else 1)}
        if kind.name == "LIF" and not self.gain and kind.steps > 1:
            found["keep"] = 0.5
        return found

    @property
    def periodic(self) -> bool:
        """Whether a neuron that first fires at step m, counted from 1, fires at every multiple of m."""
        return self.plain and self.kind.static and self.kind.reset is not None

    @property
    def plain(self) -> bool:
        """Whether the short form applies, which gives the same bits as SpikingJelly's."""
        kind = self.kind
        form = kind.threshold == 1 and not kind.reset
        return form and (kind.name == "IF" or (kind.name == "LIF" and kind.tau == 2 and not kind.decay_input))

    def level(self, t: int) -> float:
        """The threshold at a step."""
        return self.kind.threshold * factor(self.gain, t)

    def function(self, taken: Collection[str], opset: int) -> ir.Function:
        """Write the function; ``taken`` are names in use."""
        body = _Periodic(self) if self.periodic else _UnrolledBody(self)
        fired = body.counts() if self.kind.name == "ILIF" else body.fired()
        spikes = [body.op("Cast", f"spikes{t}", each, to=self.spike.value) for t, each in enumerate(fired)]
        title = f"{self.kind.title}_steps" + {0: "", 1: "_doubled", -1: "_doubled_negative"}[self.gain]
        name, i = title, 1
        while name in taken:
            i += 1
            name = f"{title}_{i}"
        formula = self.kind.formula + (
            "" if not self.gain else f" Currents of step t are given times {'-' * (self.gain < 0)}2^t."
        )
        graph = ir.Graph(
            list(body.inputs.values()),
            spikes,
            nodes=body.nodes,
            opset_imports={"": opset},
            name=name,
            doc_string=formula,
            metadata_props={KIND_KEY: self.kind.name},
        )
        return ir.Function(DOMAIN, name, graph=graph, attributes=[])


class _UnrolledBody(_Body):
    """A neuron's body over separate steps."""

    def __init__(self, stepped: UnrolledKind) -> None:
        self.stepped, self.kind = stepped, stepped.kind
        self.nodes = []
        count = 1 if self.kind.static else self.kind.steps
        names = [f"x{t}" for t in range(count)]
        names += [*(["decay"] if stepped.takes_decay else []), *stepped.constants]
        self.inputs = {name: ir.val(name) for name in names}

    def currents(self) -> list[ir.Value]:
        return [self.inputs["x0" if self.kind.static else f"x{t}"] for t in range(self.kind.steps)]

    def threshold(self, t: int) -> ir.Value:
        return self.inputs[f"threshold{t}" if self.stepped.gain and t else "threshold"]

    def fires(self) -> str:
        return "LessOrEqual" if self.stepped.gain < 0 else "GreaterOrEqual"

    def charge(self, t: int, x: ir.Value, v: ir.Value | None) -> ir.Value:
        if not self.stepped.plain:
            return super().charge(t, x, v)
        if v is None:
            return x
        kept = v if "keep" not in self.inputs else self.op("Mul", f"left{t}", v, self.inputs["keep"])
        return self.op("Add", f"h{t}", kept, x)

    def reset(self, t: int, h: ir.Value, fired: ir.Value) -> ir.Value:
        if not self.stepped.plain or self.kind.reset is None:
            if self.kind.reset is None:
                return self.op("Where", f"v{t}", fired, self.op("Sub", f"low{t}", h, self.threshold(t)), h)
            return super().reset(t, h, fired)
        if self.stepped.gain < 0:
            return self.op("ThresholdedRelu", f"v{t}", h, alpha=self.stepped.level(t))
        # what reaches the threshold exceeds the number before it; a Where would take four times as long
        below = float(np.nextafter(np.float32(self.stepped.level(t)), np.float32(0)))
        return self.op("Sub", f"v{t}", h, self.op("ThresholdedRelu", f"spent{t}", h, alpha=below))


class _Periodic(_UnrolledBody):
    """Of a current that is the same at every step: comparisons alone."""

    def fired(self) -> list[ir.Value]:
        """At step t: whether the first spike is at a step m that divides t, where ``least_m <= x < least_(m - 1)``."""
        steps = range(1, self.kind.steps + 1)
        by = {m: self.op("GreaterOrEqual", f"by{m}", self.inputs["x0"], self.inputs[f"least{m}"]) for m in steps}
        return [self._any(t, [m for m in steps if t % m == 0], by) for t in steps]

    def _any(self, t: int, firsts: list[int], by: dict[int, ir.Value]) -> ir.Value:
        """Whether the first spike is at one of these steps."""
        found: ir.Value | None = None
        for m in firsts:
            if m + 1 in firsts:
                continue  # one range up to m + 1
            low = next(k for k in range(m, 0, -1) if k - 1 not in firsts)
            part = by[m]
            if low > 1:
                later = self.op("Not", f"s{t - 1}_after{low - 1}", by[low - 1])
                part = self.op("And", f"s{t - 1}_at{m}", part, later)
            found = part if found is None else self.op("Or", f"s{t - 1}_by{m}", found, part)
        assert found is not None
        return found


@functools.cache
def first_firing(leaks: bool, steps: int) -> tuple[float, ...]:
    """For each step, the least constant current with which a neuron at threshold 1 has fired by then, in float32.

    Args:
        leaks: whether the membrane halves at every step.
    """
    found = []
    for step in range(1, steps + 1):

        def fires(bits: int, step: int = step) -> bool:
            x = np.int32(bits).view(np.float32)
            v = x
            for _ in range(step - 1):
                v = v * np.float32(0.5 if leaks else 1) + x
            return bool(v >= 1)

        # as bits, which are ordered as the numbers are
        least = bisect_left(range(int(np.float32(1).view(np.int32))), True, key=fires)
        found.append(float(np.int32(least).view(np.float32)))
    return tuple(found)


__all__ = ["UnrolledKind", "first_firing"]
