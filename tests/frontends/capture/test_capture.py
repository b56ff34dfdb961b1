"""Capture: exact for every family and neuron, and a refusal that names the layer and the line for the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from einops import rearrange, repeat
from spikingjelly.activation_based import layer, neuron
from torch import nn

from support.families import FAMILIES, IMAGE, NEURONS, maxformer, sdt, spikformer, warm
from svitc import runtimes
from svitc.driver.load import check_capture
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.onnx.export import export
from svitc.passes.pipelines import canonical_passes
from svitc.verification.recorder import Recorder


@pytest.mark.parametrize("time", [1, 4])
@pytest.mark.parametrize("events", [False, True], ids=["image", "events"])
@pytest.mark.parametrize("family", FAMILIES)
def test_capture_is_exact(family, events, time):
    torch.manual_seed(0)
    factory, shape = FAMILIES[family]
    spec = InputSpec((time, *shape) if events else shape)
    model = warm(factory(T=time), spec.shape)
    program = capture(model, spec)
    assert check_capture(model, program) == 0.0
    for batch in (1, 4):
        recorder, logits = Recorder.record(program, torch.randn(spec.batched(batch)))
        assert logits.shape[-2:] == (batch, 5)
    fired = [bool(s.any()) for s in recorder.spikes.values()]
    assert sum(fired) > 0.7 * len(fired), "a silent model proves little"


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("family", ["spikformer", "qkformer-token", "maxformer"])
def test_every_neuron_is_captured(family, kind):
    torch.manual_seed(0)
    model = warm(FAMILIES[family][0](T=3, **NEURONS[kind]))
    assert check_capture(model, capture(model, InputSpec(IMAGE))) == 0.0


def test_state_left_from_an_earlier_forward_is_not_baked_in():
    model = warm(sdt(T=2))
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 48))
    assert check_capture(model, capture(model, InputSpec(IMAGE))) == 0.0


def test_the_program_is_independent_of_the_model():
    model = warm(spikformer(T=2))
    program = capture(model, InputSpec(IMAGE))
    x = torch.randn(1, 3, 32, 48)
    want = program(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(program(x), want) and want.abs().max() > 0


def test_programs_train():
    model = warm(spikformer(T=2))
    program = capture(model, InputSpec(IMAGE))
    program.module.train()
    program.reset()
    program.module(torch.randn(2, 3, 32, 48)).square().sum().backward()
    missing = [name for name, p in program.module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


class Net(nn.Module):
    """A small host for what must be refused; ``body`` maps the neuron's spikes [T, N, C, H, W] to [N, C]."""

    def __init__(self, body=None, spiking=None, width=8) -> None:
        super().__init__()
        self.conv = layer.Conv2d(3, 8, 3, padding=1, step_mode="m")
        self.lif = spiking or neuron.LIFNode(step_mode="m")
        self.head = nn.Linear(width, 5)
        self.unused = nn.Linear(7, 11)
        self.body = body or (lambda x: x.flatten(3).mean(-1).mean(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))))


def branch(x):
    return x.mean((0, 3, 4)) if x.sum() > 0 else x.sum((0, 3, 4))


def read_item(x):
    return x.mean((0, 3, 4)) * x.max().item()


def assign(x):
    x[x.sum(-1).long()] = 0
    return x.mean((0, 3, 4))


def test_statistics_that_the_output_does_not_use():
    class Logging(Net):
        def __init__(self):
            super().__init__()
            self.rates, self.rate, self.peak = [], 0.0, 0.0

        def forward(self, x):
            y = self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))
            self.rate = float(y.detach().mean().item())
            self.peak = y.max().item()
            self.rates.append(y.mean().item())
            return self.head(y.mean((0, 3, 4)))

    model = Logging().eval()
    assert check_capture(model, capture(model, InputSpec(IMAGE))) == 0.0


class Rated(Net):
    """Uses a number that it has kept."""

    def forward(self, x):
        y = self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))
        self.rate = float(y.mean())
        return self.head(y.mean((0, 3, 4))) * (2 if self.rate > 0.5 else 1)


REFUSED = {
    "control flow on data": (lambda: Net(branch), "control flow depends on the data", "def branch"),
    "control flow on a statistic": (Rated, "control flow depends on the data", "self.rate = float"),
    "a number in an expression": (
        lambda: Net(lambda x: x.mean((0, 3, 4)) * float(x.mean())),
        "control flow depends on the data",
        "a number in an expression",
    ),
    "a value read out": (lambda: Net(read_item), "control flow depends on the data", "def read_item"),
    "assignment by data": (lambda: Net(assign), "positions that depend on the data", "def assign"),
    "unknown operation": (
        lambda: Net(lambda x: torch.linalg.svdvals(x).mean((0, 3))),
        "svdvals is not an operation",
        "torch.linalg.svdvals",
    ),
    "a part of the batch": (
        lambda: Net(lambda x: x[:, 1:].mean((0, 3, 4))),
        "across the batch",
        "x[:, 1:]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented_is_refused_with_its_line(case):
    make, message, text = REFUSED[case]
    with pytest.raises(UnsupportedError, match=re.escape(message)) as caught:
        capture(make(), InputSpec((3, 8, 6)))
    assert caught.value.where is not None
    path, line = caught.value.where.rsplit(":", 1)
    assert Path(path).name == Path(__file__).name
    source = Path(__file__).read_text().splitlines()
    nearby = "\n".join(source[int(line) - 3 : int(line)])
    assert text in nearby, f"line {line}: {nearby}"


def test_time_and_batch_run_together_is_refused():
    class Together(Net):
        def __init__(self) -> None:
            super().__init__()
            self.second = neuron.LIFNode(step_mode="m")

        def forward(self, x):
            x = self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))
            return self.head(self.second(x.flatten(0, 1)).mean((0, 2, 3)))

    with pytest.raises(UnsupportedError, match="second: the neuron's first dimension is not time alone"):
        capture(Together(), InputSpec((3, 8, 6)))


def test_an_input_that_does_not_fit():
    with pytest.raises(UnsupportedError, match=r"does not fit its input|too small") as caught:
        capture(maxformer(T=2), InputSpec((1, 32, 32)))
    assert caught.value.where is not None


def test_a_forward_with_two_inputs():
    class Two(Net):
        def forward(self, x, y):
            return x + y

    with pytest.raises(UnsupportedError, match="must take one tensor; it takes x, y"):
        capture(Two(), InputSpec((3, 8, 6)))


def test_dead_parameters_are_told_apart():
    program = capture(Net(), InputSpec((3, 8, 6)))
    assert program.info["dead"] == {"unused.weight": 77, "unused.bias": 11}
    assert program.parameter_count() == 3 * 8 * 9 + 8 + 8 * 5 + 5


def test_layers_may_be_called_twice():
    class Shared(Net):
        def forward(self, x):
            x = x.unsqueeze(0).repeat(2, 1, 1, 1, 1)
            return self.head((self.conv(x) + self.conv(x * 0.5)).mean((0, 3, 4)))

    model = Shared().eval()
    program = capture(model, InputSpec((3, 8, 6)))
    assert check_capture(model, program) == 0.0
    assert sum(g.frozen is None for g in program.groups) == 1


def test_a_square_matrix_may_be_transposed():
    """Tokens by tokens: both dimensions are the same axis, and only their places tell them apart."""

    class Square(Net):
        def forward(self, x):
            x = self.lif(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1))).flatten(3)
            x = x @ ((x.transpose(-1, -2) @ (x * 0.5)) * x[:, :, 0].unsqueeze(2)).transpose(-1, -2)
            return self.head(x.mean(-1).mean(0))

    torch.manual_seed(0)
    model = Square().eval()
    with torch.no_grad():
        model.conv.weight.mul_(6)
    program = capture(model, InputSpec((3, 8, 6)))
    check_capture(model, program)
    x = torch.randn(2, 3, 8, 6)
    want = program(x)
    Pipeline(canonical_passes())(program)
    assert torch.equal(program(x), want) and want.std() > 0
    session = runtimes.session(export(program))
    assert abs(session.run(None, {"image": x.numpy()})[0] - want.numpy()).max() < 1e-4


def test_einops_in_the_model():
    class Einops(Net):
        def forward(self, x):
            x = self.lif(self.conv(repeat(x, "b c h w -> t b c h w", t=2)))
            x = rearrange(x, "t b (g c) h w -> t b (h w) g c", g=2)
            return self.head(rearrange(x, "t b n g c -> t b (g c) n").mean(-1).mean(0))

    model = Einops().eval()
    program = capture(model, InputSpec((3, 8, 6)))
    assert check_capture(model, program) == 0.0
    assert next(g for g in program.groups if g.name == "conv").heads == 2


def test_a_neuron_called_twice_is_refused():
    """Its membrane would run on from the first place to the second."""

    class Again(Net):
        def forward(self, x):
            x = self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1))
            return self.head(self.lif(self.lif(x)).mean((0, 3, 4)))

    with pytest.raises(UnsupportedError, match="neuron lif is called twice") as caught:
        capture(Again(), InputSpec((3, 8, 6)))
    assert caught.value.where is not None and Path(__file__).name in caught.value.where
