"""Neuron dynamics: the equations of a neuron module, in one form for analysis, lowering, training and verification.

Every neuron with a membrane charges, fires and resets at every time step:

    h = keep * v + (1 - keep) * rest + gain * x
    s = h >= threshold                                    ILIF: s = round(clip(h / threshold, 0, max_spikes))
    v = reset where s, else h   (hard reset)   or   h - s * threshold   (soft reset);   v = start before the first step

where keep = 1 and gain = 1 for IF; a LeakyNeuron has them as they are; otherwise keep = 1 - 1/tau, and gain = 1/tau if
the input decays, else 1. An integer spike has no membrane: s = round(clip(x, 0, max_spikes)); nor has a step:
s = x >= threshold, or x > threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.ir import ops

_KINDS = {
    neuron.IFNode: "IF",
    neuron.LIFNode: "LIF",
    neuron.ParametricLIFNode: "PLIF",
    neuron.ILIFNode: "ILIF",
    ops.LeakyNeuron: "Leaky",
    ops.IntegerSpike: "IntegerSpike",
    ops.Step: "Step",
}


@dataclass(frozen=True)
class NeuronDynamics:
    """Equations of a neuron layer.

    Attributes:
        kind: ``IF``, ``LIF``, ``PLIF``, ``ILIF``, ``Leaky``, ``IntegerSpike`` or ``Step``.
        tau: time constant in time steps; None without a leak, and for PLIF, which learns it.
        decay_input: whether the input is multiplied by 1/tau, too.
        threshold: membrane voltage at which the neuron fires; 1 for ``IntegerSpike``.
        reset: membrane voltage after a spike; None for a soft reset, which subtracts the threshold, and for neurons
            without membrane.
        start: membrane voltage before the first time step; None where that is ``rest``.
        max_spikes: largest number of spikes in one time step. Numbers of spikes are non-negative integers.
        half_up: whether halves are rounded up instead of to the nearest even number; only for ``IntegerSpike``.
        strict: whether an input that equals the threshold does not fire; only for ``Step`` and ``Leaky``.
        fires: whether the output consists of spikes; False for a surrogate function with ``spiking=False``.
        learned: PLIF's parameter w, where 1/tau = sigmoid(w); on the module's device, and up to date.
        factors: ``keep`` and ``gain`` of ``Leaky``.
    """

    kind: str
    tau: float | None = None
    decay_input: bool = False
    threshold: float = 1.0
    reset: float | None = None
    start: float | None = None
    max_spikes: int = 1
    half_up: bool = False
    strict: bool = False
    fires: bool = True
    learned: torch.Tensor | None = field(default=None, compare=False, repr=False)
    factors: tuple[float, float] | None = None

    @property
    def has_state(self) -> bool:
        """Whether the neuron has a membrane."""
        return self.kind not in ("IntegerSpike", "Step")

    @property
    def counts(self) -> bool:
        """Whether the neuron fires any number of spikes in a time step, instead of 0 or 1."""
        return self.kind in ("ILIF", "IntegerSpike") or self.max_spikes > 1

    @property
    def leaks(self) -> bool:
        return self.kind in ("LIF", "PLIF", "ILIF", "Leaky")

    @property
    def rest(self) -> float:
        """Membrane voltage to which the membrane decays."""
        return 0.0 if self.reset is None else self.reset

    @property
    def initial(self) -> float:
        """Membrane voltage before the first time step."""
        return self.rest if self.start is None else self.start

    @property
    def remembers(self) -> bool:
        """Whether a time step depends on the membrane after the one before, bit for bit."""
        forgets = self.keep == 0 and self.rest == 0 and not self.decay_input
        return self.has_state and not forgets

    @property
    def fires_without_input(self) -> bool:
        """Whether a neuron with a membrane can fire although its input is 0 at every step."""
        least = self.threshold / 2 if self.counts else self.threshold  # half a spike is rounded to none
        charged = self.rest + max(self.keep, 0.0) * (self.initial - self.rest)
        return max(charged, self.rest) >= least

    @property
    def rate(self) -> float:
        """1/tau in float64, for bounds; 0 without a leak."""
        if self.learned is not None:
            return float(self.learned.detach().double().sigmoid())
        return 0.0 if self.tau is None else 1.0 / self.tau

    @property
    def float32_rate(self) -> torch.Tensor:
        """PLIF's 1/tau, rounded to float32 as PyTorch does at run time; its last bits differ from ``rate``."""
        assert self.learned is not None
        return self.learned.detach().float().sigmoid()

    @property
    def keep(self) -> float:
        """Factor of the membrane voltage of the previous time step."""
        return 1.0 - self.rate if self.factors is None else self.factors[0]

    @property
    def gain(self) -> float:
        """Factor of the input."""
        if self.factors is not None:
            return self.factors[1]
        return self.rate if self.decay_input else 1.0

    @property
    def is_normalized(self) -> bool:
        """Whether the threshold is 1 and the membrane rests at 0."""
        return self.threshold == 1 and self.rest == 0


def dynamics_of(module: nn.Module | None) -> NeuronDynamics:
    """Return the equations of a neuron module.

    Raises:
        TypeError: the module is not one of the neurons in ``ops``. Subclasses of them are refused, too, because they
            may behave differently.
    """
    layer: Any = module  # SpikingJelly's attributes have no types
    kind = _KINDS.get(type(layer))
    if kind is None:
        raise TypeError(f"{type(layer).__name__} is not a neuron")
    if isinstance(layer, ops.IntegerSpike):
        return NeuronDynamics(kind, max_spikes=int(layer.levels), half_up=layer.rounding == "half_up")
    if isinstance(layer, ops.Step):
        return NeuronDynamics(kind, threshold=float(layer.threshold), strict=bool(layer.strict))
    if isinstance(layer, ops.LeakyNeuron):
        return NeuronDynamics(
            kind,
            threshold=float(layer.threshold),
            reset=0.0 if layer.hard_reset else None,
            max_spikes=int(layer.levels),
            strict=bool(layer.strict),
            factors=(float(layer.keep), float(layer.gain)),
        )
    reset = None if layer.v_reset is None else float(layer.v_reset)
    start = float(layer.get_reset_value("v"))
    return NeuronDynamics(
        kind,
        tau=float(layer.tau) if kind in ("LIF", "ILIF") else None,
        decay_input=kind in ("LIF", "PLIF") and bool(layer.decay_input),
        threshold=float(layer.v_threshold),
        reset=reset,
        start=None if start == (reset or 0.0) else start,
        max_spikes=int(layer.surrogate_function.max_spike_count) if kind == "ILIF" else 1,
        fires=bool(getattr(layer.surrogate_function, "spiking", True)),
        learned=layer.w if kind == "PLIF" else None,
    )


__all__ = ["NeuronDynamics", "dynamics_of"]
