"""Passes: one rewrite a file. The pipelines that the driver runs are listed here, in order."""

from __future__ import annotations

from svitc.pass_base import Pass

from .fold_batch_norm import FoldBatchNorm
from .hoist_repeat import HoistRepeat
from .merge_views import MergeViews
from .prune import Prune
from .split_fused import SplitFusedProjection


def canonical() -> list[Pass]:
    """What every captured program goes through before anything looks at its groups."""
    return [MergeViews(), SplitFusedProjection(), MergeViews()]


def inference() -> list[Pass]:
    """From a program that trains to one that is exported."""
    return [HoistRepeat(), MergeViews(), FoldBatchNorm()]


__all__ = [
    "FoldBatchNorm",
    "HoistRepeat",
    "MergeViews",
    "Prune",
    "SplitFusedProjection",
    "canonical",
    "inference",
]
