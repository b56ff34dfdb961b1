"""Neurons in single-step mode: a loop over time steps becomes one call over all of them."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from svitc.driver.load import check_capture
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec

IMAGE = InputSpec((3, 8, 6))


def lif(mode: str = "s") -> nn.Module:
    return neuron.LIFNode(v_threshold=0.3, step_mode=mode)


class Stepped(nn.Module):
    """Each step of the whole network by itself, with attention and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.lif1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), lif()
        self.conv2, self.lif2, self.head = nn.Conv2d(8, 8, 3, padding=1), lif(), nn.Linear(8, 5)

    def step(self, x):
        y = self.lif1(self.bn(self.conv1(x)))
        y = self.lif2(self.conv2(y) + y).flatten(2).transpose(1, 2)
        return self.head((y @ (y.transpose(1, 2) @ y) * 0.125).mean(1))

    def forward(self, x):
        return torch.stack([self.step(x) for _ in range(3)]).mean(0)


class Summed(Stepped):
    def forward(self, x):
        return sum(self.step(x) for _ in range(3)) / 3


class Once(Stepped):
    def forward(self, x):
        return self.step(x)


class Written(Stepped):
    def forward(self, x):
        x = x.unsqueeze(0).repeat(3, 1, 1, 1, 1)
        out = torch.zeros(3, x.shape[1], 5)
        for t in range(3):
            out[t] = self.step(x[t])
        return out.mean(0)


class Contained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = layer.MultiStepContainer(nn.Conv2d(3, 8, 3), lif())
        self.second = layer.SeqToANNContainer(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        self.third, self.head = layer.StepModeContainer(True, "m", lif()), nn.Linear(8, 5)
        self.fourth = lif()

    def forward(self, x):
        x = self.third(self.second(self.first(x.unsqueeze(0).repeat(3, 1, 1, 1, 1))))
        x = functional.multi_step_forward(x, [self.fourth])
        return self.head(x.mean((3, 4))).mean(0)


@pytest.mark.parametrize("kind", [Stepped, Summed, Once, Written, Contained])
def test_steps_become_one_call(kind):
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    program = capture(model, IMAGE)
    assert check_capture(model, program) < 1e-5
    assert any("called step by step" in note for note in program.info.get("assumptions", [])) is (kind is not Once)
    neurons = list(program.neurons())
    assert len(neurons) == (3 if kind is Contained else 2)
    assert {program.shape_of(n)[0] for n in neurons} == {1 if kind is Once else 3}
    assert {m.step_mode for m in model.modules() if isinstance(m, neuron.LIFNode)} == {"s"}, "the model is as it was"
    convolutions = [n for n in program.graph.nodes if isinstance(program.module_of(n), nn.Conv2d)]
    assert len(convolutions) == 2, "one call for all steps"
    x = torch.rand(4, 3, 8, 6)
    functional.reset_net(model)
    with torch.no_grad():
        assert abs(model(x) - program(x)).max() < 1e-5 and program(x).std() > 0


def test_a_connection_back_in_time_is_refused():
    class Back(Stepped):
        def forward(self, x):
            fired, out = 0, 0
            for _ in range(3):
                fired = self.lif1(self.conv1(x) + fired)
                out = out + fired
            return self.head(out.mean((2, 3)))

    with pytest.raises(UnsupportedError, match="lif1 depends on what it fired") as caught:
        capture(Back().eval(), IMAGE)
    assert __file__ in (caught.value.where or "")


@pytest.mark.parametrize("steps", [1, 3])
def test_parts_of_a_tensor_are_steps_of_a_hand_written_neuron(steps):
    """Of one step, the loop leaves nothing that says which of the parts it reads."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif, self.head = nn.Conv2d(3, 8, 3), lif(), nn.Linear(8, 5)
            self.decay = nn.Parameter(torch.tensor(0.4))

        def forward(self, x):
            v, spikes = 0.0, []
            for part in self.conv(x).repeat(steps, 1, 1, 1, 1).unbind(0):
                v = self.decay.sigmoid() * v + part
                spikes.append((v > 0.2).float())
            x = torch.stack(spikes) * 2
            return self.head(torch.stack([self.lif(part) for part in x.unbind(0)]).mean((0, 3, 4)))

    model = Parts().eval()
    assert check_capture(model, capture(model, IMAGE)) == 0.0
