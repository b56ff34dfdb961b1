"""Constructs of the published repositories: captured exactly, the groups they should have, pruned equals masked.

The ties between layers are written down by hand, as read in official_style.py; nothing is taken from svitc's groups.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

from support.constructs import CASES, build, captured, currents, silence
from support.plans import kept, random_plan
from svitc.errors import InputError, UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.model_rewrites import logits_of, reference
from svitc.ir.ops import IntegerSpike
from svitc.passes import Prune
from svitc.planning.plan import Plan
from svitc.verification.recorder import Recorder

TOLERANCE = 1e-9

BLOCK = {
    r"patch_embed.conv0": ["patch_embed.conv0"],
    r"patch_embed.conv1": [
        "patch_embed.conv1",
        "patch_embed.conv2",
        r"block.\d.attn.proj_conv",
        r"block.\d.mlp.fc2_conv",
    ],
    r"block.(\d).mlp.fc1_conv": [r"block.{}.mlp.fc1_conv"],
}
# family -> group, named by its first layer -> every layer that makes the same channels
TIES = {
    "spikformer": {
        **BLOCK,
        r"block.(\d).attn.q_conv": [r"block.{}.attn.[qk]_conv"],
        r"block.(\d).attn.v_conv": [r"block.{}.attn.v_conv"],
    },
    "fused": {
        **BLOCK,
        r"block.(\d).attn.qkv_conv.q": [r"block.{}.attn.qkv_conv:0", r"block.{}.attn.qkv_conv:1"],
        r"block.(\d).attn.qkv_conv.v": [r"block.{}.attn.qkv_conv:2"],
    },
    "driven": {
        r"patch_embed.conv0": ["patch_embed.conv0"],
        r"patch_embed.conv1": ["patch_embed.conv1", "patch_embed.conv2", "attn.proj_conv", "mlp.fc2_conv"],
        r"attn.q_conv": ["attn.[qkv]_conv"],
        r"mlp.fc1_conv": ["mlp.fc1_conv"],
    },
    "meta": {
        r"stem_conv": ["stem_conv", "sep.pwconv2", "conv2"],
        r"sep.pwconv1": ["sep.pwconv1"],
        r"conv1": ["conv1"],
        r"down_conv": ["down_conv", r"attn.proj_conv.0.body.2.1", "mlp.fc2_conv"],
        r"attn.(\w+)_conv.0.body.0": [r"attn.{}_conv.0.body.0"],
        r"attn.q_conv.0.body.2.1": [r"attn.[qk]_conv.0.body.2.1"],
        r"attn.v_conv.0.body.2.1": [r"attn.v_conv.0.body.2.1"],
        r"mlp.fc1_conv": ["mlp.fc1_conv"],
    },
    "integer": {
        r"stem_conv": ["stem_conv", "conv.pwconv2.0", "attn.proj_conv.0", "fc2"],
        r"conv.pwconv1.0": ["conv.pwconv1.0", "conv.dwconv.0"],
        r"attn.q_conv.0": ["attn.[qk]_conv.0"],
        r"attn.v_conv.0": ["attn.v_conv.0"],
        r"fc1": ["fc1"],
    },
    "scaled": {r"stem.0": ["stem.0", "fc2"], r"fc1": ["fc1"]},
    "qk": {
        r"patch_embed.conv0": ["patch_embed.conv0"],
        r"patch_embed.res_conv": [
            "patch_embed.conv1",
            "patch_embed.res_conv",
            "token.proj_conv",
            "attn.proj_conv",
            r"mlp\d.fc2_conv",
        ],
        r"token.([qk])_conv": ["token.{}_conv"],
        r"attn.q_conv": ["attn.[qk]_conv"],
        r"attn.v_conv": ["attn.v_conv"],
        r"mlp(\d).fc1_conv": ["mlp{}.fc1_conv"],
    },
}
WHOLE_HEADS = {"driven, events": {"attn.q_conv"}}


def produced_by(case: str, group: str) -> list[str]:
    """Patterns of the layers that make a group's channels."""
    for name, layers in TIES[case.split(",")[0]].items():
        found = re.fullmatch(name, group)
        if found:
            return [each.replace("{}", found[1]) if found.groups() else each for each in layers]
    raise AssertionError(f"nothing is written down for {group}")


def mask(model: nn.Module, case: str, removed: dict[str, np.ndarray]) -> None:
    """Zero whatever produces the removed channels, so that their neurons never fire."""
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))]
    for group, rows in removed.items():
        for pattern in produced_by(case, group):
            pattern, _, block = pattern.partition(":")
            found = [name for name in layers if re.fullmatch(pattern, name)]
            assert found, pattern
            for name in found:
                width = len(model.get_submodule(name).weight)
                silence(model, name, rows + int(block or 0) * width // 3)


@pytest.mark.parametrize("case", CASES)
def test_captured_equals_eager(case):
    model, spec = build(case)
    program = capture(model, spec, rewrite_model=case == "qk, fixed")
    x = torch.randn(spec.batched(1 if "fixed" in case else 3))
    x = x.abs().floor() if spec.events else x
    got = program(x)
    assert torch.equal(got, reference(model, program, x))
    functional.reset_net(model)
    with torch.no_grad():
        plain = logits_of(model(x.transpose(0, 1) if spec.events else x))
    functional.reset_net(model)
    assert abs(got - plain).max() <= (1e-5 if case == "meta" else 0) and got.std() > 0.01
    recorder, _ = Recorder.record(program, x)
    fired = [bool(s.any()) for s in recorder.spikes.values()]
    assert sum(fired) > 0.7 * len(fired), "a silent model proves little"


@pytest.mark.parametrize("case", CASES)
def test_groups_are_what_the_layers_say(case):
    program = captured(case)
    free = {group.name for group in program.groups if group.frozen is None}
    for group in program.groups:
        if group.frozen is None:
            producers = set(group.producers)
            patterns = [p.partition(":")[0] for p in produced_by(case, group.name)]
            # of a depthwise convolution's channels the group knows, but it does not make them
            wanted = {
                name
                for name, m in program.module.named_modules()
                if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))
                and not (getattr(m, "groups", 1) > 1)
                and any(re.fullmatch(p, name) for p in patterns)
            }
            assert producers - wanted == {n for n in producers if ".qkv_conv." in n or n == "layer_scale"}
            assert wanted <= producers
    assert all(any(re.fullmatch(p, n) for n in free) for p in TIES[case.split(",")[0]])
    assert {g.frozen for g in program.groups if g.name not in free} == {"the model's input", "the model's output"}
    whole = {g.name: g.whole_heads for g in program.groups if g.whole_heads is not None}
    assert whole == dict.fromkeys(WHOLE_HEADS.get(case, ()), "a window slides over it, so that neighbors count")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", CASES)
def test_pruned_equals_masked(case, seed):
    """Reshapes by the block's width, literals and chunks are right at every width."""
    program = captured(case, seed)
    assert_pruned_is_masked(case, seed, program, random_plan(program, np.random.default_rng(seed)))


@pytest.mark.parametrize("head", [0, 1])
def test_whole_heads_go_where_a_window_slides_over_their_dimensions(head):
    program = captured("driven, events")
    group = next(g for g in program.groups if g.whole_heads)
    mask = np.ones((group.heads, group.axis.size), dtype=bool)
    mask[head] = False
    assert_pruned_is_masked("driven, events", 0, program, Plan({group.name: mask}))
    mask[:], mask[:, 0] = True, False
    with pytest.raises(InputError, match="of attn.q_conv, which may only lose whole heads: a window slides over it"):
        Plan({group.name: mask}).validate(program)


def assert_pruned_is_masked(case, seed, program, plan):
    masks = plan.validate(program)
    pruned = program.copy()
    Prune(plan)(pruned)
    pruned.module.double()

    model, spec = build(case, seed)
    mask(model, case, {name: np.flatnonzero(~each.reshape(-1)) for name, each in plan.keep.items()})
    if case == "qk, fixed":
        model.attn.together = False  # what was meant
    x = torch.randn(spec.batched(3), dtype=torch.float64)
    want, logits = currents(model.double(), x.transpose(0, 1) if spec.events else x)
    recorder, got = Recorder.record(pruned, x)
    for node in program.neurons():
        path = str(node.target)
        source = want.get(path)
        if source is None:  # a neuron split off a fused one
            owner, _, block = path.rpartition(".")
            source = want[owner].chunk(3, dim=2)["qkv".index(block)]
        left = kept(program, node, masks, source.numpy())
        assert recorder.currents[path].numel() == left.size, path
        assert abs(recorder.currents[path].numpy().reshape(-1) - left).max() <= TOLERANCE, path
    assert abs(got - logits).max() <= TOLERANCE


def test_time_and_batch_together_are_refused_unless_fixed():
    model, spec = build("qk, fixed")
    with pytest.raises(UnsupportedError) as caught:
        capture(model, spec)
    text = str(caught.value)
    assert text.startswith("attn.proj_lif: the neuron's first dimension is not time alone but time and batch")
    assert "an image's result depends on its neighbors" in text and "--rewrite-model splits time from batch" in text
    assert "published_parts.py" in (caught.value.where or "")
    program = capture(model, spec, rewrite_model=True)
    assert program.info["fixed"] == ["attn.proj_lif"]
    assert program.info["assumptions"] == [
        "time and batch, run together in the model's code, are split before 1 neuron (attn.proj_lif)"
    ]
    x = torch.randn(spec.batched(3))
    alone = torch.cat([program(each[None]) for each in x])
    assert abs(program(x) - alone).max() < 1e-5, "neighbours do not matter any more"
    functional.reset_net(model)
    with torch.no_grad():
        assert abs(model(x) - alone).max() > 1e-3, "in the model they do"


def test_what_is_assumed_is_said():
    assert captured("spikformer, events").info["assumptions"] == [
        "the model takes [N, T, C, H, W]; the program takes [T, N, C, H, W]"
    ]
    assert captured("meta").info["assumptions"] == [
        "zeros are padded before 4 batch norms (attn.q_conv.0.body.1, …), not written around it as what it makes of"
        " them: the same but for rounding"
    ]
    assert "assumptions" not in captured("integer").info


@pytest.mark.parametrize("case", ["integer", "scaled", "meta"])
def test_programs_train(case):
    program = captured(case)
    program.module.train()
    program.reset()
    program.module(torch.randn(program.input.batched(2))).square().sum().backward()
    missing = [n for n, p in program.module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == [] and any(p.grad.any() for p in program.module.parameters())


def test_integer_spikes_are_neurons():
    for case, count, rounding in (("integer", 11, "half_even"), ("scaled", 3, "half_up")):
        program = captured(case)
        neurons = {str(n.target): program.module_of(n) for n in program.neurons()}
        assert len(neurons) == count and {"fc1_spike", "spike"} <= set(neurons)
        assert {(type(m), m.rounding) for m in neurons.values()} == {(IntegerSpike, rounding)}
