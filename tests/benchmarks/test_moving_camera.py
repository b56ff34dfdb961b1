"""The simulated event camera: its events add up to what it sees."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import moving_camera

SIZE, VIEWS = 10, 6


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_events_add_up_to_the_change_of_the_logarithm(images, monkeypatch):
    monkeypatch.setattr(moving_camera, "NOISE_HZ", 0.0)
    monkeypatch.setattr(moving_camera, "CONTRAST_DEVIATION", 0.0)
    recordings = moving_camera.record(images, SIZE, VIEWS, seed=0)
    paths = moving_camera._paths(np.random.default_rng(0), len(images), VIEWS)
    logs = np.log(moving_camera.DARK + moving_camera._views(images, paths, SIZE))
    for recording, log in zip(recordings, logs, strict=True):
        assert len(recording.t) > 100 and (np.diff(recording.t) >= 0).all()
        change = np.zeros((SIZE, SIZE))
        np.add.at(change, (recording.y, recording.x), moving_camera.CONTRAST * np.where(recording.p, 1, -1))
        assert np.abs(log[-1] - log[0] - change).max() < moving_camera.CONTRAST + 1e-5


def test_without_motion_there_is_only_noise(images, monkeypatch):
    monkeypatch.setattr(moving_camera, "SPEED", 0.0)
    count = sum(len(recording.t) for recording in moving_camera.record(images, SIZE, 200, seed=0))
    expected = moving_camera.NOISE_HZ * 200 * moving_camera.STEP_US * 1e-6 * SIZE**2 * len(images)
    assert abs(count - expected) < 5 * expected**0.5
