"""The QDQ lowering: on every family, with every neuron, its spikes are the reference's, in OpenVINO as well."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from spikingjelly.activation_based import layer, neuron
from torch import nn

import svitc
from support.families import FAMILIES, IMAGE, NEURONS, spikformer, warm
from support.programs import EVENTS
from support.published_small import SMALL, fill
from svitc import onnx as backend
from svitc.analysis.exactness import inexact, narrowable
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.onnx.target import OPENVINO
from svitc.passes.pipelines import exportable_program, quantize
from svitc.verification.exact_check import verify_exact
from svitc.verification.recorder import Recorder

PUBLISHED = ("meta", "espikeformer", "sdt-plif", "qkformer-imagenet")  # borders, counts, learned decay
EXACT_IN_OPENVINO = [
    *((name, 8) for name in (*FAMILIES, "espikeformer", "sdt-plif", "pooled")),
    *(("maxformer", 4), ("sdt", 2)),
]


def program_of(model: nn.Module, shape: tuple[int, ...], fix: bool = False) -> Program:
    program = capture(model, svitc.InputSpec(shape), rewrite_model=fix)
    run_canonical_passes(program)
    return program


@cache
def built(name: str, bits: int = 8) -> Program:
    """Return a quantized model of this name; not to be changed."""
    torch.manual_seed(0)
    if name in FAMILIES:
        factory, shape = FAMILIES[name]
        program = program_of(warm(factory(T=2), shape), shape)
    else:
        program = program_of(fill(SMALL[name].shallow()), SMALL[name].input, fix=name.startswith("qkformer"))
    quantized = quantize(program)[0]
    if bits == 8:
        return quantized
    return quantize(program, {layer: bits for layer, why in narrowable(quantized).items() if not why})[0]


@pytest.mark.parametrize("name", [*FAMILIES, *PUBLISHED])
def test_spikes_are_the_references_in_onnx_runtime(name):
    program = built(name)
    verdict = verify_exact(program, export(program, "openvino"), random_inputs(program, 3, 2, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0, verdict.to_json()
    assert verdict.total("firing") > 1000


@pytest.mark.parametrize("kind", NEURONS)
def test_every_neuron(kind):
    torch.manual_seed(0)
    program = quantize(program_of(warm(spikformer(T=3, **NEURONS[kind]), IMAGE), IMAGE))[0]
    verdict = verify_exact(program, export(program, "openvino"), random_inputs(program, 2, 2, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0, verdict.to_json()


def test_a_wrong_scale_is_found_and_named():
    program = built("spikformer")
    model = onnx.load_from_string(export(program, "openvino"))
    scale = next(t for t in model.graph.initializer if t.name == "blocks.0.mlp.fc1.0.scale")
    values = onnx.numpy_helper.to_array(scale).copy()
    values[3] *= -1
    scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
    verdict = verify_exact(program, model.SerializeToString(), random_inputs(program, 1, 1, 0))
    assert verdict.first_divergence == "blocks.0.mlp.neuron1"


@pytest.mark.parametrize(("bits", "stored"), [(8, TensorProto.INT8), (4, TensorProto.INT4), (2, TensorProto.INT4)])
def test_products_are_of_bytes_and_of_weights_with_a_scale_for_each_channel(bits, stored):
    program = built("spikformer", bits)
    graph = onnx.load_from_string(export(program, "openvino")).graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {t.name: t for t in graph.initializer}
    assert "MatMulInteger" not in {node.op_type for node in graph.node}
    checked = Counter()
    for node in graph.node:
        weight = makers.get(node.input[1]) if node.op_type in ("Conv", "MatMul") else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        dequantize = makers[node.input[0]]
        while dequantize.op_type in ("MaxPool", "Reshape", "Transpose"):  # of bytes
            dequantize = makers[dequantize.input[0]]
        assert dequantize.op_type == "DequantizeLinear"
        quantize_linear = makers[dequantize.input[0]]
        assert quantize_linear.op_type == "QuantizeLinear"
        unit, zero = (onnx.numpy_helper.to_array(constants[name]) for name in quantize_linear.input[1:])
        assert unit == 1 and zero == 0 and zero.dtype == np.uint8
        integers = weight.input[0]
        if bits < 8:
            integers = makers[integers].input[0]
        assert constants[integers].data_type == stored
        add = next(user for user in graph.node if node.output[0] in user.input)
        assert add.op_type == "Add" and add.input[1] in constants, "the bias is directly behind the product"
        checked[node.op_type] += 1
    assert checked.total() == sum(not why for why in narrowable(exportable_program(program)).values())


def test_a_layer_that_reads_real_numbers_has_float_weights():
    program = built("spikformer")
    weights = {t.name: t.data_type for t in onnx.load_from_string(export(program, "openvino")).graph.initializer}
    assert weights["head.weight"] == TensorProto.FLOAT


class Pooled(nn.Module):
    """Layers that read means of spikes, whole numbers of quarters, and a head that reads spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = layer.SeqToANNContainer(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.lif = neuron.LIFNode(step_mode="m")
        self.pool = layer.SeqToANNContainer(nn.AvgPool2d(2))
        self.conv = layer.SeqToANNContainer(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.token = nn.Linear(8, 16)
        self.inner, self.last = neuron.IFNode(step_mode="m"), neuron.LIFNode(tau=3.0, v_reset=None, step_mode="m")
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(self.conv(self.pool(self.lif(self.body(x)))))
        return self.head(self.last(self.token(y.flatten(3).transpose(2, 3)))).mean(2)


@cache
def pooled() -> Program:
    torch.manual_seed(0)
    return quantize(program_of(warm(Pooled(), EVENTS), EVENTS))[0]


def test_means_of_spikes_are_whole_numbers_of_their_unit():
    program = pooled()
    exported = export(program, "openvino")
    units = {t.name for t in onnx.load_from_string(exported).graph.initializer if t.name.startswith("unit.")}
    assert units == {"unit.1", "unit.0.25"}
    verdict = verify_exact(program, exported, random_inputs(program, 3, 2, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0 < verdict.total("firing"), verdict.to_json()


def openvino_spikes(model: bytes, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return every neuron's spikes and the logits of a whole run in OpenVINO."""
    openvino: Any = pytest.importorskip("openvino")
    cuts = backend.split_unrolled_neurons(model)[1]
    proto = onnx.load_from_string(model)
    for cut in cuts:
        proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in cut.spikes)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU", dict(OPENVINO.settings))
    outputs = dict(zip([o.name for o in proto.graph.output], compiled([x]).values(), strict=True))
    return {cut.path: cut.array_of(outputs) for cut in cuts}, outputs[backend.OUTPUT]


@pytest.mark.parametrize(("name", "bits"), EXACT_IN_OPENVINO)
def test_spikes_are_the_references_in_openvino(name, bits):
    pytest.importorskip("openvino")
    quantized = pooled() if name == "pooled" else built(name, bits)
    program = exportable_program(quantized)
    x = random_inputs(program, 2, 2, 1)[0]
    run, logits = Recorder.record(program, x)
    spikes, found = openvino_spikes(export(quantized, "openvino"), x.numpy())
    soft = inexact(program)
    assert spikes.keys() == run.spikes.keys()
    for path, expected in run.spikes.items():
        if path not in soft:
            assert np.array_equal(spikes[path], expected.numpy()), path
    assert np.allclose(found, logits.numpy(), rtol=1e-5, atol=1e-6)
