"""Images with labels and without: folders, zips, lists and arrays, and what is wrong with them."""

from __future__ import annotations

import io
import struct
import zipfile
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from svitc.data.dataset import Reading, load_data, split
from svitc.errors import InputError, SvitcError, UsageError
from svitc.ir.graph import InputSpec

SPEC = InputSpec((3, 8, 8))
IMAGES = np.zeros((4, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0])
NAMES = {"classes": ["dog", "cat", "eel"], "num_classes": 3}  # not in the order of the alphabet


def pixels(seed: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, size)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def files(count: int = 2, prefix: str = "") -> dict[str, bytes]:
    """``count`` images each of cat, dog and eel; cat's are 0, 1, …, dog's follow."""
    names = [f"{prefix}{name}/{i}.png" for name in ("cat", "dog", "eel") for i in range(count)]
    return {name: png(index) for index, name in enumerate(names)}


@pytest.fixture
def folder(tmp_path):
    def folder(contents: dict[str, bytes]):
        for name, data in contents.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (tmp_path / "data").mkdir(exist_ok=True)
        return tmp_path / "data"

    return folder


@pytest.fixture
def zipped(tmp_path):
    def zipped(contents: dict[str, bytes]):
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
        return tmp_path / "data.zip"

    return zipped


@pytest.fixture
def npz(tmp_path):
    def npz(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return npz


def everything(data) -> tuple[torch.Tensor, list[int]]:
    xs, ys = zip(*data.batches(4), strict=True)
    return torch.cat(xs, data.input.batch_dim), torch.cat(ys).tolist()


def expected(seed: int) -> torch.Tensor:
    return torch.from_numpy(pixels(seed)).permute(2, 0, 1).float() / 255


# what is read


@pytest.mark.parametrize("prefix", ["", "test/", "cifar/test/"])
@pytest.mark.parametrize("kind", ["folder", "zipped"])
def test_class_folders_in_the_order_of_the_head(request, kind, prefix):
    junk = {f"{prefix}notes.txt": b"x", "__MACOSX/._cat/0.png": b"x", f"{prefix}cat/.thumb.png": b"x"}
    data = load_data(request.getfixturevalue(kind)(files(2, prefix) | junk), SPEC, NAMES)
    x, y = everything(data)
    assert y == [1, 1, 0, 0, 2, 2]
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.stack([expected(i) for i in range(6)]))
    assert (len(data), data.classes, data.notes, data.unreadable) == (6, NAMES["classes"], [], [])


def test_batches_are_full_until_the_last(folder):
    data = load_data(folder(files(2)), SPEC, NAMES)
    assert [len(y) for _, y in data.batches(4)] == [4, 2]
    assert [len(y) for _, y in data.batches(4)] == [4, 2]  # and again
    with pytest.raises(UsageError, match="batch size 0"):
        next(data.batches(0))


def test_pixels_are_normalised(folder):
    info = {**NAMES, "normalize": {"mean": [0.5, 0.25, 0], "std": [0.5, 2, 1]}}
    x, _ = everything(load_data(folder(files(1)), SPEC, info))
    mean, std = (torch.tensor(info["normalize"][key]).reshape(3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(x[0], (expected(0) - mean) / std)


def test_names_in_their_order_where_the_model_has_none(folder):
    data = load_data(folder(files(1)), SPEC, {"num_classes": 3})
    assert (data.classes, everything(data)[1]) == (["cat", "dog", "eel"], [0, 1, 2])
    assert "order of their names" in data.notes[0]


def test_one_class_is_enough_where_names_tell(folder):
    only = {name: data for name, data in files(2).items() if name.startswith("eel")}
    assert everything(load_data(folder(only), SPEC, NAMES))[1] == [2, 2]


def test_images_of_another_size_are_scaled_and_cropped(folder):
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 255  # the middle third is what a square crop keeps
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    x, _ = everything(load_data(folder({"cat/wide.png": buffer.getvalue()}), SPEC, NAMES))
    assert x.shape == (1, 3, 8, 8)
    assert x[..., 1:7].min() > 0.95


def test_grey_models_get_grey_images_and_palettes_are_resolved(folder):
    x, _ = everything(load_data(folder({"cat/a.png": png(0)}), InputSpec((1, 8, 8)), NAMES))
    grey = np.array(Image.fromarray(pixels(0)).convert("L"))
    assert torch.equal(x[0, 0], torch.from_numpy(grey).float() / 255)
    x, _ = everything(load_data(folder({"cat/a.png": png(0, mode="L")}), SPEC, NAMES))
    assert torch.equal(x[0, 0], x[0, 2])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_arrays(npz, dtype):
    images = np.stack([pixels(i) for i in range(5)]).transpose(0, 3, 1, 2)
    stored = images if dtype is np.uint8 else (images / 255).astype(dtype)
    x, y = everything(load_data(npz(images=stored, labels=np.array([2, 1, 0, 0, 1])), SPEC, NAMES))
    assert torch.allclose(x, torch.from_numpy(images).float() / 255, atol=1e-7)
    assert y == [2, 1, 0, 0, 1]


def test_arrays_of_another_size_are_scaled(npz):
    images = np.ones((2, 3, 5, 5), dtype=np.float32)
    x, _ = everything(load_data(npz(images=images, labels=np.array([0, 1])), SPEC, NAMES))
    assert torch.allclose(x, torch.ones(2, 3, 8, 8))


def test_event_frames_keep_their_counts_and_put_time_first(npz):
    events = np.random.default_rng(0).integers(0, 9, (5, 4, 2, 6, 6), dtype=np.uint8)
    data = load_data(npz(images=events, labels=np.arange(5) % 3), InputSpec((4, 2, 6, 6)), {})
    x, _ = next(data.batches(3))
    assert torch.equal(x, torch.from_numpy(events[:3]).float().transpose(0, 1))


# samples


def test_a_sample_is_balanced_seeded_and_grows_from_its_beginning(folder):
    contents = {f"{name}/{i:02}.png": png(0) for name in ("cat", "dog") for i in range(20)}
    contents["eel/0.png"] = png(1)
    path = folder(contents)

    def sample(limit, seed=0):
        data = load_data(path, SPEC, NAMES, limit=limit, seed=seed)
        assert len(everything(data)[1]) == len(data)
        return data

    assert np.bincount(sample(6).labels).tolist() == [3, 2, 1]  # there is one eel
    assert len(sample(41)) == 41
    assert everything(sample(7))[1] == everything(sample(12))[1][:7]
    with pytest.raises(UsageError, match="--limit 0"):
        sample(0)
    with pytest.raises(UsageError, match="--limit 42 is more than the 41 images"):
        sample(42)


def test_a_sample_is_of_the_images_that_go_with_its_labels(npz):
    labels = np.arange(40) % 3
    images = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 3, 8, 8))
    path = npz(images=images, labels=labels)
    data = load_data(path, SPEC, NAMES, limit=10, seed=1)
    x, y = everything(data)
    index = (x[:, 0, 0, 0] * 255).round().long()
    assert (index % 3).tolist() == y
    assert len(set(index.tolist())) == 10
    other, _ = everything(load_data(path, SPEC, NAMES, limit=10, seed=2))
    assert not torch.equal(other, x)


def coded(count: int, classes: int = 3) -> dict[str, np.ndarray]:
    """Arrays whose every pixel is the number of the image, whose class is that modulo ``classes``."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 8, 8))
    return {"images": images, "labels": np.arange(count) % classes}


def numbers(data) -> list[int]:
    x, y = everything(data)
    index = (x[:, 0, 0, 0] * 255).round().long()
    assert (index % 3).tolist() == y
    return index.tolist()


def test_a_split_is_balanced_disjoint_and_repeatable(npz):
    data = load_data(npz(**coded(40)), SPEC, NAMES)
    held, rest = split(data, 9, seed=3)
    assert (len(held), len(rest)) == (9, 31)
    assert np.bincount(held.labels).tolist() == [3, 3, 3]
    assert sorted(numbers(held) + numbers(rest)) == list(range(40))
    assert numbers(rest) == sorted(numbers(rest))
    assert numbers(split(data, 9, seed=3)[0]) == numbers(held) != numbers(split(data, 9, seed=4)[0])
    for count in (0, 40):
        with pytest.raises(UsageError, match=f"{count} images cannot be held out of the 40"):
            split(data, count)


def test_a_split_of_a_sample_stays_within_it(npz):
    data = load_data(npz(**coded(40)), SPEC, NAMES, limit=20)
    held, rest = split(data, 5)
    assert sorted(numbers(held) + numbers(rest)) == sorted(numbers(data))


def test_the_parts_of_a_split_count_their_own_unreadable_images(folder):
    contents = {f"cat/{i:03}.png": png(0) for i in range(299)} | {"dog/bad.png": png(1)[:60]}
    held, rest = split(load_data(folder(contents), SPEC, NAMES), 150)
    everything(held), everything(rest)
    assert (held.unreadable, rest.unreadable) == (["dog/bad.png"], [])


def test_a_fingerprint_is_of_what_is_read(npz, folder, zipped, tmp_path):
    arrays = coded(12)
    path = npz(**arrays)
    same = load_data(path, SPEC, NAMES).fingerprint()
    assert load_data(path, SPEC, NAMES, seed=1).fingerprint() == same  # no sample: the seed chooses nothing
    assert load_data(path, SPEC, NAMES, limit=12).fingerprint() != same  # in another order
    normalize = {"mean": [0.5] * 3, "std": [1.0] * 3}
    prints = [
        same,
        *(load_data(path, SPEC, NAMES, limit=6, seed=seed).fingerprint() for seed in (0, 1)),
        load_data(path, SPEC, NAMES, limit=5).fingerprint(),
        load_data(path, SPEC, {**NAMES, "normalize": normalize}).fingerprint(),
        load_data(path, SPEC, NAMES, reading=Reading(resize=9)).fingerprint(),
        load_data(path, InputSpec((3, 4, 4)), NAMES).fingerprint(),
    ]
    other = arrays["images"].copy()
    other[3, 0, 0, 0] ^= 1
    prints.append(load_data(npz(images=other, labels=arrays["labels"]), SPEC, NAMES).fingerprint())
    prints.append(load_data(npz(images=other, labels=arrays["labels"][::-1]), SPEC, NAMES).fingerprint())
    contents = files(2)
    path = folder(contents)
    prints.append(load_data(path, SPEC, NAMES).fingerprint())
    path.rename(tmp_path / "elsewhere")
    assert load_data(tmp_path / "elsewhere", SPEC, NAMES).fingerprint() == prints[-1]
    (tmp_path / "elsewhere/cat/0.png").write_bytes(contents["cat/0.png"] + b"x")
    prints.append(load_data(tmp_path / "elsewhere", SPEC, NAMES).fingerprint())
    (tmp_path / "elsewhere/cat/0.png").rename(tmp_path / "elsewhere/cat/00.png")
    prints.append(load_data(tmp_path / "elsewhere", SPEC, NAMES).fingerprint())
    prints.append(load_data(zipped(contents), SPEC, NAMES).fingerprint())
    changed = bytearray(contents["cat/0.png"])
    changed[-1] ^= 1  # the same size: a zip's checksum tells
    prints.append(load_data(zipped(contents | {"cat/0.png": bytes(changed)}), SPEC, NAMES).fingerprint())
    assert len(set(prints)) == len(prints)


# what is wrong


def test_a_few_unreadable_images_are_skipped_and_named(folder):
    contents = {f"cat/{i:03}.png": png(0) for i in range(199)} | {"dog/bad.png": png(1)[:60]}
    data = load_data(folder(contents), SPEC, NAMES)
    for _ in range(2):
        x, y = everything(data)
        assert (len(x), len(y)) == (199, 199)
        assert data.unreadable == ["dog/bad.png"]


def test_one_unreadable_image_of_a_small_sample_is_one_of_the_whole_folder(folder):
    contents = {f"cat/{i:03}.png": png(0) for i in range(199)} | {"dog/bad.png": png(1)[:60]}
    part = load_data(folder(contents), SPEC, NAMES).subset([197, 198, 199])
    assert len(everything(part)[0]) == 2 and part.unreadable == ["dog/bad.png"]
    assert part.remarks()[-1] == "left out, as they cannot be read: dog/bad.png"


@pytest.mark.parametrize("bad", [b"", b"not an image", png(1)[:60]])
def test_many_unreadable_images_are_an_error(folder, bad):
    contents = {f"cat/{i:02}.png": png(0) for i in range(50)} | {"dog/bad.png": bad}
    data = load_data(folder(contents), SPEC, NAMES)
    with pytest.raises(InputError, match=r"more than 1% of its 51 images cannot be read: dog/bad\.png"):
        list(data.batches(8))


def test_a_damaged_zip_member_is_an_unreadable_image(zipped):
    path = zipped(files(1))
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT")
    data[at + 8 : at + 40] = bytes(32)
    path.write_bytes(data)
    with pytest.raises(InputError, match="cat/0.png"):
        list(load_data(path, SPEC, NAMES).batches(1))


def test_damage_anywhere_is_refused_or_harmless(zipped, npz):
    """No other exception than ours, whichever bytes are wrong."""
    random, refused = Random(0), 0
    for path in (zipped(files(1)), npz(images=IMAGES, labels=LABELS)):
        data = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(data)
            for _ in range(random.choice([1, 5, 20])):
                damaged[random.randrange(len(damaged))] = random.randrange(256)
            path.write_bytes(damaged)
            try:
                list(load_data(path, SPEC, NAMES).batches(2))
            except SvitcError:
                refused += 1
    assert 60 < refused < 120


@pytest.mark.parametrize(
    ("contents", "info", "text"),
    [
        ({}, NAMES, "holds no images"),
        ({"readme.txt": b"x"}, NAMES, "holds no images"),
        (files(1) | {"stray.png": png(0)}, NAMES, "image stray.png is in no class folder, .*\n  .*--unlabeled"),
        (files(1, "train/") | files(1, "test/"), NAMES, "holds test and train\n  .*--unlabeled"),
        (
            files(1) | {"catt/0.png": png(0)},
            NAMES,
            "folder catt is none of the model's 3 classes, but others are\n  The closest is cat. .*--unlabeled",
        ),
    ],
)
def test_folders_that_do_not_fit(folder, contents, info, text):
    with pytest.raises(InputError, match=text):
        load_data(folder(contents), SPEC, info)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": IMAGES}, r"has no images \(it has x\)"),
        ({"images": IMAGES[0]}, r"images are \[3, 8, 8\], but the model takes"),
        ({"images": IMAGES, "labels": np.array([0, 1, 2, 3])}, "labels go from 0 to 3, but .* classes 0 to 2"),
        ({"images": IMAGES, "labels": np.array([0, -1, 2, 0])}, "labels go from -1 to 2(.|\n)*--unlabeled"),
        ({"images": IMAGES, "labels": LABELS[:3]}, r"labels are int64 \[3\], not 4 whole numbers"),
        ({"images": IMAGES, "labels": LABELS + 0.5}, r"labels are float64 \[4\], not 4 whole numbers"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "holds no images"),
        ({"images": np.array(3), "labels": LABELS}, "labels are int64"),
        ({"images": IMAGES.transpose(0, 2, 3, 1), "labels": LABELS}, "They look like channels-last images"),
        ({"images": IMAGES[:, :1], "labels": LABELS}, r"are \[4, 1, 8, 8\], but .* takes \['N', 3, 8, 8\]"),
        ({"images": IMAGES[:, None], "labels": LABELS}, r"images are \[4, 1, 3, 8, 8\]"),
        ({"images": IMAGES.astype(np.int32), "labels": LABELS}, "images are int32"),
        ({"images": IMAGES + np.float32(255), "labels": LABELS}, "images go from 255 to 255, not from 0 to 1"),
        ({"images": IMAGES - np.float32(0.5), "labels": LABELS}, "images go from -0.5 to -0.5"),
        ({"images": IMAGES * np.float32("nan"), "labels": LABELS}, "NaN or infinity"),
        ({"images": np.array([object()] * 4), "labels": LABELS}, "not an .npz of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit(npz, arrays, text):
    with pytest.raises(InputError, match=text):
        load_data(npz(**arrays), SPEC, NAMES)


def test_events_and_stills_do_not_mix(folder, npz):
    with pytest.raises(InputError, match="holds still images, but the model takes event frames"):
        load_data(folder(files(1)), InputSpec((4, 2, 8, 8)), NAMES)
    events = np.zeros((3, 5, 2, 8, 8), dtype=np.uint8)
    with pytest.raises(InputError, match=r"event frames are \[5, 2, 8, 8\], but .* takes \[4, 2, 8, 8\]"):
        load_data(npz(images=events, labels=LABELS[:3]), InputSpec((4, 2, 8, 8)), NAMES)
    with pytest.raises(InputError, match="1 or 3 channels, but the model takes 2"):
        load_data(folder(files(1)), InputSpec((2, 8, 8)), NAMES)


def test_paths_that_are_no_data(tmp_path):
    (tmp_path / "data.tar").write_bytes(b"hello")
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "data.txt").write_text("# nothing\n\n")
    (tmp_path / "long.txt").write_text("# a name that no file system takes\n" + "x" * 5000)
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and i")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 7)  # of seven pieces, on which zipfile.is_zipfile raises
    (tmp_path / "pieces.zip").write_bytes(b"PK\x03\x04" + bytes(40) + locator + b"PK\x05\x06" + bytes(18))
    for name, text in {
        "none": "does not exist",
        "data.tar": r"neither a folder, nor a .zip, nor an .npz of images, nor a list \(.txt\)",
        "data.txt": "data.txt holds no images",
        "data.npz": "not an .npz",
        "long.txt": r"long.txt, line 2: there is no file x{10,}…",
        "cut.zip": r"cut.zip is damaged: its end is missing, after 10 bytes",
        "pieces.zip": r"pieces.zip is damaged: .*multiple disks",
    }.items():
        with pytest.raises(InputError, match=text):
            load_data(tmp_path / name, SPEC, NAMES)
