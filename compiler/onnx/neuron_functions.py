"""Neurons as model-local functions: one for each kind of neuron, called once for each layer of that kind.

The body is made of default-domain operators. It runs over values whose outermost axis is time,
``[(t b), ...]`` or ``[t, ...]``, and keeps the order of SpikingJelly's arithmetic, so that equal input
currents give equal spikes, bit for bit. The first step starts from the known reset voltage; the last does not
reset. A neuron without state runs over values of any layout.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch import nn

from svitc.errors import UnsupportedError
from svitc.ir.neuron_dynamics import dynamics_of

DOMAIN = "svitc"
KIND_KEY, STATIC_KEY = "svitc.neuron", "svitc.static"  # metadata of a neuron's function


@dataclass(frozen=True)
class NeuronKind:
    """All that a neuron's function depends on; layers of one kind share one function.

    Attributes:
        name: ``IF``, ``LIF``, ``PLIF`` or ``ILIF``.
        steps: number of time steps, at least 1.
        threshold: voltage at which it fires.
        reset: voltage after a spike, None to subtract the threshold instead.
        tau: time constant in steps; None for IF (no leak) and PLIF (an input of the function).
        decay_input: whether the input leaks as well; True where the kind leaves no choice, so that names are short.
        count: most spikes in one step (ILIF; others fire once).
        static: the input current is the same at every step and is given once.
    """

    name: str
    steps: int
    threshold: float
    reset: float | None
    tau: float | None = None
    decay_input: bool = True
    count: int = 1
    static: bool = False

    @property
    def title(self) -> str:
        """A name for the function, such as ``LIF_tau2_T4``; two kinds may share one."""
        parts = [self.name]
        if self.tau is not None:
            parts.append(f"tau{self.tau:g}")
        if self.threshold != 1:
            parts.append(f"threshold{self.threshold:g}")
        if self.name == "ILIF":
            parts.append(f"max{self.count}")
        elif self.reset is None:
            parts.append("soft")
        elif self.reset != 0:
            parts.append(f"reset{self.reset:g}")
        if not self.decay_input:
            parts.append("fullinput")
        parts += [f"T{self.steps}"] + ["static"] * self.static
        return "_".join(parts).replace(".", "p").replace("-", "m").replace("+", "")

    @property
    def takes_decay(self) -> bool:
        """Whether the learned 1/tau is an input, the second."""
        return self.name == "PLIF" and (self.steps > 1 or self.decay_input)

    @property
    def constants(self) -> dict[str, float]:
        """Scalars that the function takes after its current and PLIF's decay, by name, in order."""
        found: dict[str, float] = {}
        many = self.steps > 1
        if self.name == "ILIF":
            assert self.tau is not None
            if many:
                found["decay"] = 1.0 - 1.0 / self.tau
            if self.threshold != 1:
                found |= {"threshold": self.threshold}
            return found | {"zero": 0.0, "most": float(self.count)}
        found["threshold"] = self.threshold
        if self.tau is not None and (many or self.decay_input):
            found |= {"rate": 1 / self.tau} if _power_of_two(self.tau) else {"tau": self.tau}
        if self.reset is not None and (many or self.reset != 0):
            found["reset"] = self.reset
        return found

    def function(self, taken: Collection[str], opset: int) -> ir.Function:
        """Write the function; ``taken`` are names in use."""
        body = _Body(self)
        spikes = body.integer_spikes() if self.name == "ILIF" else body.spikes()
        return _function(self, body, spikes, taken, opset)

    @property
    def formula(self) -> str:
        v = "v" if not self.reset else f"(v - {self.reset:g})"
        rate = "sigmoid(w)" if self.name == "PLIF" else f"1/{self.tau:g}" if self.tau is not None else ""
        charge = (
            "v + x"
            if self.name == "IF"
            else f"(1 - {rate}) v + x"
            if self.name == "ILIF"
            else f"v + {rate} (x - {v})"
            if self.decay_input
            else f"v - {rate} {v} + x"
        )
        fire = f"h >= {self.threshold:g}"
        if self.name == "ILIF":
            fire = f"round(clip(h / {self.threshold:g}, 0, {self.count}))"
        reset = f"h - {self.threshold:g} s" if self.reset is None else f"{self.reset:g} where s, else h"
        return f"For each of {self.steps} time steps: h = {charge}; s = {fire}; v = {reset}."


@dataclass(frozen=True)
class IntegerKind:
    """All that the function of a neuron without state depends on.

    Attributes:
        levels: most spikes.
        half_up: whether halves are rounded up, as ``floor(x + 0.5)`` does; else to even numbers.
    """

    levels: int
    half_up: bool = False
    name = "IntegerSpike"
    static = takes_decay = False

    @property
    def title(self) -> str:
        return f"{self.name}_max{self.levels}" + "_halfup" * self.half_up

    @property
    def constants(self) -> dict[str, float]:
        """Scalars that the function takes after its current, by name, in order."""
        return {"zero": 0.0, "most": float(self.levels)} | ({"half": 0.5} if self.half_up else {})

    @property
    def formula(self) -> str:
        clipped = f"clip(x, 0, {self.levels})"
        return f"s = floor({clipped} + 0.5)." if self.half_up else f"s = round({clipped}), halves to even numbers."

    def function(self, taken: Collection[str], opset: int) -> ir.Function:
        """Write the function; ``taken`` are names in use."""
        body = _Body(self)
        x, zero, most, *half = body.inputs.values()
        clipped = body.op("Clip", "clip", x, zero, most)
        if self.half_up:
            spikes = body.op("Floor", "spikes", body.op("Add", "raised", clipped, *half))
        else:
            spikes = body.op("Round", "spikes", clipped)
        return _function(self, body, spikes, taken, opset)


AnyKind = NeuronKind | IntegerKind


def _function(kind: AnyKind, body: _Body, spikes: ir.Value, taken: Collection[str], opset: int) -> ir.Function:
    """A function of a name that is not taken."""
    name, i = kind.title, 1
    while name in taken:
        i += 1
        name = f"{kind.title}_{i}"
    graph = ir.Graph(
        list(body.inputs.values()),
        [spikes],
        nodes=body.nodes,
        opset_imports={"": opset},
        name=name,
        doc_string=kind.formula,
        metadata_props={KIND_KEY: kind.name} | ({STATIC_KEY: "1"} if kind.static else {}),
    )
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def integer_kind_of(module: nn.Module) -> IntegerKind:
    """The kind of a neuron without state."""
    dynamics = dynamics_of(module)
    return IntegerKind(dynamics.max_spikes, dynamics.half_up)


def kind_of(path: str, module: nn.Module, steps: int, static: bool) -> NeuronKind:
    """The kind of a neuron.

    Raises:
        UnsupportedError: a surrogate that does not spike, whose output is not the neuron's.
    """
    dynamics = dynamics_of(module)
    if not dynamics.fires:
        raise UnsupportedError(f"neuron {path} has a surrogate with spiking=False, which does not fire")
    return NeuronKind(
        dynamics.kind,
        steps,
        threshold=dynamics.threshold,
        reset=dynamics.reset,
        tau=dynamics.tau,
        decay_input=dynamics.decay_input or dynamics.kind in ("IF", "ILIF"),
        count=dynamics.max_spikes,
        static=static and steps > 1,
    )


def _power_of_two(number: float) -> bool:
    """Whether multiplying by the reciprocal is the same as dividing."""
    return math.frexp(number)[0] == 0.5


class _Body:
    """Writes the nodes of one function."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self.nodes: list[ir.Node] = []
        names = ["x", *(["decay"] if kind.takes_decay else []), *kind.constants]
        self.inputs = {name: ir.val(name) for name in names}

    def op(self, op_type: str, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        value = ir.val(name)
        self.nodes.append(ir.node(op_type, inputs, attributes or None, outputs=[value], name=name))
        return value

    def currents(self) -> list[ir.Value]:
        """The input at each step."""
        x, n = self.inputs["x"], self.kind.steps
        if n == 1 or self.kind.static:
            return [x] * n
        parts = [ir.val(f"x{t}") for t in range(n)]
        self.nodes.append(ir.node("Split", [x], {"axis": 0, "num_outputs": n}, outputs=parts, name="split"))
        return parts

    def joined(self, steps: list[ir.Value], name: str) -> ir.Value:
        return self.op("Concat", name, *steps, axis=0) if len(steps) > 1 else steps[0]

    # IF, LIF and PLIF

    def spikes(self) -> ir.Value:
        # booleans are joined before the one cast: a quarter of the bytes to copy
        return self.op("Cast", "spikes", self.joined(self.fired(), "s"), to=ir.DataType.FLOAT.value)

    def fired(self) -> list[ir.Value]:
        """Whether it fires, at each step."""
        fired: list[ir.Value] = []
        v: ir.Value | None = None
        for t, x in enumerate(self.currents()):
            h = self.charge(t, x, v)
            fired.append(self.op(self.fires(), f"s{t}", h, self.threshold(t)))
            if t < self.kind.steps - 1:
                v = self.reset(t, h, fired[-1])
        return fired

    def fires(self) -> str:
        """The comparison of a membrane and its threshold."""
        return "GreaterOrEqual"

    def threshold(self, t: int) -> ir.Value:
        return self.inputs["threshold"]

    def charge(self, t: int, x: ir.Value, v: ir.Value | None) -> ir.Value:
        """The membrane before firing; ``v`` is None at the first step, where it is the reset voltage."""
        kind, get = self.kind, self.inputs
        rest = bool(kind.reset)  # a reset voltage other than 0 stands in the formulas
        if v is None:
            h = self.leak(t, x) if kind.name != "IF" and kind.decay_input else x
            return self.op("Add", f"h{t}", get["reset"], h) if rest else h
        if kind.name == "IF":
            return self.op("Add", f"h{t}", v, x)
        above = self.op("Sub", f"above{t}", v, get["reset"]) if rest else v
        if kind.decay_input:
            return self.op("Add", f"h{t}", v, self.leak(t, self.op("Sub", f"drive{t}", x, above)))
        return self.op("Add", f"h{t}", self.op("Sub", f"left{t}", v, self.leak(t, above)), x)

    def leak(self, t: int, value: ir.Value) -> ir.Value:
        """``value / tau``, multiplied where that is the same and dividing is slower."""
        if "tau" in self.inputs:
            return self.op("Div", f"leak{t}", value, self.inputs["tau"])
        return self.op("Mul", f"leak{t}", value, self.inputs["decay" if self.kind.name == "PLIF" else "rate"])

    def reset(self, t: int, h: ir.Value, fired: ir.Value) -> ir.Value:
        if self.kind.reset is not None:
            return self.op("Where", f"v{t}", fired, self.inputs["reset"], h)
        return self.op("Where", f"v{t}", fired, self.op("Sub", f"low{t}", h, self.inputs["threshold"]), h)

    # ILIF

    def integer_spikes(self) -> ir.Value:
        return self.joined(self.counts(), "spikes")

    def counts(self) -> list[ir.Value]:
        """How many spikes it fires, at each step."""
        kind, get = self.kind, self.inputs
        unit = kind.threshold == 1
        counts: list[ir.Value] = []
        v: ir.Value | None = None
        for t, x in enumerate(self.currents()):
            h = x if v is None else self.op("Add", f"h{t}", self.op("Mul", f"left{t}", get["decay"], v), x)
            scaled = h if unit else self.op("Div", f"scaled{t}", h, get["threshold"])
            clipped = self.op("Clip", f"clip{t}", scaled, get["zero"], get["most"])
            counts.append(self.op("Round", f"s{t}", clipped))
            if t < kind.steps - 1:
                spent = counts[-1] if unit else self.op("Mul", f"spent{t}", counts[-1], get["threshold"])
                v = self.op("Sub", f"v{t}", h, spent)
        return counts


__all__ = [
    "DOMAIN",
    "KIND_KEY",
    "STATIC_KEY",
    "AnyKind",
    "IntegerKind",
    "NeuronKind",
    "integer_kind_of",
    "kind_of",
]
