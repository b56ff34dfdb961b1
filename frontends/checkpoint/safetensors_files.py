"""Reading of safetensors files, and of checkpoints that are split into shards, with or without an index."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from svitc.errors import InputError
from svitc.support.names import shortened

INDEX = ".index.json"  # ending of the file that says which shard holds which tensor
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.\w+)")
MAX_NAMES = 3  # that a message lists


def is_safetensors(start: bytes, size: int) -> bool:
    """Tell by its first bytes whether a file of ``size`` bytes is one, whatever its name: a JSON header comes first."""
    return len(start) > 8 and start[8:9] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= size - 8


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        InputError: it is damaged, or a program of svitc.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format", "").startswith("svitc-program"):
                raise InputError(f"{path} is a program of svitc, not a checkpoint", hint="Give its folder.")
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error


def shards_of(path: Path) -> list[Path] | None:
    """Return all shards of a checkpoint, in order, from its index or any one of them; None for a file that is whole.

    Raises:
        InputError: shards are missing, or the index is none.
    """
    if path.name.endswith(INDEX):
        return _indexed(path)
    match = SHARD.fullmatch(path.name)
    if match is None:
        return None
    digits, count = len(match["count"]), int(match["count"])
    if not 1 < count < 10_000:
        return None
    names = [f"{match['stem']}-{i:0{digits}}-of-{match['count']}{match['suffix']}" for i in range(1, count + 1)]
    _check_present(path, path.parent, names, f"is shard {int(match['number'])} of {count} of a checkpoint")
    return [path.parent / name for name in names]


def _indexed(path: Path) -> list[Path]:
    """Return the shards that an index names, which must lie beside it."""
    try:
        index = json.loads(path.read_bytes())
        names = sorted(set(index["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is not an index of shards: it has no weight_map",
            hint="Give the checkpoint itself, or merge the shards into one file.",
        ) from error
    if not names:
        raise InputError(
            f"{path} names no shards: its weight_map is empty",
            hint="Give one of the shards, beside which all others lie, or merge the shards into one file.",
        )
    strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if strange:
        raise InputError(f"{path} names {strange[0]!r}, which is not a file beside it")
    if path.name in names:
        raise InputError(f"{path} names itself as a shard", hint="Give one of the shards, or a file that is whole.")
    _check_present(path, path.parent, names, f"is the index of {len(names)} shards")
    return [path.parent / name for name in names]


def _check_present(path: Path, folder: Path, names: list[str], what: str) -> None:
    missing = [name for name in names if not os.path.isfile(folder / name)]  # which a name too long is not, either
    if missing:
        more = f", … {len(missing) - MAX_NAMES} more" if len(missing) > MAX_NAMES else ""
        raise InputError(
            f"{path} {what}, and {len(missing)} of them {'is' if len(missing) == 1 else 'are'} not beside it "
            f"({', '.join(shortened(name) for name in missing[:MAX_NAMES])}{more})",
            hint="Put all shards into one folder and give any of them; or merge the shards into one file.",
        )


def merge_shards(shards: list[Path], read: Callable[[Path], object]) -> dict[str, object]:
    """Read shards into one state dict.

    Raises:
        InputError: a shard is not a state dict, or two shards hold the same name.
    """
    state: dict[str, object] = {}
    for shard in shards:
        part = read(shard)
        if not isinstance(part, dict):
            raise InputError(f"{shard} holds a {type(part).__name__}, not a part of a state_dict")
        twice = state.keys() & part.keys()
        if twice:
            raise InputError(f"{shard} holds {min(map(str, twice))}, which another shard holds, too")
        state |= part
    return state
