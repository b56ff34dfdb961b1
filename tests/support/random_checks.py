"""What must hold of any model: capture, pruning, export and quantization give the same network or say why not."""

from __future__ import annotations

import numpy as np
import torch
from spikingjelly.activation_based import functional

from support.masked import masked, pruned
from support.random_models import Network, random_network
from svitc import onnx as backend
from svitc.driver.compile import compile as compile_program
from svitc.driver.load import check_capture, run_canonical_passes
from svitc.errors import BudgetError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.outputs import tensors_of
from svitc.ir.program import Program
from svitc.passes.policies import Uniform


def eager(net: Network, x: torch.Tensor) -> list[torch.Tensor]:
    """Run the eager model from rest and return its outputs."""
    functional.reset_net(net)
    with torch.inference_mode():
        y = net(x)
    functional.reset_net(net)
    return tensors_of(y)


def captured(net: Network) -> Program:
    """Return the program of a network, which computes the same bits on inputs of its range."""
    program = capture(net, InputSpec(net.input_shape))
    assert check_capture(net, program) == 0.0
    run_canonical_passes(program)
    for seed in (3, 4):
        x = net.images(3, seed)
        for expected, actual in zip(eager(net, x), tensors_of(program(x)), strict=True):
            scale = max(1.0, float(expected.abs().max()))
            assert float((expected - actual).abs().max()) <= 1e-5 * scale, "captured"
    return program


def check_model(seed: int) -> dict[str, float]:
    """Check one random network from end to end, and return what was measured."""
    net = random_network(seed)
    program = captured(net)
    measured: dict[str, float] = {}
    try:
        done = compile_program(program, budget=0.75, policy=Uniform(), no_data="uniform", remove_dead_channels="off")
    except BudgetError:
        pass  # so much of the network is kept whole
    else:
        assert done.verdict.passed, f"fp32: {done.verdict.first_divergence}"
        x = net.images(2, 5).double()
        sides = [tensors_of(side(program, done.plan)(x)) for side in (masked, pruned)]
        measured["pruned against masked"] = max(float((a - b).abs().max()) for a, b in zip(*sides, strict=True))
        assert measured["pruned against masked"] <= 1e-9, f"pruned by {measured['pruned against masked']:g}"
    whole = compile_program(program, budget=1.0, policy=Uniform(), no_data="uniform")
    assert whole.verdict.passed, f"fp32 whole: {whole.verdict.first_divergence}"
    measured["onnx against eager"] = _disagreement(net, whole.onnx, "onnx")
    small = compile_program(program, weights="int8", no_data="uniform")
    assert small.verdict.passed, f"int8: {small.verdict.first_divergence}"
    measured["int8 against eager"] = _disagreement(net, small.onnx, "int8")
    return measured


def _disagreement(net: Network, onnx: bytes, what: str) -> float:
    """Return the share of images on which a file differs from the eager model.

    A float file may round otherwise next to a threshold, on few images; an int8 file is another network near this one.
    """
    x = net.images(16, 6)
    largest = 0.0
    actuals = backend.session(onnx).run(None, {backend.INPUT: x.numpy()})
    for expected, actual in zip([y.numpy() for y in eager(net, x)], actuals, strict=True):
        differences = np.abs(expected - actual).reshape(len(actual), -1) / max(1e-3, float(expected.std()))
        error = differences.max(-1) if what == "onnx" or expected.ndim == 2 else differences.mean(-1)
        share = float((error > (1e-3 if what == "onnx" else 2.0)).mean())
        largest = max(largest, share)
    assert largest <= (0.25 if what == "onnx" else 0.5), f"{what} differs on {largest:.0%} of the images"
    return largest
