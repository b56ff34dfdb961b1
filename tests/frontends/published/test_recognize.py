"""How the weights of a published model are recognised, and what is assumed where they cannot tell."""

from __future__ import annotations

import argparse

import pytest
import torch
from spikingjelly.activation_based.model import maxformer, qkformer, spike_driven_transformer, spikformer
from torch import nn

from support.published_small import SMALL, Small, fill, images, run
from svitc.errors import InputError
from svitc.frontends.published import FACTORIES, PUBLISHED, QKFormer, Spikformer, layout, unwrap

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=SMALL)
def small(request) -> Small:
    return SMALL[request.param]


def test_every_published_layout_is_recognised(on_meta):
    for name, published in PUBLISHED.items():
        found = layout(on_meta[name].state_dict())
        assert found is not None, name
        assert (found.like, found.factory, found.input_shape) == (name, published.factory, published.input)
        assert found.arguments == dict(published.arguments)
        assert found.arch == f"svitc.frontends.official:{published.factory}"


def test_a_small_layout_is_recognised_and_rebuilt(small):
    """Round trip: strict loading into what was recognised, where the options say what weights cannot."""
    model = fill(small.build())
    said = {"pooling_stat": "1111", "dvs_mode": False, **small.arguments}
    found = layout(model.state_dict(), said, input_shape=small.input)
    assert found is not None
    assert found.factory == small.factory.__name__
    mixed = {"official_bug": True} if small.factory is QKFormer else {}
    assert {k: v for k, v in found.arguments.items() if k == "official_bug"} == mixed, "the published code's mistake"
    sound = {key: False for key in mixed}
    twin = FACTORIES[found.factory](**{**found.arguments, **sound, "num_heads": said["num_heads"]}).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(run(twin, images(small, 2)), run(model, images(small, 2)))
    assert set(found.assumptions) <= {"num_heads"}
    assert isinstance(found.build(), small.factory)  # type: ignore[arg-type]


def test_what_weights_cannot_tell_is_assumed_aloud(on_meta):
    found = layout(on_meta["spikformer_8_512"].state_dict())
    assert found is not None
    assert found.assumptions == {
        "T": "T = 4 (published spikformer_8_512); override with --time-steps",
        "input_shape": "input shape = 3,224,224 (published spikformer_8_512); override with --input-shape 3,224,224",
        "num_heads": "num_heads = 8 (published spikformer_8_512); override with --arch-args '{\"num_heads\": 8}'",
    }
    with torch.device("meta"):
        odd = Spikformer("cifar", embed_dims=160, num_heads=5, depths=2, num_classes=10)
    found = layout(odd.state_dict())
    assert found is not None and found.arguments["num_heads"] == 5
    assert "heads 32 wide, nearest to the 32 of the published" in found.assumptions["num_heads"]


def test_saved_options_and_the_user_overrule_assumptions(on_meta):
    state = on_meta["sdt_cifar10dvs"].state_dict()
    said = {"time_steps": 16, "img_size": 48, "pooling_stat": "0111", "dvs_mode": False, "num_heads": 8}
    found = layout(state, said)
    assert found is not None
    assert found.input_shape == (16, 2, 48, 48) and found.assumptions == {}
    assert found.arguments["pooling_stat"] == "0111" and found.arguments["dvs_mode"] is False
    found = layout(state, said, input_shape=(5, 2, 128, 128))
    assert found is not None and found.input_shape == (5, 2, 128, 128) and found.arguments["T"] == 5
    heads = layout(on_meta["spikformer_cifar10"].state_dict(), {"num_heads": 6})
    assert heads is not None and heads.arguments["num_heads"] == 6 and "num_heads" not in heads.assumptions
    # QKFormer's code for CIFAR sets its own number of heads, whatever its options say
    heads = layout(on_meta["qkformer_cifar10"].state_dict(), {"num_heads": 6})
    assert heads is not None and heads.arguments["num_heads"] == 8
    events = layout(SMALL["meta"].build(in_channels=2).state_dict())  # as published for HARDVS
    assert events is not None and events.input_shape == (16, 2, 224, 224)
    assert "two input channels" in events.assumptions["T"]
    nonsense = layout(state, {"time_steps": "many", "img_size": None, "pooling_stat": 7})
    assert nonsense is not None and nonsense.input_shape == (10, 2, 64, 64)


def test_plif_distillation_and_prefixes_are_told_from_names():
    for name, argument, value in (
        ("sdt-plif", "spike_mode", "plif"),
        ("sdt", "spike_mode", "lif"),
        ("meta", "distilled", False),
        ("meta-distilled", "distilled", True),
    ):
        state = SMALL[name].build().state_dict()
        found = layout({f"module.{key}": tensor for key, tensor in state.items()})
        assert found is not None and found.arguments[argument] == value


def test_what_is_no_published_layout_is_none():
    strangers = [
        spikformer.Spikformer(img_size_h=16, img_size_w=16, patch_size=4, embed_dims=16, num_heads=2, depths=1),
        spike_driven_transformer.SpikeDrivenTransformer(embed_dims=16, num_heads=2, depths=1),
        qkformer.QKFormer(embed_dims=16, num_heads=(1, 1, 1), depths=(1, 1, 1)),
        maxformer.MaxFormer(embed_dims=64, depths=(1, 1, 1)),
        nn.Linear(2, 3),
        # of events: the published models of these names have neurons that run over time
        SMALL["espikeformer"].build(in_channels=2),
    ]
    assert [layout(model.state_dict()) for model in strangers] == [None] * len(strangers)
    state = SMALL["sdt"].build().state_dict()
    assert layout({**state, "head.weight": torch.zeros(3)}) is None
    assert layout({key: value for key, value in state.items() if key != "head.weight"}) is None
    assert layout({**state, "block.999999999.norm": torch.zeros(1)}) is None


def test_checkpoints_are_unwrapped(tmp_path):
    state = {"a.weight": torch.ones(2)}
    averaged = {"module.a.weight": torch.zeros(2)}
    saved = argparse.Namespace(time_steps=4, model="sdt", mean=[0.5], hook=None, device=torch.device("cpu"))
    script = {"epoch": 3, "arch": "sdt", "state_dict": {"module.a.weight": state["a.weight"]}}
    checkpoint = {**script, "state_dict_ema": averaged, "args": saved}
    weights, options = unwrap(checkpoint)
    assert weights == state and options == {"time_steps": 4, "model": "sdt", "mean": [0.5]}
    assert torch.equal(unwrap(checkpoint, ema=True)[0]["a.weight"], torch.zeros(2))
    assert unwrap(state) == (state, {})
    assert unwrap({"model": state, "optimizer": {}, "args": {"T": 16}}) == (state, {"T": 16})
    with pytest.raises(InputError, match="holds no averaged weights .it has epoch, arch, state_dict"):
        unwrap(script, ema=True)
    with pytest.raises(InputError, match="holds no weights .it has epoch"):
        unwrap({"epoch": 3})
    # a file is read without running anything that is in it
    torch.save({"model": state, "args": argparse.Namespace(time_step=2)}, tmp_path / "c.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        weights, options = unwrap(torch.load(tmp_path / "c.pth", weights_only=True))
    assert torch.equal(weights["a.weight"], state["a.weight"]) and options == {"time_step": 2}
