"""Cut a file at its neurons, so that each layer can be compared by itself.

In float32 the order of a sum changes its last bit; a membrane next to its threshold then fires in one runtime
and not in another, and the difference spreads. So a comparison feeds every layer with the reference's spikes
and looks at each neuron alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from svitc.errors import InputError, InternalError
from svitc.onnx.neuron_functions import DOMAIN, KIND_KEY, STATIC_KEY


@dataclass(frozen=True)
class SplitNeuron:
    """One neuron of a cut model.

    Attributes:
        path: the neuron's layer, which is its node's name.
        kind: ``IF``, ``LIF``, ``PLIF``, ``ILIF`` or ``IntegerSpike``.
        reference: graph input that everything downstream reads in place of its spikes.
        spikes: graph output: what it fires, given the reference upstream.
        current: graph output: its input current.
        shape: shape of the three, -1 where the batch is. Only neighbouring dimensions are merged, so that the
            program's array, ``[T, N, ...]`` or of any form if the neuron has no state, is ``array.reshape(shape)``
            there.
        static: the current is the same at every step and is given once: ``array[0].reshape(shape)``.
    """

    path: str
    kind: str
    reference: str
    spikes: str
    current: str
    shape: tuple[int, ...]
    static: bool


def split_neurons(model: bytes) -> tuple[bytes, list[SplitNeuron]]:
    """A model with the file's own weights, each of whose neurons is an output and no longer feeds another.

    Raises:
        InputError: the bytes are no ONNX model.
        InternalError: the file does not give the shape of a neuron's spikes or current.
    """
    try:
        proto = onnx.load_from_string(model)
    except Exception as error:  # protobuf's errors have no common class across its implementations
        raise InputError(f"cannot read an ONNX model from the given bytes: {error}") from error
    graph = proto.graph
    ours = [function for function in proto.functions if function.domain == DOMAIN]
    kinds = {function.name: {p.key: p.value for p in function.metadata_props} for function in ours}
    shapes = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    renamed: dict[str, str] = {}  # spikes -> the reference that stands for them
    found: list[SplitNeuron] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:  # in order of execution, so that a reader comes after what it reads
        current = node.input[0] if node.input else ""
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        meta = kinds.get(node.op_type, {}) if node.domain == DOMAIN else {}
        if KIND_KEY not in meta:
            nodes.append(node)
            continue
        spikes = node.output[0]
        if spikes not in shapes or current not in shapes:
            raise InternalError(f"neuron {node.name}: its spikes or its current have no shape in the file")
        if "+" in node.name:
            found += _cut_fused(graph, node, meta, shapes, renamed, nodes)
            continue
        each = SplitNeuron(
            node.name,
            meta[KIND_KEY],
            f"ref:{node.name}",
            f"spikes:{node.name}",
            f"current:{node.name}",
            _shape(node.name, shapes[spikes]),
            STATIC_KEY in meta,
        )
        found.append(each)
        renamed[spikes] = each.reference
        node.output[0] = each.spikes
        nodes += [onnx.helper.make_node("Identity", [renamed.get(current, current)], [each.current]), node]
        graph.input.append(_info(shapes[spikes], each.reference))
        graph.output.append(_info(shapes[spikes], each.spikes))
        graph.output.append(_info(shapes[current], each.current))
    for output in graph.output:
        if output.name in renamed:  # a neuron's spikes are the model's output
            nodes.append(onnx.helper.make_node("Identity", [renamed[output.name]], [output.name]))
    kept = [info for info in graph.value_info if info.name not in renamed]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.value_info.extend(kept)
    return proto.SerializeToString(deterministic=True), found


def members_of(name: str) -> list[str]:
    """The neurons that one stands for: ``attn.q+k`` is ``attn.q`` and ``attn.k``."""
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
    """A neuron that stands for several (``attn.q+k+v``): each member has its own reference, spikes and current."""
    spikes, current = node.output[0], node.input[0]
    split = next((n for n in graph.node if n.op_type == "Split" and spikes in n.input), None)
    if split is None:
        raise InternalError(f"neuron {node.name}: nothing splits its spikes")
    axis = next(a.i for a in split.attribute if a.name == "axis")
    sizes = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == split.input[1]).tolist()
    members = members_of(node.name)
    whole = {role: f"{role}:{node.name}" for role in ("ref", "spikes", "current")}
    node.output[0] = whole["spikes"]
    found = []
    for member, size in zip(members, sizes, strict=True):
        for role, like in (("ref", spikes), ("spikes", spikes), ("current", current)):
            info = _info(shapes[like], f"{role}:{member}")
            info.type.tensor_type.shape.dim[axis].dim_value = size
            (graph.input if role == "ref" else graph.output).append(info)
        shape = list(_shape(node.name, shapes[spikes]))
        shape[axis] = size
        names = (f"ref:{member}", f"spikes:{member}", f"current:{member}")
        found.append(SplitNeuron(member, meta[KIND_KEY], *names, tuple(shape), STATIC_KEY in meta))
    parts = {role: [f"{role}:{member}" for member in members] for role in whole}
    nodes += [
        onnx.helper.make_node("Split", [renamed.get(current, current), split.input[1]], parts["current"], axis=axis),
        node,
        onnx.helper.make_node("Split", [whole["spikes"], split.input[1]], parts["spikes"], axis=axis),
        onnx.helper.make_node("Concat", parts["ref"], [whole["ref"]], axis=axis),
    ]
    renamed[spikes] = whole["ref"]
    return found


def _shape(path: str, info: onnx.ValueInfoProto) -> tuple[int, ...]:
    sizes = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in info.type.tensor_type.shape.dim)
    if sizes.count(-1) != 1:
        raise InternalError(f"neuron {path}: one dimension of its spikes must be the batch, in {sizes}")
    return sizes


def _info(like: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(like)
    copy.name = name
    return copy
