"""Leaves: layers and neurons that a capture records as one call, because what they compute is known."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import base, layer
from torch import fx, nn

from svitc.frontends.capture.membranes import MARK
from svitc.ir import ops

KINDS: tuple[type[nn.Module], ...] = (
    *ops.MODULES,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.PReLU,
    nn.MaxPool3d,
    nn.AvgPool3d,
    nn.Dropout,
    nn.Identity,
)
# SpikingJelly's layers that run the layer of torch.nn of the same name, over time and batch at once in mode "m"
STEP_LAYERS: dict[type, type[nn.Module]] = {
    own: kind
    for kind in KINDS
    if isinstance(own := getattr(layer, kind.__name__, None), type) and issubclass(own, kind)
}
# What a subclass may define without changing what the layer computes
_HARMLESS = {
    "__init__",
    "__module__",
    "__qualname__",
    "__doc__",
    "__annotations__",
    "__dict__",
    "__weakref__",
    "__repr__",
    "__str__",
    "__constants__",
    "__static_attributes__",
    "__firstlineno__",
    "__orig_bases__",
    "__parameters__",
    "_abc_impl",
    "_version",
    "_get_name",
    "extra_repr",
    "reset_parameters",
    "supported_backends",
    "supported_step_mode",
    "state_dict",
    "load_state_dict",
    "_load_from_state_dict",
    "_save_to_state_dict",
    "train",
}
# Methods that SpikingJelly called in earlier versions, and which a neuron defines to change what it computes
_FORMER = {"neuronal_charge", "neuronal_fire", "neuronal_reset", "neuronal_adaptation"}


def leaf_kind(module: nn.Module) -> type[nn.Module] | None:
    """Return the known class that computes what a module does, or None where the module has code of its own.

    A subclass counts as the class that it is derived from if neither it nor the instance defines anything that this
    class looks up, such as ``forward``, ``_conv_forward`` or a property ``weight``.
    """
    known = {*KINDS, *STEP_LAYERS}
    lineage = type(module).__mro__
    first = next((i for i, cls in enumerate(lineage) if cls in known), None)
    if first is None or "forward" in vars(module):
        return None
    base = lineage[first]
    looked_up = {*dir(base), *vars(module), *module._parameters, *module._buffers, *_FORMER} - _HARMLESS
    if any(name in looked_up for cls in lineage[:first] for name in vars(cls)):
        return None
    return STEP_LAYERS.get(base, base)


def is_leaf(module: nn.Module) -> bool:
    """Return whether a capture records a call of the module instead of what happens in it."""
    if leaf_kind(module) is None:
        return False
    return not isinstance(module, base.MemoryModule) or not (_has_numbers(module) or getattr(module, MARK, False))


def _has_numbers(module: base.MemoryModule) -> bool:
    """Return whether a neuron has a further memory, or parameters that differ by element."""
    values = [getattr(module, name, None) for name in ("v_threshold", "v_reset", "tau", "w")]
    return set(module._memories) != {"v"} or any(isinstance(v, torch.Tensor) and v.numel() > 1 for v in values)


def drop_hooks(graph: fx.Graph, model: nn.Module) -> None:
    """Remove the hooks of the layers that a raw graph calls, as what they do is part of the graph."""
    for path in {str(node.target) for node in graph.nodes if node.op == "call_module"}:
        module = model.get_submodule(path)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
