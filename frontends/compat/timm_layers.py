"""Layers of timm that models build from, written anew on top of PyTorch, with the same parameters and names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class StdConv2d(nn.Conv2d):
    """A convolution whose weights are standardized, filter by filter (Qiao et al., arXiv:1903.10520)."""

    def __init__(self, *args: Any, eps: float = 1e-6, **kwargs: Any) -> None:
        kwargs.setdefault("bias", False)
        super().__init__(*args, **kwargs)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve with the standardized weights."""
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=self.eps).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledStdConv2d(nn.Conv2d):
    """A convolution with standardized weights and a gain for each filter (Brock et al., arXiv:2101.08692)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = None,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        gamma: float = 1.0,
        eps: float = 1e-6,
        gain_init: float = 1.0,
    ) -> None:
        if padding is None:
            padding = ((stride - 1) + dilation * (kernel_size - 1)) // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.gain = nn.Parameter(torch.full((out_channels, 1, 1, 1), gain_init))
        self.scale = gamma * self.weight[0].numel() ** -0.5
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve with the standardized, scaled weights."""
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * self.scale).view(-1)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=self.eps)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] | None = None,
        bias: bool = True,
        drop: float = 0.0,
        use_conv: bool = False,
    ) -> None:
        super().__init__()
        hidden, out = hidden_features or in_features, out_features or in_features
        linear: Any = partial(nn.Conv2d, kernel_size=1) if use_conv else nn.Linear
        self.fc1, self.act, self.drop1 = linear(in_features, hidden, bias=bias), act_layer(), nn.Dropout(drop)
        self.norm = norm_layer(hidden) if norm_layer is not None else nn.Identity()
        self.fc2, self.drop2 = linear(hidden, out, bias=bias), nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the result for each token."""
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class PatchEmbed(nn.Module):
    """A convolution that cuts an image into patches, as tokens ``[N, patches, channels]``."""

    def __init__(
        self,
        img_size: Any = 224,
        patch_size: Any = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[[int], nn.Module] | None = None,
        flatten: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = (v if isinstance(v, tuple) else (v, v) for v in (img_size, patch_size))
        self.grid_size = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.num_patches, self.flatten = self.grid_size[0] * self.grid_size[1], flatten
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.patch_size, bias=bias)  # type: ignore[arg-type]
        self.norm = norm_layer(embed_dim) if norm_layer is not None else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens of the patches."""
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2) if self.flatten else x)


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized image."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Channel attention by the means of all channels (Hu et al., arXiv:1709.01507)."""

    def __init__(self, channels: int, rd_ratio: float = 1 / 16, rd_channels: int | None = None, **_: object) -> None:
        super().__init__()
        reduced = rd_channels or make_divisible(channels * rd_ratio, 8, round_limit=0.0)
        self.fc1, self.fc2 = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)
        self.bn, self.act, self.gate = nn.Identity(), nn.ReLU(inplace=True), nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the image with its channels scaled."""
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(x.mean((2, 3), keepdim=True))))))


def make_divisible(value: float, divisor: int = 8, min_value: int | None = None, round_limit: float = 0.9) -> int:
    """Return the nearest multiple of ``divisor`` that is not much smaller than ``value``."""
    rounded = max(min_value or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded


def variance_scaling(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Fill a tensor with random weights; a checkpoint replaces them."""
    return nn.init.trunc_normal_(tensor, std=0.02)


TIMM_LAYERS: dict[str, object] = {
    "StdConv2d": StdConv2d,
    "ScaledStdConv2d": ScaledStdConv2d,
    "Mlp": Mlp,
    "ConvMlp": partial(Mlp, use_conv=True),
    "PatchEmbed": PatchEmbed,
    "LayerNorm2d": LayerNorm2d,
    "SqueezeExcite": SqueezeExcite,
    "SEModule": SqueezeExcite,
    "make_divisible": make_divisible,
    "lecun_normal_": variance_scaling,
    "variance_scaling_": variance_scaling,
}
