"""Hostile images: arrays whose headers lie, damaged and unusual image files, archives with links and bombs."""

from __future__ import annotations

import functools
import io
import random
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from campaign.cases import Kind, Made
from campaign.mutations import BYTES
from svitc.data.dataset import load_data
from svitc.ir.graph import InputSpec

SPEC = InputSpec((3, 16, 16))
INFO = {"num_classes": 4}
ARRAYS = r"d\.npz(: images|: labels| is not an \.npz of plain arrays| claims .* memory| has no images| holds no images)"
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MODES = {
    "PNG": ("RGB", "L", "P", "LA", "RGBA", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "CMYK", "F", "I;16"),
}
HEADERS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 3, 16, 16), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 3, 60000, 60000), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (4, 3, 16, 16), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (-4, 3, 16, 16), }",
    "{'descr': '<c16', 'fortran_order': False, 'shape': (1, 3, 16, 16), }",
    "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (4,), }",
    "{'descr': '<U9', 'fortran_order': False, 'shape': (4, 3, 16, 16), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 3, 16, 16), }",
    "__import__('campaign_canary')",
    "{'descr': '|u1'" + "(" * 5000,
)


def _npz(arrays: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in arrays.items():
            file.writestr(name, data)
    return buffer.getvalue()


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + data


@functools.cache
def _good() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    images, labels = io.BytesIO(), io.BytesIO()
    np.save(images, rng.integers(0, 256, (8, 3, 16, 16), dtype=np.uint8))
    np.save(labels, np.arange(8) % 4)
    return {"images.npy": images.getvalue(), "labels.npy": labels.getvalue()}


@functools.cache
def _bomb() -> bytes:
    """An array of 300 MiB of zeros, in an archive of 300 KiB."""
    shape = (300 << 20) // (3 * 16 * 16)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape}, 3, 16, 16), }}"
    return _npz({"images.npy": _npy(header, bytes(shape * 3 * 16 * 16))}, zipfile.ZIP_DEFLATED)


def _arrays(rng: random.Random, folder: Path) -> Made:
    path = folder / "d.npz"
    way = rng.choice(
        ("bytes", "bytes", "header", "header", "values", "bomb")
        if rng.random() < 0.3
        else ("bytes", "header", "values")
    )
    files = dict(_good())
    if way == "bomb":
        path.write_bytes(_bomb())
        return Made("arrays: bomb", path, r"d\.npz claims 314\.\d+ MB of memory.*--max-memory", must_fail=True)
    if way == "bytes" and rng.random() < 0.5:
        name = rng.choice(list(files))
        files[name] = BYTES[rng.choice(list(BYTES))](rng, files[name])
    elif way == "bytes":
        path.write_bytes(BYTES[rng.choice(list(BYTES))](rng, _npz(files)))
        return Made("arrays: bytes", path, ARRAYS)
    elif way == "header":
        files[rng.choice(list(files))] = _npy(rng.choice(HEADERS), bytes(rng.choice((0, 100, 10_000))))
    else:
        odd = (
            np.full((8, 3, 16, 16), np.nan),
            np.full((8, 3, 16, 16), 7.0),
            np.zeros((8, 16, 16, 3)),
            np.array(["a"] * 8),
        )
        odd += (np.arange(8) - 4, np.arange(8) * 10**12, np.zeros((8, 3, 16, 16), dtype=bool), np.zeros((8, 3, 1, 1)))
        buffer = io.BytesIO()
        np.save(buffer, rng.choice(odd))
        files[rng.choice(list(files))] = buffer.getvalue()
    path.write_bytes(_npz(files, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))))
    words = {"header": rf"{ARRAYS}|d\.npz has no images", "values": r"d\.npz: (images|labels)"}
    return Made(f"arrays: {way}", path, words.get(way, ARRAYS))


def _image(rng: random.Random, kind: str) -> bytes:
    """An image file of any mode that its format has."""
    mode = rng.choice(MODES.get(kind, ("RGB", "L")))
    size = (rng.choice((1, 16, 40)), rng.choice((1, 16, 40)))
    image = Image.new(mode, size, 1) if mode in ("F", "I;16", "1") else Image.new(mode, size)
    buffer = io.BytesIO()
    more = (
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"} if kind == "JPEG" else {}
    )
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def _vast(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


NONE = {  # files that are no images -> what is said of them
    b"": "the file is empty",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "it is none of PNG",
    b"GIF89a": "it is none of PNG|it ends too early",
    b"<svg/>": "it is none of PNG",
}
VAST = {(10_000, 10_000): r"claims 400\.\d+ MB of memory", (60_000, 60_000): "claims more than .* pixels"}
VAST |= {(2**31 - 1, 2**31 - 1): "claims more than .* pixels", (0, 5): "without pixels"}
BROKEN = r"it is none of PNG|it ends too early|pixels|header|claims .* memory|the file is empty"
LINES = {  # lines of a list -> what is said of them
    "# x": None,
    "\0": r"list\.txt, line 4: there is no file",
    "../" * 40: r"list\.txt, line 4: .* is a folder",
    "x" * 5000: r"list\.txt, line 4: there is no file x+…",
    "d": r"list\.txt, line 4: d is a folder",
}
STRANGE = ("../../outside/x.png", "/etc/x.png", "a\\b.png", "\1.png", "x" * 3000 + ".png")  # names in archives
OUTSIDE_CLASSES = r"is in no class folder|is none of the model's|holds .* and"


def _images(rng: random.Random, folder: Path) -> Made:
    """A folder, an archive or a list of images, one of which is damaged, vast, unusual, a link or none."""
    way = rng.choice(("bytes", "bytes", "bytes", "vast", "link", "none", "unusual"))
    files = {f"{i}.{kind.lower()}": _image(rng, kind) for i, kind in enumerate(rng.choices(FORMATS, k=3))}
    name, words = rng.choice(list(files)), ""
    if way == "bytes":
        files[name], words = BYTES[rng.choice(list(BYTES))](rng, files[name]), rf"{name}.*({BROKEN})"
    elif way == "vast":
        size = rng.choice(list(VAST))
        files["v.png"], words = _vast(*size), rf"v\.png.*({VAST[size]})"
    elif way == "none":
        files[name] = rng.choice(list(NONE))
        words = rf"{name}: ({NONE[files[name]]})"
    target = rng.choice((_image_folder, _image_archive, _image_list))
    change, path, words, must_fail = target(rng, folder, files, way, words)
    return Made(f"{change}: {way}", path, words, must_fail=must_fail or way == "vast", must_pass=way == "unusual")


Target = tuple[str, Path, str, bool]


def _image_folder(rng: random.Random, folder: Path, files: dict[str, bytes], way: str, words: str) -> Target:
    (folder / "d").mkdir()
    for name, data in files.items():
        (folder / "d" / name).write_bytes(data)
    if way == "link":  # which is no file, or leads to a folder that is not walked again
        (folder / "d" / "l.png").symlink_to(rng.choice(("/dev/zero", "nowhere", "l.png", ".")))
    return "image folder", folder / "d", words, way == "none"


def _image_list(rng: random.Random, folder: Path, files: dict[str, bytes], way: str, words: str) -> Target:
    _image_folder(rng, folder, files, way, words)
    lines = [f"d/{name}" for name in files] + (["d/l.png"] if way == "link" else [])
    if way == "link":
        words = r"list\.txt, line 4: (there is no file d/l\.png|d/l\.png is a folder)"
    if way == "none":
        line = rng.choice(list(LINES))
        lines, words = [*lines, line], LINES[line] or words
    (folder / "list.txt").write_text("\n".join(lines))
    return "list", folder / "list.txt", words, way in ("link", "none")


def _image_archive(rng: random.Random, folder: Path, files: dict[str, bytes], way: str, words: str) -> Target:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
        if way == "link":
            info, words = zipfile.ZipInfo("l.png"), r"l\.png: it is a symbolic link in a \.zip"
            info.external_attr = 0o120777 << 16
            file.writestr(info, rng.choice(("../outside/secret", "/dev/zero")))
        if way == "none":
            name, words = rng.choice(STRANGE), f"{words}|{OUTSIDE_CLASSES}|it is none of PNG"
            file.writestr(name, b"x")
    data = buffer.getvalue()
    if way == "bytes" and rng.random() < 0.5:
        data = BYTES[rng.choice(list(BYTES))](rng, data)
        words += rf"|d\.zip (is damaged|is encrypted|holds no|is neither a folder)|{OUTSIDE_CLASSES}"
        words += r"|cannot be read|claims .* memory"  # of any of them, where the directory is damaged
    (folder / "d.zip").write_bytes(data)
    return "image archive", folder / "d.zip", words, way in ("link", "none")


def read(path: Path) -> None:
    """Read all images as a sweep does."""
    data = load_data(path, SPEC, INFO)
    data.fingerprint()
    for x, _ in data.batches(4):
        assert x.shape[1:] == SPEC.shape


KINDS = (
    Kind("arrays", _arrays, read, statuses=frozenset({3}), share=2),
    Kind("images", _images, read, statuses=frozenset({3}), share=2),
)
