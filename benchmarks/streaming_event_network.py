"""An event network from training to a streaming file: accuracy after each step of time.

    python benchmarks/streaming_event_network.py train benchmarks/models/events-digits.pt [--minutes 3.6]
    python benchmarks/streaming_event_network.py deploy benchmarks/models/events-digits.pt

``train`` lets a simulated event camera (moving_camera.py) wander over scikit-learn's digits, counts the events into
frames, and trains a small Spikformer on them with torch and SpikingJelly. The loss is the mean of the cross-entropies
of all steps, so that early answers are good as well (Deng et al., "Temporal Efficient Training", ICLR 2022).
``--images`` takes other images of ten classes, such as CIFAR-10's in class folders, in gray.

``deploy`` writes recordings as SpikingJelly does, compiles the checkpoint with weights of each type into streaming
files, and feeds them the recordings of the test images, read back with ``load_data``. A test image's recording is fed
frame by frame; the answer after t steps is the mean of the logits of t steps. Whatever is chosen at compile time is
chosen on recordings of training images.

The events are simulated. The accuracies say what is lost on the way from training to the device, and how soon there is
a good answer; not how well events of a real camera would be classified. Milliseconds are means of one run of batch 1,
with other work on the machine's second processor.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import nn

import svitc
from common import publish
from moving_camera import Recording, record
from svitc.data.dataset import Dataset, Reading, load_data, split
from svitc.data.event_frames import checked_events, frames_of
from svitc.data.event_options import EventOptions
from svitc.ir.graph import InputSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
from digits import load_split

SIZE = 16  # pixels of the camera, both ways
STEPS = 6
VIEWS = 4 * STEPS
CLASSES = [str(label) for label in range(10)]
SHAPE = (STEPS, 2, SIZE, SIZE)
SPLIT_BY = EventOptions("time")
IMAGE_SIZE = 12  # pixels of an image, both ways, as the camera sees it
TEST_IMAGES = 1000  # of --images
PATHS_PER_IMAGE = 4  # recordings of each training image
CHOSEN_ON = 500  # recordings of training images that compilation looks at
WEIGHTS = ("fp32", "int8", "int4")
BATCH = 64
RATE, DECAY, WARM_SHARE = 4e-3, 0.02, 0.05
ARCH = "spikingjelly.activation_based.model.spikformer:Spikformer"
ARCH_ARGS = {
    "T": STEPS,
    "in_channels": 2,
    "img_size_h": SIZE,
    "img_size_w": SIZE,
    "patch_size": 4,
    "num_classes": len(CLASSES),
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
    data = load_data(path, InputSpec((1, IMAGE_SIZE, IMAGE_SIZE)), {"num_classes": len(CLASSES)})
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


class Score:
    """Top-1 accuracy after each step, of answers so far.

    Attributes:
        right: Number of right answers after each step, ``[T]``.
        seen: Number of recordings.
    """

    def __init__(self) -> None:
        self.right, self.seen = np.zeros(STEPS, int), 0

    def add(self, answers: np.ndarray, labels: np.ndarray) -> None:
        """Count answers ``[T, N, classes]`` for labels ``[N]``."""
        self.right += (answers.argmax(2) == labels).sum(1)
        self.seen += len(labels)

    def columns(self) -> dict[str, str]:
        """Return a cell for each step."""
        return {f"step {step}": f"{count / self.seen:.1%}" for step, count in enumerate(self.right, 1)}


def eager_answers(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    """Return the mean of the logits so far, ``[T, N, classes]``, of frames ``[T, N, 2, H, W]``."""
    model.eval()
    with torch.inference_mode():
        logits = model(x)
    functional.reset_net(model)
    return (logits.cumsum(0) / torch.arange(1, len(x) + 1)[:, None, None]).numpy()


def run_training(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    (images, labels), (test_images, test_labels) = images_and_labels(args.images)
    x = torch.cat([frames(record(images, SIZE, VIEWS, seed)) for seed in range(1, PATHS_PER_IMAGE + 1)])
    model = Spikformer(**ARCH_ARGS)
    print(f"{len(x)} recordings, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    metrics = train(model, x, labels.repeat(PATHS_PER_IMAGE), args.minutes)
    score = Score()
    for part, y in zip(frames(record(test_images, SIZE, VIEWS, 0)).split(100), test_labels.split(100), strict=True):
        score.add(eager_answers(model, part.transpose(0, 1)), y.numpy())
    metrics |= {"minutes": args.minutes, "test_accuracy": score.columns()}
    print(json.dumps(metrics))
    about = {"arch": ARCH, "arch_args": ARCH_ARGS, "input_shape": list(SHAPE), "classes": CLASSES, "metrics": metrics}
    torch.save({**about, "state_dict": model.state_dict()}, args.checkpoint)


def write_recordings(folder: Path, images: torch.Tensor, labels: torch.Tensor, seed: int) -> Path:
    """Write a recording of each image into class folders, as SpikingJelly writes events."""
    recordings = record(images, SIZE, VIEWS, seed)
    for number, (recording, label) in enumerate(zip(recordings, labels.tolist(), strict=True)):
        path = folder / CLASSES[label] / f"{number:04}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **recording.arrays())
    return folder


def stream_of(file: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that feeds frames ``[T, N, 2, H, W]`` one by one and returns the answer after each.

    Its result is ``[T, N, classes]``. A call starts from the states' initial values.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    states = json.loads(session.get_modelmeta().custom_metadata_map["svitc.states"])
    names = [output.name for output in session.get_outputs()]

    def run(x: np.ndarray) -> np.ndarray:
        values = {s["input"]: np.full([x.shape[1], *s["shape"][1:]], s["initial"], s["dtype"]) for s in states}
        answers = []
        for frame in x:
            outputs = dict(zip(names, session.run(names, {"image": frame, **values}), strict=True))
            answers.append(outputs[names[0]])
            values = {state["input"]: outputs[state["output"]] for state in states}
        return np.stack(answers)

    return run


def deployed(
    program: svitc.Program, weights: str, chosen_on: Dataset, test: Dataset, eager: nn.Module
) -> dict[str, Any]:
    """Return the table's row of a streaming file."""
    options = {"weights": weights, "data": chosen_on, "images": 8}
    file = svitc.compile(program, streaming=True, **options)
    whole = onnxruntime.InferenceSession(svitc.compile(program, **options).onnx, providers=["CPUExecutionProvider"])
    stream, score, seconds, equal, same_class = stream_of(file.onnx), Score(), 0.0, 0, 0
    for x, labels in test.batches(1):
        start = time.perf_counter()
        answers = stream(x.numpy())
        seconds += time.perf_counter() - start
        score.add(answers, labels.numpy())
        equal += int(np.array_equal(answers[-1], whole.run(None, {"image": x.numpy()})[0]))
        same_class += int((answers.argmax(2) == eager_answers(eager, x).argmax(2)).all())
    return {
        "network": f"streaming file, {weights}",
        "kB": round(len(file.onnx) / 1000),
        **score.columns(),
        "ms per step": round(1000 * seconds / score.seen / STEPS, 2),
        "last logits equal the whole file's": f"{equal} of {score.seen}",
        "class of eager at each step": f"{same_class} of {score.seen}",
    }


def run_deployment(args: argparse.Namespace) -> None:
    (images, labels), (test_images, test_labels) = images_and_labels(args.images)
    program = svitc.load(args.checkpoint)
    model = Spikformer(**ARCH_ARGS)
    model.load_state_dict(torch.load(args.checkpoint, weights_only=True)["state_dict"])
    with tempfile.TemporaryDirectory() as folder:
        chosen_on, test = (
            load_data(
                write_recordings(Path(folder) / name, *part),
                program.input,
                program.info,
                reading=Reading(events=SPLIT_BY),
            )
            for name, part in (
                ("train", (images[:CHOSEN_ON], labels[:CHOSEN_ON], 1)),
                ("test", (test_images, test_labels, 0)),
            )
        )
        score = Score()
        for x, y in test.batches(100):
            score.add(eager_answers(model, x), y.numpy())
        rows = [deployed(program, weights, chosen_on, test, model) for weights in WEIGHTS]
    eager = {"network": "eager PyTorch", "kB": round(args.checkpoint.stat().st_size / 1000), **score.columns()}
    rest = dict.fromkeys(rows[0].keys() - eager.keys(), "")
    publish("streaming_event_network", [{key: (eager | rest)[key] for key in rows[0]}, *rows], __doc__ or "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("--minutes", type=float, default=3.6, help="how long; the schedule follows the clock")
    training.set_defaults(run=run_training)
    deployment = commands.add_parser("deploy")
    deployment.set_defaults(run=run_deployment)
    for command in (training, deployment):
        command.add_argument("checkpoint", type=Path)
        command.add_argument("--images", type=Path, help="images of ten classes, in place of scikit-learn's digits")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
