"""Agreement: how often the file and the original choose the same class, which needs no labels."""

from __future__ import annotations

import numpy as np

from svitc import onnx as backend
from svitc import runtimes
from svitc.data.dataset import Dataset
from svitc.data.inputs import Data
from svitc.driver.report import AgreementReport
from svitc.driver.report_sections import original_scores
from svitc.evaluation.comparison import log_softmax
from svitc.ir.outputs import required_scores
from svitc.ir.program import Program
from svitc.support.confidence import wilson
from svitc.support.reporter import Reporter


def log_probabilities(program: Program, data: Data, reporter: Reporter) -> list[np.ndarray]:
    """Return the log-probabilities ``[N, classes]`` of the original for images in PyTorch, batch by batch."""
    batches = original_scores(program, data, reporter, "classes of the original")
    return [log_softmax(scores).astype(np.float32) for scores in batches]


def agreement_report(
    program: Program, original: list[np.ndarray], exported: bytes, data: Data, reporter: Reporter
) -> AgreementReport:
    """Measure how often an exported file chooses the class that the original chooses.

    Args:
        program: the original.
        original: log-probabilities of the original, batch by batch.
        exported: the ONNX file.
        data: the images; labels are not used.
        reporter: told about progress.
    """
    session, scores = runtimes.session(exported), required_scores(program.graph, program.info)
    same = images = 0
    divergence = 0.0
    with reporter.stage("agreement", len(data)) as step:
        for (x, _), expected in zip(data.batches(len(original[0])), original, strict=True):
            log = log_softmax(scores.of(session.run(program.output_names, {backend.INPUT: x.numpy()})))
            same += int((log.argmax(axis=-1) == expected.argmax(axis=-1)).sum())
            divergence += float((np.exp(expected) * (expected - log)).sum())
            step(images := images + len(log))
    return AgreementReport(
        images=images,
        share=same / images,
        interval=wilson(same, images),
        divergence=divergence / images,
        notes=data.remarks() if isinstance(data, Dataset) else list(getattr(data, "notes", ())),
        unreadable=len(getattr(data, "unreadable", ())),
    )


__all__ = ["agreement_report", "log_probabilities"]
