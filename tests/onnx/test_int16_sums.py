"""The static check of integer products, and the ranges of a file's values that it rests on."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import svitc
from support.families import FAMILIES, IMAGE, NEURONS, spikformer, warm
from svitc import onnx as backend
from svitc.cli.views.verify import int16_line
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.onnx.int16_sums import beyond_int16
from svitc.onnx.value_ranges import value_ranges
from svitc.passes.pipelines import quantize
from svitc.verification.exact_check import verify_exact

MODELS = {
    "ILIF": lambda: spikformer(T=2, **NEURONS["ILIF"]),
    **{name: (lambda name=name: FAMILIES[name][0](T=2)) for name in ("qkformer-token", "maxformer")},
}


@functools.cache
def built(name: str) -> Program:
    torch.manual_seed(0)
    program = capture(warm(MODELS[name]()), svitc.InputSpec(IMAGE))
    run_canonical_passes(program)
    return quantize(program)[0]


@pytest.mark.parametrize("name", MODELS)
def test_every_value_lies_in_its_range(name):
    program = built(name)
    proto = onnx.inliner.inline_local_functions(onnx.load_from_string(export(program)))
    ranges = {value.name: found for value, found in value_ranges(ir.from_proto(proto)).items()}
    computed = [value for node in proto.graph.node for value in node.output]
    known = [value for value in computed if np.isfinite(ranges[value][:2]).all()]
    shown = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=value) for value in known if value not in shown)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options)
    x = 3 * random_inputs(program, 2, 2, 0)[0]
    values = session.run(known, {session.get_inputs()[0].name: x.numpy()})
    assert len(known) > len(computed) / 4
    for value, array in zip(known, values, strict=True):
        low, high, _ = ranges[value]
        assert array.size and low <= array.min() <= array.max() <= high, value
    products = [node for node in proto.graph.node if node.op_type == "MatMulInteger"]
    largest = {ranges[node.input[0]].high for node in products}
    assert largest == {"ILIF": {4, 8, 12}, "qkformer-token": {1, 2, 3, 4, 16}, "maxformer": {1, 2, 64, 255}}[name]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", MODELS)
def test_no_integer_product_of_a_written_file_saturates(name, target):
    assert beyond_int16(export(built(name), target)) == {}


def test_weights_that_saturate_are_found_without_running_anything(capsys):
    program = built("maxformer")
    model = onnx.load_from_string(export(program))
    ranges = {value.name: found for value, found in value_ranges(ir.from_proto(model)).items()}
    product = next(n for n in model.graph.node if n.op_type == "MatMulInteger" and ranges[n.input[0]].high == 255)
    weight = next(t for t in model.graph.initializer if t.name == product.input[1])
    values = numpy_helper.to_array(weight).copy()
    values[2:4, 5] = (-65, -64)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    wrong = model.SerializeToString()
    found = beyond_int16(wrong)
    assert found[product.name] == "255 x 129 is 32895, beyond 32767" and len(found) == 2, "one for each step"
    verdict = verify_exact(program, wrong, [])
    assert verdict.to_json()["beyond_int16"] == found
    int16_line(verdict.to_json())
    assert f"2 integer products could saturate there, first {product.name}" in " ".join(capsys.readouterr().out.split())
    values[2:4, 5] = (-65, 64)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    assert beyond_int16(model.SerializeToString()) == {}, "opposite signs do not add up"


def product(inputs: int, weights: np.ndarray | int, op_type: str = "MatMulInteger", behind: str = "") -> bytes:
    """A file of one product; integers that are given as a type are computed.

    A float product's inputs may be pooled or rearranged by an operator of the type ``behind`` first.
    """
    constant = isinstance(weights, np.ndarray)
    initializers = [numpy_helper.from_array(weights, "w")] if constant else []
    infos = [helper.make_tensor_value_info("x", inputs, None)]
    infos += [] if constant else [helper.make_tensor_value_info("w", weights, None)]
    nodes, operands = [], ["x", "w"]
    if op_type != "MatMulInteger":
        initializers.append(numpy_helper.from_array(np.float32(1), "one"))
        nodes = [helper.make_node("DequantizeLinear", [name, "one"], [f"{name}.real"], name) for name in operands]
        operands = [f"{name}.real" for name in operands]
    if behind:
        window = {"kernel_shape": [1, 1]} if behind == "MaxPool" else {}
        nodes.append(helper.make_node(behind, operands[:1], ["moved"], behind, **window))
        operands[0] = "moved"
    nodes.append(helper.make_node(op_type, operands, ["y"], "product"))
    y = helper.make_tensor_value_info("y", TensorProto.INT32 if op_type == "MatMulInteger" else TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", infos, [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


SMALL = np.array([[100], [28], [0], [-128]], np.int8)  # 255 x 128 is 32,640
LARGE = np.array([[100], [29], [0], [-128]], np.int8)


@pytest.mark.parametrize(
    ("inputs", "weights", "op_type", "saturates"),
    [
        (TensorProto.UINT8, SMALL, "MatMulInteger", False),
        (TensorProto.UINT8, LARGE, "MatMulInteger", True),
        (TensorProto.INT8, LARGE, "MatMulInteger", False),  # kernels for these add in int32
        (TensorProto.UINT8, TensorProto.UINT8, "MatMulInteger", False),
        (TensorProto.UINT8, TensorProto.INT8, "MatMulInteger", True),  # any weights
        (TensorProto.UINT8, SMALL, "MatMul", False),
        (TensorProto.UINT8, LARGE, "MatMul", True),  # fused by runtimes
        (TensorProto.UINT8, LARGE.reshape(1, 4, 1, 1), "Conv", True),
        (TensorProto.UINT8, LARGE.reshape(1, 1, 2, 2), "Conv", True),
        (TensorProto.UINT8, SMALL.reshape(1, 4, 1, 1), "Conv", False),
    ],
)
def test_one_product(inputs, weights, op_type, saturates):
    assert bool(beyond_int16(product(inputs, weights, op_type))) == saturates


@pytest.mark.parametrize("operator", ["MaxPool", "Transpose", "Identity"])
def test_bytes_may_be_pooled_and_rearranged_before_the_product(operator):
    found = beyond_int16(product(TensorProto.UINT8, LARGE.reshape(1, 4, 1, 1), "Conv", operator))
    assert list(found) == ["product"]


def test_files_of_floats_have_nothing_to_saturate():
    torch.manual_seed(0)
    program = capture(warm(spikformer(T=2)), svitc.InputSpec(IMAGE))
    run_canonical_passes(program)
    assert beyond_int16(export(program)) == {} and backend.node_count(export(program)) > 0
