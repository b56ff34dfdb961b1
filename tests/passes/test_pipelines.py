"""Each pass: the operations before and after, each refusal, the numbers, and that a second run changes nothing."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from svitc.errors import InternalError
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pass, PassResult, Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes import FoldBatchNorm, FuseQKV, HoistRepeat, MergeViews, ShareViews, SplitFusedProjection
from svitc.passes.pipelines import lowering_passes

IMAGE = InputSpec((3, 8, 6))


def lif() -> nn.Module:
    return neuron.LIFNode(step_mode="m")


class Stem(nn.Module):
    """A static image over two steps, through a convolution, a batch norm and a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = (
            layer.Conv2d(3, 8, 3, padding=1, step_mode="m"),
            layer.BatchNorm2d(8, step_mode="m"),
        )
        self.lif, self.head = lif(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))
        return self.head(self.lif(x).flatten(3).mean(-1).mean(0))


class Fused(Stem):
    """The same with a fused projection of three blocks, two heads each."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.qkv_lif = layer.SeqToANNContainer(nn.Conv1d(8, 24, 1), nn.BatchNorm1d(24)), lif()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lif(self.bn(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))).flatten(3)
        t, n, _, tokens = x.shape
        q, k, v = self.qkv_lif(self.qkv(x)).reshape(t, n, 3, 2, 4, tokens).unbind(2)
        x = (v @ k.transpose(-2, -1) @ q * 0.125).reshape(t, n, 8, tokens)
        return self.head(x.mean(-1).mean(0))


def program_of(model: nn.Module) -> Program:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 2)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, 0.5)
    return capture(model.eval(), IMAGE)


def listing(program: Program) -> list[str]:
    """Operations in order, modules by class."""
    names = []
    for node in program.graph.nodes:
        module = program.module_of(node)
        names.append(type(module).__name__ if module is not None else getattr(node.target, "__name__", node.op))
    return names


def unchanged(each: Pass, program: Program) -> None:
    before = str(program)
    assert each(program).changed == []
    assert str(program) == before


X = torch.randn(3, 3, 8, 6, generator=torch.Generator().manual_seed(1))


def test_merge_views():
    program = program_of(Stem())
    want = program(X)
    assert listing(program)[:5] == ["placeholder", "rearrange", "rearrange", "repeat", "rearrange"]
    MergeViews()(program)
    assert listing(program) == [
        "placeholder",
        "repeat",
        "rearrange",
        "Conv2d",
        "BatchNorm2d",
        "rearrange",
        "LIFNode",
        "rearrange",
        "mean",
        "mean",
        "Linear",
        "output",
    ]
    assert torch.equal(program(X), want)
    unchanged(MergeViews(), program)


def test_hoist_repeat():
    program = program_of(Stem())
    want = program(X)
    Pipeline([MergeViews(), HoistRepeat(), MergeViews()])(program)
    assert listing(program) == [
        "placeholder",
        "Conv2d",
        "BatchNorm2d",
        "repeat",
        "LIFNode",
        "rearrange",
        "mean",
        "mean",
        "Linear",
        "output",
    ]
    assert torch.allclose(program(X), want, atol=1e-6, rtol=0)
    unchanged(HoistRepeat(), program)


def test_hoist_repeat_refuses_a_repetition_with_two_readers():
    class Twice(Stem):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.unsqueeze(0).repeat(2, 1, 1, 1, 1)
            y = self.bn(self.conv(x)).flatten(3).mean(-1) + self.conv(x).flatten(3).mean(-1)
            return self.head(y.mean(0))

    program = program_of(Twice())
    MergeViews()(program)
    assert "reader" in next(iter(HoistRepeat()(program).refused.values()))


def test_fold_batch_norm():
    program = program_of(Stem())
    MergeViews()(program)
    want = program.copy()
    want.module.double()
    result = FoldBatchNorm()(program)
    assert result.changed == ["bn"] and not result.refused
    assert "BatchNorm2d" not in listing(program) and program.stage == Stage.INFERENCE
    program.module.double()
    # weights were rounded to float32 once
    conv = program.module.get_submodule("conv")
    reference, norm = want.module.get_submodule("conv"), want.module.get_submodule("bn")
    x = X.double()
    assert torch.allclose(conv(x), norm(reference(x)), atol=2e-6, rtol=0)
    unchanged(FoldBatchNorm(), program)


def test_fold_batch_norm_refuses():
    class Odd(Stem):
        def __init__(self) -> None:
            super().__init__()
            self.after, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(self.other(x).unsqueeze(0)).flatten(0, 1)
            return self.head((self.after(y) + y).flatten(2).mean(-1))

    program = program_of(Odd())
    MergeViews()(program)
    refused = FoldBatchNorm()(program).refused
    assert refused == {
        "other": "its input is not a convolution or linear layer",
        "after": "conv has another reader",
    }


class Tokens(nn.Module):
    """A linear layer over channels, and a batch norm over channels or over tokens, of which there are as many."""

    def __init__(self, over_tokens: bool) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(48, 48), nn.BatchNorm1d(48), nn.Linear(48, 5)
        self.stem, self.over_tokens = nn.Conv2d(3, 48, 1), over_tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(self.stem(x).flatten(2).transpose(1, 2))
        x = self.norm(x) if self.over_tokens else self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x.mean(1))


@pytest.mark.parametrize("over_tokens", [False, True])
def test_a_batch_norm_is_folded_through_views_where_it_normalizes_the_layers_channels(over_tokens):
    program = program_of(Tokens(over_tokens))
    want = program(X)
    MergeViews()(program)
    result = FoldBatchNorm()(program)
    if over_tokens:
        assert result.refused == {"norm": "it is over another axis than the channels of linear"}
    else:
        assert result.changed == ["norm"]
    assert ("BatchNorm1d" in listing(program)) == over_tokens
    assert torch.allclose(program(X), want, atol=1e-6, rtol=0)


def test_split_fused_projection():
    program = program_of(Fused())
    want = program(X)
    MergeViews()(program)
    assert listing(program).count("take_block") == 3
    result = SplitFusedProjection()(program)
    MergeViews()(program)
    assert len(result.changed) == 1 and "take_block" not in listing(program)
    assert listing(program).count("Conv1d") == 3
    paths = {name for name, _ in program.module.named_modules()}
    assert {"qkv.0.q", "qkv.0.k", "qkv.0.v", "qkv.1.q", "qkv_lif.v"} <= paths
    assert torch.allclose(program(X), want, atol=1e-6, rtol=0)
    groups = {g.name: g for g in program.groups}
    assert groups["qkv.0.q"].axis is not groups["qkv.0.v"].axis
    unchanged(SplitFusedProjection(), program)


def test_split_fused_projection_refuses_a_second_reader():
    class Peek(Fused):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.lif(self.bn(self.conv(x.unsqueeze(0).repeat(2, 1, 1, 1, 1)))).flatten(3)
            fused = self.qkv_lif(self.qkv(x))
            q, k, v = fused.chunk(3, dim=2)
            return self.head((q + k + v).mean(-1).mean(0)) + fused.mean(-1).mean(0).mean(-1, keepdim=True)

    program = program_of(Peek())
    MergeViews()(program)
    refused = SplitFusedProjection()(program).refused
    assert set(refused.values()) == {"not every reader takes one of the blocks"}


# the contract itself, as a user's pass meets it


class DoubleScale(Pass):
    """A user's pass in ten lines: multiply every factor by two."""

    def match(self, program, node):
        return node.target is ops.operator.mul and isinstance(node.args[1], float)

    def why_not(self, program, node):
        return "it is two already" if node.args[1] == 2.0 else None

    def rewrite(self, program, node):
        node.args = (node.args[0], 2.0)


def test_a_users_pass_gets_the_same_checks():
    program = program_of(Fused())
    pipeline = Pipeline([MergeViews(), DoubleScale(), DoubleScale()])
    pipeline(program)
    assert [len(r.changed) for r in pipeline.results][1:] == [1, 0]
    assert list(pipeline.refused.values()) == ["it is two already"]


class SingleStep(Stem):
    """One time step, which layers for single steps read between layers for all of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x.unsqueeze(0).repeat(1, 1, 1, 1, 1))
        x = torch.stack([self.bn(step.unsqueeze(0)).squeeze(0) for step in x.flatten(0, 1).unflatten(0, (1, -1))])
        return self.head(self.lif(x).flatten(3).mean(-1).mean(0))


def test_the_single_step_of_a_batch_stays_apart_from_it():
    """No pattern turns ``(t b)`` into ``b``, so that the views between stay two."""
    model = SingleStep().eval()
    program, x = program_of(model), torch.randn(4, 3, 8, 8)
    want = program(x)
    MergeViews()(program)
    assert torch.equal(program(x), want)


class Break(Pass):
    """Halves a layer's weights and forgets the rest."""

    def match(self, program, node):
        return isinstance(program.module_of(node), nn.Linear)

    def rewrite(self, program, node):
        module = program.module_of(node)
        module.weight = nn.Parameter(module.weight[:, :4])


class Narrow(Break):
    """Cuts channels off a convolution, but not off its readers."""

    def match(self, program, node):
        return isinstance(program.module_of(node), nn.Conv2d)

    def rewrite(self, program, node):
        module = program.module_of(node)
        module.weight, module.bias = nn.Parameter(module.weight[:4]), None
        module.out_channels = 4


class Orphan(Pass):
    """Puts an operation that is not canonical into the graph."""

    def apply(self, program):
        output = next(iter(reversed(program.graph.nodes)))
        with program.graph.inserting_before(output):
            extra = program.graph.call_function(torch.relu, (output.args[0],))
        output.args = (extra,)
        return PassResult(self.name, ["relu"])


@pytest.mark.parametrize("wrong", [Break(), Narrow(), Orphan()])
def test_a_pass_that_breaks_the_program_is_caught(wrong):
    program = program_of(Stem())
    with pytest.raises(InternalError):
        wrong(program)


def test_stages_are_kept():
    program = program_of(Stem())
    Pipeline([MergeViews(), FoldBatchNorm()])(program)
    with pytest.raises(InternalError, match="SplitFusedProjection runs on programs CAPTURED"):
        SplitFusedProjection()(program)


def test_dumps_show_every_step(tmp_path):
    Pipeline([MergeViews(), FoldBatchNorm()], dump_to=tmp_path)(program_of(Stem()))
    first, last = (p.read_text() for p in sorted(tmp_path.iterdir()))
    assert "BatchNorm2d[bn]" in first and "BatchNorm2d[bn]" not in last
    assert "[t=2, b, C0=8" in first


def test_share_views():
    class Two(Stem):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.unsqueeze(0).repeat(2, 1, 1, 1, 1)
            return self.head((self.conv(x) + self.conv(x * 1.0)).flatten(3).mean(-1).mean(0) + self.again(x))

        def again(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).flatten(3).mean(-1).mean(0)

    program = program_of(Two())
    MergeViews()(program)
    want, before = program(X), listing(program).count("rearrange")
    gone = len(ShareViews()(program).changed)
    assert gone > 0 and listing(program).count("rearrange") == before - gone
    assert torch.equal(program(X), want)
    unchanged(ShareViews(), program)


def test_fuse_qkv():
    program = program_of(Fused())
    Pipeline([MergeViews(), SplitFusedProjection(), MergeViews(), HoistRepeat(), MergeViews(), FoldBatchNorm()])(
        program
    )
    want = program(X)
    assert listing(program).count("Conv1d") == 3 and listing(program).count("LIFNode") == 4
    result = Pipeline(lowering_passes())
    result(program)
    changed = {r.name: len(r.changed) for r in result.results[:-1]}  # the last is a second MergeViews
    assert changed["ReassociateMatmuls"] == changed["ShareViews"] == 0 and changed["FuseQKV"] == 1
    assert listing(program).count("Conv1d") == 1 and listing(program).count("LIFNode") == 2
    assert listing(program).count("take_range") == 3 and program.stage == Stage.EXPORTABLE
    assert "qkv_lif.q+k+v" in {name for name, _ in program.module.named_modules()}
    assert torch.allclose(program(X), want, atol=1e-6, rtol=0)
    unchanged(FuseQKV(), program)


def test_fuse_qkv_refuses_other_neurons():
    program = program_of(Fused())
    Pipeline([MergeViews(), SplitFusedProjection(), MergeViews(), FoldBatchNorm()])(program)
    program.module.get_submodule("qkv_lif.k").v_threshold = 0.5
    result = FuseQKV()(program)
    assert result.changed == [] and list(result.refused.values()) == ["siblings differ in geometry or in their neurons"]
