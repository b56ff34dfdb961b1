"""Passes: one rewrite a file. The pipelines that the driver runs are listed here, in order."""

from __future__ import annotations

from collections.abc import Mapping

from svitc.pass_base import Pass

from .associate import AssociateProducts
from .fold_batch_norm import FoldBatchNorm
from .fold_batch_norm_ahead import FoldBatchNormAhead
from .fold_leak import FoldLeak
from .fuse_siblings import FuseSiblings
from .hoist_repeat import HoistRepeat
from .merge_convolutions import MergeConvolutions, reparameterise
from .merge_padding import MergePadding
from .merge_views import MergeViews
from .prune import Prune
from .quantize import Quantize, QuantizeInput
from .quantize_streams import QuantizeStreams
from .reestimate_batch_norm import ReestimateBatchNorm
from .refit_readers import RefitReaders
from .remove_silent import remove_silent
from .round_weights import RoundWeights
from .share_views import ShareViews
from .split_fused import SplitFusedProjection


def canonical() -> list[Pass]:
    """What every captured program goes through before anything looks at its groups."""
    return [MergeViews(), SplitFusedProjection(), MergeViews()]


def inference() -> list[Pass]:
    """From a program that trains to one that is exported."""
    return [HoistRepeat(), MergeViews(), FoldBatchNorm(), FoldBatchNormAhead(), MergePadding()]


def lowering() -> list[Pass]:
    """From there to what the ONNX lowering gets: the same layers, joined where one operation does for several."""
    return [AssociateProducts(), ShareViews(), FuseSiblings(), MergeViews()]


def quantization(bits: Mapping[str, int] | None = None) -> list[Pass]:
    """From a program for inference to one of integer weights and whole-numbered sums; ``bits`` where they are not 8."""
    return [FoldLeak(), QuantizeInput(), Quantize(bits)]


__all__ = [
    "AssociateProducts",
    "FoldBatchNorm",
    "FoldBatchNormAhead",
    "FoldLeak",
    "FuseSiblings",
    "HoistRepeat",
    "MergeConvolutions",
    "MergePadding",
    "MergeViews",
    "Prune",
    "Quantize",
    "QuantizeInput",
    "QuantizeStreams",
    "ReestimateBatchNorm",
    "RefitReaders",
    "RoundWeights",
    "ShareViews",
    "SplitFusedProjection",
    "canonical",
    "inference",
    "lowering",
    "quantization",
    "remove_silent",
    "reparameterise",
]
