"""Where image files and recordings lie: in a folder, in a .zip, or wherever a list says."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from svitc.errors import InputError
from svitc.support.limits import check_claim
from svitc.support.names import shortened

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class FileStore(ABC):
    """Files by name, which several threads may read at once.

    Attributes:
        names: Paths of all files below the store's root, with ``/`` between their parts, sorted.
        has_folders: Whether folders may stand for classes.
    """

    names: list[str]
    has_folders = True

    def images(self) -> list[str]:
        """Return the names of the image files, without hidden ones."""
        return self.having(SUFFIXES)

    def having(self, suffixes: Sequence[str]) -> list[str]:
        """Return the names of the files that end with one of these suffixes, without hidden ones."""
        paths = [path for name in self.names if (path := PurePosixPath(name)).suffix.lower() in suffixes]
        return [path.as_posix() for path in paths if not any(p.startswith((".", "__MACOSX")) for p in path.parts)]

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's content. May raise any exception."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return a file's size in bytes, or 0 where it cannot be read."""

    def fingerprint(self, name: str) -> bytes:
        """Return bytes that change when the file's content does, as far as that is cheap to see."""
        return str(self.size(name)).encode()

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """Give the path of a file with this content, and with this suffix, for libraries that open files themselves."""
        with tempfile.NamedTemporaryFile(prefix="svitc-data-", suffix=PurePosixPath(name).suffix) as file:
            file.write(self.read(name))
            file.flush()
            yield Path(file.name)


class FilesOnDisk(FileStore):
    """Files below a folder.

    Attributes:
        path: The folder.
    """

    path: Path

    def read(self, name: str) -> bytes:
        check_claim(self.size(name), name)
        return (self.path / name).read_bytes()

    def size(self, name: str) -> int:
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return 0

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        yield self.path / name


class Folder(FilesOnDisk):
    """All files below a folder; links to folders are followed.

    Raises:
        OSError: A folder cannot be listed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = sorted(_walk(os.fspath(path), "", frozenset({os.path.realpath(path)})))


class OneFile(FilesOnDisk):
    """A single file."""

    has_folders = False

    def __init__(self, path: Path) -> None:
        self.path, self.names = path.parent, [path.name]


def _walk(folder: str, prefix: str, ancestors: frozenset[str]) -> Iterator[str]:
    """Yield the path of each file below a folder, after ``prefix``; ``ancestors`` are resolved folders above."""
    with os.scandir(folder) as iterator:
        entries = list(iterator)
    for entry in entries:
        if os.path.isdir(entry.path):  # not entry.is_dir(), which raises for a link to itself
            real = os.path.realpath(entry.path)
            if real not in ancestors:  # a link to one of them would never end
                yield from _walk(entry.path, f"{prefix}{entry.name}/", ancestors | {real})
        elif os.path.isfile(entry.path):
            yield prefix + entry.name


def is_zip(path: Path) -> bool:
    """Tell whether a file is a .zip. Raises InputError for one that is in pieces, or whose end is missing."""
    try:
        if zipfile.is_zipfile(path):
            return True
        with path.open("rb") as file:
            reason = "its end is missing" if file.read(4) == b"PK\x03\x04" else None
    except zipfile.BadZipFile as error:  # zipfiles that span multiple disks
        reason = str(error)
    if reason is not None:
        raise InputError(
            f"{path} is damaged: {reason}, after {path.stat().st_size:,} bytes", hint="Copy or download it again."
        )
    return False


class Archive(FileStore):
    """The files in a .zip.

    Raises:
        InputError: The file is damaged or encrypted.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.file = zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory may raise any exception
            raise InputError(f"{path} is damaged: {error}", hint="Copy or download it again.") from error
        self.lock = threading.Lock()
        self.members = {m.filename: m for m in self.file.infolist() if not m.is_dir()}
        if any(m.flag_bits & 1 for m in self.members.values()):
            raise InputError(f"{path} is encrypted")
        self.names = sorted(self.members)

    def read(self, name: str) -> bytes:
        entry = self.members[name]
        check_claim(entry.file_size, name)
        if stat.S_ISLNK(entry.external_attr >> 16):  # its content is the path of another file
            raise OSError("it is a symbolic link in a .zip, which is not followed")
        # zipfile locks reads itself, but not the count of open members, which opening and closing change
        with self.lock:
            member = self.file.open(self.members[name])
        try:
            return member.read()
        finally:
            with self.lock:
                member.close()

    def size(self, name: str) -> int:
        return self.members[name].file_size

    def fingerprint(self, name: str) -> bytes:
        return b"%d %d" % (self.members[name].file_size, self.members[name].CRC)


class FileList(FilesOnDisk):
    """The files that a text file lists, one in a line, relative to its own folder; ``#`` starts a comment line.

    Attributes:
        names: The lines, in their order.

    Raises:
        OSError: The list cannot be read.
        InputError: A file in it does not exist.
    """

    has_folders = False

    def __init__(self, path: Path) -> None:
        self.path = path.parent
        self.names = []
        # bytes that are no UTF-8 survive, as file names may hold any
        lines = path.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
        for number, line in enumerate(lines, 1):
            name = line.strip()
            if not name or name.startswith("#"):
                continue
            if not os.path.isfile(self.path / name):  # which a name too long is not, either
                raise _missing(path.name, number, name, self.path)
            self.names.append(name)

    def images(self) -> list[str]:
        """Return the listed names, whatever they end with."""
        return self.names

    def having(self, suffixes: Sequence[str]) -> list[str]:
        """Return the names that end with one of these suffixes, in folders of any name."""
        return [name for name in self.names if PurePosixPath(name).suffix.lower() in suffixes]


def _missing(list_name: str, number: int, name: str, folder: Path) -> InputError:
    """Return the error for a line that names no file."""
    shown = shortened(name.encode("utf-8", "replace").decode())
    if os.path.isdir(folder / name):
        return InputError(
            f"{list_name}, line {number}: {shown} is a folder", hint="A list has one image file in a line."
        )
    words = name.rsplit(maxsplit=1)
    if len(words) == 2 and os.path.isfile(folder / words[0]):
        return InputError(
            f"{list_name}, line {number}: there is no file {shown}",
            hint="A list has no labels: leave out what follows the names. Class folders or an .npz have labels.",
        )
    return InputError(
        f"{list_name}, line {number}: there is no file {shown}", hint=f"Names are relative to {folder.resolve()}."
    )
