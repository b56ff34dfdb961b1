"""Tests of compiler/analysis/batch_norm_match.py: what batch norms remember, and images that match it."""

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

import svitc
from support.measured import family
from svitc.analysis import batch_norm_match as match


def images(count: int, seed: int, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    """Return smooth random images of very different brightness."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return smooth + torch.randn(count, 3, 1, 1, generator=generator)


def trained(x: torch.Tensor) -> svitc.Program:
    """Return a program whose batch norms have exactly the statistics of these images."""
    program = family("spikformer").copy()
    program.module.eval()
    for norm in match.batch_norms(program):  # in the order of execution: each sees what it will see later
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
        program.reset()
        with torch.no_grad():
            program.module(x)  # calling the program itself would evaluate
        norm.eval()
    program.reset()
    return program


@pytest.fixture(scope="module")
def known() -> torch.Tensor:
    return images(24, 0)


@pytest.fixture(scope="module")
def program(known) -> svitc.Program:
    return trained(known)


def test_the_images_that_a_network_was_trained_on_match(program, known):
    norms = len(match.batch_norms(program))
    assert match.mismatch(match.gaps(program, known), norms) < 1e-3
    assert match.mismatch(match.gaps(program, 3 * known + 1), norms) > 0.05


def test_gaps_are_those_of_each_image_alone(program, known):
    together, alone = match.gaps(program, known[:4]), match.gaps(program, known[2:3])
    assert torch.allclose(together[2:3], alone, atol=1e-4)
    channels = sum(len(norm.running_mean) for norm in match.batch_norms(program))
    assert together.shape == (4, 2 * channels)


def test_the_fit_finds_the_gain_and_shift_that_were_applied(program, known):
    shift = torch.tensor([0.3, -0.2, 0.5])
    fit = match.fit_input(program, (known - shift[:, None, None]) / 2.5)
    assert fit is not None
    assert fit.gain == pytest.approx(2.5, rel=0.02)
    assert torch.allclose(fit.shift, shift, atol=0.1)
    assert match.fit_input(program, known).gain == pytest.approx(1, rel=0.02)


def test_herding_chooses_images_that_together_are_alike(program):
    mixture = torch.cat([images(40, 1), 4 * images(40, 2) + 3])
    gap, norms = match.gaps(program, mixture), len(match.batch_norms(program))
    chosen = match.herd(gap, 20)
    assert len(set(chosen)) == 20
    of_all, of_chosen = match.mismatch(gap, norms), match.mismatch(gap[chosen], norms)
    at_random = np.mean([match.mismatch(gap[torch.randperm(80)[:20]], norms) for _ in range(5)])
    assert of_chosen < 0.5 * min(of_all, at_random)
    assert sum(i < 40 for i in chosen) > 12  # most are of the kind that the network knows
    assert match.herd(gap, 80) and sorted(match.herd(gap, 80)) == list(range(80))


def test_a_new_network_has_untrained_batch_norms(program):
    new = family("spikformer").copy()
    for norm in match.batch_norms(new):
        norm.reset_running_stats()
    assert match.untrained(new) and not match.untrained(program)


class NoNorm(nn.Module):
    """A spiking network without batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fire = neuron.LIFNode(step_mode="m")
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.fire(self.conv(x).unsqueeze(0).repeat(2, 1, 1, 1, 1)).mean((0, 3, 4)))


def test_without_batch_norms_nothing_is_known():
    bare = svitc.capture(NoNorm().eval(), svitc.InputSpec((3, 16, 16)))
    assert match.batch_norms(bare) == [] and not match.untrained(bare)
    assert match.fit_input(bare, images(4, 0, (16, 16))) is None


def test_there_is_no_fit_where_the_first_layer_reads_something_else_than_the_input():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.norm(self.conv(torch.cat([x, x.flip(-1)], 1))).mean((2, 3)))

    x = torch.rand(4, 3, 8, 8)
    assert match.fit_input(svitc.capture(Twice().eval(), x), x) is None
