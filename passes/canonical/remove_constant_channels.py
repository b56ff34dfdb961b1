"""Remove constant channels: channels that never fire for any input, or always do, are removed before pruning."""

from __future__ import annotations

import logging
import time

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
from svitc.support.types import JsonDict

log = logging.getLogger("svitc")


def remove_constant_channels(program: Program) -> tuple[Program, JsonDict]:
    """Remove the channels whose weights prove that they give nothing, or always the same.

    before   x -> fc1 -> bn -> neuron -> fc2 -> bn'          channel i of the neuron never fires, channel j always
    after    x -> fc1 -> bn -> neuron -> fc2 -> bn'          without i and j: mean' - w[:, j] is the new mean of bn'

    The remaining neurons fire the same spikes, for every input. In float32, the order and length of sums change, and
    the intervals keep a margin for their rounding from the thresholds.

    Args:
        program: a program that can be trained; not changed.

    Returns:
        a pruned copy, or the program itself where nothing can be removed; and a record of JSON values:

        ``plan``      the channels that stay, as ``Plan.to_json``, for the groups of the program passed in
        ``removed``, ``folded``   numbers of channels removed, and of those whose value a bias took over
        ``rounds``    until nothing more could be removed
        ``neurons``   path -> ``channels``, and how many are ``silent`` and ``always_firing``, where some are
        ``groups``    name -> ``size``, ``silent`` and ``always_firing`` (at some neuron), ``removed``, ``folded``,
                      and ``refused``: reason -> how many silent or always firing channels stay because of it
        ``seconds``   wall time

    Raises:
        InternalError: the program's batch norms are folded already.
    """
    if program.stage > Stage.PRUNED:
        raise InternalError(f"a program at stage {program.stage.name} has no batch norms to fold into")
    start = time.perf_counter()
    removable = RemovableChannels(program)
    record: JsonDict = {"plan": None, "removed": 0, "folded": 0, "rounds": 0, "neurons": _neurons(removable)}
    groups = {group.name: _counts(removable, group) for group in program.groups}
    masks = {group.name: np.ones((group.heads, group.axis.size), dtype=bool) for group in program.groups}
    current = program
    # One iteration is nearly always enough; shorter sums have smaller margins, which may prove a little more.
    while removable.changed_masks and all(
        name in masks and _fits(masks[name], mask) for name, mask in removable.changed_masks.items()
    ):
        record["rounds"] += removable.rounds
        for group in current.groups:
            if group.name in removable.changed_masks:
                groups[group.name]["folded"] += removable.folded(group)
                masks[group.name] = _within(masks[group.name], removable.masks[group.name])
        current = _without(current, removable)
        removable = RemovableChannels(current)
    for group in current.groups:
        if group.name in groups:
            groups[group.name]["refused"] = removable.refused(group, _constant(removable, group))
    for name, mask in masks.items():
        groups[name]["removed"] = int((~mask).sum())
    record["groups"] = {
        name: counts for name, counts in groups.items() if any(v for k, v in counts.items() if k != "size")
    }
    for key in ("removed", "folded"):
        record[key] = sum(counts[key] for counts in groups.values())
    provenance = {"pass": "remove_silent"}  # the old name of this function, which plans and reports keep
    record["plan"] = Plan({name: mask for name, mask in masks.items() if not mask.all()}, provenance).to_json()
    record["seconds"] = round(time.perf_counter() - start, 3)
    log.info("remove silent: %d channels, %d of them into biases", record["removed"], record["folded"])
    return current, record


def _silent(interval: Interval) -> torch.Tensor:
    """Return where a channel never fires."""
    return interval.constant & (interval.low == 0)


def _always(interval: Interval) -> torch.Tensor:
    """Return where a channel always fires."""
    return interval.constant & (interval.low > 0)


def _constant(removable: RemovableChannels, group: ChannelGroup) -> np.ndarray:
    """Return the elements of a group, ``[heads, d]``, that are constant at some neuron."""
    return removable.firing(group, _silent) | removable.firing(group, _always)


def _counts(removable: RemovableChannels, group: ChannelGroup) -> JsonDict:
    """Return the record of a group before anything is removed."""
    silent, always = (int(removable.firing(group, test).sum()) for test in (_silent, _always))
    return {"size": group.size, "silent": silent, "always_firing": always, "removed": 0, "folded": 0, "refused": {}}


def _neurons(removable: RemovableChannels) -> dict[str, dict[str, int]]:
    """Return the neurons that have constant channels, with how many."""
    record = {}
    for node in removable.program.neurons():
        interval = removable.bounds[node]
        silent, always = int(_silent(interval).sum()), int(_always(interval).sum())
        if silent or always:
            record[str(node.target)] = {"channels": interval.low.numel(), "silent": silent, "always_firing": always}
    return record


def _without(program: Program, removable: RemovableChannels) -> Program:
    """Return a copy in which biases take over constant values and all removable channels are removed."""
    twin = program.copy()
    nodes = {node.name: node for node in twin.graph.nodes}
    for consumer in removable.consumers:
        if isinstance(consumer, ProjectionConsumer) and len(index := removable.taken_over(consumer)):
            _fold(twin, nodes[consumer.node.name], index, consumer.value)
    twin.retype()  # a layer may have a bias now
    Prune(Plan(removable.changed_masks))(twin)
    return twin


def _fold(program: Program, node: fx.Node, index: np.ndarray, value: torch.Tensor) -> None:
    """Add the contribution of constant inputs to the bias of a layer, or to the batch norm after it."""
    layer = program.module_of(node)
    assert isinstance(layer, (*ops.CONVOLUTIONS, nn.Linear))
    norm_node = next(iter(node.users))
    norm = program.module_of(norm_node)
    with torch.no_grad():
        shift = by_taps(layer)[:, index].sum(-1, dtype=torch.float64) @ value[index]
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.double() + shift)
        elif len(node.users) == 1 and ops.is_batch_norm(norm) and program.called_once(norm_node):
            assert norm.running_mean is not None
            norm.running_mean.copy_(norm.running_mean.double() - shift)
        else:
            layer.bias = nn.Parameter(shift.to(layer.weight.dtype))


def _kept(mask: np.ndarray) -> tuple[int, int]:
    """Return how many heads have channels, and how many channels the largest has."""
    return int(mask.any(axis=1).sum()), int(mask.sum(axis=1).max())


def _fits(mask: np.ndarray, later: np.ndarray) -> bool:
    """Return whether a mask has the shape of what an earlier one keeps."""
    return _kept(mask) == later.shape


def _within(mask: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Return the elements that both masks keep; ``later`` covers only what ``mask`` keeps."""
    result = mask.copy()
    result[mask] = later.reshape(-1)  # row by row; every head keeps as many
    return result
