"""Safe reading of a checkpoint of unknown origin: only tensors and plain values, unless the user trusts the file."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from svitc.errors import InputError, SvitcError
from svitc.frontends.checkpoint.safetensors_files import (
    INDEX,
    is_safetensors,
    merge_shards,
    read_safetensors,
    shards_of,
)
from svitc.frontends.checkpoint.spikingjelly_families import KNOWN
from svitc.frontends.checkpoint.torch_files import OPTIONS, SAVE, ZIP, check_archive, load
from svitc.frontends.checkpoint.weights import check_tensors
from svitc.frontends.published.recognize import unwrap
from svitc.frontends.state_dict import AVERAGED, WEIGHTS, find_weights
from svitc.support.names import check_exists

# names of checkpoints in a folder
IN_FOLDER = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
# names of T in models and training scripts
TIME_NAMES = ("T", "time_step", "timestep", "time_steps", "timesteps", "num_steps", "step")
# a training script's "step" may be one of its learning rate, too: it only counts where the model has one of that name
AMBIGUOUS = "step"
# entries that describe the model, with their types
DESCRIPTION: dict[str, type | tuple[type, ...]] = {
    "input_shape": (list, tuple),
    "normalize": dict,
    "classes": (list, tuple),
    "metrics": dict,
    "resize": int,
    "crop_pct": (int, float),
}


@dataclass
class Contents:
    """The contents of a checkpoint.

    Attributes:
        module: a complete pickled model, or None.
        state: the weights where ``module`` is None, under names without the prefixes of wrappers.
        options: those options of the training script, saved beside the weights, that are plain values.
        arch: ``module:factory`` as the file names it.
        arch_args, input_shape, normalize, classes, metrics, resize, crop_pct: the file's description of the model,
            not yet checked; None where there is none.
        time_steps: number of time steps in the training script's options, or None.
        notes: assumptions made while reading, sentences for the user.
    """

    module: nn.Module | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    arch: str | None = None
    arch_args: object = None
    input_shape: object = None
    normalize: object = None
    classes: object = None
    metrics: object = None
    resize: object = None
    crop_pct: object = None
    time_steps: int | None = None
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def prefix_errors(source: str, enabled: bool = True) -> Iterator[None]:
    """Put the name of a file in front of the messages of errors in the body of a ``with`` statement."""
    try:
        yield
    except SvitcError as error:
        if enabled:
            error.message = f"{source}: {error.message}"
        raise


def read(path: Path, trust_pickle: bool = False, ema: bool = False) -> tuple[Contents, str]:
    """Read a checkpoint.

    Args:
        path: the file.
        trust_pickle: if the file holds more than tensors and plain values, unpickle it, which runs code in it.
        ema: take the averaged weights.

    Returns:
        The contents, and the SHA-256 of the file.

    Raises:
        InputError: not a file, not a checkpoint, damaged, in need of unpickling without ``trust_pickle``, or without
            averaged weights where ``ema`` asks for them.
    """
    try:
        path = _file_of(path)
        shards = shards_of(path)
        parts = {part: _start_and_hash(part) for part in shards or [path]}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if shards is None:
        start, digest = parts[path]
        return _unwrap(_read_one(path, start, trust_pickle), path.name, ema), digest
    contents = _unwrap(merge_shards(shards, lambda part: _read_one(part, parts[part][0], trust_pickle)), path.name, ema)
    contents.notes.append(f"the weights are those of {len(shards)} shards ({shards[0].name}, …)")
    return contents, hashlib.sha256("".join(digest for _, digest in parts.values()).encode()).hexdigest()


def _start_and_hash(path: Path) -> tuple[bytes, str]:
    """Return the first bytes of a file, and the SHA-256 of all."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        return file.read(512), digest


def _file_of(path: Path) -> Path:
    """Return the file to read: the one that is given, or the checkpoint in a folder as Hugging Face writes them."""
    if not check_exists(path).is_dir():
        if not path.is_file():
            raise InputError(f"{path} is not a regular file")
        return path
    file = next((path / name for name in IN_FOLDER if (path / name).is_file()), None)
    if file is None:
        raise InputError(
            f"{path} is a folder, not a checkpoint, and holds no model.safetensors",
            hint="Give the checkpoint's file, or an output folder of svitc.",
        )
    return file


def _read_one(path: Path, start: bytes, trust_pickle: bool) -> object:
    """Read one file, whose first bytes are ``start``; they tell its format, whatever it is called."""
    if not start:
        raise InputError(f"{path} is empty", hint="The copy or the download did not finish.")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the file it points to", hint="Run git lfs pull.")
    is_archive = start.startswith((ZIP, b"\x80"))
    if is_safetensors(start, path.stat().st_size) or (path.suffix == ".safetensors" and not is_archive):
        return read_safetensors(path)
    check_archive(path, start)
    return load(path, trust_pickle)


def _unwrap(content: object, name: str, ema: bool) -> Contents:
    """Find the weights, and the description of the model, in what torch.load returned.

    Args:
        name: name of the file, for messages.
        ema: take the averaged weights.
    """
    if isinstance(content, nn.Module) and ema:
        raise InputError(f"{name} holds a whole model, and no averaged weights", hint="Leave out --ema.")
    if isinstance(content, nn.Module):
        return Contents(module=content)
    if not isinstance(content, Mapping):
        raise InputError(f"{name} holds a {type(content).__name__}, not a state_dict", hint=SAVE)
    result = Contents()
    names = AVERAGED if ema else WEIGHTS
    inner = next((key for key in names if isinstance(content.get(key), Mapping | nn.Module)), None)
    if inner is not None:
        _describe(result, content)
        averages = [str(key) for key in content if key in AVERAGED or str(key).endswith("_ema")]
        if not ema and averages:
            note = f"the weights are {inner!r}; the averaged ones (EMA) in the file are not used (--ema takes them)"
            result.notes.append(note)
        if isinstance(content[inner], nn.Module):
            result.module = content[inner]
            return result
    with prefix_errors(name):
        state, result.options = unwrap(content, ema)
        path, _ = find_weights(content, names)
    if path and (len(path) > 1 or inner is None):
        result.notes.append(f"the weights are the entry {' of '.join(map(repr, reversed(path)))}")
    check_tensors(state, name)
    result.state = state
    return result


def _describe(result: Contents, content: Mapping) -> None:
    """Take over what a checkpoint says of its model beside the weights."""
    arch = content.get("arch")
    # training scripts save a model name of their own there; only module:factory describes the model
    if isinstance(arch, str) and (":" in arch or arch in KNOWN or "arch_args" in content):
        result.arch, result.arch_args = arch, content.get("arch_args")
    for key, types in DESCRIPTION.items():
        # in a file of svitc.save these are checked later; in other files the same key may mean something else
        if result.arch is not None or isinstance(content.get(key), types):
            setattr(result, key, content.get(key))
    result.time_steps = next(filter(None, (_time_steps(content.get(key)) for key in OPTIONS)), None)


def _time_steps(args: object) -> int | None:
    """Return the number of time steps from the options that a training script saved, or None."""
    values = vars(args) if isinstance(args, argparse.Namespace) else args
    if not isinstance(values, Mapping):
        return None
    steps = next((values[name] for name in TIME_NAMES if name != AMBIGUOUS and type(values.get(name)) is int), None)
    return steps if steps is not None and steps > 0 else None
