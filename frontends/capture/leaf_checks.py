"""Checks of the layers that a program keeps as they are: nothing that changes what they compute may be left behind.

The passes and the ONNX lowering know a layer by its class, its parameters and, for a neuron, by its dynamics. Whatever
else a model hangs on a layer is refused here by name, as it would be lost without a word.
"""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import nn

from svitc.errors import UnsupportedError

# attributes of neurons that are numbers, each with what it is
_NUMBERS = {
    "v_threshold": "a threshold",
    "v_reset": "a reset voltage",
    "tau": "a time constant",
    "w": "a time constant",
    "v": "an initial membrane",
}
_WAYS_OUT = {
    "v_threshold": "Divide the weights and the bias of the layer before the neuron by its thresholds, channel by "
    "channel, and give the neuron the threshold 1.",
    "v": "Call set_reset_value('v', …) with one number, or add the initial membrane to the current of the first step.",
}


def check_layer(path: str, module: nn.Module, where: str | None = None) -> None:
    """Refuse a layer that computes something else than its class says.

    Args:
        path: path of the layer.
        module: the layer.
        where: the line of the model's code that calls it.

    Raises:
        UnsupportedError: the layer has methods of its own.
    """
    kind = type(module)
    replaced = [name for name, value in vars(module).items() if callable(value) and callable(getattr(kind, name, None))]
    if replaced:
        raise UnsupportedError(
            f"{path}, a {kind.__name__}, has a {replaced[0]} of its own, which a compiled file would not run",
            where=where,
            hint="Write it as a class of its own, whose forward is captured.",
        )


def check_neuron(path: str, module: base.MemoryModule, where: str | None = None) -> None:
    """Refuse a neuron with state or parameters that its dynamics do not hold; make numbers of tensors of one element.

    Args:
        path: path of the neuron.
        module: the neuron, which may be changed.
        where: the line of the model's code that calls it.

    Raises:
        UnsupportedError: the neuron has further memories, another precision, or numbers that differ by element.
    """
    neuron: Any = module
    further = [name for name in module._memories if name != "v"]
    if further:
        raise UnsupportedError(
            f"neuron {path} keeps a further memory, {further[0]!r}, beside its membrane, which svitc does not know",
            where=where,
            hint="Remove the memory if the neuron does not read it.",
        )
    if getattr(neuron, "_neuron_precision", None) is not None:
        raise UnsupportedError(
            f"neuron {path} computes with a precision of its own ({neuron._neuron_precision})",
            where=where,
            hint="Compile the model with float32 neurons.",
        )
    if "v" not in module._memories:
        raise UnsupportedError(f"neuron {path} has no membrane named 'v'", where=where)
    module.set_reset_value("v", _number(path, "v", module.get_reset_value("v"), where))
    module.reset()
    for name in ("v_threshold", "v_reset", "tau"):
        value = getattr(neuron, name, None)
        if isinstance(value, torch.Tensor):
            number = _number(path, name, value, where)
            delattr(neuron, name)
            setattr(neuron, name, number)
    if isinstance(getattr(neuron, "w", None), torch.Tensor):
        _number(path, "w", neuron.w, where)
        neuron.w = nn.Parameter(neuron.w.detach().reshape(()), requires_grad=neuron.w.requires_grad)


def _number(path: str, name: str, value: torch.Tensor | float, where: str | None) -> float:
    """Return a neuron's parameter as a number."""
    if not isinstance(value, torch.Tensor):
        return float(value)
    if value.numel() == 1:
        return float(value.detach())
    raise UnsupportedError(
        f"neuron {path} has {_NUMBERS[name]} for each element ({name} of shape {tuple(value.shape)}), where svitc "
        "knows one number for a layer",
        where=where,
        hint=_WAYS_OUT.get(name, f"Give the whole layer {_NUMBERS[name]}, and train it again for a few epochs."),
    )


__all__ = ["check_layer", "check_neuron"]
