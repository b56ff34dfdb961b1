"""Labelled images for accuracy and calibration: a folder of class folders, a .zip of one, or an .npz.

Images are decoded batch by batch, so that a data set need not fit into memory.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from svitc.errors import InputError, SvitcError, UsageError
from svitc.program import InputSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = ("train", "test", "val", "valid", "validation")
UNREADABLE = 0.01  # more than this share of unreadable images is an error
MODES = {1: "L", 3: "RGB"}
LAYOUT = "Expected class folders (cat/1.png, dog/2.png), a .zip of them, or an .npz with images and labels."
Read = Callable[[str], bytes]


class _Unreadable(Exception):
    """An image that cannot be decoded."""

    def __init__(self, name: str, cause: Exception) -> None:
        super().__init__(f"{name}: {type(cause).__name__}: {cause}")
        self.name = name


@dataclass
class Dataset:
    """Labelled images in the layout of a program's input.

    Attributes:
        name: the file or folder.
        labels: of every image, int64 ``[N]``.
        classes: names in the order of the model's head, or None where there are only numbers.
        notes: what was assumed, for the user to read.
        unreadable: names of the images that could not be decoded and were skipped, as far as read.
    """

    name: str
    labels: np.ndarray
    input: InputSpec
    classes: list[str] | None
    mean: torch.Tensor
    std: torch.Tensor
    _fetch: Callable[[int], torch.Tensor]
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalised float32 ``[N, C, H, W]`` or ``[T, N, C, H, W]`` with labels ``[N]``, in a fixed order.

        Raises:
            InputError: more than 1% of the images are unreadable.
        """
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size} is not a positive number")
        frames: list[torch.Tensor] = []
        labels: list[int] = []
        for index, label in enumerate(self.labels.tolist()):
            try:
                frame = self._fetch(index)
            except _Unreadable as error:
                self._skip(error)
                continue
            frames.append((frame - self.mean) / self.std)
            labels.append(label)
            if len(frames) == batch_size:
                yield self._stack(frames), torch.tensor(labels)
                frames, labels = [], []
        if frames:
            yield self._stack(frames), torch.tensor(labels)

    def _stack(self, frames: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(frames, dim=self.input.batch_dim)

    def _skip(self, error: _Unreadable) -> None:
        if error.name not in self.unreadable:
            self.unreadable.append(error.name)
        if len(self.unreadable) > UNREADABLE * len(self):
            shown = ", ".join(self.unreadable[:3])
            raise InputError(
                f"{self.name}: more than 1% of its {len(self)} images cannot be read: {shown}",
                hint=f"The last of them: {error}.",
            ) from error


def load_data(
    path: Path | str, input_spec: InputSpec, info: Mapping[str, Any], limit: int | None = None, seed: int = 0
) -> Dataset:
    """Open labelled images.

    Pixels are scaled to [0, 1] and normalised with ``info["normalize"]``, where the model has it. An image
    file of another size than the model's input is scaled to cover it and cropped at its centre, an array is
    scaled. Event frames are only normalised.

    Args:
        path: a folder of class folders or a .zip of one (inside one train/ or test/, say), or an .npz with
            ``images`` ``[N, C, H, W]``, uint8 or float in [0, 1] (event frames ``[N, T, C, H, W]``), and
            ``labels`` ``[N]``.
        info: of the program: ``classes``, ``num_classes`` and ``normalize`` are used.
        limit: take a class-balanced sample of this many. Classes take turns, so that a smaller sample is the
            beginning of a larger one.
        seed: of the sample.

    Raises:
        InputError: not such a file, no images, labels or sizes that do not fit the model.
        UsageError: a limit that is not positive.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no images")
    try:
        if path.is_dir():
            data = _images(
                path.name, _folder(path), lambda name: (path / name).read_bytes(), input_spec, info
            )
        elif not path.is_file():
            raise InputError(f"{path} does not exist", hint=LAYOUT)
        elif path.suffix == ".npz":
            data = _arrays(path, input_spec, info)
        elif zipfile.is_zipfile(path):
            archive = _open(path)
            data = _images(path.name, _members(archive, path), archive.read, input_spec, info)
        else:
            raise InputError(f"{path} is neither a folder, nor a .zip, nor an .npz of images", hint=LAYOUT)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return data if limit is None else _sample(data, limit, seed)


def _folder(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory may hold anything
        raise InputError(f"{path} is damaged: {error}", hint="Copy or download it again.") from error


def _members(archive: zipfile.ZipFile, path: Path) -> list[str]:
    members = [m for m in archive.infolist() if not m.is_dir()]
    if any(m.flag_bits & 1 for m in members):
        raise InputError(f"{path} is encrypted")
    return sorted(m.filename for m in members)


def _images(name: str, files: list[str], read: Read, spec: InputSpec, info: Mapping[str, Any]) -> Dataset:
    """A data set of image files, each named class/…/file below a root that they share."""
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
    kept = [PurePosixPath(f) for f in files if PurePosixPath(f).suffix.lower() in SUFFIXES]
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
    names = [f.as_posix() for f in kept]
    size = (spec.shape[2], spec.shape[1])

    def fetch(index: int) -> torch.Tensor:
        try:
            with Image.open(io.BytesIO(read(names[index]))) as image:
                pixels = image.convert(MODES[channels])
        except Exception as error:  # a damaged file may make a decoder raise anything
            raise _Unreadable(names[index], error) from error
        if pixels.size != size:
            pixels = ImageOps.fit(pixels, size, Image.Resampling.BICUBIC)
        array = torch.from_numpy(np.array(pixels)).reshape(size[1], size[0], channels)
        return array.permute(2, 0, 1).float().div_(255)

    classes = list(info.get("classes") or folders)
    return Dataset(name, labels, spec, classes, *_statistics(info, spec), fetch, notes)


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


def _statistics(info: Mapping[str, Any], spec: InputSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation ``[C, 1, 1]`` of the normalisation; 0 and 1 where the model has none."""
    stated = info.get("normalize") or {"mean": [0.0] * spec.shape[-3], "std": [1.0] * spec.shape[-3]}
    mean, std = (torch.tensor(stated[key], dtype=torch.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    return mean, std


def _arrays(path: Path, spec: InputSpec, info: Mapping[str, Any]) -> Dataset:
    """A data set out of an .npz; only arrays are read, never pickled objects."""
    name = path.name
    try:
        with np.load(path, allow_pickle=False) as file:
            lacking = [key for key in ("images", "labels") if key not in file.files]
            if lacking:
                held = ", ".join(file.files) or "nothing"
                raise InputError(f"{name} has no {' and no '.join(lacking)} (it has {held})", hint=LAYOUT)
            images, labels = file["images"], file["labels"]
    except SvitcError:
        raise
    except Exception as error:  # a damaged archive may hold anything
        raise InputError(f"{name} is not an .npz of plain arrays: {error}", hint=LAYOUT) from error
    _check_labels(name, labels, len(images) if images.ndim else 0, info)
    _check_images(name, images, spec)
    scale = 255 if images.dtype == np.uint8 and not spec.events else 1
    size = spec.shape[-2:]

    def fetch(index: int) -> torch.Tensor:
        image = torch.from_numpy(images[index].astype(np.float32)) / scale
        if image.shape[-2:] != size:
            image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
        return image

    classes = list(info["classes"]) if info.get("classes") else None
    return Dataset(name, labels.astype(np.int64), spec, classes, *_statistics(info, spec), fetch)


def _check_labels(name: str, labels: np.ndarray, images: int, info: Mapping[str, Any]) -> None:
    if labels.ndim != 1 or len(labels) != images or labels.dtype.kind not in "iu":
        have = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(f"{name}: labels are {have}, not {images} whole numbers, one for each image")
    if not images:
        raise InputError(f"{name} holds no images")
    count = info.get("num_classes") or (len(info["classes"]) if info.get("classes") else None)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (count is not None and high >= count):
        head = f"the model's head has classes 0 to {count - 1}" if count else "no class is negative"
        raise InputError(f"{name}: labels go from {low} to {high}, but {head}")


def _check_images(name: str, images: np.ndarray, spec: InputSpec) -> None:
    """Raise InputError for arrays of another layout, number type or range."""
    wanted, letters = ["N", *spec.shape], "[N, T, C, H, W]" if spec.events else "[N, C, H, W]"
    if images.ndim != len(wanted) or images.shape[-3] != spec.shape[-3]:
        channels_last = images.ndim == len(wanted) and images.shape[-1] == spec.shape[-3]
        raise InputError(
            f"{name}: images are {list(images.shape)}, but the model takes {wanted}, {letters}",
            hint="They look like channels-last images: move the last axis forward."
            if channels_last
            else None,
        )
    if spec.events and images.shape[1:] != spec.shape:
        raise InputError(
            f"{name}: event frames are {list(images.shape[1:])}, but the model takes {list(spec.shape)}"
        )
    if images.dtype.kind == "f":
        if not np.isfinite(images).all():
            raise InputError(f"{name}: images hold NaN or infinity")
        low, high = float(images.min()), float(images.max())
        if not spec.events and (low < -1e-6 or high > 1 + 1e-6):
            raise InputError(
                f"{name}: images go from {low:g} to {high:g}, not from 0 to 1",
                hint="Store them as uint8, or as floats in [0, 1] before normalisation.",
            )
    elif images.dtype != np.uint8 and not (spec.events and images.dtype.kind in "iu"):
        raise InputError(f"{name}: images are {images.dtype}; they must be uint8, or floats in [0, 1]")


def _sample(data: Dataset, limit: int, seed: int) -> Dataset:
    """A class-balanced sample: each class is shuffled, then classes take turns."""
    generator = random.Random(seed)
    members = {
        label: np.flatnonzero(data.labels == label).tolist() for label in np.unique(data.labels).tolist()
    }
    for indices in members.values():
        generator.shuffle(indices)
    turns = max(len(indices) for indices in members.values())
    chosen = [indices[turn] for turn in range(turns) for indices in members.values() if turn < len(indices)][
        :limit
    ]
    fetch = data._fetch
    data.labels = data.labels[chosen]
    data._fetch = lambda index: fetch(chosen[index])
    return data
