"""The evaluator: what it measures from the cut on is what the whole file gives, in every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import neuron

from support.families import FAMILIES
from support.measured import family, halved, images_of, prunable
from svitc import onnx as backend
from svitc import runtimes
from svitc.evaluation import candidate_files, evaluator
from svitc.evaluation.comparison import log_softmax
from svitc.evaluation.evaluator import Evaluator
from svitc.evaluation.packed import Packed
from svitc.onnx.export import export
from svitc.onnx.surgery import suffix
from svitc.passes import Prune
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan


class Open(Evaluator):
    """Shows the log-probabilities behind a point, and what each tail took."""

    def _point(self, read, qualities):
        self.logs = np.concatenate([outputs[0] for outputs in read])
        return super()._point(read, qualities)


@pytest.fixture
def exported(monkeypatch):
    """The whole file of the last candidate, and the spikes that its tail took."""
    seen = {}
    whole, cut = evaluator.export_proto, suffix.suffix

    def export(program):
        model = whole(program)
        seen["file"] = model.SerializeToString()
        return model

    def take(model, known):
        seen["taken"] = cut(model, known)
        seen["inputs"] = [info.name for info in model.graph.input]
        return seen["taken"]

    for module in (evaluator, candidate_files):
        monkeypatch.setattr(module, "export_proto", export)
    monkeypatch.setattr(suffix, "suffix", take)
    return seen


def full(model: bytes, chunks) -> np.ndarray:
    session = runtimes.session(model, 1)
    return np.concatenate([log_softmax(session.run(None, {backend.INPUT: x.numpy()})[0]) for x, _ in chunks])


def cut(program, plan):
    candidate = program.copy()
    Prune(plan)(candidate)
    return candidate


@pytest.mark.parametrize("name", FAMILIES)
def test_from_the_cut_on_as_from_the_image(name, exported):
    program = family(name)
    with torch.no_grad():  # decided answers, so that what is wrong shows
        program.module.get_submodule("head").weight.mul_(20)
    x, y = images_of(program, 5)
    chunks = [(x[:3], y[:3]), (x[3:], y[3:])]
    evaluator = Open(program, chunks, threads=1)
    original = evaluator.logs
    assert np.allclose(original, full(exported["file"], chunks), atol=1e-5)
    assert 0 < evaluator.original.right < 5 and evaluator.original.drop == 0
    short = widest = 0
    for group in prunable(program):
        plan = halved(program, group)
        point = evaluator(cut(program, plan), plan=plan)
        want = full(exported["file"], chunks)
        assert np.abs(evaluator.logs - want).max() < 1e-4, group.name
        right = want.argmax(-1) == y.numpy()
        was = original.argmax(-1) == y.numpy()
        assert point.right == right.sum() and point.images == 5, group.name
        assert (point.lost, point.gained) == ((was & ~right).sum(), (right & ~was).sum())
        assert point.loss == pytest.approx(-want[np.arange(5), y.numpy()].mean(), abs=1e-4)
        assert point.divergence == pytest.approx((np.exp(original) * (original - want)).sum() / 5, abs=1e-4)
        widest = max(widest, point.divergence)
        short += backend.INPUT not in exported["inputs"]
    assert widest > 0.05 and short > len(prunable(program)) / 2, (
        "most cuts are run from kept spikes, not from the image"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_unchanged_is_what_no_change_feeds(name):
    program = family(name)
    evaluator = Evaluator(program, [images_of(program, 1)], threads=1, cache_bytes=0)
    neurons = [str(node.target) for node in program.neurons()]
    late = 0
    for group in prunable(program):
        plan = halved(program, group)
        touched = {m.module for g in program.groups if g.name in plan.keep for m in g.members}
        reached = set()
        for node in program.graph.nodes:  # whoever reads a change has changed
            if str(node.target) in touched or any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        downstream = {str(node.target) for node in reached}
        clean = evaluator.files.known(cut(program, plan)).keys()
        assert not clean & downstream, group.name
        if group.whole_heads is None:
            assert clean == set(neurons) - downstream, group.name
        late = max(late, len(clean))
    assert late >= 0.7 * len(neurons), "the latest group leaves nearly all neurons as they were"


def test_weights_that_changed_count_as_cuts_do():
    program = family("spikformer")
    evaluator = Evaluator(program, [images_of(program, 1)], threads=1)
    same = program.copy()
    assert {str(n.target) for n in program.neurons()} <= evaluator.files.known(same).keys()
    with torch.no_grad():
        same.module.get_submodule("blocks.0.mlp.fc1.1").running_mean[3] += 1e-6
    left = evaluator.files.known(same)
    assert "blocks.0.mlp.neuron1" not in left and "blocks.0.attn.attn_lif" in left


def test_a_small_cache_changes_nothing(exported):
    program = family("qkformer-token")
    chunks = [images_of(program, 3)]
    plans = [halved(program, group) for group in prunable(program)[::4]]
    points = {}
    for room in (10**9, 40_000, 0):
        evaluator = Evaluator(program, chunks, threads=1, cache_bytes=room)
        used = sum(packed.data.nbytes for packed in evaluator.spikes[0].values())
        assert used <= room and (room == 0) == (used == 0)
        taken = []
        points[room] = []
        for plan in plans:
            points[room].append(evaluator(cut(program, plan), plan=plan))
            taken.append(len(exported["taken"]))
        assert room > 0 or (set(taken) == {0} and exported["inputs"] == [backend.INPUT])
    for few in (40_000, 0):
        for a, b in zip(points[10**9], points[few], strict=True):
            assert (a.right, a.lost, a.gained) == (b.right, b.lost, b.gained)
            assert (a.loss, a.divergence) == pytest.approx((b.loss, b.divergence), abs=1e-4)


def test_the_latest_spikes_are_kept():
    program = family("spikformer")
    evaluator = Evaluator(program, [images_of(program, 2)], threads=1, cache_bytes=20_000)
    neurons = [str(node.target) for node in program.neurons()]
    kept = set(evaluator.spikes[0])
    assert 0 < len(kept) < len(neurons) and neurons[0] not in kept and neurons[-1] in kept


def test_integer_spikes(exported):
    program = family("spikformer", spiking_neuron=neuron.ILIFNode)
    x, y = images_of(program, 3)
    evaluator = Open(program, [(x, y)], threads=1)
    assert not all(packed.binary for packed in evaluator.spikes[0].values())
    for group in prunable(program)[1::3]:
        plan = halved(program, group)
        evaluator(cut(program, plan), plan=plan)
        assert np.abs(evaluator.logs - full(exported["file"], [(x, y)])).max() < 1e-4, group.name


def test_an_empty_plan_measures_the_original():
    program = family("sdt")
    evaluator = Evaluator(program, [images_of(program, 3)], threads=1)
    point = evaluator(cut(program, Plan({})))
    assert point.divergence == pytest.approx(0, abs=1e-9) and point.right == evaluator.original.right


@pytest.mark.parametrize("shape", [(3,), (2, 3, 5), (4, 1, 9, 2)])
@pytest.mark.parametrize("largest", [0, 1, 4, 255])
def test_packed_round_trips(shape, largest):
    rng = np.random.default_rng(largest)
    values = rng.integers(0, largest + 1, shape).astype(np.float32)
    values.reshape(-1)[0] = largest
    packed = Packed(values)
    assert packed.binary == (largest <= 1)
    assert packed.data.nbytes == (-(-values.size // 8) if largest <= 1 else values.size)
    got = packed.unpack()
    assert got.dtype == np.float32 and np.array_equal(got, values)


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_what_are_no_spikes_is_not_packed(value):
    with pytest.raises(AssertionError):
        Packed(np.array([0.0, 1.0, value], dtype=np.float32))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_integer_network_is_measured_on_its_own_file(name):
    program = family(name)
    x, y = images_of(program, 9)
    evaluator = Open(program, [(x[:5], y[:5]), (x[5:], y[5:])])
    final, _ = quantize(program)
    point = evaluator(final)
    logits = runtimes.session(export(final)).run(None, {backend.INPUT: x.numpy()})[0]
    mean = logits.mean(axis=0) if logits.ndim == 3 else logits
    assert point.images == 9 and point.right == int((mean.argmax(-1) == y.numpy()).sum())
    assert np.allclose(evaluator.logs, log_softmax(logits), atol=1e-5)
    few = evaluator(quantize(program)[0], images=3)
    assert few.images == 5, "what completes a batch is looked at, too"
    assert few.right == int((mean[:5].argmax(-1) == y[:5].numpy()).sum())


@pytest.mark.parametrize("name", ["spikformer", "qkformer-token"])
def test_without_labels_the_original_is_right(name):
    program = family(name)
    with torch.no_grad():  # decided answers, which pruning changes
        program.module.get_submodule("head").weight.mul_(20)
    x, _ = images_of(program, 12)
    none = torch.full((12,), -1)
    blind = Open(program, [(x[:8], none[:8]), (x[8:], none[8:])], threads=1)
    chosen = torch.from_numpy(blind.logs.argmax(-1))
    seeing = Evaluator(program, [(x[:8], chosen[:8]), (x[8:], chosen[8:])], threads=1)
    assert (blind.labeled, seeing.labeled) == (False, True)
    assert (blind.original.right, blind.original.drop, blind.original.divergence) == (12, 0, 0)
    opposite = program.copy()
    with torch.no_grad():  # chooses the least probable class
        for parameter in opposite.module.get_submodule("head").parameters():
            parameter.mul_(-1)
    pruned = [cut(program, halved(program, group)) for group in prunable(program)[:4]]
    for candidate in (*pruned, opposite):
        point = blind(candidate.copy())
        same = int((blind.logs.argmax(-1) == chosen.numpy()).sum())
        assert (point.right, point.lost, point.gained, point.drop) == (same, 12 - same, 0, (12 - same) / 12)
        assert point == seeing(candidate)
    assert point.lost == 12
