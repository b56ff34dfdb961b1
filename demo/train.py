"""Train the demo's model, a small Spikformer on scikit-learn's digits, and write `demo/digits.pt`.

The last epoch's weights are the ones that are written: the held-out images choose nothing.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import Tensor, nn

from digits import CLASSES, INPUT_SHAPE, SIZE, load_split

ARCH = "spikingjelly.activation_based.model:Spikformer"
ARCH_ARGS = {
    "T": 4,
    "in_channels": 1,
    "img_size_h": SIZE,
    "img_size_w": SIZE,
    "patch_size": 4,
    "num_classes": len(CLASSES),
    "embed_dims": 64,
    "num_heads": 4,
    "depths": 2,
}


def jitter(images: Tensor) -> Tensor:
    """Turn, scale and shift each image by its own small random amount."""
    angle, scale, dx, dy = (torch.rand(4, len(images)) * 2 - 1).unbind()
    angle, scale = angle * math.radians(12), 1 + scale * 0.1
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, dx * 0.15, sin, cos, dy * 0.15], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the output averaged over time, and reset the membranes for the next batch."""
    output = model(images).mean(0)
    functional.reset_net(model)
    return output


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the top-1 accuracy in percent."""
    model.eval()
    right = sum(
        int((logits(model, x).argmax(1) == y).sum()) for x, y in zip(images.split(120), labels.split(120), strict=True)
    )
    return 100 * right / len(labels)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int, lr: float) -> None:
    """Train with AdamW, and one warm-up and decay of the learning rate."""
    steps = len(labels) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.1)
    start = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        total = 0.0
        # The last, incomplete batch is left out: its batch norm statistics would be the noisiest.
        for index in torch.randperm(len(labels))[: steps * batch].split(batch):
            loss = F.cross_entropy(logits(model, jitter(images[index])), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1:3}/{epochs}  loss {total / steps:.3f}  {seconds:4.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("digits.pt"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="fixed, as it sets the order of float sums")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)

    split = load_split()
    mean, std = split.train_images.mean().item(), split.train_images.std().item()
    model = Spikformer(**ARCH_ARGS)
    train(model, (split.train_images - mean) / std, split.train_labels, args.epochs, args.batch, args.lr)
    top1 = accuracy(model, (split.test_images - mean) / std, split.test_labels)

    checkpoint = {
        "state_dict": model.state_dict(),
        "arch": ARCH,
        "arch_args": ARCH_ARGS,
        "input_shape": INPUT_SHAPE,
        "normalize": {"mean": [mean], "std": [std]},
        "classes": CLASSES,
        "metrics": {f"top1_digits_test_{len(split.test_labels)}": round(top1, 2)},
    }
    torch.save(checkpoint, args.output)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.output.name}: {top1:.2f}% of {len(split.test_labels)} held-out digits")
    print(f"{parameters:,} parameters, {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
