"""Neurons as model-local functions: one function for each kind of neuron, one call for each layer of that kind.

The bodies consist of default-domain operators. A body reads and writes values whose outermost axis is time,
``[(t b), ...]`` or ``[t, ...]``, and keeps the order of SpikingJelly's arithmetic, so that equal input currents
give bit-identical spikes. The first step starts from the reset voltage, which is a constant; the last step does not
reset.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir
from torch import nn

from svitc.errors import UnsupportedError
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.onnx.function_body import FunctionBody
from svitc.onnx.stateless_functions import IntegerKind, StepKind


@dataclass(frozen=True)
class NeuronKind:
    """Everything that a neuron's function depends on; layers of one kind share one function.

    Attributes:
        name: ``IF``, ``LIF``, ``PLIF``, ``ILIF`` or ``Leaky``.
        steps: number of time steps, at least 1.
        threshold: membrane potential at which the neuron fires.
        reset: membrane potential after a spike; None for a soft reset, which subtracts the threshold.
        tau: time constant in steps; None for IF (no leak) and PLIF (an input of the function).
        decay_input: whether the input is multiplied by 1/tau too; True for kinds without that choice, which keeps
            their names short.
        count: largest number of spikes in one step (more than 1 for ILIF and Leaky only).
        static: whether the input current is the same at every step and is given once.
        keep: factor of the membrane of the step before; only for Leaky.
        gain: factor of the input; only for Leaky.
        strict: whether a membrane that equals the threshold does not fire; only for Leaky.
        start: membrane potential before the first step; None for the reset voltage, or 0 for a soft reset.
        carried: whether the membrane before the only step is an input, and the one after it an output.
    """

    name: str
    steps: int
    threshold: float
    reset: float | None
    tau: float | None = None
    decay_input: bool = True
    count: int = 1
    static: bool = False
    keep: float = 1.0
    gain: float = 1.0
    strict: bool = False
    start: float | None = None
    carried: bool = False

    @property
    def counts(self) -> bool:
        """Return whether the neuron fires any number of spikes in one step."""
        return self.name == "ILIF" or self.count > 1

    @property
    def title(self) -> str:
        """Return the function's name, such as ``LIF_tau2_T4``; two kinds may have the same one."""
        parts = [self.name]
        if self.keep != 1:
            parts.append(f"keep{self.keep:g}")
        if self.gain != 1:
            parts.append(f"gain{self.gain:g}")
        if self.tau is not None:
            parts.append(f"tau{self.tau:g}")
        if self.threshold != 1:
            parts.append(f"threshold{self.threshold:g}")
        if self.counts:
            parts.append(f"max{self.count}")
        elif self.reset is None:
            parts.append("soft")
        elif self.reset != 0:
            parts.append(f"reset{self.reset:g}")
        if not self.decay_input:
            parts.append("fullinput")
        if self.strict:
            parts.append("strict")
        if self.start is not None:
            parts.append(f"start{self.start:g}")
        parts += ["step"] if self.carried else [f"T{self.steps}"] + ["static"] * self.static
        return "_".join(parts).replace(".", "p").replace("-", "m").replace("+", "")

    @property
    def takes_decay(self) -> bool:
        """Return whether the function's second input is PLIF's learned 1/tau."""
        return self.name == "PLIF" and (self.keeps_membrane or self.decay_input)

    @property
    def keeps_membrane(self) -> bool:
        """Return whether a membrane potential other than the reset voltage is ever charged."""
        return self.steps > 1 or self.start is not None or self.carried

    @property
    def constants(self) -> dict[str, float]:
        """Return the scalar inputs that follow the current and PLIF's decay, by name, in order."""
        constants: dict[str, float] = {}
        keeps_membrane = self.keeps_membrane
        if self.start is not None:
            constants["start"] = self.start
        if keeps_membrane and self.keep != 1:
            constants["decay"] = self.keep
        if self.gain != 1:
            constants["gain"] = self.gain
        if self.counts:
            if self.tau is not None and keeps_membrane:
                constants["decay"] = 1.0 - 1.0 / self.tau
            if self.threshold != 1:
                constants |= {"threshold": self.threshold}
            return constants | {"zero": 0.0, "most": float(self.count)}
        constants["threshold"] = self.threshold
        if self.tau is not None and (keeps_membrane or self.decay_input):
            constants |= {"rate": 1 / self.tau} if _is_power_of_two(self.tau) else {"tau": self.tau}
        if self.reset is not None and (self.steps > 1 or self.carried or self.reset != 0):
            constants["reset"] = self.reset
        return constants

    @property
    def inputs(self) -> list[str]:
        """Return the names of the inputs."""
        membrane, decay = ["v"] if self.carried else [], ["decay"] if self.takes_decay else []
        return ["x", *membrane, *decay, *self.constants]

    def body(self, values: Iterable[ir.Value]) -> FunctionBody:
        """Emit the nodes, which read these values as the inputs."""
        body = NeuronBody(self, self.inputs, values)
        body.outputs = [body.integer_spikes() if self.counts else body.spikes(), *body.membranes]
        return body

    @property
    def formula(self) -> str:
        """Return the documentation of the function that is written into the file: its equations."""
        v = "v" if not self.reset else f"(v - {self.reset:g})"
        rate = "sigmoid(w)" if self.name == "PLIF" else f"1/{self.tau:g}" if self.tau is not None else ""
        charge = (
            "v + x"
            if self.name == "IF"
            else f"{self.keep:g} v + {self.gain:g} x"
            if self.name == "Leaky"
            else f"(1 - {rate}) v + x"
            if self.name == "ILIF"
            else f"v + {rate} (x - {v})"
            if self.decay_input
            else f"v - {rate} {v} + x"
        )
        fire = f"h {'>' if self.strict else '>='} {self.threshold:g}"
        if self.counts:
            fire = f"round(clip(h / {self.threshold:g}, 0, {self.count}))"
        reset = f"h - {self.threshold:g} s" if self.reset is None else f"{self.reset:g} where s, else h"
        start = "" if self.start is None else f" Before them, v = {self.start:g}."
        steps = "In one time step" if self.carried else f"For each of {self.steps} time steps"
        return f"{steps}: h = {charge}; s = {fire}; v = {reset}.{start}"


def kind_of(path: str, module: nn.Module, steps: int, static: bool, streaming: bool = False) -> NeuronKind:
    """Return the kind of a neuron with a membrane.

    Args:
        path: path of the neuron's layer, for the error message.
        module: the neuron.
        steps: number of time steps.
        static: whether its input current is the same at every step.
        streaming: whether the only step continues with a membrane from outside.

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
        decay_input=dynamics.decay_input or dynamics.kind in ("IF", "ILIF", "Leaky"),
        count=dynamics.max_spikes,
        static=static and steps > 1,
        keep=1.0 if dynamics.factors is None else dynamics.factors[0],
        gain=1.0 if dynamics.factors is None else dynamics.factors[1],
        strict=dynamics.strict,
        start=None if streaming else dynamics.start,
        carried=streaming and dynamics.remembers,
    )


def _is_power_of_two(number: float) -> bool:
    """Return whether multiplying by the reciprocal gives the same bits as dividing."""
    return math.frexp(number)[0] == 0.5


class NeuronBody(FunctionBody):
    """The body of a neuron with a membrane, unrolled over its time steps."""

    def __init__(self, kind: NeuronKind, names: Iterable[str], values: Iterable[ir.Value]) -> None:
        super().__init__(names, values)
        self.kind = kind
        self.membranes: list[ir.Value] = []  # the one after the last step, if it is an output

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

    # IF, LIF, PLIF, and Leaky with one spike at most

    def spikes(self) -> ir.Value:
        """Emit an IF, LIF or PLIF neuron and return its spikes at all steps as floats."""
        # booleans are concatenated before the cast: a quarter of the bytes to copy
        return self.op("Cast", "spikes", self.joined(self.fired(), "s"), to=ir.DataType.FLOAT.value)

    def fired(self) -> list[ir.Value]:
        """Emit an IF, LIF or PLIF neuron and return a boolean value for each step: whether it fires."""
        fired: list[ir.Value] = []
        v = self.membrane_before
        for t, x in enumerate(self.currents()):
            h = self.charge(t, x, v)
            fired.append(self.op(self.fires(), f"s{t}", h, self.threshold(t)))
            if t < self.kind.steps - 1 or self.kind.carried:
                v = self.reset(t, h, fired[-1])
                self.membranes = [v] if self.kind.carried else []
        return fired

    @property
    def membrane_before(self) -> ir.Value | None:
        """Return the membrane before the first step; None where that is the reset voltage."""
        return self.inputs.get("v", self.inputs.get("start"))

    def fires(self) -> str:
        """Return the operator that compares the membrane with the threshold."""
        return "Greater" if self.kind.strict else "GreaterOrEqual"

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
        if kind.name == "Leaky":
            return self.weighted_sum(t, x, v)
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

    def weighted_sum(self, t: int, x: ir.Value, v: ir.Value | None) -> ir.Value:
        """Emit ``keep * v + gain * x``."""
        get = self.inputs
        x = self.op("Mul", f"drive{t}", get["gain"], x) if "gain" in get else x
        if v is None:
            return x
        return self.op("Add", f"h{t}", self.op("Mul", f"left{t}", get["decay"], v) if "decay" in get else v, x)

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

    # ILIF, and Leaky with several spikes

    def integer_spikes(self) -> ir.Value:
        """Emit an ILIF neuron and return its spike counts at all steps."""
        return self.joined(self.counts(), "spikes")

    def counts(self) -> list[ir.Value]:
        """Emit an ILIF neuron and return a value for each step: its spike counts as floats."""
        kind, get = self.kind, self.inputs
        unit_threshold = kind.threshold == 1
        counts: list[ir.Value] = []
        v = self.membrane_before
        for t, x in enumerate(self.currents()):
            h = self.weighted_sum(t, x, v)
            scaled = h if unit_threshold else self.op("Div", f"scaled{t}", h, get["threshold"])
            clipped = self.op("Clip", f"clip{t}", scaled, get["zero"], get["most"])
            counts.append(self.op("Round", f"s{t}", clipped))
            if t < kind.steps - 1 or kind.carried:
                spent = counts[-1] if unit_threshold else self.op("Mul", f"spent{t}", counts[-1], get["threshold"])
                v = self.op("Sub", f"v{t}", h, spent)
                self.membranes = [v] if kind.carried else []
        return counts


AnyKind = NeuronKind | IntegerKind | StepKind

__all__ = ["AnyKind", "NeuronBody", "NeuronKind", "kind_of"]
