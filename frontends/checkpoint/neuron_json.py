"""Neurons by name: the closed table from which JSON arguments, and files of unknown origin, choose a neuron."""

from __future__ import annotations

from collections.abc import Mapping

from spikingjelly.activation_based import neuron, surrogate

from svitc.ir import ops
from svitc.support.types import JsonMapping

NEURONS: dict[str, type[neuron.BaseNode]] = {kind.__name__: kind for kind in ops.NEURONS}
HOME = "spikingjelly.activation_based.neuron"
# SpikingJelly asserts that these are floats, and JSON writers often turn 1.0 into 1
_FLOATS = ("tau", "init_tau", "v_threshold", "v_reset")
_SWITCHES = ("decay_input", "detach_reset")
# the arguments that SpikingJelly's SViTs pass on to their neurons, as far as JSON can express them
ARGUMENTS = ("spiking_neuron", *_FLOATS, *_SWITCHES, "levels")


def from_json(arguments: JsonMapping) -> dict[str, object]:
    """Convert JSON values to the arguments that SpikingJelly's SViTs take.

    ``spiking_neuron`` becomes the class that it names, and ``levels`` (D of an ``ILIFNode``, its largest spike count)
    becomes its surrogate function.

    Raises:
        ValueError: the neuron is not in the table, ``levels`` is given without an ``ILIFNode``, or a switch is
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


def to_json(arguments: Mapping[str, object]) -> dict[str, object]:
    """Convert arguments to JSON values, the inverse of ``from_json``; values that it does not convert stay."""
    result = dict(arguments)
    for name, kind in NEURONS.items():
        if result.get("spiking_neuron") is kind:
            result["spiking_neuron"] = name
    levels = result.get("surrogate_function")
    if result.get("spiking_neuron") == "ILIFNode" and isinstance(levels, surrogate.MultiLevelSpikeCount):
        del result["surrogate_function"]
        result["levels"] = int(levels.max_spike_count)
    return result
