"""Tokens that stop keep their value: against the eager model whose blocks run on the other tokens alone.

Sums over tokens in attention are multiplied by all / running.
"""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from spikingjelly.activation_based import functional

from support.families import FAMILIES, warm
from support.serialized import canonicalised
from svitc.driver.apply import prune_and_round
from svitc.errors import InputError
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.operators.slicing import concatenate, select_indices
from svitc.ir.program import Program
from svitc.ir.token_stages import token_stages
from svitc.onnx.export import export, export_step
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify
from svitc.verification.stream_check import verify_stream


def some_tokens(program: Program, share: float, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Random tokens for each stage, fewer from stage to stage."""
    rng = np.random.default_rng(seed)
    kept: dict[str, tuple[int, ...]] = {}
    running: dict[int, np.ndarray] = {}
    for stage in token_stages(program):
        before = running.get(stage.region, np.arange(stage.count))
        running[stage.region] = np.sort(rng.permutation(before)[: max(1, round(share * len(before)))])
        kept[stage.name] = tuple(running[stage.region].tolist())
    return kept


def pruned(program: Program, share: float = 0.75) -> Program:
    return prune_and_round(program, Plan({}, tokens=some_tokens(program, share)))


def multiplied(factor: float, _: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (inputs[0] * factor,)


def test_stages_are_the_blocks_of_a_residual_stream():
    stages = token_stages(canonicalised("qkformer-token"))
    assert [(s.name, s.count, s.region) for s in stages] == [
        ("stage1.0.attn.qk_conv_bn.0.q", 96, 0),
        ("stage1.0.mlp.fc1", 96, 0),
        ("stage2.0.attn.qk_conv_bn.0.q", 24, 1),
        ("stage2.0.mlp.fc1", 24, 1),
        ("stage3.0.attn.qkv_conv_bn.0.q", 6, 2),
        ("stage3.0.mlp.fc1", 6, 2),
    ]


def test_convolutions_over_pixels_are_in_no_stage():
    assert not any("conv" in s.name.split(".")[-1] for s in token_stages(canonicalised("maxformer-cifar")))


@pytest.mark.parametrize("family", ["sdt", "spikformer"])
def test_the_others_run_as_if_they_were_the_whole_image(family):
    torch.manual_seed(0)
    factory, shape = FAMILIES[family]
    model = warm(factory(depths=2), shape)
    program = capture(model, InputSpec(shape))
    names = [stage.name for stage in token_stages(program)]
    first, second = (0, 2, 3, 5), (2, 5)
    plan = Plan({}, tokens={names[0]: first, names[2]: second})
    x = torch.rand(2, *shape)
    for block, kept in zip(model.blocks, (first, second), strict=True):
        factor = token_stages(program)[0].count / len(kept)
        if family == "spikformer":
            block.attn.scale *= factor
        else:
            block.attn.attn_lif.register_forward_pre_hook(partial(multiplied, factor))
    functional.reset_net(model)
    with torch.no_grad():
        stream = model.patch_embed(x.expand(4, *x.shape))
        for block, kept in zip(model.blocks, (first, second), strict=True):
            flat = stream.flatten(3)
            flat[..., list(kept)] = block(flat[..., list(kept)].unsqueeze(-1)).squeeze(-1).reshape(4, 2, -1, len(kept))
            stream = flat.reshape(stream.shape)
        rest = stream.flatten(3).mean(3)
        want = model.head(model.head_lif(rest).mean(0)) if family == "sdt" else model.head(rest)
    functional.reset_net(model)
    got = prune_and_round(program, plan)(x)
    assert not torch.allclose(program(x), want, atol=1e-3)
    assert torch.allclose(got, want, atol=1e-6)


def test_all_tokens_in_every_stage_change_nothing():
    program = canonicalised("spikformer")
    everything = {stage.name: tuple(range(stage.count)) for stage in token_stages(program)}
    same = prune_and_round(program, Plan({}, tokens=everything))
    assert str(same) == str(prune_and_round(program, Plan({})))
    x = torch.rand(2, *program.input.shape)
    assert torch.equal(same(x), program(x))


def test_files_compute_the_same():
    program = pruned(canonicalised("sdt", T=2))
    x = [torch.rand(1, *program.input.shape)]
    assert verify(program, export(program), x).passed
    whole, _ = quantize(program)
    file = export(whole)
    assert verify_exact(whole, file, x, original=program).passed
    assert verify_stream(whole, export_step(whole), file, x).passed


def test_spikes_that_stop_stay_bytes():
    """A Gather of rows and a Concat at each step; the order is restored in front of a convolution alone."""
    program = pruned(canonicalised("qkformer-token", T=2))
    moved = [node.target for node in program.graph.nodes if node.target in (select_indices, concatenate)]
    assert (moved.count(select_indices), moved.count(concatenate)) == (14, 3)
    whole, _ = quantize(program)
    file = export(whole)
    assert verify_exact(whole, file, [torch.rand(1, *program.input.shape)], original=program).passed
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(file)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    joined = [node for node in graph.node if node.op_type == "Concat" and "concatenate" in node.name]
    assert len(joined) == 6
    assert {types[name] for node in joined for name in node.input} == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ({"blocks.0.mlp.fc2.0": (0,)}, "no tokens can be pruned"),
        ({"blocks.0.mlp.fc1.0": ()}, "which has 96"),
        ({"blocks.0.mlp.fc1.0": (3, 96)}, "which has 96"),
        ({"blocks.0.attn.qkv_conv_bn.0.q": (1, 2), "blocks.0.mlp.fc1.0": (1, 3)}, "runs token 3"),
    ],
)
def test_plans_that_do_not_fit(tokens, problem):
    with pytest.raises(InputError, match=problem):
        Plan({}, tokens=tokens).validate(canonicalised("spikformer"))


def test_plans_are_read_as_they_were_written():
    plan = Plan({}, tokens={"blocks.0.mlp.fc1.0": (1, 5)})
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(InputError, match="tokens are malformed"):
        Plan.from_json(plan.to_json() | {"tokens": {"a": [1.5]}})
