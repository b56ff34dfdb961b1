"""Programs to lower: hand-written ones for single operations, and every family small, its neurons firing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import model as zoo
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import fx, nn

from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.program import Program
from svitc.onnx import Target, lower, target_of, to_bytes
from svitc.runtimes import session

KEPT = target_of("cpu", functions=True)

SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "spikformer": (
        lambda: Spikformer(
            T=4,
            img_size_h=16,
            img_size_w=24,
            patch_size=4,
            num_classes=10,
            embed_dims=32,
            num_heads=4,
            depths=2,
        ),
        (3, 16, 24),
    ),
    "sdt": (
        lambda: zoo.SpikeDrivenTransformer(T=4, num_classes=10, embed_dims=48, num_heads=4, depths=2),
        (3, 32, 48),
    ),
    "sdt-events": (
        lambda: zoo.SpikeDrivenTransformer(T=5, in_channels=2, num_classes=10, embed_dims=48, num_heads=4, depths=1),
        (5, 2, 32, 48),
    ),
    "qkformer": (
        lambda: zoo.QKFormer(T=4, num_classes=10, embed_dims=64, num_heads=(2, 4, 4), depths=(1, 1, 2)),
        (3, 32, 48),
    ),
    "qkformer-channel": (
        lambda: zoo.QKFormer(
            T=4, num_classes=10, embed_dims=64, num_heads=(2, 4, 4), depths=(1, 1, 1), qka_type="channel"
        ),
        (3, 32, 48),
    ),
    "maxformer": (lambda: zoo.MaxFormer(T=4, num_classes=10, embed_dims=128, depths=(1, 1, 1)), (3, 32, 48)),
    "maxformer-cifar": (
        lambda: zoo.MaxFormer(T=4, num_classes=10, embed_dims=64, depths=(1, 1, 1), cifar=True),
        (3, 16, 24),
    ),
}


def warm(model: nn.Module, spec: InputSpec) -> nn.Module:
    """Give batch norms statistics of random images, and gains at which about a fifth of the neurons fire."""
    norms = [module for module in model.modules() if ops.is_batch_norm(module)]
    for norm in norms:
        norm.momentum = None  # the average over all batches, not a moving one
        nn.init.constant_(norm.weight, 2.0)
        nn.init.uniform_(norm.bias, 0.0, 1.0)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(spec.batched(4)))
            functional.reset_net(model)
    return model.eval()


@cache
def _captured(family: str) -> Program:
    torch.manual_seed(0)
    make, shape = SMALL[family]
    return capture(warm(make(), InputSpec(shape)), InputSpec(shape))


@pytest.fixture(params=SMALL)
def captured(request) -> Program:
    """A family as it is captured; not to be changed."""
    return _captured(request.param)


@pytest.fixture(params=[False, True], ids=["inlined", "functions"])
def form(request) -> Target:
    """A target of each form of a neuron: its nodes, and a call of a function."""
    return target_of("cpu", functions=request.param)


@pytest.fixture
def captured_as():
    """A family by name, as it is captured; not to be changed."""
    return _captured


@pytest.fixture
def program_of():
    """``make(shape, build, **modules)``: a typed program, whose ``build(graph, x)`` adds canonical nodes."""

    def make(shape: tuple[int, ...], build: Callable[[fx.Graph, fx.Node], fx.Node], **modules) -> Program:
        root = nn.Module()
        for name, module in modules.items():
            if isinstance(module, nn.Module):
                root.add_module(name, module)
            else:
                root.register_parameter(name, nn.Parameter(module))
        graph = fx.Graph()
        graph.output(build(graph, graph.placeholder("x")))
        program = Program(fx.GraphModule(root, graph), InputSpec(shape))
        program.retype()
        return program

    return make


@pytest.fixture
def run():
    """``run(program, x)``: logits in ONNX Runtime, and the operators of the graph, functions closed.

    The files with and without functions must agree bit for bit.
    """

    def go(program: Program, x: torch.Tensor) -> tuple[np.ndarray, list[str]]:
        model, inlined = lower(program, KEPT), lower(program)
        feed = {"image": x.numpy()}
        logits, same = (session(to_bytes(m), threads=1).run(["logits"], feed)[0] for m in (model, inlined))
        np.testing.assert_array_equal(logits, same)
        return logits, [node.op_type for node in model.graph]

    return go
