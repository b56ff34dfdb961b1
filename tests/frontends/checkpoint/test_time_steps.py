"""The number of time steps under each of its usual names, in models that are written for a GPU."""

from __future__ import annotations

import pytest
import torch

from svitc.driver.load import load
from svitc.frontends.compat.import_hooks import find_factory

MODEL = """
import torch
from torch import nn
from spikingjelly.activation_based import neuron

class Net(nn.Module):
    def __init__(self, {name}=3):
        super().__init__()
        self.device, self.steps = torch.device("cuda"), {name}
        self.scale = nn.Parameter(torch.ones(4, device="cuda"))
        self.fc, self.lif = nn.Linear(6, 4).cuda(), neuron.LIFNode(step_mode="m", v_threshold=0.2).cuda()
        self.to(self.device)

    def forward(self, x):
        x = x.to(self.device).cuda().flatten(1) * torch.ones(1, device="cuda")
        y = torch.stack([self.fc(x.cuda(non_blocking=True))] * self.steps)
        return (self.lif(y) * self.scale).mean(0)
"""


@pytest.mark.parametrize("name", ["T", "time_step", "timestep", "time_steps", "timesteps", "num_steps", "step"])
@pytest.mark.parametrize("place", ["file", "module"])
def test_a_model_written_for_a_gpu(tmp_path, monkeypatch, name, place):
    module = f"gpu_model_{name}_{place}"
    (tmp_path / f"{module}.py").write_text(MODEL.replace("{name}", name))
    torch.save(find_factory(tmp_path / f"{module}.py", "Net")().state_dict(), tmp_path / "m.pt")
    monkeypatch.chdir(tmp_path)
    arch = f"{tmp_path}/{module}.py:Net" if place == "file" else f"{module}:Net"
    program = load(tmp_path / "m.pt", arch=arch, input_shape=(1, 2, 3), time_steps=5)
    assert program.shape_of(next(program.neurons()))[0] == 5


def test_a_scripts_step_counts_where_the_model_has_one(tmp_path):
    (tmp_path / "m.py").write_text(MODEL.replace("{name}", "step"))
    state = find_factory(tmp_path / "m.py", "Net")().state_dict()
    torch.save({"model": state, "args": {"step": 6, "lr": 0.1}}, tmp_path / "m.pt")
    program = load(tmp_path / "m.pt", arch=f"{tmp_path}/m.py:Net", input_shape=(1, 2, 3))
    assert program.shape_of(next(program.neurons()))[0] == 6
