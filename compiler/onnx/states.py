"""States of a streaming file: membranes and sums that a call passes on to the next one, as inputs and outputs.

A state is float32 and has the batch first, so that each sample carries its own: ``[N, ...]``. Inside, it lies as the
layer computes it (layout.py); what leads from one to the other is at most a reshape for nearly every layer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from svitc.errors import InternalError
from svitc.ir.axes import Axis, Dim, Dims, Kind
from svitc.onnx import layout
from svitc.onnx.model_info import reading_metadata

BEFORE, AFTER = "state.", "next."  # what the names of a state's input and output begin with
PACKED, PACKED_AFTER = "state", "next"  # the input and output of a packed state (packed_state.py)
STATES_KEY = "svitc.states"  # metadata of a streaming file: its states in the order of its inputs
STATE_KEY = "svitc.state"  # metadata of the node that gives a neuron's spikes: how its membrane lies
COUNTER = "steps"  # the state that counts the steps so far
FLOAT = ir.TensorType(ir.DataType.FLOAT)


@dataclass
class State:
    """One state of a file under construction.

    Attributes:
        path: the layer that it belongs to.
        before: the graph input.
        initial: every element of it before the first step.
        dims: layout of the input and of the output.
        after: the graph output, once it is emitted.
    """

    path: str
    before: ir.Value
    initial: float
    dims: Dims
    after: ir.Value | None = None

    def to_json(self) -> dict[str, object]:
        """Return the state's entry in the metadata."""
        assert self.after is not None
        shape, initial = layout.shape(self.dims), float(np.float32(self.initial)) or 0.0  # no -0.0
        return FileState(str(self.before.name), str(self.after.name), tuple(shape), initial).to_json()


def batch_first(dims: Dims) -> Dims:
    """Return the layout of a state, for a value that lies as ``dims``: the batch, then everything else in order."""
    batch: Dim = tuple(token for token in layout.flat(dims) if token.kind == Kind.BATCH)
    if len(batch) != 1:
        raise InternalError("a state without a batch")
    return (batch, *(dim for dim in layout.without(dims, batch) if dim))


def counter_dims() -> Dims:
    """Return the layout of the counter of steps, ``[N, 1]``."""
    return ((Axis("batch", 1, Kind.BATCH, "b"),), ())


def pattern_of(dims: Dims, view: Dims) -> tuple[str, dict[str, int]]:
    """Return the einops pattern, and the sizes of its letters, from a state to the program's array of one step.

    Args:
        dims: layout of the state.
        view: the program's dimensions, in the same tokens.
    """
    letters = {id(token): f"a{i}" for i, token in enumerate(layout.flat(dims))}
    sizes = {letters[id(token)]: token.size for token in layout.flat(dims) if token.kind != Kind.BATCH}

    def side(part: Dims) -> str:
        return " ".join("(" + " ".join(letters[id(token)] for token in dim) + ")" for dim in part)

    return f"{side(dims)} -> {side(view)}", sizes


def note(node: ir.Node | None, state: State, view: Dims, negated: bool = False) -> None:
    """Record on the node that gives a neuron's spikes which state its membrane is, how it lies, and with which sign."""
    assert node is not None
    pattern, sizes = pattern_of(state.dims, view)
    entry = {"input": state.before.name, "pattern": pattern, "sizes": sizes, "negated": negated}
    node.metadata_props[STATE_KEY] = json.dumps(entry)


@dataclass(frozen=True)
class Part:
    """One of the states that lie one behind the other in a packed state (packed_state.py).

    Attributes:
        name: name of the input that it would have by itself.
        shape: its shape, ``"N"`` for the batch.
        offset: elements of an image before it.
        initial: every element of it before the first step.
    """

    name: str
    shape: tuple[int | str, ...]
    offset: int
    initial: float

    @property
    def size(self) -> int:
        """Number of elements of an image."""
        return prod(int(size) for size in self.shape[1:])

    def to_json(self) -> dict[str, object]:
        """Return the part's entry in the metadata."""
        return {"name": self.name, "shape": list(self.shape), "offset": self.offset, "initial": self.initial}


@dataclass(frozen=True)
class FileState:
    """One state of a finished file.

    Attributes:
        input: name of the graph input that takes it.
        output: name of the graph output that gives it after a step.
        shape: its shape, ``"N"`` for the batch.
        initial: every element of it before the first step; of a packed state its parts have their own.
        parts: the states in a packed state; empty for any other.
        in_place: whether the output may have the memory of the input (in_place.py).
    """

    input: str
    output: str
    shape: tuple[int | str, ...]
    initial: float
    parts: tuple[Part, ...] = ()
    in_place: bool = False

    def start(self, batch: int) -> np.ndarray:
        """Return the state of this many samples before the first step."""
        sizes = [size if isinstance(size, int) else batch for size in self.shape]
        value = np.full(sizes, self.initial, np.float32)
        for part in self.parts:
            value[:, part.offset : part.offset + part.size] = part.initial
        return value

    @property
    def names(self) -> list[str]:
        """Names of the inputs that the states in it would have each by itself."""
        return [part.name for part in self.parts] or [self.input]

    def to_json(self) -> dict[str, object]:
        """Return the state's entry in the metadata."""
        entry = {
            "input": self.input,
            "output": self.output,
            "dtype": "float32",
            "shape": list(self.shape),
            "initial": self.initial,
            "in_place": self.in_place,
        }
        return entry | ({"parts": [part.to_json() for part in self.parts]} if self.parts else {})


def states_of(model: onnx.ModelProto) -> list[FileState] | None:
    """Return the states of a streaming file in the order of its inputs; None for a file of any other kind."""
    text = next((entry.value for entry in model.metadata_props if entry.key == STATES_KEY), None)
    return None if text is None else states_in(text)


def states_in(text: str) -> list[FileState]:
    """Return the states that the metadata of a streaming file list, in the order of its inputs.

    Raises:
        InputError: the metadata are damaged.
    """
    found = []
    with reading_metadata(STATES_KEY):
        for state in json.loads(text):
            parts = tuple(Part(p["name"], tuple(p["shape"]), p["offset"], p["initial"]) for p in state.get("parts", ()))
            if not all(isinstance(n, str) for n in (state["input"], state["output"], *(part.name for part in parts))):
                raise TypeError("a name is no text")
            is_in_place = bool(state.get("in_place", False))
            found.append(
                FileState(state["input"], state["output"], tuple(state["shape"]), state["initial"], parts, is_in_place)
            )
    return found


__all__ = [
    "AFTER",
    "BEFORE",
    "COUNTER",
    "PACKED",
    "PACKED_AFTER",
    "STATES_KEY",
    "STATE_KEY",
    "FileState",
    "Part",
    "State",
    "batch_first",
    "counter_dims",
    "note",
    "states_in",
    "states_of",
]
