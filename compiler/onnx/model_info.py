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

AnyModel = ir.Model | onnx.ModelProto | bytes | str | os.PathLike


def weight_bytes(model: AnyModel) -> int:
    """Return the bytes of all constants as stored in the file: weights, scalars and shapes.

    Args:
        model: a model, the bytes of a file or its path.

    Raises:
        InputError: no ONNX model can be read from the bytes or the path.
    """
    if not isinstance(model, ir.Model):
        model = ir.from_proto(read_proto(model))
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    tensors = [v.const_value for g in graphs for v in g.initializers.values()]
    stored = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    constants = (a for g in graphs for n in g if n.op_type == "Constant" for a in n.attributes.values())
    return stored + sum(a.value.nbytes for a in constants if a.type == ir.AttributeType.TENSOR)


def node_count(model: AnyModel, inlined: bool = True) -> int:
    """Return the number of nodes.

    Args:
        model: a model, the bytes of a file or its path.
        inlined: count the nodes in the bodies of called functions instead of the calls.

    Raises:
        InputError: no ONNX model can be read from the bytes or the path.
    """
    proto = read_proto(model)
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


def read_proto(model: AnyModel) -> onnx.ModelProto:
    """Return the model as a protobuf message.

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
        name = "the given bytes" if isinstance(model, bytes) else model
        raise InputError(f"cannot read an ONNX model from {name}: {error}") from error
