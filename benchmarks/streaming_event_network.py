"""An event network from training to deployment: accuracy after each step of time.

    python benchmarks/streaming_event_network.py train events.pt [--minutes 3.5] [--images cifar10-train.zip]
    python benchmarks/streaming_event_network.py deploy events.pt

``train`` lets a simulated event camera (moving_camera.py) wander over scikit-learn's digits, or over gray versions of
``--images``, counts the events into frames as svitc does with any recording, and trains a small Spikformer on them with
torch and SpikingJelly. The loss is the mean of the cross-entropies of all steps, so that early answers are good as well
(Deng et al., "Temporal Efficient Training", ICLR 2022). It writes a checkpoint, and the recordings of the test images
beside it, as SpikingJelly writes events.

``deploy`` compiles the checkpoint with weights of each type, with the recordings as ``--data``, and measures on the
recordings of the test images. After t steps the answer is the mean of the logits of t steps. The events are simulated:
the accuracies say that nothing is lost on the way to the device, not how well a real camera's events would be classified.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import nn

from common import publish
from moving_camera import Recording, record
from svitc.data.dataset import load_data, split
from svitc.data.event_frames import checked_events, frames_of
from svitc.data.event_options import EventOptions
from svitc.ir.graph import InputSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
from digits import load_split

SIZE = 16  # pixels of the camera, both ways
STEPS = 6
VIEWS_PER_STEP = 4
SHAPE = (STEPS, 2, SIZE, SIZE)
SPLIT_BY = EventOptions("time")
IMAGE_SIZE = 12  # pixels of an image, both ways, as the camera sees it
TEST_IMAGES = 1000  # of --images
PATHS_PER_IMAGE = 4  # recordings of each training image
BATCH = 64
RATE, DECAY, WARM_SHARE = 4e-3, 0.02, 0.05
ARCH = "spikingjelly.activation_based.model.spikformer:Spikformer"
ARCH_ARGS = {
    "T": STEPS,
    "in_channels": 2,
    "img_size_h": SIZE,
    "img_size_w": SIZE,
    "patch_size": 4,
    "num_classes": 10,
    "embed_dims": 64,
    "num_heads": 4,
    "depths": 1,
}


def images_and_labels(path: Path | None) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return images to train on, ``[N, H, W]`` in [0, 1], with labels, and those to test on."""
    if path is None:
        digits = load_split()
        train_images, test_images = (
            F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)[:, 0]
            for images in (digits.train_images, digits.test_images)
        )
        return (train_images, digits.train_labels), (test_images, digits.test_labels)
    data = load_data(path, InputSpec((1, IMAGE_SIZE, IMAGE_SIZE)), {"num_classes": ARCH_ARGS["num_classes"]})
    test, train = split(data, TEST_IMAGES)

    def tensors(part: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = zip(*part.batches(1000), strict=True)
        return torch.cat(images)[:, 0], torch.cat(labels)

    return tensors(train), tensors(test)


def frames(recordings: list[Recording]) -> torch.Tensor:
    """Return the frames of recordings, ``[N, T, 2, H, W]``."""
    events = (checked_events(recording.arrays()) for recording in recordings)
    return torch.from_numpy(np.stack([frames_of("a recording", e, SHAPE, SPLIT_BY) for e in events]))


def train(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, minutes: float) -> dict[str, Any]:
    """Train on frames ``[N, T, 2, H, W]`` for a time, and return the last loss and the number of epochs."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    start, share, seen, loss = time.monotonic(), 0.0, 0, torch.zeros(())
    model.train()
    while share < 1:
        for index in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            share = (time.monotonic() - start) / (60 * minutes)
            if share >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, share / WARM_SHARE) * 0.5 * (1 + math.cos(math.pi * share))
            logits = model(x[index].transpose(0, 1))
            functional.reset_net(model)
            loss = F.cross_entropy(logits.flatten(0, 1), labels[index].repeat(STEPS), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += BATCH
        print(f"share {share:.2f} images {seen} loss {loss.item():.3f}", flush=True)
    return {"train_loss": loss.item(), "epochs": round(seen / len(x), 1)}


def running_accuracy(logits: Iterator[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Return the top-1 accuracy after each step, of the mean of the logits so far.

    Args:
        logits: Logits ``[T, N, classes]`` and labels ``[N]`` of each batch.
    """
    right, seen = np.zeros(STEPS), 0
    for steps, labels in logits:
        means = steps.cumsum(0) / np.arange(1, len(steps) + 1)[:, None, None]
        right += (means.argmax(2) == labels).sum(1)
        seen += len(labels)
    return (right / seen).tolist()


def batches_of_model(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the logits of each step, ``[T, N, classes]``, and labels."""
    model.eval()
    for part, y in zip(x.split(100), labels.split(100), strict=True):
        with torch.inference_mode():
            yield model(part.transpose(0, 1)).numpy(), y.numpy()
        functional.reset_net(model)


def run_training(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    (train_images, train_labels), (test_images, test_labels) = images_and_labels(args.images)
    views = STEPS * VIEWS_PER_STEP
    x = torch.cat([frames(record(train_images, SIZE, views, seed)) for seed in range(1, PATHS_PER_IMAGE + 1)])
    recordings = record(test_images, SIZE, views, seed=0)
    model = Spikformer(**ARCH_ARGS)
    print(f"{len(x)} recordings, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    metrics = train(model, x, train_labels.repeat(PATHS_PER_IMAGE), args.minutes)
    accuracy = running_accuracy(batches_of_model(model, frames(recordings), test_labels))
    metrics |= {"accuracy_after_step": accuracy, "events": sum(len(r.t) for r in recordings) / len(recordings)}
    print(", ".join(f"{100 * value:.1f}%" for value in accuracy))
    about = {"arch": ARCH, "arch_args": ARCH_ARGS, "input_shape": list(SHAPE), "metrics": metrics}
    classes = [str(label) for label in range(ARCH_ARGS["num_classes"])]
    torch.save({**about, "classes": classes, "state_dict": model.state_dict()}, args.checkpoint)
    folder = args.checkpoint.with_suffix("")
    for number, (recording, label) in enumerate(zip(recordings, test_labels.tolist(), strict=True)):
        path = folder / classes[label] / f"{number:04}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **recording.arrays())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("checkpoint", type=Path)
    training.add_argument("--minutes", type=float, default=3.5, help="how long; the schedule follows the clock")
    training.add_argument("--images", type=Path, help="class folders of images, in place of scikit-learn's digits")
    training.set_defaults(run=run_training)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
