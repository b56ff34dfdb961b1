"""The result of a verification: what differs in each layer and in the logits, and whether that passes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from svitc.data.inputs import top1


@dataclass
class LayerVerdict:
    """One neuron over all images: differing spikes of both kinds, and currents that rounding does not explain."""

    name: str
    spikes: int = 0
    flips_within_rounding: int = 0
    flips_beyond_rounding: int = 0
    currents_beyond_rounding: int = 0
    max_current_difference: float = 0.0
    firing: float = 0.0  # sum of the spikes that the inputs themselves caused


@dataclass
class Verdict:
    """What verification found; ``to_json`` is the report's ``verify`` section."""

    images: int = 0
    agreeing: int = 0
    max_logit_difference: float = 0.0
    logits_beyond_rounding: int = 0
    layers: dict[str, LayerVerdict] = field(default_factory=dict)

    def add(self, final: np.ndarray, expected: np.ndarray) -> None:
        """Count a batch by the logits of the whole file and of the reference."""
        ours, theirs = top1(final), top1(expected)
        self.max_logit_difference = max(self.max_logit_difference, float(abs(final - expected).max()))
        self.agreeing += int((ours == theirs).sum())
        self.images += len(theirs)

    def total(self, what: str) -> int:
        return sum(getattr(layer, what) for layer in self.layers.values())

    @property
    def first_divergence(self) -> str | None:
        """The first layer, in execution order, that rounding does not explain."""
        for layer in self.layers.values():
            if layer.flips_beyond_rounding or layer.currents_beyond_rounding:
                return layer.name
        return "logits" if self.logits_beyond_rounding else None

    @property
    def passed(self) -> bool:
        return self.first_divergence is None

    def to_json(self) -> dict[str, Any]:
        return {
            "status": "passed" if self.passed else "failed",
            "images": self.images,
            "neurons": len(self.layers),
            "spikes": self.total("spikes"),
            "flips_within_rounding": self.total("flips_within_rounding"),
            "flips_beyond_rounding": self.total("flips_beyond_rounding"),
            "currents_beyond_rounding": self.total("currents_beyond_rounding"),
            "logits_beyond_rounding": self.logits_beyond_rounding,
            "first_divergence": self.first_divergence,
            "top1_agreement": self.agreeing / self.images if self.images else None,
            "max_logit_difference": self.max_logit_difference,
            "silent_neurons": [layer.name for layer in self.layers.values() if layer.firing == 0],
            "layers": [asdict(layer) for layer in self.layers.values()],
        }
