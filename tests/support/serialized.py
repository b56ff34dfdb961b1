"""Programs in files: written, read back, and compared."""

from __future__ import annotations

import json
import operator

import einops
import numpy as np
import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import fx, nn

from support.families import FAMILIES, warm
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.passes import Prune
from svitc.passes.pipelines import canonical_passes
from svitc.planning.plan import Plan
from svitc.serialization.writer import load_program, save_program, to_bytes


def thin(program: Program, seed: int = 0) -> Program:
    """A random plan: other widths in every layer, each head its own dimensions."""
    rng = np.random.default_rng(seed)
    keep = {}
    for group in program.groups:
        if group.frozen is None:
            mask = np.zeros((group.heads, group.axis.size), dtype=bool)
            width = int(rng.integers(max(1, group.axis.size // 2), group.axis.size + 1))
            for row in mask:
                row[rng.permutation(group.axis.size)[:width]] = True
            keep[group.name] = mask
    Prune(Plan(keep))(program)
    return program


def captured(family: str = "spikformer", *, events: bool = False, **k) -> Program:
    torch.manual_seed(0)
    factory, shape = FAMILIES[family]
    spec = InputSpec((4, *shape) if events else shape)
    return capture(warm(factory(**k), spec.shape), spec, {"arch": family, "classes": list("abcde")})


def canonicalised(*args, **k) -> Program:
    program = captured(*args, **k)
    Pipeline(canonical_passes())(program)
    return program


def content_of(data: bytes) -> dict:
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["program"])


class File(bytes):
    """Bytes that a failing test does not print."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def reload(program: Program, folder) -> Program:
    path = folder / "model.safetensors"
    save_program(program, path)
    return load_program(path)


def assert_same(program: Program, again: Program) -> None:
    assert str(again) == str(program)
    assert (again.input, again.stage, again.info) == (program.input, program.stage, program.info)
    assert set(again.module.state_dict()) == set(program.module.state_dict())
    assert again.parameter_count() == program.parameter_count()
    x = torch.randn(program.input.batched(2))
    want = program(x)
    assert torch.equal(again(x), want) and want.any()
    assert to_bytes(again) == to_bytes(program)


class Custom(surrogate.SurrogateFunctionBase):
    """A gradient of the user's own."""

    @staticmethod
    def spiking_function(x):
        return surrogate.atan.apply(x, 3.0)


class Mixed(nn.Module):
    """Layers under odd names, a layer that is called twice, a dropout that falls away."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            layer.Conv2d(3, 4, 3, padding=1, stride=2, step_mode="m"),
            nn.Dropout(0.1),
            layer.BatchNorm2d(4, momentum=None, eps=1e-3, step_mode="m"),
            neuron.LIFNode(step_mode="m"),
        )
        self.add_module("odd-name", layer.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2, step_mode="m"))
        self.lif = neuron.ParametricLIFNode(
            v_threshold=0.1, step_mode="m", surrogate_function=surrogate.LeakyKReLU(0.1)
        )
        self.pool = layer.AvgPool2d(2, ceil_mode=True, count_include_pad=False, step_mode="m")
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        x = self.stem(x)
        again = self.get_submodule("odd-name")
        return self.head(self.pool(self.lif(again(again(x)) * 0.5 + x)).mean((3, 4)))


def mixed() -> Program:
    torch.manual_seed(0)
    shape = (2, 3, 8, 8)
    return capture(warm(Mixed(), shape), InputSpec(shape))


def bare() -> Program:
    """x * scale + shift, with a parameter and a buffer that no layer owns."""
    root = nn.Module()
    root.block = nn.Module()
    root.block.scale = nn.Parameter(torch.rand(3, 1, 1))
    root.block.register_buffer("shift", torch.rand(3, 1, 1), persistent=False)
    root.head = nn.Linear(3, 2)
    graph = fx.Graph()
    x = graph.placeholder("x")
    scale, shift = graph.get_attr("block.scale"), graph.get_attr("block.shift")
    for node in (scale, shift):
        node.meta["scope"] = "block"
    y = graph.call_function(torch.add, (graph.call_function(torch.mul, (x, scale)), shift))
    for node, function in zip(list(graph.nodes)[-2:], ("mul", "add"), strict=True):
        node.target = getattr(operator, function)
        node.meta["scope"] = "block"
    y = graph.call_function(torch.mean, (y,), {"dim": (2, 3), "keepdim": False})
    y = graph.call_function(einops.rearrange, (y, "b c -> b c"))
    graph.output(graph.call_module("head", (y,)))
    program = Program(fx.GraphModule(root, graph), InputSpec((3, 4, 4)))
    program.retype()
    return program
