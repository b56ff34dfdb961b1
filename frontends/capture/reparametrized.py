"""Weights that are computed from others: ``weight_norm``, ``spectral_norm``, pruning masks, and parametrizations.

In inference such a weight never changes, so that it is computed once and the layer becomes a plain one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from svitc.errors import UnsupportedError

_Key = tuple[tuple[int, ...], str]
_SUFFIXES = ("_orig", "_mask", "_g", "_v", "_u")  # of what a weight is computed from, behind its own name


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, also where a weight was computed from others, which PyTorch does not copy."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # the user's code
        text = next(iter(str(error).splitlines()), "")
        raise UnsupportedError(
            f"the model cannot be copied: copy.deepcopy(model) fails with {type(error).__name__}: {text}",
            hint="Look for attributes that cannot be copied, such as a dictionary whose __getattr__ raises KeyError.",
        ) from error


def bake(model: nn.Module) -> None:
    """Compute the weights of a model in inference mode once, in place.

    Parameters that were tied before, and have the same value after, stay tied.
    """
    computed = [(module, name, value, key) for module in model.modules() for name, value, key in _computed(module)]
    for module in {id(m): m for m, *_ in computed}.values():
        if parametrize.is_parametrized(module):
            del module._modules["parametrizations"]
            module.__class__ = type(module).__mro__[1]
    parameters: dict[_Key, list[nn.Parameter]] = {}
    for module, name, value, key in computed:
        _forget(module, name)
        tied = parameters.setdefault(key, [])
        same = next((p for p in tied if torch.equal(p, value)), None)
        if same is None:
            same = nn.Parameter(value)
            tied.append(same)
        module.register_parameter(name, same)


def _computed(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, _Key]]:
    """Yield the name, the value and the sources of each parameter that a module computes before its forward."""
    with torch.no_grad():
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
                value = getattr(module, name).detach().clone()
                yield name, value, (_ids(*chain.parameters(), *chain.buffers()), name)
        for hook in module._forward_pre_hooks.values():
            name = _target(hook)
            if name is not None:
                hook(module, None)
                sources = [v for k, v in _tensors(module).items() if k in _sources(name)]
                yield name, getattr(module, name).detach().clone(), (_ids(*sources), name)


def _target(hook: object) -> str | None:
    """Return the name of the parameter that a hook before forward computes, or None for other hooks."""
    if isinstance(hook, (WeightNorm, SpectralNorm)):
        return str(hook.name)
    return str(hook._tensor_name) if isinstance(hook, prune.BasePruningMethod) else None


def _sources(name: str) -> set[str]:
    """Return the names of what a hook computes a parameter from."""
    return {name + suffix for suffix in _SUFFIXES}


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers that a module itself holds."""
    return {k: v for k, v in (*module._parameters.items(), *module._buffers.items()) if v is not None}


def _ids(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(id(t) for t in tensors if isinstance(t, nn.Parameter))


def _forget(module: nn.Module, name: str) -> None:
    """Remove what a parameter was computed from."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if _target(hook) == name:
            del module._forward_pre_hooks[key]
            for store in (module._parameters, module._buffers):
                for source in [n for n in store if n in _sources(name)]:
                    del store[source]
    vars(module).pop(name, None)
