"""Decoding image files: in threads, in order, and scaled as the arguments or the checkpoint say."""

from __future__ import annotations

import io
import threading
import zipfile
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from svitc.data import image_files, sources
from svitc.data.dataset import Reading, load_data
from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec

SPEC = InputSpec((3, 64, 64))
NAMES = {"classes": ["cat", "dog"], "num_classes": 2}
COUNT = 130


def noise(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """uint8 [H, W, 3]; as a PNG of 64x64 it takes 12 kB, which is large enough for threads."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=["folder", "zip"])
def store(request, tmp_path):
    """Writes files by name and gives the path of the folder or .zip."""

    def write(contents: dict[str, bytes]):
        if request.param == "zip":
            with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in contents.items():
                    archive.writestr(name, data)
            return tmp_path / "data.zip"
        for name, data in contents.items():
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_bytes(data)
        return tmp_path / "data"

    return write


@pytest.fixture
def threads(monkeypatch):
    """Sets how many workers there are; holds the names of the threads that decoded."""
    used: set[str] = set()
    fetch = image_files.ImageFiles.fetch

    def spy(self, index):
        used.add(threading.current_thread().name)
        return fetch(self, index)

    monkeypatch.setattr(image_files.ImageFiles, "fetch", spy)

    def count(workers: int) -> set[str]:
        monkeypatch.setattr(sources, "workers", lambda: workers)
        used.clear()
        return used

    return count


def contents() -> dict[str, bytes]:
    return {f"{'cat' if i % 2 else 'dog'}/{i:03}.png": png(noise(i)) for i in range(COUNT)}


def everything(data):
    xs, ys = zip(*data.batches(16), strict=True)
    return torch.cat(xs), torch.cat(ys)


def test_threads_decode_the_same_images_in_the_same_order(store, threads):
    data = load_data(store(contents()), SPEC, NAMES)
    used = threads(1)
    alone = everything(data)
    assert used == {"MainThread"}
    used = threads(4)
    for _ in range(3):
        together = everything(data)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert len(used) > 1 and all(name.startswith("svitc-decode") for name in used)
    assert together[1].tolist() == [0] * 65 + [1] * 65


def test_small_files_are_not_worth_threads(store, threads):
    data = load_data(store({f"cat/{i}.png": png(noise(i, 8, 8)) for i in range(40)}), SPEC, NAMES)
    used = threads(4)
    everything(data)
    assert used == {"MainThread"}


def test_a_reader_that_stops_early_leaves_no_threads_and_little_decoded(store, threads):
    data = load_data(store(contents()), SPEC, NAMES)
    before, decoded = threading.active_count(), []
    threads(2)
    fetch = data.source.fetch
    data.source.fetch = lambda index: decoded.append(index) or fetch(index)  # type: ignore[method-assign]
    batches = data.batches(16)
    assert len(list(islice(batches, 1))) == 1
    batches.close()
    assert threading.active_count() == before
    assert len(decoded) <= 16 + 2 * sources.IMAGES_AHEAD


@pytest.mark.parametrize("workers", [1, 4])
def test_unreadable_images_are_skipped_in_place_with_workers(store, threads, workers):
    good = contents()
    bad = good | {"cat/001.png": good["cat/001.png"][:3000]}
    data = load_data(store(bad), SPEC, NAMES)
    used = threads(workers)
    x, y = everything(data)
    assert (len(used) > 1) == (workers > 1)
    assert data.unreadable == ["cat/001.png"] and len(x) == len(y) == COUNT - 1
    cats = [i for i in range(COUNT) if i % 2 and i != 1]
    assert torch.equal(x[0], torch.from_numpy(noise(cats[0])).permute(2, 0, 1).float() / 255)
    assert y.tolist() == [0] * 64 + [1] * 65


@pytest.mark.parametrize("workers", [1, 4])
def test_too_many_unreadable_images_are_an_error_with_workers(store, threads, workers):
    good = contents()
    data = load_data(store(good | {"cat/001.png": b"", "dog/100.png": good["dog/100.png"][:3000]}), SPEC, NAMES)
    threads(workers)
    before = threading.active_count()
    with pytest.raises(InputError, match=r"more than 1% of its 130 images cannot be read: cat/001.png, dog/100.png"):
        everything(data)
    assert threading.active_count() == before


def test_workers_are_no_more_than_processors_and_shared_with_ranks(monkeypatch):
    monkeypatch.setattr(sources.os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert sources.workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert sources.workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert sources.workers() == 1


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/1.png").write_bytes(png(noise(1)))
    (tmp_path / "data/dog").mkdir(parents=True)
    (tmp_path / "data/dog/2.png").write_bytes(png(noise(2)))
    (tmp_path / "data/cat").symlink_to(tmp_path / "real")
    (tmp_path / "data/dog/loop").symlink_to(tmp_path / "data")
    assert load_data(tmp_path / "data", SPEC, NAMES).labels.tolist() == [0, 1]


def test_a_link_that_leads_nowhere_is_no_file_and_the_others_are_read(tmp_path):
    (tmp_path / "data/cat").mkdir(parents=True)
    (tmp_path / "data/cat/1.png").write_bytes(png(noise(1)))
    (tmp_path / "data/cat/itself.png").symlink_to("itself.png")
    (tmp_path / "data/cat/nowhere.png").symlink_to("nowhere")
    assert len(load_data(tmp_path / "data", SPEC, NAMES)) == 1


# scaling


def one(tmp_path, pixels: np.ndarray, spec=SPEC, info=NAMES, **options):
    """(image uint8 [H, W, 3] as the model gets it, notes) of a data set of one PNG."""
    (tmp_path / "data/cat").mkdir(parents=True, exist_ok=True)
    (tmp_path / "data/cat/a.png").write_bytes(png(pixels))
    data = load_data(tmp_path / "data", spec, info, reading=Reading(**options))
    x, _ = everything(data)
    return (x[0] * 255).round().byte().permute(1, 2, 0).numpy(), data.notes


def reference(pixels: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """What torchvision's Resize(resize, BICUBIC) and CenterCrop(crop) do, in Pillow."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    width, height = int(resize * width / short), int(resize * height / short)
    scaled = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    return scaled[top : top + crop, left : left + crop]


@pytest.mark.parametrize(("height", "width"), [(90, 130), (131, 77), (64, 64), (40, 51)])
def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path, height, width):
    pixels = noise(0, height, width)
    got, notes = one(tmp_path, pixels, resize=73)
    assert np.array_equal(got, reference(pixels, 73, 64))
    assert notes == ["images are scaled to 73 on their shorter side, cropped to 64x64 at their center (--resize 73)"]


def test_the_checkpoint_says_how_and_an_argument_overrides_it(tmp_path):
    pixels = noise(0, 90, 130)
    for info, resize, note in (
        ({"crop_pct": 0.875}, 73, "the checkpoint's crop_pct = 0.875"),
        ({"resize": 80}, 80, "the checkpoint's resize = 80"),
        ({"resize": 80, "crop_pct": 0.875}, 80, "the checkpoint's resize = 80"),
    ):
        got, notes = one(tmp_path, pixels, info=NAMES | info)
        assert np.array_equal(got, reference(pixels, resize, 64))
        assert len(notes) == 1 and note in notes[0]
        got, notes = one(tmp_path, pixels, info=NAMES | info, resize=70)
        assert np.array_equal(got, reference(pixels, 70, 64)) and "--resize 70" in notes[0]
    assert one(tmp_path, pixels)[1] == ["images of 90x130 are scaled to cover 64x64 and cropped at their center"]
    assert one(tmp_path, noise(0))[1] == []  # nothing is scaled


def test_a_crop_alone_scales_nothing_and_another_crop_is_scaled_to_the_input(tmp_path):
    pixels = noise(0, 90, 131)
    got, _ = one(tmp_path, pixels, crop=64)
    assert np.array_equal(got, pixels[13:77, 34:98])  # round(33.5) is 34
    got, notes = one(tmp_path, pixels, crop=80)
    inner = Image.fromarray(pixels[5:85, 26:106]).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(got, np.array(inner))
    assert notes == ["images are cropped to 80x80 at their center, scaled to 64x64 (--crop 80)"]


def test_arrays_are_scaled_likewise_and_left_alone_in_the_models_own_size(tmp_path):
    pixels = noise(3, 8, 8).repeat(12, 0).repeat(16, 1)  # 96x128, smooth enough for two bicubics to agree
    info = NAMES | {"resize": 73}

    def load(image, **options):
        np.savez(tmp_path / "a.npz", images=image.transpose(2, 0, 1)[None], labels=np.zeros(1, dtype=int))
        data = load_data(tmp_path / "a.npz", SPEC, info, reading=Reading(**options))
        return (everything(data)[0][0] * 255).permute(1, 2, 0).numpy(), data.notes

    got, notes = load(pixels)
    assert np.abs(got - reference(pixels, 73, 64)).max() < 6 and len(notes) == 1
    small = pixels[:64, :64]
    got, notes = load(small)
    assert np.array_equal(got.round(), small) and notes == []
    got, notes = load(small, resize=72)
    assert np.abs(got - reference(small, 72, 64)).max() < 6 and len(notes) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"resize": 0}, "--resize 0 is not a positive number"),
        ({"crop": -1}, "--crop -1 is not a positive number"),
        ({"resize": 60}, "--resize 60 is smaller than the crop of 64x64"),
        ({"resize": 70, "crop": 71}, "--resize 70 is smaller than the crop of 71"),
    ],
)
def test_sizes_that_make_no_sense(tmp_path, options, text):
    with pytest.raises(UsageError, match=text):
        one(tmp_path, noise(0), **options)


def test_sizes_that_do_not_fit_the_model_or_the_image(tmp_path):
    with pytest.raises(UsageError, match="--crop 64 is a square, but the model takes 64x32"):
        one(tmp_path, noise(0), InputSpec((3, 64, 32)), crop=64)
    with pytest.raises(InputError, match=r"cat/a.png is 40x90, too small to crop 64x64 from it\n  Give --resize"):
        one(tmp_path, noise(0, 40, 90), crop=64)
    with pytest.raises(UsageError, match="the model takes event frames"):
        load_data(tmp_path, InputSpec((4, 2, 8, 8)), NAMES, reading=Reading(resize=9))
    for info, text in (
        ({"resize": 20}, "resize is 20"),
        ({"resize": "x"}, "resize is 'x'"),
        ({"crop_pct": 7}, "crop_pct is 7"),
        ({"crop_pct": True}, "crop_pct is True"),
    ):
        with pytest.raises(InputError, match=text):
            one(tmp_path, noise(0), info=NAMES | info)


RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))
WIDE = {
    "1.png": (RAMP * 65535).astype(np.uint16),
    "1.tif": (RAMP * 65535).astype(np.uint16),
    "2.tif": RAMP.astype(np.float32),
}


def encoded(name: str, pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"png": "PNG", "tif": "TIFF"}[name.rpartition(".")[2]])
    return buffer.getvalue()


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_of_more_than_8_bits_are_not_clipped(store, name, channels):
    data = load_data(store({f"cat/{name}": encoded(name, WIDE[name])}), InputSpec((channels, 64, 64)), NAMES)
    images, _ = next(data.batches(1))
    np.testing.assert_allclose(images[0, 0].numpy(), RAMP, atol=0.5 / 255 + 1e-4)
    assert any("rounded to 8 bits" in note for note in data.notes)


@pytest.mark.parametrize("pixels", [200 * RAMP.astype(np.float32), RAMP.astype(np.float32) - 0.5])
def test_real_pixels_beyond_0_and_1_are_refused(store, pixels):
    data = load_data(store({"cat/1.tif": encoded("1.tif", pixels)}), InputSpec((1, 64, 64)), NAMES)
    with pytest.raises(InputError, match=r"its pixels go from -?[\d.]+ to [\d.]+, and are read from 0 to 1 only"):
        next(data.batches(1))


def test_integers_of_32_bits_have_no_white(store):
    pixels = (RAMP * 200).astype(np.int32)
    data = load_data(store({"cat/1.tif": encoded("1.tif", pixels)}), InputSpec((1, 64, 64)), NAMES)
    with pytest.raises(InputError, match="integers of 32 bits, and nothing says which is white"):
        next(data.batches(1))
