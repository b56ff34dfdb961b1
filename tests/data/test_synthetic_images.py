"""Tests of compiler/data/synthetic_images.py: scenes that look like images, the same for the same seed."""

import numpy as np
import pytest

from svitc.data.dataset import unlabeled_dataset
from svitc.data.synthetic_images import SyntheticImages
from svitc.ir.graph import InputSpec

SHAPES = [(3, 32, 32), (1, 16, 16), (2, 24, 20), (5, 16, 16)]


def images(shape: tuple[int, ...], count: int = 24, seed: int = 0) -> np.ndarray:
    source = SyntheticImages(InputSpec(shape), seed)
    return np.stack([source.fetch(i) for i in range(count)])


@pytest.mark.parametrize("shape", SHAPES)
def test_images_have_the_input_s_shape_and_the_range_of_pixels(shape):
    drawn = images(shape)
    assert drawn.shape == (24, *shape) and drawn.dtype == np.float32
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert drawn.std((1, 2, 3)).min() > 0.005  # none is blank


def test_an_image_depends_on_the_seed_and_its_number_alone():
    source = SyntheticImages(InputSpec((3, 16, 16)), 7)
    backwards = [source.fetch(i) for i in reversed(range(5))][::-1]
    assert np.array_equal(images((3, 16, 16), 5, seed=7), np.stack(backwards))
    assert not np.array_equal(images((3, 16, 16), 5, seed=8), np.stack(backwards))
    prints = {source.fingerprint(i) for i in range(5)} | {SyntheticImages(InputSpec((3, 16, 16)), 8).fingerprint(0)}
    assert len(prints) == 6


def test_neighboring_pixels_are_alike_as_in_photographs():
    drawn = images((3, 32, 32), 100)
    centered = drawn - drawn.mean((2, 3), keepdims=True)
    along = (centered[..., 1:] * centered[..., :-1]).mean((1, 2, 3)) / centered.var((1, 2, 3))
    assert np.median(along) > 0.6  # independent pixels have 0


def test_images_differ_in_brightness_contrast_and_color():
    drawn = images((3, 32, 32), 200)
    assert drawn.mean((1, 2, 3)).std() > 0.1
    contrast = drawn.std((2, 3)).mean(1)
    assert contrast.max() > 3 * contrast.min()
    assert np.abs(drawn.mean((2, 3)) - drawn.mean((1, 2, 3))[:, None]).max() > 0.1


def test_event_frames_are_counts_of_two_polarities_that_exclude_each_other():
    drawn = images((6, 2, 32, 32), 8)
    assert drawn.shape == (8, 6, 2, 32, 32)
    assert np.array_equal(drawn, drawn.round()) and drawn.min() == 0 and drawn.max() >= 1
    assert not ((drawn[:, :, 0] > 0) & (drawn[:, :, 1] > 0)).any()
    assert (drawn.sum((2, 3, 4)) > 0).any(1).all()  # every scene moves


def test_a_data_set_of_them_has_no_labels_and_the_model_s_normalization():
    info = {"normalize": {"mean": [0.5], "std": [0.25]}}
    spec = InputSpec((1, 16, 16))
    data = unlabeled_dataset("synthetic images", SyntheticImages(spec), 6, spec, info)
    (x, labels), *more = data.batches(6)
    assert not more and not data.labeled and (labels == -1).all()
    assert np.allclose(x.numpy(), (images((1, 16, 16), 6) - 0.5) / 0.25, atol=1e-6)
