"""Reading a checkpoint that nobody vouches for: tensors and plain values, no more without leave."""

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
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from svitc.errors import InputError, SvitcError
from svitc.frontends.checkpoint.spikingjelly_families import KNOWN
from svitc.frontends.checkpoint.weights import check_tensors
from svitc.frontends.published.recognize import AVERAGED, WEIGHTS, unwrap
from svitc.support.user_code import importable

TIME_NAMES = ("T", "time_step", "time_steps", "timesteps", "num_steps")  # what models and scripts call T
ABOUT: dict[str, type | tuple[type, ...]] = {
    "input_shape": (list, tuple),
    "normalize": dict,
    "classes": (list, tuple),
    "metrics": dict,
    "resize": int,
    "crop_pct": (int, float),
}
# where training scripts keep what was asked of them
OPTIONS = ("args", "opt", "opts", "options", "config", "cfg", "hparams", "hyper_parameters")
PARTS = (*WEIGHTS, *AVERAGED, "optimizer", "lr_scheduler", "scheduler", "scaler")
SAVE = "svitc reads what torch.save wrote: a state_dict, or svitc.save's self-describing file."


@dataclass
class Contents:
    """What a file holds.

    Attributes:
        module: a whole pickled model, or None.
        state: the weights otherwise, names without wrappers' prefixes.
        options: plain values among those that a training script saved beside the weights.
        arch: ``module:factory`` as the file has it, and all else that it says of itself, unchecked.
        notes: what was assumed while reading.
    """

    module: nn.Module | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    arch: str | None = None
    arch_args: Any = None
    input_shape: Any = None
    normalize: Any = None
    classes: Any = None
    metrics: Any = None
    resize: Any = None
    crop_pct: Any = None
    time_steps: int | None = None
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def naming(source: str, yes: bool = True) -> Iterator[None]:
    """Begin the message of an error with the file that is to blame."""
    try:
        yield
    except SvitcError as error:
        if yes:
            error.message = f"{source}: {error.message}"
        raise


def read(path: Path, trust_pickle: bool = False, ema: bool = False) -> tuple[Contents, str]:
    """Read a checkpoint.

    Args:
        trust_pickle: unpickle whatever the file asks for where tensors and plain values do not do.
        ema: take the averaged weights.

    Returns:
        What it holds, and the file's SHA-256.

    Raises:
        InputError: not a file, not a checkpoint, damaged, one that only a pickle can read, or without averaged
            weights where they are asked for.
    """
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist", hint=_neighbours(path))
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
    _look(path, start)
    content = _safetensors(path) if path.suffix == ".safetensors" else _load(path, trust_pickle)
    return _unwrap(content, path.name, ema), digest


def _neighbours(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    near = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".pt", ".pth", ".safetensors"))
    return f"In that folder: {', '.join(near[:5])}." if near else None


def _look(path: Path, start: bytes) -> None:
    """Refuse by the first bytes what torch would answer with a riddle."""
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
        except Exception as error:  # a damaged directory may hold anything
            raise InputError(f"{path} is damaged: {_line(error)}", hint="Copy or download it again.") from error
        if "constants.pkl" in names:
            raise InputError(f"{path} is a TorchScript archive, which keeps no modules", hint=SAVE)
        if "data.pkl" not in names:
            raise InputError(f"{path} is a zip file, but not a PyTorch checkpoint", hint=SAVE)
    elif not start.startswith(b"\x80"):  # the first byte of every pickle that torch writes
        raise InputError(f"{path} is not a PyTorch checkpoint (it begins with {start[:12]!r})", hint=SAVE)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format", "").startswith("svitc-program"):
                raise InputError(f"{path} is a program of svitc, not a checkpoint", hint="Give its folder.")
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error


def _load(path: Path, trust_pickle: bool) -> Any:
    # scripts keep their options beside the weights; a Namespace only holds values
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on a pickle's protocol is not for the user
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not trust_pickle:
                raise _needs_trust(path, str(error)) from error
        except Exception as error:  # whatever damage makes of a zip file and a pickle
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
    found = re.search(r"GLOBAL ([\w.]+\w)", message)
    if found is None:
        text = f"{path} is not a PyTorch checkpoint, or is damaged: it holds a pickle that torch did not write"
        return InputError(text, hint=SAVE)
    part = _part_with(path, found[1])
    if part in OPTIONS:
        return InputError(
            f"{path} is refused for its entry {part!r}, the training script's options: to read it, Python must import"
            f" and call {found[1]}, and svitc reads plain values and an argparse.Namespace of them only",
            hint="Nothing was run. Where the file comes from, save it without that entry: "
            f"del checkpoint[{part!r}]; torch.save(checkpoint, …). Or read it with --trust-pickle, only if you made "
            "the file: unpickling runs any code that its writer put there, with your rights.",
        )
    return InputError(
        f"{path} is more than weights: to read it, Python must import and call {found[1]}",
        hint="Save a state_dict instead (svitc.save). Or read it with --trust-pickle, only if you made the "
        "file: unpickling runs any code that its writer put there, with your rights.",
    )


def _part_with(path: Path, name: str) -> str | None:
    """The entry of a checkpoint in which its pickle names a class, found without unpickling; None if unsure."""
    part = key = None
    try:
        with zipfile.ZipFile(path) as archive:
            inside = next(each for each in archive.namelist() if each.rpartition("/")[2] == "data.pkl")
            for opcode, argument, _ in pickletools.genops(archive.read(inside)):
                if opcode.name in ("BINPUT", "LONG_BINPUT"):
                    continue  # a number for what comes before it
                if key in (*OPTIONS, *PARTS) and opcode.name in ("GLOBAL", "EMPTY_DICT", "BINGET", "LONG_BINGET"):
                    part = key  # a name before a text or a number is not of a part
                if opcode.name == "GLOBAL" and str(argument).replace(" ", ".") == name:
                    return part
                key = argument if opcode.name == "BINUNICODE" else None
    except Exception:  # damaged, or of the old format: the message does without
        return None
    return None


def _line(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "").partition(". This ")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _unwrap(content: Any, name: str, ema: bool) -> Contents:
    """Find weights, and what the file says of itself, in what was loaded."""
    if isinstance(content, nn.Module) and ema:
        raise InputError(f"{name} holds a whole model, and no averaged weights", hint="Leave out --ema.")
    if isinstance(content, nn.Module):
        return Contents(module=content)
    if not isinstance(content, Mapping):
        raise InputError(f"{name} holds a {type(content).__name__}, not a state_dict", hint=SAVE)
    result = Contents()
    where = AVERAGED if ema else WEIGHTS
    inner = next((key for key in where if isinstance(content.get(key), Mapping | nn.Module)), None)
    if inner is not None:
        arch = content.get("arch")
        # training scripts put a bare name there, in their own vocabulary; only module:factory describes
        if isinstance(arch, str) and (":" in arch or arch in KNOWN or "arch_args" in content):
            result.arch, result.arch_args = arch, content.get("arch_args")
        for key, kinds in ABOUT.items():
            # svitc.save's keys must be right; in a script's file the same name may mean something else
            if result.arch is not None or isinstance(content.get(key), kinds):
                setattr(result, key, content.get(key))
        result.time_steps = _time_steps(content.get("args"))
        if not ema and any(str(key).endswith("_ema") for key in content):
            note = f"the weights are {inner!r}; the averaged ones (EMA) in the file are not used (--ema takes them)"
            result.notes.append(note)
        if isinstance(content[inner], nn.Module):
            result.module = content[inner]
            return result
    with naming(name):
        state, result.options = unwrap(content, ema)
    check_tensors(state, name)
    result.state = state
    return result


def _time_steps(args: Any) -> int | None:
    """T from the options that a training script saved beside the weights."""
    values = vars(args) if isinstance(args, argparse.Namespace) else args
    if not isinstance(values, Mapping):
        return None
    found = next((values[name] for name in TIME_NAMES if type(values.get(name)) is int), None)
    return found if found is not None and found > 0 else None
