"""Remove silent: channels that no input can make fire, and those that every input does, go before any pruning."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from svitc.analysis.channel_consumers import ProjectionConsumer
from svitc.analysis.interval_layers import by_taps
from svitc.analysis.interval_neurons import Interval
from svitc.analysis.removable_channels import RemovableChannels
from svitc.errors import InternalError
from svitc.ir import ops
from svitc.ir.channel_groups import ChannelGroup
from svitc.ir.program import Program, Stage
from svitc.passes.pruning.prune import Prune
from svitc.planning.plan import Plan

log = logging.getLogger("svitc")


def remove_constant_channels(program: Program) -> tuple[Program, dict[str, Any]]:
    """A program without the channels that give nothing, or always the same, as its weights alone prove.

    before   x -> fc1 -> bn -> neuron -> fc2 -> bn'          channel i of the neuron never fires, channel j always
    after    x -> fc1 -> bn -> neuron -> fc2 -> bn'          without i and j: mean' - w[:, j] is the new mean of bn'

    What survives fires what it fired, for every input. In float32 that is but for the order and length of sums,
    whose rounding the bounds keep away from thresholds.

    Returns:
        A pruned copy, or the program itself where nothing can go; and a record of JSON values:

        ``plan``      what stayed, as ``Plan.to_json``, for the groups of the program that was given
        ``removed``, ``folded``   channels in all; those of them whose value a bias took over
        ``rounds``    until nothing more went
        ``neurons``   path -> ``channels``, and how many are ``silent`` and ``always_firing``, where some are
        ``groups``    name -> ``size``, ``silent`` and ``always_firing`` (at some neuron), ``removed``, ``folded``,
                      and ``refused``: reason -> how many silent or always firing ones stay for it
        ``seconds``   wall time
    """
    if program.stage > Stage.PRUNED:
        raise InternalError(f"a program at stage {program.stage.name} has no batch norms to fold into")
    start = time.perf_counter()
    silence = RemovableChannels(program)
    record: dict[str, Any] = {"plan": None, "removed": 0, "folded": 0, "rounds": 0, "neurons": _neurons(silence)}
    groups = {group.name: _counts(silence, group) for group in program.groups}
    masks = {group.name: np.ones((group.heads, group.axis.size), dtype=bool) for group in program.groups}
    current = program
    # once is nearly always enough: shorter sums have smaller margins, which may prove a little more
    while silence.changed_masks and all(name in masks and _fits(masks[name], mask) for name, mask in silence.changed_masks.items()):
        record["rounds"] += silence.rounds
        for group in current.groups:
            if group.name in silence.changed_masks:
                groups[group.name]["folded"] += silence.folded(group)
                masks[group.name] = _within(masks[group.name], silence.masks[group.name])
        current = _without(current, silence)
        silence = RemovableChannels(current)
    for group in current.groups:
        if group.name in groups:
            groups[group.name]["refused"] = silence.refused(group, _quiet(silence, group))
    for name, mask in masks.items():
        groups[name]["removed"] = int((~mask).sum())
    record["groups"] = {name: each for name, each in groups.items() if any(v for k, v in each.items() if k != "size")}
    for what in ("removed", "folded"):
        record[what] = sum(each[what] for each in groups.values())
    provenance = {"pass": "remove_silent"}  # in plans and reports, which keep the name that they began with
    record["plan"] = Plan({name: mask for name, mask in masks.items() if not mask.all()}, provenance).to_json()
    record["seconds"] = round(time.perf_counter() - start, 3)
    log.info("remove silent: %d channels, %d of them into biases", record["removed"], record["folded"])
    return current, record


def _silent(bound: Interval) -> torch.Tensor:
    return bound.constant & (bound.low == 0)


def _always(bound: Interval) -> torch.Tensor:
    return bound.constant & (bound.low > 0)


def _quiet(silence: RemovableChannels, group: ChannelGroup) -> np.ndarray:
    return silence.firing(group, _silent) | silence.firing(group, _always)


def _counts(silence: RemovableChannels, group: ChannelGroup) -> dict[str, Any]:
    silent, always = (int(silence.firing(group, test).sum()) for test in (_silent, _always))
    return {"size": group.size, "silent": silent, "always_firing": always, "removed": 0, "folded": 0, "refused": {}}


def _neurons(silence: RemovableChannels) -> dict[str, dict[str, int]]:
    found = {}
    for node in silence.program.neurons():
        bound = silence.bounds[node]
        silent, always = int(_silent(bound).sum()), int(_always(bound).sum())
        if silent or always:
            found[str(node.target)] = {"channels": bound.low.numel(), "silent": silent, "always_firing": always}
    return found


def _without(program: Program, silence: RemovableChannels) -> Program:
    """A copy in which biases take over what is always the same, and then all that may go is gone."""
    twin = program.copy()
    nodes = {node.name: node for node in twin.graph.nodes}
    for reader in silence.consumers:
        if isinstance(reader, ProjectionConsumer) and len(index := silence.taken_over(reader)):
            _fold(twin, nodes[reader.node.name], index, reader.value)
    twin.retype()  # a layer may have a bias now
    Prune(Plan(silence.changed_masks))(twin)
    return twin


def _fold(program: Program, node: fx.Node, index: np.ndarray, value: torch.Tensor) -> None:
    """Add what constant inputs give to a layer's outputs: to its bias, or else to the batch norm behind it."""
    layer = program.module_of(node)
    assert isinstance(layer, (*ops.CONVOLUTIONS, nn.Linear))
    behind = next(iter(node.users))
    norm = program.module_of(behind)
    with torch.no_grad():
        shift = by_taps(layer)[:, index].sum(-1, dtype=torch.float64) @ value[index]
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.double() + shift)
        elif len(node.users) == 1 and ops.is_batch_norm(norm) and program.called_once(behind):
            assert norm.running_mean is not None
            norm.running_mean.copy_(norm.running_mean.double() - shift)
        else:
            layer.bias = nn.Parameter(shift.to(layer.weight.dtype))


def _kept(mask: np.ndarray) -> tuple[int, int]:
    return int(mask.any(axis=1).sum()), int(mask.sum(axis=1).max())


def _fits(mask: np.ndarray, later: np.ndarray) -> bool:
    """Whether a mask is of what an earlier one keeps."""
    return _kept(mask) == later.shape


def _within(mask: np.ndarray, later: np.ndarray) -> np.ndarray:
    """What both keep, as a mask of all."""
    result = mask.copy()
    result[mask] = later.reshape(-1)  # row by row, as many in each
    return result
