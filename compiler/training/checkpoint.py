"""What fine-tuning leaves on disk after every epoch, and how it goes on from there.

One file of plain tensors and values, which ``torch.load(…, weights_only=True)`` reads:

    format       "svitc-finetune-1"
    inputs       what the run depends on, see ``finetune``: another run's file is refused
    epoch        finished epochs
    weights      parameters and buffers after the last of them
    best         those of the epoch that is best on the held-out images, 0 for the start
    best_epoch, best_score
    start_right, teacher_right: held-out images that the start and the teacher classify rightly
    optimizer    of torch.optim.AdamW
    history      a dictionary for each epoch
    digest       SHA-256 over all tensors above

Learning rates, orders and augmentations follow from the seed, the epoch and the step: no generator's state is needed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from svitc.errors import InputError
from svitc.support.atomic_files import write_together

FORMAT = "svitc-finetune-1"
KEYS = (
    "inputs",
    "epoch",
    "weights",
    "best",
    "best_epoch",
    "best_score",
    "optimizer",
    "history",
    "start_right",
    "teacher_right",
)
ANEW = "Leave out --resume to start anew."


def digest(value: Any) -> str:
    """SHA-256 over all tensors in nested dictionaries and lists, with their places."""
    result = hashlib.sha256()
    for place, tensor in _tensors(value, ""):
        # a tensor read back may lie differently: its elements count, not their layout
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        result.update(f"{place}{tensor.dtype}{list(tensor.shape)}".encode())
        result.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return result.hexdigest()


def _tensors(value: Any, place: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _tensors(value[key], f"{place}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{place}/{index}")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state, "digest": digest(state)}, buffer)
    write_together(path.parent, {path.name: buffer.getvalue()})


def load_checkpoint(path: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of a run with the same inputs.

    Raises:
        InputError: it is damaged, is not a checkpoint, or is one of another run; says what differs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive may raise anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is damaged, or is no checkpoint of fine-tuning: {text}", hint=ANEW) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or any(key not in state for key in KEYS):
        raise InputError(f"{path} is no checkpoint of fine-tuning", hint=ANEW)
    stored = state["inputs"]
    if not isinstance(stored, dict):
        raise InputError(f"{path} is damaged: it does not say what it was made from", hint=ANEW)
    differing = [name for name in sorted({*inputs, *stored}) if stored.get(name) != inputs.get(name)]
    if differing:
        texts = [_difference(name, stored.get(name), inputs.get(name)) for name in differing]
        raise InputError(
            f"{path} belongs to another run of fine-tuning: {'; '.join(texts)}",
            hint=f"Give the same model, data and options to go on. {ANEW}",
        )
    if digest({key: state[key] for key in KEYS}) != state.get("digest"):
        raise InputError(f"{path} is damaged: its contents do not match its digest", hint=ANEW)
    return state


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, str) and isinstance(now, str) and len(then) == len(now) == 64:
        return f"the {name} differs"
    return f"{name} was {then}, now {now}"
