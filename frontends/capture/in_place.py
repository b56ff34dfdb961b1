"""Changes of tensors in place, recorded as new values that whoever reads the tensor later gets.

``out[t] = s`` becomes ``torch.stack`` of the steps, ``x[:, a:b] = y`` becomes ``torch.cat`` of the parts, and numbers
that are written become a product with a mask. What is written into a view is written back into the tensor behind it.
A tensor that gets another shape in place (``x.unsqueeze_(0)``) becomes a view of what it was.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.node import Target

from svitc.errors import UnsupportedError
from svitc.frontends.capture.constants import at, name_of
from svitc.frontends.capture.proxies import IN_PLACE_OPERATORS, Tracer, ValueProxy, View
from svitc.frontends.capture.user_line import user_line

_ASSIGN = "setitem"
_RESHAPING = ("unsqueeze", "squeeze", "transpose", "swapaxes", "swapdims", "t")  # with ``_``, only the shape changes
_SAME_PLACES = ("contiguous", "detach", "to", "float", "data", "type", "type_as", "identity", "alias", "clone")


@dataclass
class Change:
    """A change in place.

    Attributes:
        tensor: What is changed.
        kind: Of the call that computes the new value.
        target: Of that call.
        args: Of that call; for an assignment the tensor, the index and the value.
        kwargs: Of that call.
    """

    tensor: Any
    kind: str
    target: Target
    args: tuple
    kwargs: dict[str, Any]


def refuse(text: str) -> UnsupportedError:
    """Return an error with the user's line."""
    return UnsupportedError(
        text, where=user_line(), hint="Compute a new tensor instead, such as torch.stack of the steps."
    )


def change_of(kind: str, target: Target, args: tuple, kwargs: dict[str, Any]) -> Change | None:
    """Return the change in place that a call makes, or None."""
    name = name_of(target)
    if name == _ASSIGN:
        return Change(args[0], kind, _ASSIGN, args, kwargs)
    if callable(target) and target in IN_PLACE_OPERATORS:
        return Change(args[0], "call_function", IN_PLACE_OPERATORS[target], args, kwargs)
    if isinstance(target, str) and target.startswith("__i") and target.endswith("__") and hasattr(operator, name):
        function = IN_PLACE_OPERATORS.get(getattr(operator, name))
        return Change(args[0], "call_function", function, args, kwargs) if function is not None else None
    if name.endswith("_") and not name.endswith("__") and target not in (operator.and_, operator.or_, operator.not_):
        plain = _plain_function(target, name[:-1]) if callable(target) else name[:-1]
        return Change(args[0], kind, plain, args, kwargs)
    if kwargs.get("out") is not None:
        return Change(kwargs["out"], kind, target, args, {k: v for k, v in kwargs.items() if k != "out"})
    if callable(target) and getattr(target, "__module__", "") == "torch.nn.functional":
        try:
            bound = inspect.signature(target).bind(*args, **kwargs)
        except (TypeError, ValueError):
            return None
        if bound.arguments.get("inplace"):
            first, *rest = bound.arguments.items()
            return Change(first[1], kind, target, (first[1],), {k: v for k, v in rest if k != "inplace"})
    return None


def _plain_function(target: Callable, name: str) -> Any:
    """Return the function that computes what one that ends in ``_`` writes."""
    return getattr(torch.nn.functional, name, None) or getattr(torch, name, name)


def apply(tracer: Tracer, change: Change) -> ValueProxy:
    """Record a change in place, and return what the changed tensor is from then on."""
    [tensor, args, kwargs] = tracer.substitute([change.tensor, change.args, change.kwargs])
    if name_of(change.target) in _RESHAPING and isinstance(change.tensor, ValueProxy):
        return _reshape(tracer, change)
    if isinstance(tensor, torch.Tensor) and tensor._is_view():
        raise refuse("a part of a tensor that does not depend on the input is changed by one that does")
    new = _value(tracer, tensor, change, args, kwargs)
    if tuple(new.shape) != tuple(tensor.shape) or new.dtype != tensor.dtype:
        raise refuse(
            f"a tensor of {tuple(tensor.shape)} ({tensor.dtype}) becomes one of {tuple(new.shape)} ({new.dtype})"
            " in place"
        )
    if isinstance(tensor, torch.Tensor):
        fresh = tracer.proxy(new.node)
        tracer.changed[id(tensor)] = (tensor, fresh)
        return fresh
    become(tracer, tensor, new)
    return tensor


def _reshape(tracer: Tracer, change: Change) -> ValueProxy:
    """Record another shape that a tensor gets in place; it shares its memory with those that it shared it with."""
    x = change.tensor
    before = tracer.proxy(x.node)
    before.view_of, before._own_version = x.view_of, x._own_version
    x.reshape_to(tracer.create_proxy(change.kind, change.target, (before, *change.args[1:]), change.kwargs))
    return x


def become(tracer: Tracer, tensor: ValueProxy, new: ValueProxy) -> None:
    """Let a tensor have a new value, and the tensor that it is a view of, too."""
    if tensor.view_of is not None:
        write_back(tracer, tensor.view_of, new)
    tensor.become(new.node)


def _value(tracer: Tracer, tensor: Any, change: Change, args: tuple, kwargs: dict[str, Any]) -> ValueProxy:
    """Record the value of a tensor after a change."""
    name = name_of(change.target)
    if name == _ASSIGN:
        return put(tracer, tensor, args[1], args[2])
    if name == "copy":
        return put(tracer, tensor, ..., args[1])
    if name in ("zero", "fill"):
        return put(tracer, tensor, ..., args[1] if name == "fill" else 0)
    return tracer.create_proxy(change.kind, change.target, args, kwargs)


def write_back(tracer: Tracer, view: View, new: ValueProxy) -> None:
    """Write the new value of a view into the tensor behind it."""
    source, name, args = view.source, name_of(view.target), list(view.args[1:])
    if name == "getattr":
        name, args = args[0], []
    if not isinstance(source.value, torch.Tensor):
        raise refuse("a part of a split tensor is changed in place")
    if name == "getitem":
        back = put(tracer, source, args[0], new)
    elif name in _SAME_PLACES or view.kind == "call_module":
        back = new
    elif name in ("view", "reshape", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "view_as"):
        back = tracer.record("call_method", "reshape", (new, tuple(source.shape)), {})
    elif name in ("transpose", "swapaxes", "t", "T", "mT"):
        dims = args or ((0, 1) if name in ("t", "T") and source.dim() == 2 else (-2, -1))
        back = tracer.record("call_method", "transpose", (new, *dims), {})
    elif name == "permute":
        order = args[0] if isinstance(args[0], (tuple, list)) else args
        inverse = sorted(range(len(order)), key=lambda i: order[i] % len(order))
        back = tracer.record("call_method", "permute", (new, inverse), {})
    else:
        raise refuse(f"what {name} returns is changed in place, and with it the tensor that it is a view of")
    become(tracer, source, back)


def put(tracer: Tracer, x: Any, index: Any, value: Any) -> ValueProxy:
    """Record ``x`` after ``x[index] = value``.

    Args:
        x: A traced value, or a real tensor if ``value`` is traced.
        index: As in Python.
        value: A traced value, a real tensor or a number.
    """
    if isinstance(index, ValueProxy):
        if index.dtype != torch.bool:
            raise refuse("a tensor is written at positions that depend on the data")
        return tracer.create_proxy("call_function", torch.where, (index, value, x), {})
    if not isinstance(value, ValueProxy):
        return _put_constant(tracer, x, index, value)
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [e for e in entries if not isinstance(e, torch.Tensor)]:
        place = next(i for i, e in enumerate(entries) if e is Ellipsis)
        entries[place : place + 1] = [slice(None)] * (x.dim() - len(entries) + 1)
    for dim, entry in enumerate(entries):
        size = x.shape[dim]
        if isinstance(entry, slice) and entry.indices(size) == (0, size, 1):
            continue
        rest = tuple(entries[dim + 1 :])
        if isinstance(entry, int) and not isinstance(entry, bool):
            return _put_steps(tracer, x, dim, [entry % size], rest, value)
        if isinstance(entry, slice):
            start, stop, step = entry.indices(size)
            if step == 1:
                return _put_range(tracer, x, dim, (start, stop), rest, value)
        raise refuse(f"assignment to [{entry}] is not supported")
    return _expanded(tracer, value, tuple(x.shape), x.dtype)


def _put_constant(tracer: Tracer, x: ValueProxy, index: Any, value: Any) -> ValueProxy:
    """Record ``x`` after numbers were written into it: a product with a mask, to which they are added."""
    keep, written = torch.ones(tuple(x.shape), dtype=x.dtype), torch.zeros(tuple(x.shape), dtype=x.dtype)
    keep[index] = 0
    written[index] = value
    result = tracer.constants.call("call_function", operator.mul, (x, keep), {})
    if written.any():
        result = tracer.constants.call("call_function", operator.add, (result, written), {})
    return result


def _part(tracer: Tracer, x: Any, dim: int, index: int | slice) -> Any:
    """Return a position or a range of a traced value or of a real tensor."""
    if isinstance(x, torch.Tensor):
        return x[(*(slice(None),) * dim, index)]
    steps = x.node.meta.get("steps")
    if steps is not None and steps[0] == dim and isinstance(index, int):
        return tracer.proxy(steps[1][index])
    return tracer.record("call_function", operator.getitem, (x, at(x, dim, index)), {})


def _put_steps(tracer: Tracer, x: Any, dim: int, steps: list[int], rest: tuple, value: ValueProxy) -> ValueProxy:
    """Record ``x`` with one position of a dimension replaced: a stack of all positions."""
    parts = [_part(tracer, x, dim, i) for i in range(x.shape[dim])]
    for step in steps:
        parts[step] = put(tracer, parts[step], (*(slice(None),) * dim, *rest), value)
    written = parts[steps[0]]
    parts = [tracer.constants.like(written, p) if isinstance(p, torch.Tensor) else p for p in parts]
    result = tracer.record("call_function", torch.stack, (parts, dim), {})
    result.node.meta["steps"] = (dim, [p.node for p in parts])
    return result


def _put_range(tracer: Tracer, x: Any, dim: int, bounds: tuple[int, int], rest: tuple, value: ValueProxy) -> ValueProxy:
    """Record ``x`` with a range of a dimension replaced: what is before, the value, and what is behind."""
    start, stop = bounds
    if start >= stop:
        raise refuse("an empty range is assigned to")
    middle = put(tracer, _part(tracer, x, dim, slice(start, stop)), (*(slice(None),) * (dim + 1), *rest), value)
    parts = [_part(tracer, x, dim, slice(0, start)), middle, _part(tracer, x, dim, slice(stop, x.shape[dim]))]
    parts = [p for p in parts if p.shape[dim]]
    return tracer.create_proxy("call_function", torch.cat, (parts, dim), {}) if len(parts) > 1 else middle


def _expanded(tracer: Tracer, value: ValueProxy, shape: tuple[int, ...], dtype: torch.dtype) -> ValueProxy:
    """Record a value broadcast to a shape, and cast to a type."""
    if value.dtype != dtype:
        value = tracer.record("call_method", "to", (value, dtype), {})
    return value if tuple(value.shape) == shape else tracer.record("call_method", "expand", (value, *shape), {})
