"""Calls that real models make between their neurons, each in a small spiking network of its own."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F

from support import selection_calls

CHANNELS, STEPS, PIXELS = 8, 2, 6
SHAPE = (3, PIXELS, PIXELS)


def lif(step_mode: str = "m") -> nn.Module:
    return neuron.LIFNode(step_mode=step_mode, detach_reset=True)


class Body(nn.Module):
    """A function of its parts and of spikes ``[T, N, C, H, W]``."""

    def __init__(self, function, **parts) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


class Host(nn.Module):
    """Convolution and neuron, the body, convolution and neuron, head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.lif1 = nn.Conv2d(3, CHANNELS, 3, 1, 1), nn.BatchNorm2d(CHANNELS), lif()
        self.body = body
        with torch.no_grad():
            width = body.eval()(torch.zeros(STEPS, 2, CHANNELS, PIXELS, PIXELS)).shape[2]
        self.conv2, self.bn2, self.lif2 = nn.Conv2d(width, 10, 3, 1, 1), nn.BatchNorm2d(10), lif()
        self.head = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1).flatten(0, 1)))
        x = self.body(self.lif1(x.unflatten(0, (STEPS, -1))))
        time = x.shape[0]
        x = self.lif2(self.bn2(self.conv2(x.flatten(0, 1))).unflatten(0, (time, -1)))
        return self.head(x.flatten(3).mean(3)).mean(0)


def build(name: str) -> nn.Module:
    """Return a network whose neurons fire."""
    torch.manual_seed(0)
    function, parts = CALLS[name]
    model = Host(Body(function, **{key: make() for key, make in parts.items()}))
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            norm.momentum = 1.0
            with torch.no_grad():
                norm.bias.uniform_(0.2, 0.6)
    with torch.no_grad():
        model.train()(torch.randn(6, *SHAPE))
    for module in model.modules():
        if hasattr(module, "reset"):
            module.reset()
    return model.eval()


CALLS: dict = {}


def call(name: str, function, **parts) -> None:
    """Add a network; its parts are made by functions without arguments."""
    CALLS[name] = function, parts


def each(x: torch.Tensor, function) -> torch.Tensor:
    """Apply a function of ``[N, C, H, W]`` to all steps at once."""
    return function(x.flatten(0, 1)).unflatten(0, (x.shape[0], -1))


def series(x: torch.Tensor, function) -> torch.Tensor:
    """Apply a function of ``[N, C, L]`` to all steps at once."""
    y = function(x.flatten(0, 1).flatten(2))
    return y.reshape(x.shape[0], -1, y.shape[1], PIXELS, y.shape[2] // PIXELS)


def volume(x: torch.Tensor, function) -> torch.Tensor:
    """Apply a function of ``[N, C, T, H, W]``."""
    return function(x.permute(1, 2, 0, 3, 4)).permute(2, 0, 1, 3, 4)


def tokens(x: torch.Tensor, function) -> torch.Tensor:
    """Apply a function of ``[T, N, tokens, C]``."""
    return function(x.flatten(3).transpose(2, 3)).transpose(2, 3).unflatten(3, (PIXELS, PIXELS))


def last(x: torch.Tensor, function) -> torch.Tensor:
    """Apply a function of channels in the last dimension."""
    return function(x.transpose(2, 4)).transpose(2, 4)


def weights(*shape: int):
    return lambda: nn.Parameter(torch.randn(*shape) * 0.3)


def conv(inputs: int = CHANNELS, outputs: int = CHANNELS, kernel: int = 1, **options):
    return lambda: nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def linear(inputs: int, outputs: int):
    return lambda: nn.Linear(inputs, outputs)


# parts of dimensions
call(
    "tokens of a parameter joined",
    lambda s, x: torch.cat([x, s.p.expand(x.shape[0], x.shape[1], -1, -1, -1)], 3),
    p=weights(1, 1, CHANNELS, 1, PIXELS),
)
call(
    "cat of channels", lambda s, x: torch.cat([each(x, s.a), each(x, s.b), x], 2), a=conv(), b=conv(outputs=6, kernel=3)
)
call("concat by keyword", lambda s, x: torch.concat(tensors=[x, x], dim=-1))
call("hstack", lambda s, x: torch.hstack([x[0], x[1]]).unsqueeze(0).repeat(STEPS, 1, 1, 1, 1))
call("stack of steps", lambda s, x: torch.stack([x[i] for i in range(STEPS)]))
call("stack of steps behind the batch", lambda s, x: torch.stack([x[0], x[1]], 1).transpose(0, 1))
call("stack of features", lambda s, x: torch.stack([x, x * 0.5], 3).flatten(2, 3))
call(
    "steps of a norm each",
    lambda s, x: torch.stack([s.n[t](x[t]) for t in range(STEPS)]),
    n=lambda: nn.ModuleList([nn.BatchNorm2d(CHANNELS) for _ in range(STEPS)]),
)
call("difference in time", lambda s, x: torch.cat([x[:1], x[1:] - x[:-1]]))
call("torch.diff", lambda s, x: torch.diff(x, dim=4))
call("uneven split", lambda s, x: torch.cat(x.split([3, 5], 2)[::-1], 2))
call("uneven chunk", lambda s, x: x.chunk(3, 2)[1])
call("tensor_split", lambda s, x: x.tensor_split(3, dim=2)[0])
call("half of the channels", lambda s, x: x[:, :, CHANNELS // 2 :])
call("every other pixel", lambda s, x: x[..., ::2, ::2])
call("one row", lambda s, x: x[..., -1, None] * x)
call("channels in another order", lambda s, x: x[:, :, [0, 2, 1, 5]])
call("narrow from the end", lambda s, x: x.narrow(3, -5, 5))
call("select a step", lambda s, x: x + x.select(0, -1))
call("unbind", lambda s, x: sum(x.unbind(0)).unsqueeze(0).repeat(STEPS, 1, 1, 1, 1))
call("tile", lambda s, x: x.repeat(1, 1, 2, 1, 1).tile((1, 2)))
call("repeat_interleave", lambda s, x: x.repeat_interleave(2, dim=-1))
call("expand_as", lambda s, x: x + x.mean(2, keepdim=True).expand_as(x))
call("expand one channel", lambda s, x: x + x[:, :, :1].expand(-1, -1, CHANNELS, -1, -1))
call("roll", lambda s, x: torch.roll(x, shifts=(1, -2), dims=(-2, -1)))
call("roll of time", lambda s, x: x.roll(1, 0))
call("flip", lambda s, x: x.flip(dims=(3, 4)))
call("movedim", lambda s, x: x.movedim(2, -1).movedim(-1, 2).swapdims(3, 4))
call("windows of a dimension", lambda s, x: x.unfold(3, 2, 2).unfold(4, 3, 1).mean((-1, -2)))
call("channel shuffle", lambda s, x: each(x, nn.ChannelShuffle(4)))
# padding
call("pad by a number", lambda s, x: F.pad(x, (1, 1, 1, 1), value=0.5))
for mode in ("reflect", "replicate", "circular"):
    call(f"pad: {mode}", lambda s, x, mode=mode: each(x, lambda y: F.pad(y, (1, 2, 2, 1), mode=mode)))
call("pad of one dimension: reflect", lambda s, x: each(x, lambda y: F.pad(y, (1, 1, 0, 0), mode="reflect")))
call("pad by less than nothing", lambda s, x: F.pad(x, (-1, 2, 0, -1)))
call("pad of time", lambda s, x: F.pad(x, (0,) * 8 + (1, 0))[:STEPS])
call("pad of channels", lambda s, x: F.pad(x, (0, 0, 0, 0, 2, 1)))
call(
    "convolution of an even size that keeps the image's",
    lambda s, x: each(x, s.a),
    a=lambda: nn.Conv2d(CHANNELS, CHANNELS, (4, 2), padding="same", dilation=(1, 2)),
)
call("convolution with its own padding", lambda s, x: each(x, s.a), a=conv(kernel=3, padding_mode="reflect"))
# pixels
call("interpolate: nearest", lambda s, x: each(x, lambda y: F.interpolate(y, scale_factor=1.5)))
call("interpolate: nearest-exact", lambda s, x: each(x, lambda y: F.interpolate(y, size=4, mode="nearest-exact")))
call("interpolate: bilinear", lambda s, x: each(x, lambda y: F.interpolate(y, size=(9, 4), mode="bilinear")))
call(
    "interpolate: corners",
    lambda s, x: each(x, lambda y: F.interpolate(y, size=(9, 4), mode="bilinear", align_corners=True)),
)
call("interpolate: bicubic", lambda s, x: each(x, lambda y: F.interpolate(y, scale_factor=2, mode="bicubic")))
call("interpolate: area", lambda s, x: each(x, lambda y: F.interpolate(y, size=4, mode="area")))
call("interpolate: linear", lambda s, x: series(x, lambda y: F.interpolate(y, size=12, mode="linear")))
call(
    "interpolate: trilinear",
    lambda s, x: volume(x, lambda y: F.interpolate(y, scale_factor=(1, 2, 2), mode="trilinear")),
)
call("nn.Upsample", lambda s, x: each(x, nn.Upsample(scale_factor=2)))
call(
    "transposed convolution",
    lambda s, x: each(x, lambda y: s.b(s.t(s.a(y)))),
    a=conv(outputs=6),
    t=lambda: nn.ConvTranspose2d(6, 7, 3, 2, 1, 1),
    b=conv(7),
)
call(
    "grouped transposed convolution",
    lambda s, x: each(x, s.t),
    t=lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2, groups=CHANNELS),
)
call(
    "depthwise convolution that doubles the channels",
    lambda s, x: each(x, lambda y: s.d(s.a(y))),
    a=conv(outputs=6),
    d=conv(6, 12, 3, groups=6),
)
call(
    "transposed convolution of a series",
    lambda s, x: series(x, s.t),
    t=lambda: nn.ConvTranspose1d(CHANNELS, CHANNELS, 2, 2),
)
call(
    "transposed convolution of SpikingJelly",
    lambda s, x: s.t(x),
    t=lambda: layer.ConvTranspose2d(CHANNELS, 6, 2, 2, step_mode="m"),
)
call(
    "kernel that is computed",
    lambda s, x: each(x, lambda y: F.conv2d(y, s.w - s.w.mean((1, 2, 3), keepdim=True), padding=1)),
    w=weights(6, CHANNELS, 3, 3),
)
call(
    "convolution in time",
    lambda s, x: volume(x, lambda y: s.b(s.a(y))),
    a=lambda: nn.Conv3d(CHANNELS, 6, 3, padding=1),
    b=lambda: nn.Conv3d(6, CHANNELS, (1, 3, 3), padding=(0, 1, 1)),
)
call("norm over time", lambda s, x: volume(x, s.n), n=lambda: nn.BatchNorm3d(CHANNELS))
call("pooling in time", lambda s, x: volume(x, nn.MaxPool3d(2)) + volume(x, nn.AvgPool3d(2)))
call("pooling of steps", lambda s, x: volume(x, lambda y: F.max_pool3d(y, (1, 2, 2))))
call("pooling of a series", lambda s, x: series(x, nn.MaxPool1d(3, 1, 1)) + series(x, nn.AvgPool1d(3, 1, 1)))
call(
    "F.avg_pool2d",
    lambda s, x: each(x, lambda y: F.avg_pool2d(y, kernel_size=3, stride=1, padding=1, count_include_pad=False)),
)
call("F.max_pool2d", lambda s, x: each(x, lambda y: F.max_pool2d(y, 3, 1, 1, 2)))
call("adaptive pooling to 1", lambda s, x: x * each(x, nn.AdaptiveAvgPool2d(1)))
call("adaptive pooling that divides", lambda s, x: each(x, nn.AdaptiveAvgPool2d((3, 2))))
call("adaptive pooling that does not", lambda s, x: each(x, nn.AdaptiveAvgPool2d(4)) + each(x, nn.AdaptiveMaxPool2d(4)))
call(
    "F.unfold",
    lambda s, x: each(x, lambda y: s.l(F.unfold(s.a(y), 3, padding=1).mT).mT.unflatten(2, (PIXELS, PIXELS))),
    a=conv(outputs=6),
    l=linear(54, CHANNELS),
)
call(
    "F.fold",
    lambda s, x: each(x, lambda y: F.fold(F.unfold(s.a(y), 3, padding=1), (PIXELS, PIXELS), 3, padding=1)),
    a=conv(outputs=6),
)
call("pixel shuffle", lambda s, x: each(x, lambda y: s.b(F.pixel_shuffle(s.a(y), 2))), a=conv(outputs=12), b=conv(3))
call(
    "pixel unshuffle", lambda s, x: each(x, lambda y: s.b(F.pixel_unshuffle(s.a(y), 2))), a=conv(outputs=6), b=conv(24)
)
call("nn.PReLU", lambda s, x: each(x, s.r), r=lambda: nn.PReLU(CHANNELS))
# normalization
call("softmax", lambda s, x: F.softmax(x, dim=2) + x.softmax(-1))
call("softmin and log_softmax", lambda s, x: F.softmin(x, 2) - F.log_softmax(x, 2))
call(
    "layer norm",
    lambda s, x: last(x, s.n) + s.m(x),
    n=lambda: nn.LayerNorm(CHANNELS, bias=False),
    m=lambda: nn.LayerNorm((CHANNELS, PIXELS, PIXELS)),
)
call("RMS norm", lambda s, x: last(x, s.n), n=lambda: nn.RMSNorm(CHANNELS))
call(
    "group norm",
    lambda s, x: each(x, s.n) + s.m(x),
    n=lambda: nn.GroupNorm(2, CHANNELS, affine=False),
    m=lambda: layer.GroupNorm(4, CHANNELS, step_mode="m"),
)
call(
    "instance norm",
    lambda s, x: each(x, s.n) + each(x, F.instance_norm),
    n=lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
)
call("F.normalize", lambda s, x: F.normalize(x + 0.1, dim=2) + F.normalize(x + 0.1, p=1, dim=-1))
call("norms", lambda s, x: x * (x.norm(dim=2, keepdim=True) + torch.linalg.vector_norm(x, 3, dim=(3, 4), keepdim=True)))
call("variance", lambda s, x: x + x.var(2, keepdim=True) + torch.std(x, dim=(3, 4), keepdim=True, unbiased=False))
call("extremes", lambda s, x: x - x.max(dim=-1, keepdim=True)[0] + torch.amin(x, 2, keepdim=True))
call("sums of many", lambda s, x: x.cumsum(0) + x.prod(-1, keepdim=True) - torch.logsumexp(x, 2, keepdim=True))
# products
call(
    "einsum of tokens",
    lambda s, x: tokens(
        x, lambda y: torch.einsum("tbnm,tbmc->tbnc", torch.einsum("tbnc,tbmc->tbnm", s.q(y), s.k(y)), y) * 0.1
    ),
    q=linear(CHANNELS, 6),
    k=linear(CHANNELS, 6),
)
call(
    "einsum of what is never 0",
    lambda s, x: (
        x * torch.einsum("tnchw,tnchw->tnhw", each(x, s.a).sigmoid(), each(x, s.b).sigmoid()).unsqueeze(2) * 0.3
    ),
    a=conv(outputs=6),
    b=conv(outputs=6),
)
call("einsum with an ellipsis", lambda s, x: torch.einsum("...hw,wv", x, s.w), w=weights(PIXELS, PIXELS))
call(
    "grouped convolution",
    lambda s, x: each(x, lambda y: s.g(s.a(y).relu()) + s.a(y).relu()),
    a=conv(outputs=6),
    g=lambda: nn.Conv2d(6, 6, 3, 1, 1, groups=2, bias=False),
)
call(
    "membrane with a start of its own",
    lambda s, x: s.lif(torch.cat([y[:1] + 0.5, y[1:]])) if (y := each(x, s.a)) is not None else None,
    a=lambda: nn.Conv2d(CHANNELS, 6, 3, 1, 1, bias=False),
    lif=lambda: neuron.IFNode(step_mode="m", v_reset=None),
)
call(
    "einsum with queries for all",
    lambda s, x: tokens(
        x,
        lambda y: torch.einsum(
            "tbnm,tbmc->tbnc",
            torch.einsum("tbnd,tbmd->tbnm", s.w[None, None].expand(*y.shape[:2], -1, -1) * 1.0, s.k(y)),
            y,
        ),
    ),
    k=linear(CHANNELS, 6),
    w=weights(36, 6),
)
call(
    "product with a matrix for all",
    lambda s, x: (s.w.repeat(*x.shape[:2], 1, 1, 1) @ x) + x @ s.w[None, None],
    w=weights(1, PIXELS, PIXELS),
)
call("matrix of positions", lambda s, x: s.w @ x + x @ s.w, w=weights(PIXELS, PIXELS))
call("product with a vector", lambda s, x: x * (x @ s.w)[..., None], w=weights(PIXELS))
call("matrix of time steps", lambda s, x: (s.w @ x.flatten(1)).reshape(x.shape), w=weights(STEPS, STEPS))
call(
    "addmm of time steps",
    lambda s, x: torch.addmm(s.b, s.w, x.flatten(1)).reshape(x.shape),
    w=weights(STEPS, STEPS),
    b=weights(STEPS, 1),
)
call("tensordot", lambda s, x: torch.tensordot(x, s.w, dims=([2], [0])).permute(0, 1, 4, 2, 3), w=weights(CHANNELS, 6))
call(
    "attention",
    lambda s, x: tokens(x, lambda y: F.scaled_dot_product_attention(s.q(y), s.k(y), s.v(y))),
    q=linear(CHANNELS, 6),
    k=linear(CHANNELS, 6),
    v=linear(CHANNELS, 7),
)
call(
    "attention with a mask",
    lambda s, x: tokens(x, lambda y: F.scaled_dot_product_attention(s.q(y), y, y, attn_mask=s.m > 0, scale=0.3)),
    q=linear(CHANNELS, CHANNELS),
    m=lambda: nn.Parameter(torch.randn(36, 36) + 9 * torch.eye(36)),
)
call(
    "causal attention",
    lambda s, x: tokens(x, lambda y: F.scaled_dot_product_attention(y, y, s.v(y), is_causal=True)),
    v=linear(CHANNELS, CHANNELS),
)
call(
    "baddbmm",
    lambda s, x: each(
        x,
        lambda y: (lambda z: torch.baddbmm(z, s.q(z) @ z.mT * 0.1, z, beta=0.5, alpha=0.3))(y.flatten(2).mT).mT.reshape(
            y.shape
        ),
    ),
    q=linear(CHANNELS, CHANNELS),
)
for selection, function in selection_calls.SELECTIONS.items():
    call(selection, function, score=linear(CHANNELS, 1), bias=weights(PIXELS * PIXELS))
call("cosine similarity", selection_calls.similar, w=weights(CHANNELS, 1))
