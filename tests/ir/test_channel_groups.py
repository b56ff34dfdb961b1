"""Which channels are coupled in each family, as in the table of docs/families.md, by the names of layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spikingjelly.activation_based.model.maxformer import MaxFormer
from spikingjelly.activation_based.model.qkformer import QKFormer
from spikingjelly.activation_based.model.spike_driven_transformer import SpikeDrivenTransformer
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import nn

from svitc.errors import InputError
from svitc.frontends.capture.capture import capture
from svitc.ir.channel_groups import head_axes
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.passes.pipelines import canonical_passes
from svitc.planning.plan import Plan


def program_of(model: nn.Module, shape=(3, 32, 32)):
    program = capture(model.eval(), InputSpec(shape))
    Pipeline(canonical_passes())(program)
    return program


def groups_of(model: nn.Module, shape=(3, 32, 32)):
    return {g.name: g for g in program_of(model, shape).groups}


def test_spikformer():
    groups = groups_of(
        Spikformer(
            T=2,
            img_size_h=32,
            img_size_w=32,
            patch_size=4,
            num_classes=5,
            embed_dims=32,
            num_heads=2,
            depths=1,
        )
    )
    assert groups["patch_embed.stages.3.conv_bn.block.0"].producers == [
        "patch_embed.stages.3.conv_bn.block.0",
        "patch_embed.positional_encoding.conv_bn.block.0",
        "blocks.0.attn.proj_conv_bn.0",
        "blocks.0.mlp.fc2.0",
    ]
    qk, v = groups["blocks.0.attn.qkv_conv_bn.0.q"], groups["blocks.0.attn.qkv_conv_bn.0.v"]
    assert qk.producers == ["blocks.0.attn.qkv_conv_bn.0.q", "blocks.0.attn.qkv_conv_bn.0.k"]
    assert v.producers == ["blocks.0.attn.qkv_conv_bn.0.v"]
    assert qk.head_axis is v.head_axis and (qk.heads, qk.axis.size) == (2, 16)
    assert groups["blocks.0.mlp.fc1.0"].producers == ["blocks.0.mlp.fc1.0"]
    assert groups["head"].frozen == "the model's output"
    assert groups["input"].frozen == "the model's input"
    assert groups["patch_embed.stages.0.conv_bn.block.0"].size == 4


def test_spike_driven_transformer_ties_q_k_and_v():
    groups = groups_of(SpikeDrivenTransformer(T=2, num_classes=5, embed_dims=32, num_heads=2, depths=1))
    assert groups["blocks.0.attn.q_conv"].producers == [f"blocks.0.attn.{x}_conv" for x in "qkv"]
    assert {m.module for m in groups["blocks.0.attn.q_conv"].members} >= {"blocks.0.attn.proj_conv"}


@pytest.mark.parametrize(("attention", "tied"), [("token", False), ("channel", True)])
def test_qkformer(attention, tied):
    groups = groups_of(
        QKFormer(T=2, num_classes=5, embed_dims=64, num_heads=(2, 2, 4), depths=(1, 1, 1), qka_type=attention)
    )
    q = groups["stage1.0.attn.qk_conv_bn.0.q"]
    assert ("stage1.0.attn.qk_conv_bn.0.k" in q.producers) == tied
    assert ("stage1.0.attn.qk_conv_bn.0.k" not in groups) == tied
    assert groups["patch_embed1.conv3"].producers[:2] == ["patch_embed1.conv3", "patch_embed1.shortcut.0"]
    if not tied:
        assert groups["stage1.0.attn.qk_conv_bn.0.k"].head_axis is q.head_axis


def test_maxformer_ties_depthwise_blocks_to_the_stream():
    groups = groups_of(MaxFormer(T=2, num_classes=5, embed_dims=128, depths=(1, 1, 1)))
    stream = groups["patch_embed1.conv3"]
    assert "stage1.0.dwconv" in {m.module for m in stream.members} and "stage1.0.dwconv" not in stream.producers
    assert stream.size == 32


def test_head_axes_are_shared_by_name():
    program = program_of(
        Spikformer(
            T=2,
            img_size_h=32,
            img_size_w=32,
            patch_size=4,
            num_classes=5,
            embed_dims=32,
            num_heads=2,
            depths=2,
        )
    )
    sharing = sorted(sorted(g.name for g in groups) for groups in head_axes(program.groups).values())
    assert sharing == [[f"blocks.{i}.attn.qkv_conv_bn.0.{x}" for x in "qv"] for i in range(2)]


def test_every_parameter_is_in_the_types():
    """Nothing that the graph uses escapes analysis: types cover each weight, element by element."""
    program = program_of(QKFormer(T=2, num_classes=5, embed_dims=64, num_heads=(2, 2, 4), depths=(1, 1, 1)))
    typed = {f"{n.target}.{name}" for n in program.graph.nodes for name in program.parameters_of(n)}
    assert {name for name, _ in program.module.named_parameters()} <= typed


class Mixed(nn.Module):
    """Sums over heads: every head must keep the same dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 12), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).mean(-1)  # [N, C]
        return self.b(self.a(x).reshape(x.shape[0], 3, 4).sum(1))


def test_dimensions_that_leave_their_heads_are_shared():
    groups = groups_of(Mixed())
    assert groups["a"].frozen == "it is split into heads in more than one way" or groups["a"].shared


class Windowed(nn.Module):
    """A window over all channels, over the channels of each head, or also over heads."""

    def __init__(self, shape: tuple[int, int], kernel: tuple[int, int]) -> None:
        super().__init__()
        self.shape, self.a, self.b = shape, nn.Linear(3, 12), nn.Linear(12, 5)
        self.pool = nn.MaxPool2d(kernel, stride=1, padding=tuple(k // 2 for k in kernel))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x.flatten(2).mean(-1))
        return self.b(self.pool(x.reshape(-1, 1, *self.shape)).reshape(-1, 12))


@pytest.mark.parametrize(
    ("shape", "kernel", "what"),
    [
        ((1, 12), (1, 3), "frozen"),
        ((3, 4), (1, 3), "whole_heads"),
        ((3, 4), (3, 3), "frozen"),
        ((3, 4), (3, 1), "shared"),
    ],
)
def test_what_a_window_slides_over(shape, kernel, what):
    program = program_of(Windowed(shape, kernel))
    group = next(g for g in program.groups if g.name == "a")
    why = "a window slides over it, so that neighbors count"
    assert (group.frozen, group.whole_heads) == (
        why if what == "frozen" else None,
        why if what == "whole_heads" else None,
    )
    if what != "shared":
        return
    assert group.shared and group.heads == 3  # a window over heads: all keep the same dimensions
    keep = np.ones((3, 4), dtype=bool)
    keep[:, 0] = False
    assert Plan({"a": keep}).validate(program)["a"].sum() == 9
    with pytest.raises(InputError, match="must keep them all: a window slides"):
        Plan({"a": keep & np.eye(3, 1, dtype=bool)}).validate(program)
