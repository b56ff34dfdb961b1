"""Neurons as model-local functions: one function for each kind of neuron, one call for each layer of that kind.

The bodies consist of default-domain operators. A body reads and writes values whose outermost axis is time,
``[(t b), ...]`` or ``[t, ...]``, and keeps the order of SpikingJelly's arithmetic, so that equal input currents
give bit-identical spikes. The first step starts from the reset voltage, which is a constant; the last step does not
reset. A neuron without a membrane accepts values of any layout.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from torch import nn

from svitc.errors import UnsupportedError
from svitc.ir.neuron_dynamics import dynamics_of

DOMAIN = "svitc"
KIND_KEY, STATIC_KEY = "svitc.neuron", "svitc.static"  # metadata of a neuron's function


@dataclass(frozen=True)
class NeuronKind:
    """Everything that a neuron's function depends on; layers of one kind share one function.

    Attributes:
        name: ``IF``, ``LIF``, ``PLIF`` or ``ILIF``.
        steps: number of time steps, at least 1.
        threshold: membrane potential at which the neuron fires.
        reset: membrane potential after a spike; None for a soft reset, which subtracts the threshold.
        tau: time constant in steps; None for IF (no leak) and PLIF (an input of the function).
        decay_input: whether the input is multiplied by 1/tau too; True for kinds without that choice, which keeps
            their names short.
        count: largest number of spikes in one step (more than 1 for ILIF only).
        static: whether the input current is the same at every step and is given once.
        start: membrane potential before the first step; None for the reset voltage, or 0 for a soft reset.
    """

    name: str
    steps: int
    threshold: float
    reset: float | None
    tau: float | None = None
    decay_input: bool = True
    count: int = 1
    static: bool = False
    start: float | None = None

    @property
    def title(self) -> str:
        """Return the function's name, such as ``LIF_tau2_T4``; two kinds may have the same one."""
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
        if self.start is not None:
            parts.append(f"start{self.start:g}")
        parts += [f"T{self.steps}"] + ["static"] * self.static
        return "_".join(parts).replace(".", "p").replace("-", "m").replace("+", "")

    @property
    def takes_decay(self) -> bool:
        """Return whether the function's second input is PLIF's learned 1/tau."""
        return self.name == "PLIF" and (self.keeps_membrane or self.decay_input)

    @property
    def keeps_membrane(self) -> bool:
        """Return whether a membrane potential other than the reset voltage is ever charged."""
        return self.steps > 1 or self.start is not None

    @property
    def constants(self) -> dict[str, float]:
        """Return the scalar inputs that follow the current and PLIF's decay, by name, in order."""
        constants: dict[str, float] = {}
        keeps_membrane = self.keeps_membrane
        if self.start is not None:
            constants["start"] = self.start
        if self.name == "ILIF":
            assert self.tau is not None
            if keeps_membrane:
                constants["decay"] = 1.0 - 1.0 / self.tau
            if self.threshold != 1:
                constants |= {"threshold": self.threshold}
            return constants | {"zero": 0.0, "most": float(self.count)}
        constants["threshold"] = self.threshold
        if self.tau is not None and (keeps_membrane or self.decay_input):
            constants |= {"rate": 1 / self.tau} if _is_power_of_two(self.tau) else {"tau": self.tau}
        if self.reset is not None and (self.steps > 1 or self.reset != 0):
            constants["reset"] = self.reset
        return constants

    def function(self, used_names: Collection[str], opset: int) -> ir.Function:
        """Write the model-local function.

        Args:
            used_names: names of the model's other functions.
            opset: version of the default-domain operators.
        """
        body = NeuronBody(self, ["x", *(["decay"] if self.takes_decay else []), *self.constants])
        spikes = body.integer_spikes() if self.name == "ILIF" else body.spikes()
        return _function(self, body, spikes, used_names, opset)

    @property
    def formula(self) -> str:
        """Return the documentation of the function that is written into the file: its equations."""
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
        start = "" if self.start is None else f" Before them, v = {self.start:g}."
        return f"For each of {self.steps} time steps: h = {charge}; s = {fire}; v = {reset}.{start}"


@dataclass(frozen=True)
class IntegerKind:
    """Everything that the function of a neuron without a membrane depends on.

    Attributes:
        levels: largest number of spikes.
        half_up: whether halves are rounded up, as ``floor(x + 0.5)`` does; otherwise to even numbers.
    """

    levels: int
    half_up: bool = False
    name: ClassVar[str] = "IntegerSpike"
    static: ClassVar[bool] = False
    takes_decay: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """Return the function's name, such as ``IntegerSpike_max4``."""
        return f"{self.name}_max{self.levels}" + "_halfup" * self.half_up

    @property
    def constants(self) -> dict[str, float]:
        """Return the scalar inputs that follow the current, by name, in order."""
        return {"zero": 0.0, "most": float(self.levels)} | ({"half": 0.5} if self.half_up else {})

    @property
    def formula(self) -> str:
        """Return the documentation of the function that is written into the file."""
        clipped = f"clip(x, 0, {self.levels})"
        return f"s = floor({clipped} + 0.5)." if self.half_up else f"s = round({clipped}), halves to even numbers."

    def function(self, used_names: Collection[str], opset: int) -> ir.Function:
        """Write the model-local function.

        Args:
            used_names: names of the model's other functions.
            opset: version of the default-domain operators.
        """
        body = FunctionBody(["x", *self.constants])
        x, zero, most, *half = body.inputs.values()
        clipped = body.op("Clip", "clip", x, zero, most)
        if self.half_up:
            spikes = body.op("Floor", "spikes", body.op("Add", "raised", clipped, *half))
        else:
            spikes = body.op("Round", "spikes", clipped)
        return _function(self, body, spikes, used_names, opset)


@dataclass(frozen=True)
class StepKind:
    """Everything that the function of a comparison with a threshold depends on.

    Attributes:
        threshold: the threshold.
        strict: whether an input that equals the threshold does not fire.
    """

    threshold: float
    strict: bool = False
    name: ClassVar[str] = "Step"
    static: ClassVar[bool] = False
    takes_decay: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """Return the function's name; the threshold is an input."""
        return self.name + "_strict" * self.strict

    @property
    def constants(self) -> dict[str, float]:
        """Return the scalar input that follows the current."""
        return {"threshold": self.threshold}

    @property
    def formula(self) -> str:
        """Return the documentation of the function that is written into the file."""
        return f"s = x {'>' if self.strict else '>='} {self.threshold:g}."

    def function(self, used_names: Collection[str], opset: int) -> ir.Function:
        """Write the model-local function."""
        body = FunctionBody(["x", *self.constants])
        fired = body.op("Greater" if self.strict else "GreaterOrEqual", "fired", *body.inputs.values())
        spikes = body.op("Cast", "spikes", fired, to=ir.DataType.FLOAT.value)
        return _function(self, body, spikes, used_names, opset)


AnyKind = NeuronKind | IntegerKind | StepKind


def unique_name(title: str, used_names: Collection[str]) -> str:
    """Return ``title``, with a number behind it where a function has that name already."""
    name, i = title, 1
    while name in used_names:
        i += 1
        name = f"{title}_{i}"
    return name


def _function(
    kind: AnyKind, body: FunctionBody, spikes: ir.Value, used_names: Collection[str], opset: int
) -> ir.Function:
    """Wrap a finished body as a model-local function with a unique name."""
    name = unique_name(kind.title, used_names)
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


def stateless_kind_of(module: nn.Module) -> IntegerKind | StepKind:
    """Return the kind of a neuron without a membrane."""
    dynamics = dynamics_of(module)
    if dynamics.kind == "Step":
        return StepKind(dynamics.threshold, dynamics.strict)
    return IntegerKind(dynamics.max_spikes, dynamics.half_up)


def kind_of(path: str, module: nn.Module, steps: int, static: bool) -> NeuronKind:
    """Return the kind of a neuron with a membrane.

    Args:
        path: path of the neuron's layer, for the error message.
        module: the neuron.
        steps: number of time steps.
        static: whether its input current is the same at every step.

    Raises:
        UnsupportedError: the surrogate function has ``spiking=False``, so that the output is not spikes.
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
        start=dynamics.start,
    )


def _is_power_of_two(number: float) -> bool:
    """Return whether multiplying by the reciprocal gives the same bits as dividing."""
    return math.frexp(number)[0] == 0.5


class FunctionBody:
    """The nodes of one model-local function under construction.

    Attributes:
        nodes: the nodes emitted so far, in order.
        inputs: the function's inputs by name, in order.
    """

    def __init__(self, inputs: Iterable[str]) -> None:
        self.nodes: list[ir.Node] = []
        self.inputs = {name: ir.val(name) for name in inputs}

    def op(self, op_type: str, name: str, *inputs: ir.Value, **attributes: float) -> ir.Value:
        """Emit one node with one output; the node and the value share ``name``."""
        value = ir.val(name)
        self.nodes.append(ir.node(op_type, inputs, attributes or None, outputs=[value], name=name))
        return value


class NeuronBody(FunctionBody):
    """The body of a neuron with a membrane, unrolled over its time steps."""

    def __init__(self, kind: NeuronKind, inputs: Iterable[str]) -> None:
        super().__init__(inputs)
        self.kind = kind

    def currents(self) -> list[ir.Value]:
        """Return the input current at each step."""
        x, n = self.inputs["x"], self.kind.steps
        if n == 1 or self.kind.static:
            return [x] * n
        parts = [ir.val(f"x{t}") for t in range(n)]
        self.nodes.append(ir.node("Split", [x], {"axis": 0, "num_outputs": n}, outputs=parts, name="split"))
        return parts

    def joined(self, steps: list[ir.Value], name: str) -> ir.Value:
        """Concatenate the values of all steps along time."""
        return self.op("Concat", name, *steps, axis=0) if len(steps) > 1 else steps[0]

    # IF, LIF and PLIF

    def spikes(self) -> ir.Value:
        """Emit an IF, LIF or PLIF neuron and return its spikes at all steps as floats."""
        # booleans are concatenated before the cast: a quarter of the bytes to copy
        return self.op("Cast", "spikes", self.joined(self.fired(), "s"), to=ir.DataType.FLOAT.value)

    def fired(self) -> list[ir.Value]:
        """Emit an IF, LIF or PLIF neuron and return a boolean value for each step: whether it fires."""
        fired: list[ir.Value] = []
        v = self.inputs.get("start")
        for t, x in enumerate(self.currents()):
            h = self.charge(t, x, v)
            fired.append(self.op(self.fires(), f"s{t}", h, self.threshold(t)))
            if t < self.kind.steps - 1:
                v = self.reset(t, h, fired[-1])
        return fired

    def fires(self) -> str:
        """Return the operator that compares the membrane with the threshold."""
        return "GreaterOrEqual"

    def threshold(self, t: int) -> ir.Value:
        """Return the threshold at step ``t``."""
        return self.inputs["threshold"]

    def charge(self, t: int, x: ir.Value, v: ir.Value | None) -> ir.Value:
        """Emit the membrane potential before firing.

        Args:
            t: time step, from 0.
            x: input current.
            v: membrane after the step before, or where it starts; None where that is the reset voltage.
        """
        kind, get = self.kind, self.inputs
        rest = bool(kind.reset)  # only a reset voltage other than 0 needs its own terms
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
        """Emit ``value / tau``, as a product with 1 / tau where that gives the same bits and is faster."""
        if "tau" in self.inputs:
            return self.op("Div", f"leak{t}", value, self.inputs["tau"])
        return self.op("Mul", f"leak{t}", value, self.inputs["decay" if self.kind.name == "PLIF" else "rate"])

    def reset(self, t: int, h: ir.Value, fired: ir.Value) -> ir.Value:
        """Emit the membrane after firing, from the membrane ``h`` before it."""
        if self.kind.reset is not None:
            return self.op("Where", f"v{t}", fired, self.inputs["reset"], h)
        return self.op("Where", f"v{t}", fired, self.op("Sub", f"low{t}", h, self.inputs["threshold"]), h)

    # ILIF

    def integer_spikes(self) -> ir.Value:
        """Emit an ILIF neuron and return its spike counts at all steps."""
        return self.joined(self.counts(), "spikes")

    def counts(self) -> list[ir.Value]:
        """Emit an ILIF neuron and return a value for each step: its spike counts as floats."""
        kind, get = self.kind, self.inputs
        unit_threshold = kind.threshold == 1
        counts: list[ir.Value] = []
        v = self.inputs.get("start")
        for t, x in enumerate(self.currents()):
            h = x if v is None else self.op("Add", f"h{t}", self.op("Mul", f"left{t}", get["decay"], v), x)
            scaled = h if unit_threshold else self.op("Div", f"scaled{t}", h, get["threshold"])
            clipped = self.op("Clip", f"clip{t}", scaled, get["zero"], get["most"])
            counts.append(self.op("Round", f"s{t}", clipped))
            if t < kind.steps - 1:
                spent = counts[-1] if unit_threshold else self.op("Mul", f"spent{t}", counts[-1], get["threshold"])
                v = self.op("Sub", f"v{t}", h, spent)
        return counts


__all__ = [
    "DOMAIN",
    "KIND_KEY",
    "STATIC_KEY",
    "AnyKind",
    "FunctionBody",
    "IntegerKind",
    "NeuronBody",
    "NeuronKind",
    "StepKind",
    "kind_of",
    "stateless_kind_of",
    "unique_name",
]
