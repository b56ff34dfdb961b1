"""CUDA in a model's code is the CPU here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from svitc.driver.load import load
from svitc.frontends.compat.devices import cuda_is_cpu
from svitc.frontends.compat.import_hooks import find_factory

MAKERS = {
    "cuda()": lambda: torch.ones(2).cuda(),
    "cuda(0)": lambda: torch.ones(2).cuda(0),
    "to": lambda: torch.ones(2).to("cuda:1", torch.float16),
    "to a number": lambda: torch.ones(2).to(0),
    "to a device": lambda: torch.ones(2).to(device=torch.device("cuda", 1)),
    "device": lambda: torch.zeros(2, device="cuda"),
    "device by number": lambda: torch.zeros(2, device=0),
    "of another": lambda: torch.ones(2).new_zeros(2, device=torch.device("cuda")),
    "current": lambda: torch.zeros(2, device=torch.cuda.current_device()),
    "type": lambda: torch.cuda.FloatTensor(2),
    "named type": lambda: torch.ones(2).type("torch.cuda.HalfTensor"),
    "layer": lambda: nn.Linear(2, 2).cuda().to("cuda").weight,
    "built there": lambda: nn.Linear(2, 2, device="cuda").weight,
}


@pytest.mark.parametrize("name", MAKERS)
def test_everything_is_made_here(name):
    with cuda_is_cpu():
        torch.cuda.synchronize()
        assert MAKERS[name]().device.type == "cpu"


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
    """Its number of time steps is found under each of the usual names, too."""
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
