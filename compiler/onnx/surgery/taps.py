"""Taps: the spikes of every neuron of a finished file as further outputs, without changing the file's bytes.

Two serialized protobuf messages one behind the other are the message with both their contents. So a file that is
followed by a model of nothing but graph outputs is that file with these outputs, for every runtime, and a device needs
no package to make it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import onnx

from svitc.onnx.model_info import metadata_of
from svitc.onnx.spike_views import VIEW_KEY
from svitc.onnx.surgery import suffix


@dataclass(frozen=True)
class Tap:
    """The values that hold a neuron's spikes.

    Attributes:
        path: path of the neuron's layer.
        values: names of the values in the file: one, or one for each time step.
    """

    path: str
    values: tuple[str, ...]


def taps(model: onnx.ModelProto) -> list[Tap]:
    """Return the values that hold the neurons' spikes, in execution order."""
    views = [json.loads(meta[VIEW_KEY]) for meta in map(metadata_of, model.graph.node) if VIEW_KEY in meta]
    if not views:
        return [Tap(neuron.path, (neuron.value,)) for neuron in suffix.spikes(model)]
    return [Tap(view["path"], tuple(dict.fromkeys(view["values"]))) for view in views]


def tapping(model: onnx.ModelProto, tapped: list[Tap]) -> bytes:
    """Return what makes the values of taps outputs when it is put behind the bytes of the model's file."""
    types = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
    present = {output.name for output in model.graph.output}
    more = onnx.ModelProto()
    for name in (name for tap in tapped for name in tap.values if name not in present):
        more.graph.output.append(onnx.helper.make_tensor_value_info(name, types[name], None))
    return more.SerializeToString(deterministic=True)
