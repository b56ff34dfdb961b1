"""Pipelines: the passes that every compilation runs, in order, and the purpose of each sequence."""

from __future__ import annotations

from collections.abc import Mapping

from svitc.analysis.input_range import input_range
from svitc.ir.pass_manager import Pass, Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes.canonical.merge_views import MergeViews
from svitc.passes.canonical.split_fused_projection import SplitFusedProjection
from svitc.passes.inference.fold_batch_norm import FoldBatchNorm
from svitc.passes.inference.fold_batch_norm_into_consumers import FoldBatchNormIntoConsumers
from svitc.passes.inference.hoist_repeat import HoistRepeat
from svitc.passes.inference.merge_padding import MergePadding
from svitc.passes.lowering.average_steps import AverageSteps
from svitc.passes.lowering.fuse_qkv import FuseQKV
from svitc.passes.lowering.reassociate_matmuls import ReassociateMatmuls
from svitc.passes.lowering.share_views import ShareViews
from svitc.passes.lowering.single_step import SingleStep
from svitc.passes.quantization.fold_neuron_scale import FoldNeuronScale
from svitc.passes.quantization.quantize_input import QuantizeInput
from svitc.passes.quantization.quantize_residual_streams import QuantizeResidualStreams
from svitc.passes.quantization.quantize_weights import QuantizeWeights


def canonical_passes() -> list[Pass]:
    """Return the passes that bring every captured program to one form, before its channel groups are used."""
    return [MergeViews(), SplitFusedProjection(), MergeViews()]


def inference_passes() -> list[Pass]:
    """Return the passes that turn a program that can be trained into one for inference."""
    return [HoistRepeat(), MergeViews(), FoldBatchNorm(), FoldBatchNormIntoConsumers(), MergePadding()]


def lowering_passes(per_step: bool = False) -> list[Pass]:
    """Return the passes that prepare a program for the ONNX lowering by sharing views and joining layers.

    Args:
        per_step: leave class scores as they are at each time step; otherwise they are averaged.
    """
    first: list[Pass] = [] if per_step else [AverageSteps()]
    return [*first, ReassociateMatmuls(), ShareViews(), FuseQKV(), MergeViews()]


def quantization_passes(bits: Mapping[str, int] | None = None, span: float | None = None) -> list[Pass]:
    """Return the passes that turn a program for inference into one of integer weights and integer sums.

    Args:
        bits: layer -> bits of its weights, where that is not 8.
        span: largest magnitude of an input; None for the usual one.
    """
    bits = dict(bits or {})  # of the layers that QuantizeInput adds, too
    return [FoldNeuronScale(), QuantizeInput(span, bits), QuantizeWeights(bits)]


def quantize(program: Program, bits: Mapping[str, int] | None = None) -> tuple[Program, Pipeline]:
    """Return an integer network with the program's weights; the program is not changed.

    Args:
        program: a program that can be trained.
        bits: layer -> 16, 4, 2 or ``TERNARY`` where its weights do not get 8.

    Returns:
        a program at stage QUANTIZED, and the pipeline with the results and refusals of its passes.

    Raises:
        UnsupportedError: weights that are infinite or not a number.
    """
    twin, span = program.copy(), input_range(program).span
    pipeline = Pipeline([QuantizeResidualStreams(), *inference_passes(), *quantization_passes(bits, span)])
    pipeline(twin)
    return twin, pipeline


def unrounded_program(program: Program, bits: Mapping[str, int] | None = None) -> Program:
    """Return what ``quantize`` makes of a program, but for the rounding of weights, at the same scales.

    Args:
        program: a program that can be trained.
        bits: layer -> 16 where its weights got these.
    """
    twin, span = program.copy(), input_range(program).span
    Pipeline([QuantizeResidualStreams(), *inference_passes(), *quantization_passes(bits, span)[:-1]])(twin)
    return twin


def exportable_program(program: Program, keep: bool = True, per_step: bool = False, recompile: bool = True) -> Program:
    """Return the program that the ONNX lowering takes.

    Args:
        program: a program that can be trained, or a quantized one.
        keep: leave the program as it is; otherwise it is changed in place.
        per_step: leave class scores as they are at each time step; otherwise they are averaged.
        recompile: whether the result can be run, and not only lowered.
    """
    twin = program.copy() if keep else program
    if twin.stage < Stage.QUANTIZED:
        Pipeline(inference_passes())(twin, recompile)
    return Pipeline(lowering_passes(per_step))(twin, recompile)


def step_program(program: Program, per_step: bool = False) -> Program:
    """Return the program of a single time step, for the ONNX lowering of a streaming file.

    Args:
        program: a program that can be trained, or a quantized one; it is left as it is.
        per_step: leave class scores as they are at each time step; otherwise they are averaged over the steps so far.

    Raises:
        UnsupportedError: an operation needs several time steps at once.
    """
    return Pipeline([SingleStep(per_step), MergeViews()])(exportable_program(program, per_step=True))
