"""Image files in class folders, or in a .zip of them."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from svitc.data.sources import LAYOUT, Opened, Scaling, Source, Unreadable
from svitc.errors import InputError
from svitc.ir.graph import InputSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = ("train", "test", "val", "valid", "validation")
MODES = {1: "L", 3: "RGB"}
# Bytes of a typical file above which threads decode: in smaller ones (CIFAR's have 1,000) Pillow's own Python,
# which holds the interpreter's lock, takes longer than the decoding, and threads were measured to be slower.
LARGE = 8192
LOOKED_AT = 15  # files whose size says what is typical


class Store(ABC):
    """Files by name; safe to read from in several threads."""

    names: list[str]

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Its content. May raise anything."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Its bytes, or 0 where that cannot be known."""

    def mark(self, name: str) -> bytes:
        """What changes when the file does."""
        return str(self.size(name)).encode()


class Folder(Store):
    """The files below a folder; links to folders are followed. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = sorted(_walk(os.fspath(path), "", frozenset({os.path.realpath(path)})))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def size(self, name: str) -> int:
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return 0


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        listed = list(entries)
    for entry in listed:
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real not in above:  # a link to a folder that it is in
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {real})
        elif entry.is_file():
            yield prefix + entry.name


class Archive(Store):
    """The files in a .zip.

    Raises:
        InputError: damaged or encrypted.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.file = zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory may hold anything
            raise InputError(f"{path} is damaged: {error}", hint="Copy or download it again.") from error
        self.lock = threading.Lock()
        self.members = {m.filename: m for m in self.file.infolist() if not m.is_dir()}
        if any(m.flag_bits & 1 for m in self.members.values()):
            raise InputError(f"{path} is encrypted")
        self.names = sorted(self.members)

    def read(self, name: str) -> bytes:
        # opening and closing count readers without a lock of their own; reading and inflating have one or need none
        with self.lock:
            member = self.file.open(self.members[name])
        try:
            return member.read()
        finally:
            with self.lock:
                member.close()

    def size(self, name: str) -> int:
        return self.members[name].file_size

    def mark(self, name: str) -> bytes:
        return b"%d %d" % (self.members[name].file_size, self.members[name].CRC)


class ImageFiles(Source):
    """Image files, decoded with Pillow."""

    def __init__(self, store: Store, names: list[str], channels: int, scaling: Scaling) -> None:
        self.store, self.names, self.mode, self.scaling = store, names, MODES[channels], scaling
        step = max(1, len(names) // LOOKED_AT)
        sizes = sorted(store.size(name) for name in names[::step])
        self.parallel = sizes[len(sizes) // 2] > LARGE

    def fetch(self, index: int) -> np.ndarray:
        """uint8 ``[H, W]`` or ``[H, W, 3]``."""
        name = self.names[index]
        try:
            with Image.open(io.BytesIO(self.store.read(name))) as image:
                pixels = image.convert(self.mode)
        except Exception as error:  # a damaged file may make a decoder raise anything
            raise Unreadable(name, error) from error
        return np.array(self.scaling.image(pixels, name))

    def collate(self, frames: list[Any]) -> torch.Tensor:
        x = torch.from_numpy(np.stack(frames))
        x = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2)
        return x.contiguous().float().div_(255)

    def mark(self, index: int) -> bytes:
        name = self.names[index]
        return os.fsencode(name) + b"\0" + self.store.mark(name)


def open_files(name: str, store: Store, spec: InputSpec, info: Mapping[str, Any], scaling: Scaling) -> Opened:
    """Image files, each named class/…/file below a root that they share.

    Raises:
        InputError: no images, images outside class folders, classes that do not fit the model.
    """
    if spec.events:
        raise InputError(
            f"{name} holds still images, but the model takes event frames {list(spec.shape)}",
            hint="Give an .npz with images [N, T, C, H, W] and labels.",
        )
    channels = spec.shape[0]
    if channels not in MODES:
        raise InputError(
            f"{name}: image files have 1 or 3 channels, but the model takes {channels}", hint="Give an .npz."
        )
    kept = [PurePosixPath(f) for f in store.names if PurePosixPath(f).suffix.lower() in SUFFIXES]
    kept = [f for f in kept if not any(part.startswith((".", "__MACOSX")) for part in f.parts)]
    if not kept:
        raise InputError(f"{name} holds no images", hint=LAYOUT)
    root = _root(name, kept)
    loose = [f for f in kept if len(f.parts) <= root + 1]
    if loose:
        raise InputError(f"{name}: image {loose[0]} is in no class folder", hint=LAYOUT)
    folders = sorted({f.parts[root] for f in kept})
    order, notes = _order(name, folders, info)
    labels = np.array([order[f.parts[root]] for f in kept], dtype=np.int64)
    source = ImageFiles(store, [f.as_posix() for f in kept], channels, scaling)
    notes += [scaling.note] if scaling.note else []
    return Opened(source, labels, list(info.get("classes") or folders), notes)


def _root(name: str, files: list[PurePosixPath]) -> int:
    """How many leading folders all files share before their class folders: ``test/``, say."""
    depth = 0
    while True:
        firsts = {f.parts[depth] for f in files if len(f.parts) > depth + 1}
        splits = sorted(firsts & set(SPLITS))
        if len(firsts) > 1 and len(splits) == len(firsts):
            raise InputError(
                f"{name} holds {' and '.join(splits)}",
                hint="Give the folder of one of them, or a .zip of it.",
            )
        # a lone folder with folders inside is a root; with images inside it is a class
        if len(firsts) != 1 or not all(len(f.parts) > depth + 2 for f in files):
            return depth
        depth += 1


def _order(name: str, folders: list[str], info: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Class folder -> index in the model's head."""
    classes, count = info.get("classes"), info.get("num_classes")
    if classes:
        unknown = [folder for folder in folders if folder not in classes]
        if unknown:
            close = get_close_matches(unknown[0], classes, 1)
            raise InputError(
                f"{name}: folder {unknown[0]} is none of the model's {len(classes)} classes",
                hint=f"The closest is {close[0]}." if close else f"They are {', '.join(classes[:10])}.",
            )
        return {folder: classes.index(folder) for folder in folders}, []
    if count is not None and len(folders) != count:
        raise InputError(
            f"{name} has {len(folders)} class folders, but the model's head has {count} classes",
            hint="Names in the checkpoint (classes) would tell which is which.",
        )
    note = "class folders are taken in the order of their names, as the model does not name its classes"
    return {folder: index for index, folder in enumerate(folders)}, [note]
