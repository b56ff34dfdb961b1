"""The suffix of a file: what remains to be computed once the spikes of some of its neurons are known.

A sweep measures many networks that differ from the original in one place. Everything before that place fires as in the
original, so each network is run from there on, with the original's spikes as its inputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from svitc.onnx.function_body import PATH_KEY
from svitc.onnx.model_info import metadata_of
from svitc.onnx.surgery.neuron_split import members_of


@dataclass(frozen=True)
class Spikes:
    """The value that holds a neuron's spikes.

    Attributes:
        path: path of the neuron's layer.
        value: name of the value in the file.
    """

    path: str
    value: str


def spikes(model: onnx.ModelProto) -> list[Spikes]:
    """Return the values that hold the neurons' spikes, in execution order.

    A fused neuron (``attn.q+k``) gives one value for each of its members.
    """
    graph = model.graph
    neurons = []
    for node in graph.node:
        path = metadata_of(node).get(PATH_KEY)
        if path is None:
            continue
        names, values = [path], [node.output[0]]
        if "+" in path:
            split = next(n for n in graph.node if n.op_type == "Split" and node.output[0] in n.input)
            names, values = members_of(path), list(split.output)
        neurons += [Spikes(name, value) for name, value in zip(names, values, strict=True)]
    return neurons


def expose(model: onnx.ModelProto, paths: Collection[str]) -> list[Spikes]:
    """Add the spikes of the neurons of these layers to the model's outputs, in place, and return them."""
    exposed = [neuron for neuron in spikes(model) if neuron.path in paths]
    for neuron in exposed:
        model.graph.output.append(onnx.helper.make_tensor_value_info(neuron.value, onnx.TensorProto.FLOAT, None))
    return exposed


def suffix(model: onnx.ModelProto, paths: Collection[str]) -> list[Spikes]:
    """Reduce a model, in place, to what must be computed when the spikes of some neurons are known.

    Args:
        model: a float model.
        paths: layers of the neurons whose spikes are known.

    Returns:
        the neurons whose spikes are inputs of the reduced model. The image is an input only if it is still needed.
    """
    graph = model.graph
    boundary = {neuron.value: neuron for neuron in spikes(model) if neuron.path in paths}
    needed = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        outputs = set(node.output) & needed
        if not outputs or all(name in boundary for name in outputs):
            continue
        kept.append(node)
        needed.update(name for name in node.input if name)
    fed = [boundary[name] for name in boundary if name in needed]
    computed = {name for node in kept for name in node.output}
    del graph.node[:]
    graph.node.extend(reversed(kept))
    inputs = [info for info in graph.input if info.name in needed]
    del graph.input[:]
    graph.input.extend(inputs)
    for neuron in fed:
        if neuron.value in computed:  # by a Split whose other outputs are not known and still needed
            for node in graph.node:
                for i, name in enumerate(node.output):
                    if name == neuron.value:
                        node.output[i] = f"unused:{name}"
        graph.input.append(onnx.helper.make_tensor_value_info(neuron.value, onnx.TensorProto.FLOAT, None))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    infos = [info for info in graph.value_info if info.name in computed and info.name not in boundary]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(weights)
    graph.value_info.extend(infos)
    return fed
