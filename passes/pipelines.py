"""The pipelines that every compilation runs, in order: what each is for is said here, once."""

from __future__ import annotations

from collections.abc import Mapping

from svitc.ir.pass_manager import Pass, Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes.canonical.merge_views import MergeViews
from svitc.passes.canonical.split_fused_projection import SplitFusedProjection
from svitc.passes.inference.fold_batch_norm import FoldBatchNorm
from svitc.passes.inference.fold_batch_norm_into_consumers import FoldBatchNormIntoConsumers
from svitc.passes.inference.hoist_repeat import HoistRepeat
from svitc.passes.inference.merge_padding import MergePadding
from svitc.passes.lowering.fuse_qkv import FuseQKV
from svitc.passes.lowering.reassociate_matmuls import ReassociateMatmuls
from svitc.passes.lowering.share_views import ShareViews
from svitc.passes.quantization.fold_neuron_scale import FoldNeuronScale
from svitc.passes.quantization.quantize_input import QuantizeInput
from svitc.passes.quantization.quantize_residual_streams import QuantizeResidualStreams
from svitc.passes.quantization.quantize_weights import QuantizeWeights


def canonical_passes() -> list[Pass]:
    """What every captured program goes through before anything looks at its groups."""
    return [MergeViews(), SplitFusedProjection(), MergeViews()]


def inference_passes() -> list[Pass]:
    """From a program that trains to one that is exported."""
    return [HoistRepeat(), MergeViews(), FoldBatchNorm(), FoldBatchNormIntoConsumers(), MergePadding()]


def lowering_passes() -> list[Pass]:
    """From there to what the ONNX lowering gets: the same layers, joined where one operation does for several."""
    return [ReassociateMatmuls(), ShareViews(), FuseQKV(), MergeViews()]


def quantization_passes(bits: Mapping[str, int] | None = None) -> list[Pass]:
    """From a program for inference to one of integer weights and whole-numbered sums; ``bits`` where they are not 8."""
    return [FoldNeuronScale(), QuantizeInput(), QuantizeWeights(bits)]


def quantize(program: Program, bits: Mapping[str, int] | None = None) -> tuple[Program, Pipeline]:
    """An integer network with the program's weights; the program is not changed.

    Args:
        bits: layer -> 4 or 2 where its weights are not to have 8.

    Returns:
        a program at stage QUANTIZED, and what its passes did and refused.

    Raises:
        UnsupportedError: weights that are infinite or not a number.
    """
    twin = program.copy()
    pipeline = Pipeline([QuantizeResidualStreams(), *inference_passes(), *quantization_passes(bits)])
    pipeline(twin)
    return twin, pipeline


def exportable_program(program: Program, keep: bool = True) -> Program:
    """What the ONNX lowering gets: of a program that trains, or of a quantized one.

    Args:
        keep: leave the program as it is; else it is used up.
    """
    twin = program.copy() if keep else program
    if twin.stage < Stage.QUANTIZED:
        Pipeline(inference_passes())(twin)
    return Pipeline(lowering_passes())(twin)
