"""Neurons written by hand, through every stage: capture, pruning, files, sources, training, fp32 and int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from support import written_neurons as written
from support.generated import assert_loads
from support.serialized import assert_same, reload, thin
from svitc.analysis.interval_neurons import Interval, fire
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.passes.pipelines import inference_passes, quantize
from svitc.passes.quantization.fold_neuron_scale import FoldNeuronScale
from svitc.runtimes import session
from svitc.training.fast_forward import FastForward
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify

IMAGE = (3, 12, 10)
TRACED = {
    "PSN": lambda: neuron.PSN(4),
    "GLIF": lambda: neuron.GatedLIFNode(4, inplane=8),
    "QIF": lambda: neuron.QIFNode(step_mode="m"),
    "KLIF": lambda: neuron.KLIFNode(v_threshold=0.5, step_mode="m"),
    "CLIF behind a norm": lambda: nn.Sequential(nn.LayerNorm(IMAGE[-1]), neuron.ComplementaryLIFNode(step_mode="m")),
    "Izhikevich": lambda: neuron.IzhikevichNode(v_threshold=0.6, step_mode="m"),
    "CLIF": lambda: neuron.ComplementaryLIFNode(step_mode="m"),
}
OWN = (written.strict, written.subtracts, written.scales_its_input)
ALL = (*OWN, written.charged_by_tau, written.charged_by_rate, written.counts, written.bends)
each = pytest.mark.parametrize("fires", ALL, ids=lambda fires: fires.__name__)
each_own = pytest.mark.parametrize("fires", OWN, ids=lambda fires: fires.__name__)


def built(fires, steps=4) -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    model = written.Net(fires, steps, depth=3).eval()
    program = capture(model, InputSpec(IMAGE))
    run_canonical_passes(program)
    return model, program


@each
def test_the_float_file_is_the_models(fires):
    model, program = built(fires)
    x = torch.randn(3, *IMAGE)
    with torch.no_grad():
        want = model(x)
    assert torch.equal(program(x), want) and want.std() > 0
    exported = export(program, per_step=True)
    verdict = verify(program, exported, [x])
    assert verdict.passed and verdict.total("firing") > 1000, verdict.first_divergence
    assert np.allclose(session(exported).run(None, {"image": x.numpy()})[0], want.numpy(), atol=1e-4)


@each
@pytest.mark.parametrize("steps", [1, 4])
def test_int8_spikes_are_the_references_bit_for_bit(fires, steps):
    program = quantize(built(fires, steps)[1])[0]
    verdict = verify_exact(program, export(program), random_inputs(program, 3, 2, 0))
    assert verdict.passed and verdict.total("firing") > 400, verdict.to_json()


@each
def test_files_and_sources_hold_the_neurons(fires, tmp_path):
    program = built(fires)[1]
    for number, variant in enumerate((program, thin(program.copy()), quantize(program)[0])):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert_same(variant, reload(variant, folder))
        source = assert_loads(variant, folder)
        assert ("class LeakyNeuron" in source) == (fires in OWN)


@each_own
def test_the_scale_of_a_neuron_moves_into_the_layer_before_it(fires):
    program = built(fires)[1]
    x = torch.randn(4, *IMAGE)
    folded = Pipeline([*inference_passes(), FoldNeuronScale()])(program.copy())
    for node in folded.neurons():
        module = folded.module_of(node)
        assert isinstance(module, ops.LeakyNeuron) and (module.gain, module.threshold) == (1.0, 1.0)
    assert (folded(x) - program(x)).abs().mean() < 0.02 * program(x).abs().mean()


@each_own
def test_programs_with_own_neurons_train(fires):
    program = built(fires)[1]
    program.module.train()
    FastForward(program)(torch.randn(2, *IMAGE)).square().sum().backward()
    gradients = [p.grad for p in program.module.parameters()]
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)


@each_own
def test_intervals_hold_the_spikes(fires):
    program = built(fires)[1]
    module = program.module_of(next(iter(program.neurons())))
    assert module is not None
    x = torch.linspace(-1, 3, 41).double()
    bounds = fire(module, Interval(x, x, x.abs(), 1), 4)
    assert bounds is not None
    spikes = module(x.float().expand(4, -1))
    assert bool((spikes.amin(0) >= bounds.low).all() and (spikes.amax(0) <= bounds.high).all())
    assert bool((bounds.low == bounds.high).any()), "the bounds say something"


@pytest.mark.parametrize("kind", TRACED)
def test_neurons_that_stay_ordinary_operations_are_verified_layer_by_layer(kind, tmp_path):
    torch.manual_seed(0)
    layers = nn.ModuleList(TRACED[kind]() for _ in range(2))
    for layer in layers:
        if hasattr(layer, "bias"):
            nn.init.constant_(layer.bias, -0.3)
    calls = iter([*layers] * 20)
    model = written.Net(lambda x: next(calls)(x), 4, depth=2).eval()
    model.neurons = layers
    program = capture(model, InputSpec(IMAGE))
    run_canonical_passes(program)
    x = torch.randn(3, *IMAGE)
    verdict = verify(program, export(program), [x])
    assert verdict.passed and len(verdict.layers) >= 2 and verdict.total("firing") > 400, verdict.first_divergence
    assert_same(program, reload(program, tmp_path))
    assert_loads(program, tmp_path / "source")
    small = quantize(program)[0]
    verdict = verify_exact(small, export(small), random_inputs(small, 3, 2, 0), original=program)
    assert verdict.passed, verdict.first_divergence
