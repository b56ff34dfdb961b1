"""Cut a quantized file at its neurons, each of which has one value for every time step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import einops
import numpy as np
import onnx

from svitc.errors import InputError, InternalError
from svitc.onnx.unrolled.lower import VIEW_KEY


@dataclass(frozen=True)
class SplitUnrolledNeuron:
    """One neuron of a cut file.

    Attributes:
        path: the neuron's layer.
        reference: graph inputs, one a step, that everything downstream reads in place of its spikes.
        spikes: graph outputs, one a step: what it fires, given the reference upstream.
        pattern: einops, from the steps' stacked values to the program's array.
        sizes: of the pattern's letters, all but the batch's.
        dtype: of the spikes in the file.
    """

    path: str
    reference: tuple[str, ...]
    spikes: tuple[str, ...]
    pattern: str
    sizes: dict[str, int]
    dtype: np.dtype

    def steps_of(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """The program's array of spikes as feeds, one a step."""
        steps, view = self.pattern.split(" -> ")
        sizes = {name: size for name, size in self.sizes.items()}
        if len(self.reference) > 1 or steps.split()[0] != "()":
            sizes |= {steps.split()[0]: len(self.reference)}
        found = einops.rearrange(array, f"{view} -> {steps}", **sizes)
        return {name: np.ascontiguousarray(found[t].astype(self.dtype)) for t, name in enumerate(self.reference)}

    def array_of(self, got: Mapping[str, np.ndarray]) -> np.ndarray:
        """The program's array of the spikes that a run gave."""
        return einops.rearrange(np.stack([got[name] for name in self.spikes]), self.pattern, **self.sizes)


def split_unrolled_neurons(model: bytes) -> tuple[bytes, list[SplitUnrolledNeuron]]:
    """A model each of whose neurons is an output and no longer feeds another.

    Raises:
        InputError: the bytes are no ONNX model.
        InternalError: the file does not give the type of a neuron's spikes.
    """
    try:
        proto = onnx.load_from_string(model)
    except Exception as error:  # protobuf's errors have no common class across its implementations
        raise InputError(f"cannot read an ONNX model from the given bytes: {error}") from error
    graph = proto.graph
    types = {info.name: info.type.tensor_type.elem_type for info in graph.value_info}
    found: list[SplitUnrolledNeuron] = []
    renamed: dict[str, str] = {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        meta = {p.key: p.value for p in node.metadata_props}
        if VIEW_KEY not in meta:
            continue
        view = json.loads(meta[VIEW_KEY])
        names = view["values"]  # of all steps, which a neuron without state fires one by one
        refs = [f"ref:{name}" for name in names]
        renamed.update(zip(names, refs, strict=True))
        if names[0] not in types:
            raise InternalError(f"neuron {view['path']}: its spikes have no type in the file")
        spike = types[names[0]]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(spike)
        found.append(
            SplitUnrolledNeuron(view["path"], tuple(refs), tuple(names), view["pattern"], view["sizes"], dtype)
        )
        for name, ref in zip(names, refs, strict=True):
            graph.input.append(onnx.helper.make_tensor_value_info(ref, spike, None))
            graph.output.append(onnx.helper.make_tensor_value_info(name, spike, None))
    return proto.SerializeToString(deterministic=True), found
