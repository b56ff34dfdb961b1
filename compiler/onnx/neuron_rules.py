"""Rules that lower neurons of a program whose values are stored whole."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx, nn

from svitc.ir.axes import size
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.onnx import layout
from svitc.onnx.builder import Builder, Stored
from svitc.onnx.neuron_functions import AnyKind, kind_of
from svitc.onnx.spike_views import describe_stored
from svitc.onnx.stateless_functions import stateless_kind_of
from svitc.onnx.states import note


def stateless_neuron(b: Builder, node: fx.Node, module: nn.Module) -> Stored:
    """Lower a neuron without a membrane.

    It is elementwise, so its input is read as it is stored if the elements are in the program's order, on which the
    comparison with the reference relies (surgery/neuron_split.py).
    """
    source = b.at(node.args[0])
    usable = source.in_order and not source.constant_along and source.value is not None
    dims = source.dims if usable else layout.physical(source.view, keep=0)
    kind = stateless_kind_of(module)
    (spikes,) = b.neuron(kind, [b.read(source, dims), *_scalars(b, kind)], [dims], dims)
    stored = b.store(spikes, dims, source.view)
    if b.streaming:
        describe_stored(stored, str(node.target))
    return stored


def spiking_neuron(b: Builder, node: fx.Node, module: nn.Module, any_order: bool = False) -> Stored:
    """Lower a neuron with a membrane to a call of its kind's function; a static input is given once.

    Args:
        b: builder that the nodes are emitted to.
        node: the neuron.
        module: its module.
        any_order: whether its values may have an order of elements other than the program's, but for time.
    """
    source = b.at(node.args[0])
    time = source.view[0]
    static = source.constant_along == time != ()
    if static:
        source = Stored(source.value, source.dims, layout.without(source.view, time), source.parameter)
    outermost = static or (len(source.dims) > 0 and source.dims[0][: len(time)] == time)
    # elementwise but for time, so any grouping of the other dimensions will do
    usable = source.in_order or (any_order and not source.constant_along and source.value is not None)
    dims = source.dims if usable and outermost else layout.physical(source.view, keep=0)
    path = str(node.target)
    kind = kind_of(path, module, size(time), static, b.streaming)
    state = b.state(path, dims, dynamics_of(module).initial) if kind.carried else None
    inputs = [b.read(source, dims)]
    if state is not None:
        inputs.append(b.read(b.store(state.before, state.dims), dims))
    if kind.takes_decay:
        inputs.append(b.weight(f"{node.target}.decay", dynamics_of(module).float32_rate))
    inputs += _scalars(b, kind)
    out = ((*time, *dims[0]), *dims[1:]) if static else dims
    spikes, *membrane = b.neuron(kind, inputs, [out] * (1 + kind.carried), (out[0][len(time) :], *out[1:]))
    if state is not None:
        b.pass_on(state, membrane[0], out)
        note(spikes.producer(), state, b.at(node.args[0]).view)
    stored = b.store(spikes, out, b.at(node.args[0]).view)
    if b.streaming:
        describe_stored(stored, path)
    return stored


def _scalars(b: Builder, kind: AnyKind) -> list[ir.Value]:
    """Return the scalar inputs of a neuron's function."""
    return [b.scalar(f"{kind.name.lower()}.{name}", number) for name, number in kind.constants.items()]


__all__ = ["spiking_neuron", "stateless_neuron"]
