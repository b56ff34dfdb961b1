"""Save a model as a self-describing checkpoint: weights, and all that is needed to build the model again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svitc.errors import SvitcError, UsageError
from svitc.frontends.checkpoint import neuron_json, spikingjelly_families, weights
from svitc.frontends.checkpoint.model_factory import FORM, build_known, check_json
from svitc.support.atomic_files import write_together

RESERVED = ("state_dict", "arch", "arch_args", "input_shape")


def save(
    model: nn.Module,
    path: Path | str,
    *,
    arch: str,
    arch_args: Mapping[str, Any] | None = None,
    input_shape: Sequence[int],
    **extra: Any,
) -> None:
    """Write a checkpoint that ``svitc.load`` reads without being told anything.

    The file appears whole or not at all. A factory of SpikingJelly's is called again with the same
    arguments, and the model that it gives is compared with yours, so that nothing is lost unnoticed. A file
    that names any other factory is loaded only where the user names it, too, with ``--arch``: a file must not
    choose what runs.

    Args:
        arch: ``module:factory``, such as ``spikingjelly.activation_based.model:Spikformer``.
        arch_args: arguments of the factory: JSON values, and neuron classes that svitc knows.
        input_shape: ``(C, H, W)``, or ``(T, C, H, W)`` for event frames.
        extra: ``normalize`` ({"mean": [...], "std": [...]}), ``classes`` (names in the head's order),
            ``metrics``, and anything else. JSON values.

    Raises:
        UsageError: arguments that are not JSON values, or that do not give this model again.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    args = check_json(neuron_json.to_json(dict(arch_args or {})), "arch_args", UsageError)
    for name in RESERVED:
        if name in extra:
            raise UsageError(f"{name} is given twice")
    known = spikingjelly_families.known_factory(arch)
    if known is None and not arch.rpartition(":")[0]:
        raise UsageError(f"arch {arch!r} does not name a factory", hint=FORM)
    if len(input_shape) not in (3, 4) or any(int(n) < 1 for n in input_shape):
        raise UsageError(f"input_shape {list(input_shape)} is neither C,H,W nor T,C,H,W")
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    if known:
        arch = f"{spikingjelly_families.HOME}:{known}"
        _compare(model, known, args, state)
    content = {
        "state_dict": state,
        "arch": arch,
        "arch_args": args,
        "input_shape": [int(n) for n in input_shape],
        **{key: check_json(value, key, UsageError) for key, value in extra.items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_together(path.absolute().parent, {path.name: buffer.getvalue()})


def _compare(model: nn.Module, factory: str, args: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """Raise UsageError where the factory gives another model: another size, neuron, number of heads or T."""
    again = build_known(factory, args, UsageError, len(state))
    try:
        weights.fit(again, state, "the model", f"{factory} with these arch_args")
    except SvitcError as error:
        raise UsageError(error.message, hint="Give arch_args as the model was built with.") from error
    for mine, other in zip(_lines(model), _lines(again), strict=False):
        if mine != other:
            raise UsageError(
                f"{factory} with these arch_args is another model: it has {other!r}, and this one {mine!r}",
                hint="Give arch_args as the model was built with.",
            )


def _lines(model: nn.Module) -> list[str]:
    """The model as text, with T, and without surrogates of binary neurons, which only shape gradients."""
    lines = [line.strip() for line in repr(model).splitlines()]
    kept = [line for line in lines if "surrogate_function" not in line or "MultiLevel" in line]
    return [f"T={getattr(model, 'T', None)}", *kept]
