"""Write the demo's held-out images, the ones `train.py` never saw, to `demo/digits-test.npz`."""

import argparse
from pathlib import Path

import numpy as np

from digits import load_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("digits-test.npz"))
    args = parser.parse_args()

    split = load_split()
    np.savez_compressed(args.output, images=split.test_images.numpy(), labels=split.test_labels.numpy())
    print(f"{args.output.name}: {len(split.test_labels)} held-out images")


if __name__ == "__main__":
    main()
