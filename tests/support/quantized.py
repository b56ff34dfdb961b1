"""Quantized programs, one for each kind of layer."""

from __future__ import annotations

from functools import cache

import torch

from support.constructs import captured as official
from support.families import NEURONS, warm
from support.published_small import SMALL
from support.serialized import bare, canonicalised, mixed, thin
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes.lowering.reassociate_matmuls import ReassociateMatmuls
from svitc.passes.pipelines import canonical_passes, inference_passes
from svitc.passes.quantization.fold_neuron_scale import FoldNeuronScale
from svitc.passes.quantization.quantize_input import QuantizeInput
from svitc.passes.quantization.quantize_weights import QuantizeWeights


def quantized(program: Program) -> Program:
    twin = program.copy()
    Pipeline([*inference_passes(), FoldNeuronScale(), ReassociateMatmuls(), QuantizeInput(), QuantizeWeights()])(twin)
    assert twin.stage == Stage.QUANTIZED
    return twin


def published(name: str) -> Program:
    torch.manual_seed(0)
    small = SMALL[name]
    program = capture(warm(small.shallow(), small.input), InputSpec(small.input))
    Pipeline(canonical_passes())(program)
    return program


FAMILIES = ("sdt", "qkformer-token", "maxformer")


CASES = {
    "spikformer": canonicalised,
    **{family: lambda family=family: thin(canonicalised(family)) for family in FAMILIES},
    "events": lambda: thin(canonicalised("sdt", events=True), 1),
    **{kind: lambda kind=kind: thin(canonicalised(**NEURONS[kind])) for kind in ("PLIF", "ILIF")},
    "published": lambda: thin(published("spikformer-imagenet"), 2),
    "published events": lambda: thin(published("sdt-plif"), 3),
    "integer": lambda: thin(official("integer"), 4),
    "scaled": lambda: thin(official("scaled"), 5),  # with bare parameters
    "a layer called twice": mixed,  # it stays as it is
    "no whole numbers": bare,
}


@cache
def case_of(name: str) -> Program:
    return quantized(CASES[name]())
