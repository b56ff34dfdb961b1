"""Membranes that do not start at rest, through every stage: capture, pruning, files, training, fp32 and int8."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import nn

import svitc
from support.families import IMAGE, NEURONS, spikformer, warm
from support.generated import assert_loads
from support.serialized import assert_same, reload, thin
from svitc.analysis.interval_neurons import Interval, fire
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.errors import UsageError
from svitc.frontends.capture.capture import capture
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.passes.pipelines import inference_passes, quantize
from svitc.passes.quantization.fold_neuron_scale import FoldNeuronScale
from svitc.runtimes import session
from svitc.training.fast_forward import FastForward
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify

KINDS = {**NEURONS, "LIF, other reset": {"spiking_neuron": neuron.LIFNode, "v_reset": -0.25, "v_threshold": 0.75}}


def started(model: nn.Module, voltage: float) -> nn.Module:
    """Let every membrane of a model start at a voltage."""
    for module in model.modules():
        if isinstance(module, neuron.BaseNode):
            module.set_reset_value("v", voltage)
            module.reset()
    return model


def built(kind: str, voltage: float = 0.375, **k) -> nn.Module:
    torch.manual_seed(0)
    return started(warm(spikformer(**{"T": 3, **KINDS[kind], **k})), voltage)


def program_of(model: nn.Module) -> Program:
    program = capture(model, svitc.InputSpec(IMAGE))
    run_canonical_passes(program)
    return program


@pytest.mark.parametrize("kind", KINDS)
def test_the_float_file_is_the_models(kind):
    model = built(kind)
    program = program_of(model)
    x = torch.randn(2, *IMAGE)
    with torch.no_grad():
        want = model(x)
        functional.reset_net(model)
        at_rest = started(model, 0.0)(x)
    assert torch.equal(program(x), want)
    assert not torch.allclose(want, at_rest, atol=1e-2), "where membranes start must matter"
    exported = export(program, per_step=True)
    verdict = verify(program, exported, [x])
    assert verdict.passed, verdict.first_divergence
    assert np.allclose(session(exported).run(None, {"image": x.numpy()})[0], want.numpy(), atol=1e-5)


@pytest.mark.parametrize(("kind", "steps"), list(product(KINDS, (1, 4))))
def test_int8_spikes_are_the_references_bit_for_bit(kind, steps):
    program = quantize(program_of(built(kind, T=steps)))[0]
    verdict = verify_exact(program, export(program), random_inputs(program, 3, 2, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0, verdict.to_json()
    assert verdict.total("firing") > 1000


@pytest.mark.parametrize("kind", KINDS)
def test_folding_the_scale_of_a_neuron_keeps_where_its_membrane_starts(kind):
    program = program_of(built(kind))
    x = torch.randn(8, *IMAGE)
    want, at_rest = program(x), program_of(built(kind, 0.0))(x)
    folded = Pipeline([*inference_passes(), FoldNeuronScale()])(program.copy())
    assert (folded(x) - want).abs().mean() < 0.1 * (at_rest - want).abs().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_sources_keep_where_membranes_start(kind, tmp_path):
    program = program_of(built(kind))
    for number, variant in enumerate((program, thin(program.copy()), quantize(program)[0])):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert_same(variant, reload(variant, folder))
        source = assert_loads(variant, folder)
        assert "set_reset_value" in source


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_membranes_there(kind):
    program = program_of(built(kind))
    x = torch.randn(2, *IMAGE)
    with torch.no_grad():
        fast = FastForward(program)(x)
    assert torch.allclose(fast, program(x).mean(0) if program(x).ndim == 3 else program(x), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_the_spikes(kind):
    module = next(m for m in built(kind, 0.45).modules() if isinstance(m, neuron.BaseNode))
    x = torch.linspace(-1, 2, 41).double()
    bounds = fire(module, Interval(x, x, x.abs(), 1), 4)
    assert bounds is not None
    module.reset()
    with torch.no_grad():
        spikes = module(x.float().expand(4, -1))
    assert bool((spikes.amin(0) >= bounds.low).all() and (spikes.amax(0) <= bounds.high).all())
    assert bool((bounds.low == bounds.high).any()), "the bounds say something"


def test_a_neuron_that_its_start_makes_fire_keeps_its_channels():
    torch.manual_seed(0)
    model = built("IF")
    next(m for m in model.modules() if isinstance(m, neuron.IFNode)).set_reset_value("v", 1.5)
    program = program_of(model)
    first = next(iter(program.neurons()))
    assert dynamics_of(program.module_of(first)).fires_without_input
    group = next(g for g in program.groups if any(m.produces and "conv" in m.module for m in g.members))
    assert group.frozen is not None
    with torch.no_grad():
        x = torch.randn(1, *IMAGE)
        functional.reset_net(model)
        assert torch.equal(program(x), model(x))


def test_a_checkpoint_of_a_factory_whose_membranes_start_elsewhere_is_not_saved(tmp_path):
    arguments = {"T": 2, "img_size_h": 32, "img_size_w": 48, "patch_size": 4, "embed_dims": 32, "num_heads": 2}
    arguments |= {"depths": 1, "num_classes": 5}
    saved = {"arch": "spikingjelly.activation_based.model:Spikformer", "arch_args": arguments, "input_shape": IMAGE}
    svitc.save(Spikformer(**arguments), tmp_path / "rest.pt", **saved)
    with pytest.raises(UsageError, match="memories start at"):
        svitc.save(started(Spikformer(**arguments), 0.5), tmp_path / "start.pt", **saved)
