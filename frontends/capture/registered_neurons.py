"""The operations that SpikingJelly registers with PyTorch for its neurons, as the plain ones that they consist of."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch._ops import OpOverload


def reference_of(target: object) -> Callable | None:
    """Return what a registered neuron computes as a function of ordinary operations; None for other targets.

    SpikingJelly runs this function itself on a CPU.
    """
    if not isinstance(target, OpOverload) or not target.namespace.startswith("sj_"):
        return None
    package = target.namespace.removeprefix("sj_")
    for name in (package, f"{package}_"):
        try:
            module = importlib.import_module(f"spikingjelly._ops.{name}.reference")
        except ImportError:
            continue
        if target._opname == "forward":
            return getattr(module, "_forward_impl", None)
    return None
