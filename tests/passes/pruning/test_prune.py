"""Pruned equals masked, to 1e-9 in float64, before every threshold: random plans over random configurations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.model.maxformer import MaxFormer
from spikingjelly.activation_based.model.qkformer import QKFormer
from spikingjelly.activation_based.model.spike_driven_transformer import SpikeDrivenTransformer
from spikingjelly.activation_based.model.spikformer import Spikformer

from support.oracle import eager_current, mask_eager, run_eager
from support.plans import kept, liven, random_plan
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import BATCH_PROBE, InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.passes import Prune
from svitc.passes.pipelines import canonical_passes
from svitc.planning.plan import Plan
from svitc.verification.recorder import Recorder

TOLERANCE = 1e-9


@st.composite
def models(draw, family):
    """(family, model, input spec, channel attention): a family at random small sizes."""
    time = draw(st.sampled_from([1, 2, 4]))
    events = draw(st.booleans()) and time > 1
    channels = draw(st.sampled_from([1, 2, 3]))
    heads = draw(st.sampled_from([1, 2, 4]))
    depth = draw(st.integers(1, 2))
    head_dim = draw(st.sampled_from([8, 12, 16]))
    height, width = draw(st.sampled_from([(32, 32), (32, 48), (48, 32)]))
    common = {
        "T": time,
        "in_channels": channels,
        "num_classes": 7,
        "mlp_ratio": draw(st.sampled_from([2.0, 3.0, 4.0])),
    }
    kind = draw(st.sampled_from([None, neuron.LIFNode, neuron.IFNode, neuron.ParametricLIFNode, neuron.ILIFNode]))
    if kind is not None:
        common["spiking_neuron"] = kind
    if kind in (neuron.LIFNode, neuron.IFNode, neuron.ParametricLIFNode):
        common["v_reset"] = draw(st.sampled_from([0.0, None]))
    if kind in (neuron.LIFNode, neuron.ParametricLIFNode):
        common["decay_input"] = draw(st.booleans())
    dim = heads * head_dim
    if family == "spikformer":
        patch = draw(st.sampled_from([4, 16]))
        model = Spikformer(
            img_size_h=height,
            img_size_w=width,
            patch_size=patch,
            embed_dims=dim * 2,
            num_heads=heads,
            depths=depth,
            **common,
        )
    elif family == "sdt":
        stat = draw(st.sampled_from(["1111", "0011", "1000"]))
        if stat == "1000":
            height, width = height // 2, width // 2
        model = SpikeDrivenTransformer(embed_dims=dim * 2, num_heads=heads, depths=depth, pooling_stat=stat, **common)
    elif family == "qkformer":
        attention = draw(st.sampled_from(["token", "channel"]))
        model = QKFormer(
            embed_dims=dim * 4,
            num_heads=(heads, heads, heads),
            depths=(1, 1, depth),
            qka_type=attention,
            **common,
        )
    else:
        cifar = draw(st.booleans())
        if cifar:
            height, width = height // 2, width // 2
        embed = draw(st.sampled_from([64, 128]))
        if draw(st.integers(0, 3)) == 0:
            common["mlp_ratio"] = 1.0  # a hidden width equal to the block's adds a residual inside the MLP
        model = MaxFormer(embed_dims=embed, depths=(1, 1, depth), cifar=cifar, **common)
    shape = (time, channels, height, width) if events else (channels, height, width)
    return (
        family,
        model,
        InputSpec(shape),
        getattr(model, "stage1", None) is not None and family == "qkformer" and attention == "channel",
    )


def assert_pruned_is_masked(family, model, spec, channel_attention, seed, plans=1) -> None:
    """Compare a model with ``plans`` random plans applied, each by pruning the program and by masking the model."""
    generator = torch.Generator().manual_seed(seed)
    liven(model, generator)
    model.eval()
    program = capture(model, spec)
    Pipeline(canonical_passes())(program)
    for number in range(plans):
        plan = random_plan(program, np.random.default_rng([seed, number]))
        assert_plan_is_a_mask(program, copy.deepcopy(model), plan, family, channel_attention, generator)


def assert_plan_is_a_mask(program, model, plan, family, channel_attention, generator) -> None:
    masks = plan.validate(program)

    pruned = program.copy()
    Prune(plan)(pruned)
    pruned.module.double()
    removed = {name: np.flatnonzero(~mask.reshape(-1)) for name, mask in plan.keep.items()}
    mask_eager(model, family, removed, channel_attention)
    model.double()

    x = torch.randn(program.input.batched(BATCH_PROBE), generator=generator, dtype=torch.float64)
    masked = run_eager(model, x)
    ours, logits = Recorder.record(pruned, x)
    for node in program.neurons():
        path = str(node.target)
        want = eager_current(masked, path).numpy()
        got = ours.currents[path].numpy()
        left = kept(program, node, masks, want)
        assert got.size == left.size, path
        worst = abs(got.reshape(-1) - left).max()
        assert worst <= TOLERANCE, f"{path}: {worst}"
    assert abs(logits - masked.logits).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", ["spikformer", "sdt", "qkformer", "maxformer"])
@settings(
    max_examples=25,  # models of each family, with two plans each: 200 random plans
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_pruned_equals_masked(family, data, seed):
    assert_pruned_is_masked(*data.draw(models(family)), seed, plans=2)


def test_the_oracle_notices_a_wrong_cut(monkeypatch):
    """Shift one group's kept channels by one after planning: the oracle must not agree."""
    torch.manual_seed(0)
    model = Spikformer(
        T=2, img_size_h=32, img_size_w=32, patch_size=4, num_classes=7, embed_dims=32, num_heads=2, depths=1
    )
    validate = Plan.validate
    calls = []

    def shifted(self, program):
        masks = validate(self, program)
        calls.append(program)
        if len(calls) > 1:  # the pruning's own call, not the test's
            masks = {k: (np.roll(m, 1, axis=1) if k == "blocks.0.mlp.fc1.0" else m) for k, m in masks.items()}
        return masks

    monkeypatch.setattr(Plan, "validate", shifted)
    with pytest.raises(AssertionError):
        assert_pruned_is_masked("spikformer", model, InputSpec((3, 32, 32)), False, 1)
