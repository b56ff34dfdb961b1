"""Verification passes on what is the same network, and finds what is not, in the layer where it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from spikingjelly.activation_based import neuron
from torch import nn

from support.constructs import captured as official
from support.families import FAMILIES, IMAGE, NEURONS, spikformer, warm
from svitc.analysis.float_error import LAMBDA, bound, magnitudes, margins, sum_lengths
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.ops import IntegerSpike
from svitc.onnx.export import export
from svitc.verification.float_check import verify
from svitc.verification.recorder import Recorder, record_magnitudes, stimulate


def program_of(model, shape=IMAGE):
    program = capture(model, InputSpec(shape))
    run_canonical_passes(program)
    return program


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    program = program_of(warm(spikformer(T=4)))
    return program, export(program), random_inputs(program, 4, 4, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_export_is_the_same_network(family):
    torch.manual_seed(0)
    factory, shape = FAMILIES[family]
    program = program_of(warm(factory(T=4), shape), shape)
    verdict = verify(program, export(program), random_inputs(program, 4, 2, 0))
    assert verdict.passed, verdict.first_divergence
    assert (
        verdict.images,
        verdict.total("flips_beyond_rounding"),
        verdict.total("currents_beyond_rounding"),
    ) == (4, 0, 0)
    # rounding explains a handful at most: were the bound too wide, this would grow
    assert verdict.total("flips_within_rounding") < 1e-4 * verdict.total("spikes")
    assert sum(layer.firing == 0 for layer in verdict.layers.values()) < 0.4 * len(verdict.layers)


@pytest.mark.parametrize("kind", NEURONS)
def test_every_neuron_exports(kind):
    torch.manual_seed(0)
    program = program_of(warm(spikformer(T=3, **NEURONS[kind])))
    verdict = verify(program, export(program), random_inputs(program, 2, 2, 0))
    assert verdict.passed, verdict.first_divergence


def test_events_and_a_single_step():
    torch.manual_seed(0)
    shape = (5, *IMAGE)
    program = program_of(warm(spikformer(T=5), shape), shape)
    assert verify(program, export(program), random_inputs(program, 2, 2, 0)).passed
    program = program_of(warm(spikformer(T=1)))
    assert verify(program, export(program), random_inputs(program, 2, 2, 0)).passed


@pytest.mark.parametrize("case", ["integer", "scaled", "meta", "qk, fixed"])
def test_published_constructs_export(case):
    program = official(case)
    verdict = verify(program, export(program), random_inputs(program, 4, 2, 0))
    assert verdict.passed, verdict.first_divergence
    assert verdict.total("flips_within_rounding") < 1e-4 * verdict.total("spikes")
    assert not verdict.to_json()["silent_neurons"]


def test_a_wrong_clip_is_found_where_there_is_no_time():
    """Every image counts: the first dimension is the batch, where a flip does not excuse the next."""
    program = official("integer")
    data = change_weight(export(program), "integerspike.most", lambda most: np.float32(3) + 0 * most)
    verdict = verify(program, data, random_inputs(program, 4, 4, 0))
    assert not verdict.passed and verdict.first_divergence != "logits"
    assert verdict.total("flips_beyond_rounding") > 100
    assert verdict.total("flips_within_rounding") == verdict.total("currents_beyond_rounding") == 0


def change_weight(data: bytes, name: str, change) -> bytes:
    model = onnx.load_from_string(data)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
            return model.SerializeToString()
    raise AssertionError(name)


def nudge(weights: np.ndarray) -> np.ndarray:
    """One weight in the middle off by half a percent of the largest."""
    weights.reshape(-1)[weights.size // 2] += 0.005 * abs(weights).max()
    return weights


@pytest.mark.parametrize(
    ("tensor", "neuron_path"),
    [
        ("blocks.0.mlp.fc1.0.weight", "blocks.0.mlp.neuron1"),
        ("blocks.0.mlp.fc2.0.bias", "blocks.0.mlp.neuron2"),
        ("blocks.0.attn.qkv_conv_bn.0.q+k+v.weight", "blocks.0.attn.qkv_lif.k"),
        ("patch_embed.stages.0.conv_bn.block.0.weight", "patch_embed.stages.0.neuron"),
        ("head.weight", "logits"),
    ],
)
def test_one_wrong_weight_is_found_where_it_is(small, tensor, neuron_path):
    program, data, inputs = small
    verdict = verify(program, change_weight(data, tensor, nudge), inputs)
    assert not verdict.passed and verdict.first_divergence == neuron_path
    wrong = [layer.name for layer in verdict.layers.values() if layer.currents_beyond_rounding]
    assert wrong == [] if neuron_path == "logits" else [neuron_path]


def test_a_wrong_weight_in_a_silent_network_is_found():
    program = program_of(spikformer(T=2).eval())  # statistics never warmed: no neuron fires
    inputs = random_inputs(program, 2, 2, 0)
    clean = verify(program, export(program), inputs)
    assert clean.passed and len(clean.to_json()["silent_neurons"]) > 8
    data = change_weight(export(program), "blocks.0.mlp.fc2.0.weight", nudge)
    assert verify(program, data, inputs).first_divergence == "blocks.0.mlp.neuron2"


def test_a_wrong_comparison_is_found_at_ties(small):
    """``>`` for ``>=`` differs only where the membrane equals its threshold: after attention, whose sums are whole."""
    program, data, inputs = small
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        if node.op_type == "GreaterOrEqual":
            node.op_type = "Greater"
    verdict = verify(program, model.SerializeToString(), inputs)
    assert verdict.first_divergence == "blocks.0.attn.attn_lif"


def test_a_wrong_order_of_time_is_found(small):
    program, data, inputs = small
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        if node.name.endswith("/split"):
            node.output[1], node.output[2] = node.output[2], node.output[1]
    assert not verify(program, model.SerializeToString(), inputs).passed


def test_magnitudes_bound_what_they_stand_for(small):
    """Any value between neurons is at most its magnitude, on the same spikes."""
    program, _, inputs = small
    reference, logits = Recorder.record(program, inputs[0])
    scale, top = Recorder.record(magnitudes(program), inputs[0].abs(), reference.spikes)
    for name, current in reference.currents.items():
        assert (scale.currents[name] * (1 + 1e-5) >= current.abs()).all(), name
    assert (top * (1 + 1e-5) >= logits.abs()).all()
    assert all(n > 1 for n in sum_lengths(program).values())


class Exponential(nn.Module):
    """A neuron whose input is the exponential of the exponential of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fire = nn.Conv2d(3, 8, 3, padding=1), neuron.IFNode(v_threshold=5.0, step_mode="m")

    def forward(self, x):
        y = torch.exp(torch.exp(self.conv(x)) * 2)
        return self.fire(y.unsqueeze(0).repeat(2, 1, 1, 1, 1)).mean((0, 3, 4))


def test_the_bound_of_an_exponential_follows_its_value():
    """It holds where the value is large, and is no larger than a small share of it."""
    torch.manual_seed(0)
    program = program_of(Exponential().eval(), (3, 8, 8))
    x = torch.randn(4, 3, 8, 8)
    reference, _ = Recorder.record(program, x)
    magnitude, _ = record_magnitudes(magnitudes(program), x, reference)
    allowed = bound(magnitude.currents["fire"].double().numpy(), sum_lengths(program)["fire"])
    exact = program.copy()
    exact.module.double()
    difference = abs(reference.currents["fire"] - Recorder.record(exact, x.double())[0].currents["fire"]).numpy()
    assert (difference <= allowed).all() and difference.max() > 1e-3
    assert (allowed < 1e-2 * reference.currents["fire"].numpy()).all()
    assert verify(program, export(program), [x]).passed


@pytest.mark.parametrize("kind", NEURONS)
def test_margins_are_the_neurons_own(kind):
    """Where a neuron fires, its membrane is above the threshold by what ``margins`` says, and where not, below."""
    options = dict(NEURONS[kind])
    module = options.pop("spiking_neuron")(step_mode="m", **options).double()
    x = torch.randn(4, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    with torch.no_grad():
        spikes = module(x)
    distance, allowed = margins(module, x.numpy(), spikes.numpy(), np.abs(x.numpy()), 10)
    assert (allowed > 0).all() and allowed.max() < 1e-3
    shifted = type(module)(step_mode="m", **options).double()
    shifted.load_state_dict(module.state_dict())
    for t in range(4):  # move the last step's input by less than the distance: same spikes; by more: others
        shifted.reset()
        gain = {"LIF": 0.5, "LIF, soft reset": 0.5, "PLIF": 0.5}.get(kind, 1.0)
        y = x[: t + 1].clone()
        y[t] += 0.999 * torch.from_numpy(distance[t]) / gain * torch.sign(torch.rand(500, dtype=torch.float64) - 0.5)
        with torch.no_grad():
            assert torch.equal(shifted(y)[t], spikes[t]), (kind, t)


@pytest.mark.parametrize("rounding", IntegerSpike.ROUNDINGS)
def test_margins_of_integer_spikes(rounding):
    spike = IntegerSpike(3, rounding)
    x = torch.tensor([[-7.0, -0.25, 0.5, 0.9], [1.5, 2.25, 2.75, 9.0]], dtype=torch.float64)
    distance, allowed = margins(spike, x.numpy(), spike(x).numpy(), abs(x.numpy()), 10)
    assert distance.tolist() == [[7.5, 0.75, 0.0, pytest.approx(0.4)], [0.0, 0.25, 0.25, 6.5]]
    assert (allowed == bound(abs(x.numpy()), 11)).all()
    off = torch.from_numpy(distance) * 0.999
    assert torch.equal(spike(x + off)[distance > 0], spike(x)[distance > 0])
    assert torch.equal(spike(x - off)[distance > 0], spike(x)[distance > 0])


def test_the_bound_is_tight_enough_to_matter():
    assert bound(np.ones(1), 1536)[0] == pytest.approx(LAMBDA * 1536**0.5 * 2**-24)
    assert bound(np.ones(1), 1536)[0] < 2e-5


def test_stimulus_is_a_spike_train():
    g = torch.Generator().manual_seed(0)
    binary = stimulate(neuron.LIFNode(), torch.zeros(4, 1000), g)
    assert set(binary.unique().tolist()) == {0.0, 1.0} and 0.1 < binary.mean() < 0.3
    for counting in (neuron.ILIFNode(), IntegerSpike(4)):
        assert stimulate(counting, torch.zeros(4, 1000), g).unique().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
