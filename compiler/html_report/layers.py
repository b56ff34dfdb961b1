"""The stored bits of each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from svitc.html_report.facts import section
from svitc.support.types import JsonDict


@dataclass(frozen=True)
class Layer:
    """A layer's stored weights.

    Attributes:
        name: its path.
        bits: bits of a weight.
        shape: shape of the weight, as text.
        stored: bytes of all its weights, without scales.
        alone: points of accuracy that fewer bits in this layer alone cost, where that was measured.
    """

    name: str
    bits: int
    shape: str
    stored: int
    alone: str


def layers(report: JsonDict) -> list[Layer]:
    """Return the layers whose weights are integers, along the network; none for a file of floats."""
    measured = {
        curve["layer"]: ", ".join(f"{point['bits']} bits: {100 * point['drop']:.1f}" for point in curve["points"])
        for curve in section(report, "sweep").get("bit_curves") or ()
    }
    found = []
    for name, layer in section(section(report, "weights"), "layers").items():
        shape = [int(size) for size in layer["shape"]]
        bits = int(layer["bits"])
        found.append(
            Layer(
                name, bits, " × ".join(map(str, shape)), math.ceil(math.prod(shape) * bits / 8), measured.get(name, "")
            )
        )
    return found
