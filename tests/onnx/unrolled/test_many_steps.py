"""Files of many time steps: powers of two that start again, fused products, and constants that do not multiply."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

import svitc
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.onnx.unrolled.step_gain import PERIOD
from svitc.passes.pipelines import quantize
from svitc.verification.exact_check import verify_exact

IMAGE = (1, 4, 4)


class Net(nn.Module):
    """Three layers of a few neurons, over time."""

    def __init__(self, steps: int, **options: object) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.neurons = nn.ModuleList(neuron.LIFNode(tau=2.0, step_mode="m", **options) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 1, 4, 4]`` to scores ``[N, 16]``."""
        x = x.flatten(1).unsqueeze(0).repeat(self.steps, 1, 1)
        for layer, fires in zip(self.layers, self.neurons, strict=True):
            x = fires(layer(x))
        return x.mean(0)


def quantized(steps: int, **options: object) -> Program:
    torch.manual_seed(0)
    model = Net(steps, **options).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.mul_(4)
            layer.bias.uniform_(0.2, 1.2)
    program = capture(model, svitc.InputSpec(IMAGE))
    run_canonical_passes(program)
    return quantize(program)[0]


@pytest.mark.parametrize("options", [{}, {"v_reset": None}], ids=["hard reset", "soft reset"])
def test_more_steps_than_a_float_has_powers_of_two(options):
    program = quantized(140, **options)
    verdict = verify_exact(program, export(program), random_inputs(program, 4, 4, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0, verdict.to_json()
    assert all(0 < layer.firing < layer.spikes for layer in verdict.layers.values()), verdict.to_json()


def kinds_in_the_runtime(exported: bytes, path) -> list[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_runtime_fuses_the_products_of_every_step(tmp_path):
    """It leaves out those that read one factor, which steps of the same power of two must not do, then."""
    for steps in (PERIOD, 3 * PERIOD):
        kinds = kinds_in_the_runtime(export(quantized(steps)), tmp_path / "optimized.onnx")
        assert kinds.count("MatMulIntegerToFloat") == 2 * steps, "the first layer reads the image alone, in floats"
        assert "MatMulInteger" not in kinds


def test_constants_do_not_grow_with_the_steps():
    counts = [len(onnx.load_from_string(export(quantized(steps))).graph.initializer) for steps in (64, 128)]
    assert counts[1] <= counts[0] + 2 * PERIOD, "a scalar for each power of two and repetition"
