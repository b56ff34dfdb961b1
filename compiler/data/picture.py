"""How a picture becomes gray or RGB of 8 bits (docs/data.md has what that means for each kind of file).

``predict.py`` beside a compiled file (driver/device_predict.py) reads alike: a test holds them together.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
FORMATS_OF_16_BITS = ("PNG", "PPM")  # whose pixels Pillow may hold in 32 bits
ORIENTATION = 274  # EXIF's tag; 1 is upright, and 0 is written by some for unknown
PASSED_OVER = {
    "alpha": "transparency is passed over: what is transparent has the color that is stored",
    "frames": "of several frames or pages the first is taken",
    "orientation": "the orientation in EXIF is passed over: pictures are taken as they are stored",
}


def opened(content: bytes) -> Image.Image:
    """Open a picture of a format that Pillow decodes itself: for PostScript it would start another program."""
    return Image.open(io.BytesIO(content), formats=FORMATS)


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Return a picture in Pillow's mode ``L`` or ``RGB``.

    Raises:
        ValueError: nothing says which pixel is white.
    """
    return (_in_8_bits(picture) if is_wide(picture) else picture).convert(mode)


def is_wide(picture: Image.Image) -> bool:
    """Tell whether the pixels of a picture have more than 8 bits."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """Return a picture with pixels of 8 bits; Pillow's own conversion would clip larger ones at 255.

    Raises:
        ValueError: nothing says which pixel is white.
    """
    values, white = np.asarray(picture).astype(np.float64), 1.0 if picture.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if picture.mode == "I" and picture.format not in FORMATS_OF_16_BITS:
        raise ValueError("its pixels are integers of 32 bits, and nothing says which is white; save it with 16 or 8")
    if not (low >= 0 and high <= white):
        raise ValueError(f"its pixels go from {low:g} to {high:g}, and are read from 0 to {white:g} only")
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def peculiarities(picture: Image.Image) -> set[str]:
    """Return what of a picture is passed over, as keys of ``PASSED_OVER``."""
    found = set()
    if picture.mode in ALPHA_MODES or "transparency" in picture.info:
        found.add("alpha")
    if getattr(picture, "is_animated", False):
        found.add("frames")
    if picture.getexif().get(ORIENTATION, 1) not in (0, 1):
        found.add("orientation")
    return found


def why_unreadable(error: Exception, content: bytes) -> str:
    """Return in words why a picture cannot be read.

    Args:
        error: what Pillow raised.
        content: the file.
    """
    if not content:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return (
            f"it is none of {', '.join(FORMATS)}, or damaged, or without pixels, or of a kind of pixels that Pillow "
            "does not read, such as three colors of 16 bits in a TIFF"
        )
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, ValueError) and str(error).startswith("its pixels"):  # ours
        return str(error)
    first = error.args[0] if error.args else ""
    text = " ".join((first.decode("ascii", "replace") if isinstance(first, bytes) else str(error)).split())
    known = not text or "truncated" in text.lower()
    return "it ends too early, or is damaged" + ("" if known else f" ({text})")


__all__ = [
    "FORMATS",
    "GRAY_MODES",
    "PASSED_OVER",
    "in_mode",
    "is_wide",
    "opened",
    "peculiarities",
    "why_unreadable",
]
