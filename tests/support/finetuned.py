"""What the tests of training share: a data set that is learned in a few steps, and small programs."""

from __future__ import annotations

import numpy as np
import torch

from support.families import spikformer, warm
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.passes import Prune
from svitc.passes.pipelines import canonical_passes
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter
from svitc.training import finetune as finetuning
from svitc.training.finetune import FinetuneOptions

SHAPE = (3, 16, 16)


CLASSES = 4


class Blobs:
    """Noise with a bright quarter that names the class: learnt in a few steps."""

    def __init__(self, images=96, shape=SHAPE, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(images) % CLASSES
        self.x = torch.randn(images, *shape, generator=generator)
        half = shape[-1] // 2
        for x, label in zip(self.x, self.y.tolist(), strict=True):
            top, left = (label // 2) * half, (label % 2) * half
            x[..., top : top + half, left : left + half] += 2
        self.batch_dim = 1 if len(shape) == 4 else 0

    def __len__(self):
        return len(self.y)

    def batches(self, n):
        for x, y in zip(self.x.split(n), self.y.split(n), strict=True):
            yield x.movedim(0, self.batch_dim), y


def program_of(model, shape=SHAPE):
    program = capture(warm(model, shape), InputSpec(shape), {"arch": "test"})
    Pipeline(canonical_passes())(program)
    return program


def small(seed=0, **k):
    torch.manual_seed(seed)
    size = {"img_size_h": 16, "img_size_w": 16, "embed_dims": 16, "num_heads": 2, "num_classes": CLASSES, "T": 2}
    return program_of(spikformer(**{**size, **k}))


def halved(program):
    """A copy in which every other hidden channel of the MLPs is gone."""
    keep = {}
    for group in program.groups:
        if "fc1" in group.name and group.frozen is None:
            keep[group.name] = np.tile(np.arange(group.axis.size) % 2 == 0, (group.heads, 1))
    assert keep
    pruned = program.copy()
    Prune(Plan(keep))(pruned)
    return pruned


OPTIONS = {"epochs": 3, "batch": 16, "lr": 5e-3, "augment": "none"}


def weights_of(program):
    return program.module.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def finetune(student, teacher, data, progress=None, **options):
    """Fine-tune with options by name."""
    return finetuning.finetune(student, teacher, data, FinetuneOptions(**options), Reporter(progress))
