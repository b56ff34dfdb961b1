"""Neurons by name: the closed table that lets JSON, and files that nobody vouches for, choose a neuron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikingjelly.activation_based import neuron, surrogate

from svitc.ir import ops

NEURONS: dict[str, type[neuron.BaseNode]] = {kind.__name__: kind for kind in ops.NEURONS}
HOME = "spikingjelly.activation_based.neuron"
# SpikingJelly asserts that these are floats; JSON writes 1.0 as 1 readily
_FLOATS = ("tau", "init_tau", "v_threshold", "v_reset")
_SWITCHES = ("decay_input", "detach_reset")
# what its SViTs pass on to their neurons, of what JSON can say
ARGUMENTS = ("spiking_neuron", *_FLOATS, *_SWITCHES, "levels")


def from_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Factory arguments as SpikingJelly's own SViTs take them, from JSON values.

    ``spiking_neuron`` becomes the class that it names, and ``levels`` (D, of an ``ILIFNode``) its surrogate.

    Raises:
        ValueError: a neuron that is not in the table, ``levels`` without an ``ILIFNode``, a switch that is
            neither true nor false.
    """
    result = dict(arguments)
    name = result.get("spiking_neuron")
    if name is not None:
        short = name.removeprefix(HOME + ".").removeprefix("neuron.") if isinstance(name, str) else name
        if not isinstance(short, str) or short not in NEURONS:
            raise ValueError(f"spiking_neuron {name!r} is not a neuron that svitc knows ({', '.join(NEURONS)})")
        result["spiking_neuron"] = NEURONS[short]
    if "levels" in result:
        if result.get("spiking_neuron") is not neuron.ILIFNode:
            raise ValueError("levels is an argument of ILIFNode only")
        result["surrogate_function"] = surrogate.MultiLevelSpikeCount(result.pop("levels"))
    for key in _FLOATS:
        if isinstance(result.get(key), int) and not isinstance(result[key], bool):
            result[key] = float(result[key])
    for key in _SWITCHES:
        if not isinstance(result.get(key, False), bool):
            raise ValueError(f"{key} is true or false, not {result[key]!r}")
    return result


def to_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``from_json`` for what it knows: classes as names, an ILIF's surrogate as ``levels``."""
    result = dict(arguments)
    for name, kind in NEURONS.items():
        if result.get("spiking_neuron") is kind:
            result["spiking_neuron"] = name
    levels = result.get("surrogate_function")
    if result.get("spiking_neuron") == "ILIFNode" and isinstance(levels, surrogate.MultiLevelSpikeCount):
        del result["surrogate_function"]
        result["levels"] = int(levels.max_spike_count)
    return result
