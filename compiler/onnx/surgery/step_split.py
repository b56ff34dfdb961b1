"""Cut a streaming file at its neurons: spikes and currents as outputs, and what reads spikes reads new inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import einops
import numpy as np

from svitc.onnx.function_body import CURRENT_KEY
from svitc.onnx.model_info import file_of, metadata_of, read_apart
from svitc.onnx.spike_views import VIEW_KEY
from svitc.onnx.states import STATE_KEY, FileState, states_of
from svitc.onnx.surgery.neuron_split_unrolled import SplitUnrolledNeuron, split_unrolled_neurons


@dataclass(frozen=True)
class Membrane:
    """The state that is a neuron's membrane.

    Attributes:
        state: the state.
        pattern: einops pattern from the state to the program's array of one step.
        sizes: sizes of the pattern's letters, except the batch's.
        negated: whether the state is the membrane times -1.
    """

    state: FileState
    pattern: str
    sizes: dict[str, int]
    negated: bool = False

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the state, from the program's array of one step."""
        state, view = self.pattern.split(" -> ")
        value = einops.rearrange(-array if self.negated else array, f"{view} -> {state}", **self.sizes)
        return np.ascontiguousarray(value, dtype=np.float32)

    def array_of(self, value: np.ndarray) -> np.ndarray:
        """Return the program's array of one step, from the state."""
        return einops.rearrange(-value if self.negated else value, self.pattern, **self.sizes)


@dataclass(frozen=True)
class SplitStepNeuron:
    """One neuron of a cut streaming file.

    Attributes:
        spikes: its spikes and what replaces them.
        current: the same for its current, as an output alone; None where that is the file's input or spikes, and for
            a neuron without a membrane in a file with integer weights.
        membrane: its membrane; None for a neuron without, and where the next step does not depend on it.
    """

    spikes: SplitUnrolledNeuron
    current: SplitUnrolledNeuron | None
    membrane: Membrane | None

    @property
    def path(self) -> str:
        """Path of the neuron's layer."""
        return self.spikes.path


def split_step(model: bytes) -> tuple[bytes, list[SplitStepNeuron]]:
    """Turn every neuron's spikes and current into outputs, and let its readers read new inputs instead.

    Args:
        model: bytes of a streaming file.

    Returns:
        the cut file and its neurons in execution order; its states are as they were.

    Raises:
        InputError: the bytes are not an ONNX model.
        InternalError: the file does not give the type of a neuron's spikes.
    """
    split, neurons = split_unrolled_neurons(model)
    proto, tensors = read_apart(split)
    infos = {info.name: info for info in proto.graph.value_info}
    states = {state.input: state for state in states_of(proto) or ()}
    nodes = {
        json.loads(meta[VIEW_KEY])["path"]: meta for meta in map(metadata_of, proto.graph.node) if VIEW_KEY in meta
    }
    fired = {name for neuron in neurons for name in neuron.spikes}
    present, found = {output.name for output in proto.graph.output}, []
    for neuron in neurons:
        meta = nodes[neuron.path]
        current, name = None, meta.get(CURRENT_KEY)
        if name is not None and name in infos and name not in fired:
            current = replace(neuron, spikes=(name,), dtype=np.dtype(np.float32))
            if name not in present:
                proto.graph.output.append(infos[name])
                present.add(name)
        membrane = json.loads(meta[STATE_KEY]) if STATE_KEY in meta else None
        if membrane is not None:
            negated = membrane.get("negated", False)
            membrane = Membrane(states[membrane["input"]], membrane["pattern"], membrane["sizes"], negated)
        found.append(SplitStepNeuron(neuron, current, membrane))
    return file_of(proto, tensors), found


__all__ = ["Membrane", "SplitStepNeuron", "split_step"]
