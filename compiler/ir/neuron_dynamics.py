"""Neuron dynamics: the equations of a neuron module, decoded once for analyses, lowering, training and verification.

Every neuron with a membrane charges, fires and resets at every time step:

    h = keep * v + (1 - keep) * rest + gain * x
    s = h >= threshold                                    ILIF: s = round(clip(h / threshold, 0, max_spikes))
    v = reset where s, else h   (hard reset)   or   h - s * threshold   (soft reset);   v = rest before the first step

with keep = 1 and gain = 1 for IF, else keep = 1 - 1/tau, and gain = 1/tau where the input decays, else 1. An integer
spike has no membrane: s = round(clip(x, 0, max_spikes)).
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
    ops.IntegerSpike: "IntegerSpike",
}


@dataclass(frozen=True)
class NeuronDynamics:
    """The equations of one neuron layer.

    Attributes:
        kind: ``IF``, ``LIF``, ``PLIF``, ``ILIF`` or ``IntegerSpike``.
        tau: time constant in steps; None where there is no leak, and for PLIF, which learns it.
        decay_input: whether the input is multiplied by 1/tau as well.
        threshold: voltage at which it fires; 1 for ``IntegerSpike``.
        reset: voltage after a spike; None where the threshold is subtracted (soft reset), or there is no membrane.
        max_spikes: most spikes in one step; spikes are whole numbers from 0 on, never negative.
        half_up: whether halves are rounded up instead of to even numbers; only ``IntegerSpike`` may.
        fires: whether the output is spikes; not so for a surrogate function with ``spiking=False``.
        learned: PLIF's parameter w, whose sigmoid is 1/tau; read when it is asked for, on its own device.
    """

    kind: str
    tau: float | None = None
    decay_input: bool = False
    threshold: float = 1.0
    reset: float | None = None
    max_spikes: int = 1
    half_up: bool = False
    fires: bool = True
    learned: torch.Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def has_state(self) -> bool:
        """Whether there is a membrane."""
        return self.kind != "IntegerSpike"

    @property
    def counts(self) -> bool:
        """Whether it fires whole numbers of spikes instead of 0 or 1."""
        return self.kind in ("ILIF", "IntegerSpike")

    @property
    def leaks(self) -> bool:
        return self.kind in ("LIF", "PLIF", "ILIF")

    @property
    def rest(self) -> float:
        """Voltage at which the membrane starts, and to which it leaks."""
        return 0.0 if self.reset is None else self.reset

    @property
    def rate(self) -> float:
        """1/tau in float64, for bounds; 0 where there is no leak."""
        if self.learned is not None:
            return float(self.learned.detach().double().sigmoid())
        return 0.0 if self.tau is None else 1.0 / self.tau

    @property
    def float32_rate(self) -> torch.Tensor:
        """Return PLIF's 1/tau, rounded to float32 as PyTorch does at run time; its last bits differ from ``rate``."""
        assert self.learned is not None
        return self.learned.detach().float().sigmoid()

    @property
    def keep(self) -> float:
        """Factor of the membrane of the step before."""
        return 1.0 - self.rate

    @property
    def gain(self) -> float:
        """Factor of the input."""
        return self.rate if self.decay_input else 1.0

    @property
    def is_normalized(self) -> bool:
        """Whether the threshold is 1 and the membrane rests at 0."""
        return self.threshold == 1 and self.rest == 0


def dynamics_of(module: nn.Module | None) -> NeuronDynamics:
    """Decode a neuron.

    Raises:
        TypeError: the module is none of the neurons of ``ops``; a subclass may behave differently.
    """
    m: Any = module
    kind = _KINDS.get(type(m))
    if kind is None:
        raise TypeError(f"{type(m).__name__} is not a neuron")
    if isinstance(m, ops.IntegerSpike):
        return NeuronDynamics(kind, max_spikes=int(m.levels), half_up=m.rounding == "half_up")
    return NeuronDynamics(
        kind,
        tau=float(m.tau) if kind in ("LIF", "ILIF") else None,
        decay_input=kind in ("LIF", "PLIF") and bool(m.decay_input),
        threshold=float(m.v_threshold),
        reset=None if m.v_reset is None else float(m.v_reset),
        max_spikes=int(m.surrogate_function.max_spike_count) if kind == "ILIF" else 1,
        fires=bool(getattr(m.surrogate_function, "spiking", True)),
        learned=m.w if kind == "PLIF" else None,
    )


__all__ = ["NeuronDynamics", "dynamics_of"]
