"""Recognise: the sizes of any model of the families, what is assumed of the rest, and refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import model as models
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.errors import InputError, UnsupportedError
from svitc.frontends.checkpoint.load import LoadOptions, load_model
from svitc.frontends.checkpoint.recognize_spikingjelly import recognize
from svitc.frontends.checkpoint.spikingjelly_families import KNOWN
from svitc.frontends.state_dict import ratio


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


RATIOS = st.sampled_from([1.0, 1.5, 2.0, 2.7, 3.0, 4.0])
SMALL = st.integers(1, 3)
COMMON = {
    "T": SMALL,
    "in_channels": st.integers(1, 4),
    "num_classes": st.integers(2, 12),
    "mlp_ratio": RATIOS,
}


def common(draw) -> dict:
    return {name: draw(values) for name, values in COMMON.items()}


@st.composite
def spikformers(draw):
    width = draw(st.integers(1, 5)) * 8 + draw(st.sampled_from([0, 0, 2]))
    side = draw(st.sampled_from([16, 20, 68]))
    return "Spikformer", {
        **common(draw),
        "img_size_h": side,
        "img_size_w": 16,
        "patch_size": draw(st.sampled_from([4, 16])),
        "embed_dims": width,
        "num_heads": draw(st.sampled_from(divisors(width))),
        "depths": draw(SMALL),
    }


@st.composite
def sdts(draw):
    width = draw(st.integers(1, 5)) * 8
    return "SpikeDrivenTransformer", {
        **common(draw),
        "embed_dims": width,
        "num_heads": draw(st.sampled_from(divisors(width))),
        "depths": draw(SMALL),
        "pooling_stat": draw(st.sampled_from(["1111", "0011", "0101"])),
    }


@st.composite
def qkformers(draw):
    width = draw(st.integers(1, 4)) * 8
    heads = st.sampled_from(divisors(width // 4))
    return "QKFormer", {
        **common(draw),
        "embed_dims": width,
        "num_heads": [draw(heads) for _ in range(3)],
        "depths": [draw(SMALL) for _ in range(3)],
        "qka_type": draw(st.sampled_from(["token", "channel"])),
    }


@st.composite
def maxformers(draw):
    cifar = draw(st.booleans())
    return "MaxFormer", {
        **common(draw),
        "embed_dims": draw(st.integers(1, 4)) * 8,
        "depths": [draw(SMALL) for _ in range(3)],
        **({"cifar": True} if cifar else {}),
    }


# what no weight tells; a user who knows better says so
UNTOLD = ("T", "num_heads", "patch_size", "pooling_stat", "qka_type", "img_size_h", "img_size_w")


FAMILIES = {"spikformer": spikformers(), "sdt": sdts(), "qkformer": qkformers(), "maxformer": maxformers()}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_model_of_any_size_is_recognised_and_built_again(family, tmp_path, enliven, logits):
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(family, st.booleans())
    def check(drawn, plif):
        name, args = drawn
        own = {"spiking_neuron": neuron.ParametricLIFNode} if plif else {}
        model = enliven(getattr(models, name)(**args, **own))
        found = recognize(model.state_dict())
        told = {key: value for key, value in args.items() if key not in (*UNTOLD, "mlp_ratio")}
        assert found.family == name
        assert {key: found.arch_args[key] for key in told} == told
        assert found.arch_args.get("spiking_neuron") == ("ParametricLIFNode" if plif else None)
        # event frames' T, and image sizes, are assumed with the shape of the input
        within = {"img_size_h", "img_size_w"} | ({"T"} if len(found.input_shape) == 4 else set())
        assert {key for key in UNTOLD if key in args} <= found.assumptions.keys() | within

        path = tmp_path / "bare.pt"
        torch.save(model.state_dict(), path)
        untold = {key: args[key] for key in UNTOLD if key in args and key != "T"}
        shape = (args["in_channels"], args.get("img_size_h", 16), args.get("img_size_w", 16))
        loaded = load_model(path, LoadOptions(arch_args=untold, input_shape=shape, time_steps=args["T"]))
        assert set(loaded.info["assumptions"]) == {found.assumptions["neurons"]}
        x = torch.rand(2, *shape)
        want = logits(model, x)
        assert torch.equal(logits(loaded.model, x), want)
        assert want.std() > 0  # a silent model would prove nothing

    check()


@pytest.mark.parametrize("factory", [name for name in KNOWN if name.islower()])
def test_published_models_need_no_help(factory):
    with torch.device("meta"):
        model = getattr(models, factory)()
        found = recognize(model.state_dict())
        again = getattr(models, found.family)(**found.arch_args)
    assert str(again) == str(model)  # heads, pools, neurons and sizes all stand in it
    assert again.T == model.T
    assert found.input_shape == ((3, 32, 32) if "cifar" in factory else (3, 224, 224))
    assert all("override with --" in note for note in found.assumptions.values())
    if "num_heads" in found.arch_args:
        assert f"(published {factory}" in found.assumptions["num_heads"]


def test_the_ratio_of_an_mlp_gives_its_width_back():
    for width in range(1, 80):
        for hidden in range(1, 5 * width):
            assert int(width * ratio([(width, hidden)])) == hidden
    assert ratio([(384, 1536)]) == 4.0
    assert ratio([(10, 27), (20, 54), (41, 110)]) == 2.7
    with pytest.raises(KeyError):
        ratio([(10, 20), (20, 60)])


@pytest.mark.parametrize(("width", "heads"), [(96, 3), (64, 2), (512, 16), (8, 1)])
def test_unpublished_widths_get_heads_of_the_published_width(width, heads):
    with torch.device("meta"):
        state = models.Spikformer(embed_dims=width, num_heads=1, depths=1).state_dict()
    assert recognize(state).arch_args["num_heads"] == heads


def test_heads_of_a_spike_driven_transformer_are_of_no_consequence(enliven, logits):
    """The assumption says so: attention contracts tokens, never channels."""
    one, other = (models.SpikeDrivenTransformer(embed_dims=16, num_heads=n, depths=1) for n in (1, 8))
    enliven(one)
    other.load_state_dict(one.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(logits(one, x), logits(other.eval(), x))


def test_image_size_and_classes_decide_the_patch():
    with torch.device("meta"):
        state = models.Spikformer(embed_dims=16, num_heads=1, depths=1, num_classes=100).state_dict()
    assert recognize(state).arch_args["patch_size"] == 4
    large = recognize(state, input_shape=(3, 128, 128), time_steps=7)
    assert (large.arch_args["patch_size"], large.arch_args["T"]) == (16, 7)
    assert not {"input_shape", "T"} & large.assumptions.keys()


def test_two_channels_are_event_frames():
    with torch.device("meta"):
        state = models.Spikformer(embed_dims=16, num_heads=1, depths=1, in_channels=2).state_dict()
    found = recognize(state)
    assert (found.input_shape, found.arch_args["T"]) == ((16, 2, 128, 128), 16)
    assert recognize(state, time_steps=10).input_shape == (10, 2, 128, 128)


def test_wrappers_prefixes_do_not_matter(model):
    state = model.state_dict()
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
    assert recognize(wrapped) == recognize(state)


def test_a_resnet_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 7), nn.BatchNorm2d(8), nn.Linear(8, 10))
    state = {f"layer1.{key}": value for key, value in net.state_dict().items()}
    with pytest.raises(UnsupportedError, match=r"none .* attention layer \(they begin with layer1\.0\.weight"):
        recognize(state)


def test_another_sort_of_svit_is_refused_with_what_disagrees():
    """An official repository's Spikformer: other names, and q, k, v apart."""
    state = {"patch_embed.proj_conv.weight": torch.zeros(8, 3, 3, 3), "head.weight": torch.zeros(10, 64)}
    for name in ("q_conv", "k_conv", "v_conv", "proj_conv"):
        state[f"block.0.attn.{name}.weight"] = torch.zeros(64, 64, 1)
    with pytest.raises(UnsupportedError, match="look most like .*does not have .*_conv.weight") as caught:
        recognize(state)
    assert "--arch" in str(caught.value)


def test_a_missing_head_is_named(model):
    state = dict(model.state_dict())
    del state["head.weight"]
    with pytest.raises(InputError, match=r"like those of .* Spikformer, but head\.weight is missing"):
        recognize(state)
    state["head.weight"] = torch.zeros(4)
    with pytest.raises(InputError, match=r"but a weight that shows one of its sizes is missing or has another shape"):
        recognize(state)
