"""Weights into a model: names, shapes, types and values are checked first, and every mistake is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from svitc.errors import InputError

COUNTER = "num_batches_tracked"  # only training reads it, and old files do not have it
SHOWN = 3
State = Mapping[str, torch.Tensor]


def check_tensors(state: Mapping[str, Any], source: str) -> None:
    """Refuse what is not an ordinary dense tensor, or pretends to a size that the file does not hold.

    Raises:
        InputError: naming the entry.
    """
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{source}: entry {key} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            kind = "quantized" if value.is_quantized else _type(value.dtype)
            raise InputError(
                f"{source}: {key} is not a dense tensor of numbers ({kind}, {value.layout}, {value.device})",
                hint="Save the weights of the float model.",
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            # a few bytes seen through zero strides: a size that the file only claims
            raise InputError(f"{source}: {key} claims {value.numel()} numbers, which the file does not hold")


def fit(model: nn.Module, state: State, source: str, arch: str) -> list[str]:
    """Load weights strictly, as float32.

    A model on the meta device takes copies of the tensors as its own; any other is written into, so that
    parameters that it shares stay shared.

    Args:
        source: the file, for messages.
        arch: the model, for messages.

    Returns:
        What was assumed, for the user to read: that weights of another type were widened.

    Raises:
        InputError: missing or unexpected names, other shapes, integers for weights, NaN or infinity.
    """
    wanted = model.state_dict()
    state = dict(state)
    for key in wanted:
        if key.endswith(COUNTER) and key not in state:
            state[key] = torch.zeros((), dtype=torch.int64)
    _check_names_and_shapes(wanted, state, source, arch)
    for key, value in state.items():
        if wanted[key].is_floating_point() and not value.is_floating_point():
            raise InputError(
                f"{source}: {key} holds {_type(value.dtype)}, where the model has real numbers",
                hint="Quantized weights cannot be compiled; save those of the float model.",
            )
    kinds = {v.dtype for k, v in state.items() if v.is_floating_point() and wanted[k].is_floating_point()}
    # copies: the file's tensors may be views of one another, or of an array that others hold
    state = {key: _copy(value, wanted[key]) for key, value in state.items()}
    _check_values(state, source)
    try:
        model.load_state_dict(state, strict=True, assign=any(v.is_meta for v in wanted.values()))
    except RuntimeError as error:  # a model's own hooks may object
        raise InputError(f"{source} does not fit {arch}: {str(error).splitlines()[-1].strip()}") from error
    other = sorted(_type(kind) for kind in kinds - {torch.float32})
    return [f"weights stored as {' and '.join(other)} are computed in float32"] if other else []


def _copy(value: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    kind = torch.float32 if wanted.is_floating_point() else wanted.dtype
    return value.detach().to(dtype=kind, copy=True, memory_format=torch.contiguous_format)


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_names_and_shapes(wanted: State, state: State, source: str, arch: str) -> None:
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {list(state[key].shape)} in the file and {list(value.shape)} in the model"
        for key, value in wanted.items()
        if key in state and not is_lazy(value) and state[key].shape != value.shape
    ]
    parts = []
    if missing:
        close = [near for key in missing[:SHOWN] for near in get_close_matches(key, extra, 1, 0.5)]
        names = first(missing) + (f"; the file has {', '.join(dict.fromkeys(close))}" if close else "")
        parts.append(f"{len(missing)} of the model's {len(wanted)} tensors {_is(missing)} missing ({names})")
    if extra:
        parts.append(f"{_count(extra)} in the file {_is(extra)} unknown to the model ({first(extra)})")
    if shapes:
        parts.append(f"{_count(shapes)} {_is(shapes)} of another shape ({first(shapes)})")
    if parts:
        raise InputError(f"{source} does not fit {arch}: {', '.join(parts)}")


def _check_values(state: State, source: str) -> None:
    bad = []
    for key, value in state.items():
        if not value.is_floating_point() or not value.numel():
            continue
        # a finite sum tells at once that all numbers are; one that is not may only have overflowed
        count = 0 if torch.isfinite(value.sum()) else int((~torch.isfinite(value)).sum())
        if count:
            bad.append(f"{key} ({count} of {value.numel()})")
        elif key.endswith("running_var") and value.min() < 0:
            raise InputError(f"{source}: {key} has a negative variance", hint="The file is damaged or was edited.")
    if bad:
        raise InputError(
            f"{source}: NaN or infinity in {first(bad)}",
            hint="The training that wrote it diverged; use an earlier checkpoint.",
        )


def first(names: Iterable[str]) -> str:
    """The first few of many names, and how many more there are."""
    names = list(names)
    return (", ".join(names[:SHOWN]) or "nothing") + (f", … {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
