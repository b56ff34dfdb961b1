"""Write a file for batches of one size: every dimension is a number, as some runtimes need.

A file that svitc lowers leaves the batch open, under the name ``N``. Most of its shapes hold the batch times the time
steps, such as ``4*N``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from svitc.errors import InternalError, UsageError
from svitc.onnx.model_info import file_of, read_apart

BATCH = "N"  # layout.shape


def check_batch(size: int | None) -> None:
    """Check the size of the batches that a file is written for.

    Raises:
        UsageError: it is not a positive number.
    """
    if size is not None and size < 1:
        raise UsageError(f"a static batch of {size} holds no image", hint="Give a positive number, such as 1.")


def with_static_batch(model: bytes, size: int) -> bytes:
    """Return a file that takes batches of exactly ``size`` images, with the same weights, nodes and names.

    A Shape whose input is known becomes a constant, and a Reshape to a shape that its input has already is left out:
    they are there to order the steps of a dynamic batch (``UnrolledBuilder.run_layer_by_layer``).

    Args:
        model: bytes of a file whose batch is open.
        size: number of images.
    """
    proto, tensors = read_apart(model)
    for info in _values(proto):
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_value = _number(dim.dim_param, size)  # a oneof: this clears the name
    _leave_out_reshapes(proto.graph)
    return file_of(proto, tensors)


def static_batch(model: onnx.ModelProto) -> int | None:
    """Return the number of images that a file's batches have; None where it is open."""
    stored = {tensor.name for tensor in model.graph.initializer}
    dims = next(value for value in model.graph.input if value.name not in stored).type.tensor_type.shape.dim
    batch = dims[len(dims) - 4]  # [N, C, H, W] or [T, N, C, H, W]
    return batch.dim_value if batch.HasField("dim_value") else None


def _values(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """Yield the types of all values of a file, those of its functions as well."""
    yield from (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    for function in proto.functions:
        yield from function.value_info


def _number(name: str, size: int) -> int:
    """Return a dimension: ``N`` or, for example, ``4*N``."""
    factor, _, batch = name.rpartition("*")
    if batch != BATCH:
        raise InternalError(f"dimension {name!r} is not a multiple of the batch")
    return int(factor or 1) * size


def _leave_out_reshapes(graph: onnx.GraphProto) -> None:
    """Leave out the shapes that are known, and what only gives a value the shape that it has."""
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.value_info, *graph.output)
    }
    outputs = {info.name for info in graph.output}
    known = {node.output[0]: shapes[node.input[0]] for node in graph.node if node.op_type == "Shape"}
    renamed: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        moves_nothing = (
            node.op_type == "Reshape"
            and known.get(node.input[1]) == shapes[node.input[0]]
            and node.output[0] not in outputs
        )
        if moves_nothing:
            renamed[node.output[0]] = node.input[0]
        elif node.op_type != "Shape":
            nodes.append(node)
    read = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(np.array(known[name], np.int64), name) for name in known if name in read]
    gone = {*renamed, *known}
    infos = [info for info in graph.value_info if info.name not in gone]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.value_info.extend(infos)
    graph.initializer.extend(constants)


__all__ = ["check_batch", "static_batch", "with_static_batch"]
