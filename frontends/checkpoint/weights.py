"""Loading of weights into a model, after a check of names, shapes, types and values that reports every mistake."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from svitc.errors import InputError
from svitc.frontends.state_dict import is_average, prefixes, within

COUNTER = "num_batches_tracked"  # only training reads this buffer, and old files do not have it
PROFILED = ("total_ops", "total_params")  # counters that the profiler thop leaves in every layer
PARALLEL = re.compile(r"(?<=\.)module\.")  # in the middle of a name: a part of the model was in nn.DataParallel
MAX_NAMES = 3  # that a message lists
State = Mapping[str, torch.Tensor]


def check_tensors(state: Mapping[str, object], source: str) -> None:
    """Check that all entries are ordinary dense tensors, no larger than the data that the file holds.

    Args:
        source: name of the file, for messages.

    Raises:
        InputError: an entry is not such a tensor; the message names it.
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
            # zero strides can show a few bytes as a huge tensor
            raise InputError(f"{source}: {key} claims {value.numel()} numbers, which the file does not hold")


def align(expected: Iterable[str], state: State, source: str) -> tuple[State, list[str]]:
    """Return the part of a state dict that is the model's, under the model's names.

    Training scripts wrap models: in a Lightning module beside the loss, in a module that also holds the average, in
    ``nn.DataParallel``. Where the names of a state dict are not the model's, those below one prefix may be.

    Args:
        expected: names of the model's tensors.
        source: name of the file, for messages.

    Returns:
        The state dict, unchanged where nothing is found, and notes for the user.

    Raises:
        InputError: the names below several prefixes are the model's, and nothing says which.
    """
    names = [name for name in expected if not name.endswith(COUNTER)]
    state = without_leftovers(state, names)
    if not names or all(name in state for name in names):
        return state, []
    wrapper = next(iter(prefixes(dict.fromkeys(names))), "")  # of the model itself, removed when the file was read
    if wrapper and all(name.startswith(wrapper) and name[len(wrapper) :] in state for name in names):
        return {wrapper + key: value for key, value in state.items()}, []
    keys = [(key.partition(".")[2], key) for key in state]
    candidates = {""}
    while keys:  # one part of the names after another
        candidates |= {key[: len(key) - len(rest)] for rest, key in keys if rest}
        keys = [(rest.partition(".")[2], key) for rest, key in keys if rest]
    counts = {prefix: sum(prefix + name in state for name in names) for prefix in candidates}
    most = max(counts.values())
    best = sorted(prefix for prefix in candidates if counts[prefix] == most)
    if "" in best or most <= len(names) / 2:
        return state, []
    best = [prefix for prefix in best if not is_average(prefix)] or best
    if len(best) > 1 and not _all_same(state, best, names):
        raise InputError(
            f"{source}: the weights of the model are in it several times, under {' and under '.join(map(repr, best))}",
            hint="Save those that are meant as a file of their own, without the prefix.",
        )
    return within(state, best[0]), [prefix_note(state, best[0])]


def without_leftovers(state: State, expected: Collection[str] = ()) -> State:
    """Return a state dict without a profiler's counters, and without what wrappers of parts put into its names.

    Args:
        expected: names of the model's tensors, which are kept.
    """
    state = {k: v for k, v in state.items() if k in expected or k.rpartition(".")[2] not in PROFILED}
    if any(PARALLEL.search(name) for name in expected):
        return state
    renamed = {PARALLEL.sub("", key): value for key, value in state.items()}
    return renamed if len(renamed) == len(state) else state


def _all_same(state: State, prefixes: list[str], names: list[str]) -> bool:
    """Tell whether the weights below all prefixes are the same, so that it does not matter which are meant."""
    first, *others = ([state.get(prefix + name) for name in names] for prefix in prefixes)
    return all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for o in others
        for a, b in zip(first, o, strict=True)
    )


def prefix_note(state: State, prefix: str) -> str:
    """Return the sentence for the user that only the weights below a prefix are used."""
    others = [key for key in state if not key.startswith(prefix)]
    note = f"the weights are those whose names begin with {prefix!r}"
    return note + (f"; {first(others)} {_is(others)} not of the model" if others else "")


def fit(model: nn.Module, state: State, source: str, arch: str) -> list[str]:
    """Load weights strictly into a model, as float32.

    A model on the meta device gets copies of the tensors as its parameters. In any other model the values are
    copied into the parameters, so that parameters that layers share stay shared.

    Args:
        source: name of the file, for messages.
        arch: name of the model, for messages.

    Returns:
        Assumptions, sentences for the user: that weights of another type were converted to float32.

    Raises:
        InputError: missing or unexpected names, other shapes, integers for real weights, NaN or infinity.
    """
    expected = model.state_dict()
    state = dict(state)
    for key in expected:
        if key.endswith(COUNTER) and key not in state:
            state[key] = torch.zeros((), dtype=torch.int64)
    _check_names_and_shapes(expected, state, source, arch)
    for key, value in state.items():
        if expected[key].is_floating_point() and not value.is_floating_point():
            raise InputError(
                f"{source}: {key} holds {_type(value.dtype)}, where the model has real numbers",
                hint="Quantized weights cannot be compiled; save those of the float model.",
            )
    dtypes = {v.dtype for k, v in state.items() if v.is_floating_point() and expected[k].is_floating_point()}
    _check_range(state, expected, source)
    # copies, because the file's tensors may be views of one another, or of an array that is used elsewhere
    state = {key: _copy(value, expected[key]) for key, value in state.items()}
    _check_values(state, source)
    try:
        model.load_state_dict(state, strict=True, assign=any(v.is_meta for v in expected.values()))
    except RuntimeError as error:  # raised by hooks of the model
        raise InputError(f"{source} does not fit {arch}: {str(error).splitlines()[-1].strip()}") from error
    converted = sorted(_type(dtype) for dtype in dtypes - {torch.float32})
    return [f"weights stored as {' and '.join(converted)} are computed in float32"] if converted else []


def _copy(value: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Copy a tensor, as float32 where the model has a real number."""
    dtype = torch.float32 if expected.is_floating_point() else expected.dtype
    return value.detach().to(dtype=dtype, copy=True, memory_format=torch.contiguous_format)


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_names_and_shapes(expected: State, state: State, source: str, arch: str) -> None:
    """Raise InputError, with all differences in one message, where names or shapes differ."""
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {list(state[key].shape)} in the file and {list(value.shape)} in the model"
        for key, value in expected.items()
        if key in state and not is_lazy(value) and state[key].shape != value.shape
    ]
    parts = []
    if missing:
        close = [key for name in missing[:MAX_NAMES] for key in get_close_matches(name, extra, 1, 0.5)]
        names = first(missing) + (f"; the file has {', '.join(dict.fromkeys(close))}" if close else "")
        parts.append(f"{len(missing)} of the model's {len(expected)} tensors {_is(missing)} missing ({names})")
    if extra:
        parts.append(f"{_count(extra)} in the file {_is(extra)} unknown to the model ({first(extra)})")
    if shapes:
        parts.append(f"{_count(shapes)} {_is(shapes)} of another shape ({first(shapes)})")
    if parts:
        raise InputError(f"{source} does not fit {arch}: {', '.join(parts)}")


def _check_values(state: State, source: str) -> None:
    """Raise InputError where weights are NaN or infinite, or variances negative."""
    bad = []
    for key, value in state.items():
        if not value.is_floating_point() or not value.numel():
            continue
        # if the sum is finite, so are all numbers; an infinite sum may be a mere overflow, so count
        count = 0 if torch.isfinite(value.sum()) else int((~torch.isfinite(value)).sum())
        if count:
            bad.append(f"{key} ({count} of {value.numel()})")
        elif key.endswith("running_var") and value.min() < 0:
            raise InputError(f"{source}: {key} has a negative variance", hint="The file is damaged or was edited.")
    if bad:
        raise InputError(
            f"{source}: NaN or infinity in {first(bad)}",
            hint="The training diverged; use an earlier checkpoint.",
        )


def _check_range(state: State, expected: State, source: str) -> None:
    """Raise InputError where finite numbers of the file are too large for float32, in which svitc computes."""
    largest = torch.finfo(torch.float32).max
    for key, value in state.items():
        if value.dtype == torch.float64 and expected[key].is_floating_point():
            finite = value[value.isfinite()].abs()
            if finite.numel() and finite.max() > largest:
                raise InputError(
                    f"{source}: {key} holds float64 numbers up to {float(finite.max()):.3g}, too large for float32, in "
                    f"which svitc computes (at most {largest:.3g})",
                    hint="Such weights are rarely meant: scale them down, or use an earlier checkpoint.",
                )


def first(names: Iterable[str]) -> str:
    """List the first few names as text, with the number of further ones."""
    names = list(names)
    rest = len(names) - MAX_NAMES
    return (", ".join(names[:MAX_NAMES]) or "nothing") + (f", … {rest} more" if rest > 0 else "")


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
