"""The integer lowering: on every family, with every neuron, ONNX Runtime's spikes are the reference's, bit for bit."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import svitc
from support.exported import spikes_of
from support.families import FAMILIES, IMAGE, NEURONS, sdt, spikformer, warm
from svitc import onnx as backend
from svitc.analysis.exactness import inexact
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.passes.lowering.average_steps import averaged
from svitc.passes.pipelines import exportable_program, quantize
from svitc.verification.exact_check import verify_exact
from svitc.verification.recorder import Recorder


def quantized(model, shape):
    program = capture(model, svitc.InputSpec(shape))
    run_canonical_passes(program)
    return quantize(program)[0]


@functools.cache
def built(name: str, copy: int = 0) -> Program:
    """Return a quantized family, built anew for each ``copy``; not to be changed."""
    torch.manual_seed(0)
    factory, shape = FAMILIES[name]
    return quantized(warm(factory(T=2), shape), shape)


@pytest.mark.parametrize("name", FAMILIES)
def test_spikes_are_the_references_bit_for_bit(name):
    program = built(name)
    exported = export(program)
    joined = exportable_program(program)
    soft = inexact(joined)
    for batch, level in (
        (1, ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        (3, ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ):
        x = random_inputs(program, batch, batch, seed=batch)[0]
        reference, logits = Recorder.record(joined, x)
        got, out = spikes_of(exported, x, level)
        assert got.keys() == reference.spikes.keys()
        for path, want in reference.spikes.items():
            if path not in soft:
                assert np.array_equal(got[path], want.numpy()), path
        assert sum(float(s.sum()) for s in reference.spikes.values()) > 1000, "a silent network proves nothing"
        assert torch.equal(averaged(program)(x), logits), "joining layers changes nothing"
        assert np.allclose(out, logits.numpy(), rtol=1e-5, atol=1e-6)
    exact = [path for path in reference.spikes if path not in soft]
    assert len(exact) >= len(reference.spikes) - (1 if name == "sdt" else 8 if "maxformer" in name else 0)


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("steps", [1, 4])
def test_every_neuron(kind, steps):
    torch.manual_seed(0)
    program = quantized(warm(spikformer(T=steps, **NEURONS[kind]), IMAGE), IMAGE)
    verdict = verify_exact(program, export(program), random_inputs(program, 3, 2, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0, verdict.to_json()
    assert verdict.total("firing") > 1000


def test_a_wrong_weight_is_found_and_named():
    program = built("spikformer")
    model = onnx.load_from_string(export(program))
    weight = next(t for t in model.graph.initializer if t.name == "blocks.0.mlp.fc1.0.weight")
    values = numpy_helper.to_array(weight).copy()
    values[:, 3] = -values[:, 3]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    verdict = verify_exact(program, model.SerializeToString(), random_inputs(program, 1, 1, 0))
    assert verdict.first_divergence == "blocks.0.mlp.neuron1"


def test_with_functions_each_neuron_is_a_call_and_the_spikes_are_the_same():
    program = built("spikformer")
    exported = export(program, functions=True)
    model = onnx.load_from_string(exported)
    onnx.checker.check_model(model, full_check=True)
    calls = [node.name for node in model.graph.node if node.domain]
    assert calls == [str(node.target) for node in exportable_program(program).neurons()]
    verdict = verify_exact(program, exported, random_inputs(program, 2, 2, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0, verdict.to_json()
    assert verdict.total("firing") > 1000


def test_what_the_file_is_made_of():
    program = built("spikformer")
    model = onnx.load_from_string(export(program))
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    types = {t.name: t.data_type for t in model.graph.initializer}
    first, *others = (str(n.target) for n in program.graph.nodes if ops.is_quantized(program.module_of(n)))
    assert types[f"{first}.weight"] == onnx.TensorProto.INT16, "it reads the image"
    for layer in others:
        assert ".qkv" in layer or types[f"{layer}.weight"] == onnx.TensorProto.INT8, layer
    whole = 4 * sum(m.weight.numel() for m in program.module.modules() if ops.is_quantized(m))
    assert backend.weight_bytes(model) < 0.34 * whole, "small layers: biases and windows count"


def test_the_runtime_takes_product_cast_scale_and_bias_for_one_operator(tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(export(built("spikformer")), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat") >= 10
    assert "ConvInteger" not in kinds
    products = [k for k in kinds if k == "MatMulInteger"]
    assert len(products) == 2, "only attention's first product stays bare, one a step; its second has a scale"


def test_the_same_program_gives_the_same_bytes():
    assert export(built("spikformer")) == export(built("spikformer", copy=1))


WIDTHS = {"float": 4, "int32": 4, "int64": 8, "uint8": 1, "int8": 1, "bool": 1, "uint16": 2}


def executed(exported: bytes, x: np.ndarray, level, folder: Path) -> list[tuple[onnx.NodeProto, dict]]:
    """Return the nodes in the order in which ONNX Runtime runs them, each with the profile's arguments."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = ort.InferenceSession(exported, options)
    session.run(None, {backend.INPUT: x})
    nodes = {node.name: node for node in onnx.load(folder / "optimized.onnx").graph.node}
    events = [e for e in json.loads(Path(session.end_profiling()).read_text()) if e["name"].endswith("_kernel_time")]
    return [(nodes[e["name"].removesuffix("_kernel_time")], e["args"]) for e in sorted(events, key=lambda e: e["ts"])]


def alive_at_most(exported: bytes, x: np.ndarray, level, folder: Path) -> int:
    """Bytes of the values that are alive at once, at most, in the order in which ONNX Runtime runs the nodes.

    Constants that are not folded where optimisation is off do not count: they are computed first, and grow with depth.
    """
    ran = executed(exported, x, level, folder)
    readers = Counter(name for node, _ in ran for name in set(node.input))
    held: dict[str, int] = {}
    peak = 0
    data = {backend.INPUT}
    for node, args in ran:
        if data.isdisjoint(node.input):
            continue
        data.update(node.output)
        for name, kind in zip(node.output, args["output_type_shape"], strict=True):
            (dtype, shape), *_ = kind.items()
            held[name] = int(np.prod(shape)) * WIDTHS[dtype]
        peak = max(peak, sum(held.values()))
        readers.subtract(set(node.input))
        held = {name: size for name, size in held.items() if readers[name] > 0}
    return peak


@functools.cache
def deep(family: Callable[..., nn.Module], depth: int) -> tuple[bytes, np.ndarray]:
    """Return the file of a network of this many blocks, and two images."""
    torch.manual_seed(0)
    program = quantized(warm(family(T=4, depths=depth), IMAGE), IMAGE)
    return export(program), random_inputs(program, 2, 2, 0)[0].numpy()


@pytest.mark.parametrize("level", ["ORT_ENABLE_ALL", "ORT_DISABLE_ALL"])
@pytest.mark.parametrize("family", [spikformer, sdt])
def test_a_deeper_network_takes_no_more_memory(family, level, tmp_path):
    alive = []
    for depth in (2, 6):
        exported, x = deep(family, depth)
        alive.append(alive_at_most(exported, x, getattr(ort.GraphOptimizationLevel, level), tmp_path))
    assert alive[1] < 1.05 * alive[0], "layers wait with their membranes for the others"


def test_a_step_fires_before_the_next_one_is_charged(tmp_path):
    """While its membrane is in the processor's cache; the other way round, files run up to 4% slower.

    The last block is run from its output, whose sum over the steps ends with the last one.
    """
    exported, x = deep(spikformer, 2)
    ran = executed(exported, x, ort.GraphOptimizationLevel.ORT_ENABLE_ALL, tmp_path)
    place = {node.name: i for i, (node, _) in enumerate(ran)}
    charged = [name.rsplit("/h", 1) for name in place if "/h" in name and not name.startswith("blocks.1.")]
    assert len(charged) >= 3 * 6, "the steps after the first, of each neuron"
    for path, t in charged:
        assert place[f"{path}/spikes{int(t) - 1}"] < place[f"{path}/h{t}"], (path, t)
