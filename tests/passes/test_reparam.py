"""FoldBatchNormAhead and MergePadding: a RepConv's inner layers in inference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import official_parts as parts
from svitc.frontends.capture import capture
from svitc.pass_base import Pass, Pipeline
from svitc.passes import FoldBatchNorm, FoldBatchNormAhead, MergePadding
from svitc.program import InputSpec, Program

IMAGE = InputSpec((3, 8, 6))
X = torch.randn(3, 3, 8, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Layers, then the mean over all pixels."""

    def __init__(self, *layers: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.body(x).flatten(2).mean(2))


def program_of(model: nn.Module) -> Program:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 2)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, 0.5)
    return capture(model.eval(), IMAGE)


def layers(program: Program) -> list[str]:
    return [type(program.module_of(n)).__name__ for n in program.graph.nodes if n.op == "call_module"]


def same(program: Program, want: torch.Tensor) -> None:
    assert abs(program(X) - want).max() < 2e-6 * want.abs().max() and want.std() > 0.01


def unchanged(each: Pass, program: Program) -> None:
    before = str(program)
    assert each(program).changed == []
    assert str(program) == before


def test_a_repconv_becomes_three_convolutions():
    program = program_of(Net(parts.RepConv(3, 4), nn.BatchNorm2d(4)))
    want = program(X)
    assert layers(program) == [
        "Conv2d", "ZeroPad2d", "BatchNorm2d", "Conv2d", "Conv2d", "BatchNorm2d", "BatchNorm2d", "Linear",
    ]  # fmt: skip
    FoldBatchNorm()(program)
    assert layers(program) == ["Conv2d", "ZeroPad2d", "BatchNorm2d", "Conv2d", "Conv2d", "Linear"]
    FoldBatchNormAhead()(program)
    assert layers(program) == ["Conv2d", "ZeroPad2d", "Conv2d", "Conv2d", "Linear"]
    same(program, want)
    MergePadding()(program)
    assert layers(program) == ["Conv2d", "Conv2d", "Conv2d", "Linear"]
    depthwise = program.module.get_submodule("body.0.body.2.0")
    assert depthwise.padding == (1, 1) and depthwise.groups == 3 and depthwise.bias is not None
    same(program, want)
    for each in (FoldBatchNorm(), FoldBatchNormAhead(), MergePadding()):
        unchanged(each, program)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_fold_ahead_into_any_convolution(groups, bias):
    layer = nn.Conv2d(4, 8, 3, groups=groups, bias=bias)
    program = program_of(Net(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.BatchNorm2d(4), layer, width=8))
    want = program(X)
    Pipeline([FoldBatchNorm(), FoldBatchNormAhead()])(program)
    assert layers(program) == ["Conv2d", "MaxPool2d", "Conv2d", "Linear"]
    same(program, want)


def test_fold_ahead_into_a_linear_layer():
    class Flat(Net):
        def forward(self, x):
            return self.head(self.body(x.flatten(2).mean(2)))

    program = program_of(Flat(nn.BatchNorm1d(3), width=3))
    want = program(X)
    Pipeline([FoldBatchNorm(), FoldBatchNormAhead()])(program)
    assert layers(program) == ["Linear"]
    same(program, want)


class Twice(Net):
    def forward(self, x):
        norm, conv = self.body[0], self.body[1]
        return self.head((conv(norm(x)) + conv(x * 0.5)).flatten(2).mean(2))


class Shared(Net):
    """One convolution for two batch norms: neither may go into it."""

    def forward(self, x):
        conv, one, two = self.body
        return self.head((one(conv(x)) + two(conv(x * 0.5))).flatten(2).mean(2))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Net(nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), "body.2 pads it with zeros"),
        (Net(nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)), "body.2 reads it"),
        (Twice(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), "body.1 is called more than once"),
    ],
)
def test_fold_ahead_refuses(model, reason):
    program = program_of(model)
    want = program(X)
    FoldBatchNorm()(program)
    result = FoldBatchNormAhead()(program)
    assert result.changed == [] and list(result.refused.values()) == [reason]
    same(program, want)


def test_a_batch_norm_is_not_folded_into_a_layer_that_is_called_twice():
    program = program_of(Shared(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    want = program(X)
    result = FoldBatchNorm()(program)
    assert set(result.refused.values()) == {"body.0 is called more than once"} and result.changed == []
    same(program, want)


def test_merge_padding():
    model = Net(nn.ZeroPad2d((2, 2, 1, 1)), nn.Conv2d(3, 4, 3, stride=2, padding=1))
    program = program_of(model)
    want = program(X)
    Pipeline([FoldBatchNorm(), MergePadding()])(program)
    assert layers(program) == ["Conv2d", "Linear"]
    assert program.module.get_submodule("body.1").padding == (2, 3)
    same(program, want)
    unchanged(MergePadding(), program)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Net(nn.ZeroPad2d((1, 0, 0, 0)), nn.Conv2d(3, 4, 3)), "it pads one side more than the other"),
        (Net(nn.ZeroPad2d(1), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3)), "body.1 reads it"),
        (Twice(nn.ZeroPad2d(0), nn.Conv2d(3, 4, 1)), "body.1 is called more than once"),
    ],
)
def test_merge_padding_refuses(model, reason):
    program = program_of(model)
    want = program(X)
    FoldBatchNorm()(program)
    result = MergePadding()(program)
    assert result.changed == [] and list(result.refused.values()) == [reason]
    same(program, want)
