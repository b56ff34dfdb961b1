"""Conversion between layers and JSON, with the complete table of layer classes and their constructor arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from svitc.errors import InputError, InternalError, UnsupportedError
from svitc.ir import ops
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.program import Program
from svitc.ir.quantized_modules import (
    EXACT,
    QUANTIZED,
    WIDE_BITS,
    FixedPoint,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedLinear,
)
from svitc.support.types import JsonDict

_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_CONVOLUTION = (*_GEOMETRY, "bias")
_BATCH_NORM = ("num_features", "eps", "momentum", "affine")
_NEURON = ("v_threshold", "v_reset", "detach_reset")
START = "v_start"  # of a neuron whose membrane does not start at rest; it is no argument of a constructor
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
    neuron.ParametricLIFNode: ("decay_input", *_NEURON),  # 1/tau is the sigmoid of the parameter w
    neuron.ILIFNode: ("tau", "v_threshold", "detach_reset"),
    ops.LeakyNeuron: ("keep", "gain", "threshold", "hard_reset", "strict", "levels"),
    ops.IntegerSpike: ("levels", "rounding"),
    ops.Step: ("threshold", "strict"),
    QuantizedConv1d: (*_GEOMETRY, "bits"),  # quantized layers always have a bias
    QuantizedConv2d: (*_GEOMETRY, "bits"),
    QuantizedLinear: ("in_features", "out_features", "bits"),
    FixedPoint: ("step", "limit"),
}
MISSING = object()
OMITTED = {"bits": 8}  # arguments that a description leaves out where they have these values
QUANTIZED_ONLY = (*QUANTIZED.values(), FixedPoint)
# layer class -> how many numbers describe its window or padding; 2 for all other classes
WINDOWS = {nn.Conv1d: 1, QuantizedConv1d: 1, nn.ZeroPad2d: 4}
TYPES = {kind.__name__: kind for kind in ARGUMENTS}

# name of a surrogate gradient of SpikingJelly -> its scalar arguments
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
SIZE_LIMIT = 1 << 31  # the product of two smaller sizes fits in the 64-bit integers of torch
FALLBACK_SURROGATE = {"type": "ATan", "alpha": 2.0}

Validator: TypeAlias = Callable[[object], bool]


def _is_positive_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value < SIZE_LIMIT


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < SIZE_LIMIT


def _one_or_list(is_valid: Validator) -> Validator:
    """Return a validator for one number for all dimensions of a window, or a list of up to four numbers.

    A list has one number for each dimension; for padding, one for each side.
    """
    return lambda value: (
        is_valid(value) or (isinstance(value, list) and 0 < len(value) <= 4 and all(map(is_valid, value)))
    )


def _is_flag(value: object) -> bool:
    return type(value) is bool


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a JSON value is a finite number. Python reads 1e999 in JSON as infinity."""
    return (type(value) is int or type(value) is float) and math.isfinite(value)


def _is_power_of_two(value: object) -> bool:
    """Return whether a value is a power of two that float32 can represent, like its inverse."""
    return is_number(value) and 2.0**-126 <= value <= 2.0**126 and math.frexp(value)[0] == 0.5


def _is_number_or_none(value: object) -> bool:
    return value is None or is_number(value)


_SIZE_KEYS = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")
_FLAG_KEYS = ("hard_reset", "bias", "affine", "ceil_mode", "count_include_pad", "decay_input", "detach_reset", "strict")
_VALIDATORS: dict[str, Validator] = {
    **dict.fromkeys(_SIZE_KEYS, _is_positive_size),
    **dict.fromkeys(("kernel_size", "stride", "dilation"), _one_or_list(_is_positive_size)),
    **dict.fromkeys(_FLAG_KEYS, _is_flag),
    **dict.fromkeys(("v_threshold", "threshold"), is_number),
    "eps": lambda value: is_number(value) and value >= 0,
    **dict.fromkeys(("momentum", "v_reset"), _is_number_or_none),
    "padding": _one_or_list(_is_size),
    "tau": lambda value: is_number(value) and value > 1,
    "divisor_override": lambda value: value is None or _is_positive_size(value),
    "levels": _is_positive_size,
    **dict.fromkeys(("keep", "gain"), lambda value: is_number(value) and value >= 0),
    "step": _is_power_of_two,
    "limit": lambda value: _is_positive_size(value) and value < EXACT,
    "bits": lambda value: type(value) is int and value in (8, WIDE_BITS),
    "rounding": lambda value: isinstance(value, str) and value in ops.IntegerSpike.ROUNDINGS,
}
_FLOATS = ("keep", "gain", "threshold", "eps", "momentum", "tau", "v_threshold", "v_reset", "step")


def describe_layer(path: str, module: nn.Module) -> JsonDict:
    """Return a layer's class and constructor arguments as JSON: ``{"type": "Linear", "in_features": 4, ...}``.

    Args:
        path: path of the layer, for messages.
        module: the layer.

    Raises:
        InternalError: the layer is not canonical.
        UnsupportedError: the layer is a neuron in single-step mode, or one whose output is not 0 or 1 (for ILIF: not
            a number of spikes).
    """
    kind = type(module)
    if kind not in ARGUMENTS:
        raise InternalError(f"{path}: {kind.__name__} is not a canonical module")
    entry: JsonDict = {"type": kind.__name__}
    for key in ARGUMENTS[kind]:
        value = getattr(module, key)
        if key == "bias":
            value = value is not None
        elif isinstance(value, tuple):
            value = list(value)
        elif key in _FLOATS and value is not None:
            value = float(value)
        if key not in OMITTED or value != OMITTED[key]:
            entry[key] = value
    if kind in ops.NEURONS:
        if module.step_mode != "m":
            raise UnsupportedError(f"neuron {path} is in single-step mode")
        entry["surrogate"] = _describe_surrogate(path, module)
        start = dynamics_of(module).start
        if start is not None:
            entry[START] = start
    return entry


def is_spikingjelly_surrogate(function: object) -> bool:
    """Return whether a surrogate is one of SpikingJelly's. Subclasses are not, as their gradient may be different."""
    name = type(function).__name__
    return name in SURROGATES and type(function) is getattr(surrogate, name, None)


def _describe_surrogate(path: str, module: nn.Module) -> JsonDict:
    function: Any = module.surrogate_function  # SpikingJelly's attributes have no types
    if isinstance(module, neuron.ILIFNode):
        if type(function) is not surrogate.MultiLevelSpikeCount or not function.spiking:
            raise UnsupportedError(
                f"neuron {path} counts spikes with the surrogate {type(function).__name__}, which is not supported",
                hint="Use SpikingJelly's MultiLevelSpikeCount with spiking=True as its surrogate function.",
            )
    elif not _is_step(function):
        raise UnsupportedError(
            f"neuron {path} does not fire 0 or 1: its surrogate {type(function).__name__} is not a step at 0",
            hint="Set spiking=True on the surrogate function, or use a neuron that svitc supports.",
        )
    if not is_spikingjelly_surrogate(function):
        return dict(FALLBACK_SURROGATE)
    kind = type(function).__name__
    return {"type": kind, **{key: _scalar(getattr(function, key)) for key in SURROGATES[kind]}}


def _is_step(function: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Return whether a surrogate is 0 below 0, and 1 otherwise. Only this matters for inference."""
    x = torch.tensor([-4.0, -1.0, -0.25, -1e-6, 0.0, 1e-6, 0.25, 1.0, 4.0])
    with torch.no_grad():
        try:
            return torch.equal(function(x), (x >= 0).to(x))
        except Exception:  # the user's code may fail for this input in any way
            return False


def _scalar(value: torch.Tensor | float) -> float | int:
    number = value.item() if isinstance(value, torch.Tensor) else value
    return number if type(number) is int else float(number)


def stored_info(program: Program) -> JsonDict:
    """Return the program's ``info``, with an additional assumption if a surrogate gradient is stored as another one."""
    replaced = sorted(
        {
            type(module.surrogate_function).__name__  # type: ignore[union-attr]
            for module in map(program.module_of, program.neurons())
            if type(module) in ops.NEURONS and not is_spikingjelly_surrogate(module.surrogate_function)  # type: ignore[union-attr]
        }
    )
    if not replaced:
        return program.info
    note = (
        f"Surrogate gradients of {', '.join(replaced)}, not SpikingJelly's own, were stored as ATan(2.0):"
        " the same in inference, another gradient in training."
    )
    return {**program.info, "assumptions": [*program.info.get("assumptions", []), note]}


def build_layer(entry: object) -> nn.Module:
    """Return the layer of a JSON description, on the meta device: with shapes, but without memory or initialization.

    Args:
        entry: JSON value as ``describe_layer`` writes it; not trusted.

    Raises:
        InputError: the type is unknown, or an argument is missing or invalid.
    """
    fields = _fields(entry)
    name = fields.get("type")
    kind = TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InputError(f"unknown type of layer {name!r}")
    arguments: JsonDict = {}
    for key in ARGUMENTS[kind]:
        value = fields.get(key, OMITTED.get(key, MISSING))
        if value is MISSING or not _VALIDATORS[key](value):
            raise InputError(f"{kind.__name__} has no valid {key!r}")
        if isinstance(value, list):
            value = tuple(value)
        elif key in _FLOATS and value is not None:
            value = float(value)
        arguments[key] = value
    if kind in ops.NEURONS:
        reset = arguments.get("v_reset")
        if arguments["v_threshold"] <= 0 or (reset is not None and reset >= arguments["v_threshold"]):
            raise InputError("the neuron fires without input")
        if kind is not neuron.ILIFNode and (fields.get("surrogate") or {}).get("type") == "MultiLevelSpikeCount":
            raise InputError(f"{kind.__name__} fires 0 or 1, but its surrogate MultiLevelSpikeCount counts spikes")
        arguments |= {"surrogate_function": build_surrogate(fields.get("surrogate")), "step_mode": "m"}
    start = fields.get(START)
    if start is not None and not (kind in ops.NEURONS and is_number(start)):
        raise InputError(f"{kind.__name__} has no valid {START!r}")
    if any(isinstance(v, tuple) and len(v) != WINDOWS.get(kind, 2) for v in arguments.values()):
        raise InputError(f"{kind.__name__} has a window of another number of dimensions")
    if kind in ops.POOLS and np.any(2 * np.array(arguments["padding"]) > arguments["kernel_size"]):
        raise InputError(f"{kind.__name__} pads by more than half its window")
    try:
        with torch.device("meta"):
            layer: Any = kind(**arguments)
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise InputError(f"{kind.__name__} cannot be created with these arguments: {error}") from error
    if start is not None:
        layer.set_reset_value("v", float(start))
        layer.reset()
    return layer


def build_surrogate(entry: object) -> nn.Module:
    """Return the surrogate function of a JSON description.

    Args:
        entry: JSON value under ``surrogate`` in a neuron's description; not trusted.

    Raises:
        InputError: the surrogate is unknown, or a scalar argument is missing or invalid.
    """
    fields = _fields(entry)
    name = fields.get("type")
    if not isinstance(name, str) or name not in SURROGATES:
        raise InputError(f"unknown surrogate function {name!r}")
    if any(not is_number(fields.get(key)) for key in SURROGATES[name]):
        raise InputError(f"{name} has no valid {', '.join(SURROGATES[name])}")
    arguments = {key: fields[key] for key in SURROGATES[name]}
    if name == "MultiLevelSpikeCount":
        arguments = {
            "max_spike_count": fields["max_spike_count"],
            "grad_window": (fields["grad_min"], fields["grad_max"]),
        }
    try:
        return getattr(surrogate, name)(**arguments)
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(f"{name} cannot be created with these arguments: {error}") from error


def _fields(entry: object) -> JsonDict:
    """Return a JSON object as it is, and an empty one for any other value."""
    return entry if isinstance(entry, dict) else {}
