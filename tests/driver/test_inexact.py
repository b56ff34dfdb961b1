"""Why a neuron of a network of integers may not be exact."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import svitc
from support.families import FAMILIES, warm
from support.programs import frames, lif, steps, written
from svitc import onnx as backend
from svitc import runtimes
from svitc.analysis.exactness import inexact
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.driver.report_sections import weights_report
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.verification.exact_check import verify_exact


@functools.cache
def captured(name: str) -> Program:
    torch.manual_seed(0)
    factory, shape = FAMILIES[name]
    program = capture(warm(factory(T=2), shape), svitc.InputSpec(shape))
    run_canonical_passes(program)
    return program


@functools.cache
def quantized(name: str):
    return quantize(captured(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_inexact(name):
    program = quantized(name)[0]
    found = inexact(program)
    logits = found.pop("logits")
    assert "mean" in logits or "sums real numbers" in logits
    if name in ("sdt", "maxformer"):
        assert set(found) == {"head_lif"} and "mean" in found["head_lif"]
    elif "maxformer" not in name:
        assert not found
    # the reason names the first place: what comes before it in the graph is exact
    order = [str(n.target) for n in program.graph.nodes]
    for path, why in found.items():
        first = why.split(" ")[0]
        if first in order:
            assert order.index(first) < order.index(path)


@pytest.mark.parametrize("name", ["spikformer", "sdt", "maxformer"])
def test_summary(name):
    program, pipeline = quantized(name)
    found = weights_report(program, pipeline).to_json()
    assert list(found) == ["type", "layers", "streams", "exact_neurons", "neurons", "inexact", "refused"]
    assert found == json.loads(json.dumps(found)) and " at 0x" not in json.dumps(found)
    layers = [n for n in program.graph.nodes if ops.is_quantized(program.module_of(n))]
    assert set(found["layers"]) == {str(n.target) for n in layers}
    for path, entry in found["layers"].items():
        bits = 16 if path == str(layers[0].target) else 8  # the first reads the image
        assert entry == {"bits": bits, "shape": list(program.module.get_submodule(path).weight.shape)}
    assert bool(found["streams"]) == (name == "maxformer")
    for path, step in found["streams"].items():
        assert ".attn.qkv" in path and math.frexp(step)[0] == 0.5
    neurons = [str(n.target) for n in program.neurons()]
    soft = [n for n in neurons if n in found["inexact"]]
    assert found["type"] == "int8" and found["neurons"] == len(neurons)
    assert found["exact_neurons"] == len(neurons) - len(soft)
    assert found["inexact"] == inexact(program)


def test_a_network_whose_answer_is_spikes():
    """Counts of spikes, without a head; all of it is exact."""

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, (8, 6))
            self.lif, self.last = lif(), lif()
            with torch.no_grad():
                self.conv.weight *= 4
                self.out.weight *= 8

        def forward(self, x):
            s = self.lif(steps(self.conv(frames(x))))
            s = self.last(steps(self.out(frames(s))))
            return torch.mean(s, dim=(0, 3, 4), keepdim=False)

    program, _ = quantize(written(Counts(), stage=Stage.PRUNED))
    assert inexact(program) == {}
    exported = export(program)
    verdict = verify_exact(program, exported, random_inputs(program, 4, 2, 0))
    assert verdict.passed and verdict.max_logit_difference == 0.0 and verdict.total("firing") > 10
    x = random_inputs(program, 3, 3, 1)[0]
    got = runtimes.session(exported).run(None, {backend.INPUT: x.numpy()})[0]
    assert np.array_equal(got, program(x).numpy()) and got.any()


def test_each_reason():
    program = quantized("spikformer")[0].copy()
    names = {str(n.target): n for n in program.graph.nodes}
    layer = names["blocks.0.mlp.fc1.0"]
    big = program.module_of(layer)
    big.weight = torch.full_like(big.weight, 127)
    assert set(inexact(program)) == {"logits"}
    program.module.get_submodule("input_steps").limit = 1 << 23
    reasons = inexact(program)
    assert set(reasons.values()) == {next(iter(reasons.values()))} and "could pass 2^24" in reasons["logits"]
    floats = captured("spikformer").copy()
    found = inexact(floats)
    assert "batch norm" in " ".join(found.values()) or "sums real numbers" in " ".join(found.values())
    assert {str(n.target) for n in floats.neurons()} < set(found), "a float network is exact nowhere"
