"""Classify pictures with model.onnx: python predict.py PICTURE... (needs numpy, pillow, onnxruntime; docs/file.md)."""

import json
import sys

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps

TOP, FORMATS = 5, ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # classes that are printed; what is read


def to_input(picture, meta):
    """Return a picture as the file takes it, by its metadata: float32 [1, C, H, W], or uint8 [1, H, W, C]."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):  # in 8 bits; Pillow would clip what is larger
        values, white = np.asarray(picture).astype(np.float64), 1.0 if picture.mode == "F" else 65535.0
        if (picture.mode, picture.format) == ("I", "TIFF") or not 0 <= values.min() <= values.max() <= white:
            raise ValueError(f"its pixels are not from 0 to {white:g}: save it with 8 or 16 bits")
        picture = Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    picture = picture.convert({"RGB": "RGB", "gray": "L"}[meta["image.color"]])
    (height, width), resize, (tall, wide) = meta["image.size"], meta["image.resize"], meta["image.crop"]
    if resize is None:  # cover the input and crop the center
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    else:  # scale the shorter side, 0 to leave it as it is; crop the center
        picture = picture.resize([int((resize or min(picture.size)) * k / min(picture.size)) for k in picture.size], 3)
        left, top = round((picture.width - wide) / 2), round((picture.height - tall) / 2)
        if min(left, top) < 0:
            raise ValueError(f"it is too small to crop {tall}x{wide} from it")
        picture = picture.crop((left, top, left + wide, top + tall)).resize((width, height), 3)
    pixels = np.asarray(picture).reshape(height, width, -1)
    if meta.get("image.dtype") == "uint8":  # the file scales and normalizes by itself
        return pixels[None]
    pixels = pixels.astype(np.float32).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.array(meta[key], np.float32).reshape(-1, 1, 1) for key in ("image.mean", "image.std"))
    return ((pixels - mean) / std)[None]


def main(pictures):
    """Print the most probable classes of each picture."""
    session = InferenceSession(f"{sys.path[0]}/model.onnx")
    meta = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    failed = 0
    for name in pictures:
        try:
            image = to_input(Image.open(name, formats=FORMATS), meta).repeat(meta["batch"] or 1, axis=0)
        except Exception as error:  # of damaged files Pillow raises any
            failed += 1
            print(f"{name}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
            continue
        scores = session.run(None, {"image": image})[0].astype(np.float64)
        scores = (scores.mean(axis=0) if scores.ndim == 3 else scores)[0]  # [T, N, classes] with --per-step
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        names = meta["classes"] or range(len(scores))
        print(name + ": " + ", ".join(f"{names[i]} {shares[i]:.1%}" for i in shares.argsort(kind="stable")[::-1][:TOP]))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
