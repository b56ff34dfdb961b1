"""The check of a capture finds a wrong layer, also one that is silent on images and one that changes no output."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from support.families import FAMILIES, warm
from svitc.driver.capture_check import check_capture
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import BATCH_PROBE, InputSpec

IMAGE = InputSpec((3, 8, 6))


class Net(nn.Module):
    """Two layers; the first neuron fires where pixels are above ``threshold``."""

    def __init__(self, threshold: float = 0.5, scale: float = 1.0) -> None:
        super().__init__()
        self.conv = layer.Conv2d(3, 8, 1, step_mode="m")
        self.lif = neuron.LIFNode(v_threshold=threshold, step_mode="m")
        self.conv2, self.lif2 = layer.Conv2d(8, 8, 3, padding=1, step_mode="m"), neuron.IFNode(step_mode="m")
        self.head, self.scale = nn.Linear(8, 5), scale
        with torch.no_grad():
            self.conv.weight.fill_(1 / 3)
            self.conv.bias.zero_()

    def forward(self, x):
        x = self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))
        return self.head(self.lif2(self.conv2(x) * self.scale).mean((0, 3, 4)))


def both(model: nn.Module):
    torch.manual_seed(0)
    return model.eval(), capture(model, IMAGE)


def test_a_program_that_is_the_model_passes():
    model, program = both(Net())
    assert check_capture(model, program) == 0.0 and "assumptions" not in program.info


@pytest.mark.parametrize("threshold", [0.5, 100.0, 1e6], ids=["fires", "fires on strong inputs", "silent"])
def test_a_wrong_layer_is_found_and_named(threshold):
    """The weights are the model's; nothing behind a silent layer changes the output, but random spikes show it."""
    model, program = both(Net(threshold))
    with torch.no_grad():
        program.module.conv2.weight[0, 0] += 1e-3
    with pytest.raises(UnsupportedError, match="input of lif2 differs") as caught:
        check_capture(model, program)
    assert __file__ in (caught.value.where or "")


@pytest.mark.parametrize(("error", "rounding"), [(1e-7, True), (1e-5, False)])
def test_a_difference_in_the_last_bits_is_rounding_and_is_said(error, rounding):
    model, program = both(Net())
    with torch.no_grad():
        program.module.conv2.weight *= 1 + error
    if rounding:
        assert check_capture(model, program) >= 0.0
        assert "the input of lif2 differs from the model's in the last bits" in " ".join(program.info["assumptions"])
    else:
        with pytest.raises(UnsupportedError, match="input of lif2 differs"):
            check_capture(model, program)


def test_a_wrong_layer_whose_output_is_not_used_is_found():
    model, program = both(Net())
    with torch.no_grad():
        program.module.head.weight.zero_()
        model.head.weight.zero_()
        program.module.conv.bias[3] = 0.1
    with pytest.raises(UnsupportedError, match="input of lif differs"):
        check_capture(model, program)


def test_a_wrong_output_is_found():
    model, program = both(Net())
    with torch.no_grad():
        program.module.head.bias[0] += 1e-6
    with pytest.raises(UnsupportedError, match="the output differs by"):
        check_capture(model, program)


def test_a_neuron_that_no_input_makes_fire_is_compared_on_a_stronger_current():
    model, program = both(Net(1e6))
    assert check_capture(model, program) == 0.0 and "assumptions" not in program.info
    program.module.lif.v_threshold *= 1.01
    with pytest.raises(UnsupportedError, match="what lif fires differs"):
        check_capture(model, program)


@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_a_wrong_neuron_is_found(step_mode):
    """Each time step of the model is compared with its part of the program's only call."""

    class Loop(Net):
        def forward(self, x):
            x = self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1))
            x = self.lif(x) if step_mode == "m" else torch.stack([self.lif(step) for step in x])
            return self.head(self.lif2(self.conv2(x)).mean((0, 3, 4)))

    net = Loop()
    net.lif.step_mode = step_mode
    model, program = both(net)
    assert check_capture(model, program) == 0.0
    program.module.lif.tau = 2.5
    with pytest.raises(UnsupportedError, match="differs by"):
        check_capture(model, program)


def test_a_silent_neuron_of_the_models_own_code_is_named():
    class ByHand(Net):
        def forward(self, x):
            x = self.conv(x.unsqueeze(0))
            return self.head(((x > 1e9).float() + x).mean((0, 3, 4)))

    model, program = both(ByHand())
    assert check_capture(model, program) == 0.0
    [note] = program.info["assumptions"]
    assert "made these neurons fire: " in note


def test_an_error_of_the_check_that_the_model_catches_is_raised():
    class Catches(Net):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                return torch.zeros(len(x), 5)

    model, program = both(Catches())
    with torch.no_grad():
        program.module.conv2.weight[0, 0] += 1e-3
    with pytest.raises(UnsupportedError, match="input of lif2 differs"):
        check_capture(model, program)


def test_few_values_are_kept():
    """The program follows the model: what both have computed is let go of."""
    model, program = both(Net())
    inputs = []
    model.lif2.register_forward_hook(lambda module, args, output: inputs.append(weakref.ref(args[0])))
    model.head.register_forward_hook(lambda *_: inputs.append(inputs[0]()))
    check_capture(model, program)
    assert len(inputs) == 2 and inputs[1] is None


class Stateful(Net):
    """Carries something from one call to the next that only the model's own code can reset."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0.0

    def forward(self, x):
        y = super().forward(x) + self.calls
        self.calls += 1
        return y


def test_state_of_the_models_own_does_not_disturb():
    model, program = both(Stateful())
    before = copy.deepcopy(model.calls)
    assert check_capture(model, program) == 0.0 and model.calls == before


class Changing(Net):
    """Changes in place what a layer has read."""

    def forward(self, x):
        x = self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))
        y = self.conv2(x)
        x += 1
        return self.head(self.lif2(y + x).mean((0, 3, 4)))


def test_inputs_that_the_model_changes_afterwards():
    model, program = both(Changing())
    assert check_capture(model, program) == 0.0


class Strided(nn.Module):
    """Its second convolution reads channels from the last place in memory, which ``contiguous`` puts there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu, self.conv2 = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)

    def forward(self, x):
        x = self.relu(self.conv1(x)).movedim(1, -1).contiguous().movedim(-1, 1)
        return self.conv2(x).mean((2, 3))


def test_layers_read_numbers_in_the_order_of_the_model():
    """A convolution may round otherwise where its input is in another order in memory."""
    model, program = both(Strided())
    strides: list[tuple[int, ...]] = []
    program.module.conv2.register_forward_pre_hook(lambda module, args: strides.append(args[0].stride()))
    program(torch.zeros(2, 3, 8, 6))
    assert strides.pop()[1] != 1, "the program leaves it as it is"
    assert check_capture(model, program) == 0.0
    assert strides and all(stride[1] == 1 for stride in strides)


class OfThree(Net):
    """Knows the batch size of a capture."""

    def forward(self, x):
        return super().forward(x) * torch.arange(1.0, 1 + len(x)).view(-1, 1)


class Fails(Net):
    def forward(self, x):
        if len(x) != BATCH_PROBE:
            raise RuntimeError("only the batch of the capture")
        return super().forward(x)


def test_a_constant_of_the_batch_size_is_refused():
    model, program = both(OfThree())
    with pytest.raises(UnsupportedError, match="fails on a batch of"):
        check_capture(model, program)


def test_a_model_for_some_batch_sizes_is_refused_with_its_line():
    model, program = both(Fails())
    with pytest.raises(UnsupportedError, match="forward fails on a batch of 5") as caught:
        check_capture(model, program)
    assert __file__ in (caught.value.where or "")


def test_known_rounding_is_allowed_and_other_differences_are_not():
    class Mixed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(48, 48) / 7)

        def forward(self, x):
            x = self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1))).flatten(3).transpose(2, 3)
            return self.head(self.lif2(self.matrix @ x).mean((0, 2)))

    model, program = both(Mixed())
    assert check_capture(model, program) < 1e-5
    assert any("same but for rounding" in note for note in program.info["assumptions"])
    with torch.no_grad():
        program.module.matmul.weight[0] += 1e-2
    with pytest.raises(UnsupportedError, match="input of lif2 differs"):
        check_capture(model, program)


@pytest.mark.parametrize("family", ["spikformer", "qkformer-token"])
def test_every_layer_of_a_family_is_compared(family):
    """Whatever weight is wrong, the check sees it."""
    torch.manual_seed(0)
    factory, shape = FAMILIES[family]
    model = warm(factory(T=2), shape)
    program = capture(model, InputSpec(shape))
    for name, parameter in program.module.named_parameters():
        with torch.no_grad():
            before = parameter.clone()
            parameter += 1e-2
            with pytest.raises(UnsupportedError, match="differs by"):
                check_capture(model, program)
            parameter.copy_(before)
        assert name
    assert check_capture(model, program) == 0.0


class Counting(nn.Module):
    """A model that counts its calls, and lets the count matter or not."""

    def __init__(self, matters: bool) -> None:
        super().__init__()
        self.conv, self.head, self.matters = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), matters
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(self.conv(x * self.calls if self.matters else x).mean((2, 3)))


@pytest.mark.parametrize("matters", [True, False])
def test_a_result_that_depends_on_earlier_calls_is_said(matters):
    model = Counting(matters).eval()
    program = capture(model, InputSpec((3, 8, 8)))
    assert check_capture(model, program) == 0.0
    notes = " ".join(program.info.get("assumptions", []))
    assert ("calls change calls, and with it what the next call computes" in notes) == matters


class Remembering(nn.Module):
    """A model whose first call leaves behind what a second one cannot use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.register_buffer("membrane", torch.zeros(4))

    def forward(self, x):
        self.membrane = self.membrane.view(4, 1, 1) + self.conv(x)
        return self.head(self.membrane.mean((2, 3)))


def test_a_model_that_runs_only_once_is_captured_and_said():
    model = Remembering().eval()
    program = capture(model, InputSpec((3, 8, 8)))
    assert check_capture(model, program) == 0.0
    assert "calls change membrane" in " ".join(program.info["assumptions"])
