"""Layers, parameters and buffers that are named by keywords of Python."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

import svitc
from svitc.driver.load import check_capture
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.model_rewrites import reference
from svitc.ir.graph import InputSpec
from svitc.support.user_code import import_file

SPEC = InputSpec((3, 6, 6))


class Net(nn.Module):
    """A model with a layer, a neuron and a scale of one name."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.convs = nn.ModuleDict({key: nn.ModuleDict({key: layer.Conv2d(3, 8, 3, padding=1, step_mode="m")})})
        self.neurons = nn.ModuleDict({key: neuron.LIFNode(step_mode="m", v_threshold=0.3), f"{key}_": nn.Identity()})
        self.scales = nn.ParameterDict({key: nn.Parameter(torch.tensor(1.5))})
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convs[self.key][self.key](x.unsqueeze(0).repeat(2, 1, 1, 1, 1)) * self.scales[self.key]
        x = self.neurons[f"{self.key}_"](self.neurons[self.key](x))
        return self.head(x.mean((0, 3, 4)))


@pytest.mark.parametrize("key", ["class", "global", "lambda", "None", "import", "match", "3x3"])
def test_a_keyword_as_a_name(key):
    torch.manual_seed(0)
    model = Net(key).eval()
    program = capture(model, SPEC)
    assert check_capture(model, program) == 0
    x = torch.rand(SPEC.batched(3))
    assert torch.equal(program(x), reference(model, program, x))
    assert key in model.convs and key in model.neurons and key in model.scales, "the model is not changed"


def test_the_files_of_such_a_model(tmp_path):
    torch.manual_seed(0)
    model = Net("class").eval()
    done = svitc.compile(model, SPEC, 0.8, images=1, no_data="uniform")
    assert done.verdict.passed
    done.write(tmp_path / "out")
    import_file(tmp_path / "out" / "model.py")
    again = svitc.load(tmp_path / "out")
    x = torch.rand(SPEC.batched(2))
    assert torch.equal(again(x), done.program(x))
