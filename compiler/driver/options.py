"""How to compile, beyond what and how small."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svitc.data.dataset import Dataset
from svitc.data.inputs import Data


@dataclass(frozen=True)
class PreparationOptions:
    """What is done before pruning, losslessly: fields of ``CompileOptions``."""

    reparam: str
    remove_dead_channels: str


@dataclass(frozen=True)
class CompileOptions:
    """How to compile, beyond what and how small.

    Attributes:
        data: labelled images that accuracies are reported on; verification looks at the first of them.
        train_data: images to fine-tune on. Where they are given plans are chosen on them, too, so that
            ``data`` stays unseen.
        max_drop: the most accuracy that a plan may lose before fine-tuning, a share.
        sweep_images: plans are chosen on so many images.
        calibration_images: refits and criteria look at so many others.
        sweep_file: where finished points of the sweep go; None keeps them in memory.
        resume: go on with what is in ``sweep_file``, and with an unfinished fine-tuning.
        finetune: epochs; 0 for none.
        finetune_options: more fields of ``FinetuneOptions``.
        weights: ``fp32``; ``int8``, ``int4`` or ``int2``: whole numbers of so many bits, with exact sums (quantized.py);
            or ``mixed``: each layer's own. None leaves it to the policy and the budget (weight_types.py).
        min_weight_bits: the fewest bits that the file stores weights in, for an ONNX Runtime that lacks the type.
        target: ``cpu``, or ``cuda``: operators and types that ONNX Runtime's CUDA provider has (docs/targets.md).
        reparam: ``auto`` makes one convolution of a row of them, before pruning, where that is smaller or
            faster; ``off`` does not. A plan that is replayed brings its own.
        remove_dead_channels: ``auto`` first removes neurons that no input can make fire, and folds those that always fire into
            their readers, which loses nothing (passes/remove_constant_channels.py); ``off`` does not.
        images: how many images verification looks at.
        seed: of everything random.
    """

    data: Data | None = None
    train_data: Dataset | None = None
    max_drop: float | None = None
    sweep_images: int = 1000
    calibration_images: int = 256
    sweep_file: Path | None = None
    resume: bool = False
    finetune: int = 0
    finetune_options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    min_weight_bits: int | None = None
    target: str = "cpu"
    reparam: str = "auto"
    remove_dead_channels: str = "auto"
    images: int = 4
    seed: int = 0

    @property
    def preparation(self) -> PreparationOptions:
        """What is done before pruning."""
        return PreparationOptions(self.reparam, self.remove_dead_channels)

    @property
    def sampled(self) -> bool:
        """Whether plans can be chosen on images: images of a user's own class serve for the report alone."""
        return isinstance(self.choosing, Dataset)

    @property
    def choosing(self) -> Data | None:
        """The images that plans are chosen on."""
        return self.train_data or self.data


__all__ = ["CompileOptions", "PreparationOptions"]
