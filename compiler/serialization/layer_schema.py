"""Layers as JSON and back: a closed table of what each kind of layer is made with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from svitc.errors import InputError, InternalError, UnsupportedError
from svitc.ir import ops
from svitc.ir.program import Program
from svitc.ir.quantized_modules import EXACT, QUANTIZED, FixedPoint, QuantizedConv1d, QuantizedConv2d, QuantizedLinear

_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_CONVOLUTION = (*_GEOMETRY, "bias")
_BATCH_NORM = ("num_features", "eps", "momentum", "affine")
_NEURON = ("v_threshold", "v_reset", "detach_reset")
ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.ZeroPad2d: ("padding",),  # left, right, top, bottom
    neuron.IFNode: _NEURON,
    neuron.LIFNode: ("tau", "decay_input", *_NEURON),
    neuron.ParametricLIFNode: ("decay_input", *_NEURON),  # 1 / tau is the sigmoid of its parameter w
    neuron.ILIFNode: ("tau", "v_threshold", "detach_reset"),
    ops.IntegerSpike: ("levels", "rounding"),
    QuantizedConv1d: _GEOMETRY,  # quantized layers always have a bias
    QuantizedConv2d: _GEOMETRY,
    QuantizedLinear: ("in_features", "out_features"),
    FixedPoint: ("step", "limit"),
}
QUANTIZED_ONLY = (*QUANTIZED.values(), FixedPoint)
# numbers that describe a window or padding; 2 for all others
WINDOWS = {nn.Conv1d: 1, QuantizedConv1d: 1, nn.ZeroPad2d: 4}
TYPES = {kind.__name__: kind for kind in ARGUMENTS}

# SpikingJelly's surrogate gradients -> the scalars that shape them
SURROGATES = {
    "ATan": ("alpha",),
    "DeterministicPass": (),
    "Erf": ("alpha",),
    "FakeNumericalGradient": ("alpha",),
    "LeakyKReLU": ("leak", "k"),
    "LogTailedReLU": ("alpha",),
    "MultiLevelSpikeCount": ("max_spike_count", "grad_min", "grad_max"),
    "NonzeroSignLogAbs": ("alpha",),
    "PiecewiseExp": ("alpha",),
    "PiecewiseLeakyReLU": ("w", "c"),
    "PiecewiseQuadratic": ("alpha",),
    "QPseudoSpike": ("alpha",),
    "Rect": ("alpha",),
    "S2NN": ("alpha", "beta"),
    "Sigmoid": ("alpha",),
    "SoftSign": ("alpha",),
    "SquarewaveFourierSeries": ("n", "T_period"),
    "SuperSpike": ("alpha",),
}
LIMIT = 1 << 31  # torch counts in 64 bits: products of two sizes stay within
STAND_IN = {"type": "ATan", "alpha": 2.0}


def _count(value: Any) -> bool:
    return type(value) is int and 0 < value < LIMIT


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < LIMIT


def _each(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """One number for every dimension of a window, or one for each (for padding, one for each side)."""
    return lambda value: valid(value) or (isinstance(value, list) and 0 < len(value) <= 4 and all(map(valid, value)))


def _flag(value: Any) -> bool:
    return type(value) is bool


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _power_of_two(value: Any) -> bool:
    """Whether a value is a power of two that float32 holds, and its inverse, too."""
    return _number(value) and 2.0**-126 <= value <= 2.0**126 and math.frexp(value)[0] == 0.5


def _number_or_none(value: Any) -> bool:
    return value is None or _number(value)


_VALID = {
    **dict.fromkeys(("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features"), _count),
    **dict.fromkeys(("kernel_size", "stride", "dilation"), _each(_count)),
    **dict.fromkeys(("bias", "affine", "ceil_mode", "count_include_pad", "decay_input", "detach_reset"), _flag),
    "v_threshold": _number,
    "eps": lambda v: _number(v) and v >= 0,
    **dict.fromkeys(("momentum", "v_reset"), _number_or_none),
    "padding": _each(_whole),
    "tau": lambda v: _number(v) and v > 1,
    "divisor_override": lambda v: v is None or _count(v),
    "levels": _count,
    "step": _power_of_two,
    "limit": lambda v: _count(v) and v < EXACT,
    "rounding": lambda v: isinstance(v, str) and v in ops.IntegerSpike.ROUNDINGS,
}
_FLOATS = ("eps", "momentum", "tau", "v_threshold", "v_reset", "step")


def describe_layer(path: str, module: nn.Module) -> dict[str, Any]:
    """What a layer is made with, as JSON values: ``{"type": "Linear", "in_features": 4, ...}``.

    Raises:
        UnsupportedError: a neuron that does not fire 0 or 1 (an ILIF: counts), or is in single-step mode.
    """
    kind = type(module)
    if kind not in ARGUMENTS:
        raise InternalError(f"{path}: {kind.__name__} is not a canonical module")
    entry: dict[str, Any] = {"type": kind.__name__}
    for key in ARGUMENTS[kind]:
        value = getattr(module, key)
        if key == "bias":
            value = value is not None
        elif isinstance(value, tuple):
            value = list(value)
        elif key in _FLOATS and value is not None:
            value = float(value)
        entry[key] = value
    if ops.has_state(module):
        if module.step_mode != "m":
            raise UnsupportedError(f"neuron {path} is in single-step mode")
        entry["surrogate"] = _describe_surrogate(path, module)
    return entry


def is_known(function: Any) -> bool:
    """Whether a surrogate is one of SpikingJelly's own; a subclass may have another gradient and is not."""
    name = type(function).__name__
    return name in SURROGATES and type(function) is getattr(surrogate, name, None)


def _describe_surrogate(path: str, module: Any) -> dict[str, Any]:
    function = module.surrogate_function
    if isinstance(module, neuron.ILIFNode):
        if type(function) is not surrogate.MultiLevelSpikeCount or not function.spiking:
            raise UnsupportedError(
                f"neuron {path} counts spikes by a {type(function).__name__}, which svitc does not know"
            )
    elif not _is_step(function):
        raise UnsupportedError(
            f"neuron {path} does not fire 0 or 1: its surrogate {type(function).__name__} is no step at 0",
            hint="Set spiking=True on the surrogate function, or use a neuron that svitc knows.",
        )
    if not is_known(function):
        return dict(STAND_IN)
    kind = type(function).__name__
    return {"type": kind, **{key: _scalar(getattr(function, key)) for key in SURROGATES[kind]}}


def _is_step(function: Any) -> bool:
    """Whether a surrogate gives 1 from 0 on and 0 below, which is all that matters in inference."""
    x = torch.tensor([-4.0, -1.0, -0.25, -1e-6, 0.0, 1e-6, 0.25, 1.0, 4.0])
    with torch.no_grad():
        try:
            return torch.equal(function(x), (x >= 0).to(x))
        except Exception:  # the user's code, on an input that it may not expect
            return False


def _scalar(value: Any) -> float | int:
    value = value.item() if isinstance(value, torch.Tensor) else value
    return value if type(value) is int else float(value)


def stored_info(program: Program) -> dict[str, Any]:
    """The program's ``info``, with a sentence in ``assumptions`` on surrogates that are stored as others."""
    found = sorted(
        {
            type(module.surrogate_function).__name__  # type: ignore[union-attr]
            for module in map(program.module_of, program.neurons())
            if ops.has_state(module) and not is_known(module.surrogate_function)  # type: ignore[union-attr]
        }
    )
    if not found:
        return program.info
    note = (
        f"Surrogate gradients of {', '.join(found)}, not SpikingJelly's own, were stored as ATan(2.0):"
        " the same in inference, another gradient in training."
    )
    return {**program.info, "assumptions": [*program.info.get("assumptions", []), note]}


def build_layer(entry: Any) -> nn.Module:
    """The layer of a description, on the meta device: shapes without memory or initialisation.

    Raises:
        InputError: an unknown type, or an argument that is missing or makes no sense.
    """
    name = entry.get("type") if isinstance(entry, dict) else None
    kind = TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InputError(f"unknown type of layer {name!r}")
    arguments: dict[str, Any] = {}
    for key in ARGUMENTS[kind]:
        if key not in entry or not _VALID[key](entry[key]):
            raise InputError(f"{kind.__name__} has no valid {key!r}")
        value = entry[key]
        if isinstance(value, list):
            value = tuple(value)
        elif key in _FLOATS and value is not None:
            value = float(value)
        arguments[key] = value
    if kind in ops.NEURONS:
        reset = arguments.get("v_reset")
        if arguments["v_threshold"] <= 0 or (reset is not None and reset >= arguments["v_threshold"]):
            raise InputError("the neuron fires without input")
        if kind is not neuron.ILIFNode and (entry.get("surrogate") or {}).get("type") == "MultiLevelSpikeCount":
            raise InputError(f"{kind.__name__} fires 0 or 1, MultiLevelSpikeCount counts")
        arguments |= {"surrogate_function": build_surrogate(entry.get("surrogate")), "step_mode": "m"}
    if any(isinstance(v, tuple) and len(v) != WINDOWS.get(kind, 2) for v in arguments.values()):
        raise InputError(f"{kind.__name__} has a window of another number of dimensions")
    if kind in ops.POOLS and np.any(2 * np.array(arguments["padding"]) > arguments["kernel_size"]):
        raise InputError(f"{kind.__name__} pads by more than half its window")
    try:
        with torch.device("meta"):
            return kind(**arguments)
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise InputError(f"{kind.__name__} cannot be made so: {error}") from error


def build_surrogate(entry: Any) -> nn.Module:
    """The surrogate function of a description.

    Raises:
        InputError: an unknown one, or a scalar that is missing or makes no sense.
    """
    name = entry.get("type") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in SURROGATES:
        raise InputError(f"unknown surrogate function {name!r}")
    if any(not _number(entry.get(key)) for key in SURROGATES[name]):
        raise InputError(f"{name} has no valid {', '.join(SURROGATES[name])}")
    arguments = {key: entry[key] for key in SURROGATES[name]}
    if name == "MultiLevelSpikeCount":
        arguments = {
            "max_spike_count": entry["max_spike_count"],
            "grad_window": (entry["grad_min"], entry["grad_max"]),
        }
    try:
        return getattr(surrogate, name)(**arguments)
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(f"{name} cannot be made so: {error}") from error
