"""A model in memory: captured as its checkpoint is loaded, and compiled in one call."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

import svitc
from support.families import FAMILIES, warm
from support.published_small import SMALL
from svitc.driver.report_sections import weights_report
from svitc.errors import UnsupportedError, UsageError
from svitc.ir.ops import is_neuron
from svitc.passes.pipelines import quantize

CODE = """
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv = layer.Conv2d(3, width, 3, padding=1, step_mode="m")
        self.norm = layer.BatchNorm2d(width, step_mode="m")
        self.first, self.second = neuron.LIFNode(step_mode="m"), neuron.LIFNode(step_mode="m")
        self.point = layer.Conv2d(width, width, 1, step_mode="m")
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.first(self.norm(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1))))
        return self.head(self.second(self.point(x)).mean((0, 3, 4)))
"""
FAST = {"images": 1, "no_data": "uniform"}


class Frames(nn.Module):
    """A model of event frames, ``[T, N, 2, H, W]`` or ``[N, T, 2, H, W]``."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.conv, self.lif = layer.Conv2d(2, 8, 3, padding=1, step_mode="m"), neuron.LIFNode(step_mode="m")
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(0, 1) if self.batch_first else x
        return self.head(self.lif(self.conv(x)).mean((0, 3, 4)))


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A model file, from which models are built."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_in_memory.py").write_text(CODE)
    return tmp_path / "net_in_memory.py"


def net(file: Path) -> nn.Module:
    """Build the model of a file in memory, with statistics in its batch norm and neurons that fire."""
    scope: dict = {}
    exec(file.read_text(), scope)
    torch.manual_seed(0)
    model = scope["Net"]().eval()
    model.norm.weight.data.mul_(3)
    model.point.weight.data.mul_(4)
    return model


def test_capture_is_what_load_makes_of_the_checkpoint(file, tmp_path):
    model = net(file)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    loaded = svitc.load(tmp_path / "net.pt", arch=f"{file}:Net", input_shape=(3, 8, 8))
    captured = svitc.capture(model, torch.rand(4, 3, 8, 8))
    assert str(captured.graph) == str(loaded.graph)
    assert [(g.name, g.size, g.frozen) for g in captured.groups] == [(g.name, g.size, g.frozen) for g in loaded.groups]
    state = loaded.module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in captured.module.state_dict().items())
    assert captured.info["num_classes"] == loaded.info["num_classes"] == 5
    assert sum(is_neuron(m) for m in captured.module.modules()) == 2
    files = [svitc.compile(program, 0.7, weights="int8", **FAST) for program in (captured, loaded)]
    graphs = [onnx.load_from_string(done.onnx).graph for done in files]
    graphs[0].name = graphs[1].name  # the factory, which a model in memory does not have
    assert graphs[0] == graphs[1] and files[0].report["weights"] == files[1].report["weights"]


PUBLISHED = ("spikformer-imagenet", "sdt", "meta", "espikeformer", "qkformer-imagenet")
IN_MEMORY = [*FAMILIES, *(f"published {name}" for name in PUBLISHED)]


@pytest.mark.parametrize("name", IN_MEMORY)
def test_each_family_is_the_same_from_memory_and_from_a_file(tmp_path, name):
    torch.manual_seed(0)
    if name in FAMILIES:
        factory, shape = FAMILIES[name]
        model = warm(factory(T=2), shape)
    else:
        small = SMALL[name.removeprefix("published ")]
        model, shape = warm(small.shallow(), small.input), small.input
    torch.save(model, tmp_path / "model.pt")
    loaded = svitc.load(tmp_path / "model.pt", trust_pickle=True, input_shape=shape)
    captured = svitc.capture(model, shape)
    assert str(captured.graph) == str(loaded.graph)
    assert [(g.name, g.size, g.frozen) for g in captured.groups] == [(g.name, g.size, g.frozen) for g in loaded.groups]
    exact = []
    for program in (captured, loaded):
        final, pipeline = quantize(program)
        report = weights_report(final, pipeline)
        exact.append((report.exact_neurons, report.neurons, report.inexact, report.layers, report.streams))
    assert exact[0] == exact[1] and exact[0][0] > 0


def test_a_model_is_compiled_in_one_call(file, tmp_path):
    model = net(file)
    before = copy.deepcopy(model.state_dict())
    done = svitc.compile(model, torch.rand(2, 3, 8, 8), budget=1.0, **FAST)
    assert done.verdict.passed
    done.write(tmp_path / "out")
    x = torch.rand(3, 3, 8, 8)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(logits, model(x).detach().numpy(), atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the model is not changed"
    pruned = svitc.compile(model, svitc.InputSpec((3, 8, 8)), 0.6, **FAST)
    assert pruned.report["memory"]["ratio"] <= 0.6


@pytest.mark.parametrize("example", [svitc.InputSpec((3, 8, 8)), (3, 8, 8), torch.zeros(1, 3, 8, 8)])
def test_the_forms_of_an_example(file, example):
    assert svitc.capture(net(file), example).input == svitc.InputSpec((3, 8, 8))


@pytest.mark.parametrize("batch_first", [False, True])
def test_event_frames_in_the_models_own_layout(batch_first):
    example = torch.rand(*((5, 3) if batch_first else (3, 5)), 2, 8, 8)
    program = svitc.capture(Frames(batch_first), example)
    assert program.input == svitc.InputSpec((3, 2, 8, 8)) and program.info.get("batch_first", False) == batch_first


WRONG = {
    "a path": (lambda m: svitc.capture("net.pt", torch.zeros(1, 3, 8, 8)), "a str is not a torch.nn.Module"),
    "a row": (lambda m: svitc.capture(m, torch.zeros(3, 8)), r"example_input has the shape \[3, 8\]"),
    "one image": (lambda m: svitc.capture(m, torch.zeros(3, 8, 8)), r"example_input has the shape \[3, 8, 8\]"),
    "an empty batch": (lambda m: svitc.capture(m, torch.zeros(0, 3, 8, 8)), r"has the shape \[0, 3, 8, 8\]"),
    "bytes": (lambda m: svitc.capture(m, torch.zeros(1, 3, 8, 8).byte()), "a tensor of torch.uint8, not of real"),
    "an array": (lambda m: svitc.capture(m, np.zeros((1, 3, 8, 8))), "not an input of the model"),
    "no example": (lambda m: svitc.compile(m, 0.78), "a model is compiled for inputs of one shape"),
    "no example, a keyword": (lambda m: svitc.compile(m, budget=0.78), "a model is compiled for inputs of one shape"),
    "a path to compile": (lambda m: svitc.compile("net.pt", 0.78), "a str is neither a program nor a model"),
    "two budgets": (lambda m: svitc.compile(svitc.capture(m, (3, 8, 8)), 0.7, 0.8), "the budget is given twice"),
    "an example too many": (
        lambda m: svitc.compile(svitc.capture(m, (3, 8, 8)), torch.zeros(1, 3, 8, 8)),
        "a program knows the shape of its input",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_or_no_input(file, name):
    call, message = WRONG[name]
    with pytest.raises(UsageError, match=message) as caught:
        call(net(file))
    assert caught.value.hint


def test_an_example_that_does_not_fit_the_model(file):
    with pytest.raises(UnsupportedError, match=r"expected input.* to have 3 channels, but got 4"):
        svitc.compile(net(file), torch.zeros(2, 4, 8, 8), budget=0.7)
