"""Models that ask for a GPU, in constructors and in forward, are captured on the CPU."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

import svitc
from svitc.driver.load import check_capture
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.model_rewrites import reference
from svitc.frontends.checkpoint.model_factory import build_custom
from svitc.ir.graph import InputSpec
from svitc.ir.ops import is_neuron

MODEL = """
import torch
from torch import nn
from spikingjelly.activation_based import neuron

DEVICE = torch.device("cuda")


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        torch.cuda.set_device(0)
        self.conv = nn.Conv2d(3, width, 1).cuda()
        self.lif = neuron.LIFNode(step_mode="m")
        self.scale = torch.tensor(0.5).cuda()
        self.head = nn.Linear(width, 2, device=DEVICE).to(DEVICE)

    def forward(self, x):
        x = x.cuda().unsqueeze(0).repeat(2, 1, 1, 1, 1).to(DEVICE, non_blocking=True)
        T, N = x.shape[:2]
        y = self.conv(x.flatten(0, 1).to(device="cuda"))
        y = y + torch.ones(y.shape, device=DEVICE) * self.scale
        y = self.lif(y.view(T, N, *y.shape[1:]))
        membrane = torch.zeros_like(y[0], device="cuda:0").cuda()
        with torch.cuda.device(0):
            for t in range(T):
                membrane = membrane + y[t].to(torch.cuda.current_device())
        return self.head(membrane.mean((2, 3)).cpu().cuda())
"""
COMPILED = """
import torch
from torch import nn
from spikingjelly.activation_based import neuron


@torch.jit.script
def doubled(x: torch.Tensor, steps: int):
    return torch.stack([x * 2 for _ in range(steps)])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lif = nn.Conv2d(3, 4, 1), neuron.LIFNode(step_mode="m")
        self.lif.compile()

    @torch.compile(mode="max-autotune")
    def spikes(self, x):
        return self.lif(doubled(self.conv(x), 2))

    @torch.compile
    def forward(self, x):
        return self.spikes(x).mean((0, 3, 4))
"""


@pytest.mark.parametrize("by_path", [True, False])
def test_a_model_written_for_a_gpu(tmp_path, monkeypatch, by_path):
    (tmp_path / "for_gpus.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    place = str(tmp_path / "for_gpus.py") if by_path else "for_gpus"
    model, _ = build_custom(f"{place}:Net", {"width": 6}, None)
    spec = InputSpec((3, 4, 4))
    program = capture(model.eval(), spec)
    assert check_capture(model, program) == 0
    x = torch.randn(spec.batched(3))
    assert torch.equal(program(x), reference(model, program, x))
    assert sum(is_neuron(m) for m in program.module.modules()) == 1


def test_a_model_of_a_notebook():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif = nn.Conv2d(3, 4, 1), neuron.LIFNode(step_mode="m")

        def forward(self, x):
            y = self.conv(x.cuda())
            return self.lif(torch.stack([y, y]).cuda()).mean((0, 3, 4)) + torch.ones(4, device="cuda")

    model = Net().eval()
    assert check_capture(model, capture(model, InputSpec((3, 4, 4)))) == 0


def test_compiled_and_scripted_functions_run_as_they_are_written(tmp_path):
    (tmp_path / "compiled.py").write_text(COMPILED)
    model, _ = build_custom(f"{tmp_path}/compiled.py:Net", {}, None)
    program = capture(model.eval(), InputSpec((3, 4, 4)))
    assert check_capture(model, program) == 0
    assert sum(is_neuron(m) for m in program.module.modules()) == 1


def test_compiled_functions_and_models():
    @torch.compile
    def scaled(x):
        return 2 * x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif = nn.Conv2d(3, 4, 1), neuron.LIFNode(step_mode="m")

        @torch.compile
        def part(self, x):
            return scaled(self.conv(x))

        def forward(self, x):
            y = self.part(x)
            return self.lif(torch.stack([y, y])).mean((0, 3, 4))

    model = Net().eval()
    assert check_capture(model, capture(model, InputSpec((3, 4, 4)))) == 0
    program = svitc.capture(torch.compile(nn.DataParallel(model)), torch.rand(2, 3, 4, 4))
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(program(x), reference(model, program, x))
