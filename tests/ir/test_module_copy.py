"""Copies of modules are what ``copy.deepcopy`` makes: nothing is shared with the original, and what was shared is."""

from __future__ import annotations

import copy

import torch
from torch import nn

from support.measured import family
from svitc.ir.module_copy import copied


class Counted(nn.Conv2d):
    """A layer that says itself how it is copied."""

    def __deepcopy__(self, memo):
        twin = Counted(1, 1, 1)
        twin.copies = getattr(self, "copies", 0) + 1
        return twin


def test_as_deepcopy():
    program = family("spikformer")
    with torch.inference_mode():
        program.module(torch.zeros(program.input.batched(1)))  # membranes are state, too
    ours, theirs = copied(program.module), copy.deepcopy(program.module)
    assert [str(n.target) for n in ours.graph.nodes] == [str(n.target) for n in theirs.graph.nodes]
    for (name, one), (other, two) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        assert name == other and one.__dict__.keys() == two.__dict__.keys(), name
        assert type(one) is type(two) or not name  # each graph module has a class of its own
        for key in one.__dict__.keys() - {"_graph"}:
            assert type(one.__dict__[key]) is type(two.__dict__[key]), (name, key)
    originals = {id(x) for m in program.module.modules() for x in (m, *m.__dict__.values()) if not isinstance(x, int)}
    for name, module in ours.named_modules():
        containers = [v for v in module.__dict__.values() if isinstance(v, (dict, list, set, nn.Module, torch.Tensor))]
        assert not originals & {id(x) for x in (module, *containers)}, name
    tensors = {t.data_ptr() for t in program.module.state_dict().values()}
    assert not tensors & {t.data_ptr() for t in ours.state_dict().values()}


def test_what_is_shared_stays_shared_and_classes_copy_in_their_own_way():
    layer = nn.Linear(2, 2)
    module = nn.ModuleList([layer, layer, nn.Linear(2, 2), Counted(1, 1, 1)])
    module[2].weight = layer.weight
    twin = copied(module)
    assert twin[0] is twin[1] and twin[0] is not layer
    assert twin[2].weight is twin[0].weight and twin[2].weight is not layer.weight
    assert twin[3].copies == 1
