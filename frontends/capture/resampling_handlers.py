"""Handlers of calls over pixels, and of the layers that do the same: pooling, interpolation, padding, convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from svitc.frontends.capture.graph_builder import GraphBuilder, Value
from svitc.frontends.capture.handler_arguments import call, positive, rank, value_shape
from svitc.frontends.capture.slicing_handlers import windows
from svitc.frontends.capture.structure_handlers import padded
from svitc.ir.graph import input_type
from svitc.ir.operators import resampling

Handler = Callable[[GraphBuilder, fx.Node], Value]


def per_dimension(value: Any, count: int) -> tuple[int, ...]:
    """Return a number for each dimension of a window."""
    return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),) * count


def with_batch(b: GraphBuilder, x: fx.Node, pixels: int) -> tuple[fx.Node, Callable[[fx.Node], fx.Node]]:
    """Return ``x`` with one dimension before its channels, and a function that splits this one again."""
    dims = input_type(x)
    if len(dims) == pixels + 2:
        return x, lambda y: y
    if len(dims) < pixels + 2:
        raise b.refuse(f"a window over {pixels} dimensions needs {pixels + 2}, and it gets {len(dims)}")
    lead = dims[: len(dims) - pixels - 1]
    merged = b.view(x, (tuple(axis for dim in lead for axis in dim), *dims[len(lead) :]))
    return merged, lambda y: b.view(y, (*lead, *input_type(y)[1:]))


def adaptive_pool(target: Callable, pixels: int) -> Handler:
    """Return a handler of a pooling to given sizes."""

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        x, sizes, *_ = call(b, node, "output_size", "return_indices")
        note_layout(b, f"{node.meta.get('scope') or 'the model'}: {target.__name__}")
        given = sizes if isinstance(sizes, (tuple, list)) else (sizes,) * pixels
        x, back = with_batch(b, x, pixels)
        shape = value_shape(node)[-pixels:]
        sizes = tuple(shape[i] if size is None else int(size) for i, size in enumerate(given))
        return back(b.emit("call_function", target, (x,), {"sizes": sizes}))

    return handler


def pool(layer: type[nn.Module], pixels: int) -> Handler:
    """Return a handler of ``F.max_pool2d`` and the like, which becomes the layer of the same arguments."""
    names = {
        nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
        nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    }[layer]  # type: ignore[index]
    defaults: dict[str, Any] = {
        "padding": 0,
        "dilation": 1,
        "ceil_mode": False,
        "return_indices": False,
        "count_include_pad": True,
    }

    def handler(b: GraphBuilder, node: fx.Node) -> fx.Node:
        x, *values = call(b, node, *names, **defaults)
        options = dict(zip(names, values, strict=True))
        if options.pop("return_indices", False):
            raise b.refuse("a pooling that returns indices is not supported")
        x, back = with_batch(b, x, pixels)
        windows = ("kernel_size", "stride", "padding", "dilation")
        if options["stride"] in (None, []):
            options["stride"] = options["kernel_size"]
        for name in windows:
            if name in options:
                neutral = 0 if name == "padding" else 1
                options[name] = ((neutral,) * (2 - pixels)) + per_dimension(options[name], pixels)
        flat = x if pixels == 2 else b.view(x, (*input_type(x)[:2], (), input_type(x)[2]))
        y = b.emit("call_module", b.layer("pool", layer(**options)), (flat,))
        dims = input_type(y)
        return back(y if pixels == 2 else b.view(y, (*dims[:2], dims[3])))

    return handler


def interpolate(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``F.interpolate``."""
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    x, _, scales, mode, corners, recompute, smooth = call(b, node, *names, mode="nearest", antialias=False)
    pixels = rank(x) - 2
    if smooth:
        raise b.refuse(f"interpolation by {mode} with antialiasing is not supported", hint="Without it, it is.")
    if mode == "area":
        sizes = {"sizes": value_shape(node)[-pixels:]}
        return b.emit("call_function", resampling.adaptive_average_pool, (x,), sizes)
    if scales is not None and not recompute:
        factors = tuple(float(s) for s in (scales if isinstance(scales, (tuple, list)) else (scales,) * pixels))
    else:
        factors = None
    attributes = {
        "sizes": value_shape(node)[-pixels:],
        "scales": factors,
        "mode": mode,
        "align_corners": bool(corners),
    }
    if mode == "bicubic":
        del attributes["mode"]
        return b.emit("call_function", resampling.interpolate_cubic, (x,), attributes)
    return b.emit("call_function", resampling.interpolate, (x,), attributes)


def unfold(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``F.unfold``, or ``x.unfold(dim, size, step)``."""
    if node.op == "call_method":
        x, dim, size, step = call(b, node, "dimension", "size", "step")
        return windows(b, x, dim, size, step)
    x, *values = call(b, node, "kernel_size", "dilation", "padding", "stride", dilation=1, padding=0, stride=1)
    names = ("kernel", "dilation", "padding", "stride")
    attributes = {name: per_dimension(value, 2) for name, value in zip(names, values, strict=True)}
    return b.emit("call_function", resampling.unfold, (x,), attributes)


def fold(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``F.fold``."""
    names = ("output_size", "kernel_size", "dilation", "padding", "stride")
    x, *values = call(b, node, *names, dilation=1, padding=0, stride=1)
    keys = ("sizes", "kernel", "dilation", "padding", "stride")
    attributes = {key: per_dimension(value, 2) for key, value in zip(keys, values, strict=True)}
    return b.emit("call_function", resampling.fold, (x,), attributes)


def pixel_shuffle(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit a pixel shuffle as views: ``(c r s) y x -> c (y r) (x s)``."""
    x, factor = call(b, node, "upscale_factor")
    lead, (c, h, w) = value_shape(node)[:-3], value_shape(node)[-3:]
    split = b.reshape(x, (*lead, c, factor, factor, h // factor, w // factor))
    n = len(lead)
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    return b.reshape(b.permute(split, order), (*lead, c, h, w))


def pixel_unshuffle(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit the opposite of a pixel shuffle as views."""
    x, factor = call(b, node, "downscale_factor")
    lead, (c, h, w) = value_shape(node)[:-3], value_shape(node)[-3:]
    split = b.reshape(x, (*lead, c // factor**2, h, factor, w, factor))
    n = len(lead)
    order = [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    return b.reshape(b.permute(split, order), (*lead, c, h, w))


def convolution_layer(b: GraphBuilder, path: str, layer: Any, x: fx.Node) -> fx.Node:
    """Emit a convolution, transposed or over three dimensions, whose weights are inputs of an operator."""
    count = layer.weight.ndim - 2
    attributes = {
        "stride": per_dimension(layer.stride, count),
        "padding": per_dimension(layer.padding, count),
        "dilation": per_dimension(layer.dilation, count),
        "groups": layer.groups,
    }
    target: Callable = resampling.convolution
    if layer.transposed:
        target = resampling.transposed_convolution
        attributes["output_padding"] = per_dimension(layer.output_padding, count)
    names = [name for name in ("weight", "bias") if getattr(layer, name) is not None]
    parameters = [b.emit("get_attr", f"{path}.{name}") for name in names]
    x, back = with_batch(b, x, count)
    if layer.padding_mode != "zeros":
        x, attributes["padding"] = pad_edges(b, x, layer), (0,) * count
    return back(b.emit("call_function", target, (x, *parameters), attributes))


def convolution_3d(b: GraphBuilder, path: str, layer: nn.Conv3d, x: fx.Node) -> fx.Node:
    """Emit a 3D convolution of size 1 in its first dimension, time, as a 2D one of each step; others as they are."""
    geometry = [layer.kernel_size[0], layer.stride[0], layer.padding[0], layer.dilation[0]]  # type: ignore[index]
    if geometry != [1, 1, 0, 1] or layer.padding_mode != "zeros" or rank(x) != 5:
        return convolution_layer(b, path, layer, x)
    flat = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size[1:],  # type: ignore[arg-type]
        layer.stride[1:],  # type: ignore[arg-type]
        layer.padding[1:],  # type: ignore[arg-type]
        layer.dilation[1:],  # type: ignore[arg-type]
        layer.groups,
        layer.bias is not None,
        device="meta",
    )
    flat.weight = nn.Parameter(layer.weight.detach().squeeze(2))
    flat.bias = layer.bias
    b.replace(path, flat)
    return _each_slice(b, path, x)


def batch_norm_3d(b: GraphBuilder, path: str, layer: nn.BatchNorm3d, x: fx.Node) -> fx.Node:
    """Emit a batch norm over three dimensions as one over two."""
    if layer.running_mean is None:
        raise b.refuse(f"{type(layer).__name__} keeps no running statistics")
    flat = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
    flat.__dict__.update(layer.__dict__)
    b.replace(path, flat)
    note_layout(b, path)
    return _each_slice(b, path, x)


def note_layout(b: GraphBuilder, what: str) -> None:
    """Note in ``info["rounded"]`` that a computation rounds by how the elements of its input lie in memory.

    PyTorch multiplies and adds in one step or in two, or sums in another order. The program may lay them out otherwise
    than the model does where the latter does not lay them out in their order.
    """
    source = b.origin.args[0] if b.origin is not None else None
    if isinstance(source, fx.Node) and not source.meta["val"].is_contiguous():
        b.program.info.setdefault("rounded", []).append(what)


def _each_slice(b: GraphBuilder, path: str, x: fx.Node) -> fx.Node:
    """Emit the call of a 2D layer for each position of dimension 2 of ``[N, C, T, H, W]``."""
    turned = b.permute(x, (0, 2, 1, 3, 4))
    dims = input_type(turned)
    merged = b.view(turned, ((*dims[0], *dims[1]), *dims[2:]))
    y = b.emit("call_module", path, (merged,))
    split = b.view(y, (dims[0], dims[1], *input_type(y)[1:]))
    return b.permute(split, (0, 2, 1, 3, 4))


def parametric_relu(b: GraphBuilder, path: str, layer: nn.PReLU, x: fx.Node) -> fx.Node:
    """Emit a leaky ReLU with learned slopes."""
    return b.emit("call_function", resampling.parametric_relu, (x, b.emit("get_attr", f"{path}.weight")))


def movedim(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit dimensions moved to other places."""
    x, source, target = call(b, node, "source", "destination")
    pairs = zip(*((v,) if isinstance(v, int) else tuple(v) for v in (source, target)), strict=True)
    moves = {positive(x, to): positive(x, start) for start, to in pairs}
    rest = iter(i for i in range(rank(x)) if i not in moves.values())
    return b.permute(x, [moves[i] if i in moves else next(rest) for i in range(rank(x))])


def pad_edges(b: GraphBuilder, x: fx.Node, layer: Any) -> fx.Node:
    """Emit the padding of a convolution that does not pad with zeros."""
    return padded(b, x, tuple(layer._reversed_padding_repeated_twice), layer.padding_mode, 0)


def pool_3d(b: GraphBuilder, node: fx.Node) -> fx.Node:
    """Emit ``F.max_pool3d`` or ``F.avg_pool3d``."""
    is_max = "max" in str(getattr(node.target, "__name__", node.target))
    names = ("kernel_size", "stride", "padding", *(("dilation", "ceil_mode", "return_indices") if is_max else _AVERAGE))
    x, *values = call(b, node, *names, padding=0, dilation=1, ceil_mode=False, count_include_pad=True)
    options = dict(zip(names, values, strict=True))
    if options["stride"] in (None, []):
        options["stride"] = options["kernel_size"]
    if options.pop("return_indices", False):
        raise b.refuse("a pooling that returns indices is not supported")
    return pooled_3d(b, (nn.MaxPool3d if is_max else nn.AvgPool3d)(**options), x)


_AVERAGE = ("ceil_mode", "count_include_pad", "divisor_override")


def pooled_3d(b: GraphBuilder, layer: nn.MaxPool3d | nn.AvgPool3d, x: fx.Node) -> fx.Node:
    """Emit a pooling over three dimensions; of windows of size 1 in the first one, as a layer over two."""
    flat = pool_2d_of(layer)
    if flat is not None and rank(x) == 5:
        dims = input_type(x)
        y = b.emit("call_module", b.layer("pool", flat), (b.view(x, ((*dims[0], *dims[1]), *dims[2:])),))
        return b.view(y, (dims[0], dims[1], *input_type(y)[1:]))
    is_max = isinstance(layer, nn.MaxPool3d)
    if layer.ceil_mode or (per_dimension(layer.dilation, 3) != (1, 1, 1) if is_max else layer.divisor_override):
        raise b.refuse(f"{layer} is not supported", hint="Without ceil_mode, dilation and divisor_override, it is.")
    attributes: dict[str, Any] = {
        name: per_dimension(value, 3)
        for name, value in (("kernel", layer.kernel_size), ("stride", layer.stride), ("padding", layer.padding))
    }
    if is_max:
        return b.emit("call_function", resampling.max_pool_3d, (x,), attributes)
    attributes["count_include_pad"] = bool(layer.count_include_pad)
    return b.emit("call_function", resampling.average_pool_3d, (x,), attributes)


def pool_2d_of(module: nn.MaxPool3d | nn.AvgPool3d) -> nn.Module | None:
    """Return the 2D pooling that equals a 3D one, or None where the first dimension is pooled, too."""
    names = ("kernel_size", "stride", "padding", "dilation")
    windows_3d = [per_dimension(getattr(module, name, 1), 3) for name in names]
    if [window[0] for window in windows_3d] != [1, 1, 0, 1]:
        return None
    kernel, stride, padding, dilation = (window[1:] for window in windows_3d)
    if isinstance(module, nn.MaxPool3d):
        return nn.MaxPool2d(kernel, stride, padding, dilation, module.return_indices, module.ceil_mode)
    options = module.ceil_mode, module.count_include_pad, module.divisor_override
    return nn.AvgPool2d(kernel, stride, padding, *options)  # type: ignore[arg-type]


RESAMPLING_HANDLERS: dict[str, Handler] = {
    **{f"adaptive_avg_pool{n}d": adaptive_pool(resampling.adaptive_average_pool, n) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": adaptive_pool(resampling.adaptive_max_pool, n) for n in (1, 2, 3)},
    **{f"max_pool{n}d": pool(nn.MaxPool2d, n) for n in (1, 2)},
    **{f"avg_pool{n}d": pool(nn.AvgPool2d, n) for n in (1, 2)},
    "interpolate": interpolate,
    **dict.fromkeys(("max_pool3d", "avg_pool3d"), pool_3d),
    "unfold": unfold,
    "fold": fold,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
}
RESAMPLING_LAYERS: dict[type[nn.Module], Callable[..., fx.Node]] = {
    nn.Conv3d: convolution_3d,
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), convolution_layer),
    nn.BatchNorm3d: batch_norm_3d,
    nn.PReLU: parametric_relu,
}
