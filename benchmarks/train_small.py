"""Train a small model of a family on CIFAR-10, for the benchmarks that need trained weights.

    python benchmarks/train_small.py --family sdt cifar10-train.zip sdt-cifar10.pt
    python benchmarks/train_small.py --family qkformer --device cuda --minutes 7.4 cifar10-train.zip qkformer-cifar10.pt

The first part runs at T=2, the last one at the model's own T. The learning rate follows the wall clock, so that even a
short run ends with a low learning rate. The last weights are written: no image that the benchmarks measure on chooses
anything. They are also written once a minute, so that an interrupted run leaves a file.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import model as sj
from torch import nn

from svitc.data.dataset import load_data
from svitc.ir.graph import InputSpec

SHAPE = (3, 32, 32)
NORMALIZE = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]}
BORDER = 4  # pixels added on every side before a crop
T_SHORT = 2
WARM_SHARE = 0.05  # of the time, in which the learning rate rises
SMOOTHING = 0.05  # of the labels
SAVE_SECONDS = 60.0


def jitter_batch(x: torch.Tensor) -> torch.Tensor:
    """Flip images at random, and crop them after adding a border: one crop for the batch, which is cheap on a CPU."""
    flip = torch.rand(len(x), device=x.device) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    dy, dx = torch.randint(0, 2 * BORDER + 1, (2,)).tolist()
    return F.pad(x, (BORDER,) * 4)[:, :, dy : dy + SHAPE[1], dx : dx + SHAPE[2]]


def jitter_images(x: torch.Tensor) -> torch.Tensor:
    """Flip images at random, and crop each at its own place after adding a border, all on the images' device."""
    count, device = len(x), x.device
    rows, columns = (
        torch.randint(0, 2 * BORDER + 1, (count, 1), device=device) + torch.arange(side, device=device)
        for side in SHAPE[1:]
    )
    flip = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    image = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=device)[:, None, None]
    return F.pad(x, (BORDER,) * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class Recipe:
    """How a family is built and trained.

    Attributes:
        factory: Name of the class in SpikingJelly's model package.
        module: Its submodule there.
        arch_args: Arguments of the class; sequences are lists, as JSON has them.
        batch: Images in a batch.
        lr: Highest learning rate.
        weight_decay: AdamW's.
        long: Share of the time that runs at the model's own T.
        jitter: Random flips and crops of a batch, ``[N, C, H, W]``.
    """

    factory: str
    module: str
    arch_args: dict[str, Any]
    batch: int
    lr: float
    weight_decay: float
    long: float
    jitter: Callable[[torch.Tensor], torch.Tensor]

    @property
    def arch(self) -> str:
        """Return ``module:factory``, as a checkpoint names it."""
        return f"spikingjelly.activation_based.model.{self.module}:{self.factory}"

    def build(self) -> nn.Module:
        """Return the model with random weights."""
        model: nn.Module = getattr(sj, self.factory)(**self.arch_args)
        return model


COMMON = {"T": 4, "in_channels": 3, "num_classes": 10, "embed_dims": 128}
RECIPES = {
    "sdt": Recipe(
        "SpikeDrivenTransformer",
        "spike_driven_transformer",
        {**COMMON, "num_heads": 4, "depths": 2, "pooling_stat": "1100"},
        batch=64,
        lr=2e-3,
        weight_decay=0.02,
        long=0.35,
        jitter=jitter_batch,
    ),
    "qkformer": Recipe(
        "QKFormer",
        "qkformer",
        {**COMMON, "num_heads": [1, 2, 4], "depths": [1, 2, 2], "qka_type": "token"},
        batch=256,
        lr=4e-3,
        weight_decay=0.05,
        long=0.5,
        jitter=jitter_images,
    ),
}


class Clock:
    """Wall-clock time of a run, of which the learning rate and the number of time steps are functions.

    Attributes:
        seconds: Length of the run.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.start = time.monotonic()

    @property
    def share(self) -> float:
        """Return the share of the run that is over; 1 or more at its end."""
        return (time.monotonic() - self.start) / self.seconds

    @staticmethod
    def rate(share: float) -> float:
        """Return the factor of the learning rate: a rise, and a cosine down to 0."""
        return min(1.0, share / WARM_SHARE) * 0.5 * (1 + math.cos(math.pi * share))


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Take one step of training in bfloat16, and return its loss without waiting for the device."""
    with torch.autocast(images.device.type, torch.bfloat16):
        out = model(images)
    out = out.float() if out.ndim == 2 else out.float().mean(0)
    loss = F.cross_entropy(out, labels, label_smoothing=SMOOTHING)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    functional.reset_net(model)
    return loss.detach()


def train(
    model: nn.Module,
    recipe: Recipe,
    images: torch.Tensor,
    labels: torch.Tensor,
    minutes: float,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Train a model where its images lie.

    Args:
        images: ``[N, C, H, W]``.
        labels: ``[N]``.
        minutes: How long.
        keep: Called with the metrics, once a minute and at the end.
    """
    cuda = images.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=cuda)
    clock, seen, epoch, saved = Clock(minutes), 0, 0, 0.0
    metrics: dict[str, Any] = {"train_loss": None, "epochs": 0}
    share = 0.0
    model.train()
    while share < 1:
        losses = []
        for index in torch.randperm(len(images), device=images.device).split(recipe.batch):
            share = clock.share
            if share >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * clock.rate(share)
            model.T = recipe.arch_args["T"] if share > 1 - recipe.long else T_SHORT
            losses.append(step(model, optimizer, recipe.jitter(images[index]), labels[index]))
            seen += len(index)
        epoch += 1
        if losses:
            metrics = {"train_loss": torch.stack(losses).mean().item(), "epochs": round(seen / len(images), 2)}
        seconds = clock.share * clock.seconds
        print(
            f"epoch {epoch} T={model.T} loss {metrics['train_loss']} images {seen} share {share:.3f}"
            f" {seen / seconds:.0f} images/s",
            flush=True,
        )
        if seconds - saved >= SAVE_SECONDS:
            saved = seconds
            keep(metrics)
    keep(metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", choices=list(RECIPES), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long; the schedule follows the clock")
    args = parser.parse_args()
    torch.manual_seed(0)
    recipe = RECIPES[args.family]
    model = recipe.build().to(args.device)
    data = load_data(args.data, InputSpec(SHAPE), {"normalize": NORMALIZE})
    images, labels = (torch.cat(part).to(args.device) for part in zip(*data.batches(1000), strict=True))
    print(f"{len(images)} images, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    def keep(metrics: dict[str, Any]) -> None:
        weights = {name: value.cpu() for name, value in model.state_dict().items()}
        about = {"arch": recipe.arch, "arch_args": recipe.arch_args, "classes": data.classes, "metrics": metrics}
        file = {**about, "input_shape": list(SHAPE), "normalize": NORMALIZE, "state_dict": weights}
        partial = args.out.with_suffix(".partial")
        torch.save(file, partial)
        partial.replace(args.out)

    train(model, recipe, images, labels, args.minutes, keep)


if __name__ == "__main__":
    main()
