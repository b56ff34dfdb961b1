"""What counts as known: exactly the channels that fire as in the original, whatever the pruned program loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx

from support.measured import family, halved, images_of, prunable
from svitc.evaluation.evaluator import Evaluator
from svitc.evaluation.known_spikes import KnownSpikes, Part
from svitc.ir import ops
from svitc.ir.axes import Axis, Kind
from svitc.ir.channel_groups import ChannelGroup
from svitc.passes import Prune


class Spikes(fx.Interpreter):
    """Keeps what every neuron fires, with time and batch in one dimension."""

    def __init__(self, program, x) -> None:
        super().__init__(program.module)
        self.values: dict[str, np.ndarray] = {}
        program.reset()
        with torch.no_grad():
            self.run(x)
        program.reset()

    def run_node(self, n):
        value = super().run_node(n)
        if n.op == "call_module" and ops.is_neuron(self.fetch_attr(str(n.target))):
            self.values[str(n.target)] = value.flatten(0, 1).numpy()
        return value


def cut(program, plan):
    candidate = program.copy()
    Prune(plan)(candidate)
    return candidate


@pytest.mark.parametrize("name", ["spikformer", "sdt", "qkformer-token"])
def test_known_parts_are_what_the_pruned_program_fires(name):
    program = family(name)
    x, _ = images_of(program, 2)
    fired, known_spikes = Spikes(program, x).values, KnownSpikes(program)
    parts = 0
    for group in prunable(program)[::2]:
        plan = halved(program, group)
        candidate = cut(program, plan)
        known, now = known_spikes(candidate, plan), Spikes(candidate, x).values
        assert known.keys() >= known_spikes(candidate).keys(), "a plan only adds to what is known"
        for path, part in known.items():
            assert part.fits(fired[path].shape, now[path].shape), path
            assert np.array_equal(part.of(fired[path]), now[path]), (group.name, path)
            parts += part.group is not None
    assert parts >= 2, "the neurons of pruned channels are known"


def test_a_sum_over_pruned_channels_is_not_known():
    program = family("spikformer")
    group = next(g for g in prunable(program) if g.name.endswith((".q", ".q_conv")))
    plan = halved(program, group)
    known = KnownSpikes(program)(cut(program, plan), plan)
    attention = next(str(n.target) for n in program.neurons() if "attn_lif" in str(n.target))
    assert any(part.group is group for part in known.values()) and attention not in known


def test_a_changed_weight_of_a_channel_that_stays_is_seen():
    program = family("spikformer")
    group = next(g for g in prunable(program) if "fc1" in g.name)
    plan = halved(program, group)
    neuron = "blocks.0.mlp.neuron1"
    candidate = cut(program, plan)
    assert KnownSpikes(program)(candidate, plan)[neuron].group is group
    with torch.no_grad():
        candidate.module.get_submodule(group.producers[0]).weight[0, 0] += 1e-6
    assert neuron not in KnownSpikes(program)(candidate, plan)


def test_a_value_in_another_form_does_not_fit():
    channels, heads, pixels = (Axis(n, s, Kind.CHANNEL, n) for n, s in (("d", 4), ("h", 2), ("p", 3)))
    dims = ((), (), (heads,), (channels,), (pixels,))
    keep = np.array([[True, False, True, False], [False, True, True, False]])
    part = Part(dims, ChannelGroup("g", channels, heads), keep)
    values = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    assert np.array_equal(part.of(values), np.stack([values[0, 0, [0, 2]], values[0, 1, [1, 2]]])[None])
    assert part.fits((1, 2, 4, 3), (9, 2, 2, 3)) and not part.fits((1, 2, 4, 3), (9, 2, 3, 2))
    assert not part.fits((1, 8, 3), (9, 4, 3)) and not part.fits((1, 2, 4, 3), None)


def test_the_number_of_threads_changes_nothing():
    program = family("spikformer")
    x, y = images_of(program, 6)
    plan = halved(program, prunable(program)[1])
    chunks = [(x[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)]
    one, three = (Evaluator(program, chunks, threads=threads) for threads in (1, 3))
    assert one(cut(program, plan), plan=plan) == three(cut(program, plan), plan=plan)
