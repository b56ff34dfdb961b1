"""Errors of outputs that are not class scores, and the user's metric of them."""

from __future__ import annotations

from typing import Any

from svitc import onnx as backend
from svitc import runtimes
from svitc.data.inputs import Data, has_labels
from svitc.driver.report import OutputsReport
from svitc.driver.report_sections import BATCH_IMAGES
from svitc.evaluation.comparison import RelativeError
from svitc.evaluation.metric import BatchMetric, Metric
from svitc.ir.program import Program
from svitc.support.reporter import Reporter


def outputs_report(
    program: Program, exported: bytes, data: Data, metric: Metric | None, reporter: Reporter
) -> OutputsReport:
    """Compare the outputs of an exported file with the original's, batch by batch.

    Args:
        program: the original.
        exported: the ONNX file.
        data: the images, whose labels only the metric uses.
        metric: the user's metric, or None.
        reporter: told about progress.
    """
    session, labeled = runtimes.session(exported), has_labels(data)
    measured = None if metric is None else BatchMetric(metric, program)
    errors = {name: RelativeError() for name in program.output_names}
    images, totals = 0, [0.0, 0.0]
    with reporter.stage("outputs", len(data)) as step:
        for x, labels in data.batches(program.input.at_once(BATCH_IMAGES)):
            count = x.shape[program.input.batch_dim]
            original = [output.numpy() for output in program.original_outputs(x)]
            compiled = session.run(program.output_names, {backend.INPUT: x.numpy()})
            for error, value, expected in zip(errors.values(), compiled, original, strict=True):
                error.add(value, expected)
            if measured is not None:
                targets: Any = labels if labeled else measured.tensors(original)
                for i, outputs in enumerate((original, compiled)):
                    totals[i] += measured(outputs, targets) * count
            step(images := images + count)
    means = [total / images for total in totals]
    return OutputsReport(
        images=images,
        relative_errors={name: error.share for name, error in errors.items()},
        metric=None
        if measured is None
        else {"name": measured.name, "original": means[0], "compiled": means[1], "drop": means[0] - means[1]},
        targets="labels" if labeled else "original",
    )


__all__ = ["outputs_report"]
