"""Stamped files of candidates are those that an export makes, and where they would not be, there is an export."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from support.measured import family, halved, images_of, prunable
from svitc.analysis.calibration import Calibration
from svitc.evaluation import candidate_files
from svitc.evaluation.candidate_files import CandidateFiles
from svitc.evaluation.evaluator import Evaluator
from svitc.onnx.export import export_proto
from svitc.passes import Prune, RefitConsumers
from svitc.planning.plan import Plan


def pruned(program, plan, calibration, all_differs=False):
    candidate = program.copy(retype=False)
    Prune(plan)(candidate, recompile=False)
    RefitConsumers(program, plan, calibration)(candidate)
    if all_differs:  # as when batch norms are estimated again
        with torch.no_grad():
            next(candidate.module.parameters()).mul_(1.001)
    return candidate


@pytest.mark.parametrize(("name", "every"), [("spikformer", 1), ("sdt", 2), ("qkformer-token", 5)])
def test_stamped_files_measure_what_exported_ones_do(name, every):
    program = family(name)
    x, y = images_of(program, 8)
    calibration = Calibration(program, x, y)
    evaluator = Evaluator(program, [(x[:4], y[:4]), (x[4:], y[4:])], threads=1)
    for group in prunable(program)[::every]:
        for share, all_differs in ((0.75, False), (0.5, True), (0.75, True), (0.5, False)):
            plan = halved(program, group, share)
            fresh = CandidateFiles(program, export_proto(program.copy()))  # exports what it sees for the first time
            exported = fresh(pruned(program, plan, calibration, all_differs), plan, evaluator.spikes[0])
            assert fresh.stamped == 0
            stamped = evaluator.files(pruned(program, plan, calibration, all_differs), plan, evaluator.spikes[0])
            assert sizes(stamped) == sizes(exported), (group.name, share, all_differs)
            assert stamped.fed == exported.fed and stamped.known.keys() == exported.known.keys()
            for one, other in zip(nodes(stamped), nodes(exported), strict=True):
                assert one == other, (group.name, share, all_differs)
    assert evaluator.files.stamped >= 2


def sizes(file):
    """The shapes that the file gives."""
    return {v.name: v.type.SerializeToString(deterministic=True) for v in file.model.graph.value_info}


def nodes(file):
    """What is computed, whatever constants are called."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in file.model.graph.initializer}
    for node in file.model.graph.node:
        inputs = [(values[n].shape, values[n].tobytes()) if n in values else n for n in node.input]
        yield node.op_type, node.name, inputs, list(node.output), [a.SerializeToString() for a in node.attribute]


def test_a_file_that_would_differ_is_exported(monkeypatch):
    program = family("spikformer")
    x, y = images_of(program, 4)
    group = next(g for g in prunable(program) if "fc1" in g.name)
    evaluator = Evaluator(program, [(x, y)], threads=1)
    monkeypatch.setattr(candidate_files, "folded", lambda layer, norm: (layer.weight.double(), layer.weight[:, 0]))
    calibration = Calibration(program, x, y)
    for share in (0.75, 0.5):
        plan = halved(program, group, share)
        want = export_proto(pruned(program, plan, calibration))
        file = evaluator.files(pruned(program, plan, calibration), plan, evaluator.spikes[0])
        weights = {t.name: t.raw_data for t in want.graph.initializer}
        assert all(t.raw_data == weights[t.name] for t in file.model.graph.initializer if t.name.endswith(".weight"))
    assert evaluator.files.stamped == 0


def test_what_more_than_sizes_depends_on_is_exported():
    program = family("spikformer")
    files = CandidateFiles(program, export_proto(program.copy()))
    group = next(g for g in prunable(program) if "fc1" in g.name)
    single = ~halved(program, group).keep[group.name] & False
    single[0, 0] = True
    for plan in (
        None,
        Plan({group.name: single}),  # an axis of size 1 has no dimension
        Plan({g.name: halved(program, g).keep[g.name] for g in prunable(program)[:2]}),
        Plan({}),
    ):
        candidate = program.copy()
        if plan is not None:
            Prune(plan)(candidate)
        assert files._single(candidate, plan) is None
    assert files._single(program, halved(program, group)) is not None
    files._orders = [not order for order in files._orders] + [True]
    assert files._single(program, halved(program, group)) is None


def test_weights_that_a_sweep_changes_are_those_of_the_file():
    program = family("sdt")
    model = export_proto(program.copy())
    files = CandidateFiles(program, model)
    weights = [t.name for t in model.graph.initializer if t.name.endswith(("weight", "bias"))]
    assert len(weights) > 10 and files._transposed.keys() >= set(weights)
    for tensor in model.graph.initializer:
        if tensor.name in files._transposed:
            values = files._weights(program, tensor.name)
            values = values.T if files._transposed[tensor.name] else values
            assert np.array_equal(values, onnx.numpy_helper.to_array(tensor))
