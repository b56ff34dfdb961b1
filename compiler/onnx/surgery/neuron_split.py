"""Cut a float file at its neurons, so that each layer can be compared with the reference by itself.

In float32 the order of a sum changes its last bit. A membrane close to its threshold then fires in one runtime and not
in another, and the difference spreads through the network. So a comparison feeds every layer with the reference's
spikes and looks at one neuron at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from svitc.errors import InternalError
from svitc.onnx.function_body import CURRENT_KEY, KIND_KEY, PATH_KEY, STATIC_KEY
from svitc.onnx.model_info import file_of, metadata_of, read_apart


@dataclass(frozen=True)
class SplitNeuron:
    """One neuron of a cut model.

    Attributes:
        path: path of the neuron's layer.
        kind: ``IF``, ``LIF``, ``PLIF``, ``ILIF``, ``IntegerSpike`` or ``Step``.
        reference: graph input that all readers of the neuron read instead of its spikes.
        spikes: graph output: what the neuron fires when the layers before it get the reference's spikes.
        current: graph output: the neuron's input current.
        shape: shape of the three values, -1 for a batch that is open. Only neighboring dimensions are merged, so that
            ``array.reshape(shape)`` converts the program's array, ``[T, N, ...]`` or of any form for a neuron without a
            membrane.
        static: whether the current is the same at every step and is given once; then ``array[0].reshape(shape)``
            converts it.
    """

    path: str
    kind: str
    reference: str
    spikes: str
    current: str
    shape: tuple[int, ...]
    static: bool


def split_neurons(model: bytes) -> tuple[bytes, list[SplitNeuron]]:
    """Turn every neuron's spikes and current into outputs, and let its readers read a new input instead.

    Args:
        model: bytes of a float ONNX file.

    Returns:
        the cut file, with the weights of the original, and its neurons in execution order.

    Raises:
        InputError: the bytes are not an ONNX model.
        InternalError: the file does not give the shape of a neuron's spikes or current.
    """
    proto, tensors = read_apart(model)
    graph = proto.graph
    shapes = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    renamed: dict[str, str] = {}  # name of spikes -> name of the reference that replaces them
    neurons: list[SplitNeuron] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:  # in execution order, so that every value is renamed before it is read
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        meta = metadata_of(node)
        if KIND_KEY not in meta:
            nodes.append(node)
            continue
        path, current, spikes = meta[PATH_KEY], meta[CURRENT_KEY], node.output[0]
        if spikes not in shapes or current not in shapes:
            raise InternalError(f"neuron {path}: the file has no shape for its spikes or its current")
        if "+" in path:
            neurons += _cut_fused(graph, node, meta, shapes, renamed, nodes)
            continue
        neuron = SplitNeuron(
            path,
            meta[KIND_KEY],
            f"ref:{path}",
            f"spikes:{path}",
            f"current:{path}",
            _shape(path, shapes[spikes]),
            STATIC_KEY in meta,
        )
        neurons.append(neuron)
        renamed[spikes] = neuron.reference
        node.output[0] = neuron.spikes
        nodes += [onnx.helper.make_node("Identity", [renamed.get(current, current)], [neuron.current]), node]
        graph.input.append(renamed_info(shapes[spikes], neuron.reference))
        graph.output.append(renamed_info(shapes[spikes], neuron.spikes))
        graph.output.append(renamed_info(shapes[current], neuron.current))
    for output in graph.output:
        if output.name in renamed:  # a neuron's spikes are the model's output
            nodes.append(onnx.helper.make_node("Identity", [renamed[output.name]], [output.name]))
    infos = [info for info in graph.value_info if info.name not in renamed]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.value_info.extend(infos)
    return file_of(proto, tensors), neurons


def members_of(name: str) -> list[str]:
    """Return the neurons that a fused neuron stands for: ``attn.q`` and ``attn.k`` for ``attn.q+k``."""
    prefix, _, last = name.rpartition(".")
    return [f"{prefix}.{part}" if prefix else part for part in last.split("+")]


def _cut_fused(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    meta: dict[str, str],
    shapes: dict[str, onnx.ValueInfoProto],
    renamed: dict[str, str],
    nodes: list[onnx.NodeProto],
) -> list[SplitNeuron]:
    """Cut at a neuron that stands for several (``attn.q+k+v``).

    Each member gets a reference, spikes and a current of its own.

    Args:
        graph: the graph, whose inputs and outputs are extended.
        node: the node that gives the neuron's spikes.
        meta: its metadata.
        shapes: types and shapes of the graph's values by name.
        renamed: for each value that was cut the name that replaces it; extended.
        nodes: nodes of the cut graph so far; extended.
    """
    path, spikes, current = meta[PATH_KEY], node.output[0], meta[CURRENT_KEY]
    split = next((n for n in graph.node if n.op_type == "Split" and spikes in n.input), None)
    if split is None:
        raise InternalError(f"neuron {path} is fused, but no Split node reads its spikes")
    axis = next(a.i for a in split.attribute if a.name == "axis")
    sizes = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == split.input[1]).tolist()
    members = members_of(path)
    fused = {role: f"{role}:{path}" for role in ("ref", "spikes", "current")}
    node.output[0] = fused["spikes"]
    neurons = []
    for member, size in zip(members, sizes, strict=True):
        for role, template in (("ref", spikes), ("spikes", spikes), ("current", current)):
            info = renamed_info(shapes[template], f"{role}:{member}")
            info.type.tensor_type.shape.dim[axis].dim_value = size
            (graph.input if role == "ref" else graph.output).append(info)
        shape = list(_shape(path, shapes[spikes]))
        shape[axis] = size
        names = (f"ref:{member}", f"spikes:{member}", f"current:{member}")
        neurons.append(SplitNeuron(member, meta[KIND_KEY], *names, tuple(shape), STATIC_KEY in meta))
    parts = {role: [f"{role}:{member}" for member in members] for role in fused}
    nodes += [
        onnx.helper.make_node("Split", [renamed.get(current, current), split.input[1]], parts["current"], axis=axis),
        node,
        onnx.helper.make_node("Split", [fused["spikes"], split.input[1]], parts["spikes"], axis=axis),
        onnx.helper.make_node("Concat", parts["ref"], [fused["ref"]], axis=axis),
    ]
    renamed[spikes] = fused["ref"]
    return neurons


def _shape(path: str, info: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the shape of a neuron's spikes, with -1 for a batch that is open."""
    sizes = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in info.type.tensor_type.shape.dim)
    if sizes.count(-1) > 1:
        raise InternalError(f"neuron {path}: at most one dimension of its spikes may be dynamic, in {sizes}")
    return sizes


def renamed_info(template: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """Return a copy of a value's type and shape under another name."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(template)
    copy.name = name
    return copy
