"""Outputs of a program: their names, and the tuples, lists and dictionaries in which the model returns them.

The output node's argument is one node, or a tuple of nodes. A model that returns one tensor has the output ``logits``.
Any other model has an entry ``outputs`` in its program's ``info``, of JSON values:

    names      name of each output, in the order of the output node's argument
    structure  {"output": i} for output i; {"tuple": [...]} and {"list": [...]}; {"dict": [[key, ...], ...]};
               {"value": v} for None, a number or a text that is the same for every input
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import fx

from svitc.errors import InputError, UsageError
from svitc.ir import axes
from svitc.ir.axes import Dims, Kind
from svitc.ir.graph import type_of
from svitc.support.types import Json, JsonDict, JsonMapping

LOGITS = "logits"
AVERAGED_DIMS = 2  # [N, classes]
NAME = re.compile(r"[\w./-]{1,200}")
INPUT = "image"  # the name of a file's input
RESERVED = ("x", INPUT)  # "x" is what older versions called it
T = TypeVar("T")


def output_node(graph: fx.Graph) -> fx.Node:
    """Return the output node of a graph."""
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def output_values(graph: fx.Graph) -> list[fx.Node]:
    """Return the node of each output of a graph, in order; a node that is returned twice occurs twice."""
    return list(as_tuple(output_node(graph).args[0]))  # type: ignore[arg-type]


def as_tuple(value: T | tuple[T, ...]) -> tuple[T, ...]:
    """Return what a graph returns as a tuple with one entry for each output."""
    return value if isinstance(value, tuple) else (value,)


def output_names(info: JsonMapping) -> list[str]:
    """Return the names of a program's outputs, which are the names in its ONNX file."""
    described = info.get("outputs")
    return [LOGITS] if described is None else list(described["names"])


def labels(info: JsonMapping) -> list[str]:
    """Return what reports call the outputs: ``logits``, or ``output NAME``, which no neuron can be called."""
    return [LOGITS] if info.get("outputs") is None else [f"output {name}" for name in output_names(info)]


def restored(info: JsonMapping, value: Any) -> Any:
    """Return what a graph returns in the form in which the model returns it."""
    described = info.get("outputs")
    return value if described is None else _rebuilt(described["structure"], as_tuple(value))


def _rebuilt(structure: JsonDict, values: Sequence[object]) -> object:
    kind, inner = next(iter(structure.items()))
    if kind == "output":
        return values[inner]
    if kind == "value":
        return inner
    if kind == "dict":
        return {key: _rebuilt(item, values) for key, item in inner}
    items = [_rebuilt(item, values) for item in inner]
    return items if kind == "list" else tuple(items)


# description of what a model returns


class Unrepresentable(ValueError):
    """A part of what a model returns that is neither a tensor nor a plain value."""


def describe_outputs(value: object, leaf: type) -> tuple[list[Any], JsonDict | None]:
    """Return the leaves of what a model returns, and their names and structure as ``info["outputs"]`` keeps them.

    Args:
        value: nested tuples, lists, dictionaries and dataclasses.
        leaf: the class of the leaves, such as a node or a tensor.

    Returns:
        the leaves in order; and their description, or None for a single one that is returned by itself or in a tuple
        beside other things (an empty dictionary of hooks), which then are left out.

    Raises:
        Unrepresentable: a part is neither a leaf nor a plain value.
    """
    leaves = list(_leaves(value, leaf, ()))
    beside = isinstance(value, tuple) and len(value) > 1 and any(isinstance(item, leaf) for item in value)
    if len(leaves) == 1 and (isinstance(value, leaf) or beside):
        return [leaves[0][1]], None
    names: list[str] = []
    for path, _ in leaves:
        base = re.sub(r"[^\w./-]", "_", ".".join(path))[:190] or "output"
        base = LOGITS if len(leaves) == 1 and base == "output_0" else base
        names.append(_free_name(base, {*names, *RESERVED}))
    numbers = iter(range(len(leaves)))
    return [node for _, node in leaves], {"names": names, "structure": _structure(value, leaf, numbers)}


def _free_name(base: str, taken: Collection[object]) -> str:
    """Return a name, with the first free number behind it where it is taken."""
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name


def rename_reserved(described: Json) -> None:
    """Rename, in place, an output that was saved under the input's name, which was another one in older versions."""
    names = described.get("names") if isinstance(described, dict) else None
    if isinstance(names, list) and INPUT in names:
        names[names.index(INPUT)] = _free_name(INPUT, [*names, *RESERVED])


def _parts(value: object) -> list[tuple[object, object]] | None:
    """Return the keys and entries of a container, or None where a value is none."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple | list):
        fields = getattr(value, "_fields", None)
        return list(zip(fields, value, strict=True)) if fields is not None else list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def _leaves(value: object, leaf: type, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the path and the value of each leaf."""
    if isinstance(value, leaf):
        yield path, value
        return
    for key, item in _parts(value) or ():
        part = f"output_{key}" if not path and isinstance(key, int) else str(key)
        yield from _leaves(item, leaf, (*path, part))


def _structure(value: object, leaf: type, numbers: Iterator[int]) -> JsonDict:
    """Return the structure of a value as JSON, with the leaves numbered in order."""
    if isinstance(value, leaf):
        return {"output": next(numbers)}
    parts = _parts(value)
    if parts is None:
        if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
            return {"value": value}
        raise Unrepresentable(f"{type(value).__name__}")
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_structure(item, leaf, numbers) for _, item in parts]}
    if not all(isinstance(key, str | int) for key, _ in parts):
        raise Unrepresentable("dictionary whose keys are neither texts nor numbers")
    return {"dict": [[key, _structure(item, leaf, numbers)] for key, item in parts]}


def tensors_of(value: object) -> list[torch.Tensor]:
    """Return the tensors in what a model returns, in order."""
    return [tensor for _, tensor in _leaves(value, torch.Tensor, ())]  # type: ignore[misc]


# checks


def check_description(described: Json, count: int) -> None:
    """Check an untrusted ``info["outputs"]``.

    Args:
        described: a JSON value, None where there is none.
        count: number of outputs of the graph.

    Raises:
        InputError: it is malformed or does not fit the graph.
    """
    if described is None:
        if count != 1:
            raise InputError(f"the program has {count} outputs and no names for them")
        return
    names = described.get("names") if isinstance(described, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise InputError("the names of the outputs are not valid")
    if len(names) != count or len({*names, *RESERVED}) != count + len(RESERVED):
        raise InputError(f"{len(names)} names of outputs, some perhaps equal, for a program with {count}")
    if list(_checked(described.get("structure"))) != list(range(count)):  # type: ignore[union-attr]
        raise InputError("the structure of the outputs does not name each of them once, in order")


def _checked(structure: Json) -> Iterator[int]:
    """Yield the numbers of the outputs in an untrusted structure, in order."""
    if not isinstance(structure, dict) or len(structure) != 1:
        raise InputError("the structure of the outputs is malformed")
    kind, inner = next(iter(structure.items()))
    if kind == "output" and type(inner) is int:
        yield inner
    elif kind in ("tuple", "list") and isinstance(inner, list):
        for item in inner:
            yield from _checked(item)
    elif kind == "dict" and isinstance(inner, list):
        keys: set[str | int] = set()
        for pair in inner:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str | int)):
                raise InputError("the structure of the outputs has an entry that is no pair of key and value")
            keys.add(pair[0])
            yield from _checked(pair[1])
        if len(keys) != len(inner):
            raise InputError("the structure of the outputs has two entries of one key")
    elif kind != "value" or not (
        inner is None or isinstance(inner, str | int) or (isinstance(inner, float) and math.isfinite(inner))
    ):
        raise InputError("the structure of the outputs is malformed")


def problem_of(value: fx.Node) -> str | None:
    """Return why a node's value cannot be an output, as the end of a sentence, or None.

    Each image must have a result of its own, so that the batch is a dimension by itself.
    """
    dims = type_of(value)
    if any(len(dim) == 1 and dim[0].kind == Kind.BATCH for dim in dims):
        return None if depends_on_input(value) else "which is the same for every image"
    if any(axis.kind == Kind.BATCH for dim in dims for axis in dim):
        return f"{axes.show(dims)}, where the batch is merged with other dimensions; it must be a dimension of its own"
    if not depends_on_input(value):
        return "a constant, which is the same for every image; leave it out, or return it only while training"
    return f"{axes.show(dims)}, which is not one result for each sample"


def depends_on_input(value: fx.Node) -> bool:
    """Return whether a value is computed from the model's input."""
    seen: set[fx.Node] = set()
    todo = [value]
    while todo:
        node = todo.pop()
        if node.op == "placeholder":
            return True
        if node not in seen:
            seen.add(node)
            todo += node.all_input_nodes
    return False


# class scores


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """The output that scores classes.

    Attributes:
        index: its index among the outputs.
        time: index of its time dimension, or None.
    """

    index: int
    time: int | None

    def of(self, outputs: Sequence[Any]) -> Any:
        """Return the scores, ``[N, classes]``, averaged over time, from all outputs as arrays or tensors.

        Those of a file may be averaged already, although the model's are not.
        """
        scores = outputs[self.index]
        return scores if self.time is None or scores.ndim == AVERAGED_DIMS else scores.mean(self.time)


def class_scores(graph: fx.Graph, info: JsonMapping) -> ClassScores | None:
    """Return the one output that has the form of class scores, or None where there is none or several.

    That is ``[N, classes]``, also with a time dimension; of several, the one that is called ``logits``.
    """
    candidates = {
        name: ClassScores(i, time)
        for i, (name, value) in enumerate(zip(output_names(info), output_values(graph), strict=True))
        for is_scores, time in [_as_scores(type_of(value))]
        if is_scores
    }
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    return candidates.get(LOGITS)


def scores_of_single_output(graph: fx.Graph, info: JsonMapping) -> ClassScores | None:
    """Return the only output of a model if it scores classes at each time step, or None."""
    scores = class_scores(graph, info) if len(output_values(graph)) == 1 else None
    return scores if scores is not None and scores.time is not None else None


def required_scores(graph: fx.Graph, info: JsonMapping) -> ClassScores:
    """Return the output that scores classes.

    Raises:
        UsageError: there is none, or several.
    """
    scores = class_scores(graph, info)
    if scores is None:
        names = ", ".join(output_names(info))
        raise UsageError(
            f"the model has no single output of class scores, [N, classes]; its outputs are {names}",
            hint="Name one of several logits, or give a metric of your own: --metric module:function.",
        )
    return scores


def _as_scores(dims: Dims) -> tuple[bool, int | None]:
    """Return whether a type is that of class scores, and the index of its time dimension."""
    times = [i for i, dim in enumerate(dims) if dim and all(axis.kind == Kind.TIME for axis in dim)]
    rest = [dim for i, dim in enumerate(dims) if i not in times]
    scores = len(times) <= 1 and len(rest) == 2 and len(rest[0]) == 1 and rest[0][0].kind == Kind.BATCH
    is_scores = scores and all(axis.kind != Kind.BATCH for axis in rest[1])
    return is_scores, times[0] if times else None
