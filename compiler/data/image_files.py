"""Image files, in class folders or without labels."""

from __future__ import annotations

import io
import os
from collections import Counter
from difflib import get_close_matches
from pathlib import PurePosixPath

import numpy as np
import torch
from PIL import Image

from svitc.data.file_stores import FileStore
from svitc.data.sources import EXPECTED_LAYOUT, OpenedSource, Scaling, Source, UnreadableImage, without_labels
from svitc.errors import InputError
from svitc.ir.graph import InputSpec
from svitc.support.types import JsonMapping

SPLITS = ("train", "test", "val", "valid", "validation")
PILLOW_MODES = {1: "L", 3: "RGB"}  # by number of channels
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
# Size of a typical file above which threads decode. For smaller files (CIFAR's have 1,000 bytes) Pillow's own Python
# code, which holds the interpreter's lock, takes longer than the decoding, and threads were measured to be slower.
PARALLEL_FILE_BYTES = 8192
SAMPLED_FILES = 15  # which are taken as typical
EXAMPLES = 3  # names of folders and classes that a note shows


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
                pixels = in_8_bits(image).convert(self.mode)
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

    def notes(self) -> list[str]:
        """Return how the images differ from what the model takes, as far as a few of them tell."""
        modes: Counter[bool] = Counter()
        wide = 0
        sizes: Counter[tuple[int, int]] = Counter()
        for name in self.names[:: -(-len(self.names) // SAMPLED_FILES)]:
            try:
                with Image.open(io.BytesIO(self.store.read(name))) as image:  # reads the header only
                    modes[image.mode in GRAY_MODES] += 1
                    wide += is_wide(image)
                    sizes[image.height, image.width] += 1
            except Exception:  # told where the images are read
                continue
        notes, gray_model = [], self.mode == "L"
        count, others = modes.total(), modes[not gray_model]
        if others and 2 * others >= count:  # a few gray photographs are in every large data set
            images = "images" if others == count else f"{others} of {count} images looked at"
            if gray_model:
                notes.append(f"{images} are in color, but the model takes gray: only their brightness is used")
            else:
                notes.append(f"{images} are gray, but the model takes color: all three channels get the same values")
        if wide:
            notes.append("pixels of 16 bits, and real ones from 0 to 1, are rounded to 8 bits")
        height, width = self.scaling.size
        del sizes[height, width]
        if sizes and self.scaling.default:
            (tall, wide), _ = sizes.most_common(1)[0]
            notes.append(f"images of {tall}x{wide} are scaled to cover {height}x{width} and cropped at their center")
        return notes


def is_wide(image: Image.Image) -> bool:
    """Tell whether the pixels of an image have more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def in_8_bits(image: Image.Image) -> Image.Image:
    """Return an image with pixels of 8 bits; Pillow's own conversion would clip larger ones at 255.

    Raises:
        ValueError: nothing says which pixel is white.
    """
    if not is_wide(image):
        return image
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if image.mode == "I" and image.format != "PNG":  # of a PNG, older versions of Pillow read 16 bits so
        raise ValueError("its pixels are integers of 32 bits, and nothing says which is white; save it with 16 or 8")
    if not (low >= 0 and high <= white):
        raise ValueError(f"its pixels go from {low:g} to {high:g}, and are read from 0 to {white:g} only")
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def open_files(
    name: str, store: FileStore, spec: InputSpec, info: JsonMapping, scaling: Scaling, unlabeled: bool = False
) -> OpenedSource:
    """Open image files, with labels where they are named class/…/file below a common root.

    Args:
        name: What messages call the store.
        unlabeled: Whether to take folders for no classes.

    Raises:
        InputError: There are no images, some images lie outside class folders, or some folders are no classes.
    """
    if spec.events:
        arrays = [file for file in store.names if file.endswith((".npz", ".npy"))]
        if arrays and not store.images():
            raise InputError(
                f"{name} holds {len(arrays)} arrays ({arrays[0]}, …), such as SpikingJelly writes event frames, and "
                "svitc reads one .npz",
                hint="Put them into one: images [N, T, C, H, W], labels [N] and perhaps classes; numpy.savez(path, …).",
            )
        raise InputError(
            f"{name} holds still images, but the model takes event frames {list(spec.shape)}",
            hint="Give an .npz with images [N, T, C, H, W] and labels.",
        )
    channels = spec.shape[0]
    if channels not in PILLOW_MODES:
        raise InputError(
            f"{name}: image files have 1 or 3 channels, but the model takes {channels}", hint="Give an .npz."
        )
    files = store.images()
    if not files:
        raise InputError(f"{name} holds no images", hint=EXPECTED_LAYOUT)
    source = ImageFiles(store, files, channels, scaling)
    notes = [*source.notes(), *([scaling.note] if scaling.note else [])]
    if unlabeled or not store.has_folders:
        return without_labels(source, len(files), info, notes)
    paths = [PurePosixPath(file) for file in files]
    root = _root_depth(name, paths)
    folders = sorted({path.parts[root] for path in paths if len(path.parts) > root + 1})
    if not folders:
        return without_labels(source, len(files), info, notes)
    loose = [path for path in paths if len(path.parts) <= root + 1]
    if loose:
        raise InputError(
            f"{name}: image {loose[0]} is in no class folder, but others are",
            hint="Put it into one, or use all images without labels: --unlabeled.",
        )
    reason = _why_no_classes(name, folders, info)
    if reason:
        return without_labels(source, len(files), info, [*notes, f"{reason}: its images are used without labels"])
    class_of, remarks = _class_of_folder(name, folders, info)
    labels = np.array([class_of[path.parts[root]] for path in paths], dtype=np.int64)
    return OpenedSource(source, labels, list(info.get("classes") or folders), remarks + notes)


def _root_depth(name: str, files: list[PurePosixPath]) -> int:
    """Return the number of folders, such as ``test/``, that all files share above their class folders."""
    depth = 0
    while True:
        firsts = {f.parts[depth] for f in files if len(f.parts) > depth + 1}
        splits = sorted(firsts & set(SPLITS))
        if len(firsts) > 1 and len(splits) == len(firsts):
            raise InputError(
                f"{name} holds {' and '.join(splits)}",
                hint="Give the folder of one of them, or a .zip of it; or use all without labels: --unlabeled.",
            )
        # a lone folder with folders inside is a root; with images inside it is a class
        if len(firsts) != 1 or not all(len(f.parts) > depth + 2 for f in files):
            return depth
        depth += 1


def _why_no_classes(name: str, folders: list[str], info: JsonMapping) -> str | None:
    """Return why folders can not be classes of the model; None where they are, or some of them."""
    classes, count = info.get("classes"), info.get("num_classes")
    if classes:
        if any(folder in classes for folder in folders):
            return None
        return f"no folder of {name} ({_some(folders)}) is named like a class of the model ({_some(classes)})"
    if count is None or len(folders) == count:
        return None
    folders_text = "1 folder" if len(folders) == 1 else f"{len(folders)} folders"
    return f"{name} has {folders_text} of images, but the model's head has {count} classes"


def _some(names: list[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (", …" if len(names) > EXAMPLES else "")


def _class_of_folder(name: str, folders: list[str], info: JsonMapping) -> tuple[dict[str, int], list[str]]:
    """Return the class of each folder, an index into the model's head, and notes for the user."""
    classes = info.get("classes")
    if classes:
        unknown = [folder for folder in folders if folder not in classes]
        if unknown:
            close = get_close_matches(unknown[0], classes, 1)
            way_out = f"The closest is {close[0]}." if close else f"They are {', '.join(classes[:10])}."
            raise InputError(
                f"{name}: folder {unknown[0]} is none of the model's {len(classes)} classes, but others are",
                hint=f"{way_out} To use all images without labels, give --unlabeled.",
            )
        return {folder: classes.index(folder) for folder in folders}, []
    note = "class folders are taken in the order of their names, as the model does not name its classes"
    return {folder: index for index, folder in enumerate(folders)}, [note]
