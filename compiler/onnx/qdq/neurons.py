"""Neurons of a QDQ file: the equations of a neuron as nodes of the file itself, from currents to spikes in float32."""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx_ir as ir
from torch import fx, nn

from svitc.ir.axes import Dims, Kind, size
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.onnx import layout
from svitc.onnx.builder import FLOAT, Stored
from svitc.onnx.function_body import FunctionBody
from svitc.onnx.neuron_functions import kind_of
from svitc.onnx.qdq.builder import BOOL, QdqBuilder
from svitc.onnx.stateless_functions import stateless_kind_of
from svitc.onnx.unrolled.lower import VIEW_KEY
from svitc.onnx.unrolled.neuron_functions import UnrolledKind

COMPARISONS = ("GreaterOrEqual", "Greater", "LessOrEqual", "Less", "And", "Or", "Not")


def spiking_neuron(b: QdqBuilder, node: fx.Node, module: nn.Module) -> Stored:
    """Lower a neuron with a membrane: split its current into time steps, compute these, and join their spikes."""
    source = b.at(node.args[0])
    time = source.view[0]
    static = source.constant_along == time != ()
    if static:
        source = Stored(source.value, source.dims, layout.without(source.view, time), source.parameter)
    outermost = static or (len(source.dims) > 0 and source.dims[0][: len(time)] == time)
    dims = source.dims if source.in_order and outermost else layout.physical(source.view, keep=0)
    step = dims if static else (tuple(token for token in dims[0] if token not in time), *dims[1:])
    kind = UnrolledKind(kind_of(str(node.target), module, size(time), static), ir.DataType.FLOAT)
    steps, count = kind.kind.steps, 1 if kind.kind.static else kind.kind.steps
    currents = [b.read(source, dims)]
    if count > 1:
        currents = b.ops("Split", currents, [step] * count, {"axis": 0, "num_outputs": count}, helper="currents")
    if kind.takes_decay:
        currents.append(b.weight(f"{node.target}.decay", dynamics_of(module).float32_rate))
    body = _filled(b, kind.body(), currents, kind.kind.name, kind.constants)
    fired = body.counts() if kind.kind.counts else body.fired()  # type: ignore[attr-defined]
    _emit(b, body, step)
    out = ((*time, *step[0]), *step[1:])
    spikes = fired[0]
    if steps > 1:
        dtype = FLOAT if kind.kind.counts else BOOL
        spikes = b.op("Concat", fired, out, {"axis": 0}, helper="steps", dtype=dtype)
    if not kind.kind.counts:
        spikes = b.op("Cast", [spikes], out, {"to": ir.DataType.FLOAT.value})
    result = b.store(spikes, out, b.at(node.args[0]).view)
    _describe(result, str(node.target))
    return result


def stateless_neuron(b: QdqBuilder, node: fx.Node, module: nn.Module) -> Stored:
    """Lower a neuron without a membrane."""
    source = b.at(node.args[0])
    usable = source.in_order and not source.constant_along and source.value is not None
    dims = source.dims if usable else layout.physical(source.view, keep=0)
    kind = stateless_kind_of(module)
    body = _filled(b, FunctionBody(["x", *kind.constants]), [b.read(source, dims)], kind.name, kind.constants)
    spikes = kind.spikes(body)
    _emit(b, body, dims)
    result = b.store(spikes, dims, source.view)
    _describe(result, str(node.target))
    return result


def _filled(
    b: QdqBuilder, body: FunctionBody, values: Sequence[ir.Value], name: str, constants: dict[str, float]
) -> FunctionBody:
    """Return a neuron's body whose inputs are values of the file.

    Args:
        b: builder that constants are added to.
        body: an empty body.
        values: its first inputs.
        name: kind of the neuron.
        constants: its other inputs.
    """
    scalars = [b.scalar(f"{name.lower()}.{key}", number) for key, number in constants.items()]
    body.inputs = dict(zip(body.inputs, [*values, *scalars], strict=True))
    return body


def _emit(b: QdqBuilder, body: FunctionBody, dims: Dims) -> None:
    """Add the nodes of a neuron's body to the file, under names within the neuron's layer."""
    for node in body.nodes:
        b.adopt(node, dims, BOOL if node.op_type in COMPARISONS else FLOAT)


def _describe(spikes: Stored, path: str) -> None:
    """Record in the metadata of a neuron's last node how its spikes form the program's array."""
    letters = {id(token): f"a{i}" for i, token in enumerate(layout.flat(spikes.view))}
    sizes = {letters[id(t)]: t.size for t in layout.flat(spikes.view) if t.kind != Kind.BATCH}

    def side(dims: Dims) -> str:
        return " ".join("(" + " ".join(letters[id(token)] for token in dim) + ")" for dim in dims)

    assert spikes.value is not None
    node = spikes.value.producer()
    assert node is not None
    pattern = f"() {side(spikes.dims)} -> {side(spikes.view)}"  # the value of all steps, stacked
    node.metadata_props[VIEW_KEY] = json.dumps(
        {"path": path, "pattern": pattern, "sizes": sizes, "values": [spikes.value.name]}
    )


__all__ = ["spiking_neuron", "stateless_neuron"]
