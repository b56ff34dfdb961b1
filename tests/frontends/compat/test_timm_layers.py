"""The layers that stand in for timm's, each against the formula of its paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from svitc.frontends.compat.import_hooks import compatible
from svitc.frontends.compat.timm_layers import TIMM_LAYERS


def made(name: str, *args: object, **kwargs: object) -> nn.Module:
    """Build a layer as a model file does."""
    torch.manual_seed(0)
    with compatible():
        import timm.layers

        layer = getattr(timm.layers, name)(*args, **kwargs)
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
    expected = linear(F.gelu(linear(x, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)
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
    assert 0.015 < weight.std() < 0.025


def test_every_layer_is_tested():
    assert set(TIMM_LAYERS) == {
        *("StdConv2d", "ScaledStdConv2d", "Mlp", "ConvMlp", "PatchEmbed", "LayerNorm2d", "SqueezeExcite", "SEModule"),
        *("make_divisible", "lecun_normal_", "variance_scaling_"),
    }
