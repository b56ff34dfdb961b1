"""What a compilation may be told beyond what and how small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from svitc.data.dataset import Dataset
from svitc.data.inputs import Data
from svitc.support.timing import Progress


class PreparationOptions(NamedTuple):
    """What is done before pruning, losslessly: fields of ``Options``."""

    reparam: str
    clean: str


@dataclass
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
        finetune_options: more arguments of ``finetune``.
        finetune_file: where its epochs go.
        weights: ``fp32``; ``int8``, ``int4`` or ``int2``: whole numbers of so many bits, with exact sums
            (``ir.quantized_modules``); or ``mixed``: each layer's own. None leaves it to the policy and the budget
            (``weight_types.py``).
        narrowest: the fewest bits that the file stores weights in, for an ONNX Runtime that lacks the type.
        target: ``cpu``, or ``cuda``: operators and types that ONNX Runtime's CUDA provider has (docs/targets.md).
        reparam: ``auto`` makes one convolution of a row of them, before pruning, where that is smaller or
            faster; ``off`` does not. A plan that is replayed brings its own.
        clean: ``auto`` first removes neurons that no input can make fire, and folds those that always fire into
            their readers, which loses nothing (passes/canonical/remove_constant_channels.py); ``off`` does not.
        images: how many images verification looks at.
        seed: of everything random.
        progress: called as stages go on.
        say: called with a sentence on each decision.
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
    finetune_file: Path | None = None
    weights: str | None = None
    narrowest: int | None = None
    target: str = "cpu"
    reparam: str = "auto"
    clean: str = "auto"
    images: int = 4
    seed: int = 0
    progress: Progress | None = None
    say: Callable[[str], None] | None = None


__all__ = ["CompileOptions", "PreparationOptions"]
