"""Relative errors of outputs that are not class scores, and metrics of the user's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support import several
from svitc.errors import InputError, UsageError
from svitc.evaluation.comparison import SAMPLED_VALUES, OutputReader, RelativeError
from svitc.evaluation.evaluator import Evaluator
from svitc.evaluation.metric import BatchMetric, load_metric
from svitc.passes.pruning.prune import Prune
from svitc.planning.plan import Plan


def noise(images: int = 6) -> torch.Tensor:
    return torch.randn(several.IMAGE.batched(images), generator=torch.Generator().manual_seed(0))


def halves(x: torch.Tensor, labels: torch.Tensor | None = None):
    labels = torch.full((len(x),), -1) if labels is None else labels
    return list(zip(x.split(4), labels.split(4), strict=True))


def pruned(program, share: int = 3):
    copy = program.copy()
    keep = {g.name: np.arange(g.size).reshape(1, -1) % share > 0 for g in program.groups if g.frozen is None}
    Prune(Plan(keep))(copy)
    return copy


@pytest.fixture(scope="module", params=["Tuple", "Maps", "Detection", "Dense"])
def measured(request):
    program, x = several.program_of(several.build(request.param)), noise()
    candidate = pruned(program)
    outputs = [[t.numpy() for t in network.outputs(x)] for network in (program, candidate)]
    return program, Evaluator(program, halves(x), threads=1), candidate, outputs


def test_a_relative_error_is_that_of_all_images():
    total, a, b = RelativeError(), np.float32([[1, 2], [3, 0]]), np.float32([[1, 0], [3, 1]])
    assert total.share == 0
    total.add(b, a)
    assert total.share == 5 / 14
    zeros = RelativeError()
    zeros.add(np.zeros(3), np.zeros(3))
    assert zeros.share == 0
    zeros.add(np.ones(3), np.zeros(3))
    assert zeros.share == 1


def test_the_original_is_equal_to_itself(measured):
    program, evaluator, _, _ = measured
    point = evaluator(program.copy())
    assert point.divergence == 0 and point.drop == 0 and evaluator.original == point


def test_divergence_is_the_mean_over_outputs(measured):
    _, evaluator, candidate, (before, after) = measured
    point = evaluator(candidate.copy())
    scores = evaluator.reader.scores
    parts = []
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        if scores is not None and i == scores.index:
            p, q = (torch.from_numpy(v).double().log_softmax(-1) for v in (a, b))
            parts.append(float((p.exp() * (p - q)).sum(-1).mean()))
        else:
            parts.append(float(np.square(b - a).sum() / np.square(a).sum()))
    exact = all(a[0].size <= SAMPLED_VALUES for a in before)
    assert point.divergence > 0.01
    assert point.divergence == pytest.approx(np.mean(parts), rel=1e-4 if exact else 0.2)
    if scores is None:
        assert point.drop == pytest.approx(point.divergence) and point.accuracy == pytest.approx(1 - point.drop)
        assert point.to_json()["drop"] == point.drop and not evaluator.labeled
    else:
        assert point.quality is None and "quality" not in point.to_json()


def test_outputs_are_read_where_their_batch_is():
    program, x = several.program_of(several.build("Named")), noise(3)
    outputs = [t.numpy() for t in program.outputs(x)]
    boxes, scores = OutputReader(program)(outputs)
    assert boxes.shape == (3, 16 * 4 * 4) and np.array_equal(boxes[1], outputs[0][..., 1].reshape(-1))
    mean = torch.from_numpy(outputs[1]).mean(1).double()
    assert np.allclose(scores, mean.log_softmax(-1).numpy())


def test_a_metric_takes_what_the_model_returns_and_the_labels():
    program, x = several.program_of(several.build("Maps")), noise()
    labels, seen = torch.arange(6) % 5, []

    def metric(outputs, targets):
        seen.append((outputs, targets))
        return (outputs["head"].argmax(-1) == targets).double()

    evaluator = Evaluator(program, halves(x, labels), threads=1, metric=metric)
    share = float((program(x)["head"].argmax(-1) == labels).double().mean())
    assert evaluator.original.accuracy == pytest.approx(share) and evaluator.labeled
    assert list(seen[0][0]) == ["x", "spikes", "head", 7] and torch.equal(seen[1][1], labels[4:])
    candidate = pruned(program)
    share_after = float((candidate(x)["head"].argmax(-1) == labels).double().mean())
    point = evaluator(candidate)
    assert point.accuracy == pytest.approx(share_after) and point.drop == pytest.approx(share - share_after)


def test_without_labels_a_metric_takes_the_outputs_of_the_original():
    program, x = several.program_of(several.build("Dense")), noise()

    def agreement(outputs, targets):
        return (outputs.argmax(1) == targets.argmax(1)).double().mean((1, 2))

    evaluator = Evaluator(program, halves(x), threads=1, metric=agreement)
    candidate = pruned(program)
    expected = float(agreement(candidate(x), program(x)).mean())
    assert evaluator.original.accuracy == 1 and expected < 1
    assert evaluator(candidate).accuracy == pytest.approx(expected, abs=1e-3)


BAD = {
    "it fails": (lambda outputs, targets: outputs.nothing, "fails: AttributeError"),
    "no number": (lambda outputs, targets: "good", "fails"),
    "nothing": (lambda outputs, targets: None, "fails"),
    "infinite": (lambda outputs, targets: float("inf"), "not a finite number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_metric_that_does_not_work_is_an_error_of_its_own(case):
    function, message = BAD[case]
    program = several.program_of(several.build("Single"))
    with pytest.raises(InputError, match=message):
        BatchMetric(function, program)([np.zeros((2, 5), np.float32)], torch.zeros(2))


def test_a_metric_is_loaded_from_a_file_or_module(tmp_path, monkeypatch):
    (tmp_path / "scores.py").write_text("def mean(outputs, targets):\n    return outputs.mean()\nnumber = 3\n")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    assert load_metric(f"{tmp_path}/scores.py:mean")(torch.ones(3), None) == 1
    monkeypatch.chdir(tmp_path)
    assert load_metric("scores:mean").__name__ == "mean"
    for name, error, message in (
        ("scores", UsageError, "does not name a function"),
        ("scores:none", UsageError, "has no function none"),
        ("scores:number", UsageError, "has no function number"),
        ("absent.py:mean", UsageError, "no file"),
        ("broken.py:mean", InputError, "nothing_of_this_name"),
    ):
        with pytest.raises(error, match=message):
            load_metric(name)
