"""Synthetic data: the images that plans are chosen on where the user has none."""

from __future__ import annotations

import torch

from svitc.analysis import batch_norm_match as match
from svitc.analysis.layer_stats import macs
from svitc.data.arrays import Arrays
from svitc.data.dataset import Dataset, unlabeled_dataset
from svitc.data.sources import Scaling
from svitc.data.synthetic_images import SyntheticImages
from svitc.ir.program import Program
from svitc.support.reporter import Reporter

NAME = "synthetic images"
IMAGES = (32, 456)  # fewest and most: 200 to measure plans on and 256 for calibration, as far as time allows
CHOSEN_MACS = 100e9  # multiply-accumulates of the original on all images: about as long as a minute allows
CANDIDATES = 3  # images to choose one from
FIT_IMAGES = 64


def synthetic_data(program: Program, seed: int, reporter: Reporter) -> Dataset:
    """Return synthetic images without labels that match what a network was trained on as far as its weights tell.

    Many different scenes are drawn. Half of them get the gain and shift with which the first batch norm sees the
    statistics that it knows. Of all, those are chosen that together match the statistics of all batch norms.

    Args:
        program: the original.
        seed: seed of the images.
        reporter: told about progress.

    Returns:
        The images; ``notes`` say how they were chosen, or what the weights do not tell.
    """
    count = int(min(IMAGES[1], max(IMAGES[0], CHOSEN_MACS // max(1, macs(program)))))
    norms = match.batch_norms(program)
    matched = bool(norms) and not match.untrained(program)
    drawn = unlabeled_dataset(
        NAME, SyntheticImages(program.input, seed), count * (CANDIDATES if matched else 1), program.input, program.info
    )
    dim = program.input.batch_dim
    with reporter.stage("draw images", len(drawn)) as step:
        batches = []
        for x, _ in drawn.batches(program.input.at_once(FIT_IMAGES)):
            batches.append(x)
            step(sum(batch.shape[dim] for batch in batches))
        x = torch.cat(batches, dim)
    if matched:
        x, note = _matched(program, x, count, len(norms), reporter)
    elif norms:
        note = "every batch norm of this model has mean 0 and variance 1, as before training: the file looks untrained"
    else:
        note = (
            "the model has no batch norms, which would tell what its inputs look like: the synthetic images are drawn "
            "as the checkpoint's normalization says; real images as --data make a better plan"
        )
    images = x.transpose(0, dim).contiguous().numpy()
    size = (program.input.shape[-2], program.input.shape[-1])
    source = Arrays(NAME, images, program.input, Scaling(size))
    return unlabeled_dataset(NAME, source, len(images), program.input, {}, [note])


def _matched(program: Program, x: torch.Tensor, count: int, norms: int, reporter: Reporter) -> tuple[torch.Tensor, str]:
    """Return the ``count`` images of ``x`` that together match the batch norms best, and a sentence about them."""
    dim = program.input.batch_dim
    total = x.shape[dim]
    fit = match.fit_input(program, x.narrow(dim, 0, min(FIT_IMAGES, total)))
    if fit is not None:
        first, second = x.split([total // 2, total - total // 2], dim)
        x = torch.cat([first, fit(second)], dim)
    gaps = []
    with reporter.stage("choose images", total) as step:
        for batch in x.split(program.input.at_once(match.BATCH_IMAGES), dim):
            gaps.append(match.gaps(program, batch))
            step(sum(map(len, gaps)))
        gap = torch.cat(gaps)
        chosen = match.herd(gap, count)
    before, after = match.mismatch(gap, norms), match.mismatch(gap[chosen], norms)
    note = (
        f"no images: {count} synthetic ones, chosen of {total} by the statistics of {norms} batch norms "
        f"(mismatch {before:.3f}, of those chosen {after:.3f})"
    )
    return x.index_select(dim, torch.tensor(chosen)), note
