"""Own definitions of the published families: names, sizes, and numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from support.published_small import SMALL, Small, fill, images, pick, run
from svitc.errors import UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.frontends.published import (
    PUBLISHED,
    ESpikeFormer,
    MetaSpikeFormer,
    QKFormer,
    SpikeDrivenTransformer,
    Spikformer,
    dead_parameters,
)
from svitc.frontends.published.layers import BorderNorm, RepConv
from svitc.ir.graph import InputSpec

# what the published repositories' papers and code say, and tables of models quote
ANCHORS = {
    "spikformer_8_384": 16_828_312,
    "spikformer_8_512": 29_705_768,
    "spikformer_8_768": 66_363_208,
    "sdt_8_384": 16_816_536,
    "sdt_8_512": 29_689_896,
    "sdt_8_768": 66_339_144,
    "metaspikformer_8_384": 31_333_864,
    "metaspikformer_8_512": 55_350_248,
    "qkformer_10_384": 16_473_688,
    "qkformer_10_512": 29_079_336,
    "qkformer_10_768": 64_962_760,
}
MILLIONS = {"espikeformer_t": 2.7, "espikeformer_s": 5.1, "espikeformer_m": 10.0, "espikeformer_l": 19.0}
# some of each layout's keys, with shapes
KEYS = {
    "spikformer_8_384": {
        "patch_embed.proj_conv.weight": (48, 3, 3, 3),
        "patch_embed.proj_conv3.weight": (384, 192, 3, 3),
        "patch_embed.proj_bn1.running_var": (96,),
        "patch_embed.rpe_conv.weight": (384, 384, 3, 3),
        "block.7.norm2.bias": (384,),
        "block.0.attn.q_conv.weight": (384, 384, 1),
        "block.0.attn.proj_conv.bias": (384,),
        "block.0.mlp.fc1_conv.weight": (1536, 384, 1, 1),
        "head.weight": (1000, 384),
    },
    "spikformer_cifar10": {
        "block.3.attn.q_linear.weight": (384, 384),
        "block.3.attn.v_linear.bias": (384,),
        "block.3.attn.proj_bn.weight": (384,),
        "block.3.mlp.fc2_linear.weight": (384, 1536),
    },
    "spikformer_cifar10dvs": {
        "pos_embed": (1, 64, 256),
        "norm.weight": (256,),
        "block.1.mlp.fc1_conv.weight": (1024, 256, 1),
    },
    "sdt_8_384": {
        "patch_embed.rpe_bn.weight": (384,),
        "block.7.attn.talking_heads.weight": (8, 8, 1),
        "block.0.attn.k_conv.weight": (384, 384, 1, 1),
        "block.0.mlp.fc2_bn.bias": (384,),
    },
    "metaspikformer_8_512_distilled": {
        "downsample1_1.encode_conv.weight": (64, 3, 7, 7),
        "ConvBlock1_1.0.Conv.dwconv.weight": (128, 1, 7, 7),
        "ConvBlock2_2.0.bn1.weight": (1024,),
        "block3.5.attn.q_conv.0.body.0.weight": (512, 512, 1, 1),
        "block3.0.attn.proj_conv.0.body.1.bn.running_mean": (512,),
        "block3.0.attn.v_conv.0.body.2.0.weight": (512, 1, 3, 3),
        "block4.1.attn.k_conv.1.weight": (640,),
        "block4.0.mlp.fc1_conv.weight": (2560, 640, 1),
        "head_kd.weight": (1000, 640),
    },
    "espikeformer_s": {
        "downsample4.encode_bn.bias": (192,),
        "ConvBlock1_2.0.Conv.dwconv.0.weight": (64, 1, 7, 7),
        "ConvBlock1_2.0.conv2.weight": (32, 128, 3, 3),
        "block3.0.conv.pwconv2.1.weight": (128,),
        "block3.0.conv.dwconv.0.weight": (256, 1, 3, 3),
        "block3.0.attn.v_conv.0.weight": (512, 128, 1, 1),
        "block3.5.attn.proj_conv.0.weight": (128, 512, 1, 1),
        "block4.1.mlp.fc2_bn.weight": (192,),
    },
    "qkformer_10_384": {
        "patch_embed1.proj2_conv.weight": (96, 96, 3, 3),
        "patch_embed1.proj_res_conv.weight": (96, 48, 1, 1),
        "patch_embed3.proj3_conv.weight": (384, 192, 3, 3),
        "stage2.1.tssa.q_conv.weight": (192, 192, 1),
        "stage3.6.attn.v_bn.weight": (384,),
        "stage3.0.mlp.fc1_conv.weight": (1536, 384, 1, 1),
    },
    "qkformer_cifar10": {
        "patch_embed1.proj1_bn.weight": (96,),
        "stage2.0.mlp.mlp1_conv.weight": (768, 192, 1, 1),
        "stage3.1.ssa.proj_conv.bias": (384,),
    },
    "qkformer_cifar10dvs": {
        "patch_embed1.proj_conv.weight": (16, 2, 3, 3),
        "patch_embed1.proj_res_conv.weight": (128, 32, 1, 1),
        "patch_embed2.proj4_conv.weight": (256, 256, 3, 3),
        "stage2.0.mlp.mlp2_conv.weight": (256, 256, 1, 1),
    },
}


def digest(model: nn.Module, last: str, x: torch.Tensor) -> tuple[float, ...]:
    """Three weighted sums of what reaches a layer, and the logits, which are coarser."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(last).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = run(model, x)
    handle.remove()
    values = seen[0].double()
    weights = (pick(values.shape, str(i), [-2, -1, 1, 2, 3]).double() for i in range(3))
    return (*(float((values * w).sum()) for w in weights), *logits[0].tolist())


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=SMALL)
def small(request) -> Small:
    return SMALL[request.param]


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


def test_channels_under_a_window_go_by_heads(small):
    """Pooling over tokens and channels makes neighbours count: only whole heads may go."""
    pooled = small.arguments.get("dvs_mode", False)
    program = capture(small.shallow(), InputSpec(small.input))
    assert {g.name for g in program.groups if g.frozen} <= {"input", "head", "head_kd"}
    assert [g.name for g in program.groups if g.whole_heads] == (["block.0.attn.q_conv"] if pooled else [])


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
