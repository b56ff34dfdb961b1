"""Passes: rewrites of a program, one in each file, in folders by when they run.

``canonical`` passes run before pruning, ``pruning`` passes carry out the plan, ``inference`` passes run once training
is over, ``quantization`` passes produce integer weights, and ``lowering`` passes run for the exported file alone.
``policies`` choose the plan.

Imports: ``analysis``, ``planning``, ``quantization``, ``ir`` and what is below them; never ``frontends``.

Start with ``lowering/share_views.py``, the shortest pass; ``pipelines.py`` puts all of them in order.
"""

from __future__ import annotations

from svitc.passes.canonical.merge_conv_chain import MergeConvChain, reparameterize
from svitc.passes.canonical.merge_views import MergeViews
from svitc.passes.canonical.remove_constant_channels import remove_constant_channels
from svitc.passes.canonical.split_fused_projection import SplitFusedProjection
from svitc.passes.inference.fold_batch_norm import FoldBatchNorm
from svitc.passes.inference.fold_batch_norm_into_consumers import FoldBatchNormIntoConsumers
from svitc.passes.inference.hoist_repeat import HoistRepeat
from svitc.passes.inference.merge_padding import MergePadding
from svitc.passes.lowering.fuse_qkv import FuseQKV
from svitc.passes.lowering.reassociate_matmuls import ReassociateMatmuls
from svitc.passes.lowering.share_views import ShareViews
from svitc.passes.pruning.low_rank import LowRank, SplitLowRank
from svitc.passes.pruning.prune import Prune
from svitc.passes.pruning.reestimate_batch_norm import ReestimateBatchNorm
from svitc.passes.pruning.refit_consumers import RefitConsumers
from svitc.passes.quantization.fold_neuron_scale import FoldNeuronScale
from svitc.passes.quantization.quantize_input import QuantizeInput
from svitc.passes.quantization.quantize_residual_streams import QuantizeResidualStreams
from svitc.passes.quantization.quantize_weights import QuantizeWeights
from svitc.passes.quantization.round_weights import RoundWeights

__all__ = [
    "FoldBatchNorm",
    "FoldBatchNormIntoConsumers",
    "FoldNeuronScale",
    "FuseQKV",
    "HoistRepeat",
    "LowRank",
    "MergeConvChain",
    "MergePadding",
    "MergeViews",
    "Prune",
    "QuantizeInput",
    "QuantizeResidualStreams",
    "QuantizeWeights",
    "ReassociateMatmuls",
    "ReestimateBatchNorm",
    "RefitConsumers",
    "RoundWeights",
    "ShareViews",
    "SplitFusedProjection",
    "SplitLowRank",
    "remove_constant_channels",
    "reparameterize",
]

_OLD_NAMES = {
    "AssociateProducts": ReassociateMatmuls,
    "FoldBatchNormAhead": FoldBatchNormIntoConsumers,
    "FoldLeak": FoldNeuronScale,
    "FuseSiblings": FuseQKV,
    "MergeConvolutions": MergeConvChain,
    "Quantize": QuantizeWeights,
    "QuantizeStreams": QuantizeResidualStreams,
    "RefitReaders": RefitConsumers,
    "remove_silent": remove_constant_channels,
    "reparameterise": reparameterize,
}


def __getattr__(name: str) -> object:
    """Return a pass by the name that it had before version 0.2."""
    if name in _OLD_NAMES:
        return _OLD_NAMES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
