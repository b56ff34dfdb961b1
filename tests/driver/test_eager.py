"""The accuracy of the original is the model's own, not that of the program that was captured from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import svitc
from svitc.driver.agreement import log_probabilities
from svitc.driver.compiler import Compiler
from svitc.driver.eager import EagerModel
from svitc.driver.options import CompileOptions
from svitc.driver.output_errors import outputs_report
from svitc.onnx.export import export
from svitc.passes.policies import make
from svitc.support.reporter import Reporter

SOURCE = """
import torch
from torch import nn
from spikingjelly.activation_based import layer, neuron

class Net(nn.Module):
    def __init__(self, several=False, events=False):
        super().__init__()
        self.several, self.events = several, events
        self.conv = layer.Conv2d(2, 8, 3, 1, 1, step_mode="m")
        self.spike = neuron.LIFNode(step_mode="m", v_threshold=0.2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = x.transpose(0, 1) if self.events else x.unsqueeze(0).repeat(3, 1, 1, 1, 1)
        y = self.spike(self.conv(x)).mean((3, 4))
        y = self.head(y).mean(0)
        return {"scores": y, "twice": 2 * y} if self.several else y
"""


class Images:
    labeled = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.x = torch.rand((24, *shape), generator=torch.Generator().manual_seed(0)) * 3
        self.y = torch.arange(24) % 4

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i in range(0, 24, size):
            x = self.x[i : i + size]
            yield (x.transpose(0, 1).floor() if x.ndim == 5 else x), self.y[i : i + size]

    def __len__(self) -> int:
        return 24


def loaded(folder: Path, shape: tuple[int, ...], **arguments: bool):
    torch.manual_seed(0)
    (folder / "net.py").write_text(SOURCE)
    names: dict = {}
    exec(SOURCE, names)
    torch.save(names["Net"](**arguments).state_dict(), folder / "net.pt")
    return svitc.load(folder / "net.pt", arch=f"{folder / 'net.py'}:Net", arch_args=arguments, input_shape=shape)


@pytest.mark.parametrize(("shape", "arguments"), [((2, 8, 8), {}), ((3, 2, 8, 8), {"events": True})])
def test_a_loaded_program_knows_its_model(tmp_path, shape, arguments):
    program = loaded(tmp_path, shape, **arguments)
    assert isinstance(program.eager, EagerModel)
    x = next(Images(shape).batches(5))[0]
    for output, expected in zip(program.original_outputs(x), program.outputs(x), strict=True):
        assert torch.allclose(output, expected, atol=1e-6)
    assert program.copy().eager is None


def test_several_outputs_keep_their_order(tmp_path):
    program = loaded(tmp_path, (2, 8, 8), several=True)
    x = next(Images((2, 8, 8)).batches(5))[0]
    assert program.output_names == ["scores", "twice"]
    for output, expected in zip(program.original_outputs(x), program.outputs(x), strict=True):
        assert torch.equal(output, expected)


def turned(program):
    """Let the model at hand prefer another class than the program does."""
    program.eager = lambda x: tuple(output.roll(1, dims=-1) for output in program.outputs(x))
    return program


def test_the_report_shows_the_models_own_accuracy(tmp_path):
    data = Images((2, 8, 8))
    program = turned(loaded(tmp_path, (2, 8, 8)))
    options = CompileOptions(data=data, weights="fp32", no_data="uniform")
    accuracy = Compiler(program, make("uniform"), options).compile(1.0).report["accuracy"]
    classes = program.outputs(data.x)[0].argmax(1)
    assert accuracy["original"] == pytest.approx(float(((classes + 1) % 4 == data.y).float().mean()))
    assert accuracy["pruned"] == pytest.approx(float((classes == data.y).float().mean()))


def test_agreement_and_other_outputs_are_compared_with_the_model_too(tmp_path):
    data, reporter = Images((2, 8, 8)), Reporter()
    program = turned(loaded(tmp_path, (2, 8, 8)))
    logs = np.concatenate(log_probabilities(program, data, reporter))
    assert np.array_equal(logs.argmax(1), (program.outputs(data.x)[0].argmax(1).numpy() + 1) % 4)
    report = outputs_report(program, export(program), data, None, reporter)
    assert report.relative_errors["logits"] > 0.01
