"""The demo's data: scikit-learn's digits, enlarged to 16x16, in one fixed split."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SIZE = 16  # the digits are 8x8; at that size a patch of 4 would leave four tokens
CLASSES = [str(digit) for digit in range(10)]
INPUT_SHAPE = [1, SIZE, SIZE]


class Split(NamedTuple):
    """Images, float32 [N, 1, 16, 16] in [0, 1], not normalized, and labels, int64 [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_split() -> Split:
    """Hold out the same stratified 20% on every call: 1,437 images to train on, 360 to test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # gray levels are 0 to 16
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=digits.target)
    return Split(images[train], labels[train], images[test], labels[test])
