"""Cut a quantized file at its neurons, each of which has one value for every time step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import einops
import numpy as np
import onnx

from svitc.errors import InternalError
from svitc.onnx.model_info import file_of, metadata_of, read_apart
from svitc.onnx.spike_views import VIEW_KEY
from svitc.onnx.surgery.neuron_split import renamed_info


@dataclass(frozen=True)
class SplitUnrolledNeuron:
    """One neuron of a cut file.

    Attributes:
        path: path of the neuron's layer.
        reference: graph inputs, one a step, that all readers of the neuron read instead of its spikes.
        spikes: graph outputs, one a step: what the neuron fires when the layers before it get the reference's spikes.
        pattern: einops pattern from the stacked values of all steps to the program's array.
        sizes: sizes of the pattern's letters, except the batch's.
        dtype: element type of the spikes in the file.
    """

    path: str
    reference: tuple[str, ...]
    spikes: tuple[str, ...]
    pattern: str
    sizes: dict[str, int]
    dtype: np.dtype

    def steps_of(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Convert the program's array of spikes to feeds for ``reference``, by name."""
        steps, view = self.pattern.split(" -> ")
        sizes = dict(self.sizes)
        if not steps.startswith("("):  # else there is no time, or each of its factors is in the sizes
            sizes |= {steps.split()[0]: len(self.reference)}
        stacked = einops.rearrange(array, f"{view} -> {steps}", **sizes)
        return {name: np.ascontiguousarray(stacked[t].astype(self.dtype)) for t, name in enumerate(self.reference)}

    def array_of(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the spikes in the program's form, from the outputs of a run by name."""
        return einops.rearrange(np.stack([outputs[name] for name in self.spikes]), self.pattern, **self.sizes)


def split_unrolled_neurons(model: bytes) -> tuple[bytes, list[SplitUnrolledNeuron]]:
    """Turn every neuron's spikes into outputs, and let its readers read new inputs instead.

    Args:
        model: bytes of a quantized ONNX file.

    Returns:
        the cut file and its neurons in execution order.

    Raises:
        InputError: the bytes are not an ONNX model.
        InternalError: the file does not give the type of a neuron's spikes.
    """
    proto, tensors = read_apart(model)
    graph = proto.graph
    infos = {info.name: info for info in graph.value_info}
    neurons: list[SplitUnrolledNeuron] = []
    renamed: dict[str, str] = {}
    owners: dict[str, str] = {}  # name of spikes -> what the names of the neuron's own nodes begin with
    for meta in map(metadata_of, graph.node):
        if VIEW_KEY not in meta:
            continue
        view = json.loads(meta[VIEW_KEY])
        names = view["values"]  # of all steps, even where each step has its own node
        refs = [f"ref:{name}" for name in names]
        renamed.update(zip(names, refs, strict=True))
        owners.update(dict.fromkeys(names, f"{view['path']}/"))
        if any(name not in infos for name in names):
            raise InternalError(f"neuron {view['path']}: the file has no type for its spikes")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(infos[names[0]].type.tensor_type.elem_type)
        neurons.append(
            SplitUnrolledNeuron(view["path"], tuple(refs), tuple(names), view["pattern"], view["sizes"], dtype)
        )
        for name, ref in zip(names, refs, strict=True):
            graph.input.append(renamed_info(infos[name], ref))
            graph.output.append(infos[name])
    for node in graph.node:  # afterwards, as later steps are read before the node that has the metadata
        for i, name in enumerate(node.input):
            if name not in owners or not node.name.startswith(owners[name]):  # a membrane follows its own spikes
                node.input[i] = renamed.get(name, name)
    return file_of(proto, tensors), neurons
