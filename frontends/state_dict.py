"""Read sizes off the names and shapes of a state dict; what both SpikingJelly's and published families need."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

# entries in which training scripts keep the weights, and the averaged ones (EMA, SWA); the first that is there counts
WEIGHTS = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "model_state",
    "net_state_dict",
    "network",
    "weights",
    "module",
    "params",
)
AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
    "swa_model",
    "swa_state_dict",
)
# what wrappers put before every name: nn.DataParallel and its kin, torch.compile, Lightning modules
PREFIXES = ("module.", "_orig_mod.", "model.")
COMPILED = "_orig_mod."  # torch.compile puts it into the middle, too, where parts of a model are compiled
AVERAGES = "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel, beside "module."
MAX_DEPTH = 4  # of entries in entries
Shapes = Mapping[str, tuple[int, ...]]


def find_weights(checkpoint: Mapping[Any, Any], names: tuple[str, ...] = WEIGHTS) -> tuple[list[str], Mapping]:
    """Find the state dict in a training script's checkpoint, which may have it in an entry of an entry.

    Args:
        checkpoint: what ``torch.load`` returned; it may be a bare state dict.
        names: entries that hold weights, the preferred ones first.

    Returns:
        The keys that lead to the state dict, and the state dict: without any tensor where there is none.

    Raises:
        ValueError: several entries hold weights and none has one of these names; its argument lists them.
    """
    return _find_weights(checkpoint, names, names == WEIGHTS, MAX_DEPTH) or ([], checkpoint)


def _find_weights(
    content: Mapping[Any, Any], names: tuple[str, ...], any_entry: bool, depth: int
) -> tuple[list[str], Mapping] | None:
    named = [key for key in names if isinstance(content.get(key), Mapping)]
    for key in named:
        inner = content[key]
        if _is_state_dict(inner):
            return [key], inner
        if depth and (found := _find_weights(inner, WEIGHTS, any_entry, depth - 1)):
            return [key, *found[0]], found[1]
    if _is_state_dict(content):
        return ([], content) if any_entry else None
    if named or not any_entry:
        return ([named[0]], content[named[0]]) if named else None
    # not AVERAGED: those are only read where they are asked for
    others = [k for k, v in content.items() if isinstance(v, Mapping) and _is_state_dict(v) and k not in AVERAGED]
    if len(others) > 1:
        raise ValueError(others)
    return (others, content[others[0]]) if others else None


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Tell whether a mapping holds tensors under names, as an optimizer's numbered states do not."""
    return any(isinstance(key, str) and hasattr(value, "shape") for key, value in content.items())


def strip_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without what wrappers add: prefixes of all of its names, and a counter of averages."""
    result = dict(state)
    if AVERAGES in result and all(key.startswith("module.") for key in result if key != AVERAGES):
        del result[AVERAGES]
    plain = {key.replace(COMPILED, ""): value for key, value in result.items()}
    result = plain if len(plain) == len(result) else result
    while prefix := next((p for p in PREFIXES if result and all(key.startswith(p) for key in result)), None):
        result = {key.removeprefix(prefix): value for key, value in result.items()}
        if AVERAGES in result and all(key.startswith("module.") for key in result if key != AVERAGES):
            del result[AVERAGES]
    return result


def within(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries whose names begin with a prefix, under the rest of their names."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def is_average(prefix: str) -> bool:
    """Tell whether a prefix is one of averaged weights, such as ``model_ema.``"""
    return any(part in ("ema", "swa", "averaged") for part in re.split(r"[._]", prefix))


def prefixes(state: Mapping[str, Any]) -> list[str]:
    """Return the first parts of the names, each with its dot, those of the most entries first."""
    counts = Counter(key.partition(".")[0] + "." for key in state if "." in key)
    return [prefix for prefix, _ in counts.most_common()]


def depth(shapes: Shapes, prefix: str) -> int:
    """Count the blocks ``prefix.0``, ``prefix.1``, …"""
    indices = [int(m[1]) for m in (re.match(rf"{prefix}\.(\d+)\.", key) for key in shapes) if m]
    return max(indices, default=-1) + 1


def ratio(pairs: list[tuple[int, int]]) -> float:
    """Return the roundest ``r`` with ``int(width * r) == hidden`` for all (width, hidden).

    Raises:
        KeyError: there is none.
    """
    for digits in range(1, 17):
        for width, hidden in pairs:
            # rounding the middle of the interval, too: its lower end may round out of it
            for value in (round(hidden / width, digits), round((hidden + 0.5) / width, digits)):
                if all(int(w * value) == h for w, h in pairs):
                    return value
    raise KeyError("mlp_ratio")


def divisors(*widths: int) -> Iterator[int]:
    """Yield the numbers that divide every width, smallest first."""
    return (n for n in range(1, min(widths) + 1) if all(width % n == 0 for width in widths))
