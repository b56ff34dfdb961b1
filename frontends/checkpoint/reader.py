"""Safe reading of a checkpoint of unknown origin: only tensors and plain values, unless the user trusts the file."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from svitc.errors import InputError, SvitcError
from svitc.frontends.checkpoint.spikingjelly_families import KNOWN
from svitc.frontends.checkpoint.weights import check_tensors
from svitc.frontends.published.recognize import AVERAGED, WEIGHTS, unwrap
from svitc.support.user_code import importable

# names of T in models and training scripts
TIME_NAMES = ("T", "time_step", "timestep", "time_steps", "timesteps", "num_steps", "step")
# entries that describe the model, with their types
DESCRIPTION: dict[str, type | tuple[type, ...]] = {
    "input_shape": (list, tuple),
    "normalize": dict,
    "classes": (list, tuple),
    "metrics": dict,
    "resize": int,
    "crop_pct": (int, float),
}
# entries in which training scripts save their options
OPTIONS = ("args", "opt", "opts", "options", "config", "cfg", "hparams", "hyper_parameters")
PARTS = (*WEIGHTS, *AVERAGED, "optimizer", "lr_scheduler", "scheduler", "scaler")
SAVE = "svitc reads what torch.save wrote: a state_dict, or svitc.save's self-describing file."


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
        if not path.exists():
            raise InputError(f"{path} does not exist", hint=_neighbors(path))
        if path.is_dir():
            raise InputError(
                f"{path} is a folder, not a checkpoint, and holds no model.safetensors",
                hint="Give the .pt file, or an output folder of svitc.",
            )
        if not path.is_file():
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            start = file.read(512)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    _check_start(path, start)
    content = _safetensors(path) if path.suffix == ".safetensors" else _load(path, trust_pickle)
    return _unwrap(content, path.name, ema), digest


def _neighbors(path: Path) -> str | None:
    """List the checkpoints in the folder of a file that does not exist, as a hint."""
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    near = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".pt", ".pth", ".safetensors"))
    return f"In that folder: {', '.join(near[:5])}." if near else None


def _check_start(path: Path, start: bytes) -> None:
    """Refuse, by its first bytes, a file on which torch.load fails with an unclear message."""
    if not start:
        raise InputError(f"{path} is empty", hint="The copy or the download did not finish.")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the file it points to", hint="Run git lfs pull.")
    if path.suffix == ".safetensors":
        return
    if start.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise InputError(
                f"{path} is truncated: its end is missing, after {path.stat().st_size:,} bytes",
                hint="Copy or download it again.",
            )
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.rpartition("/")[2] for name in archive.namelist()]
        except Exception as error:  # zipfile raises many kinds of errors on a damaged directory
            raise InputError(f"{path} is damaged: {_line(error)}", hint="Copy or download it again.") from error
        if "constants.pkl" in names:
            raise InputError(f"{path} is a TorchScript archive, which has no torch modules", hint=SAVE)
        if "data.pkl" not in names:
            raise InputError(f"{path} is a zip file, but not a PyTorch checkpoint", hint=SAVE)
    elif not start.startswith(b"\x80"):  # the first byte of every pickle that torch writes
        raise InputError(f"{path} is not a PyTorch checkpoint (it begins with {start[:12]!r})", hint=SAVE)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format", "").startswith("svitc-program"):
                raise InputError(f"{path} is a program of svitc, not a checkpoint", hint="Give its folder.")
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error


def _load(path: Path, trust_pickle: bool) -> object:
    """Read what torch.save wrote, safely unless the user trusts the file."""
    # training scripts save their options as a Namespace, which only holds values and so is safe
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warnings on the pickle protocol do not help the user
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not trust_pickle:
                raise _needs_trust(path, str(error)) from error
        except Exception as error:  # a damaged file may raise anything
            text = f"{path} cannot be read as a PyTorch checkpoint: {_line(error)}"
            raise InputError(text, hint=SAVE) from error
        try:
            with importable(Path.cwd()):
                return torch.load(path, map_location="cpu", weights_only=False)
        except Exception as error:  # the pickle may run anything, and so raise anything
            raise InputError(
                f"{path} cannot be unpickled: {_line(error)}",
                hint="Run svitc in the folder of the model's code, or save a state_dict and give --arch.",
            ) from error


def _needs_trust(path: Path, message: str) -> InputError:
    """Return the error for a file that only unpickling can read, from the message of torch.load."""
    match = re.search(r"GLOBAL ([\w.]+\w)", message)
    if match is None:
        text = f"{path} is not a PyTorch checkpoint, or is damaged: it holds a pickle that torch did not write"
        return InputError(text, hint=SAVE)
    part = _part_with(path, match[1])
    if part in OPTIONS:
        return InputError(
            f"{path} is refused for its entry {part!r}, the training script's options: to read it, Python must import"
            f" and call {match[1]}, and svitc reads plain values and an argparse.Namespace of them only",
            hint="Nothing was run. In the training script, save the file without that entry: "
            f"del checkpoint[{part!r}]; torch.save(checkpoint, …). Or read it with --trust-pickle, only if you made "
            "the file: unpickling runs any code that its writer put there, with your rights.",
        )
    return InputError(
        f"{path} is more than weights: to read it, Python must import and call {match[1]}",
        hint="Save a state_dict instead (svitc.save). Or read it with --trust-pickle, only if you made the "
        "file: unpickling runs any code that its writer put there, with your rights.",
    )


def _part_with(path: Path, name: str) -> str | None:
    """Return the entry of a checkpoint in which its pickle names a class, found without unpickling; None if unsure."""
    part = key = None
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
            for opcode, argument, _ in pickletools.genops(archive.read(member)):
                if opcode.name in ("BINPUT", "LONG_BINPUT"):
                    continue  # these only number the value before them
                if key in (*OPTIONS, *PARTS) and opcode.name in ("GLOBAL", "EMPTY_DICT", "BINGET", "LONG_BINGET"):
                    part = key  # an object follows, so that the string is the key of an entry
                if opcode.name == "GLOBAL" and str(argument).replace(" ", ".") == name:
                    return part
                key = argument if opcode.name == "BINUNICODE" else None
    except Exception:  # damaged, or of the old format: the message does not name the entry
        return None
    return None


def _line(error: BaseException) -> str:
    """Return the class of an error and the first sentence of its message."""
    text = next(iter(str(error).splitlines()), "").partition(". This ")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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
    keys = AVERAGED if ema else WEIGHTS
    inner = next((key for key in keys if isinstance(content.get(key), Mapping | nn.Module)), None)
    if inner is not None:
        arch = content.get("arch")
        # training scripts save a model name of their own there; only module:factory describes the model
        if isinstance(arch, str) and (":" in arch or arch in KNOWN or "arch_args" in content):
            result.arch, result.arch_args = arch, content.get("arch_args")
        for key, types in DESCRIPTION.items():
            # in a file of svitc.save these are checked later; in other files the same key may mean something else
            if result.arch is not None or isinstance(content.get(key), types):
                setattr(result, key, content.get(key))
        result.time_steps = _time_steps(content.get("args"))
        if not ema and any(str(key).endswith("_ema") for key in content):
            note = f"the weights are {inner!r}; the averaged ones (EMA) in the file are not used (--ema takes them)"
            result.notes.append(note)
        if isinstance(content[inner], nn.Module):
            result.module = content[inner]
            return result
    with prefix_errors(name):
        state, result.options = unwrap(content, ema)
    check_tensors(state, name)
    result.state = state
    return result


def _time_steps(args: object) -> int | None:
    """Return the number of time steps from the options that a training script saved, or None."""
    values = vars(args) if isinstance(args, argparse.Namespace) else args
    if not isinstance(values, Mapping):
        return None
    steps = next((values[name] for name in TIME_NAMES if type(values.get(name)) is int), None)
    return steps if steps is not None and steps > 0 else None
