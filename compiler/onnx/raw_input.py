"""Let a file take bytes, ``[N, H, W, C]`` as cameras give them, in place of normalized floats; and take that back.

    image -> Transpose -> Cast -> Add (which table of the channel) -> Gather -> the file as it was

What each byte becomes is looked up in a table, which every runtime does exactly; a runtime that scaled and normalized
by itself would be free to multiply where the reader of ``--data`` divides. Values keep their names but for the input's,
so that the file as it was comes back byte for byte.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from svitc.errors import InputError
from svitc.ir.outputs import INPUT
from svitc.onnx.model_info import file_of, read_apart

OWN = "raw_input/"  # what the names of all that is added begin with
NORMALIZED = f"{OWN}normalized"  # the value that the network reads


def with_raw_input(model: bytes, table: np.ndarray) -> bytes:
    """Return a file that takes uint8 ``[N, H, W, C]``; one that takes bytes already stays as it is.

    Args:
        model: bytes of a file that takes float32 ``[N, C, H, W]``.
        table: what each byte becomes in each channel, float32 ``[C, 256]``.
    """
    proto, tensors = read_apart(model)
    if takes_bytes(proto):
        return model
    graph, levels = proto.graph, table.shape[1]
    _rename(graph, INPUT, NORMALIZED)
    image = graph.input[0]
    channels_first = onnx.ValueInfoProto()
    channels_first.CopyFrom(image)
    batch, channels, *size = channels_first.type.tensor_type.shape.dim
    image.type.tensor_type.elem_type = TensorProto.UINT8
    del image.type.tensor_type.shape.dim[:]
    image.type.tensor_type.shape.dim.extend((batch, *size, channels))
    image.doc_string = _words(image)
    equal = bool((table == table[:1]).all())
    first = np.arange(0 if equal else len(table), dtype=np.int32) * levels
    nodes = [
        helper.make_node("Transpose", [INPUT], [f"{OWN}planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [f"{OWN}planes"], [f"{OWN}bytes"], to=TensorProto.INT32),
        helper.make_node("Add", [f"{OWN}bytes", f"{OWN}first"], [f"{OWN}entries"]),
        helper.make_node("Gather", [f"{OWN}table", f"{OWN}bytes" if equal else f"{OWN}entries"], [NORMALIZED], axis=0),
    ]
    kept = [node for node in nodes if not (equal and node.op_type == "Add")]
    for node in kept:
        node.name = node.output[0]
        kind = {"Transpose": TensorProto.UINT8, "Gather": TensorProto.FLOAT}.get(node.op_type, TensorProto.INT32)
        value = graph.value_info.add()
        value.CopyFrom(channels_first)
        value.name = node.output[0]
        if node.output[0] != NORMALIZED:
            value.ClearField("doc_string")
        value.type.tensor_type.elem_type = kind
    kept += graph.node
    del graph.node[:]
    graph.node.extend(kept)
    rows = table[:1] if equal else table
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(rows).reshape(-1), f"{OWN}table"))
    if not equal:
        graph.initializer.append(numpy_helper.from_array(first.reshape(-1, 1, 1), f"{OWN}first"))
    return file_of(proto, tensors)


def without_raw_input(model: bytes) -> bytes:
    """Return the file that ``with_raw_input`` was given; a file that takes floats stays as it is.

    Args:
        model: bytes of a file.

    Raises:
        InputError: it takes bytes, but not as svitc writes it.
    """
    proto, tensors = read_apart(model)
    if not takes_bytes(proto):
        return model
    graph = proto.graph
    infos = {info.name: info for info in graph.value_info}
    if NORMALIZED not in infos or graph.input[0].name != INPUT:
        raise InputError("the file takes bytes, but not as svitc writes it", hint="Compile it again.")
    graph.input[0].CopyFrom(infos[NORMALIZED])
    graph.input[0].name = INPUT
    for values in (graph.node, graph.initializer, graph.value_info):
        kept = [value for value in values if not value.name.startswith(OWN)]
        del values[:]
        values.extend(kept)
    _rename(graph, NORMALIZED, INPUT)
    return file_of(proto, tensors)


def takes_bytes(model: onnx.ModelProto) -> bool:
    """Return whether a file takes the bytes of images."""
    return bool(model.graph.input) and model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def normalization_of(model: bytes) -> bytes:
    """Return the part of a file that turns bytes into what the network reads, as a file of its own."""
    proto, large = read_apart(model)
    graph = proto.graph
    output = next(info for info in graph.value_info if info.name == NORMALIZED)
    nodes = [node for node in graph.node if node.name.startswith(OWN)]
    tensors = [tensor for tensor in graph.initializer if tensor.name.startswith(OWN)]
    part = helper.make_graph(nodes, graph.name, [graph.input[0]], [output], tensors)
    opsets = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    return file_of(helper.make_model(part, ir_version=proto.ir_version, opset_imports=opsets), large)


def _words(image: onnx.ValueInfoProto) -> str:
    """Return what the input is."""
    sizes = [dim.dim_param or str(dim.dim_value) for dim in image.type.tensor_type.shape.dim]
    return f"Images [{', '.join(sizes)}], uint8, as they are: the file scales and normalizes them itself."


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let all nodes that read one value read another."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


__all__ = ["NORMALIZED", "normalization_of", "takes_bytes", "with_raw_input", "without_raw_input"]
