"""What makes up for a cut: readers re-solved by least squares, and batch norms re-estimated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based.neuron import LIFNode
from torch import nn

from support.measured import family, images_of, prunable
from svitc.analysis import calibration as calibrating
from svitc.analysis.calibration import Calibration
from svitc.frontends.capture.capture import capture
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.passes import Prune, ReestimateBatchNorm, RefitConsumers
from svitc.passes.pruning import refit_consumers
from svitc.planning.plan import Plan

READERS = {
    "linear": lambda: nn.Linear(16, 6),
    "conv1d": lambda: layer.SeqToANNContainer(nn.Conv1d(16, 6, 1, bias=False), nn.BatchNorm1d(6)),
    "conv1d, 3 wide, padded": lambda: layer.SeqToANNContainer(nn.Conv1d(16, 6, 3, padding=1), nn.BatchNorm1d(6)),
    "conv2d 1x1": lambda: layer.SeqToANNContainer(nn.Conv2d(16, 6, 1), nn.BatchNorm2d(6)),
    "conv2d 3x3": lambda: layer.SeqToANNContainer(nn.Conv2d(16, 6, 3), nn.BatchNorm2d(6)),
    "conv2d 3x3, stride and padding": lambda: layer.SeqToANNContainer(
        nn.Conv2d(16, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
    ),
    "conv2d 3x3 without a batch norm": lambda: layer.SeqToANNContainer(nn.Conv2d(16, 6, 3, stride=2)),
}
STEPS = 3
SAME, SILENT, ALWAYS = 1, 2, 3  # channel 1 fires as channel 0 does, 2 never, 3 always


class Net(nn.Module):
    """Spikes of sixteen channels, one reader, and no second threshold: what is lost shows as it is."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.conv = layer.SeqToANNContainer(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.lif, self.kind = LIFNode(step_mode="m"), reader
        self.reader, self.head = READERS[reader](), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lif(self.conv(x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)))
        if self.kind == "linear":
            x = self.reader(x.flatten(3).transpose(2, 3)).mean(2)
        else:
            x = self.reader(x.flatten(3) if "1d" in self.kind else x).flatten(3).mean(3)
        return self.head(x).mean(0)


def net(reader: str):
    torch.manual_seed(1)
    model = Net(reader)
    conv, norm = model.conv[0], model.conv[1]
    nn.init.uniform_(norm.weight, 0.8, 2.0)
    nn.init.uniform_(norm.bias, 0.4, 1.0)
    norm.bias.data[SILENT], norm.bias.data[ALWAYS] = -100, 100
    conv.weight.data[SAME] = conv.weight.data[0]
    norm.weight.data[SAME], norm.bias.data[SAME] = norm.weight.data[0], norm.bias.data[0]
    for module in model.reader.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    program = capture(model.eval(), InputSpec((3, 9, 8)))
    x = torch.randn(36, 3, 9, 8)  # few enough that moments are of every position
    return program, x, Calibration(program, x, torch.zeros(36, dtype=torch.long))


def without(program, *channels: int) -> Plan:
    group = prunable(program)[0]
    assert group.producers[0].startswith("conv") and group.size == 16
    mask = np.ones((1, 16), dtype=bool)
    mask[0, list(channels)] = False
    return Plan({group.name: mask})


def pruned(program, plan, *refits):
    copy = program.copy()
    Prune(plan)(copy)
    for refit in refits:
        refit(copy)
    return copy


def error(program, other, x) -> float:
    want = program(x)
    return float((other(x) - want).norm() / (want - want.mean(0)).norm())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("gone", [(SAME,), (0,), (SILENT,), (ALWAYS,), (SAME, SILENT, ALWAYS)])
def test_what_says_nothing_new_goes_for_nothing(reader, gone, monkeypatch):
    program, x, calibration = net(reader)
    plan = without(program, *gone)
    plain = error(program, pruned(program, plan), x)
    assert plain > 0.01 or gone == (SILENT,), "what is dropped matters, before the refit"
    if ALWAYS in gone and "padd" in reader:  # one that fires everywhere still tells the border from the rest
        assert error(program, pruned(program, plan, RefitConsumers(program, plan, calibration)), x) < 0.6 * plain
        return
    assert (
        error(program, pruned(program, plan, RefitConsumers(program, plan, calibration)), x) < 0.04
    )  # a ridge holds it back
    monkeypatch.setattr(refit_consumers, "RIDGE", 1e-8)
    assert error(program, pruned(program, plan, RefitConsumers(program, plan, calibration)), x) < 1e-4


def taps(program, x, *paths: str) -> dict[str, torch.Tensor]:
    """What layers put out."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        program.module.get_submodule(path).register_forward_hook(
            lambda module, given, out, path=path: found.__setitem__(path, out.detach().double())
        )
        for path in paths
    ]
    program(x)
    for hook in hooks:
        hook.remove()
    return found


def channels_last(y: torch.Tensor, linear: bool) -> torch.Tensor:
    return (y if linear else y.movedim(1, -1)).reshape(-1, y.shape[-1 if linear else 1])


def smoothed(rows: torch.Tensor) -> torch.Tensor:
    """Return what is left of rows ``[positions, C]`` without their mean: averages over time, and single steps."""
    steps = (rows - rows.mean(0)).reshape(STEPS, -1, rows.shape[1])
    averages = steps.mean(0, keepdim=True).expand_as(steps)
    share = calibrating.STEP_SHARE
    return torch.cat([(1 - share) ** 0.5 * averages, share**0.5 * steps]).flatten(0, 1)


@pytest.mark.parametrize("reader", READERS)
def test_least_squares_beats_plain_pruning(reader, monkeypatch):
    """On the calibration images, and no weights do better: numpy's own least squares on what the cut layer reads.

    Mostly on average over time.
    """
    monkeypatch.setattr(refit_consumers, "RIDGE", 1e-9)
    program, x, calibration = net(reader)
    plan = without(program, 5, 7, 8, 11, 15)
    path = next(str(n.target) for n in program.graph.nodes if "reader" in str(n.target))
    linear = reader == "linear"

    def residual(candidate) -> tuple[float, torch.Tensor]:
        y = channels_last(taps(candidate, x, path)[path], linear)
        return float((smoothed(y) - smoothed(want)).pow(2).sum()), y

    want = channels_last(taps(program, x, path)[path], linear)
    plain, solved = pruned(program, plan), pruned(program, plan, RefitConsumers(program, plan, calibration))
    before, _ = residual(plain)
    after, y = residual(solved)
    assert after < 0.99 * before
    module = plain.module.get_submodule(path)
    spikes = taps(plain, x, "lif")["lif"].flatten(0, 1).float()
    if linear:
        rows = spikes.flatten(2).mT.reshape(-1, 11)
    elif isinstance(module, nn.Conv1d):
        image = nn.functional.pad(spikes.flatten(2), (module.padding[0],) * 2)
        rows = image.unfold(2, module.kernel_size[0], 1).permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
    else:
        rows = nn.functional.unfold(spikes, module.kernel_size, 1, module.padding, module.stride).mT.flatten(0, 1)
    a, b = smoothed(rows.double()).numpy(), smoothed(want).numpy()
    best = np.linalg.lstsq(a, b, rcond=None)[0]
    least = float(((a @ best - b) ** 2).sum())
    assert least <= after * (1 + 1e-6) and after < 1.001 * least + 1e-6
    norm = next((m for n, m in solved.module.named_modules() if n.startswith("reader") and ops.is_batch_norm(m)), None)
    if norm is None:  # a bias gets the new mean
        assert torch.allclose(y.mean(0), want.mean(0), atol=1e-5)
    else:
        old = next(m for n, m in program.module.named_modules() if n.startswith("reader") and ops.is_batch_norm(m))
        assert torch.allclose(norm.running_mean - old.running_mean, (y.mean(0) - want.mean(0)).float(), atol=1e-4)
        assert torch.allclose(norm.running_var / old.running_var, (y.var(0) / want.var(0)).float(), rtol=1e-3)


def state(program) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in program.module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_a_layer_without_moments_is_refused(monkeypatch):
    monkeypatch.setattr(calibrating, "WIDEST", 100)  # the 3x3 convolution reads 144 numbers
    program, _, calibration = net("conv2d 3x3")
    plan = without(program, 5)
    copy = pruned(program, plan)
    before = state(copy)
    result = RefitConsumers(program, plan, calibration)(copy)
    assert list(result.refused.values()) == ["no moments of its inputs"] and not result.changed
    assert same(state(copy), before) == []


@pytest.mark.parametrize("reader", READERS)
def test_a_second_run_changes_nothing(reader):
    program, x, calibration = net(reader)
    plan = without(program, 5, 9)
    copy = pruned(program, plan, RefitConsumers(program, plan, calibration))
    first = state(copy)
    RefitConsumers(program, plan, calibration)(copy)
    assert same(state(copy), first) == []
    ReestimateBatchNorm(program, plan, x)(copy)
    first = state(copy)
    ReestimateBatchNorm(program, plan, x)(copy)
    assert same(state(copy), first) == []


@pytest.mark.parametrize("name", ["spikformer", "qkformer-token"])
def test_a_plan_that_removes_nothing_changes_nothing(name):
    program = family(name)
    x, y = images_of(program, 3)
    before = state(program)
    for plan in (Plan({}), Plan({g.name: np.ones((g.heads, g.axis.size), dtype=bool) for g in program.groups})):
        copy = pruned(program, plan)
        for refit in (RefitConsumers(program, plan, Calibration(program, x, y)), ReestimateBatchNorm(program, plan, x)):
            assert refit(copy).changed == []
        assert same(state(copy), before) == [] == same(state(program), before)


def norms(program) -> list[str]:
    return [str(n.target) for n in program.graph.nodes if ops.is_batch_norm(program.module_of(n))]


@pytest.mark.parametrize("readers", [False, True])
@pytest.mark.parametrize("name", ["spikformer", "sdt", "qkformer-token", "maxformer-cifar"])
def test_batch_norms_put_out_what_they_did(name, readers):
    """Mean and variance of what each puts out on the images, whatever another refit has done before."""
    program = family(name)
    x, y = images_of(program, 6)
    keep = {}
    for group in prunable(program):
        mask = np.ones((group.heads, group.axis.size), dtype=bool)
        if group.whole_heads is None:
            mask[:, -max(1, group.axis.size // 3) :] = False
        keep[group.name] = mask
    plan = Plan(keep)
    first = [RefitConsumers(program, plan, Calibration(program, x, y))] if readers else []
    reestimate = ReestimateBatchNorm(program, plan, x)
    copy = pruned(program, plan, *first)
    changed = reestimate(copy).changed
    assert set(changed) == set(norms(program)), "every group is cut, the first one too"
    was, now = taps(program, x, *changed), taps(copy, x, *changed)
    groups = {m.module: g for g in program.groups for m in g.members if m.param == "running_mean"}
    checked = 0
    for path in changed:
        group = groups[path]
        node = next(n for n in program.graph.nodes if str(n.target) == path)
        dim = program.parameters_of(node)["running_mean"][0]
        kept = torch.from_numpy(np.flatnonzero(group.mask(dim, plan.validate(program)[group.name])))
        a = channels_last(was[path].index_select(1, kept), False)
        b = channels_last(now[path], False)
        alive = (a.var(0) > 1e-4) & (b.var(0) > 1e-4)  # a dead channel has no variance to scale
        assert torch.allclose(a.mean(0)[alive], b.mean(0)[alive], atol=2e-3), path
        assert torch.allclose(a.var(0)[alive], b.var(0)[alive], rtol=5e-3), path
        checked += int(alive.sum())
    assert checked > 50


def test_untouched_batch_norms_keep_their_statistics():
    program = family("spikformer")
    x, _ = images_of(program, 4)
    group = next(g for g in program.groups if g.name == "blocks.0.mlp.fc1.0")
    mask = np.ones((1, group.size), dtype=bool)
    mask[0, ::2] = False
    plan = Plan({group.name: mask})
    copy = pruned(program, plan)
    before = state(copy)
    changed = ReestimateBatchNorm(program, plan, x)(copy).changed
    touched = {name.rpartition(".")[0] for name in same(state(copy), before)}
    assert "blocks.0.mlp.fc2.1" in changed and touched <= set(changed)
    assert not any(path.startswith(("patch_embed", "blocks.0.attn")) for path in changed)
    assert len(changed) < len(norms(program)) / 2


def test_both_refits_bring_networks_closer():
    """Each makes the logits of networks that lost a third of their widths more like the originals'."""
    plain = one = two = 0.0
    for seed in (0, 1):
        program = family("spikformer", seed, T=4)
        x, y = images_of(program, 24)
        keep = {}
        for group in prunable(program)[2:]:
            mask = np.ones((group.heads, group.axis.size), dtype=bool)
            mask[:, ::3] = False
            keep[group.name] = mask
        plan = Plan(keep)
        readers, norm = (
            RefitConsumers(program, plan, Calibration(program, x, y)),
            ReestimateBatchNorm(program, plan, x),
        )
        plain += error(program, pruned(program, plan), x)
        one += error(program, pruned(program, plan, readers), x)
        two += error(program, pruned(program, plan, readers, norm), x)
    assert two < one < 0.5 * plain
