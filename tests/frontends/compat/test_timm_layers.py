"""The layers that stand in for timm's, each against the formula of its paper."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from svitc.frontends.compat.import_hooks import compatible, find_factory
from svitc.frontends.compat.timm_layers import TIMM_LAYERS


def made(name: str, *args: object, **kwargs: object) -> nn.Module:
    """Build a layer as a model file does."""
    torch.manual_seed(0)
    with compatible():
        layer = getattr(importlib.import_module("timm.layers"), name)(*args, **kwargs)
    assert isinstance(layer, nn.Module)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


def standardized(weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return filters of mean 0 and variance 1."""
    mean = weight.mean((1, 2, 3), keepdim=True)
    variance = weight.var((1, 2, 3), keepdim=True, unbiased=False)
    return (weight - mean) / torch.sqrt(variance + eps)


def test_standardized_convolutions():
    x = torch.randn(2, 4, 6, 6)
    conv = made("StdConv2d", 4, 8, 3, stride=2, padding=1, groups=2)
    assert conv.bias is None
    expected = F.conv2d(x, standardized(conv.weight, 1e-6), None, 2, 1, 1, 2)
    torch.testing.assert_close(conv(x), expected)
    scaled = made("ScaledStdConv2d", 4, 8, 3, gamma=1.7)
    weight = scaled.gain * 1.7 * standardized(scaled.weight, 1e-6) / (4 * 9) ** 0.5
    torch.testing.assert_close(scaled(x), F.conv2d(x, weight, scaled.bias, padding=1))
    assert sorted(scaled.state_dict()) == ["bias", "gain", "weight"]


@pytest.mark.parametrize("name", ["Mlp", "ConvMlp"])
def test_two_linear_layers(name):
    mlp = made(name, 4, 6, 5, drop=0.5)
    x = torch.randn(2, 7, 4) if name == "Mlp" else torch.randn(2, 4, 3, 3)
    linear = F.linear if name == "Mlp" else F.conv2d
    activation = F.gelu if name == "Mlp" else F.relu
    expected = linear(activation(linear(x, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)
    torch.testing.assert_close(mlp(x), expected)


def test_patches():
    embed = made("PatchEmbed", 8, 4, 3, 5, norm_layer=nn.LayerNorm)
    x = torch.randn(2, 3, 8, 8)
    cut = F.unfold(x, 4, stride=4).transpose(1, 2)
    expected = cut @ embed.proj.weight.flatten(1).T + embed.proj.bias
    expected = F.layer_norm(expected, (5,), embed.norm.weight, embed.norm.bias)
    torch.testing.assert_close(embed(x), expected, rtol=1e-4, atol=1e-5)
    assert embed.num_patches == 4 and embed.grid_size == (2, 2)


def test_layer_norm_over_channels():
    norm = made("LayerNorm2d", 4, eps=1e-3)
    x = torch.randn(2, 4, 3, 5)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    weight, bias = norm.weight.view(1, -1, 1, 1), norm.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(norm(x), (x - mean) / torch.sqrt(variance + 1e-3) * weight + bias)


@pytest.mark.parametrize("name", ["SqueezeExcite", "SEModule"])
def test_channel_attention(name):
    attention = made(name, 16, rd_ratio=0.5)
    x = torch.randn(2, 16, 3, 5)
    hidden = torch.relu(x.mean((2, 3)) @ attention.fc1.weight[:, :, 0, 0].T + attention.fc1.bias)
    scale = torch.sigmoid(hidden @ attention.fc2.weight[:, :, 0, 0].T + attention.fc2.bias)
    torch.testing.assert_close(attention(x), x * scale[:, :, None, None])


def test_helpers():
    assert [TIMM_LAYERS["make_divisible"](v, 8) for v in (3, 12, 19, 20, 30)] == [8, 16, 24, 24, 32]
    weight = torch.empty(64, 64)
    TIMM_LAYERS["lecun_normal_"](weight)
    assert 0.115 < weight.std() < 0.135, "1 / 8, as 64 numbers come in"


def test_other_layers():
    x = torch.randn(2, 4, 6, 6)
    block = made("ConvNormAct", 4, 5, 3, stride=2)
    expected = F.conv2d(x, block.conv.weight, None, 2, 1)
    expected = F.batch_norm(expected, block.bn.running_mean, block.bn.running_var, block.bn.weight, block.bn.bias)
    torch.testing.assert_close(block(x), F.relu(expected))
    gate = made("SEModule", 4, rd_channels=2, gate_layer="hard_sigmoid")
    factors = F.hardsigmoid(gate.fc2(F.relu(gate.fc1(x.mean((2, 3), keepdim=True)))))
    torch.testing.assert_close(gate(x), x * factors)
    scale = made("LayerScale", 6)
    torch.testing.assert_close(scale(x), x * scale.gamma)
    assert made("create_conv2d", 4, 4, (3, 5), depthwise=True)(x).shape == x.shape
    with pytest.raises(ValueError, match="'what' is not supported"):
        TIMM_LAYERS["create_act_layer"]("what")


NAMES = {
    "Mlp": (lambda t: t.Mlp(4, 8, drop=0.1), "fc1.weight fc1.bias fc2.weight fc2.bias"),
    "ConvMlp": (lambda t: t.ConvMlp(4, 8), "fc1.weight fc1.bias fc2.weight fc2.bias"),
    "PatchEmbed": (lambda t: t.PatchEmbed(8, 2, 3, 4), "proj.weight proj.bias"),
    "LayerScale": (lambda t: t.LayerScale(4), "gamma"),
    "LayerNorm2d": (lambda t: t.LayerNorm2d(4), "weight bias"),
    "StdConv2d": (lambda t: t.StdConv2d(3, 4, 3), "weight"),
    "ScaledStdConv2d": (lambda t: t.ScaledStdConv2d(3, 4, 3), "weight bias gain"),
    "SEModule": (lambda t: t.SqueezeExcite(16), "fc1.weight fc1.bias fc2.weight fc2.bias"),
    "create_conv2d": (lambda t: t.create_conv2d(4, 4, 3, depthwise=True), "weight"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_weights(name):
    build, names = NAMES[name]
    with compatible():
        layers = importlib.import_module("timm.layers")
    assert list(build(layers).state_dict()) == names.split()


def test_blocks_of_efficientnet_have_another_squeeze():
    with compatible():
        blocks = importlib.import_module("timm.models.efficientnet_blocks")
    assert {key.partition(".")[0] for key in blocks.SqueezeExcite(16).state_dict()} == {"conv_reduce", "conv_expand"}


def test_a_factory_as_timm_writes_them(tmp_path):
    (tmp_path / "m.py").write_text(
        "from timm.models import build_model_with_cfg, create_model, register_model\n"
        "from timm.models.layers import ScaledStdConv2d\n"
        "@register_model\ndef net(pretrained=False, **kwargs):\n"
        "    return build_model_with_cfg(ScaledStdConv2d, 'net', pretrained, in_channels=3, out_channels=4,"
        " kernel_size=1, **kwargs)\n"
    )
    assert find_factory(tmp_path / "m.py", "net")().out_channels == 4
