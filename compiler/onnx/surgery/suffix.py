"""The tail of a file: what is left to compute once the spikes of some of its neurons are known.

A sweep measures many networks that differ from the original in one place. All that lies before that place
fires as it did, so each network is run from there, on the original's spikes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from svitc.onnx.neuron_functions import DOMAIN, KIND_KEY
from svitc.onnx.surgery.neuron_split import members_of


@dataclass(frozen=True)
class Spikes:
    """Where a neuron's spikes are in a file.

    Attributes:
        path: the neuron's layer.
        value: name of the value.
    """

    path: str
    value: str


def spikes(model: onnx.ModelProto) -> list[Spikes]:
    """Every neuron's spikes, in execution order; a neuron that stands for several gives each one's."""
    kinds = {f.name: {p.key for p in f.metadata_props} for f in model.functions if f.domain == DOMAIN}
    graph = model.graph
    found = []
    for node in graph.node:
        if node.domain != DOMAIN or KIND_KEY not in kinds.get(node.op_type, ()):
            continue
        names, values = [node.name], [node.output[0]]
        if "+" in node.name:
            split = next(n for n in graph.node if n.op_type == "Split" and node.output[0] in n.input)
            names, values = members_of(node.name), list(split.output)
        found += [Spikes(name, value) for name, value in zip(names, values, strict=True)]
    return found


def expose(model: onnx.ModelProto, wanted: Collection[str]) -> list[Spikes]:
    """Make the spikes of these neurons outputs of the model as well, in place."""
    chosen = [each for each in spikes(model) if each.path in wanted]
    for each in chosen:
        model.graph.output.append(onnx.helper.make_tensor_value_info(each.value, onnx.TensorProto.FLOAT, None))
    return chosen


def suffix(model: onnx.ModelProto, known: Collection[str]) -> list[Spikes]:
    """Cut a model down, in place, to what the logits need when the spikes of the ``known`` neurons are inputs.

    Returns:
        the neurons whose spikes the cut model takes; the image is an input only where it is still needed.
    """
    graph = model.graph
    given = {each.value: each for each in spikes(model) if each.path in known}
    needed = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        outputs = set(node.output) & needed
        if not outputs or all(name in given for name in outputs):
            continue
        kept.append(node)
        needed.update(name for name in node.input if name)
    taken = [given[name] for name in given if name in needed]
    made = {name for node in kept for name in node.output}
    del graph.node[:]
    graph.node.extend(reversed(kept))
    inputs = [info for info in graph.input if info.name in needed]
    del graph.input[:]
    graph.input.extend(inputs)
    for each in taken:
        if each.value in made:  # a split still makes it beside a part that changed
            for node in graph.node:
                for i, name in enumerate(node.output):
                    if name == each.value:
                        node.output[i] = f"unused:{name}"
        graph.input.append(onnx.helper.make_tensor_value_info(each.value, onnx.TensorProto.FLOAT, None))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    infos = [info for info in graph.value_info if info.name in made and info.name not in given]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(weights)
    graph.value_info.extend(infos)
    return taken
