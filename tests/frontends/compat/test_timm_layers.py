"""Layers of timm: the names of their weights, and what they compute."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from svitc.frontends.compat.import_hooks import compatible


@pytest.fixture(scope="module")
def timm():
    with compatible():
        return importlib.import_module("timm.layers")


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
def test_names_of_weights(timm, name):
    build, names = NAMES[name]
    assert list(build(timm).state_dict()) == names.split()


def test_blocks_of_efficientnet_have_another_squeeze():
    with compatible():
        blocks = importlib.import_module("timm.models.efficientnet_blocks")
    assert {key.partition(".")[0] for key in blocks.SqueezeExcite(16).state_dict()} == {"conv_reduce", "conv_expand"}


@pytest.mark.parametrize("scaled", [False, True])
def test_standardized_weights(timm, scaled):
    torch.manual_seed(0)
    layer = timm.ScaledStdConv2d(3, 4, 3, gamma=1.5, gain_init=0.7) if scaled else timm.StdConv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6)
    mean = layer.weight.mean((1, 2, 3), keepdim=True)
    variance = layer.weight.var((1, 2, 3), unbiased=False, keepdim=True)
    weight = (layer.weight - mean) / (variance + 1e-6).sqrt()
    weight = weight * 0.7 * 1.5 * 27**-0.5 if scaled else weight
    assert torch.allclose(layer(x), F.conv2d(x, weight, layer.bias, padding=1), atol=1e-6)


def test_other_results(timm):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    norm = timm.LayerNorm2d(4)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(norm(x), expected, atol=1e-5)
    embed = timm.PatchEmbed(6, 3, 4, 5)
    assert embed(x).shape == (2, 4, 5) and embed.num_patches == 4
    mlp = timm.Mlp(6, 8, act_layer=nn.ReLU).eval()
    assert torch.equal(mlp(x), mlp.fc2(F.relu(mlp.fc1(x))))
    squeeze = timm.SEModule(4, rd_channels=2)
    gate = torch.sigmoid(squeeze.fc2(F.relu(squeeze.fc1(x.mean((2, 3), keepdim=True)))))
    assert torch.allclose(squeeze(x), x * gate)
    assert timm.create_conv2d(4, 4, 3, stride=2)(x).shape == (2, 4, 3, 3)
    assert timm.make_divisible(37) == 40 and timm.get_padding(7) == 3


def test_a_factory_as_timm_writes_them(tmp_path):
    (tmp_path / "m.py").write_text(
        "from timm.models import build_model_with_cfg, create_model, register_model\n"
        "from timm.models.layers import ScaledStdConv2d\n"
        "@register_model\ndef net(pretrained=False, **kwargs):\n"
        "    return build_model_with_cfg(ScaledStdConv2d, 'net', pretrained, in_channels=3, out_channels=4,"
        " kernel_size=1, **kwargs)\n"
    )
    from svitc.frontends.compat.import_hooks import find_factory

    assert find_factory(tmp_path / "m.py", "net")().out_channels == 4
