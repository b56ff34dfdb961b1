"""Verdict: the result of a verification, in each layer and in the logits, and whether it passes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from svitc.data.inputs import top1
from svitc.support.types import JsonDict


@dataclass
class LayerVerdict:
    """The differences of one neuron over all images.

    Attributes:
        name: path of the neuron.
        spikes: number of spikes that were compared.
        flips_within_rounding: spikes that differ as rounding explains.
        flips_beyond_rounding: spikes that differ otherwise.
        currents_beyond_rounding: currents that differ by more than rounding explains.
        max_current_difference: largest absolute difference of a current.
        firing: sum of the spikes that the inputs themselves caused.
    """

    name: str
    spikes: int = 0
    flips_within_rounding: int = 0
    flips_beyond_rounding: int = 0
    currents_beyond_rounding: int = 0
    max_current_difference: float = 0.0
    firing: float = 0.0


@dataclass
class Verdict:
    """The result of a verification; ``to_json`` is the report's ``verify`` section.

    Attributes:
        images: number of images compared.
        agreeing: number of images with the same predicted class.
        max_logit_difference: largest absolute difference of a logit.
        logits_beyond_rounding: logits that differ by more than rounding explains.
        layers: neuron -> its differences, in order of execution.
    """

    images: int = 0
    agreeing: int = 0
    max_logit_difference: float = 0.0
    logits_beyond_rounding: int = 0
    layers: dict[str, LayerVerdict] = field(default_factory=dict)

    def add(self, final: np.ndarray, expected: np.ndarray) -> None:
        """Count the images of a batch.

        Args:
            final: logits of the unsplit file, ``[T, N, classes]`` or ``[N, classes]``.
            expected: logits of the reference, of the same shape.
        """
        predicted, expected_classes = top1(final), top1(expected)
        self.max_logit_difference = max(self.max_logit_difference, float(abs(final - expected).max()))
        self.agreeing += int((predicted == expected_classes).sum())
        self.images += len(expected_classes)

    def total(self, field_name: str) -> int:
        """Return the sum of a field over the layers."""
        return sum(getattr(layer, field_name) for layer in self.layers.values())

    @property
    def first_divergence(self) -> str | None:
        """Return the first layer, in execution order, that rounding does not explain."""
        for layer in self.layers.values():
            if layer.flips_beyond_rounding or layer.currents_beyond_rounding:
                return layer.name
        return "logits" if self.logits_beyond_rounding else None

    @property
    def passed(self) -> bool:
        """Return whether rounding explains every difference."""
        return self.first_divergence is None

    def to_json(self) -> JsonDict:
        """Return the ``verify`` section of the report."""
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
