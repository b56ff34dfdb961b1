"""Operations that are lowered on all time steps at once, in networks whose other layers run step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

import svitc
from support.families import FAMILIES, IMAGE, NEURONS, spikformer, warm
from svitc.data.inputs import random_inputs
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.onnx.unrolled import lower as unrolled
from svitc.passes.pipelines import exportable_program, quantize
from svitc.verification.exact_check import verify_exact

SIDE, CHANNELS, STEPS = 8, 12, 4


def lif(threshold: float = 0.4) -> neuron.LIFNode:
    return neuron.LIFNode(v_threshold=threshold, step_mode="m")


class Net(nn.Module):
    """A convolution with a neuron, something in the middle of ``[T, N, C, H, W]``, a linear layer, neuron and head."""

    def __init__(self, middle: Callable, end: Callable = lambda x: x.mean(0), **layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.spike = layer.Conv2d(3, CHANNELS, 3, 1, 1, step_mode="m"), lif()
        self.fc, self.spike2, self.head = nn.Linear(CHANNELS, CHANNELS), lif(0.2), nn.Linear(CHANNELS, 5)
        self.layers, self.middle, self.end = nn.ModuleDict(layers), middle, end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.spike(self.conv(x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)))
        x = self.middle(self.layers, x)  # [T, N, C, H, W] or [T, N, C, tokens]
        x = self.spike2(self.fc(x.flatten(3).transpose(2, 3)))
        return self.head(self.end(x.mean(2)))


def tokens_by_time(layers, x):
    """A convolution over all tokens and steps at once, whose result scales every spike."""
    y = layers["conv"](x.flatten(3).permute(1, 2, 3, 0))  # of [N, C, tokens, T]
    return x * y.unsqueeze(0)


def windows_of_time(layers, x):
    """Attention within windows of two steps and all tokens, as STAtten's."""
    q, k, v = (layers[f"{name}_spike"](layers[name](x.flatten(3).transpose(2, 3))) for name in "qkv")

    def windows(y: torch.Tensor) -> torch.Tensor:
        t, n, tokens, c = y.shape
        y = y.reshape(t // 2, 2, n, tokens, 3, c // 3).permute(0, 2, 4, 1, 3, 5)
        return y.reshape(t // 2, n, 3, 2 * tokens, c // 3)

    y = windows(q) @ (windows(k).transpose(-2, -1) @ windows(v)) * 0.5
    windows_count, n, heads, both, d = y.shape
    y = y.reshape(windows_count, n, heads, 2, both // 2, d).permute(0, 3, 1, 4, 2, 5)
    y = layers["attention_spike"](y.reshape(2 * windows_count, n, both // 2, heads * d))
    return y.transpose(2, 3).reshape(x.shape)


def windows_after_pool(layers, x):
    """A pool of every step's spikes, whose steps and batch are one dimension, before attention in windows of steps."""
    y = nn.functional.max_pool2d(x.flatten(0, 1), 2)
    return windows_of_time(layers, y.reshape(*x.shape[:2], *y.shape[1:]))


def projections() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {name: nn.Linear(CHANNELS, CHANNELS) for name in "qkv"}
    return layers | {f"{name}_spike": lif(0.1) for name in (*"qkv", "attention")}


def heads_before_time(layers, x):
    """A product over the tokens whose operands have the heads in front of time."""
    y = x.flatten(3).reshape(STEPS, -1, 3, CHANNELS // 3, SIDE * SIDE).transpose(0, 2)  # [h, N, T, d, tokens]
    y = (y @ y.transpose(-2, -1) @ y).transpose(0, 2) * 2.0**-6
    return y.reshape(x.shape)


def steps_as_channels(layers, x):
    """A gate for each step, from convolutions whose channels are the steps, with one channel between them."""
    y = layers["widen"](torch.relu(layers["squeeze"](x.transpose(0, 1).mean((2, 3, 4)).unflatten(1, (STEPS, 1, 1)))))
    return x * torch.sigmoid(y).transpose(0, 1).unsqueeze(2)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "the last step": lambda: Net(lambda _, x: x, end=lambda x: x[-1]),
    "each step": lambda: Net(lambda _, x: x, end=lambda x: x[0] + x[1] * 0.5 + x[3]),
    "one step in the middle": lambda: Net(lambda _, x: x * x[1]),
    "tokens by time": lambda: Net(
        tokens_by_time, conv=nn.Conv2d(CHANNELS, CHANNELS, (SIDE * SIDE, STEPS), groups=CHANNELS)
    ),
    "tokens by time, dense": lambda: Net(
        tokens_by_time, conv=nn.Conv2d(CHANNELS, CHANNELS, (SIDE * SIDE, STEPS), bias=False)
    ),
    "windows of time": lambda: Net(windows_of_time, **projections()),
    "windows of time after a pool": lambda: Net(windows_after_pool, **projections()),
    "steps as channels": lambda: Net(
        steps_as_channels, squeeze=nn.Conv2d(STEPS, 1, 1, bias=False), widen=nn.Conv2d(1, STEPS, 1, bias=False)
    ),
    "heads before time": lambda: Net(heads_before_time),
}


def quantized(model: nn.Module, shape: tuple[int, ...]) -> Program:
    program = capture(model, svitc.InputSpec(shape))
    run_canonical_passes(program)
    return quantize(program)[0]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", MODELS)
def test_spikes_and_logits_are_the_references(name, target):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    program = quantized(model, (3, SIDE, SIDE))
    verdict = verify_exact(program, export(program, target), random_inputs(program, 8, 4, 0))
    assert verdict.passed, verdict.to_json()
    assert not verdict.to_json()["silent_neurons"], "a silent network proves nothing"
    exact = exportable_program(program)
    assert len(list(exact.neurons())) == len(verdict.layers)


@pytest.mark.parametrize("name", MODELS)
def test_the_float_file_is_the_models(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    program = capture(model, svitc.InputSpec((3, SIDE, SIDE)))
    x = random_inputs(program, 4, 4, 0)[0]
    with torch.no_grad():
        assert torch.allclose(program(x), model(x), atol=1e-6)


def forced(program: Program, functions: object, modules: object) -> set:
    """Return every node but neurons and views."""
    nodes = [n for n in program.graph.nodes if n.op in ("call_module", "call_function") and n.target not in ops.VIEWS]
    return {n for n in nodes if not ops.has_state(program.module_of(n))}


@pytest.mark.parametrize("name", FAMILIES)
def test_any_operation_can_be_lowered_on_all_steps_at_once(name, monkeypatch):
    torch.manual_seed(0)
    factory, shape = FAMILIES[name]
    program = quantized(warm(factory(T=2), shape), shape)
    monkeypatch.setattr(unrolled, "whole_nodes", forced)
    verdict = verify_exact(program, export(program), random_inputs(program, 3, 3, 0))
    assert verdict.passed, verdict.to_json()
    assert verdict.total("firing") > 1000


@pytest.mark.parametrize("kind", NEURONS)
def test_every_neuron_between_operations_on_all_steps(kind, monkeypatch):
    torch.manual_seed(0)
    program = quantized(warm(spikformer(T=4, **NEURONS[kind]), IMAGE), IMAGE)
    monkeypatch.setattr(unrolled, "whole_nodes", forced)
    verdict = verify_exact(program, export(program), random_inputs(program, 2, 2, 0))
    assert verdict.passed and verdict.total("flips_within_rounding") == 0, verdict.to_json()
