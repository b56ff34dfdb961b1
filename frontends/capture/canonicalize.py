"""Rewrite a raw captured graph into the closed list of canonical operations, typing as it goes.

Layers that SpikingJelly runs over time and batch at once become the plain layer between two rearranges; anything
outside the list is refused by name, with its line.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import fx, nn

from svitc.errors import UnsupportedError
from svitc.frontends.capture.graph_builder import GraphBuilder, has_module
from svitc.frontends.capture.op_handlers import HANDLERS
from svitc.ir import axes, ops
from svitc.ir.graph import describe, input_type
from svitc.ir.program import Program


def canonicalize(program: Program, fix: bool, done: list[fx.Node]) -> tuple[list[str], list[str]]:
    """Bring a raw program into canonical form, in place, and type it.

    Args:
        fix: split time from batch before a neuron that runs them together.
        done: filled with the raw operations that were represented.

    Returns:
        The neurons that ``fix`` was needed for, and the autograd functions whose own gradient is lost.

    Raises:
        UnsupportedError: an operation or neuron outside the closed list.
    """
    raw = program.graph
    raw.eliminate_dead_code(_matters)
    work = Canonicalizer(program, fix)
    program.module.graph = work.run(raw, done)
    program.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    program.module.delete_all_unused_submodules()
    _drop_unused_parameters(program)
    program.retype()
    program.module.recompile()
    return work.fixed, sorted({n.meta["function"] for n in raw.nodes if "function" in n.meta})


class Canonicalizer(GraphBuilder):
    """Rewrites a raw graph node by node.

    Args:
        fix: split time from batch before a neuron that runs them together.

    Attributes:
        fixed: the neurons that it was needed for.
    """

    def __init__(self, program: Program, fix: bool = False) -> None:
        super().__init__(program)
        self.fix = fix
        self.fixed: list[str] = []
        self.fired: set[str] = set()  # neurons that were called
        self.layers: dict[str, nn.Module | None] = {}  # as the model has them; a second call must see the first's

    def run(self, raw: fx.Graph, done: list[fx.Node]) -> fx.Graph:
        for node in raw.nodes:
            self.origin = node
            new = self.handle(node)
            self.done[node] = new
            done.append(node)
            value = node.meta.get("val")
            if isinstance(new, fx.Node) and isinstance(value, torch.Tensor):
                shape = axes.shape(input_type(new))
                if tuple(value.shape) != shape:
                    raise UnsupportedError(
                        f"{describe(node)}: typed as {shape}, but it has shape {tuple(value.shape)}",
                        where=node.meta.get("source"),
                    )
        return self.graph

    def handle(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            x = self.emit("placeholder", str(node.target), name="x")
            return self.permute(x, (1, 0, 2, 3, 4)) if self.program.info.get("batch_first") else x
        if node.op == "output":
            return self.output(node)
        if node.op == "get_attr":
            return self.emit("get_attr", node.target)
        if node.op == "call_module":
            return self.call_module(node)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        handler = HANDLERS.get(name.strip("_") if name not in HANDLERS else name)
        if _in_place(node) and list(node.all_input_nodes[0].users)[-1] is not node:
            raise self.refuse(f"{name} changes a tensor in place, and what it was is used again")
        if handler is None:
            raise self.refuse(
                f"{name} is not an operation that svitc can represent",
                hint="svitc inspect lists what is supported; rewrite the layer with those, or report it.",
            )
        return handler(self, node)

    def output(self, node: fx.Node) -> fx.Node:
        """The logits; what else the model returns, such as an empty dictionary of hooks, is no tensor."""
        found: list[fx.Node] = []
        fx.node.map_arg(self.arg(node.args[0]), found.append)
        if len(found) != 1:
            raise self.refuse(f"the model must return one tensor of logits; it returns {len(found)}")
        dims = input_type(found[0])
        if not any(len(dim) == 1 and dim[0].kind == axes.Kind.BATCH for dim in dims):
            raise self.refuse(f"the model returns {axes.show(dims)}, which is not one result for each sample")
        return self.emit("output", "output", (found[0],))

    def call_module(self, node: fx.Node) -> fx.Node:
        path = str(node.target)
        module = self.layers.setdefault(path, self.program.module_of(node))
        x = self.arg(node.args[0])
        assert module is not None
        if isinstance(module, (nn.Identity, nn.Dropout)):
            return x
        if isinstance(module, base.MemoryModule):
            return self.neuron(path, module, x)
        if isinstance(module, (nn.MaxPool3d, nn.AvgPool3d)):
            return self.pool_each(path, module, x)
        if ops.is_neuron(module):
            path, module = self.place_of_its_own(path), copy.deepcopy(module)
        self.replace(path, plain(module))
        many = getattr(module, "step_mode", "s") == "m" and not isinstance(module, nn.Linear)
        if not many:
            return self.emit("call_module", path, (x,))
        dims = input_type(x)
        merged = self.view(x, ((*dims[0], *dims[1]), *dims[2:]))
        y = self.emit("call_module", path, (merged,))
        out = input_type(y)
        return self.view(y, (dims[0], dims[1], *out[1:]))

    def neuron(self, path: str, module: base.MemoryModule, x: fx.Node) -> fx.Node:
        if not ops.is_neuron(module):
            known = ", ".join(t.__name__ for t in ops.NEURONS)
            raise self.refuse(
                f"neuron {path} is a {type(module).__name__}, which svitc does not know",
                hint=f"Known neurons: {known}.",
            )
        if module.v_threshold <= 0 or (module.v_reset is not None and module.v_reset >= module.v_threshold):  # type: ignore[operator]
            raise self.refuse(
                f"neuron {path} fires without input (threshold {module.v_threshold}, reset {module.v_reset})"
            )
        if path in self.fired:
            raise self.refuse(
                f"neuron {path} is called twice in one forward, so that its membrane runs on from one place to the "
                "other",
                hint="Give each place a neuron of its own.",
            )
        self.fired.add(path)
        module.store_v_seq = False  # type: ignore[assignment]
        dims = input_type(x)
        if not dims or [axis.kind for axis in dims[0]] != [axes.Kind.TIME, axes.Kind.BATCH]:
            return self.emit("call_module", path, (x,))
        if not self.fix:
            raise self.refuse(
                f"the neuron's first dimension is not time alone but time and batch run together ({axes.show(dims)}),"
                " so that an image's result depends on its neighbours in the batch",
                hint="This is a mistake in the model's own code; one image at a time, it computes what was meant."
                " --rewrite-model splits time from batch before such neurons.",
            )
        self.fixed.append(path)
        time, batch = dims[0]
        spikes = self.emit("call_module", path, (self.view(x, ((time,), (batch,), *dims[1:])),))
        return self.view(spikes, dims)

    def place_of_its_own(self, path: str) -> str:
        """Path for a call of a neuron without state: the second call's is a copy, so that names tell spikes apart."""
        place, count = path, 0
        while place in self.fired or (place != path and has_module(self.program.module, place)):
            count += 1
            place = f"{path}_{count}"
        self.fired.add(place)
        return place

    def pool_each(self, path: str, module: nn.MaxPool3d | nn.AvgPool3d, x: fx.Node) -> fx.Node:
        """Pooling over three dimensions whose window is one wide in the first: a pooling over the other two."""
        dims, flat = input_type(x), _flat_pool(module)
        if flat is None or len(dims) != 5:
            raise self.refuse(f"{module} of {axes.show(dims)} pools over three dimensions")
        self.replace(path, flat)
        y = self.emit("call_module", path, (self.view(x, ((*dims[0], *dims[1]), *dims[2:])),))
        out = input_type(y)
        return self.view(y, (dims[0], dims[1], *out[1:]))


def _matters(node: fx.Node) -> bool:
    """Whether a raw operation does something though nothing reads its result."""
    return node.op in ("placeholder", "output") or _in_place(node)


def _in_place(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    name = str(node.target)
    return node.op == "call_method" and name.endswith("_") and not name.endswith("__")


def _drop_unused_parameters(program: Program) -> None:
    """Bare parameters of containers that no node reads; layers are dropped whole before this."""
    used = {str(n.target) for n in program.graph.nodes if n.op in ("call_module", "get_attr")}
    for path, module in list(program.module.named_modules()):
        if path in used:
            continue
        for store in (module._parameters, module._buffers):
            for name in [n for n in store if (f"{path}.{n}" if path else n) not in used]:
                del store[name]


def _flat_pool(module: nn.MaxPool3d | nn.AvgPool3d) -> nn.Module | None:
    def triple(name: str) -> tuple[int, int, int]:
        value = getattr(module, name, 1)
        return value if isinstance(value, tuple) else (value,) * 3

    names = ("kernel_size", "stride", "padding", "dilation")
    if [triple(name)[0] for name in names] != [1, 1, 0, 1]:
        return None
    kernel, stride, padding, dilation = ((b, c) for _, b, c in map(triple, names))
    if isinstance(module, nn.MaxPool3d):
        return nn.MaxPool2d(kernel, stride, padding, dilation, module.return_indices, module.ceil_mode)
    rest = module.ceil_mode, module.count_include_pad, module.divisor_override
    return nn.AvgPool2d(kernel, stride, padding, *rest)


def plain(module: nn.Module) -> nn.Module:
    """SpikingJelly's step-mode subclass of a layer as the ``torch.nn`` layer itself, with the same parameters.

    Raises:
        UnsupportedError: a batch norm without statistics, a padding mode other than zeros.
    """
    if isinstance(module, ops.BATCH_NORMS) and module.running_mean is None:
        raise UnsupportedError(f"{type(module).__name__} keeps no running statistics")
    if getattr(module, "padding_mode", "zeros") != "zeros":
        raise UnsupportedError(f"padding mode {module.padding_mode!r} is not supported")
    for kind in ops.MODULES:
        if isinstance(module, kind):
            if type(module) is kind:
                return module
            if type(module).forward is not kind.forward and not isinstance(module, base.StepModule):
                raise UnsupportedError(f"{type(module).__name__} changes what {kind.__name__} computes")
            twin = kind.__new__(kind)
            twin.__dict__.update({k: v for k, v in module.__dict__.items() if k != "_step_mode"})
            return twin
    raise UnsupportedError(f"{type(module).__name__} is not a layer that svitc knows")
