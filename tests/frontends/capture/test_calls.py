"""Calls between neurons: captured exactly, pruned as masked, and the same in the file, in the source and in ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from support import calls, selection_calls
from support.generated import assert_loads
from support.masked import masked, pruned
from support.plans import random_plan
from svitc import runtimes
from svitc.driver.load import check_capture, run_canonical_passes
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.onnx.export import export
from svitc.serialization.writer import load_program, save_program

INPUT = InputSpec(calls.SHAPE)
# these rounds otherwise than the model, in which its input lies in memory in another order
ROUNDED = ("norm over time",)


def program_of(name):
    model = calls.build(name)
    program = capture(model, INPUT)
    difference = check_capture(model, program)
    assert difference == 0 or name in ROUNDED
    run_canonical_passes(program)
    return model, program


@pytest.mark.parametrize("name", calls.CALLS)
def test_a_call_is_the_same_everywhere(name, tmp_path):
    model, program = program_of(name)
    x = torch.randn(4, *calls.SHAPE, generator=torch.Generator().manual_seed(1))
    want = program(x)
    with torch.no_grad():
        assert want.std() > 0 and torch.allclose(model(x), want, atol=1e-4)
    for target in ("cpu", "cuda"):
        got = runtimes.session(export(program, target=target)).run(None, {"image": x.numpy()})[0]
        wrong = abs(got - want.numpy()).max(1) > 1e-3 * max(1.0, float(want.abs().max()))
        assert wrong.sum() <= 1, "a spike may flip in one of the images"
    save_program(program, tmp_path / "saved.safetensors")
    assert torch.equal(load_program(tmp_path / "saved.safetensors")(x), want)
    assert_loads(program, tmp_path / "source")
    for seed in (0, 1):
        plan = random_plan(program, np.random.default_rng(seed))
        assert float((masked(program, plan)(x.double()) - pruned(program, plan)(x.double())).abs().max()) < 1e-9


FREE = {  # channel groups that stay free around a call
    "transposed convolution": {"conv1", "body.a", "body.t.weight"},
    "convolution in time": {"conv1", "body.a.weight"},
    "F.unfold": {"conv1", "body.a"},
    "F.fold": {"conv1", "body.a"},
    "pixel unshuffle": {"conv1", "body.a"},
    "interpolate: bilinear": {"conv1"},
    "roll": {"conv1"},
    "pad: reflect": {"conv1"},
    "tokens of a parameter joined": {"conv1"},
    "difference in time": {"conv1"},
    "attention": {"body.q", "body.v"},
    "einsum of tokens": {"conv1", "body.q"},
    "einsum of what is never 0": {"conv1"},
    "tensordot": {"conv1", "body.w"},
    "layer norm": set(),
    "grouped convolution": {"conv1", "body.a"},
    "membrane with a start of its own": {"conv1", "body.a"},
    "topk and gather of tokens": {"conv1"},
    "mask of the best tokens": {"conv1"},
    "softmax": set(),
    "roll of time": {"conv1"},
}


@pytest.mark.parametrize("name", FREE)
def test_channels_that_a_call_leaves_alone_stay_free(name):
    _, program = program_of(name)
    free = {group.name for group in program.groups if group.frozen is None}
    assert FREE[name] <= free
    if not FREE[name]:
        assert "conv1" not in free


REFUSED = {
    "part of the batch": (lambda s, x: x[:, :2].repeat(1, 2, 1, 1, 1), "across the batch"),
    "one sample": (lambda s, x: x + x[:, 0:1], "across the batch"),
    "batch rolled": (lambda s, x: x.roll(1, 1), "across the batch"),
    "batch joined": (lambda s, x: torch.cat([x, x], 1)[:, ::2], "across the batch"),
    "softmax over the batch": (lambda s, x: x.softmax(1), "across the batch"),
    "sorting the batch": (lambda s, x: x.sort(dim=1, stable=True)[0], "across the batch"),
    "position among all": (lambda s, x: x + x.argmax(), "name the dimension"),
    "no order": (lambda s, x: x + x.topk(1, dim=3, sorted=False)[0], "no particular order"),
    "samples taken": (lambda s, x: x.gather(1, x[:, :, :1].long()), "a part of the other dimensions"),
    "antialiasing": (
        lambda s, x: calls.each(x, lambda y: F.interpolate(y, size=3, mode="bilinear", antialias=True)),
        "antialiasing",
    ),
    "a pooling's positions": (
        lambda s, x: calls.each(x, lambda y: F.max_pool2d(y, 2, return_indices=True)[0]),
        "indices",
    ),
    "a roll of everything": (lambda s, x: torch.roll(x, 1), "roll without dimensions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_represented_is_refused_with_its_line(name):
    function, message = REFUSED[name]
    model = calls.Host(calls.Body(function)).eval()
    with pytest.raises(UnsupportedError, match=message) as caught:
        capture(model, INPUT)
    assert caught.value.where is not None


def test_equal_scores_are_refused_unless_their_order_is_stable():
    """torch's topk takes equal scores in an order of its own, which no file has."""

    def best(stable):
        def body(s, x):
            x = selection_calls.tokens_of(x)
            rate = x.mean((0, 3))
            index = rate.sort(dim=1, descending=True, stable=True)[1][:, :20] if stable else rate.topk(20, dim=1)[1]
            return selection_calls.image_of(x.gather(2, index[None, :, :, None].expand(2, -1, -1, x.shape[3])))

        return calls.Host(calls.Body(body)).eval()

    model = best(stable=True)
    program = capture(model, INPUT)
    assert check_capture(model, program) == 0.0 and "equal scores" not in str(program.info)
    model = best(stable=False)
    program = capture(model, INPUT)
    assert any("equal scores" in note for note in program.info["assumptions"])
    with pytest.raises(UnsupportedError, match="differs from the model") as caught:
        check_capture(model, program)
    assert "stable=True" in caught.value.hint


def test_time_that_a_layer_mixes_is_time():
    """A linear layer over time steps alone gives time steps, which no plan removes."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(calls.STEPS, calls.STEPS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mix(x.movedim(0, -1)).movedim(-1, 0)

    model = calls.Host(Mixed()).eval()
    program = capture(model, INPUT)
    assert check_capture(model, program) == 0.0
    assert all(group.name != "body.mix" for group in program.groups)
