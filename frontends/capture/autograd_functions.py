"""Record the forward of autograd functions, which tracing by itself does not see."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import fx
from torch.autograd import Function

from svitc.frontends.capture.tracer import Tracer


class Context:
    """Stand-in for ``ctx`` while an autograd function's forward is recorded; it ignores what is saved in it."""

    needs_input_grad: tuple[bool, ...] = ()
    saved_tensors: tuple[torch.Tensor, ...] = ()

    def _ignore(self, *args: object, **kwargs: object) -> None:
        """Do nothing, as a capture has no backward."""

    save_for_backward = save_for_forward = mark_dirty = _ignore
    mark_non_differentiable = set_materialize_grads = _ignore


@contextlib.contextmanager
def record_autograd_functions(tracer: Tracer) -> Iterator[None]:
    """Record the operations of an autograd function's forward where the function is applied to a proxy.

    The function's backward is lost: gradients become those of the operations. Each node that is recorded has the
    function's name in ``meta["function"]``.
    """
    original = Function.__dict__["apply"]

    def apply(cls: type[Function], *args: object, **kwargs: object) -> object:
        args, kwargs = tracer.substitute((args, kwargs))
        if not any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())):
            return original.__get__(None, cls)(*args, **kwargs)
        count = len(tracer.graph.nodes)
        takes_context = cls.setup_context is Function.setup_context
        result = cls.forward(*((Context(),) if takes_context else ()), *args, **kwargs)
        for node in list(tracer.graph.nodes)[count:]:
            node.meta["function"] = cls.__name__
        return result

    Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Function.apply = original  # type: ignore[method-assign]
