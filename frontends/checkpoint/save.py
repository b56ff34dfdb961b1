"""Self-describing checkpoints: the weights, and all that svitc needs to build the model again."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from spikingjelly.activation_based import base
from torch import nn

from svitc.errors import SvitcError, UsageError
from svitc.frontends.checkpoint import neuron_json, spikingjelly_families, weights
from svitc.frontends.checkpoint.model_factory import ARCH_FORM, build_spikingjelly, check_json, check_json_object
from svitc.support.atomic_files import write_together
from svitc.support.types import JsonMapping

RESERVED = ("state_dict", "arch", "arch_args", "input_shape")
_TRAINING = re.compile(r"\b(momentum|detach_reset|backend|store_v_seq|inplace)=[^,)]*")
SAME_ARGUMENTS = "Give the arch_args that the model was built with."


def save(
    model: nn.Module,
    path: Path | str,
    *,
    arch: str,
    arch_args: Mapping[str, object] | None = None,
    input_shape: Sequence[int],
    **extra: object,
) -> None:
    """Write a checkpoint that ``svitc.load`` reads without further options.

    The file is written completely or not at all. If ``arch`` is a factory of SpikingJelly, it is called with
    ``arch_args``, and the result is compared with ``model``, so that wrong arguments are noticed now. A file that
    names any other factory is loaded only if the user names the factory as well, with ``--arch``, because a file must
    not choose which code runs.

    Args:
        path: the file to write; its folder is created if it does not exist.
        arch: ``module:factory``, such as ``spikingjelly.activation_based.model:Spikformer``.
        arch_args: arguments of the factory: JSON values, and neuron classes that svitc supports.
        input_shape: ``(C, H, W)``, or ``(T, C, H, W)`` for event frames.
        extra: ``normalize`` ({"mean": [...], "std": [...]}, one number for each channel), ``classes`` (names, in the
            order of the head's outputs), ``metrics``, or any other JSON value.

    Raises:
        UsageError: arguments that are not JSON values, or that do not build this model.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    args = check_json_object(neuron_json.to_json(dict(arch_args or {})), "arch_args", UsageError)
    for name in RESERVED:
        if name in extra:
            raise UsageError(f"{name} is given twice")
    factory = spikingjelly_families.known_factory(arch)
    if factory is None and not arch.rpartition(":")[0]:
        raise UsageError(f"arch {arch!r} does not name a factory", hint=ARCH_FORM)
    if len(input_shape) not in (3, 4) or any(int(n) < 1 for n in input_shape):
        raise UsageError(f"input_shape {list(input_shape)} is neither C,H,W nor T,C,H,W")
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    if factory:
        arch = f"{spikingjelly_families.HOME}:{factory}"
        _compare(model, factory, args, state)
    content: dict[str, object] = {
        "state_dict": state,
        "arch": arch,
        "arch_args": args,
        "input_shape": [int(n) for n in input_shape],
        **{key: check_json(value, key, UsageError) for key, value in extra.items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_together(path.absolute().parent, {path.name: buffer.getvalue()})


def _compare(model: nn.Module, factory: str, args: JsonMapping, state: weights.State) -> None:
    """Raise UsageError where the factory builds another model: other sizes, neurons, number of heads or T."""
    rebuilt = build_spikingjelly(factory, args, UsageError, len(state))
    try:
        weights.fit(rebuilt, state, "the model", f"{factory} with these arch_args")
    except SvitcError as error:
        raise UsageError(error.message, hint=SAME_ARGUMENTS) from error
    for line, rebuilt_line in zip_longest(_lines(model), _lines(rebuilt), fillvalue="nothing more"):
        if line != rebuilt_line:
            raise UsageError(
                f"{factory} with these arch_args is another model: it has {rebuilt_line!r}, and this one {line!r}",
                hint=SAME_ARGUMENTS,
            )


def _lines(model: nn.Module) -> list[str]:
    """Print what the model computes as lines: its layers, T, and where membranes start.

    Left out is what only matters in training: surrogates of binary neurons, what is dropped, the momentum of batch
    norms and the reset's gradient; and what only says how a neuron is computed.
    """
    lines = [_TRAINING.sub("", line.strip()) for line in repr(model).splitlines()]
    lines = [re.sub(r"(Dropout\w*\(|DropPath\().*", r"\1", line) for line in lines]
    kept = [line for line in lines if "surrogate_function" not in line or "MultiLevel" in line]
    starts = [
        f"{path}, whose memories start at {module._memories_rv}"
        for path, module in model.named_modules()
        if isinstance(module, base.MemoryModule)
    ]
    return [f"T={getattr(model, 'T', None)}", *kept, *starts]
