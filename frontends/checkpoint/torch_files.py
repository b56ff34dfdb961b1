"""Safe reading of what torch.save wrote: only tensors and plain values, unless the user trusts the file."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from svitc.errors import InputError
from svitc.frontends.checkpoint.pickle_protocol import (
    UnknownInstruction,
    archive_as_protocol_2,
    legacy_as_protocol_2,
    protocol_of,
)
from svitc.support.limits import check_claim
from svitc.support.user_code import importable

SAVE = "svitc reads what torch.save wrote: a state_dict, or svitc.save's self-describing file."
# entries in which training scripts save their options
OPTIONS = ("args", "opt", "opts", "options", "config", "cfg", "hparams", "hyper_parameters")
CHUNK_BYTES = 1 << 20
ZIP = b"PK\x03\x04"
TRUST = (
    "Or read it with --trust-pickle, only if you made the file: unpickling runs any code that its writer put there, "
    "with your rights."
)


class Unread:
    """An object of a class that is not imported; what the file says of it is kept apart, and nothing is run."""

    parts: list[object]

    def __new__(cls, *arguments: object) -> Unread:
        unread = super().__new__(cls)
        unread.parts = [*arguments]
        return unread

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        self.parts.append(state)


class ndarray(Unread):
    """An array of numpy, such as the state of its random numbers; its numbers are not read."""


class _NumpyType:
    """A type of numpy in a pickle, such as ``f8``."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = str(code)

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and flags."""


def _numpy_number(kind: object, data: object = b"") -> object:
    """Return a number that a training script saved as a numpy scalar, or None for any other."""
    if not isinstance(kind, _NumpyType) or not re.fullmatch(r"[fiub]\d", kind.code) or not isinstance(data, bytes):
        return None
    with contextlib.suppress(ValueError, TypeError):
        return np.frombuffer(data, kind.code)[0].item()
    return None


def _path(*parts: object) -> str:
    return "/".join(map(str, parts))


# plain values that training scripts save beside the weights; none of these runs anything
_PLAIN_VALUES = [
    argparse.Namespace,
    *((_numpy_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((lambda *_: ndarray(), f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (ndarray, "numpy.ndarray"),
    (_NumpyType, "numpy.dtype"),
    *((_path, f"pathlib.{kind}") for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    (str, "torch.torch_version.TorchVersion"),
]


def check_archive(path: Path, start: bytes) -> None:
    """Refuse, by its first bytes, a file on which torch.load fails with an unclear message."""
    if start.startswith(ZIP):
        if not _is_zip(path):
            raise InputError(
                f"{path} is truncated: its end is missing, after {path.stat().st_size:,} bytes",
                hint="Copy or download it again.",
            )
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                check_claim(sum(entry.file_size for entry in entries), path)
                names = [entry.filename.rpartition("/")[2] for entry in entries]
                damaged = next((entry.filename for entry in entries if not _is_intact(archive, entry)), None)
        except InputError:
            raise
        except Exception as error:  # zipfile raises many kinds of errors on a damaged directory
            raise InputError(f"{path} is damaged: {_line(error)}", hint="Copy or download it again.") from error
        if damaged is not None:
            raise InputError(
                f"{path} is damaged: the checksum of {damaged} in it is wrong", hint="Copy or download it again."
            )
        if "constants.pkl" in names:
            raise InputError(f"{path} is a TorchScript archive, which has no torch modules", hint=SAVE)
        if "data.pkl" not in names:
            raise InputError(f"{path} is a zip file, but not a PyTorch checkpoint", hint=SAVE)
    elif not start.startswith(b"\x80"):  # the first byte of every pickle that torch writes
        raise InputError(f"{path} is not a PyTorch checkpoint (it begins with {start[:12]!r})", hint=SAVE)


def _is_zip(path: Path) -> bool:
    """Tell whether a file ends as a .zip does that is in one piece."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of an archive that says it is in several
        return False


def _is_intact(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Tell whether an entry has its checksum; torch.load does not look, so a flipped bit would pass as a weight."""
    if not entry.CRC:  # not computed: torch.serialization.set_crc32_options(False)
        return True
    with contextlib.suppress(zipfile.BadZipFile), archive.open(entry) as stream:
        while stream.read(CHUNK_BYTES):  # compares the checksum at the end
            pass
        return True
    return False


def load(path: Path, trust_pickle: bool) -> object:
    """Read what torch.save wrote, in any pickle protocol, safely unless the user trusts the file.

    Raises:
        InputError: the file is damaged, or needs unpickling and is not trusted.
    """
    try:
        with _in_protocol_2(path) as file:
            return _load_safely(file)
    except (pickle.UnpicklingError, UnknownInstruction) as error:
        if not trust_pickle:
            raise _needs_trust(path, error) from error
    except Exception as error:  # a damaged file may raise anything
        text = f"{path} cannot be read as a PyTorch checkpoint: {_line(error)}"
        raise InputError(text, hint=SAVE) from error
    try:
        with importable(Path.cwd()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings on versions of classes do not help the user
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the pickle may run anything, and so raise anything
        raise InputError(
            f"{path} cannot be unpickled: {_line(error)}",
            hint="Run svitc in the folder of the model's code, or save a state_dict and give --arch.",
        ) from error


def _load_safely(file: BinaryIO) -> object:
    with torch.serialization.safe_globals(_PLAIN_VALUES), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.simplefilter("ignore")  # torch's warnings on the pickle protocol do not help the user
        return torch.load(file, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _in_protocol_2(path: Path) -> Iterator[BinaryIO]:
    """Open a checkpoint, rewritten in memory where its pickle has another protocol than 2."""
    with path.open("rb") as file:
        protocol = _protocol(path)
        if protocol == 2:
            yield file
        elif _is_zip(path):
            yield archive_as_protocol_2(file)
        else:
            yield legacy_as_protocol_2(file)


def _protocol(path: Path) -> int:
    """Return the protocol of a checkpoint's pickle; 2 where the file is too damaged to tell."""
    if not _is_zip(path):
        with path.open("rb") as file:
            return protocol_of(file.read(2))
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_pickle_name(archive)) as pickled:
            return protocol_of(pickled.read(2))
    except Exception:  # damaged: torch.load says how
        return 2


def _pickle_name(archive: zipfile.ZipFile) -> str:
    return next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")


def _needs_trust(path: Path, error: Exception) -> InputError:
    """Return the error for a file that only unpickling can read, from the error of safe reading."""
    match = re.search(r"GLOBAL ([\w.]+\w)", str(error))
    if match is None:
        return _unreadable(path)
    name = match[1]
    entry = _entry_with(path, name)
    if entry in OPTIONS:
        return InputError(
            f"{path} is refused for its entry {entry!r}, the training script's options: to read it, Python must import"
            f" and call {name}, and svitc reads plain values and an argparse.Namespace of them only",
            hint="Nothing was run. In the training script, save the file without that entry: "
            f"del checkpoint[{entry!r}]; torch.save(checkpoint, …). {TRUST}",
        )
    where = "" if entry is None else f", in its entry {entry!r}"
    return InputError(
        f"{path} is more than weights: to read it{where}, Python must import and call {name}",
        hint=f"Save a state_dict instead (svitc.save). {TRUST}",
    )


def _unreadable(path: Path) -> InputError:
    """Return the error for a file whose instructions the safe unpickler does not have."""
    protocol = _protocol(path)
    if _is_zip(path) and protocol != 2:
        return InputError(
            f"{path} has pickle protocol {protocol}, with instructions that cannot be read safely",
            hint=f"Save it again, without the argument pickle_protocol: torch.save(checkpoint, …). {TRUST}",
        )
    text = f"{path} is not a PyTorch checkpoint, or is damaged: it holds a pickle that torch did not write"
    return InputError(text, hint=SAVE)


def _entry_with(path: Path, name: str) -> str | None:
    """Return the entry of a checkpoint that names a class, found without importing anything; None if unsure."""
    try:
        with _in_protocol_2(path) as file:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)  # type: ignore[arg-type]
            file.seek(0)
            kinds = {item: type(item, (Unread,), {}) for item in unknown}
            with torch.serialization.safe_globals([(kind, item) for item, kind in kinds.items()]):  # type: ignore
                content = _load_safely(file)
    except Exception:  # damaged, or of the old format: the message does not name the entry
        return None
    match = [key for key, kind in kinds.items() if key == name or key == f"builtins.{name}"]
    if not match or not isinstance(content, Mapping):
        return None
    keys = (key for key, value in content.items() if isinstance(key, str) and _holds(value, kinds[match[0]]))
    return next(keys, None)


def _holds(value: object, kind: type) -> bool:
    """Tell whether a value is the class, or an object of it, or holds one."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if value is kind or isinstance(value, kind):
            return True
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, Unread):
            value = value.parts
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
    return False


def _line(error: BaseException) -> str:
    """Return the class of an error and the first sentence of its message."""
    text = next(iter(str(error).splitlines()), "").partition(". This ")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
