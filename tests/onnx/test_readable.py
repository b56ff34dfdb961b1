"""Files say all that a runtime may ask: a type and a shape of every value, nothing unused, the lowest opset."""

from __future__ import annotations

import functools
import subprocess
import sys

import onnx
import pytest

from support.families import FAMILIES
from support.measured import family
from svitc.analysis.exactness import narrowable
from svitc.ir.program import Program
from svitc.onnx import split_neurons, split_unrolled_neurons
from svitc.onnx.export import export
from svitc.passes import Prune, RoundWeights
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan

OPSETS = {"fp32": 18, "int8": 18, "int4": 21, "int2": 25}
BITS = {"int8": 8, "int4": 4, "int2": 2}
# 4 and 2 bits differ in how weights are widened alone
CASES = [(name, weights) for name in FAMILIES for weights in ("fp32", "int8")]
CASES += [("spikformer", "int4"), ("spikformer", "int2")]
LOAD = """
import sys, onnxruntime
for path in sys.argv[1:]:
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
"""


@functools.cache
def typed(name: str, weights: str) -> Program:
    """A family with weights of one type; not to be changed."""
    program = family(name).copy()
    Prune(Plan({}))(program)
    if weights == "fp32":
        return program
    bits = dict.fromkeys((layer for layer, why in narrowable(quantize(program)[0]).items() if not why), BITS[weights])
    RoundWeights(bits)(program)
    return quantize(program, bits)[0]


@functools.cache
def file_of(name: str, weights: str, target: str = "cpu") -> bytes:
    return export(typed(name, weights), target)


def sizes(info: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]


@pytest.mark.parametrize(("name", "weights"), CASES)
def test_every_value_has_a_type_and_a_shape_that_are_right(name, weights):
    for target in ("cpu", "openvino") if weights == "int8" else ("cpu",):
        model = onnx.load_from_string(file_of(name, weights, target))
        onnx.checker.check_model(model, full_check=True)
        infos = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
        for name_ in (name_ for node in model.graph.node for name_ in node.output):
            assert infos[name_].type.tensor_type.elem_type and all(sizes(infos[name_])), name_
        # what follows from the inputs alone: strict inference finds all values, and the same ranks and numbers
        del model.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True, data_prop=True)
        found = {info.name: info for info in inferred.graph.value_info}
        for node in model.graph.node:
            for name_ in set(node.output) & found.keys():
                ours, theirs = sizes(infos[name_]), sizes(found[name_])
                assert found[name_].type.tensor_type.elem_type == infos[name_].type.tensor_type.elem_type, name_
                assert len(ours) == len(theirs), name_
                assert all(a == b for a, b in zip(ours, theirs, strict=True) if isinstance(b, int) and b), name_


@pytest.mark.parametrize("weights", OPSETS)
def test_the_opset_is_the_lowest(weights):
    model = onnx.load_from_string(file_of("spikformer", weights))
    assert [each.version for each in model.opset_import] == [OPSETS[weights]]


def test_no_session_warns(tmp_path):
    """Not of unused initializers, nor of shapes that differ: in files, and where verification cuts them."""
    paths = []
    for name, weights in CASES:
        data = file_of(name, weights)
        cut, _ = split_neurons(data) if weights == "fp32" else split_unrolled_neurons(data)
        for kind, content in (("whole", data), ("cut", cut)):
            paths.append(tmp_path / f"{name}-{weights}-{kind}.onnx")
            paths[-1].write_bytes(content)
    done = subprocess.run([sys.executable, "-c", LOAD, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr[:2000]
