"""Target cuda: every node of its files has a kernel in ONNX Runtime's CUDA provider, and its spikes are the same.

No GPU may be at hand, so nodes are held against the operator table that ONNX Runtime publishes (exported.py).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from spikingjelly.activation_based import layer, neuron
from torch import nn

import svitc
from support.exported import missing
from support.families import FAMILIES, IMAGE, NEURONS, spikformer, warm
from support.published_small import SMALL, fill
from svitc import onnx as backend
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.errors import UsageError
from svitc.frontends.capture.capture import capture
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify

CONSTRUCTS = ["meta", "espikeformer", "sdt-plif", "qkformer-imagenet"]  # official: borders, counts, learned decay


@cache
def built(name: str, weights: str):
    """A small model of each family, captured, and quantized where the weights are int8."""
    torch.manual_seed(0)
    if name in FAMILIES:
        factory, shape = FAMILIES[name]
        return program_of(warm(factory(T=2), shape), shape, weights)
    return program_of(fill(SMALL[name].shallow()), SMALL[name].input, weights, fix=name.startswith("qkformer"))


def program_of(model, shape, weights: str, fix: bool = False):
    program = capture(model, svitc.InputSpec(shape), rewrite_model=fix)
    run_canonical_passes(program)
    return quantize(program)[0] if weights == "int8" else program


@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("name", [*FAMILIES, *CONSTRUCTS])
def test_every_node_has_a_kernel_and_the_spikes_are_the_same(name, weights):
    program = built(name, weights)
    exported = export(program, "cuda")
    assert missing(exported) == []
    check = verify if weights == "fp32" else verify_exact
    verdict = check(program, exported, random_inputs(program, 2, 2, 0))
    assert verdict.passed, verdict.to_json()
    onnx.checker.check_model(onnx.load_from_string(exported), full_check=True)


@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("kind", NEURONS)
def test_every_neuron(kind, weights):
    torch.manual_seed(0)
    program = program_of(warm(spikformer(T=3, **NEURONS[kind]), IMAGE), IMAGE, weights)
    assert missing(export(program, "cuda")) == []


class Padded(nn.Module):
    """A border that no layer can take over, since a maximum is taken of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = layer.SeqToANNContainer(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.lif = neuron.LIFNode(decay_input=False, step_mode="m")
        self.pools = layer.SeqToANNContainer(nn.ZeroPad2d((0, 1, 1, 0)), nn.MaxPool2d(3, 2))
        self.conv = layer.SeqToANNContainer(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.last = neuron.LIFNode(decay_input=False, step_mode="m")
        self.mean = layer.SeqToANNContainer(nn.AvgPool2d(2, 1, padding=1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mean(self.last(self.conv(self.pools(self.lif(self.body(x))))))
        return self.head(y.flatten(3).mean(3)).mean(0)


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_borders(weights):
    torch.manual_seed(0)
    shape = (2, 3, 8, 12)
    program = program_of(warm(Padded(), shape), shape, weights)
    exported = export(program, "cuda")
    assert "Pad" in [node.op_type for node in onnx.load_from_string(exported).graph.node]
    assert missing(exported) == []
    check = verify if weights == "fp32" else verify_exact
    verdict = check(program, exported, random_inputs(program, 2, 2, 0))
    assert verdict.passed and verdict.total("firing") > 100, verdict.to_json()


@pytest.mark.parametrize("most", [127, 128, 255, 300])
def test_counts_that_int8_does_not_hold_are_multiplied_as_floats(most):
    torch.manual_seed(0)
    program = program_of(warm(spikformer(T=2, spiking_neuron=neuron.ILIFNode), IMAGE), IMAGE, "fp32")
    for node in program.neurons():
        program.module_of(node).surrogate_function.max_spike_count = most
    program = quantize(program)[0]
    for target, holds in (("cpu", 255), ("cuda", 127)):
        exported = export(program, target)
        kinds = [node.op_type for node in onnx.load_from_string(exported).graph.node]
        assert ("MatMulInteger" in kinds) == (most <= holds)
        verdict = verify_exact(program, exported, random_inputs(program, 2, 2, 0))
        assert verdict.passed and verdict.total("flips_beyond_rounding") == 0, verdict.to_json()
    assert missing(exported) == []


def test_the_check_finds_what_has_no_kernel():
    found = missing(export(built("spikformer", "int8"), "cpu"))
    assert any("MatMulInteger(uint8, int8) -> int32" in each for each in found)
    assert any("Pad(uint8, int64) -> uint8" in each for each in found)


@pytest.mark.parametrize(
    ("op", "types", "opset", "has"),
    [
        ("MatMulInteger", ("INT8", "INT8", "INT32"), 18, True),
        ("MatMulInteger", ("UINT8", "INT8", "INT32"), 18, False),
        ("Pad", ("FLOAT", "INT64", "FLOAT"), 18, True),
        ("Pad", ("FLOAT", "INT64", "FLOAT"), 21, False),  # its kernel is the one of opset 18, and of no later
        ("Pad", ("INT8", "INT64", "INT8"), 18, False),
        ("And", ("BOOL", "BOOL", "BOOL"), 18, True),
        ("ConvInteger", ("INT8", "INT8", "INT32"), 18, False),
    ],
)
def test_one_node(op, types, opset, has):
    elements = zip("abc", types, strict=True)
    *inputs, out = (helper.make_tensor_value_info(name, getattr(TensorProto, each), None) for name, each in elements)
    graph = helper.make_graph([helper.make_node(op, ["a", "b"], ["c"], op)], "g", inputs, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    assert (missing(model.SerializeToString()) == []) == has


def test_a_node_that_is_computed_at_load_needs_no_kernel():
    weight = helper.make_tensor("w", TensorProto.INT4, [2], [1, 2])
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], "widen", to=TensorProto.FLOAT),  # no device reads int4
        helper.make_node("Add", ["x", "wide"], ["y"], "add"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    assert missing(model.SerializeToString()) == []


def test_an_unknown_target_is_refused():
    with pytest.raises(UsageError, match="target 'tpu' is not known") as refused:
        export(built("spikformer", "fp32"), "tpu")
    assert refused.value.hint == "Did you mean cpu? Targets are cpu, cuda, openvino, web."


def test_a_compilation_reports_its_target():
    program = built("spikformer", "fp32")
    done = svitc.compile(program, weights="int8", target="cuda", images=1, no_data="uniform")
    assert done.report["target"] == "cuda" and done.verdict.passed
    assert missing(done.onnx) == []
    types = {t.name: t.data_type for t in onnx.load_from_string(done.onnx).graph.initializer}
    assert types["blocks.0.mlp.fc1.0.weight"] == TensorProto.INT8
    spikes = {each.dtype for each in backend.split_unrolled_neurons(done.onnx)[1]}
    assert spikes == {np.dtype(np.int8)}
