"""The files of candidates: exported for the first candidate of a channel group, and stamped from then on.

To export a network takes as long as to run it on a hundred small images. But candidates that have lost channels of the
same group differ in few things: the weights of some layers, and numbers of channels. So their files are the original's
file with these changed. For the first candidate of each group both files are made, and if a byte differs, the group's
candidates are exported as long as the sweep lasts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from svitc.evaluation.known_spikes import KnownSpikes, Part
from svitc.evaluation.packed import Packed
from svitc.ir import ops
from svitc.ir.channel_groups import ChannelGroup
from svitc.ir.program import Program
from svitc.onnx.builder import as_array
from svitc.onnx.export import export_proto
from svitc.onnx.surgery import suffix
from svitc.onnx.surgery.neuron_split import members_of
from svitc.passes.inference.fold_batch_norm import folded, folds
from svitc.passes.lowering.reassociate_matmuls import cheaper_orders
from svitc.planning.plan import Plan

# value -> index of a dimension, or constant -> index of a number -> index into the sizes of the group
Resized: TypeAlias = dict[str, dict[int, int]]
Sizes: TypeAlias = list[tuple[int, int]]  # before and now: of all channels, those of a head, and the heads


@dataclass(frozen=True)
class CandidateFile:
    """What has to be run of a candidate.

    Attributes:
        model: its file, reduced to what follows the spikes that are known.
        known: neuron -> the part of the original's spikes that it fires.
        fed: the neurons whose spikes are inputs of the file.
    """

    model: onnx.ModelProto
    known: dict[str, Part]
    fed: list[suffix.Spikes]


class CandidateFiles:
    """Makes the files of pruned copies of one program.

    Args:
        program: the original; must not change.
        model: its file, as ``export_proto`` returns it.

    Attributes:
        stamped: number of files that were made without an export.
    """

    def __init__(self, program: Program, model: onnx.ModelProto) -> None:
        self.program, self.known, self.stamped = program, KnownSpikes(program), 0
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        _unshare(self._model)
        self._norms = dict(folds(program))
        self._state = {name: value.clone() for name, value in program.module.state_dict().items()}
        self._orders = cheaper_orders(program)
        self._transposed: dict[str, bool] = {}  # initializers that are known to be the weights of layers
        for tensor in self._model.graph.initializer:
            values, weights = numpy_helper.to_array(tensor), self._weights(program, tensor.name)
            for transposed in (False, True):
                if weights is not None and np.array_equal(weights.T if transposed else weights, values):
                    self._transposed.setdefault(tensor.name, transposed)
        self._resized: dict[Hashable, Resized | None] = {}  # what shrinks -> where; None: files are exported

    def __call__(self, candidate: Program, plan: Plan | None, stored: Mapping[str, Packed]) -> CandidateFile:
        """Return the file of a candidate, which is consumed.

        Args:
            candidate: a copy of the original in which weights may have changed.
            plan: the channels that were kept of it; None where that is not known.
            stored: neuron -> cached spikes of the original.
        """
        known = self.known(candidate, plan)
        group = self._single(candidate, plan)
        sizes = [] if plan is None or group is None else _sizes(group, plan.keep[group.name])
        # what is left of a file depends on which spikes are known, and only what was left has been compared
        key = None if group is None else (group.name, *(left < size for size, left in sizes), frozenset(known))
        resized = self._resized.get(key)
        if resized is not None:
            self.stamped += 1
            return self._stamp(resized, sizes, self._changed(candidate), known, stored)
        is_first = key is not None and key not in self._resized
        changed = self._changed(candidate) if is_first else {}
        exported = export_proto(candidate)
        if not is_first:
            return _cut(exported, known, stored)
        _unshare(exported)
        numbers, spikes = _numbers(exported), suffix.spikes(exported)
        file = _cut(exported, known, stored)
        used = {*_numbers(file.model), *(spike.value for spike in spikes if spike.path in file.known)}
        resized = self._differences({name: numbers.get(name, []) for name in used}, sizes)
        if resized is not None and not _equal(file, self._stamp(resized, sizes, changed, known, stored)):
            resized = None
        self._resized[key] = resized
        return file

    def _single(self, candidate: Program, plan: Plan | None) -> ChannelGroup | None:
        """Return the only group that lost channels, if its number of channels decides nothing but sizes.

        It decides more where an axis of size 1 is left, which has no dimension, and where the products of attention
        become cheaper in another order.
        """
        if plan is None or plan.bits or plan.tokens or plan.ranks:
            return None
        groups = [g for g in self.program.groups if g.name in plan.keep and not plan.keep[g.name].all()]
        if len(groups) != 1:
            return None
        sizes = _sizes(groups[0], plan.keep[groups[0].name])
        shrinks_to_one = any(left == 1 < size for size, left in sizes)
        return None if shrinks_to_one or cheaper_orders(candidate) != self._orders else groups[0]

    def _stamp(
        self,
        resized: Resized,
        sizes: Sizes,
        changed: Mapping[str, np.ndarray],
        known: Mapping[str, Part],
        stored: Mapping[str, Packed],
    ) -> CandidateFile:
        """Return the original's file with the weights and sizes of a candidate."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for info in model.graph.value_info:
            for i, kind in resized.get(info.name, {}).items():
                info.type.tensor_type.shape.dim[i].dim_value = sizes[kind][1]
        file = _cut(model, known, stored)
        for tensor in file.model.graph.initializer:
            if tensor.name in changed:
                values = changed[tensor.name]
                tensor.dims[:] = values.shape
                tensor.raw_data = values.tobytes()
            elif tensor.name in resized:
                numbers = numpy_helper.to_array(tensor).copy()
                for i, kind in resized[tensor.name].items():
                    numbers[i] = sizes[kind][1]
                tensor.raw_data = numbers.tobytes()
        return file

    def _differences(self, numbers: Mapping[str, list[int]], sizes: Sizes) -> Resized | None:
        """Return where a file has other numbers than the original's; None where these are not sizes of the group.

        What cannot be compared is left to the comparison of the files.
        """
        ours = _numbers(self._model)
        resized: Resized = {}
        for name, now in numbers.items():
            for i, pair in enumerate(zip(ours.get(name, []), now, strict=False)):
                if pair[0] != pair[1]:
                    if pair not in sizes:
                        return None
                    resized.setdefault(name, {})[i] = sizes.index(pair)
        return resized

    def _changed(self, candidate: Program) -> dict[str, np.ndarray]:
        """Return the initializers that are others in a candidate's file than in the original's."""
        state = candidate.module.state_dict()
        layers = {
            name.rpartition(".")[0]
            for name, value in self._state.items()
            if state[name].shape != value.shape or not torch.equal(state[name], value)
        }
        changed: dict[str, np.ndarray] = {}
        for name, transposed in self._transposed.items():
            members = members_of(name.rpartition(".")[0])
            if any(member in layers or self._norms.get(member) in layers for member in members):
                weights = self._weights(candidate, name)
                assert weights is not None
                changed[name] = np.ascontiguousarray(weights.T if transposed else weights)
        return changed

    def _weights(self, program: Program, name: str) -> np.ndarray | None:
        """Return an initializer of a program's file, by its name; None for one that is no parameter of a layer."""
        path, _, parameter = name.rpartition(".")
        parts = [self._parameter(program, member, parameter) for member in members_of(path)]
        return None if any(part is None for part in parts) else np.concatenate(parts)  # type: ignore[arg-type]

    def _parameter(self, program: Program, path: str, parameter: str) -> np.ndarray | None:
        """Return a parameter of a layer with its batch norm folded in."""
        try:
            layer: nn.Module = program.module.get_submodule(path)
        except AttributeError:
            return None
        value = getattr(layer, parameter, None)
        if path in self._norms and ops.is_projection(layer):
            weight, bias = folded(layer, program.module.get_submodule(self._norms[path]))
            value = {"weight": weight, "bias": bias}.get(parameter, value)
            value = value if value is None else value.to(layer.weight.dtype)
        return as_array(value) if isinstance(value, torch.Tensor) and value.ndim else None


def _sizes(group: ChannelGroup, keep: np.ndarray) -> Sizes:
    """Return the sizes that a group gives to dimensions, each with what is left: of all, of a head, of the heads."""
    left = (int(keep.sum()), int(keep.sum(axis=1).max()), int(keep.any(axis=1).sum()))
    return list(zip((group.size, group.axis.size, group.heads), left, strict=True))


def _unshare(model: onnx.ModelProto) -> None:
    """Give each node constants of its own for shapes and sizes, of which some may depend on a number of channels."""
    graph = model.graph
    shared = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64}
    kept = [tensor for tensor in graph.initializer if tensor.name not in shared]
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in shared:
                own = onnx.TensorProto()
                own.CopyFrom(shared[name])
                node.input[i] = own.name = f"{node.name}:{i}"
                kept.append(own)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _numbers(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the sizes of each value of a file, and the numbers of each constant of integers."""
    constants = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64]
    sizes = {name: list(shape) for name, shape in _shapes(model).items()}
    return sizes | {t.name: numpy_helper.to_array(t).tolist() for t in constants}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of each value of a file; 0 stands for the number of images."""
    return {v.name: tuple(dim.dim_value for dim in v.type.tensor_type.shape.dim) for v in model.graph.value_info}


def _cut(model: onnx.ModelProto, known: Mapping[str, Part], stored: Mapping[str, Packed]) -> CandidateFile:
    """Reduce a candidate's file, in place, to what follows the spikes that are known, cached and stored as it has them.

    Args:
        model: the file.
        known: the parts of spikes that the candidate computes.
        stored: the cached spikes.
    """
    shapes = _shapes(model)
    usable: dict[str, Part] = {}
    for spike in suffix.spikes(model):
        part, packed = known.get(spike.path), stored.get(spike.path)
        if part is not None and packed is not None and part.fits(packed.shape, shapes.get(spike.value)):
            usable[spike.path] = part
    return CandidateFile(model, usable, suffix.suffix(model, usable))


def _equal(one: CandidateFile, other: CandidateFile) -> bool:
    """Return whether two files and what they are fed with are the same."""
    left, right = (file.model.SerializeToString(deterministic=True) for file in (one, other))
    return left == right and one.fed == other.fed


__all__ = ["CandidateFile", "CandidateFiles"]
