"""Indices of several lists, of constant masks and of matrices of positions, as one list of positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from svitc.frontends.capture.proxies import ValueProxy


def by_lists(x: Any, index: Any) -> Any:
    """Return ``x[index]`` where the index has several lists, a mask or a matrix of positions; None for other indices.

    Dimensions that lists index together become one, of which a single list of positions is taken.

    Args:
        x: A traced value.
        index: As in Python.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(entry, ValueProxy) or entry is None for entry in entries):
        return None
    given = entries
    entries = [part for entry in entries for part in _without_mask(entry)]
    lists = [i for i, entry in enumerate(entries) if isinstance(entry, (list, torch.Tensor))]
    if not lists:
        return None
    places = [torch.as_tensor(entries[i]) for i in lists]
    if len(lists) == 1 and places[0].ndim == 1 and entries[lists[0]] is given[lists[0]]:
        return None
    if Ellipsis in [entry for entry in entries if not isinstance(entry, torch.Tensor)]:
        at = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
        entries[at : at + 1] = [slice(None)] * (x.dim() - len(entries) + 1)
    entries += [slice(None)] * (x.dim() - len(entries))
    return _taken(x, entries)


def _without_mask(entry: Any) -> tuple:
    """Return the lists of positions that a constant mask selects; another entry of an index as it is."""
    if isinstance(entry, list) and entry and all(isinstance(value, bool) for value in entry):
        entry = torch.tensor(entry)
    is_mask = isinstance(entry, torch.Tensor) and entry.dtype == torch.bool
    return entry.nonzero(as_tuple=True) if is_mask else (entry,)


def _taken(x: Any, entries: Sequence[Any]) -> Any:
    """Return ``x[entries]`` for one entry a dimension, of which at least one is a list or a tensor."""
    numbers = [dim for dim, entry in enumerate(entries) if isinstance(entry, int)]
    for dim in reversed(numbers):  # PyTorch takes single positions first
        x = x[(*(slice(None),) * dim, entries[dim])]
    entries = [entry for dim, entry in enumerate(entries) if dim not in numbers]
    together = [dim for dim, entry in enumerate(entries) if not isinstance(entry, slice)]
    for dim, entry in enumerate(entries):
        if isinstance(entry, slice) and entry != slice(None):
            x = x[(*(slice(None),) * dim, entry)]
    sizes = [x.shape[dim] for dim in together]
    positions = torch.broadcast_tensors(*(torch.as_tensor(entries[dim]) for dim in together))
    flat = torch.zeros_like(positions[0])
    for size, places in zip(sizes, positions, strict=True):
        flat = flat * size + places % size
    is_adjacent = together == list(range(together[0], together[-1] + 1))
    first = together[0] if is_adjacent else 0  # where PyTorch puts the result's dimensions
    joined = x.movedim(tuple(together), tuple(range(first, first + len(together))))
    if len(together) > 1:
        joined = joined.flatten(first, first + len(together) - 1)
    taken = joined[(*(slice(None),) * first, flat.flatten().tolist())]
    if flat.ndim == 1:
        return taken
    shape = tuple(taken.shape)
    return taken.reshape((*shape[:first], *flat.shape, *shape[first + 1 :]))
