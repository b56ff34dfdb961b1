"""Layers that models build from timm or torchvision, with the same names of weights and the same results.

They are written from the papers and the libraries' documented behavior, so that neither package has to be installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Layer = Callable[..., nn.Module]


def _pair(x: object) -> tuple:
    return tuple(x) if isinstance(x, list | tuple) else (x, x)


def get_padding(kernel_size: Any, stride: Any = 1, dilation: Any = 1, **_: object) -> Any:
    """Return the padding that keeps the size of an image at stride 1, for both sides where the sizes differ."""
    if any(isinstance(size, list | tuple) for size in (kernel_size, stride, dilation)):
        return tuple(map(get_padding, _pair(kernel_size), _pair(stride), _pair(dilation)))
    return ((stride - 1) + dilation * (kernel_size - 1)) // 2


def make_divisible(v: float, divisor: int = 8, min_value: int | None = None, round_limit: float = 0.9) -> int:
    """Round a width to a multiple of ``divisor``, by at most a tenth downwards."""
    rounded = max(min_value or divisor, int(v + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * v else rounded


class Mlp(nn.Module):
    """Two layers with an activation, and a norm after it, between them."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Layer = nn.GELU,
        norm_layer: Layer | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
    ) -> None:
        super().__init__()
        hidden, out = hidden_features or in_features, out_features or in_features
        linear = partial(nn.Conv2d, kernel_size=1) if use_conv else nn.Linear
        (bias1, bias2), (drop1, drop2) = _pair(bias), _pair(drop)
        self.fc1 = linear(in_features, hidden, bias=bias1)
        self.act = act_layer()
        self.drop1 = nn.Dropout(drop1)
        self.norm = norm_layer(hidden) if norm_layer is not None else nn.Identity()
        self.fc2 = linear(hidden, out, bias=bias2)
        self.drop2 = nn.Dropout(drop2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class ConvMlp(Mlp):
    """Two convolutions of size 1, with norm and activation between them."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Layer = nn.ReLU,
        norm_layer: Layer | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float = 0.0,
    ) -> None:
        features = (in_features, hidden_features, out_features)
        super().__init__(*features, act_layer, norm_layer, bias, (drop, 0.0), use_conv=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.drop1(self.act(self.norm(self.fc1(x)))))


class PatchEmbed(nn.Module):
    """An image as tokens: one convolution whose stride is its size."""

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Layer | None = None,
        flatten: bool = True,
        bias: bool = True,
        strict_img_size: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size, self.flatten = _pair(patch_size), flatten
        self.img_size = None if img_size is None else _pair(img_size)
        self.grid_size = self.img_size and tuple(s // p for s, p in zip(self.img_size, self.patch_size, strict=True))
        self.num_patches = self.grid_size and self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.patch_size, bias=bias)  # type: ignore
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2) if self.flatten else x)


class LayerScale(nn.Module):
    """One factor for each channel, the last axis."""

    def __init__(self, dim: int, init_values: float = 1e-5, inplace: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class LayerNorm(nn.LayerNorm):
    """Layer norm with timm's order of arguments."""

    def __init__(self, num_channels: int, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__(num_channels, eps=eps, elementwise_affine=affine)


class LayerNorm2d(LayerNorm):
    """Layer norm over the channels of an image ``[N, C, H, W]``, at each pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class StdConv2d(nn.Conv2d):
    """A convolution with weights of mean 0 and variance 1 in each filter (Qiao et al., arXiv:1903.10520)."""

    def __init__(
        self,
        in_channel: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-6,
    ) -> None:
        padding = get_padding(kernel_size, stride, dilation) if padding is None else padding
        super().__init__(in_channel, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, _standardized(self.weight, self.eps), self.bias)


class ScaledStdConv2d(nn.Conv2d):
    """A convolution with standardized weights, a gain for each filter and a fixed scale (Brock et al., 2101.08692)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        gamma: float = 1.0,
        eps: float = 1e-6,
        gain_init: float = 1.0,
    ) -> None:
        padding = get_padding(kernel_size, stride, dilation) if padding is None else padding
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.gain = nn.Parameter(torch.full((out_channels, 1, 1, 1), gain_init))
        self.scale = gamma * self.weight[0].numel() ** -0.5
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors = (self.gain * self.scale).view(-1)
        return self._conv_forward(x, _standardized(self.weight, self.eps, factors), self.bias)


def _standardized(weight: torch.Tensor, eps: float, factors: torch.Tensor | None = None) -> torch.Tensor:
    filters = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(filters, None, None, factors, training=True, momentum=0.0, eps=eps).reshape_as(weight)


def create_conv2d(in_channels: int, out_channels: int, kernel_size: int, **kwargs: object) -> nn.Module:
    """Return a convolution that keeps the size at stride 1, or one for each channel with ``depthwise=True``."""
    depthwise = kwargs.pop("depthwise", False)
    groups = in_channels if depthwise else kwargs.pop("groups", 1)
    stride, dilation = kwargs.pop("stride", 1), kwargs.pop("dilation", 1)
    padding = kwargs.pop("padding", "")
    if padding in ("", None):
        padding = get_padding(kernel_size, stride, dilation)  # type: ignore[arg-type]
    elif padding == "valid":
        padding = 0
    elif not isinstance(padding, int):
        raise ValueError(f"padding {padding!r} of create_conv2d is not supported")
    kwargs.setdefault("bias", False)
    shape = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
    return nn.Conv2d(*shape, **kwargs)  # type: ignore[arg-type]


class ConvNormAct(nn.Module):
    """Convolution, batch norm and activation; the norm's name is ``bn``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: str | int = "",
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        apply_act: bool = True,
        norm_layer: Layer = nn.BatchNorm2d,
        act_layer: Layer = nn.ReLU,
    ) -> None:
        super().__init__()
        sizes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
        self.conv = create_conv2d(in_channels, out_channels, kernel_size, **sizes)
        self.bn = norm_layer(out_channels)
        self.act = act_layer() if apply_act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class SEModule(nn.Module):
    """Squeeze and excitation (Hu et al., 2018): a factor for each channel, from the means of all."""

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        bias: bool = True,
        act_layer: object = nn.ReLU,
        norm_layer: Layer | None = None,
        gate_layer: object = "sigmoid",
    ) -> None:
        super().__init__()
        width = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.fc1 = nn.Conv2d(channels, width, 1, bias=bias)
        self.bn = norm_layer(width) if norm_layer else nn.Identity()
        self.act = create_act_layer(act_layer)
        self.fc2 = nn.Conv2d(width, channels, 1, bias=bias)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(x.mean((2, 3), keepdim=True))))))


class SqueezeExciteOfBlocks(nn.Module):
    """The same in EfficientNet's blocks (``timm.models._efficientnet_blocks``), with other names."""

    def __init__(
        self,
        in_chs: int,
        rd_ratio: float = 0.25,
        rd_channels: int | None = None,
        act_layer: Layer = nn.ReLU,
        gate_layer: object = nn.Sigmoid,
        force_act_layer: Layer | None = None,
        rd_round_fn: Callable[[float], int] | None = None,
    ) -> None:
        super().__init__()
        width = rd_channels or (rd_round_fn or round)(in_chs * rd_ratio)
        self.conv_reduce = nn.Conv2d(in_chs, width, 1)
        self.act1 = (force_act_layer or act_layer)()
        self.conv_expand = nn.Conv2d(width, in_chs, 1)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))))


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "hard_swish": nn.Hardswish,
    "hard_sigmoid": nn.Hardsigmoid,
    "identity": nn.Identity,
}


def get_act_layer(name: object = "relu") -> object:
    """Return the class of an activation by its name; a class as it is."""
    if not isinstance(name, str):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def create_act_layer(name: object, inplace: bool | None = None, **kwargs: object) -> nn.Module:
    """Return an activation by the name of its class."""
    return get_act_layer(name)(**kwargs)  # type: ignore[operator]


def lecun_normal_(tensor: torch.Tensor) -> torch.Tensor:
    """Initialize weights with a variance of 1 / fan-in."""
    return nn.init.normal_(tensor, std=math.sqrt(1 / tensor[0].numel()))


def variance_scaling_(tensor: torch.Tensor, scale: float = 1.0, *_: object, **__: object) -> torch.Tensor:
    """Initialize weights with a variance of ``scale`` / fan-in; weights of a checkpoint replace them."""
    return nn.init.normal_(tensor, std=math.sqrt(scale / tensor[0].numel()))


def named_apply(
    fn: Callable, module: nn.Module, name: str = "", depth_first: bool = True, include_root: bool = False
) -> nn.Module:
    """Call ``fn(module=…, name=…)`` for every module."""
    if not depth_first and include_root:
        fn(module=module, name=name)
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        named_apply(fn, child, path, depth_first, True)
    if depth_first and include_root:
        fn(module=module, name=name)
    return module


class StochasticDepth(nn.Module):
    """torchvision's layer that drops branches in training; it does nothing in inference."""

    def __init__(self, p: float, mode: str = "row") -> None:
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        shape = [x.shape[0] if self.mode == "row" else 1, *[1] * (x.ndim - 1)]
        return x * x.new_empty(shape).bernoulli_(1 - self.p).div_(max(1 - self.p, 1e-12))


class Permute(nn.Module):
    """torchvision's permutation of axes as a layer."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = list(dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.dims)


# name of timm -> its replacement
TIMM_LAYERS: dict[str, object] = {
    **{layer.__name__: layer for layer in (Mlp, ConvMlp, PatchEmbed, LayerScale, LayerNorm, LayerNorm2d)},
    **{layer.__name__: layer for layer in (StdConv2d, ScaledStdConv2d, ConvNormAct, SEModule)},
    **{f.__name__: f for f in (get_padding, make_divisible, create_conv2d, get_act_layer, create_act_layer)},
    **{f.__name__: f for f in (lecun_normal_, variance_scaling_, named_apply)},
    "ConvBnAct": ConvNormAct,
    "SqueezeExcite": SEModule,
    "_assert": torch._assert,
}
# names that timm's blocks of EfficientNet define anew
OF_BLOCKS: dict[str, object] = {"SqueezeExcite": SqueezeExciteOfBlocks}
TORCHVISION: dict[str, object] = {"StochasticDepth": StochasticDepth, "Permute": Permute}
