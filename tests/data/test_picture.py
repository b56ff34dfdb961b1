"""What each kind of picture becomes, as docs/data.md says, in predict.py as well; what cannot be read says why."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svitc.data.dataset import Reading, load_data
from svitc.data.picture import FORMATS
from svitc.driver.device_predict import FORMATS as PREDICT_FORMATS
from svitc.driver.device_predict import to_input
from svitc.errors import InputError
from svitc.ir.graph import InputSpec
from svitc.support.limits import set_max_memory

SIDE = 16
RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
GRAY = RGB.convert("L")
WIDE = Image.fromarray((np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 257).astype(np.uint16))
TURNED = Image.Exif()
TURNED[274] = 6


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def two_frames(kind: str) -> bytes:
    second = RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return encoded(RGB, kind, save_all=True, append_images=[second], lossless=True)


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data do not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def inverted(picture: Image.Image) -> Image.Image:
    return Image.fromarray(255 - np.asarray(picture))


# name -> content, what it is read as (uint8, RGB or gray), and what a note says
READ = {
    "16.png": (encoded(WIDE, "PNG"), np.arange(256, dtype=np.uint8).reshape(SIDE, SIDE), "rounded to 8 bits"),
    "16.pgm": (
        b"P5 16 16 65535\n" + np.asarray(WIDE).astype(">u2").tobytes(),
        np.arange(256, dtype=np.uint8).reshape(SIDE, SIDE),
        "rounded to 8 bits",
    ),
    "12.png": (encoded(Image.fromarray(np.asarray(WIDE) // 16), "PNG"), None, "if they have 12 bits"),
    "float.tif": (encoded(Image.fromarray(np.asarray(GRAY, np.float32) / 255), "TIFF"), np.asarray(GRAY), "rounded"),
    "cmyk.tif": (encoded(RGB.convert("CMYK"), "TIFF"), np.asarray(RGB), ""),
    "palette.png": (encoded(RGB.quantize(8), "PNG"), np.asarray(RGB.quantize(8).convert("RGB")), ""),
    "hole.png": (
        encoded(RGB.quantize(8), "PNG", transparency=bytes(range(8))),
        np.asarray(RGB.quantize(8).convert("RGB")),
        "transparency",
    ),
    "alpha.png": (encoded(Image.merge("RGBA", (*RGB.split(), GRAY)), "PNG"), np.asarray(RGB), "transparency"),
    "la.png": (encoded(Image.merge("LA", (GRAY, inverted(GRAY))), "PNG"), np.asarray(GRAY), "transparency"),
    "bits.png": (encoded(GRAY.convert("1"), "PNG"), np.asarray(GRAY.convert("1")) * np.uint8(255), ""),
    "turned.png": (encoded(RGB, "PNG", exif=TURNED), np.asarray(RGB), "orientation in EXIF"),
    "moving.png": (two_frames("PNG"), np.asarray(RGB), "of several frames"),
    "pages.tif": (two_frames("TIFF"), np.asarray(RGB), "of several frames"),
    "moving.webp": (two_frames("WEBP"), np.asarray(RGB), "of several frames"),
    "really_a_bmp.jpg": (encoded(RGB, "BMP"), np.asarray(RGB), ""),
}
UNREADABLE = {
    "half.jpg": (encoded(RGB.resize((99, 99)), "JPEG")[:2000], "it ends too early, or is damaged"),
    "half.png": (encoded(RGB, "PNG")[:300], "it ends too early, or is damaged"),
    "token.ppm": (b"P6 " + b"1" * 40, "it ends too early, or is damaged (Token too long"),
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"no picture", "none of PNG, JPEG"),
    "none.png": (png(0, 0), "or without pixels"),
    "vast.png": (png(10**5, 10**5), "claims more than 178,956,970 pixels"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of PNG, JPEG"),
    "nan.tif": (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "pixels go from nan to nan"),
    "int.tif": (encoded(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"), "nothing says which is white"),
}


def read(folder: Path, channels: int):
    """The first image as uint8, and the notes."""
    data = load_data(folder, InputSpec((channels, SIDE, SIDE)), {}, reading=Reading(unlabeled=True))
    x = next(data.batches(1))[0]
    return (x[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8), data.notes, x.numpy()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", READ)
def test_pictures_are_read_as_the_documents_say_and_by_predict_alike(name, tmp_path):
    content, expected, note = READ[name]
    (tmp_path / name).write_bytes(content)
    meta = {"image.size": [SIDE, SIDE], "image.resize": None, "image.crop": [SIDE, SIDE]}
    for channels, color in ((3, "RGB"), (1, "gray")):
        pixels, notes, x = read(tmp_path, channels)
        if expected is not None:
            picture = Image.fromarray(expected).convert({"RGB": "RGB", "gray": "L"}[color])
            np.testing.assert_array_equal(pixels, np.asarray(picture).reshape(SIDE, SIDE, channels))
        assert not note or any(note in each for each in notes)
        meta |= {"image.color": color, "image.mean": [0.0] * channels, "image.std": [1.0] * channels}
        np.testing.assert_array_equal(to_input(Image.open(tmp_path / name, formats=PREDICT_FORMATS), meta), x)
    assert PREDICT_FORMATS == FORMATS


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_says_why_and_names_the_file(name, tmp_path):
    content, words = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read(tmp_path, 3)
    assert f"{name}: " in error.value.hint and words in error.value.hint


def test_a_header_that_claims_more_than_the_limit_of_memory_is_refused(tmp_path):
    (tmp_path / "vast.png").write_bytes(png(9000, 9000))
    set_max_memory(10**8)
    try:
        with pytest.raises(InputError, match=r"vast.png claims .* more than the limit"):
            read(tmp_path, 3)
    finally:
        set_max_memory(None)


def test_links_are_followed_in_folders_and_not_in_archives(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.png").write_bytes(encoded(RGB, "PNG"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.png").symlink_to(tmp_path / "kept" / "a.png")
    (tmp_path / "data" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    np.testing.assert_array_equal(read(tmp_path / "data", 3)[0], np.asarray(RGB))
    link = zipfile.ZipInfo("b.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError) as error:
        read(tmp_path / "data.zip", 3)
    assert "symbolic link in a .zip" in error.value.hint


def test_pictures_of_kinds_that_are_not_read_are_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(RGB, "PNG"))
    (tmp_path / "b.heic").write_bytes(b"")
    assert any("1 files such as b.heic are passed over" in note for note in read(tmp_path, 3)[1])


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_arrays_without_a_pixel_are_refused(tmp_path, kind):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 3, 0, 0), kind))
    with pytest.raises(InputError, match=r"images are \[4, 3, 0, 0\], without a pixel"):
        load_data(tmp_path / "a.npz", InputSpec((3, SIDE, SIDE)), {})


def test_labels_beyond_any_class_are_refused_where_the_model_has_no_number_of_them(tmp_path):
    labels = np.full(4, 2**64 - 1, np.uint64)
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 3, SIDE, SIDE), np.uint8), labels=labels)
    with pytest.raises(InputError, match="labels go from 18446744073709551615"):
        load_data(tmp_path / "a.npz", InputSpec((3, SIDE, SIDE)), {})
