"""Images without labels: any folder, .zip, list of files or .npz, and what tells them from images with labels."""

from __future__ import annotations

import io
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from svitc.data import file_stores
from svitc.data.arrays import Arrays
from svitc.data.dataset import Reading, load_data, sample, split, unlabeled_dataset
from svitc.data.picture import PASSED_OVER
from svitc.data.sources import Scaling
from svitc.errors import InputError
from svitc.ir.graph import InputSpec

SPEC = InputSpec((3, 8, 8))
NAMES = {"classes": ["dog", "cat", "eel"], "num_classes": 3}
COUNT = {"num_classes": 3}


def png(value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """Return an image of (height, width) whose every pixel is ``value``."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=["folder", "zip"])
def store(request, tmp_path):
    """Writes files by name and gives the path of the folder or .zip."""

    def write(contents: dict[str, bytes]):
        if request.param == "zip":
            with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
                for name, data in contents.items():
                    archive.writestr(name, data)
            return tmp_path / "data.zip"
        return put(tmp_path / "data", contents)

    return write


def put(folder, contents: dict[str, bytes]):
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def values(data) -> list[int]:
    """Return the pixel value of each image."""
    xs, ys = zip(*data.batches(4), strict=True)
    assert not data.labeled and set(torch.cat(ys).tolist()) == set(data.labels.tolist()) == {-1}
    return (torch.cat(xs)[:, 0, 0, 0] * 255).round().int().tolist()


def frames(count: int = 6, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{i:02}.png": png(i) for i in range(count)}


@pytest.mark.parametrize("info", [NAMES, COUNT, {}])
def test_a_flat_folder(store, info):
    data = load_data(store(frames() | {"notes.txt": b"x", ".hidden.png": b"x"}), SPEC, info)
    assert values(data) == list(range(6))
    assert (data.classes, data.notes, data.unreadable) == (info.get("classes"), [], [])


@pytest.mark.parametrize(
    ("contents", "info", "note"),
    [
        (
            {f"{name}/0.png": png(i) for i, name in enumerate(("a", "b", "c", "d"))},
            NAMES,
            r"no folder of data(.zip)? \(a, b, c, …\) is named like a class of the model \(dog, cat, eel\): "
            "its images are used without labels",
        ),
        (
            frames(4, "cam/day1/"),
            NAMES,
            r"no folder of data(.zip)? \(day1\) is named like a class of the model \(dog, cat, eel\)",
        ),
        (frames(2, "a/") | frames(2, "b/x/y/"), COUNT, "has 2 folders of images, but the model's head has 3 classes"),
        (frames(4, "a/"), COUNT, "has 1 folder of images, but the model's head has 3 classes: its images are used wi"),
    ],
)
def test_folders_that_are_no_classes(store, contents, info, note):
    data = load_data(store(contents), SPEC, info)
    assert len(values(data)) == 4
    assert len(data.notes) == 1
    assert re.search(note, data.notes[0])


def test_class_folders_still_mean_labels(store):
    contents = {f"{name}/0.png": png(i) for i, name in enumerate(("cat", "dog", "eel"))}
    path = store(contents)
    for info, labels in ((NAMES, [1, 0, 2]), (COUNT, [0, 1, 2])):
        assert load_data(path, SPEC, info).labeled and load_data(path, SPEC, info).labels.tolist() == labels
        ignored = load_data(path, SPEC, info, reading=Reading(unlabeled=True))
        assert values(ignored) == [0, 1, 2] and ignored.notes == []
        assert ignored.fingerprint() != load_data(path, SPEC, info).fingerprint()


def test_all_images_may_be_used_wherever_they_lie(store):
    path = store(frames(2) | {"cat/0.png": png(7), "train/1.png": png(8), "test/cat/2.png": png(9)})
    assert sorted(values(load_data(path, SPEC, NAMES, reading=Reading(unlabeled=True)))) == [0, 1, 7, 8, 9]


def test_a_sample_is_seeded_and_the_beginning_of_a_larger_one(store):
    path = store(frames(40))
    chosen = values(load_data(path, SPEC, NAMES, limit=20))
    assert len(set(chosen)) == 20 and chosen != sorted(chosen)
    assert values(load_data(path, SPEC, NAMES, limit=7)) == chosen[:7]
    assert values(load_data(path, SPEC, NAMES, limit=20, seed=1)) != chosen
    data = load_data(path, SPEC, NAMES)
    assert values(sample(data, 7)) == chosen[:7]
    held, rest = split(data, 9)
    assert sorted(values(held) + values(rest)) == list(range(40)) and len(held) == 9


def test_a_few_unreadable_images_are_skipped_and_many_are_an_error(store):
    contents = {f"{i:03}.png": png(1) for i in range(199)}
    data = load_data(store(contents | {"bad.png": png(1)[:40]}), SPEC, NAMES)
    assert len(values(data)) == 199 and data.unreadable == ["bad.png"]
    path = store(contents | {"000.png": b"", "001.png": b"", "bad.png": b""})
    with pytest.raises(InputError, match="more than 1% of its 200 images cannot be read: 000.png, 001.png, bad.png"):
        values(load_data(path, SPEC, NAMES))


# lists of files


def test_a_list_of_files_in_its_order(tmp_path):
    put(tmp_path / "pics", {"b.png": png(1), "sub/a.PNG": png(2), "c": png(3), "ä ö.jpg": png(4)})
    put(tmp_path, {"above.png": png(5)})
    listed = ["b.png", "# a comment", "", "  sub/a.PNG  ", "c", "ä ö.jpg", "../above.png", str(tmp_path / "above.png")]
    path = tmp_path / "pics/list.txt"
    path.write_text("\ufeff" + "\r\n".join(listed), encoding="utf-8")
    for info in (NAMES, COUNT):
        data = load_data(path, SPEC, info)
        assert values(data) == [1, 2, 3, 4, 5, 5] and data.notes == [] and data.name == "list.txt"
    assert len(values(load_data(path, SPEC, NAMES, limit=3))) == 3


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("missing.png", "list.txt, line 3: there is no file missing.png\n  Names are relative to /"),
        ("a.png 7", "list.txt, line 3: there is no file a.png 7\n  A list has no labels"),
        ("sub", "list.txt, line 3: sub is a folder"),
    ],
)
def test_a_list_with_a_line_that_is_no_file(tmp_path, line, text):
    put(tmp_path, {"a.png": png(0), "sub/b.png": png(0), "list.txt": f"# first\na.png\n{line}\n".encode()})
    with pytest.raises(InputError, match=text):
        load_data(tmp_path / "list.txt", SPEC, NAMES)


def test_a_list_with_a_file_that_is_no_image(tmp_path):
    put(tmp_path, {"a.png": png(0), "b.png": b"text", "list.txt": b"a.png\nb.png\n"})
    with pytest.raises(InputError, match="more than 1% of its 2 images cannot be read: b.png"):
        values(load_data(tmp_path / "list.txt", SPEC, NAMES))


def test_a_list_of_stills_for_an_event_model(tmp_path):
    put(tmp_path, {"a.png": png(0), "list.txt": b"a.png\n"})
    with pytest.raises(InputError, match="holds still images, but the model takes event frames"):
        load_data(tmp_path / "list.txt", InputSpec((4, 2, 8, 8)), NAMES)


# arrays


def test_arrays_without_labels(tmp_path):
    images = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None], (6, 3, 8, 8))
    np.savez(tmp_path / "a.npz", images=images)
    data = load_data(tmp_path / "a.npz", SPEC, NAMES)
    assert values(data) == list(range(6)) and (data.notes, data.classes) == ([], NAMES["classes"])
    np.savez(tmp_path / "b.npz", images=images, targets=np.zeros(6))
    note = "b.npz has no array labels (it has images and targets): its images are used without labels"
    assert load_data(tmp_path / "b.npz", SPEC, NAMES).notes == [note]
    np.savez(tmp_path / "c.npz", images=images, labels=np.arange(6) % 3)
    labeled, ignored = (load_data(tmp_path / "c.npz", SPEC, NAMES, reading=Reading(unlabeled=u)) for u in (False, True))
    assert values(ignored) == list(range(6)) and ignored.notes == [] and labeled.labeled
    assert len({d.fingerprint() for d in (data, labeled, ignored)}) == 2  # without labels the images alone count


def test_event_frames_without_labels(tmp_path):
    events = np.random.default_rng(0).integers(0, 9, (5, 4, 2, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "e.npz", images=events)
    data = load_data(tmp_path / "e.npz", InputSpec((4, 2, 6, 6)), {})
    x, y = next(data.batches(3))
    assert torch.equal(x, torch.from_numpy(events[:3]).float().transpose(0, 1)) and y.tolist() == [-1] * 3


def test_images_in_memory():
    images = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    source = Arrays("made", images, SPEC, Scaling((8, 8)))
    info = NAMES | {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    data = unlabeled_dataset("made", source, 5, SPEC, info, ["images are made"])
    x, y = next(data.batches(5))
    assert torch.allclose(x, (torch.from_numpy(images) - 0.5) / 0.25) and y.tolist() == [-1] * 5
    assert (data.name, data.notes, data.labeled, len(data)) == ("made", ["images are made"], False, 5)


# images of another kind


@pytest.mark.parametrize(
    ("modes", "channels", "notes"),
    [
        (["L"] * 4, 3, ["images are gray, but the model takes color: all three channels get the same values"]),
        (["RGB"] * 4, 1, ["images are in color, but the model takes gray: only their brightness is used"]),
        (
            ["L", "1", "LA", "RGB"],
            3,
            [
                "3 of 4 images looked at are gray, but the model takes color: all three channels get the same values",
                f"{PASSED_OVER['alpha']} (1 of 4 images looked at)",
            ],
        ),
        (["L", "RGB", "P", "RGBA"], 3, [f"{PASSED_OVER['alpha']} (1 of 4 images looked at)"]),
        (["L"] * 4, 1, []),
    ],
)
def test_gray_for_color_and_color_for_gray_are_told(store, modes, channels, notes):
    contents = {f"{i}.png": png(i, mode=mode) for i, mode in enumerate(modes)}
    data = load_data(store(contents), InputSpec((channels, 8, 8)), NAMES)
    assert data.notes == notes
    assert len(values(data)) == len(modes)


def test_another_size_is_told(store, tmp_path):
    contents = {f"{i}.png": png(0, size=(48, 64) if i % 3 else (8, 8)) for i in range(9)}
    note = "images of 48x64 are scaled to cover 8x8 and cropped at their center"
    assert load_data(store(contents), SPEC, NAMES).notes == [note]
    assert (
        load_data(store(contents), SPEC, NAMES, reading=Reading(resize=9)).notes[0].startswith("images are scaled to 9")
    )
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3, 5, 6), dtype=np.uint8))
    assert load_data(tmp_path / "a.npz", SPEC, NAMES).notes == ["images of 5x6 are scaled to 8x8"]


def test_only_a_few_files_are_looked_at(store, monkeypatch):
    read = []
    for kind in (file_stores.Folder, file_stores.Archive):
        original = kind.read
        monkeypatch.setattr(
            kind, "read", lambda self, name, original=original: read.append(name) or original(self, name)
        )
    load_data(store(frames(99)), SPEC, NAMES)
    assert 10 <= len(read) <= 15
