"""Quantization is checked against the float program: whatever a pass leaves out, or gets wrong, is found and named."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import svitc
from support.families import FAMILIES, IMAGE, NEURONS, spikformer, warm
from svitc.analysis.exactness import narrowable
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.passes.quantization import fold_neuron_scale
from svitc.passes.quantization.round_weights import RoundWeights
from svitc.verification.exact_check import verify_exact
from svitc.verification.quantization_check import check_quantization
from svitc.verification.verdict import QuantizationVerdict

CASES = {name: (lambda make=make: make(T=2), shape) for name, (make, shape) in FAMILIES.items()} | {
    kind: (lambda kind=kind: spikformer(T=3, **NEURONS[kind]), IMAGE) for kind in NEURONS
}


@functools.cache
def original(name: str) -> Program:
    """Return a float program; not to be changed."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    program = capture(warm(make(), shape), svitc.InputSpec(shape))
    run_canonical_passes(program)
    return program


def checked(name: str, program: Program) -> QuantizationVerdict:
    x = random_inputs(program, 1, 1, 0)[0].clamp(-3.9, 3.9)
    return check_quantization(original(name), program, x)


@pytest.mark.parametrize("name", CASES)
def test_rounding_explains_every_current(name):
    verdict = checked(name, quantize(original(name))[0])
    assert verdict.first_divergence is None and verdict.compared > 10_000
    assert not any(count for count, _ in verdict.clamped.values())


@pytest.mark.parametrize("bits", [4, 2])
def test_rounding_to_fewer_bits_is_compared_with_the_rounded_weights(bits):
    name = "spikformer"
    program = original(name).copy()
    program.stage = Stage.PRUNED
    wanted = dict.fromkeys((layer for layer, why in narrowable(quantize(program)[0]).items() if not why), bits)
    RoundWeights(wanted)(program)
    x = random_inputs(program, 1, 1, 0)[0].clamp(-3.9, 3.9)
    assert check_quantization(program, quantize(program, wanted)[0], x).first_divergence is None


def layer_of(program: Program, name: str) -> nn.Module:
    return program.module.get_submodule(name)


def first(program: Program, kind: Callable[[object], bool]) -> nn.Module:
    return next(m for n in program.graph.nodes if kind(m := program.module_of(n)))


def wrong_weights(program: Program) -> None:
    first(program, ops.is_quantized).get_buffer("weight").neg_()


def wrong_scale(program: Program) -> None:
    first(program, ops.is_quantized).get_buffer("scale").mul_(1.25)


def wrong_bias(program: Program) -> None:
    layer = first(program, ops.is_quantized)
    layer.get_buffer("bias").add_(layer.get_buffer("scale"))


def wrong_start(program: Program) -> None:
    first(program, ops.has_state).set_reset_value("v", 0.25)


def wrong_threshold(program: Program) -> None:
    first(program, ops.has_state).v_threshold = 1.125


def wrong_leak(program: Program) -> None:
    first(program, ops.has_state).tau = 2.5


def soft_reset(program: Program) -> None:
    first(program, ops.has_state).v_reset = None


def narrow_input(program: Program) -> None:
    first(program, lambda m: isinstance(m, ops.FixedPoint)).limit = 256


def lost_residual(program: Program) -> None:
    node = next(n for n in program.graph.nodes if getattr(n.target, "__name__", "") == "add" and n.op != "placeholder")
    node.replace_all_uses_with(node.args[0])
    program.graph.erase_node(node)
    program.module.recompile()
    program.retype()


WRONG = [
    wrong_weights,
    wrong_scale,
    wrong_bias,
    wrong_start,
    wrong_threshold,
    wrong_leak,
    soft_reset,
    narrow_input,
    lost_residual,
]


@pytest.mark.parametrize("change", WRONG)
def test_what_quantization_gets_wrong_is_found(change):
    program = quantize(original("spikformer"))[0]
    change(program)
    x = random_inputs(program, 1, 1, 0)
    verdict = verify_exact(program, export(program), x)
    assert verdict.passed, "the file is the quantized program's, whatever that is"
    verdict = verify_exact(program, export(program), x, original=original("spikformer"))
    assert not verdict.passed and verdict.first_divergence is not None
    assert verdict.to_json()["status"] == "failed"


def test_a_factor_that_a_pass_folds_wrongly_is_found(monkeypatch):
    right = fold_neuron_scale._factor
    monkeypatch.setattr(fold_neuron_scale, "_factor", lambda neuron: 2 * (right(neuron) or 0) or None)
    assert checked("spikformer", quantize(original("spikformer"))[0]).first_divergence is not None


def test_the_report_says_what_was_compared():
    program = quantize(original("spikformer"))[0]
    verdict = verify_exact(program, export(program), random_inputs(program, 2, 1, 0), original=original("spikformer"))
    entry = verdict.to_json()["quantization"]
    assert entry["compared"] > 10_000 and entry["beyond_rounding"] == 0
    assert entry["clamped"]["input_steps"]["of"] == np.prod(IMAGE)
