"""Running of what ``torch.compile`` and ``torch.jit.script`` compile as the Python code that it is.

A capture follows Python code, and the compiled form computes the same.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch


def _as_it_is(function: Any = None, *_: object, **__: object) -> Any:
    """Return what would be compiled; as a decorator with arguments, what returns it."""
    return function if function is not None else lambda decorated: decorated


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Let models be built and run without compilation, in the body of a ``with`` statement.

    What was compiled by ``torch.compile`` before runs as Python code, too; what was scripted before stays scripted.
    """
    before = torch.compile, torch.jit.script
    torch.compile = torch.jit.script = _as_it_is  # type: ignore[assignment]
    try:
        with contextlib.ExitStack() as stack:
            dynamo = sys.modules.get("torch._dynamo")
            if dynamo is not None:  # else nothing was compiled, and importing it takes a second
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                stack.enter_context(dynamo.config.patch(error_on_nested_fx_trace=False))
            yield
    finally:
        torch.compile, torch.jit.script = before  # type: ignore[assignment]
