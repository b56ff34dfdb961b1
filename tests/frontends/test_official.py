"""Own definitions of the published families: names, sizes, numbers, and how a bare checkpoint is recognised."""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model import maxformer, qkformer, spike_driven_transformer, spikformer
from torch import nn

from svitc.errors import InputError, UnsupportedError
from svitc.frontends.capture import capture
from svitc.frontends.official import (
    FACTORIES,
    PUBLISHED,
    ESpikeFormer,
    MetaSpikeFormer,
    QKFormer,
    SpikeDrivenTransformer,
    Spikformer,
    dead_parameters,
    layout,
    unwrap,
)
from svitc.frontends.official.common import BorderNorm, RepConv
from svitc.program import InputSpec


@dataclass
class Small:
    """A small model of each published code.

    Attributes:
        input: without batch.
        last: the layer whose input is looked at.
        digest: as the published code computes it from the same weights and image.
    """

    factory: Callable[..., nn.Module]
    arguments: dict[str, Any]
    input: tuple[int, ...]
    last: str
    digest: tuple[float, ...] = ()

    def build(self, **override: Any) -> nn.Module:
        return self.factory(**{**self.arguments, "num_classes": 3, **override})

    def shallow(self) -> nn.Module:
        """With one block a stage, where there are eight."""
        return self.build(**({"depths": [1, 1]} if self.arguments["depths"] == [6, 2] else {}))


SIZES = {"embed_dims": 32, "num_heads": 2, "depths": 1, "T": 2}
EVENTS = {**SIZES, "in_channels": 2}
STAGES = {"embed_dims": [8, 16, 16, 32], "num_heads": 4, "depths": [6, 2]}
SMALL = {
    "spikformer-imagenet": Small(
        Spikformer, {"variant": "imagenet", **SIZES}, (3, 32, 64), "head",
        (49.25, 42.3125, 23.5, 0.8125, -0.421875, 0.59375),
    ),
    "spikformer-cifar": Small(
        Spikformer, {"variant": "cifar", **SIZES}, (3, 8, 16), "head",
        (46.3125, 33.3125, 23.625, 1.328125, 0.640625, 0.59375),
    ),
    "spikformer-dvs": Small(
        Spikformer, {"variant": "dvs", **EVENTS}, (2, 2, 128, 128), "head",
        (47.984375, 39.4453125, 24.609375, 0.3515625, -0.556640625, 0.2109375),
    ),
    "sdt": Small(
        SpikeDrivenTransformer, SIZES, (3, 32, 64), "head_lif",
        (322.6484375, 282.890625, 59.546875, 0.75, 0.5, 0.75),
    ),
    "sdt-cifar": Small(
        SpikeDrivenTransformer, {**SIZES, "pooling_stat": "0011", "mlp_ratio": 1.0}, (3, 8, 16), "head_lif",
        (482.57421875, 413.9609375, 70.4765625, 0.875, 0.625, 0.75),
    ),
    "sdt-plif": Small(
        SpikeDrivenTransformer, {**EVENTS, "pooling_stat": "0111", "spike_mode": "plif"}, (2, 2, 16, 32),
        "head_lif", (317.30859375, 297.734375, 66.7265625, 0.75, 0.5, 0.75),
    ),
    "sdt-dvs": Small(
        SpikeDrivenTransformer, {**EVENTS, "pooling_stat": "0011", "dvs_mode": True}, (2, 2, 8, 16),
        "head_lif", (277.40234375, 285.12109375, 72.703125, 0.375, 0.25, 0.875),
    ),
    "meta": Small(
        MetaSpikeFormer, {**STAGES, "T": 2}, (3, 32, 64), "lif",
        (74.47119140625, 13.11376953125, -10.75927734375, 1.5, -1.0, 1.5),
    ),
    "meta-distilled": Small(
        MetaSpikeFormer, {**STAGES, "T": 1, "distilled": True}, (3, 32, 64), "lif",
        (52.834228515625, 6.96240234375, 32.06005859375, 1.75, -1.0, 0.5),
    ),
    "espikeformer": Small(
        ESpikeFormer, STAGES, (3, 32, 64), "spike",
        (64.05859375, 51.666015625, 36.1767578125, -2.0, -4.75, -1.0),
    ),
    "qkformer-imagenet": Small(
        QKFormer, {**SIZES, "variant": "imagenet", "depths": [1, 2, 1]}, (3, 64, 64), "head",
        (91.375, 70.5625, 37.96875, 0.265625, -1.1171875, 0.40625),
    ),
    "qkformer-cifar": Small(
        QKFormer, {**SIZES, "variant": "cifar", "depths": [1, 1, 1], "num_heads": 8}, (3, 16, 16), "head",
        (94.09375, 76.625, 29.375, 2.9609375, -0.890625, 0.6484375),
    ),
    "qkformer-dvs": Small(
        QKFormer, {**EVENTS, "variant": "dvs", "depths": [1, 1], "num_heads": 16}, (2, 2, 64, 64), "head",
        (90.25, 77.6875, 30.1875, 0.796875, 0.9140625, 0.765625),
    ),
}  # fmt: skip
# what the published repositories' papers and code say, and tables of models quote
ANCHORS = {
    "spikformer_8_384": 16_828_312, "spikformer_8_512": 29_705_768, "spikformer_8_768": 66_363_208,
    "sdt_8_384": 16_816_536, "sdt_8_512": 29_689_896, "sdt_8_768": 66_339_144,
    "metaspikformer_8_384": 31_333_864, "metaspikformer_8_512": 55_350_248,
    "qkformer_10_384": 16_473_688, "qkformer_10_512": 29_079_336, "qkformer_10_768": 64_962_760,
}  # fmt: skip
MILLIONS = {"espikeformer_t": 2.7, "espikeformer_s": 5.1, "espikeformer_m": 10.0, "espikeformer_l": 19.0}
# some of each layout's keys, with shapes
KEYS = {
    "spikformer_8_384": {
        "patch_embed.proj_conv.weight": (48, 3, 3, 3), "patch_embed.proj_conv3.weight": (384, 192, 3, 3),
        "patch_embed.proj_bn1.running_var": (96,), "patch_embed.rpe_conv.weight": (384, 384, 3, 3),
        "block.7.norm2.bias": (384,), "block.0.attn.q_conv.weight": (384, 384, 1),
        "block.0.attn.proj_conv.bias": (384,), "block.0.mlp.fc1_conv.weight": (1536, 384, 1, 1),
        "head.weight": (1000, 384),
    },
    "spikformer_cifar10": {
        "block.3.attn.q_linear.weight": (384, 384), "block.3.attn.v_linear.bias": (384,),
        "block.3.attn.proj_bn.weight": (384,), "block.3.mlp.fc2_linear.weight": (384, 1536),
    },
    "spikformer_cifar10dvs": {
        "pos_embed": (1, 64, 256), "norm.weight": (256,), "block.1.mlp.fc1_conv.weight": (1024, 256, 1),
    },
    "sdt_8_384": {
        "patch_embed.rpe_bn.weight": (384,), "block.7.attn.talking_heads.weight": (8, 8, 1),
        "block.0.attn.k_conv.weight": (384, 384, 1, 1), "block.0.mlp.fc2_bn.bias": (384,),
    },
    "metaspikformer_8_512_distilled": {
        "downsample1_1.encode_conv.weight": (64, 3, 7, 7), "ConvBlock1_1.0.Conv.dwconv.weight": (128, 1, 7, 7),
        "ConvBlock2_2.0.bn1.weight": (1024,), "block3.5.attn.q_conv.0.body.0.weight": (512, 512, 1, 1),
        "block3.0.attn.proj_conv.0.body.1.bn.running_mean": (512,),
        "block3.0.attn.v_conv.0.body.2.0.weight": (512, 1, 3, 3), "block4.1.attn.k_conv.1.weight": (640,),
        "block4.0.mlp.fc1_conv.weight": (2560, 640, 1), "head_kd.weight": (1000, 640),
    },
    "espikeformer_s": {
        "downsample4.encode_bn.bias": (192,), "ConvBlock1_2.0.Conv.dwconv.0.weight": (64, 1, 7, 7),
        "ConvBlock1_2.0.conv2.weight": (32, 128, 3, 3), "block3.0.conv.pwconv2.1.weight": (128,),
        "block3.0.conv.dwconv.0.weight": (256, 1, 3, 3), "block3.0.attn.v_conv.0.weight": (512, 128, 1, 1),
        "block3.5.attn.proj_conv.0.weight": (128, 512, 1, 1), "block4.1.mlp.fc2_bn.weight": (192,),
    },
    "qkformer_10_384": {
        "patch_embed1.proj2_conv.weight": (96, 96, 3, 3), "patch_embed1.proj_res_conv.weight": (96, 48, 1, 1),
        "patch_embed3.proj3_conv.weight": (384, 192, 3, 3), "stage2.1.tssa.q_conv.weight": (192, 192, 1),
        "stage3.6.attn.v_bn.weight": (384,), "stage3.0.mlp.fc1_conv.weight": (1536, 384, 1, 1),
    },
    "qkformer_cifar10": {
        "patch_embed1.proj1_bn.weight": (96,), "stage2.0.mlp.mlp1_conv.weight": (768, 192, 1, 1),
        "stage3.1.ssa.proj_conv.bias": (384,),
    },
    "qkformer_cifar10dvs": {
        "patch_embed1.proj_conv.weight": (16, 2, 3, 3), "patch_embed1.proj_res_conv.weight": (128, 32, 1, 1),
        "patch_embed2.proj4_conv.weight": (256, 256, 3, 3), "stage2.0.mlp.mlp2_conv.weight": (256, 256, 1, 1),
    },
}  # fmt: skip


def pick(shape: torch.Size, name: str, choices: list[float]) -> torch.Tensor:
    """Numbers that are the same wherever they are made."""
    i = torch.arange(shape.numel(), dtype=torch.int64) + zlib.crc32(name.encode())
    for factor in (2654435761, 40503):
        i = (i * factor) % 2**31
        i = i ^ (i >> 13)
    return torch.tensor(choices)[i % len(choices)].reshape(shape)


def fill(model: nn.Module) -> nn.Module:
    """Weights of few bits, such that every sum is exact in float32; in eval mode."""
    state = model.state_dict()
    weights, biases = [-1, -1, 0, 1, 2], [0, 0.5, 1]
    if isinstance(model, MetaSpikeFormer | ESpikeFormer):  # in so many layers, what leans to one side saturates
        weights, biases = [-2, -1, 0, 1, 2], [-0.5, 0, 0.5, 1]
    with torch.no_grad():
        for name, tensor in state.items():
            owner, _, kind = name.rpartition(".")
            norm = f"{owner}.running_var" in state
            if kind == "running_mean":
                tensor.zero_()
            elif kind == "running_var":
                tensor.fill_(1 - 1e-5)  # eps makes it 1
            elif tensor.ndim > 1 and kind == "weight":
                scale = 2.0 ** -round(torch.tensor(float(tensor[0].numel())).sqrt().log2().item())
                tensor.copy_(pick(tensor.shape, name, weights) * scale)
            elif norm or kind == "bias":
                tensor.copy_(pick(tensor.shape, name, [1, 1.5] if kind == "weight" else biases))
    return model.eval()


def images(small: Small, batch: int) -> torch.Tensor:
    """The first of two images."""
    spec = InputSpec(small.input)
    x = pick(torch.Size(spec.batched(2)), "images", [-0.5, 0, 0.5, 1, 1.5, 2])
    return x.narrow(spec.batch_dim, 0, batch)


def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    functional.reset_net(model)
    with torch.inference_mode():
        y = model(x)
    functional.reset_net(model)
    return y


def digest(model: nn.Module, last: str, x: torch.Tensor) -> tuple[float, ...]:
    """Three weighted sums of what reaches a layer, and the logits, which are coarser."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(last).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = run(model, x)
    handle.remove()
    values = seen[0].double()
    weights = (pick(values.shape, str(i), [-2, -1, 1, 2, 3]).double() for i in range(3))
    return (*(float((values * w).sum()) for w in weights), *logits[0].tolist())


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models so small run fastest in one, above all where other tests run beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=SMALL)
def small(request) -> Small:
    return SMALL[request.param]


@pytest.fixture(scope="module")
def on_meta() -> dict[str, nn.Module]:
    """Every published model, without memory."""
    with torch.device("meta"):
        return {name: published.build() for name, published in PUBLISHED.items()}


def test_parameters_are_counted_as_published(on_meta):
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in on_meta.items()}
    assert {name: counts[name] for name in ANCHORS} == ANCHORS
    assert {name: round(counts[name] / 1e6, 1) for name in MILLIONS} == MILLIONS
    assert counts == {name: published.parameters for name, published in PUBLISHED.items()}
    dead = {name: sum(dead_parameters(model).values()) for name, model in on_meta.items()}
    assert dead == {name: published.dead for name, published in PUBLISHED.items()}


@pytest.mark.parametrize("name", KEYS)
def test_keys_and_shapes(on_meta, name):
    shapes = {key: tuple(value.shape) for key, value in on_meta[name].state_dict().items()}
    assert {key: shapes.get(key) for key in KEYS[name]} == KEYS[name]


def test_numbers_are_those_of_the_published_code(small):
    """All sums are exact, so that a last bit's difference would be a mistake."""
    assert digest(fill(small.build()), small.last, images(small, 1)) == small.digest


def test_images_do_not_mix_in_a_batch(small):
    model = fill(small.build())
    one, both = run(model, images(small, 1)), run(model, images(small, 2))
    assert both.shape == (2, 3) and torch.isfinite(both).all()
    assert torch.equal(both[:1], one)


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("qkformer")])
def test_the_official_bug_of_qkformer_mixes_them(name):
    small = SMALL[name]
    model = fill(small.build(official_bug=True))
    one, both = run(model, images(small, 1)), run(model, images(small, 2))
    assert torch.equal(one, run(fill(small.build()), images(small, 1)))
    assert not torch.equal(both[1:], run(fill(small.build()), images(small, 2))[1:])
    with pytest.raises(UnsupportedError, match="time and batch run together"):
        capture(model, InputSpec(small.input))


def test_capture_is_exact_and_drops_the_dead(small):
    model = fill(small.shallow())
    dead = dead_parameters(model)
    program = capture(model, InputSpec(small.input))
    assert torch.equal(program(images(small, 2)), run(model, images(small, 2)))
    assert program.info["dead"] == dead


def test_channels_under_a_window_stay(small):
    """Pooling over tokens and channels makes neighbours count: only whole heads may go."""
    pooled = small.arguments.get("dvs_mode", False)
    program = capture(small.shallow(), InputSpec(small.input))
    frozen = [g.name for g in program.groups if g.frozen and g.name not in ("input", "head", "head_kd")]
    assert frozen == (["block.0.attn.q_conv"] if pooled else [])


def test_border_norm_writes_what_the_norm_makes_of_zero():
    torch.manual_seed(0)
    layer = BorderNorm(3, border=1).eval()
    norm = layer.get_submodule("bn")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 2)
    x = torch.randn(2, 3, 4, 5)
    wanted = norm(torch.zeros(2, 3, 6, 7))
    wanted[:, :, 1:-1, 1:-1] = norm(x)
    assert (layer(x) - wanted).abs().max() <= 6e-8 * wanted.abs().max()


def test_rep_conv_is_linear_and_keeps_the_size():
    layer = RepConv(4, 6).eval()
    x, y = torch.randn(2, 2, 4, 5, 7)
    zero = layer(torch.zeros_like(x))
    assert zero.shape == (2, 6, 5, 7)
    torch.testing.assert_close(layer(x + y), layer(x) + layer(y) - zero, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (Spikformer, {"variant": "mnist"}, "variant 'mnist' is none of imagenet, cifar, dvs"),
        (Spikformer, {"embed_dims": 32, "num_heads": 5}, "5 heads do not divide a width of 32"),
        (SpikeDrivenTransformer, {"spike_mode": "alif"}, "spike_mode 'alif' is none of lif, plif"),
        (SpikeDrivenTransformer, {"pooling_stat": "12"}, "pooling_stat '12' is not four flags"),
        (MetaSpikeFormer, {"embed_dims": [8, 16]}, "expected four widths and two depths"),
        (ESpikeFormer, {"embed_dims": [8, 16, 24, 36]}, "8 heads do not divide a width of 36"),
        (QKFormer, {"variant": "dvs", "depths": [1, 1, 1]}, "dvs has 2 stages"),
    ],
)
def test_arguments_that_make_no_sense(factory, arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        factory(**arguments)


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
    twin = FACTORIES[found.factory](**{**found.arguments, "num_heads": said["num_heads"]}).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(run(twin, images(small, 2)), run(model, images(small, 2)))
    assert set(found.assumptions) <= {"num_heads", "official_bug"}
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
        ("sdt-plif", "spike_mode", "plif"), ("sdt", "spike_mode", "lif"),
        ("meta", "distilled", False), ("meta-distilled", "distilled", True),
    ):  # fmt: skip
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
