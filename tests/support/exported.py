"""What tests of exported files share: spikes in ONNX Runtime, and nodes for which its CUDA provider has no kernel.

cuda_kernels.json has what ONNX Runtime's operator table says of the operators that a file of ours holds or might,
read off docs/OperatorKernels.md, section "Operators implemented by CUDAExecutionProvider", at the commit named there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import torch
from onnx import TensorProto

from svitc import onnx as backend

KERNELS = json.loads((Path(__file__).parent / "cuda_kernels.json").read_text())["kernels"]
KEPT = ("QuantizeLinear", "DequantizeLinear")  # not computed at load even where all inputs are constants


def tapped(exported: bytes) -> tuple[bytes, list[backend.SplitUnrolledNeuron]]:
    """The file with every neuron's spikes as outputs, and the neurons."""
    _, cuts = backend.split_unrolled_neurons(exported)
    model = onnx.load_from_string(exported)
    for name in (name for each in cuts for name in each.spikes):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    return model.SerializeToString(), cuts


def spikes_of(exported: bytes, x: torch.Tensor, level) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every neuron's spikes and the logits of a whole run, none of it fed by the reference."""
    model, cuts = tapped(exported)
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options)
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(names, {backend.INPUT: x.numpy()}), strict=True))
    return {each.path: each.array_of(got) for each in cuts}, got[backend.OUTPUT]


def missing(model: bytes) -> list[str]:
    """Nodes that the device would not run: ``name: operator(inputs) -> outputs``, functions inlined."""
    proto = onnx.inliner.inline_local_functions(onnx.load_from_string(model))
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    opset = next(each.version for each in proto.opset_import if each.domain == "")
    graph = proto.graph
    types = {i.name: i.type.tensor_type.elem_type for i in (*graph.input, *graph.value_info, *graph.output)}
    types |= {t.name: t.data_type for t in graph.initializer}
    constant = {t.name for t in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in KEPT and all(name in constant for name in node.input if name):
            constant.update(node.output)  # ONNX Runtime computes it when it loads the file
        elif node.domain or not any(_matches(node, opset, types, row) for row in KERNELS.get(node.op_type, ())):
            shown = [", ".join(_type(types[n]) for n in names if n) for names in (node.input, node.output)]
            found.append(f"{node.name}: {node.op_type}({shown[0]}) -> {shown[1]}")
    return found


def _matches(node: onnx.NodeProto, opset: int, types: dict[str, int], row: dict[str, str]) -> bool:
    """As ONNX Runtime matches kernels: without a last version, only the very version it was registered for."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    first, _, last = row["opset"].rstrip("+").partition("-")
    if not int(first) <= schema.since_version <= int(last or first):
        return False
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for i, name in enumerate(names):
            formal = formals[min(i, len(formals) - 1)]  # the last may stand for many
            allowed = row.get(formal.type_str, row.get(formal.name))
            if name and allowed is not None and _type(types[name]) not in allowed.split():
                return False
    return True


def _type(element: int) -> str:
    return TensorProto.DataType.Name(element).lower()
