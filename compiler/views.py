"""Views: from two axis types to the one einops pattern between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import einops
from torch import fx

from . import axes
from .axes import Axis, Dim, Dims, Kind
from .infer import Inference

Emit = Callable[..., fx.Node]


def pattern_between(source: Dims, target: Dims) -> tuple[str, dict[str, int]]:
    """The coarsest pattern that takes ``source`` to ``target``, and the sizes that einops cannot infer.

    Axes that stay together in both share one letter. In each input dimension one letter is left for einops to
    infer: the batch where it is there, else the innermost channels, so that no channel count is a literal.
    """
    runs = _runs(source, target)
    letters = _letters(runs)
    owner = {id(axis): i for i, run in enumerate(runs) for axis in run}

    def side(dims: Dims) -> tuple[str, list[list[int]]]:
        texts, indices = [], []
        for dim in dims:
            ids = list(dict.fromkeys(owner[id(axis)] for axis in dim))
            names = [letters[i] for i in ids]
            texts.append(names[0] if len(names) == 1 else f"({' '.join(names)})" if names else "1")
            indices.append(ids)
        return " ".join(texts), indices

    left, left_ids = side(source)
    right, _ = side(target)
    sizes: dict[str, int] = {}
    for ids in left_ids:
        if len(ids) < 2:
            continue
        free = next((i for i in ids if runs[i][0].kind == Kind.BATCH), None)
        if free is None:
            free = next((i for i in reversed(ids) if runs[i][0].kind == Kind.CHANNEL), ids[-1])
        sizes.update({letters[i]: axes.size(runs[i]) for i in ids if i != free})
    return f"{left} -> {right}", sizes


def _runs(source: Dims, target: Dims) -> list[Dim]:
    """Maximal runs of axes that are adjacent, in order, in one dimension of both types."""
    follows = {
        id(a): id(b) for dim in target for a, b in zip(dim, dim[1:], strict=False)
    }
    runs: list[list[Axis]] = []
    for dim in source:
        for i, axis in enumerate(dim):
            if i and follows.get(id(dim[i - 1])) == id(axis):
                runs[-1].append(axis)
            else:
                runs.append([axis])
    return [tuple(run) for run in runs]


def _letters(runs: list[Dim]) -> list[str]:
    names: list[str] = []
    for run in runs:
        name = run[0].letter if len(run) == 1 else "n" if all(a.kind == Kind.PIXEL for a in run) else "c"
        while name in names:
            name += "'"
        names.append(name)
    counts: dict[str, int] = {}
    out = []
    for name in names:
        base = name.rstrip("'")
        counts[base] = counts.get(base, 0) + 1
        out.append(base if counts[base] == 1 else f"{base}{counts[base]}")
    return out


def emit_view(emit: Emit, inference: Inference, x: fx.Node, target: Dims) -> fx.Node:
    """Emit the rearrange that takes ``x`` to ``target``, or return ``x`` where the types are the same."""
    source = inference.dims(x)
    target = tuple(axes.resolve(dim) for dim in target)
    if source == target:
        return x
    pattern, sizes = pattern_between(source, target)
    return emit("call_function", einops.rearrange, (x, pattern), dict(sorted(sizes.items())))


def retarget(program: Any, node: fx.Node, x: fx.Node) -> None:
    """Make the rearrange ``node`` read ``x`` directly; its type stays, its pattern follows."""
    pattern, sizes = pattern_between(program.type_of(x), program.type_of(node))
    node.args = (x, pattern)
    node.kwargs = dict(sorted(sizes.items()))
