"""Neurons written by hand become canonical ones that fire the same, bit for bit; others stay ordinary operations."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from support import written_neurons as written
from svitc.driver.load import check_capture
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.neuron_dynamics import dynamics_of

IMAGE = InputSpec((3, 8, 6))


def neurons(program) -> list[nn.Module]:
    return [program.module_of(node) for node in program.neurons()]


def captured(fires, steps=4, depth=2):
    """The program of a network that fires, whose logits equal those of the model."""
    torch.manual_seed(0)
    model = written.Net(fires, steps, depth).eval()
    program = capture(model, IMAGE)
    assert check_capture(model, program) == 0.0
    assert program(torch.randn(2, 3, 8, 6)).std() > 0
    return program


# what is written -> class, keep, gain, threshold, soft reset, largest number of spikes, strict
EXPECTED = {
    written.strict: (ops.LeakyNeuron, 0.25, 1.0, 0.5, False, 1, True),
    written.charged_by_tau: (neuron.LIFNode, 1 - 1 / 3, 1 / 3, 0.5, False, 1, False),
    written.charged_by_rate: (neuron.ParametricLIFNode, 0.425557, 0.574443, 1.0, False, 1, False),
    written.subtracts: (ops.LeakyNeuron, 0.9, 1.0, 1.0, True, 1, False),
    written.scales_its_input: (ops.LeakyNeuron, 0.75, 0.25, 0.3, False, 1, False),
    written.halves: (neuron.LIFNode, 0.5, 1.0, 1.0, False, 1, False),
    written.sums: (neuron.IFNode, 1.0, 1.0, 1.0, True, 1, False),
    written.counts: (neuron.ILIFNode, 0.25, 1.0, 1.0, True, 4, False),
    written.time_second: (ops.LeakyNeuron, 0.2, 1.0, 0.5, False, 1, True),
}


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("fires", EXPECTED, ids=lambda fires: fires.__name__)
def test_a_neuron_written_by_hand_is_recognized(fires, steps):
    kind, keep, gain, threshold, soft, most, strict = EXPECTED[fires]
    program = captured(fires, steps)
    for module in neurons(program):
        assert type(module) is kind
        dynamics = dynamics_of(module)
        assert (dynamics.keep, dynamics.gain) == (pytest.approx(keep, abs=1e-5), pytest.approx(gain, abs=1e-5))
        assert (dynamics.threshold, dynamics.reset is None) == (threshold, soft)
        assert (dynamics.max_spikes, dynamics.strict) == (most, strict)
    assert len(neurons(program)) == 2
    (note,) = [n for n in program.info["assumptions"] if "written by hand" in n]
    assert note.startswith("2 neurons written by hand (written_neurons.py:") and f"threshold {threshold:g}" in note


@pytest.mark.parametrize("fires", EXPECTED, ids=lambda fires: fires.__name__)
def test_the_neuron_fires_the_same_for_any_current(fires):
    (module, _) = neurons(captured(fires))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 20000, generator=generator) * 2
    x[:, ::2] = (torch.randint(-8, 17, (4, 10000), generator=generator) / 8) * 0.5  # sums that hit the threshold
    functional.reset_net(module)
    with torch.no_grad():
        want, fired = fires(x), module(x)
    scale = want.max() / fired.max()
    assert torch.equal(fired * scale, want) and fired.max() > 0


def test_what_is_no_neuron_stays_ordinary_operations():
    program = captured(written.bends)
    assert {type(module) for module in neurons(program)} == {ops.Step}
    assert len(neurons(program)) == 8
    assert not any("by hand" in note for note in program.info.get("assumptions", []))


def test_a_function_whose_last_bits_depend_on_the_library_is_no_neuron():
    def fires(x):
        return torch.stack([(torch.tanh(current) >= 0.5).float() for current in x])

    assert {type(module) for module in neurons(captured(fires, 1))} == {ops.Step}


def test_a_loop_over_another_dimension_than_time_stays_ordinary_operations():
    def fires(x):
        return written.sums(x.transpose(0, 4)).transpose(0, 4)

    assert {type(module) for module in neurons(captured(fires))} == {ops.Step}


def test_membranes_that_are_read_elsewhere_stay_ordinary_operations():
    def fires(x):
        mem, out = 0.0, []
        for current in x:
            mem = 0.5 * mem + current
            spike = (mem >= 1.0).float()
            mem = mem * (1 - spike)
            out.append(spike)
        return torch.stack(out) * mem.mean((-1, -2), keepdim=True)

    assert {type(module) for module in neurons(captured(fires))} == {ops.Step}


def test_a_neuron_in_a_subclass_of_spikingjelly_is_recognized():
    class Kept(neuron.BaseNode):
        def single_step_functional_forward(self, inputs, states, **kwargs):
            v = states[0] * 0.9 + inputs[0]
            spike = self.surrogate_function(v - self.v_threshold)
            return (spike,), (v * (1 - spike),)

    (module,) = neurons(captured(Kept(step_mode="m"), depth=1))
    assert isinstance(module, ops.LeakyNeuron)
    assert (module.keep, module.threshold, module.hard_reset, module.strict) == (0.9, 1.0, True, False)


def test_the_same_image_at_each_step():
    """The current does not depend on the step, and the loop makes the time axis."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            x, mem, out = self.conv(x), 0.0, []
            for _ in range(4):
                mem = 0.3 * mem + x
                spike = (mem >= 0.2).float()
                mem = mem * (1 - spike)
                out.append(spike)
            return self.head(torch.stack(out).mean((0, 3, 4)))

    torch.manual_seed(0)
    model = Net().eval()
    program = capture(model, IMAGE)
    assert check_capture(model, program) == 0.0
    (module,) = neurons(program)
    assert isinstance(module, ops.LeakyNeuron) and module.keep == 0.3


def test_an_output_that_is_no_spike_is_no_neuron():
    class Soft(neuron.BaseNode):
        def single_step_functional_forward(self, inputs, states, **kwargs):
            v = states[0] * 0.9 + inputs[0]
            return (torch.relu(v - 1.0),), (v,)

    assert neurons(captured(Soft(step_mode="m"), depth=1)) == []


class Fires(nn.Module):
    """A neuron that keeps its membrane between the calls of a loop over the whole network."""

    def forward(self, x):
        self.mem = self.mem * 0.25 + x
        spike = written.Exceeds.apply(self.mem, 0.5)
        self.mem = self.mem * (1 - spike)
        return spike * 0.5


class Loop(nn.Module):
    def __init__(self, feedback: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.first, self.second, self.feedback = Fires(), Fires(), feedback

    def forward(self, x):
        self.first.mem = self.second.mem = 0.0
        total, back = 0.0, 0.0
        for _ in range(3):
            y = self.first(self.a(x) * 2 + back)
            y = self.second(self.b(y) * 2)
            back = y if self.feedback else 0.0
            total = total + self.head(y.mean((2, 3)))
        return total / 3


def looped(feedback):
    torch.manual_seed(0)
    model = Loop(feedback).eval()
    program = capture(model, IMAGE)
    x = torch.randn(2, 3, 8, 6)
    with torch.no_grad():
        want = model(x)
    torch.testing.assert_close(program(x), want, rtol=0, atol=1e-6)
    assert want.std() > 0
    return program


def test_a_neuron_in_a_loop_over_the_network_is_called_once():
    program = looped(False)
    assert [type(module) for module in neurons(program)] == [ops.LeakyNeuron] * 2
    assert {str(node.target) for node in program.neurons()} == {"first", "second"}
    assert [node.target for node in program.graph.nodes if node.op == "call_module"].count("b") == 1
    (note,) = [n for n in program.info["assumptions"] if "by hand" in n]
    assert note.startswith("2 neurons") and "keep 0.25" in note


def test_a_neuron_whose_spikes_come_back_later_stays_ordinary_operations():
    assert {type(module) for module in neurons(looped(True))} == {ops.Step}
