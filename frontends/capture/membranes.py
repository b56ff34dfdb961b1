"""Membranes that a model reads after a neuron has run: only then is a neuron traced as what it computes."""

from __future__ import annotations

from typing import Any, NoReturn

from spikingjelly.activation_based import base
from torch import nn

from svitc.errors import UnsupportedError
from svitc.frontends.capture.user_line import user_line

MARK = "traced_into"  # attribute of neurons that are no leaves, because their membrane is read


class MembraneRead(UnsupportedError):
    """The membrane of a neuron is read, which is recorded as one operation that gives spikes alone.

    Attributes:
        path: The neuron.
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            f"the membrane of neuron {path} is read after the neuron has run",
            where=user_line(),
            hint="Register the neuron in the model, or write out what it computes, so that its membrane is a value.",
        )
        self.path = path


class Membrane:
    """Stand-in for the membrane of a neuron that was recorded as one operation: any use of it is an error.

    Args:
        path: The neuron.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise MembraneRead(self._path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MembraneRead(self._path)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> NoReturn:
        found = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Membrane)]
        raise MembraneRead(found[0]._path if found else "")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __float__ = __len__ = __iter__ = __getitem__ = _refuse


class Memories:
    """The membranes of neurons while a model is traced."""

    def __init__(self) -> None:
        self._before: list[tuple[base.MemoryModule, Any, Any]] = []

    def hide(self, neuron: base.MemoryModule, path: str) -> None:
        """Put stand-ins into a neuron that was recorded."""
        self._before.append((neuron, neuron._memories.get("v"), vars(neuron).get("v_seq")))
        neuron._memories["v"] = Membrane(path)
        if getattr(neuron, "store_v_seq", False):
            vars(neuron)["v_seq"] = Membrane(path)

    def restore(self) -> None:
        """Give the neurons back what they held."""
        for neuron, v, v_seq in reversed(self._before):
            neuron._memories["v"] = v
            if "v_seq" in vars(neuron):
                vars(neuron)["v_seq"] = v_seq
        self._before.clear()


def trace_into(model: nn.Module, path: str) -> bool:
    """Mark a neuron to be traced as what it computes; return False where it is marked already, or not registered."""
    neuron = dict(model.named_modules(remove_duplicate=False)).get(path)
    if neuron is None or getattr(neuron, MARK, False):
        return False
    setattr(neuron, MARK, True)
    return True


__all__ = ["MARK", "Membrane", "MembraneRead", "Memories", "trace_into"]
