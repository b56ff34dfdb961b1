"""Weights of 16 bits: two planes of bytes, an image in two parts, and the reference's spikes, bit for bit."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import svitc
from support.generated import assert_loads
from support.quantized import published
from support.serialized import canonicalised, reload
from svitc.analysis.integer_range import integer_ranges
from svitc.codegen.module import program_source
from svitc.data.inputs import random_inputs
from svitc.ir import ops
from svitc.ir.program import Program
from svitc.ir.quantized_modules import EXACT, WIDE_BITS
from svitc.onnx.export import export
from svitc.onnx.int16_sums import beyond_int16
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan
from svitc.quantization.planes import split
from svitc.verification.exact_check import verify_exact

CASES = {
    "spikformer": canonicalised,
    "maxformer": lambda: canonicalised("maxformer"),  # reads membrane streams, bytes with a sign
    "events": lambda: published("sdt-dvs"),
}


@functools.cache
def float_program(name: str) -> Program:
    return CASES[name]()


@functools.cache
def wide(name: str) -> Program:
    program = float_program(name)
    layers = [str(n.target) for n in program.graph.nodes if ops.is_projection(program.module_of(n))]
    return quantize(program, dict.fromkeys(layers, WIDE_BITS))[0]


@pytest.mark.parametrize(("name", "target"), [("maxformer", "cpu"), ("events", "cpu"), ("maxformer", "openvino")])
def test_files_are_the_reference_and_it_is_the_float_network(name: str, target: str) -> None:
    exported = export(wide(name), target)
    original = float_program(name) if name == "events" else None
    verdict = verify_exact(wide(name), exported, random_inputs(wide(name), 2, 1, 0), original=original)
    assert verdict.passed, verdict.first_divergence
    assert beyond_int16(exported) == {}


@pytest.mark.parametrize("name", ["spikformer", "maxformer"])
def test_every_sum_is_exact_and_weights_have_all_the_bits_that_fit(name: str) -> None:
    ranges = integer_ranges(wide(name))
    for node in wide(name).graph.nodes:
        layer = wide(name).module_of(node)
        numbers = ranges.get(node.all_input_nodes[0]) if node.all_input_nodes else None
        if not ops.is_quantized(layer) or numbers is None:
            continue
        scale, integers = layer.scale.double(), layer.weight.flatten(1).long().abs()
        assert (torch.frexp(scale)[0] == 0.5).all()
        sums = integers.sum(1) * numbers.bound + layer.bias.double().abs() / (scale * numbers.unit)
        assert (sums < EXACT).all()
        if numbers.low == 0 and numbers.high == 1:
            assert (integers.amax(1) >= 2**13).all() and layer.weight.dtype == torch.int16


def test_a_layer_is_stored_as_two_planes_of_bytes() -> None:
    program = wide("spikformer")
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(export(program)).graph.initializer}
    highs = [name for name in arrays if name.endswith(".weight.high")]
    assert highs and all(arrays[name].dtype == np.int8 for name in highs)
    path = next(name.removesuffix(".weight.high") for name in highs if "fc1" in name)
    layer = program.module.get_submodule(path)
    high, low, base = split(layer.weight.flatten(1).T.numpy())
    assert (arrays[f"{path}.weight.high"] == high).all() and (arrays[f"{path}.weight"] == low).all()
    assert (base * high.astype(int) + low == layer.weight.flatten(1).T.numpy()).all()


def test_program_and_source_keep_the_weights(tmp_path) -> None:
    program = wide("spikformer")
    again = reload(program, tmp_path)
    assert program_source(again) == program_source(program) and "bits=16" in program_source(program)
    assert "int16 weights" in program_source(program)
    assert_loads(program, tmp_path)


def test_compiled_verified_and_replayed() -> None:
    done = svitc.compile(float_program("spikformer"), weights="int16", images=1, no_data="uniform")
    assert done.verdict.passed and done.verdict.quantization is not None
    assert done.report["weights"]["type"] == "int16" and 0.45 < done.report["memory"]["ratio"] < 0.8
    assert set(done.plan.bits.values()) == {WIDE_BITS} and "rounding" not in done.plan.provenance
    plan = Plan.from_json(done.plan.to_json())
    replayed = svitc.compile(float_program("spikformer"), plan=plan, images=1, no_data="uniform")
    assert (export(replayed.program), replayed.plan.bits) == (export(done.program), done.plan.bits)


def test_a_stream_is_verified() -> None:
    done = svitc.compile(float_program("spikformer"), weights="int16", images=1, no_data="uniform", streaming=True)
    assert done.verdict.passed
    assert any(t.name.endswith(".weight.high") for t in onnx.load_from_string(done.onnx).graph.initializer)
