"""Integer files under ONNX Runtime's kernels for x86 processors without VNNI: the same spikes as everywhere."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import svitc
from support import x86_kernels
from support.exported import tapped
from support.families import FAMILIES, IMAGE, warm
from svitc.analysis.exactness import inexact
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.onnx.int16_sums import beyond_int16
from svitc.passes.pipelines import exportable_program, quantize
from svitc.passes.quantization import quantize_weights
from svitc.verification.recorder import Recorder

MACHINE = x86_kernels.unavailable()
needs_masks = pytest.mark.skipif(MACHINE is not None, reason=str(MACHINE))


class Levels(nn.Module):
    """Integer spikes up to 200, read by a convolution of 3x3 with an odd number of channels and by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.linear = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 16, 3), nn.Linear(16, 5)
        self.spike, self.later = ops.IntegerSpike(200), ops.IntegerSpike(200)
        with torch.no_grad():
            for layer, gain in ((self.first, 200.0), (self.conv, 1.5)):
                layer.weight *= gain

    def forward(self, x):
        s = self.later(self.conv(self.spike(self.first(x))))
        return self.linear(s.flatten(2).transpose(1, 2)).sum(1)


MODELS = {
    "quantized streams": lambda: warm(FAMILIES["maxformer"][0](T=2)),
    "integer spikes": lambda: Levels().eval(),
    "binary spikes": lambda: warm(FAMILIES["spikformer"][0](T=2)),
}


@functools.cache
def captured(name: str) -> Program:
    torch.manual_seed(0)
    program = capture(MODELS[name](), svitc.InputSpec(IMAGE))
    run_canonical_passes(program)
    return program


def written(program: Program, path: Path) -> tuple[dict[str, np.ndarray], list]:
    """Write a file and two images to run it on; return the reference's spikes, and the neurons of the file."""
    joined, x = exportable_program(program), random_inputs(program, 2, 2, seed=1)[0]
    spikes, soft = Recorder.record(joined, x)[0].spikes, inexact(joined)
    file, neurons = tapped(export(program))
    path.with_suffix(".onnx").write_bytes(file)
    np.save(path.with_suffix(".npy"), x.numpy())
    return {name: value.numpy() for name, value in spikes.items() if name not in soft}, neurons


def differing(path: Path, spikes: dict[str, np.ndarray], neurons: list) -> dict[str, int]:
    """Neurons whose spikes are not the reference's, with how many."""
    with np.load(path.with_suffix(".npz")) as outputs:
        found = {each.path: each.array_of(outputs) for each in neurons}
    counts = {name: int((found[name].reshape(value.shape) != value).sum()) for name, value in spikes.items()}
    return {name: count for name, count in counts.items() if count}


def two_products(path: Path) -> None:
    """Write the smallest file that shows the saturation: 130 x (127 + 127) is 33,020."""
    weight = numpy_helper.from_array(np.array([[127], [127], [0], [0]], np.int8), "w")
    x, y = (helper.make_tensor_value_info(n, t, None) for n, t in (("x", TensorProto.UINT8), ("y", TensorProto.INT32)))
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"], "product")], "g", [x], [y], [weight]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), f"{path}.onnx")
    np.save(f"{path}.npy", np.array([[129, 129, 0, 0], [130, 130, 0, 0]], np.uint8))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> Path:
    return x86_kernels.build(tmp_path_factory.mktemp("kernels"))


@needs_masks
def test_every_kind_of_spikes_is_exact_without_vnni(kernels, tmp_path, monkeypatch):
    cases = {name: written(quantize(captured(name))[0], tmp_path / name) for name in MODELS}
    assert all(sum(float(s.sum()) for s in spikes.values()) > 1000 for spikes, _ in cases.values())
    monkeypatch.setattr(quantize_weights, "pair_limit", lambda largest: 254)
    for name in ("quantized streams", "integer spikes"):  # without the bound on neighbours
        program = quantize(captured(name))[0]
        with monkeypatch.context() as patch:
            patch.setattr("svitc.onnx.unrolled.matmuls.pair_limit", lambda largest: 254)
            cases[f"{name}, unbounded"] = written(program, tmp_path / f"{name}, unbounded")
        file = (tmp_path / f"{name}, unbounded.onnx").read_bytes()
        assert beyond_int16(file), "and the static check finds it on any machine"
    two_products(tmp_path / "two products")
    for mask in ("none", *x86_kernels.MASKS):
        x86_kernels.run(kernels, mask, *(tmp_path / name for name in (*cases, "two products")))
        with np.load(tmp_path / "two products.npz") as outputs:
            wrong = [2 * 127 * 129, 2 * 127 * 130 if mask == "none" else 32767]
            assert outputs["y"].reshape(-1).tolist() == wrong, "these are the kernels that add in 16 bits"
        for name, (spikes, neurons) in cases.items():
            found = differing(tmp_path / name, spikes, neurons)
            assert bool(found) == ("unbounded" in name and mask != "none"), (name, mask, found)
