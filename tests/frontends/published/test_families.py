"""Each published family from our own definitions, small: captured exactly, pruned as masked, budgets met, verified.

The ties between layers are written down by hand, as read in the published code; nothing is taken from svitc's groups.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import svitc
from support.constructs import currents, silence
from support.families import warm
from support.plans import kept, random_plan
from support.published_small import SMALL, run
from svitc import onnx as backend
from svitc.driver.inspect import inspect
from svitc.driver.load import check_capture, run_canonical_passes
from svitc.frontends.capture.capture import capture
from svitc.frontends.published import QKFormer, dead_parameters
from svitc.frontends.published.qkformer import VARIANTS
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.onnx.export import export
from svitc.passes import Prune
from svitc.passes.pipelines import inference_passes
from svitc.planning.cost import byte_cost, parameter_cost
from svitc.planning.plan import Plan
from svitc.verification.recorder import Recorder

TOLERANCE = 1e-9
FAMILIES = [name for name in SMALL if name not in ("sdt-cifar", "meta-distilled")]
INPUTS = {"spikformer-dvs": (2, 2, 32, 32), "qkformer-dvs": (2, 2, 32, 32)}  # smaller than the published code's own

# group, named by its first layer -> every layer that makes the same channels; what is not here stands alone
BLOCK = {
    r"patch_embed\.proj_conv3": [
        r"patch_embed\.(proj_conv3|rpe_conv)",
        r"block\.\d\.attn\.proj_(conv|linear)",
        r"block\.\d\.mlp\.fc2_(conv|linear)",
    ],
}
STAGES = {
    r"downsample(1_1|1_2|2)\.encode_conv": [
        r"downsample{}\.encode_conv",
        r"ConvBlock{}(_\d)?\.0\.Conv\.pwconv2(\.0)?",
        r"ConvBlock{}(_\d)?\.0\.conv2",
    ],
    r"downsample(3|4)\.encode_conv": [
        r"downsample{}\.encode_conv",
        r"block{}\.\d\.conv\.pwconv2\.0",
        r"block{}\.\d\.mlp\.fc2_conv",
        r"block{}\.\d\.attn\.proj_conv\.0(\.body\.2\.1)?",
    ],
}
TIES = {
    "spikformer": {**BLOCK, r"(block\.\d\.attn)\.q_(?:conv|linear)": [r"{}\.[qk]_(conv|linear)"]},
    "sdt": {**BLOCK, r"(block\.\d\.attn)\.q_conv": [r"{}\.[qkv]_conv"]},
    "meta": {**STAGES, r"(block\d\.\d\.attn)\.q_conv\.0\.body\.2\.1": [r"{}\.[qk]_conv\.0\.body\.2\.1"]},
    "espikeformer": {
        **STAGES,
        r"(block\d\.\d\.attn)\.q_conv\.0": [r"{}\.[qk]_conv\.0"],
        r"(.*)\.pwconv1\.0": [r"{}\.(pwconv1|dwconv)\.0"],  # a batch norm behind each
    },
    "qkformer": {r"(stage\d\.\d\.(?:attn|ssa))\.q_conv": [r"{}\.[qk]_conv"]},
}


def ties(name: str) -> dict[str, list[str]]:
    """Those of a family; where a patch embedding ends differs between QKFormer's variants."""
    family, _, variant = name.partition("-")
    if family != "qkformer":
        return TIES[family]
    kind = VARIANTS[variant]
    ends = [kind.stem.path[-1][0], *[kind.later.path[-1][0]] * (len(kind.widths) - 1)]
    stages = {
        f"patch_embed{i}.{end.format('conv')}": [
            rf"patch_embed{i}\.({end.format('conv')}|proj_res_conv)",
            rf"stage{i}\.\d\.\w+\.proj_conv",
            rf"stage{i}\.\d\.mlp\.\w+2_conv",
        ]
        for i, end in enumerate(ends, 1)
    }
    return {**TIES[family], **stages}


def mask(model: nn.Module, name: str, removed: dict[str, np.ndarray]) -> None:
    """Zero whatever produces the removed channels, so that their neurons never fire."""
    layers = [path for path, m in model.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))]
    for group, rows in removed.items():
        found = next(((m, each) for rule, each in ties(name).items() if (m := re.fullmatch(rule, group))), None)
        patterns = [re.escape(group)]
        if found is not None:
            patterns = [each.replace("{}", re.escape(found[0][1]) if found[0].groups() else "") for each in found[1]]
        tied = [path for path in layers if any(re.fullmatch(each, path) for each in patterns)]
        assert group in tied
        for path in tied:
            silence(model, path, rows)


def build(name: str) -> tuple[nn.Module, InputSpec]:
    shape = INPUTS.get(name, SMALL[name].input)
    torch.manual_seed(0)
    return warm(SMALL[name].shallow(), shape), InputSpec(shape)


@cache
def captured(name: str):
    model, spec = build(name)
    program = capture(model, spec)
    run_canonical_passes(program)
    return program


def images(spec: InputSpec, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(spec.batched(count), generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x.abs().floor() if spec.events else x


@pytest.mark.parametrize("name", FAMILIES)
def test_captured_is_the_model(name):
    model, spec = build(name)
    program, x = captured(name), images(spec, 3)
    assert torch.equal(program(x), run(model, x)) and program(x).std() > 0.01
    assert program.info["dead"] == dead_parameters(model)
    recorder, _ = Recorder.record(program, x)
    fired = [bool(s.any()) for s in recorder.spikes.values()]
    assert sum(fired) > 0.7 * len(fired), "a silent model proves little"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FAMILIES)
def test_pruned_is_masked(name, seed):
    program = captured(name)
    assert_pruned_is_masked(name, random_plan(program, np.random.default_rng(seed)))


def assert_pruned_is_masked(name: str, plan: Plan) -> None:
    program, (model, spec) = captured(name), build(name)
    masks = plan.validate(program)
    pruned = program.copy()
    Prune(plan)(pruned)
    pruned.module.double()
    mask(model, name, {group: np.flatnonzero(~each.reshape(-1)) for group, each in plan.keep.items()})
    x = images(spec, 3, torch.float64)
    want, logits = currents(model.double(), x)
    recorder, got = Recorder.record(pruned, x)
    for node in program.neurons():
        path = str(node.target)
        left = kept(program, node, masks, want[path].numpy())
        assert recorder.currents[path].numel() == left.size, path
        assert abs(recorder.currents[path].numpy().reshape(-1) - left).max() <= TOLERANCE, path
    assert abs(got - logits).max() <= TOLERANCE


def stored_bytes(exported: bytes) -> tuple[int, int]:
    """Of all constants, and of those among them that are shapes."""
    tensors = onnx.load_from_string(exported).graph.initializer
    return backend.weight_bytes(exported), sum(8 * np.prod(t.dims, dtype=int) for t in tensors if t.data_type == 7)


@pytest.mark.parametrize("name", FAMILIES)
def test_costs_are_exact(name):
    """What a plan costs is known to the byte before anything is written, but for shapes that happen to be equal."""
    program = captured(name)
    folded = program.copy()
    Pipeline(inference_passes())(folded)
    plan = random_plan(program, np.random.default_rng(3))
    pruned = program.copy()
    Prune(plan)(pruned)
    sizes = {}
    for group in program.groups:
        if (each := plan.keep.get(group.name)) is not None:
            sizes[id(group.axis)] = int(each.sum(axis=1).max())
            sizes[id(group.head_axis)] = int(each.any(axis=1).sum())
    (stored, shapes), (new_stored, new_shapes) = (stored_bytes(export(each)) for each in (program, pruned))
    assert byte_cost(program, folded, stored)(sizes) - shapes == new_stored - new_shapes
    assert parameter_cost(program)(sizes) == pruned.parameter_count()


@cache
def compiler_of(name: str) -> svitc.Compiler:
    """Return the compiler of a family, which exports the original once for both budgets."""
    return svitc.Compiler(captured(name), options=svitc.CompileOptions(images=2, no_data="uniform"))


@pytest.mark.parametrize("budget", [0.78, 0.5])
@pytest.mark.parametrize("name", FAMILIES)
def test_budgets_are_met_and_verified(name, budget):
    done = compiler_of(name).compile(budget)
    memory, verdict = done.report["memory"], done.report["verify"]
    assert budget - 0.02 < memory["ratio"] <= budget
    assert memory["compiled_bytes"] == backend.weight_bytes(done.onnx)
    assert verdict["status"] == "passed" and verdict["flips_beyond_rounding"] == 0
    assert verdict["currents_beyond_rounding"] == verdict["logits_beyond_rounding"] == 0
    rows = done.report["reparam"].values()
    assert not any(row["merged"] for row in rows) and bool(rows) == (name in ("meta",))


def test_only_whole_heads_go_where_attention_pools_over_their_dimensions():
    """CIFAR10-DVS: a window slides over the tokens and channels of each head."""
    program = captured("sdt-dvs")
    group = next(g for g in program.groups if g.name == "block.0.attn.q_conv")
    assert group.frozen is None and group.whole_heads == "a window slides over it, so that neighbours count"
    for head in range(group.heads):
        keep = np.ones((group.heads, group.axis.size), dtype=bool)
        keep[head] = False
        assert_pruned_is_masked("sdt-dvs", Plan({group.name: keep}))
    done = svitc.compile(program, 0.5, images=2, no_data="uniform")  # without --prune-heads
    chosen = done.plan.keep["block.0.attn.q_conv"]
    assert set(chosen.mean(axis=1).tolist()) == {0.0, 1.0}
    assert "whole heads only: a window slides over it" in str(program)
    views = {g["name"]: g["whole_heads"] for g in inspect(program)["groups"]}
    assert [name for name, why in views.items() if why] == ["block.0.attn.q_conv"]


def test_the_published_qkformer_is_fixed_to_what_was_meant():
    small = SMALL["qkformer-imagenet"]
    torch.manual_seed(0)
    model = warm(QKFormer(**{**small.arguments, "num_classes": 3, "official_bug": True}), small.input)
    program = capture(model, InputSpec(small.input), rewrite_model=True)
    assert check_capture(model, program) == 0.0
    x = images(program.input, 2)
    sound = small.build()
    sound.load_state_dict(model.state_dict())
    assert torch.equal(program(x), run(sound.eval(), x))
