"""Runtimes: each runs a file as every other does, and says what is wrong where it does not."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from support.quantized import case_of
from svitc.data.inputs import random_inputs
from svitc.errors import RuntimeFailure, UsageError
from svitc.onnx.export import export
from svitc.runtimes import RUNTIMES, onnx_runtime_web, runtime_of
from svitc.runtimes.openvino_cpu import EXACT, compiled
from svitc.verification.exact_check import verify_exact


def model(*nodes: onnx.NodeProto) -> bytes:
    """Return the file of a graph that reads ``x``, floats, and ``counts``, bytes, and writes ``a`` and ``b``."""
    inputs = [("x", TensorProto.FLOAT, ["N", 2, 3]), ("counts", TensorProto.UINT8, ["N", 3])]
    outputs = [("a", TensorProto.FLOAT, ["N", 2, 3]), ("b", TensorProto.INT32, ["N", 2])]
    weights = numpy_helper.from_array(np.array([[1, -2], [3, -4], [5, 127]], np.int8), "w")
    places = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *places, [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


FILE = model(helper.make_node("Relu", ["x"], ["a"]), helper.make_node("MatMulInteger", ["counts", "w"], ["b"]))
FEED = {
    "x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 2, 3),
    "counts": np.array([[0, 1, 255], [7, 200, 3]], np.uint8),
}


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    found = RUNTIMES[request.param]
    if (absent := found.missing()) is not None:
        pytest.skip(absent[0])
    return found


def test_a_session_for_a_few_runs_computes_the_same(runtime):
    session, quick = runtime.open(FILE), runtime.open(FILE, few_runs=True)
    for value, other in zip(session.run(None, FEED), quick.run(None, FEED), strict=True):
        assert np.array_equal(value, other)


def test_only_for_a_few_runs_onnx_runtime_plans_no_memory():
    """Planning takes time in the square of the number of time steps."""
    for few in (False, True):
        session = RUNTIMES["onnxruntime"].open(FILE, few_runs=few).session
        assert session.get_session_options().enable_mem_reuse == (not few)


def test_named_inputs_to_named_outputs(runtime):
    session = runtime.open(FILE, threads=1)
    assert (session.input_names, session.output_names) == (["x", "counts"], ["a", "b"])
    for names in (None, ["a", "b"], ["b", "a"]):
        values = dict(zip(names or ["a", "b"], session.run(names, FEED), strict=True))
        assert np.array_equal(values["a"], np.maximum(FEED["x"], 0)) and values["a"].dtype == np.float32
        assert np.array_equal(values["b"], [[1278, 32381], [622, -433]]) and values["b"].dtype == np.int32
    first = session.run(["b"], FEED)[0].copy()
    session.run(["b"], FEED | {"counts": FEED["counts"][:1]})
    assert np.array_equal(session.run(["b"], FEED)[0], first), "a smaller batch came between"


def test_what_cannot_be_loaded_or_run_is_told(runtime):
    broken = model(helper.make_node("NoSuch", ["x"], ["a"]), helper.make_node("MatMulInteger", ["counts", "w"], ["b"]))
    with pytest.raises(RuntimeFailure, match="cannot (load|run)") as caught:
        runtime.open(broken).run(None, FEED)
    assert runtime.version() in caught.value.message and "\n" not in caught.value.message
    with pytest.raises(RuntimeFailure, match="cannot run"):
        runtime.open(FILE).run(None, FEED | {"counts": np.zeros((2, 4), np.uint8)})


def test_a_quantized_network_is_exact_and_a_wrong_one_is_not(runtime):
    program = case_of("spikformer")
    exported = export(program)
    verdict = verify_exact(program, exported, random_inputs(program, 1, 1, 0), runtime=runtime)
    assert verdict.passed and verdict.total("flips_within_rounding") == 0
    assert verdict.to_json()["runtime"]["name"] == runtime.name
    wrong = program.copy()
    layer = next(module for module in wrong.module.modules() if getattr(module, "scale", None) is not None)
    with torch.no_grad():
        layer.scale.mul_(2)
    verdict = verify_exact(wrong, exported, random_inputs(program, 1, 1, 0), runtime=runtime)
    assert not verdict.passed


def test_a_file_for_batches_of_one_size(runtime):
    session = runtime.open(FILE, threads=1, batch=2)
    assert np.array_equal(session.run(["b"], FEED)[0], [[1278, 32381], [622, -433]])


def test_openvino_keeps_float32_everywhere():
    """Its defaults round to bfloat16 where the processor has it, and quantize activations."""
    if (absent := RUNTIMES["openvino"].missing()) is not None:
        pytest.skip(absent[0])
    assert RUNTIMES["openvino"].described()["settings"] == {"EXECUTION_MODE_HINT": "ACCURACY"}
    found = compiled(FILE, 1, EXACT)
    assert found.get_property("INFERENCE_PRECISION_HINT").to_string() in ("dynamic", "f32"), "as the file says"
    assert found.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


def test_what_is_missing_is_said_with_the_way_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="openvino is not installed") as caught:
        runtime_of("openvino")
    assert caught.value.hint == "pip install openvino"
    monkeypatch.setattr(onnx_runtime_web.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="Node.js is not installed"):
        RUNTIMES["onnxruntime-web"].open(FILE)
    monkeypatch.undo()
    if onnx_runtime_web.shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    monkeypatch.delenv("NODE_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="finds no package onnxruntime-web") as caught:
        runtime_of("onnxruntime-web")
    assert "npm install" in caught.value.hint
