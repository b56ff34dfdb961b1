"""The size of an ONNX model: bytes of its weights, number of its nodes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.inliner
import onnx_ir as ir

from svitc.errors import InputError
from svitc.onnx.tensors_apart import Piece, put_back, structure_of, take_out

GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)

AnyModel = ir.Model | onnx.ModelProto | bytes | str | os.PathLike


def weight_bytes(model: AnyModel) -> int:
    """Return the bytes of all constants as stored in the file: weights, scalars and shapes.

    Args:
        model: a model, the bytes of a file or its path.

    Raises:
        InputError: no ONNX model can be read from the bytes or the path.
    """
    proto = read_structure(model)
    nodes = (node for part in (proto.graph, *proto.functions) for node in part.node)
    constants = (attribute for node in nodes if node.op_type == "Constant" for attribute in node.attribute)
    tensors = [a.t for a in constants if a.type == onnx.AttributeProto.TENSOR]
    # only tensors become objects, not nodes, of which a file that is unrolled over many time steps has thousands
    return sum(ir.from_proto(tensor).nbytes for tensor in (*proto.graph.initializer, *tensors))


def node_count(model: AnyModel, inlined: bool = True) -> int:
    """Return the number of nodes.

    Args:
        model: a model, the bytes of a file or its path.
        inlined: count the nodes in the bodies of called functions instead of the calls.

    Raises:
        InputError: no ONNX model can be read from the bytes or the path.
    """
    proto = read_structure(model)
    return len((without_functions(proto) if inlined else proto).graph.node)


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its functions inlined, and without the domains that only they had."""
    inlined = onnx.inliner.inline_local_functions(model)
    used = {node.domain for node in inlined.graph.node}
    kept = [each for each in inlined.opset_import if each.domain in used or each.domain in ("", "ai.onnx")]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def metadata_of(node: onnx.NodeProto) -> dict[str, str]:
    """Return the metadata of a node."""
    return {entry.key: entry.value for entry in node.metadata_props}


@contextlib.contextmanager
def reading_metadata(key: str) -> Iterator[None]:
    """Read a value of a file's metadata in the body of a ``with`` statement.

    Raises:
        InputError: it is not what svitc writes there.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(
            f"the file's metadata are damaged: {key} does not read as svitc writes it ({error})", hint="Compile again."
        ) from error


def read_proto(model: AnyModel, name: object = "the given bytes") -> onnx.ModelProto:
    """Return the model as a protobuf message.

    Args:
        model: the model, its bytes or its path.
        name: what a message calls bytes.

    Raises:
        InputError: no ONNX model can be read from the bytes or the path.
    """
    if isinstance(model, ir.Model):
        return ir.to_proto(model)
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        return onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(Path(model))
    except Exception as error:  # protobuf's errors have no common class across its implementations
        place = name if isinstance(model, bytes) else model
        raise InputError(f"cannot read an ONNX model from {place}: {error}") from error


def read_apart(model: AnyModel) -> tuple[onnx.ModelProto, list[Piece]]:
    """Return the model as a protobuf message with marks in place of its large tensors, and these (tensors_apart.py).

    Args:
        model: the model, its bytes or its path.

    Raises:
        InputError: no ONNX model can be read from the bytes or the path.
    """
    if isinstance(model, ir.Model):
        return structure_of(model)
    if not isinstance(model, bytes):
        return read_proto(model), []
    try:
        structure, tensors = take_out(model)
    except ValueError:
        return read_proto(model), []  # which says what is wrong
    return read_proto(structure), tensors


def read_structure(model: AnyModel) -> onnx.ModelProto:
    """Return the model as a protobuf message for all uses but the values of its large tensors; see ``read_apart``."""
    return read_apart(model)[0]


def file_of(proto: onnx.ModelProto, tensors: list[Piece]) -> bytes:
    """Return the bytes of a file that was read by ``read_apart``, and perhaps changed."""
    return put_back(proto.SerializeToString(deterministic=True), tensors)


def check_whole(exported: bytes, name: object) -> None:
    """Check that an ONNX file holds its weights itself: a runtime would read those in other files from anywhere.

    Raises:
        InputError: it does not, or is no ONNX model.
    """
    graphs, nodes = [(model := read_proto(exported, name)).graph], [node for f in model.functions for node in f.node]
    tensors: list[onnx.TensorProto] = []
    while graphs or nodes:
        for graph in graphs:
            tensors += [*graph.initializer, *(part for s in graph.sparse_initializer for part in (s.values, s.indices))]
            nodes += graph.node
        attributes = [attribute for node in nodes for attribute in node.attribute]
        graphs, nodes = [graph for a in attributes for graph in (a.g, *a.graphs) if a.type in GRAPHS], []
        tensors += [tensor for a in attributes for tensor in (a.t, *a.tensors)]
    outside = next((each for each in tensors if each.data_location == onnx.TensorProto.EXTERNAL), None)
    if outside is not None:
        raise InputError(
            f"{name} keeps weights in other files: {outside.name} is in "
            f"{next((entry.value for entry in outside.external_data if entry.key == 'location'), 'none')!r}",
            hint="Files that svitc writes are whole. Compile the model again.",
        )
