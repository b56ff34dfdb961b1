"""Recorded: what tracing does not see by itself, the forward of autograd functions, records itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.autograd import Function


class Context:
    """Stands for ``ctx`` while an autograd function's forward is recorded: it forgets what it is given."""

    needs_input_grad: tuple[bool, ...] = ()
    saved_tensors: tuple[torch.Tensor, ...] = ()

    def _forget(self, *args: Any, **kwargs: Any) -> None:
        """A capture has no backward."""

    save_for_backward = save_for_forward = mark_dirty = _forget
    mark_non_differentiable = set_materialize_grads = _forget


@contextlib.contextmanager
def functions_recorded(tracer: fx.Tracer) -> Iterator[None]:
    """Within, an autograd function that is applied to a proxy records the operations of its forward.

    Its own backward is lost: whoever makes a layer of the operations gives it its gradient. Each node
    that is recorded has the function's name in ``meta["function"]``.
    """
    plain = Function.__dict__["apply"]

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())):
            return plain.__get__(None, cls)(*args, **kwargs)
        before = len(tracer.graph.nodes)
        with_context = cls.setup_context is Function.setup_context
        result = cls.forward(*((Context(),) if with_context else ()), *args, **kwargs)
        for node in list(tracer.graph.nodes)[before:]:
            node.meta["function"] = cls.__name__
        return result

    Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Function.apply = plain  # type: ignore[method-assign]
