"""Passes: one rewrite a file. The pipelines that the driver runs are listed here, in order."""

from __future__ import annotations

from svitc.passes.canonical.merge_conv_chain import MergeConvolutions, reparameterise
from svitc.passes.canonical.merge_views import MergeViews
from svitc.passes.canonical.remove_constant_channels import remove_silent
from svitc.passes.canonical.split_fused_projection import SplitFusedProjection
from svitc.passes.inference.fold_batch_norm import FoldBatchNorm
from svitc.passes.inference.fold_batch_norm_into_readers import FoldBatchNormAhead
from svitc.passes.inference.hoist_repeat import HoistRepeat
from svitc.passes.inference.merge_padding import MergePadding
from svitc.passes.lowering.fuse_qkv import FuseSiblings
from svitc.passes.lowering.reassociate_matmuls import AssociateProducts
from svitc.passes.lowering.share_views import ShareViews
from svitc.passes.pruning.prune import Prune
from svitc.passes.pruning.reestimate_batch_norm import ReestimateBatchNorm
from svitc.passes.pruning.refit_consumers import RefitReaders
from svitc.passes.quantization.fold_neuron_scale import FoldLeak
from svitc.passes.quantization.quantize_input import QuantizeInput
from svitc.passes.quantization.quantize_residual_streams import QuantizeStreams
from svitc.passes.quantization.quantize_weights import Quantize
from svitc.passes.quantization.round_weights import RoundWeights

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
    "remove_silent",
    "reparameterise",
]
