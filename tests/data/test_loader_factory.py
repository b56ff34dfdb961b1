"""The user's own loader as --data: module:factory or path/to/file.py:factory."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from svitc.data import loader_factory, spill
from svitc.data.dataset import Reading, is_factory, load_data, split
from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec

SPEC = InputSpec((3, 8, 8))
EVENTS = InputSpec((4, 2, 6, 6))
INFO = {"num_classes": 3, "normalize": {"mean": [0.5] * 3, "std": [0.1] * 3}}
OWN = """
import sibling_of_data
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

COUNT = 50
NUMBERS = torch.arange(COUNT)
IMAGES = NUMBERS.float()[:, None, None, None].expand(COUNT, 3, 8, 8)
DATA = TensorDataset(IMAGES, NUMBERS % 3)

class Endless(Dataset):  # has no IndexError of its own
    def __len__(self):
        return COUNT
    def __getitem__(self, index):
        import sibling_of_data
        return IMAGES[index % COUNT], index % 3

class Stream(IterableDataset):
    def __iter__(self):
        return ((IMAGES[i].numpy(), i % 3) for i in range(COUNT))

class Raises(Endless):
    def __getitem__(self, index):
        if index == 20:
            raise ValueError("image 20 is cursed")
        return super().__getitem__(index)

def loader():
    return DataLoader(DATA, batch_size=8)

def forked():
    return DataLoader(DATA, batch_size=8, num_workers=2)

def shuffled():
    return DataLoader(DATA, batch_size=8, shuffle=True)

def dataset():
    return DATA

def endless():
    return Endless()

def stream():
    return Stream()

def generator():
    yield from DataLoader(DATA, batch_size=8)

def listed():
    return [(x, y.tolist()) for x, y in DataLoader(DATA, batch_size=8)]

ready = loader()

def raises():
    return DataLoader(Raises(), batch_size=8)

def raises_in_a_worker():
    return DataLoader(Raises(), batch_size=8, num_workers=1)

def broken():
    raise RuntimeError("no luck")

def needy(root):
    return loader()

def number():
    return 3

def nothing():
    return []

value = 7
"""
WAYS = ["loader", "forked", "dataset", "endless", "stream", "generator", "listed", "ready"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A current folder that has the user's code."""
    (tmp_path / "own_data.py").write_text(OWN)
    (tmp_path / "sibling_of_data.py").write_text("")
    (tmp_path / "needs_more.py").write_text("import os\nimport surely_not_installed\n")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def given(own, monkeypatch):
    """load_data of what a factory yields."""

    def load(batches, spec=SPEC, limit=None, seed=0, **options):
        (own / "given_data.py").write_text("")
        sys.modules.pop("given_data", None)
        module = loader_factory._import("given_data.py")
        module.make = lambda: batches
        monkeypatch.setattr(loader_factory, "_import", lambda place: module)
        return load_data("given_data.py:make", spec, INFO, limit, seed, Reading(**options))

    return load


def numbers(data) -> list[int]:
    """Which images of OWN these are; their labels must go with them."""
    xs, ys = zip(*data.batches(7), strict=True)
    x, y = torch.cat(xs), torch.cat(ys)
    assert x.dtype == torch.float32 and x.shape[1:] == (3, 8, 8)
    index = x[:, 2, 7, 7].long()
    assert torch.equal(x, index.float()[:, None, None, None].expand_as(x))  # as given, not normalised again
    assert torch.equal(index % 3, y) and y.tolist() == data.labels.tolist()
    return index.tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["own_data", "./own_data.py"])
def test_whatever_gives_images_and_labels(own, place, way):
    path = list(sys.path)
    data = load_data(f"{place}:{way}", SPEC, INFO)
    assert numbers(data) == numbers(data) == list(range(50))
    assert (data.name, data.notes, data.unreadable) == (f"{place}:{way}", [], [])
    assert sys.path == path


def test_a_file_of_a_package(own):
    (own / "pkg").mkdir()
    (own / "pkg/__init__.py").write_text("")
    (own / "pkg/part.py").write_text("from .more import loader\n")
    (own / "pkg/more.py").write_text("from own_data import loader\n")
    assert numbers(load_data(Path("pkg/part.py:loader"), SPEC, INFO)) == list(range(50))


def test_a_file_with_a_colon_in_its_name_is_a_file(own):
    (own / "odd:name").mkdir()
    assert is_factory("own_data:loader") and is_factory(Path("own_data.py:loader"))
    assert not is_factory("odd:name") and not is_factory("data.zip") and not is_factory("own_data:")
    with pytest.raises(InputError, match="odd:name holds no images"):
        load_data("odd:name", SPEC, INFO)


@pytest.mark.parametrize("limit", [1, 2, 7, 30, 50])
def test_a_sample_is_balanced_seeded_and_grows_from_its_beginning(own, limit):
    data = load_data("own_data:loader", SPEC, INFO, limit=limit)
    chosen = numbers(data)
    assert len(set(chosen)) == limit
    counts = Counter(data.labels.tolist())
    assert max(counts.values()) - min(counts[c] for c in range(3)) <= 1
    assert numbers(load_data("own_data:stream", SPEC, INFO, limit=limit)) == chosen
    assert numbers(load_data("own_data:loader", SPEC, INFO, limit=50))[:limit] == chosen
    assert limit != 30 or numbers(load_data("own_data:loader", SPEC, INFO, limit=limit, seed=5)) != chosen
    held, rest = split(data, limit // 2) if limit > 1 else (data, data)
    assert set(numbers(held)) | set(numbers(rest)) == set(chosen)


def test_a_shuffling_loader_gives_the_same_every_time_and_disturbs_nothing(own):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    following = torch.rand(3).tolist(), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    first = load_data("own_data:shuffled", SPEC, INFO)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == following
    again = load_data("own_data:shuffled", SPEC, INFO)
    assert numbers(first) == numbers(first) == numbers(again) != list(range(50))
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != load_data("own_data:loader", SPEC, INFO).fingerprint()


def test_what_does_not_fit_into_memory_goes_to_the_disk(own, monkeypatch):
    monkeypatch.setattr(spill, "MEMORY_BYTES", 10 * 3 * 8 * 8 * 4)
    data = load_data("own_data:loader", SPEC, INFO)
    assert len(data.source._held) == 10
    assert numbers(data) == list(range(50))
    sample = load_data("own_data:loader", SPEC, INFO, limit=20)
    monkeypatch.undo()
    os.chdir(own)
    assert numbers(sample) == numbers(load_data("own_data:loader", SPEC, INFO, limit=20))


def test_a_full_disk_is_an_error(own, monkeypatch):
    class Full:
        def __init__(self, **_):
            pass

        def seek(self, _):
            pass

        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "MEMORY_BYTES", 0)
    monkeypatch.setattr(spill.tempfile, "TemporaryFile", Full)
    with pytest.raises(InputError, match=r"more than fits .*No space left on device\n  Take a sample with --limit"):
        load_data("own_data:loader", SPEC, INFO)


def test_a_loader_may_reuse_its_memory(given):
    def batches():
        x = torch.zeros(2, 3, 8, 8)
        for i in range(4):
            x.fill_(i)
            yield x, [i % 3, i % 3]

    xs, _ = zip(*given(batches()).batches(1), strict=True)
    assert [x[0, 0, 0, 0].item() for x in xs] == [0, 0, 1, 1, 2, 2, 3, 3]


# event frames


def frames(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((count, *EVENTS.shape), dtype=np.float32))


def cut(x: torch.Tensor, sizes: list[int], time_first: bool):
    parts = x.split(sizes)
    return [((p.transpose(0, 1) if time_first else p), torch.zeros(len(p), dtype=torch.int)) for p in parts]


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("sizes", [[3, 3, 1], [5, 4, 2]])  # four is as many as there are time steps
def test_event_frames_either_way(given, time_first, sizes):
    x = frames(sum(sizes))
    data = given(cut(x, sizes, time_first), EVENTS)
    got = torch.cat([b for b, _ in data.batches(2)], 1)
    assert torch.equal(got, x.transpose(0, 1)) and data.notes == []


def test_event_frames_whose_order_cannot_be_seen(given):
    x = frames(8)
    data = given(cut(x, [4, 4], False), EVENTS)
    assert torch.equal(torch.cat([b for b, _ in data.batches(8)], 1), x.transpose(0, 1))
    assert data.notes == ["event frames of given_data.py:make are taken as [N, T, C, H, W]"]
    x = frames(7)
    assert given(cut(x, [4, 3], False), EVENTS).notes == []
    with pytest.raises(InputError, match="batch 2 puts time and batch in another order"):
        given(cut(x, [4, 3], True), EVENTS)


def test_single_event_samples_and_counts(given):
    x = torch.randint(0, 9, (5, *EVENTS.shape), dtype=torch.uint8)
    data = given([(image, 1) for image in x], EVENTS)
    assert torch.equal(next(data.batches(5))[0], x.float().transpose(0, 1))


# no labels


@pytest.mark.parametrize("kind", ["batches", "arrays", "tuples", "None for labels", "single images", "ignored labels"])
def test_images_alone(given, kind):
    images = torch.arange(50).float()[:, None, None, None].expand(50, 3, 8, 8)
    data = given(
        {
            "batches": images.split(8),
            "arrays": [x.numpy() for x in images.split(8)],
            "tuples": [(x,) for x in images.split(8)],
            "None for labels": [(x, None) for x in images.split(8)],
            "single images": list(images),
            "ignored labels": [(x, ["any"] * len(x), 7) for x in images.split(8)],
        }[kind],
        unlabeled=kind == "ignored labels",
    )
    assert not data.labeled and data.labels.tolist() == [-1] * 50
    xs, ys = zip(*data.batches(7), strict=True)
    assert torch.equal(torch.cat(xs), images) and set(torch.cat(ys).tolist()) == {-1}


def test_a_sample_of_images_alone_is_seeded_and_grows_from_its_beginning(given):
    images = torch.arange(50).float()[:, None, None, None].expand(50, 3, 8, 8)

    def chosen(limit: int, seed: int = 0) -> list[int]:
        data = given(images.split(8), limit=limit, seed=seed)
        return torch.cat([x for x, _ in data.batches(9)])[:, 0, 0, 0].int().tolist()

    assert len(set(chosen(20))) == 20 and chosen(20) != sorted(chosen(20))
    assert chosen(7) == chosen(20)[:7] != chosen(7, seed=1)


@pytest.mark.parametrize("time_first", [False, True])
def test_event_frames_alone(given, time_first):
    x = frames(7)
    data = given([batch for batch, _ in cut(x, [5, 2], time_first)], EVENTS)
    assert torch.equal(torch.cat([b for b, _ in data.batches(3)], 1), x.transpose(0, 1)) and not data.labeled
    assert torch.equal(torch.cat([b for b, _ in given(list(x), EVENTS).batches(3)], 1), x.transpose(0, 1))


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([torch.zeros(2, 3, 4, 8)], r"batch 1 has images \[2, 3, 4, 8\], but the model takes \[3, 8, 8\]"),
        ([torch.tensor(0.0)], r"batch 1 has images \[\], but the model takes"),
        ([torch.zeros(2, 3, 8, 8).byte()], "has images of uint8, not float32"),
        ([torch.zeros(0, 3, 8, 8)], "gives no images"),
        ([torch.zeros(2, 3, 8, 8), (torch.zeros(2, 3, 8, 8), [0, 1])], "batch 2 has labels, unlike those before it"),
    ],
)
def test_images_alone_that_do_not_fit(given, batches, text):
    with pytest.raises(InputError, match=text):
        given(batches)


# what is wrong


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("no_such:f", r"there is no module no_such\n  Looked for"),
        ("no_such.py:f", r"there is no file no_such.py\n  It is module:factory"),
        ("own_data:loadr", "own_data has no factory loadr; the closest is loader\n  It has Endless, Stream, Raises, l"),
        ("own_data.py:value", "own_data.py has no factory value"),
        ("needs_more:f", "needs_more imports surely_not_installed, which is not installed"),
        ("needs_more.py:f", r"surely_not_installed, which is not installed\n  at .*needs_more.py:2"),
        ("wrong.py:f", r"importing wrong.py failed: SyntaxError: .*\n  at .*wrong.py:1"),
        ("leaves:f", r"importing leaves failed: SystemExit: 3\n  at .*leaves.py:1"),
        ("own_data:broken", r"broken\(\) failed: RuntimeError: no luck\n  at .*own_data.py:\d+"),
        ("own_data:needy", r"needy\(\) failed: TypeError: .*'root'\n  It is called without arguments"),
        ("own_data:number", r"returned a int, which gives no images\n  A torch DataLoader or Dataset"),
        ("own_data:raises", r"failed after 2 batches: ValueError: image 20 is cursed\n  at .*own_data.py:\d+"),
        ("own_data:raises_in_a_worker", "failed after 2 batches: ValueError: image 20 is cursed"),
    ],
)
def test_factories_that_fail(own, data, text):
    with pytest.raises(UsageError, match=f"--data: (.|\n)*{text}"):
        load_data(data, SPEC, INFO)


def test_too_few_or_none(own):
    with pytest.raises(UsageError, match="--limit 51 is more than the 50 images of own_data:loader"):
        load_data("own_data:loader", SPEC, INFO, limit=51)
    with pytest.raises(InputError, match="own_data:nothing gives no images"):
        load_data("own_data:nothing", SPEC, INFO)
    with pytest.raises(UsageError, match="--resize and --crop do not apply to own_data:loader"):
        load_data("own_data:loader", SPEC, INFO, reading=Reading(resize=20))


GOOD = (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({"images": GOOD[0]}, "is a dict, not \\(images, labels\\) or images alone"),
        (GOOD[0], "has no labels, unlike those before it\n  .*--unlabeled"),
        ((GOOD[0],), "has no labels, unlike those before it"),
        ((*GOOD, 3), "is 3 values, not"),
        ((GOOD[0].half(), GOOD[1]), "has images of float16, not float32"),
        ((GOOD[0].bfloat16(), GOOD[1]), "has images of bfloat16"),
        ((GOOD[0].byte(), GOOD[1]), "has images of uint8, not float32\n  .*normalized"),
        ((["a", "b"], GOOD[1]), "has images of type list, not tensors"),
        ((GOOD[0] * float("nan"), GOOD[1]), "holds NaN or infinity"),
        ((GOOD[0][:, :, :4], GOOD[1]), r"has images \[2, 3, 4, 8\] for 2 labels, but the model takes \[3, 8, 8\]"),
        ((GOOD[0].permute(0, 2, 3, 1), GOOD[1]), r"has images \[2, 8, 8, 3\]"),
        ((GOOD[0], GOOD[1][:1]), r"has images \[2, 3, 8, 8\] for 1 label,"),
        ((GOOD[0][0], GOOD[1]), r"has images \[3, 8, 8\] for 2 labels"),
        ((GOOD[0][:0], GOOD[1][:0]), r"has labels \[0\], not one number"),
        ((GOOD[0], torch.eye(2).long()), r"has one-hot labels \[2, 2\], not one whole number for each image"),
        ((GOOD[0], torch.ones(2, 2).long()), r"has labels \[2, 2\], not one number for each image"),
        ((GOOD[0], GOOD[1].float()), "has labels of type torch.float32, not whole numbers"),
        ((GOOD[0], ["cat", "dog"]), "has labels of type list, not whole numbers"),
        ((GOOD[0], GOOD[1] + 2), "batch 2: labels go from 2 to 3, but the model's head has classes 0 to 2"),
        ((GOOD[0], GOOD[1] - 1), "labels go from -1 to 0"),
    ],
)
def test_batches_that_do_not_fit(given, batch, text):
    with pytest.raises(InputError, match=f"given_data.py:make: batch 2:? ?{text.removeprefix('batch 2: ')}"):
        given([GOOD, batch])
