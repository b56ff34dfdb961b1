"""Images in memory: arrays of pixels and loaders give the data sets of files; anything else is refused in words."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from svitc.data.dataset import Reading, load_data
from svitc.errors import InputError, SvitcError, UsageError
from svitc.ir.graph import InputSpec

SPEC, EVENTS = InputSpec((3, 4, 4)), InputSpec((2, 3, 4, 4))
INFO = {"num_classes": 5, "normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
BYTES = np.random.default_rng(0).integers(0, 256, (10, *SPEC.shape), dtype=np.uint8)
PIXELS = torch.from_numpy(BYTES).float() / 255
LABELS = torch.arange(10) % 5
NORMALIZED = (PIXELS - 0.5) / 0.25


class Failing(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> object:
        return {}["pixels"]


def loader(images: torch.Tensor = NORMALIZED, labels: torch.Tensor = LABELS) -> DataLoader:
    return DataLoader(TensorDataset(images, labels), batch_size=4)


@pytest.mark.parametrize(
    "given",
    [
        (BYTES, LABELS.numpy()),
        (PIXELS, LABELS),
        [list(PIXELS), LABELS.tolist()],
        {"images": BYTES, "labels": LABELS.numpy()},
        loader(),
        TensorDataset(NORMALIZED, LABELS),
        [(NORMALIZED[:4], LABELS[:4]), (NORMALIZED[4:], LABELS[4:])],
        [(image, int(label)) for image, label in zip(NORMALIZED, LABELS, strict=True)],
        iter(loader()),
    ],
    ids=["bytes", "tensors", "lists", "mapping", "DataLoader", "Dataset", "batches", "items", "iterator"],
)
def test_pixels_are_normalized_and_loaders_are_not(given):
    data = load_data(given, SPEC, INFO)
    assert data.labeled and data.labels.tolist() == LABELS.tolist() and data.name == type(given).__name__
    for _ in range(2):  # also where the loader can be read once
        x, y = zip(*data.batches(3), strict=True)
        torch.testing.assert_close(torch.cat(x), NORMALIZED)
        assert torch.equal(torch.cat(y), LABELS)


@pytest.mark.parametrize("given", [BYTES, PIXELS, TensorDataset(NORMALIZED), list(NORMALIZED), {"images": BYTES}])
def test_images_without_labels(given):
    data = load_data(given, SPEC, INFO)
    assert not data.labeled and len(data) == 10
    torch.testing.assert_close(next(iter(data.batches(10)))[0], NORMALIZED)


def test_labels_can_be_left_out_and_samples_taken():
    assert not load_data((BYTES, LABELS), SPEC, INFO, reading=Reading(unlabeled=True)).labeled
    for given in ((BYTES, LABELS), loader()):
        assert sorted(load_data(given, SPEC, INFO, limit=5).labels.tolist()) == list(range(5))
        with pytest.raises(UsageError, match="11 is more than the 10 images"):
            load_data(given, SPEC, INFO, limit=11)


def test_event_frames_are_arrays_with_images_first():
    frames = np.ones((6, *EVENTS.shape), dtype=np.uint8)
    assert next(iter(load_data((frames, [0] * 6), EVENTS, {}).batches(6)))[0].shape == (2, 6, 3, 4, 4)


ONE_HOT = torch.nn.functional.one_hot(LABELS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "an int gives no images"),
        (None, "a NoneType gives no images"),
        (DataLoader, "a DataLoader class gives no images"),
        (lambda: None, "a function gives no images"),
        ({"x": BYTES}, r"a dict has no images \(it has x\)"),
        ([], "list gives no images"),
        ([1, 2], "batch 1 is an int"),
        ((BYTES, LABELS[:3]), "labels are int64 \\[3\\], not 10 whole numbers"),
        ((BYTES, LABELS.float()), "labels are float32"),
        ((BYTES, LABELS + 1), "labels go from 1 to 5"),
        ((BYTES, ONE_HOT), "tuple has one-hot labels \\[10, 5\\], not one whole number for each image"),
        (loader(labels=ONE_HOT.float()), "batch 1 has one-hot labels \\[4, 5\\]"),
        (TensorDataset(NORMALIZED, ONE_HOT.bfloat16()), "batch 1 has one-hot labels \\[5\\]"),
        ((BYTES.transpose(0, 2, 3, 1), LABELS), "images are \\[10, 4, 4, 3\\]"),
        (PIXELS * 16, "images go from 0 to 16, not from 0 to 1"),
        (BYTES.astype(object), "images are object"),
        ([[BYTES[0], BYTES[0, :2]], [1, 2]], "the images of a list have different shapes"),
        (loader(labels=LABELS.float()), "batch 1 has labels of type torch.float32"),
        (loader(images=NORMALIZED[:, :2]), "batch 1 has images \\[4, 2, 4, 4\\]"),
        ("nowhere", "nowhere does not exist"),
    ],
)
def test_what_is_accepted_is_said(given, message):
    with pytest.raises(SvitcError, match=message) as caught:
        load_data(given, SPEC, INFO)
    assert caught.value.hint or isinstance(caught.value, InputError)


def test_the_line_of_a_failing_data_set_is_named():
    with pytest.raises(UsageError, match="the Failing failed after 0 batches: KeyError: 'pixels'") as caught:
        load_data(Failing(), SPEC, INFO)
    assert re.search(r"test_in_memory\.py:\d+$", caught.value.where or "")


def test_loaders_are_not_resized():
    with pytest.raises(UsageError, match="resize and crop do not apply to DataLoader"):
        load_data(loader(), SPEC, INFO, reading=Reading(resize=8))
    with pytest.raises(InputError, match="have images \\[4, 3, 8, 8\\]|has images \\[4, 3, 8, 8\\]"):
        load_data(loader(torch.zeros(10, 3, 8, 8)), SPEC, INFO)
