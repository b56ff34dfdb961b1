"""The checkpoint of fine-tuning: written after every epoch, read to resume a run.

It is one file of plain tensors and values, which ``torch.load(…, weights_only=True)`` reads:

    format       "svitc-finetune-1"
    inputs       what the run depends on, see ``finetune``; the checkpoint of another run is rejected
    epoch        number of finished epochs
    weights      parameters and buffers after the last finished epoch
    best         parameters and buffers of the epoch with the best score on the held-out images
    best_epoch, best_score: that epoch, 0 for the weights before training, and its score
    start_right, teacher_right: held-out images that the student before training and the teacher classify correctly
    optimizer    state of torch.optim.AdamW
    history      a dictionary for each epoch
    digest       SHA-256 over all tensors above

The state of random generators is not stored: learning rates, image orders and augmentations follow from the seed, the
epoch and the step.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from svitc.errors import InputError
from svitc.support.atomic_files import write_together
from svitc.support.types import JsonDict, JsonMapping

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
START_AGAIN = "Leave out --resume to start again."


def digest(value: object) -> str:
    """Return the SHA-256 over all tensors in nested dictionaries and lists, and over their positions."""
    result = hashlib.sha256()
    for position, tensor in _tensors(value, ""):
        # a tensor that was read back may have another memory layout, so the digest covers elements in logical order
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        result.update(f"{position}{tensor.dtype}{list(tensor.shape)}".encode())
        result.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return result.hexdigest()


def _tensors(value: object, position: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield position, value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _tensors(value[key], f"{position}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{position}/{index}")


def save(path: Path, state: JsonDict) -> None:
    """Write a checkpoint atomically.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state, "digest": digest(state)}, buffer)
    write_together(path.parent, {path.name: buffer.getvalue()})


def load_checkpoint(path: Path, inputs: JsonMapping) -> JsonDict:
    """Read the checkpoint of a run with the same inputs.

    Raises:
        InputError: the file is damaged, is not a checkpoint, or belongs to another run; the message says what differs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} in it is wrong")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive may raise anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is damaged, or is no checkpoint of fine-tuning: {text}", hint=START_AGAIN) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or any(key not in state for key in KEYS):
        raise InputError(f"{path} is no checkpoint of fine-tuning", hint=START_AGAIN)
    stored = state["inputs"]
    if not isinstance(stored, dict):
        raise InputError(f"{path} is damaged: it does not say what it was made from", hint=START_AGAIN)
    differing = [name for name in sorted({*inputs, *stored}) if stored.get(name) != inputs.get(name)]
    if differing:
        texts = [_difference(name, stored.get(name), inputs.get(name)) for name in differing]
        raise InputError(
            f"{path} belongs to another run of fine-tuning: {'; '.join(texts)}",
            hint=f"Give the same model, data and options to go on. {START_AGAIN}",
        )
    if digest({key: state[key] for key in KEYS}) != state.get("digest"):
        raise InputError(f"{path} is damaged: its contents do not match its digest", hint=START_AGAIN)
    return state


def _difference(name: str, before: object, now: object) -> str:
    if isinstance(before, str) and isinstance(now, str) and len(before) == len(now) == 64:
        return f"the {name} differs"
    return f"{name} was {before}, now {now}"
