"""Image files in class folders, or in a .zip of class folders."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from svitc.data.sources import EXPECTED_LAYOUT, LabeledSource, Scaling, Source, UnreadableImage
from svitc.errors import InputError
from svitc.ir.graph import InputSpec
from svitc.support.types import JsonMapping

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = ("train", "test", "val", "valid", "validation")
PILLOW_MODES = {1: "L", 3: "RGB"}  # by number of channels
# Size of a typical file above which threads decode. For smaller files (CIFAR's have 1,000 bytes) Pillow's own Python
# code, which holds the interpreter's lock, takes longer than the decoding, and threads were measured to be slower.
PARALLEL_FILE_BYTES = 8192
SAMPLED_FILES = 15  # whose median size is taken as typical


class FileStore(ABC):
    """Files by name, which several threads may read at once.

    Attributes:
        names: Paths of all files below the store's root, with ``/`` between their parts, sorted.
    """

    names: list[str]

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's content. May raise any exception."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return a file's size in bytes, or 0 where it cannot be read."""

    def fingerprint(self, name: str) -> bytes:
        """Return bytes that change when the file's content does, as far as that is cheap to see."""
        return str(self.size(name)).encode()


class Folder(FileStore):
    """The files below a folder; links to folders are followed.

    Raises:
        OSError: A folder cannot be listed.
    """

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


def _walk(folder: str, prefix: str, ancestors: frozenset[str]) -> Iterator[str]:
    """Yield the path of each file below a folder, after ``prefix``; ``ancestors`` are resolved folders above."""
    with os.scandir(folder) as iterator:
        entries = list(iterator)
    for entry in entries:
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real not in ancestors:  # a link to one of them would never end
                yield from _walk(entry.path, f"{prefix}{entry.name}/", ancestors | {real})
        elif entry.is_file():
            yield prefix + entry.name


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


class ImageFiles(Source):
    """Image files, decoded with Pillow.

    Args:
        store: Holds the files.
        names: The images, names in ``store``.
        channels: Of the model's input, 1 (gray) or 3 (RGB).
        scaling: How images come to the size of the model's input.
    """

    def __init__(self, store: FileStore, names: list[str], channels: int, scaling: Scaling) -> None:
        self.store, self.names, self.mode, self.scaling = store, names, PILLOW_MODES[channels], scaling
        step = max(1, len(names) // SAMPLED_FILES)
        sizes = sorted(store.size(name) for name in names[::step])
        self.parallel = sizes[len(sizes) // 2] > PARALLEL_FILE_BYTES

    def fetch(self, index: int) -> np.ndarray:
        """Return uint8 ``[H, W]`` or ``[H, W, 3]``. Raises UnreadableImage."""
        name = self.names[index]
        try:
            with Image.open(io.BytesIO(self.store.read(name))) as image:
                pixels = image.convert(self.mode)
        except Exception as error:  # a damaged file may make a decoder raise any exception
            raise UnreadableImage(name, error) from error
        return np.array(self.scaling.image(pixels, name))

    def collate(self, frames: list[np.ndarray]) -> torch.Tensor:
        x = torch.from_numpy(np.stack(frames))
        x = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2)
        return x.contiguous().float().div_(255)

    def fingerprint(self, index: int) -> bytes:
        name = self.names[index]
        return os.fsencode(name) + b"\0" + self.store.fingerprint(name)


def open_files(name: str, store: FileStore, spec: InputSpec, info: JsonMapping, scaling: Scaling) -> LabeledSource:
    """Open image files that are named class/…/file below a common root.

    Args:
        name: What messages call the store.

    Raises:
        InputError: There are no images, images lie outside class folders, or classes do not fit the model.
    """
    if spec.events:
        raise InputError(
            f"{name} holds still images, but the model takes event frames {list(spec.shape)}",
            hint="Give an .npz with images [N, T, C, H, W] and labels.",
        )
    channels = spec.shape[0]
    if channels not in PILLOW_MODES:
        raise InputError(
            f"{name}: image files have 1 or 3 channels, but the model takes {channels}", hint="Give an .npz."
        )
    files = [PurePosixPath(f) for f in store.names if PurePosixPath(f).suffix.lower() in SUFFIXES]
    files = [f for f in files if not any(part.startswith((".", "__MACOSX")) for part in f.parts)]
    if not files:
        raise InputError(f"{name} holds no images", hint=EXPECTED_LAYOUT)
    root = _root_depth(name, files)
    loose = [f for f in files if len(f.parts) <= root + 1]
    if loose:
        raise InputError(f"{name}: image {loose[0]} is in no class folder", hint=EXPECTED_LAYOUT)
    folders = sorted({f.parts[root] for f in files})
    class_of, notes = _class_of_folder(name, folders, info)
    labels = np.array([class_of[f.parts[root]] for f in files], dtype=np.int64)
    source = ImageFiles(store, [f.as_posix() for f in files], channels, scaling)
    notes += [scaling.note] if scaling.note else []
    return LabeledSource(source, labels, list(info.get("classes") or folders), notes)


def _root_depth(name: str, files: list[PurePosixPath]) -> int:
    """Return the number of folders, such as ``test/``, that all files share above their class folders."""
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


def _class_of_folder(name: str, folders: list[str], info: JsonMapping) -> tuple[dict[str, int], list[str]]:
    """Return the class of each folder, an index into the model's head, and notes for the user."""
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
