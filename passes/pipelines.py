"""The pipelines that every compilation runs, in order: what each is for is said here, once."""

from __future__ import annotations

from collections.abc import Mapping

from svitc.ir.pass_manager import Pass, Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes.canonical.merge_views import MergeViews
from svitc.passes.canonical.split_fused_projection import SplitFusedProjection
from svitc.passes.inference.fold_batch_norm import FoldBatchNorm
from svitc.passes.inference.fold_batch_norm_into_readers import FoldBatchNormAhead
from svitc.passes.inference.hoist_repeat import HoistRepeat
from svitc.passes.inference.merge_padding import MergePadding
from svitc.passes.lowering.fuse_qkv import FuseSiblings
from svitc.passes.lowering.reassociate_matmuls import AssociateProducts
from svitc.passes.lowering.share_views import ShareViews
from svitc.passes.quantization.fold_neuron_scale import FoldLeak
from svitc.passes.quantization.quantize_input import QuantizeInput
from svitc.passes.quantization.quantize_residual_streams import QuantizeStreams
from svitc.passes.quantization.quantize_weights import Quantize


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
    pipeline = Pipeline([QuantizeStreams(), *inference(), *quantization(bits)])
    pipeline(twin)
    return twin, pipeline


def exportable_program(program: Program, keep: bool = True) -> Program:
    """What the ONNX lowering gets: of a program that trains, or of a quantized one.

    Args:
        keep: leave the program as it is; else it is used up.
    """
    twin = program.copy() if keep else program
    if twin.stage < Stage.QUANTIZED:
        Pipeline(inference())(twin)
    return Pipeline(lowering())(twin)
