"""A RepConv: MergeConvChain, or else FoldBatchNormIntoConsumers and MergePadding on its inner layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import svitc
from support import published_parts as parts
from support.families import warm
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pass, Pipeline
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.passes import FoldBatchNorm, FoldBatchNormIntoConsumers, MergeConvChain, MergePadding, reparameterize
from svitc.passes.pipelines import inference_passes

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
        "Conv2d",
        "ZeroPad2d",
        "BatchNorm2d",
        "Conv2d",
        "Conv2d",
        "BatchNorm2d",
        "BatchNorm2d",
        "Linear",
    ]
    FoldBatchNorm()(program)
    assert layers(program) == ["Conv2d", "ZeroPad2d", "BatchNorm2d", "Conv2d", "Conv2d", "Linear"]
    FoldBatchNormIntoConsumers()(program)
    assert layers(program) == ["Conv2d", "ZeroPad2d", "Conv2d", "Conv2d", "Linear"]
    same(program, want)
    MergePadding()(program)
    assert layers(program) == ["Conv2d", "Conv2d", "Conv2d", "Linear"]
    depthwise = program.module.get_submodule("body.0.body.2.0")
    assert depthwise.padding == (1, 1) and depthwise.groups == 3 and depthwise.bias is not None
    same(program, want)
    for each in (FoldBatchNorm(), FoldBatchNormIntoConsumers(), MergePadding()):
        unchanged(each, program)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_fold_ahead_into_any_convolution(groups, bias):
    layer = nn.Conv2d(4, 8, 3, groups=groups, bias=bias)
    program = program_of(Net(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.BatchNorm2d(4), layer, width=8))
    want = program(X)
    Pipeline([FoldBatchNorm(), FoldBatchNormIntoConsumers()])(program)
    assert layers(program) == ["Conv2d", "MaxPool2d", "Conv2d", "Linear"]
    same(program, want)


def test_fold_ahead_into_a_linear_layer():
    class Flat(Net):
        def forward(self, x):
            return self.head(self.body(x.flatten(2).mean(2)))

    program = program_of(Flat(nn.BatchNorm1d(3), width=3))
    want = program(X)
    Pipeline([FoldBatchNorm(), FoldBatchNormIntoConsumers()])(program)
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
    result = FoldBatchNormIntoConsumers()(program)
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


def test_only_what_was_not_folded_in_the_end_is_reported():
    program = program_of(Net(parts.RepConv(3, 4), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.BatchNorm2d(4)))
    pipeline = Pipeline(inference_passes())
    pipeline(program)
    assert layers(program) == ["Conv2d", "Conv2d", "Conv2d", "MaxPool2d", "BatchNorm2d", "Linear"]
    assert pipeline.refused == {
        "FoldBatchNorm: body.3": "its input is not a convolution or linear layer",
        "FoldBatchNormAhead: body.3": "rearrange in the model reads it",
    }


class WideRepConv(nn.Module):
    """A RepConv whose inner width is of one's choice, with or without a bias in each convolution."""

    def __init__(self, n: int, inner: int, m: int, biases: str = "", stride: int = 1, border: int = 1, **odd) -> None:
        super().__init__()
        first = nn.Conv2d(n, inner, 1, bias="a" in biases)
        kernel, groups = odd.get("kernel", 3), odd.get("groups", inner)
        window = nn.Conv2d(
            inner, inner, kernel, stride, odd.get("padding", 0), odd.get("dilation", 1), groups, "d" in biases
        )
        norm = parts.BorderNorm(border, inner) if border else nn.BatchNorm2d(inner)
        self.body = nn.Sequential(first, norm, window, nn.Conv2d(inner, m, 1, bias="p" in biases), nn.BatchNorm2d(m))

    def forward(self, x):
        return self.body(x)


def exactly(program: Program, want: torch.Tensor) -> None:
    """In float64, borders and all."""
    assert abs(program(X.double()) - want).max() <= 1e-9 * want.abs().max() and want.std() > 0.01


class Pixels(Net):
    """All pixels, so that each of the border counts."""

    def forward(self, x):
        return self.head(self.body(x).flatten(2).transpose(1, 2)).flatten(1)


@pytest.mark.parametrize(
    "model",
    [
        Pixels(WideRepConv(3, 48, 4), nn.BatchNorm2d(4)),
        Pixels(WideRepConv(3, 48, 4, "dp"), nn.BatchNorm2d(4)),
        Pixels(WideRepConv(3, 48, 4, "dp", stride=2)),
        Pixels(WideRepConv(3, 96, 4, "d", border=2, kernel=(3, 5))),
        Pixels(WideRepConv(3, 48, 4, "p", border=2, dilation=2)),
        Pixels(WideRepConv(3, 48, 4, "adp", border=0)),
        Pixels(WideRepConv(3, 48, 4, groups=8)),
        Pixels(nn.Conv2d(3, 48, 1, bias=False), nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.Conv2d(48, 4, 1)),
        Pixels(nn.Conv2d(3, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.Conv2d(48, 4, 1)),
        Pixels(nn.Conv2d(3, 48, 1), nn.BatchNorm2d(48), nn.Conv2d(48, 4, 1), nn.BatchNorm2d(4)),
    ],
    ids=["plain", "biases", "stride", "border 2", "dilation", "no border", "groups", "padding", "window first", "1x1"],
)
def test_a_row_becomes_one_convolution(model):
    program = program_of(model)
    program.module.double()
    want = program(X.double())
    result = MergeConvChain()(program)
    assert len(result.changed) == 1 and not result.refused
    assert layers(program) in (
        ["Conv2d", "Linear"],
        ["Conv2d", *["BatchNorm2d"] * (len(layers(program)) - 2), "Linear"],
    )
    exactly(program, want)
    unchanged(MergeConvChain(), program)
    assert len(program.groups) == 3, "the inner channels are a group no more"
    Pipeline(inference_passes())(program)
    assert layers(program) == ["Conv2d", "Linear"]
    exactly(program, want)


def test_the_figures_are_those_of_the_files():
    """Bytes that merging saves, and those that it would cost, by what is written."""
    from svitc import onnx as backend

    for inner, pays in ((48, True), (4, False)):
        program = program_of(Net(WideRepConv(3, inner, 4), nn.BatchNorm2d(4)))
        twin, decided = reparameterize(program)
        row = 4 * (3 * inner + 9 * inner + inner + 4 * inner + 4)
        kept = {
            "merged": pays,
            "why": f"448 bytes as one 3x3 convolution, {row:,} as a row of them; 5,184 multiply-"
            f"accumulates an image as one, {48 * (row // 4 - inner - 4):,} as a row",
        }
        assert decided == {"body.0.body.3": kept}
        assert (twin is program) == (not pays)
        if pays:
            saved = backend.weight_bytes(export(program)) - backend.weight_bytes(export(twin))
            assert saved == row - 448


class Spiking(nn.Module):
    """Neurons around a RepConv with wide inner channels, and around one that is not worth it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12)
        self.wide, self.norm = WideRepConv(12, 96, 12), nn.BatchNorm2d(12)
        self.rep = parts.RepConv(12, 12)
        self.lifs, self.head = nn.ModuleList(parts.lif() for _ in range(3)), nn.Linear(12, 5)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(2, 1, 1, 1, 1)
        for row, spike in zip(((self.conv, self.bn), (self.wide, self.norm), (self.rep,)), self.lifs, strict=True):
            y = x.flatten(0, 1)
            for each in row:
                y = each(y)
            x = spike(y.unflatten(0, x.shape[:2]))
        return self.head(x.flatten(3).mean(3)).mean(0)


def test_compiling_with_and_without(tmp_path):
    """Budgets are of the original, met on the written file; a plan brings its own choice."""
    program = capture(warm(Spiking(), IMAGE.shape), IMAGE)
    run_canonical_passes(program)
    done = {
        (how, b): svitc.compile(program, b, reparam=how, images=2, no_data="uniform")
        for how in ("auto", "off")
        for b in (1.0, 0.5)
    }
    saved = 4 * (12 * 96 + 9 * 96 + 96 + 96 * 12 - 9 * 12 * 12)
    for (how, budget), each in done.items():
        memory, merged = each.report["memory"], {k: v["merged"] for k, v in each.report["reparam"].items()}
        assert merged == ({"wide.body.3": True, "rep.body.2.1": False} if how == "auto" else {})
        assert each.verdict.passed and memory["ratio"] <= budget
        assert memory["original_bytes"] == done["off", 1.0].report["memory"]["compiled_bytes"]
        assert each.plan.provenance["reparam"] == how
        assert ("wide.body.0" in {g["name"] for g in each.report["groups"]}) == (how == "off")
    assert memory["original_bytes"] - done["auto", 1.0].report["memory"]["compiled_bytes"] == saved
    assert done["auto", 0.5].report["memory"]["ratio"] > 0.49 and done["auto", 1.0].plan.keep == {}
    for how, other in (("auto", "off"), ("off", "auto")):
        again = svitc.compile(program, plan=done[how, 0.5].plan, reparam=other, images=2, no_data="uniform")
        assert again.onnx == done[how, 0.5].onnx
    done["auto", 0.5].write(tmp_path)
    assert svitc.compile(svitc.load(tmp_path), 1.0, images=2, no_data="uniform").report["reparam"].keys() == {
        "rep.body.2.1"
    }


class Called(Net):
    def forward(self, x):
        one, again, other = self.body
        return self.head((again(one(x)) + again(other(x))).flatten(2).mean(2))


REFUSED = {
    "a bias ends at the border": (
        Net(WideRepConv(3, 48, 4, "a")),
        "body.0.body.1.pad pads with zeros what body.0.body.0 has shifted",
    ),
    "a shift ends at the border": (
        Net(WideRepConv(3, 48, 4, border=0, padding=1)),
        "body.0.body.2 pads with zeros what body.0.body.1 has shifted",
    ),
    "zeros on one side": (
        Net(nn.Conv2d(3, 48, 1, bias=False), nn.ZeroPad2d((1, 0, 1, 1)), nn.Conv2d(48, 4, 3)),
        "body.1 pads one side more than the other",
    ),
    "zeros behind a window": (
        Net(nn.Conv2d(3, 48, 3, bias=False), nn.ZeroPad2d(1), nn.Conv2d(48, 4, 1)),
        "body.1 pads with zeros what the window of body.0 has seen",
    ),
    "two windows": (Net(nn.Conv2d(3, 48, 3), nn.Conv2d(48, 4, 3)), "body.0 and body.1 both slide a window"),
    "a stride behind a window": (
        Net(nn.Conv2d(3, 48, 3), nn.Conv2d(48, 4, 1, 2)),
        "body.0 and body.1 both slide a window",
    ),
    "called twice": (
        Called(nn.Conv2d(3, 48, 1), nn.Conv2d(48, 4, 1), nn.Conv2d(3, 48, 1)),
        "body.1 is called more than once",
    ),
    "larger": (
        Net(WideRepConv(3, 4, 4)),
        "448 bytes as one 3x3 convolution, 288 as a row of them; 5,184 multiply-accumulates an image as one, 3,072 "
        "as a row",
    ),
    "faster but larger": (
        Net(WideRepConv(3, 5, 4, stride=2)),
        "448 bytes as one 3x3 convolution, 356 as a row of them; 1,296 multiply-accumulates an image as one, 1,500 "
        "as a row",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_stays_a_row(case):
    model, reason = REFUSED[case]
    program = program_of(model)
    want, before = program(X), str(program)
    result = MergeConvChain()(program)
    assert result.changed == [] and reason in result.refused.values()
    assert str(program) == before and torch.equal(program(X), want)
