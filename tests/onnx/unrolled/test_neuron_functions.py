"""Neurons whose current is the same at every step, against SpikingJelly's own, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from spikingjelly.activation_based import neuron

from svitc.ir.ops import LeakyNeuron
from svitc.onnx.function_body import neuron_function
from svitc.onnx.neuron_functions import kind_of
from svitc.onnx.unrolled.neuron_functions import UnrolledKind, first_firing, first_steps

OPSET = 18


def spikes(module, x: np.ndarray, steps: int) -> np.ndarray:
    """``[T, n]`` of a neuron for one current ``[n]``."""
    module.reset()
    return module(torch.from_numpy(x).repeat(steps, 1)).numpy()


def run(stepped: UnrolledKind, values: list[np.ndarray]) -> list[np.ndarray]:
    """Return what the file's function gives for currents and perhaps a membrane."""
    function = neuron_function(stepped, (), OPSET)
    size, real = ir.Shape([len(values[0])]), ir.TensorType(ir.DataType.FLOAT)
    given = [ir.Value(name=f"x{i}", shape=size, type=real) for i in range(len(values))]
    constants = []
    for name, number in stepped.constants.items():
        tensor = ir.tensor(np.float32(number), name=name)
        constants.append(ir.Value(name=name, const_value=tensor, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype)))
    count = stepped.kind.steps + stepped.carried
    node = ir.Node(function.domain, function.name, [*given, *constants], num_outputs=count)
    for i, value in enumerate(node.outputs):
        kind = ir.TensorType(stepped.spike) if i < stepped.kind.steps else real
        value.name, value.type, value.shape = f"s{i}", kind, size
    opsets = {"": OPSET, function.domain: 1}
    graph = ir.Graph(given, node.outputs, nodes=[node], initializers=constants, name="g", opset_imports=opsets)
    proto = ir.to_proto(ir.Model(graph, ir_version=10, functions=[function]))
    feed = {f"x{i}": value for i, value in enumerate(values)}
    return ort.InferenceSession(proto.SerializeToString()).run(None, feed)


def computed(stepped: UnrolledKind, x: np.ndarray) -> np.ndarray:
    """The same of the file's function."""
    return np.stack(run(stepped, [x]))


@pytest.mark.parametrize("steps", [2, 3, 4, 6, 12, 60])
@pytest.mark.parametrize("leaks", [True, False])
def test_a_constant_current_needs_no_membrane(leaks, steps):
    """At, next to and far from every current at which the spikes change."""
    module = neuron.LIFNode(decay_input=False, step_mode="m") if leaks else neuron.IFNode(step_mode="m")
    edges = np.array(first_firing(leaks, steps), np.float32)
    near = [np.nextafter(edges, np.float32(to)) for to in (0, 9)]
    rng = np.random.default_rng(0)
    x = np.concatenate([edges, *near, rng.uniform(-1, 2, 4000), [0.0, -0.0, -5.0, 1e30]]).astype(np.float32)
    want = spikes(module, x, steps)
    stepped = UnrolledKind(kind_of("it", module, steps, static=True), ir.DataType.UINT8)
    assert stepped.periodic
    assert np.array_equal(computed(stepped, x), want)
    patterns = len({tuple(column) for column in want.T})
    assert patterns == len(first_steps(tuple(edges))) + 1, "every pattern is there, and none"
    assert patterns == (24 if leaks and steps == 60 else steps) + 1


@pytest.mark.parametrize("leaks", [True, False])
def test_the_least_current_that_fires_by_a_step(leaks):
    module = neuron.LIFNode(decay_input=False, step_mode="m") if leaks else neuron.IFNode(step_mode="m")
    found = first_firing(leaks, 9)
    assert found[0] == 1 and list(found) == sorted(found, reverse=True)
    for step, least in enumerate(found, 1):
        edge = np.float32(least)
        at, below = (spikes(module, np.array([v]), step) for v in (edge, np.nextafter(edge, np.float32(0))))
        assert at.any() and not below.any()


@pytest.mark.parametrize(
    "module",
    [
        neuron.LIFNode(decay_input=False, step_mode="m", v_reset=None),
        neuron.LIFNode(decay_input=False, step_mode="m", tau=3.0),
        neuron.LIFNode(decay_input=False, step_mode="m", v_threshold=0.5),
        neuron.LIFNode(step_mode="m"),
        LeakyNeuron(0.25),
        LeakyNeuron(0.25, strict=True),
        LeakyNeuron(0.9, 0.5, 0.3),
        LeakyNeuron(0.25, hard_reset=False),
        LeakyNeuron(0.25, hard_reset=False, levels=4),
    ],
    ids=repr,
)
def test_others_keep_their_membrane(module):
    stepped = UnrolledKind(kind_of("it", module, 4, static=True), ir.DataType.UINT8)
    assert not stepped.periodic
    x = np.random.default_rng(0).uniform(-1, 3, 1000).astype(np.float32)
    x[:400] = np.round(x[:400] * 16) / 16  # sums that hit the threshold
    assert np.array_equal(computed(stepped, x), spikes(module, x, 4))


@pytest.mark.parametrize(
    "module",
    [
        neuron.IFNode(step_mode="s"),
        neuron.LIFNode(decay_input=False, step_mode="s"),
        LeakyNeuron(0.25),
        LeakyNeuron(0.25, strict=True),
    ],
    ids=repr,
)
def test_a_streaming_file_keeps_the_negated_membrane(module):
    """Also where the membrane hits the threshold."""
    step = UnrolledKind(kind_of("it", module, 1, static=False, streaming=True), ir.DataType.UINT8)
    assert step.negated
    whole = UnrolledKind(kind_of("it", module, 3, static=False), ir.DataType.UINT8)
    x = np.round(np.random.default_rng(0).uniform(-1, 2, (3, 1000)) * 8).astype(np.float32) / 8
    v, fired = np.zeros_like(x[0]), []
    for current in x:
        spikes, v = run(step, [current, v])
        fired.append(spikes)
    assert np.array_equal(np.stack(fired), np.stack(run(whole, list(x)))) and v.min() < 0 < v.max()
    assert np.stack(fired).any()
