"""What is said about images before a model is loaded, and about a normalization that cannot be theirs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from svitc.data.dataset import load_data
from svitc.data.first_look import check_source, check_stored_labels
from svitc.errors import InputError, SvitcError
from svitc.ir.graph import InputSpec

IMAGES = np.repeat(np.linspace(0, 255, 3 * 8 * 8).reshape(1, 3, 8, 8).astype(np.uint8), 6, axis=0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none", "none does not exist"),
        ("none.npz", "none.npz does not exist"),
        ("empty", "empty is an empty folder"),
        ("mine.py:loader", "names a factory in .*mine.py, which does not exist"),
    ],
)
def test_sources_that_are_not_there(tmp_path, name, text):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SvitcError, match=text):
        check_source(tmp_path / name)


def test_sources_that_may_be_there(tmp_path):
    (tmp_path / "mine.py").write_text("")
    for source in (tmp_path, Path(f"{tmp_path}/mine.py:loader"), Path("package.module:loader")):
        check_source(source)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.arange(5), r"labels are int64 \[5\], not 6 whole numbers"),
        (np.arange(6) + 0.5, r"labels are float64 \[6\]"),
        (np.eye(6), r"val.npz has one-hot labels \[6, 6\]"),
        (np.arange(6) - 1, "labels go from -1 to 4, but no class is negative"),
        (np.arange(6), None),
    ],
)
def test_labels_are_checked_without_the_images(tmp_path, labels, text):
    file = tmp_path / "val.npz"
    np.savez(file, images=IMAGES, labels=labels)
    if text is None:
        check_stored_labels(file)
        return
    with pytest.raises(InputError, match=text):
        check_stored_labels(file)


def test_labels_beyond_the_head_are_refused_before_the_images_are_read(tmp_path):
    file = tmp_path / "val.npz"
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 64, 64), np.uint8)
    np.savez(file, images=images, labels=np.arange(6))
    data = bytearray(file.read_bytes())
    data[data.index(images.tobytes()[-64:])] ^= 1  # whoever reads the images finds a wrong checksum
    file.write_bytes(data)
    with pytest.raises(InputError, match="labels go from 0 to 5, but the model's head has classes 0 to 4"):
        load_data(file, InputSpec((3, 8, 8)), {"num_classes": 5})
    with pytest.raises(InputError, match="is not an .npz of plain arrays"):
        load_data(file, InputSpec((3, 8, 8)), {"num_classes": 6})


def test_what_is_no_archive_of_arrays_is_left_to_what_reads_it(tmp_path):
    for name, data in (("torn.npz", b"PK\x03\x04 and then nothing"), ("text.txt", b"")):
        (tmp_path / name).write_bytes(data)
        check_stored_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (125.0, 60.0, r"a normalized image goes from -2.08 to -2.07: .*mean 125, 125, 125 .*\(divide them by 255\)"),
        (-3.0, 0.2, "a normalized image goes from 15 to 20: mean -3, -3, -3 and .* are not those of pixels in"),
        (0.5, 60.0, "a normalized image goes from -0.00833 to 0.00833: "),
        (0.485, 0.229, None),
        (0.0, 1.0, None),
    ],
)
def test_a_normalization_that_cannot_be_that_of_the_pixels(tmp_path, mean, std, text):
    file = tmp_path / "val.npz"
    np.savez(file, images=IMAGES, labels=np.arange(6))
    info = {"num_classes": 6, "normalize": {"mean": [mean] * 3, "std": [std] * 3}}
    notes = load_data(file, InputSpec((3, 8, 8)), info).notes
    assert len(notes) == (text is not None)
    if text is not None:
        assert re.search(text, notes[0])
