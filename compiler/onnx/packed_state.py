"""Pack all states of a streaming file into one tensor ``[N, k]``, for callers that keep one buffer; and take it apart.

    state -> Split -> Reshape each -> the file as it was -> Reshape each -> Concat -> next

Values keep their names, so that the file as it was comes back byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Collection, MutableSequence
from typing import TypeVar

import onnx
from onnx import TensorProto, helper

from svitc.errors import InputError
from svitc.onnx.in_place import reusable_in
from svitc.onnx.model_info import file_of, read_apart
from svitc.onnx.states import PACKED, PACKED_AFTER, STATES_KEY, FileState, Part, states_of

OWN = "packed_state/"  # what the names of all that is added begin with
Message = TypeVar("Message", onnx.ValueInfoProto, onnx.NodeProto, onnx.TensorProto)


def pack_states(model: bytes) -> bytes:
    """Return a streaming file with one state, in which all of its states lie one behind the other.

    A file without any state, or with a packed one, stays as it is.

    Args:
        model: bytes of a streaming file.

    Raises:
        InputError: the file is no streaming file.
    """
    proto, tensors = read_apart(model)
    states = states_of(proto)
    if states is None:
        raise InputError("the file is no streaming file", hint="svitc compile --streaming writes one.")
    if not states or states[0].parts:
        return model
    graph, parts, offset = proto.graph, [], 0
    for state in states:
        parts.append(Part(state.input, state.shape, offset, state.initial))
        offset += parts[-1].size
    before, after = [state.input for state in states], [state.output for state in states]
    batch = next(value for value in graph.input if value.name == before[0]).type.tensor_type.shape.dim[0]
    nodes = [*_unpacking(graph, parts), *graph.node, *_packing(graph, after)]
    del graph.node[:]
    graph.node.extend(nodes)
    for values, names, name in ((graph.input, before, PACKED), (graph.output, after, PACKED_AFTER)):
        graph.value_info.extend(_taken(values, names))
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, offset])
        info.type.tensor_type.shape.dim[0].CopyFrom(batch)
        values.append(info)
    shape, in_place = (states[0].shape[0], offset), PACKED in reusable_in(proto)
    _set_states(proto, [FileState(PACKED, PACKED_AFTER, shape, 0.0, tuple(parts), in_place).to_json()])
    return file_of(proto, tensors)


def unpack_states(model: bytes) -> bytes:
    """Return the file that ``pack_states`` was given; a file without a packed state stays as it is.

    Args:
        model: bytes of a streaming file.

    Raises:
        InputError: the file has a packed state, but not as svitc writes one.
    """
    proto, tensors = read_apart(model)
    states = states_of(proto)
    if not states or not states[0].parts:
        return model
    graph, parts = proto.graph, states[0].parts
    before, after = _ends(proto, states[0])
    _remove(graph.node, [node.name for node in graph.node if node.name.startswith(OWN)])
    _remove(graph.initializer, [tensor.name for tensor in graph.initializer if tensor.name.startswith(OWN)])
    for values, names, name in ((graph.input, before, PACKED), (graph.output, after, PACKED_AFTER)):
        _remove(values, [name])
        values.extend(_taken(graph.value_info, names))
    in_place = reusable_in(proto)
    _set_states(
        proto,
        [
            FileState(part.name, output, part.shape, part.initial, in_place=part.name in in_place).to_json()
            for part, output in zip(parts, after, strict=True)
        ],
    )
    return file_of(proto, tensors)


def with_parts_as_outputs(model: bytes) -> tuple[bytes, list[str]]:
    """Return a file with a packed state whose parts are outputs as well, before a step and after it.

    Args:
        model: bytes of a file with a packed state.

    Returns:
        the file, and the names of its parts after a step; before it they are called as the metadata say.

    Raises:
        InputError: the packed state is not as svitc writes one.
    """
    proto, tensors = read_apart(model)
    before, after = _ends(proto, (states_of(proto) or [])[0])
    infos = {info.name: info for info in proto.graph.value_info}
    proto.graph.output.extend(infos[name] for name in (*before, *after))
    return file_of(proto, tensors), after


def _ends(proto: onnx.ModelProto, state: FileState) -> tuple[list[str], list[str]]:
    """Return the names of the parts of a packed state before a step, and after it.

    Raises:
        InputError: the packed state is not as svitc writes one.
    """
    nodes = {node.name: node for node in proto.graph.node if node.name.startswith(OWN)}
    before = [part.name for part in state.parts]
    after = [nodes[name].input[0] for i in range(len(before)) if (name := f"{OWN}flat_{i}") in nodes]
    infos = {info.name for info in proto.graph.value_info}
    if len(after) != len(before) or not infos.issuperset(before + after):
        raise InputError("the file's packed state is not as svitc writes one", hint="Compile it again.")
    return before, after


def _unpacking(graph: onnx.GraphProto, parts: list[Part]) -> list[onnx.NodeProto]:
    """Return the nodes that take the packed state apart; their constants are added to the graph."""
    flat = [f"{OWN}part_{i}" for i in range(len(parts))]
    nodes = [helper.make_node("Split", [PACKED, _constant(graph, "sizes", [p.size for p in parts])], flat, axis=1)]
    for i, part in enumerate(parts):
        shape = _constant(graph, f"shape_{i}", [0, *(int(size) for size in part.shape[1:])])  # 0: as it is
        nodes.append(helper.make_node("Reshape", [flat[i], shape], [part.name], name=f"{OWN}part_{i}"))
    nodes[0].name = f"{OWN}split"
    return nodes


def _packing(graph: onnx.GraphProto, after: list[str]) -> list[onnx.NodeProto]:
    """Return the nodes that put the states after a step behind one another."""
    shape, flat = _constant(graph, "flat", [0, -1]), [f"{OWN}flat_{i}" for i in range(len(after))]
    nodes = [
        helper.make_node("Reshape", [value, shape], [name], name=name) for value, name in zip(after, flat, strict=True)
    ]
    return [*nodes, helper.make_node("Concat", flat, [PACKED_AFTER], name=f"{OWN}concat", axis=1)]


def _constant(graph: onnx.GraphProto, name: str, values: list[int]) -> str:
    """Add a vector of integers to a graph, and return its name."""
    graph.initializer.append(helper.make_tensor(OWN + name, TensorProto.INT64, [len(values)], values))
    return OWN + name


def _taken(values: MutableSequence[onnx.ValueInfoProto], names: list[str]) -> list[onnx.ValueInfoProto]:
    """Remove values from a repeated field, and return them in the order of their names."""
    taken = {}
    for info in values:
        if info.name in names:
            taken[info.name] = onnx.ValueInfoProto()
            taken[info.name].CopyFrom(info)
    _remove(values, taken)
    return [taken[name] for name in names]


def _remove(values: MutableSequence[Message], names: Collection[str]) -> None:
    """Remove all messages of these names from a repeated field."""
    kept = [value for value in values if value.name not in names]
    del values[:]
    values.extend(kept)


def _set_states(proto: onnx.ModelProto, entries: list[dict[str, object]]) -> None:
    """Replace the states in the metadata."""
    next(entry for entry in proto.metadata_props if entry.key == STATES_KEY).value = json.dumps(entries)


__all__ = ["PACKED", "PACKED_AFTER", "pack_states", "unpack_states", "with_parts_as_outputs"]
