"""Write the demo's images: `digits-test.npz`, which `train.py` never saw, and `digits-train.npz`, which it trained on.

Of the latter, 600: as many as it takes to choose a plan.
"""

import argparse
from pathlib import Path

import numpy as np

from digits import load_split

TRAIN_IMAGES = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder for both files")
    args = parser.parse_args()

    split = load_split()
    train = split.train_images[:TRAIN_IMAGES], split.train_labels[:TRAIN_IMAGES]
    for name, (images, labels) in {"test": (split.test_images, split.test_labels), "train": train}.items():
        np.savez_compressed(args.output / f"digits-{name}.npz", images=images.numpy(), labels=labels.numpy())
        print(f"digits-{name}.npz: {len(labels)} images")


if __name__ == "__main__":
    main()
