"""Calibration: every statistic against a direct computation of what it says it is."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based.neuron import LIFNode
from torch import fx, nn

from support.families import FAMILIES
from support.measured import family, images_of, prunable
from svitc.analysis import calibration as calibrating
from svitc.analysis import im2col
from svitc.analysis.calibration import Calibration
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.axes import Kind
from svitc.ir.graph import InputSpec


class Values(fx.Interpreter):
    """Every value of a run."""

    def __init__(self, program) -> None:
        super().__init__(program.module, garbage_collect_values=False)
        program.module.eval()
        program.reset()


def values_of(program, x) -> dict[fx.Node, torch.Tensor]:
    run = Values(program)
    with torch.no_grad():
        run.run(x)
    program.reset()
    return run.env


LAYERS = {
    "linear": (nn.Linear(5, 4), (3, 7, 5)),
    "conv1d": (nn.Conv1d(5, 4, 1), (3, 5, 9)),
    "conv1d, 3 wide": (nn.Conv1d(5, 4, 3, stride=2, padding=1, dilation=2), (3, 5, 12)),
    "conv2d 1x1": (nn.Conv2d(5, 4, 1), (3, 5, 6, 7)),
    "conv2d 1x1, stride": (nn.Conv2d(5, 4, 1, stride=(2, 3)), (3, 5, 6, 7)),
    "conv2d 1x1, padded": (nn.Conv2d(5, 4, 1, padding=1), (3, 5, 6, 7)),
    "conv2d 3x3": (nn.Conv2d(5, 4, 3, stride=2, padding=1), (40, 5, 6, 7)),
    "conv2d 3x2": (nn.Conv2d(5, 4, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1), bias=False), (3, 5, 8, 7)),
}


@pytest.mark.parametrize("most", [10**6, 90])
@pytest.mark.parametrize("kind", LAYERS)
def test_rows_times_weights_are_the_output(kind, most):
    torch.manual_seed(0)
    module, shape = LAYERS[kind]
    x = torch.randn(shape)
    with torch.no_grad():
        y = module(x)
        s, out = im2col.rows(module, x, y, most, torch.Generator().manual_seed(0))
        bias = 0 if module.bias is None else module.bias
        assert im2col.solvable(module)
        assert torch.allclose(s @ module.weight.flatten(1).T + bias, out, atol=1e-5)
    assert len(s) == y.numel() // 4 if most > 90 else len(s) <= 90


def test_what_is_no_single_product_is_not_solvable():
    assert not im2col.solvable(nn.Conv2d(4, 4, 3, groups=2)) and not im2col.solvable(nn.BatchNorm2d(4))
    assert not im2col.solvable(None)


@pytest.mark.parametrize("name", FAMILIES)
def test_moments(name):
    """All positions where they are few; checked through the layer's own weights, which must give its outputs."""
    program = family(name)
    x, y = images_of(program, 3)
    calibration, values = Calibration(program, x, y), values_of(program, x)
    seen = 0
    for node in program.graph.nodes:
        module = program.module_of(node)
        if not ops.is_projection(module):
            continue
        path = str(node.target)
        if not im2col.solvable(module):
            assert path not in calibration.moments
            continue
        moments = calibration.moments[path]
        out = values[node].double()
        bias = 0.0 if module.bias is None else module.bias.detach().double()
        out = (out if isinstance(module, nn.Linear) else out.movedim(1, -1)).reshape(-1, len(module.weight)) - bias
        weight = module.weight.detach().flatten(1).double()
        if moments.rows == len(out):
            assert torch.allclose(weight @ moments.total, out.sum(0), rtol=1e-3, atol=1e-2), path
            outer = weight @ moments.products @ weight.T
            assert torch.allclose(outer, out.T @ out, rtol=1e-3, atol=float(outer.abs().max()) * 1e-4), path
            seen += 1
        else:  # a sample, the same for every image
            assert calibrating.ROWS // 2 < moments.rows < len(out)
        assert torch.allclose(moments.covariance, moments.covariance.T)
        lowest, *_, highest = torch.linalg.eigvalsh(moments.covariance).tolist()
        assert lowest > -1e-4 * max(1.0, highest)
        if module.weight[0].numel() == module.weight.shape[1]:
            source = values[node.all_input_nodes[0]].double()
            flat = (source if isinstance(module, nn.Linear) else source.movedim(1, -1)).reshape(
                -1, module.weight.shape[1]
            )
            if moments.rows == len(flat):
                assert torch.allclose(moments.mean, flat.mean(0), atol=1e-6), path
                assert torch.allclose(moments.covariance, flat.T.cov(correction=0), atol=1e-5), path
    assert seen > 3


def test_many_positions_are_sampled_evenly(monkeypatch):
    program = family("spikformer")
    x, y = images_of(program, 40)  # more than one batch
    path = "blocks.0.mlp.fc2.0"
    whole = Calibration(program, x, y).moments[path]
    monkeypatch.setattr(calibrating, "ROWS", 2000)
    monkeypatch.setattr(calibrating, "ROWS_PER_INPUT", 1)
    some = Calibration(program, x, y).moments[path]
    assert 1000 < some.rows <= 2000 < whole.rows
    assert float((some.mean - whole.mean).abs().max()) < 0.06
    assert torch.equal(some.products, Calibration(program, x, y).moments[path].products), "seeded"
    assert not torch.equal(some.products, Calibration(program, x, y, seed=1).moments[path].products)
    monkeypatch.setattr(calibrating, "WIDEST", 100)
    assert path not in Calibration(program, x, y).moments


@pytest.mark.parametrize("name", ["spikformer", "sdt"])
def test_deviations_from_the_average_over_time_count_less(name):
    program = family(name)
    x, y = images_of(program, 3)
    calibration, values = Calibration(program, x, y), values_of(program, x)
    seen = 0
    for path, moments in calibration.smoothed.items():
        node = next(node for node in program.graph.nodes if node.target == path)
        module, times = program.module_of(node), [a for d in program.type_of(node) for a in d if a.kind == Kind.TIME]
        few = calibration.moments[path].rows < calibrating.ROWS // 2  # so that moments are of every position
        if module.weight[0].numel() != module.weight.shape[1] or not few or not times:
            continue
        source = values[node.all_input_nodes[0]].double()
        flat = (source if isinstance(module, nn.Linear) else source.movedim(1, -1)).reshape(-1, module.weight.shape[1])
        steps = flat.reshape(times[0].size, -1, flat.shape[1])  # time is the first axis of these families
        mean = steps.mean(0)
        within = (steps - mean).flatten(0, 1).T.cov(correction=0)
        assert torch.allclose(moments.mean, mean.mean(0), atol=1e-6), path
        expected = mean.T.cov(correction=0) + calibrating.STEP_SHARE * within
        assert torch.allclose(moments.covariance, expected, atol=1e-5), path
        seen += float(within.abs().max()) > 0.01
    assert seen > 3


class Events(nn.Module):
    """Spikes of event frames, a layer that reads them, and a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layer.Conv2d(2, 6, 3, padding=1, step_mode="m")
        self.lif, self.head = LIFNode(step_mode="m"), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lif(self.conv(x)).mean((3, 4))).mean(0)


def test_event_frames_are_not_smoothed():
    program = capture(Events().eval(), InputSpec((3, 2, 6, 6)))
    calibration = Calibration(program, torch.randn(3, 2, 2, 6, 6), torch.zeros(2, dtype=torch.long))
    assert calibration.smoothed is calibration.moments and set(calibration.moments) >= {"head"}


@pytest.mark.parametrize("name", FAMILIES)
def test_firing_rates_are_counted_spikes(name):
    program = family(name)
    x, y = images_of(program, 35)  # an uneven last batch
    x, y = (x[:35], y[:35]) if name in ("spikformer", "sdt") else (x[:5], y[:5])
    calibration, values = Calibration(program, x, y), values_of(program, x)
    checked = 0
    for group in prunable(program):
        want = np.zeros((group.heads, group.axis.size))
        found = False
        for node in program.neurons():
            leaves = [axis for dim in program.type_of(node) for axis in dim]
            if not any(axis is group.axis for axis in leaves):
                continue
            found = True
            split = values[node].double().reshape([-1 if a.kind == Kind.BATCH else a.size for a in leaves])
            others = [i for i, a in enumerate(leaves) if a.kind != Kind.CHANNEL]
            rates = split.mean(others)
            left = [a for a in leaves if a.kind == Kind.CHANNEL]
            assert all(a is group.axis or a is group.head_axis for a in left), "no test for more axes"
            if len(left) == 1:
                want = want + rates.numpy()[None]
            else:
                want = want + (rates if left[0] is group.head_axis else rates.T).numpy()
        rates = calibration.firing(group)
        assert (rates is not None) == found
        if rates is not None:
            assert rates.shape == (group.heads, group.axis.size)
            assert np.allclose(rates, want, atol=1e-6), group.name
            checked += rates.max() > 0
    assert checked > 3


@pytest.mark.parametrize("name", ["spikformer", "qkformer-token", "maxformer"])
def test_terms_are_inner_products_of_what_the_contraction_sums_up(name):
    program = family(name)
    x, y = images_of(program, 3)
    calibration, values = Calibration(program, x, y), values_of(program, x)
    assert calibration.terms
    for node in program.graph.nodes:
        if node.target not in (torch.matmul, operator.matmul):
            continue
        left, right = node.all_input_nodes
        a, b = values[left].double(), values[right].double()
        terms = calibration.terms[node.name]
        heads = [i for i, dim in enumerate(program.type_of(left)[:-2]) if any(ax.kind == Kind.CHANNEL for ax in dim)]
        each = torch.einsum("...ni,...im->i...nm", a, b)  # a term for each element of the contracted axis
        each = each.movedim([1 + i for i in heads], list(range(1, 1 + len(heads)))).flatten(1 + len(heads))
        want = torch.einsum("i...z,j...z->...ij", each, each).reshape(-1, len(each), len(each))
        assert terms.shape == tuple(want.shape) and np.allclose(terms, want.numpy(), rtol=1e-5)
        out = [0, len(each) - 1]  # leaving these out costs the square of their sum
        rest = [i for i in range(len(each)) if i not in out]
        missed = (a @ b - a[..., rest] @ b[..., rest, :]).pow(2).sum()
        assert float(missed) == pytest.approx(sum(terms[:, i, j].sum() for i in out for j in out), rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_taylor(name):
    """One number a channel, and none for one that is silent already."""
    program = family(name)
    norms = [n for n in program.graph.nodes if ops.is_batch_norm(program.module_of(n))]
    silent = next(n for n in norms if "fc1" in str(n.target) or str(n.target).endswith("mlp.bn1"))
    with torch.no_grad():
        program.module_of(silent).bias[2] = -1000
    x, y = images_of(program, 3)
    calibration = Calibration(program, x, y)
    for group in prunable(program):
        score = calibration.taylor(group)
        assert score is None or (score.shape == (group.heads, group.axis.size) and np.isfinite(score).all())
        assert score is None or (score.min() >= 0 and score.max() > 0), group.name
        if any(member.module == str(silent.target) for member in group.members):
            assert score[0, 2] == 0 and np.delete(score, 2).max() > 0
    assert all(parameter.grad is None for parameter in program.module.parameters())


def test_taylor_without_labels_takes_the_classes_that_the_program_chooses():
    program = family("spikformer")
    x, _ = images_of(program, 7)
    logits = program(x)
    chosen = (logits.mean(0) if logits.ndim == 3 else logits).argmax(-1)
    unlabeled, labeled = Calibration(program, x, torch.full((7,), -1)), Calibration(program, x, chosen)
    other = Calibration(program, x, (chosen + 1) % 5)
    scores = [(g, labeled.taylor(g)) for g in program.groups]
    assert any(score is not None and score.any() for _, score in scores)
    for group, score in scores:
        assert (score is None) == (unlabeled.taylor(group) is None)
        assert score is None or np.array_equal(score, unlabeled.taylor(group))
    assert any(s is not None and not np.array_equal(s, other.taylor(g)) for g, s in scores)


def test_taylor_is_the_gradient_of_leaving_a_channel_out():
    program = family("spikformer")
    x, y = images_of(program, 3)
    path = "blocks.0.mlp.neuron1"
    group = next(g for g in program.groups if g.name == "blocks.0.mlp.fc1.0")
    total = torch.zeros(group.size)
    for image, label in zip(x.split(1), y.split(1), strict=True):
        program.reset()
        open_ = torch.ones(group.size, requires_grad=True)
        shape = [1] * program.module(image).ndim  # the module runs once to know it is stateless after a reset
        program.reset()
        hook = program.module.get_submodule(path).register_forward_hook(
            lambda module, given, out, open_=open_: (
                out * open_.reshape([-1 if size == group.size else 1 for size in out.shape])
            )
        )
        logits = program.module(image)
        hook.remove()
        loss = nn.functional.cross_entropy(logits.mean(0) if len(shape) == 3 else logits, label)
        total += torch.autograd.grad(loss, open_)[0].abs()
    program.reset()
    assert torch.allclose(
        torch.from_numpy(Calibration(program, x, y).taylor(group)[0]), (total / 3).double(), atol=1e-6
    )


def test_a_program_that_learns_nothing_has_no_taylor_scores():
    program = family("spikformer")
    for parameter in program.module.parameters():
        parameter.requires_grad_(False)
    x, y = images_of(program, 2)
    assert Calibration(program, x, y).taylor(prunable(program)[0]) is None
