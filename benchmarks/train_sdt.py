"""Train the second family of the policy benchmarks: a small Spike-Driven Transformer on CIFAR-10.

    python benchmarks/train_sdt.py cifar10-train.zip sdt-cifar10.pt --epochs 10

The first epochs run at T=2, the last ones at the model's own T=4. The learning rate follows the wall clock where
`--minutes` is given, so that even a short run ends with a low learning rate. The last weights
are written: no image that the benchmarks measure on chooses anything.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model.spike_driven_transformer import SpikeDrivenTransformer

from svitc.data.dataset import load_data
from svitc.ir.graph import InputSpec

ARCH = "spikingjelly.activation_based.model.spike_driven_transformer:SpikeDrivenTransformer"
ARCH_ARGS = {
    "T": 4,
    "in_channels": 3,
    "num_classes": 10,
    "embed_dims": 128,
    "num_heads": 4,
    "depths": 2,
    "pooling_stat": "1100",
}
SHAPE = (3, 32, 32)
NORMALIZE = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]}
T_SHORT = 2


def jitter(x: torch.Tensor) -> torch.Tensor:
    """Flip at random, and crop after adding a border of four pixels: once for the batch, which is cheap and enough."""
    flip = torch.rand(len(x)) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    dy, dx = torch.randint(0, 9, (2,)).tolist()
    return F.pad(x, (4, 4, 4, 4))[:, :, dy : dy + SHAPE[1], dx : dx + SHAPE[2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long; the schedule follows the clock")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--long", type=float, default=0.35, help="share of the time that runs at the model's own T")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = SpikeDrivenTransformer(**ARCH_ARGS)
    data = load_data(args.data, InputSpec(SHAPE), {"normalize": NORMALIZE})
    images, labels = (torch.cat(part) for part in zip(*data.batches(1000), strict=True))
    print(f"{len(images)} images, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.02)
    start, seen, epoch, history = time.monotonic(), 0, 0, []
    share = 0.0
    model.train()
    while share < 1:
        losses = []
        for index in torch.randperm(len(images)).split(args.batch):
            share = (time.monotonic() - start) / (60 * args.minutes)
            if share >= 1:
                break
            warm = min(1.0, share / 0.05)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * warm * 0.5 * (1 + math.cos(math.pi * share))
            model.T = ARCH_ARGS["T"] if share > 1 - args.long else T_SHORT
            with torch.autocast("cpu", torch.bfloat16):
                out = model(jitter(images[index]))
            out = out.float() if out.ndim == 2 else out.float().mean(0)
            loss = F.cross_entropy(out, labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            functional.reset_net(model)
            losses.append(loss.item())
            seen += len(index)
        epoch += 1
        history.append(float(np.mean(losses)) if losses else None)
        print(f"epoch {epoch} T={model.T} loss {history[-1]} images {seen} share {share:.3f}", flush=True)
    model.T = ARCH_ARGS["T"]
    torch.save(
        {
            "arch": ARCH,
            "arch_args": ARCH_ARGS,
            "input_shape": list(SHAPE),
            "normalize": NORMALIZE,
            "classes": data.classes,
            "state_dict": model.eval().state_dict(),
            "metrics": {"train_loss": history[-1], "epochs": round(seen / len(images), 2)},
        },
        args.out,
    )


if __name__ == "__main__":
    main()
