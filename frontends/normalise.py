"""Normalise: rewrite a raw captured graph into the closed list of canonical operations, typing as it goes.

Every view becomes an ``einops.rearrange`` in named axes, worked out from the axis types and not from sizes; layers
that SpikingJelly runs over time and batch at once become the plain layer between two rearranges; anything outside
the list is refused by name, with its line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import fx, nn

from svitc import axes, ops
from svitc.errors import UnsupportedError
from svitc.infer import Inference, describe
from svitc.program import Program
from svitc.views import emit_view

Handler = Callable[["Normaliser", fx.Node], fx.Node]


def normalise(program: Program) -> None:
    """Bring a raw program into canonical form, in place, and type it.

    Raises:
        UnsupportedError: an operation or neuron outside the closed list.
    """
    raw = program.graph
    program.module.graph = Normaliser(program).run(raw)
    program.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    program.module.delete_all_unused_submodules()
    _drop_unused_parameters(program)
    program.retype()
    program.module.recompile()


def _drop_unused_parameters(program: Program) -> None:
    """Bare parameters of containers that no node reads; layers are dropped whole before this."""
    used = {str(n.target) for n in program.graph.nodes if n.op in ("call_module", "get_attr")}
    for path, module in list(program.module.named_modules()):
        if path in used:
            continue
        for store in (module._parameters, module._buffers):
            for name in [n for n in store if (f"{path}.{n}" if path else n) not in used]:
                del store[name]


class Normaliser:
    """Builds the canonical graph node by node, so that each input is typed before it is used."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = fx.Graph()
        self.inference = Inference(program)
        self.done: dict[fx.Node, fx.Node | tuple[fx.Node, ...]] = {}
        self.origin: fx.Node | None = None
        self.layers: dict[str, nn.Module | None] = {}  # as the model has them; a second call must see the first's

    def run(self, raw: fx.Graph) -> fx.Graph:
        for node in raw.nodes:
            self.origin = node
            new = self.handle(node)
            self.done[node] = new
            value = node.meta.get("val")
            if isinstance(new, fx.Node) and isinstance(value, torch.Tensor):
                shape = axes.shape(self.inference.dims(new))
                if tuple(value.shape) != shape:
                    raise UnsupportedError(
                        f"{describe(node)}: typed as {shape}, but it has shape {tuple(value.shape)}",
                        where=node.meta.get("source"),
                    )
        return self.graph

    # building blocks for the handlers

    def arg(self, value: Any) -> Any:
        return fx.node.map_arg(value, lambda n: self.done[n])

    def emit(self, op: str, target: Any, args: tuple = (), kwargs: dict | None = None, name: str | None = None) -> fx.Node:
        node = self.graph.create_node(op, target, args, kwargs or {}, name=name)
        assert self.origin is not None
        node.meta.update({k: self.origin.meta[k] for k in ("source", "scope") if k in self.origin.meta})
        # the graph belongs to no module yet: the rules look layers up in the program
        self.inference.visit(node)
        return node

    def view(self, x: fx.Node, dims: axes.Dims) -> fx.Node:
        """``x`` as ``dims``: one rearrange, or ``x`` itself where nothing changes."""
        return emit_view(self.emit, self.inference, x, dims)

    def reshape(self, x: fx.Node, sizes: tuple[int, ...]) -> fx.Node:
        try:
            return self.view(x, axes.factor(self.inference.dims(x), sizes))
        except axes.AxisConflict as conflict:
            raise self.refuse(f"reshape of {axes.show(self.inference.dims(x))} to {sizes}: {conflict}") from conflict

    def refuse(self, text: str, hint: str | None = None) -> UnsupportedError:
        assert self.origin is not None
        return UnsupportedError(
            f"{self.origin.meta.get('scope') or 'the model'}: {text}", where=self.origin.meta.get("source"), hint=hint
        )

    # one node

    def handle(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if node.args or any(n.op == "placeholder" for n in self.graph.nodes):
                return None  # an optional argument, left at its default
            return self.emit("placeholder", str(node.target), name="x")
        if node.op == "output":
            value = self.arg(node.args[0])
            if not isinstance(value, fx.Node):
                raise self.refuse("the model must return one tensor of logits")
            return self.emit("output", "output", (value,))
        if node.op == "get_attr":
            return self.emit("get_attr", node.target)
        if node.op == "call_module":
            return self.call_module(node)
        from .raw_ops import HANDLERS

        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        handler = HANDLERS.get(name.strip("_") if name not in HANDLERS else name)
        if handler is None:
            raise self.refuse(
                f"{name} is not an operation that svitc can represent",
                hint="svitc inspect lists what is supported; rewrite the layer with those, or report it.",
            )
        return handler(self, node)

    def call_module(self, node: fx.Node) -> fx.Node:
        path = str(node.target)
        module = self.layers.setdefault(path, self.program.module_of(node))
        x = self.arg(node.args[0])
        assert module is not None
        if isinstance(module, (nn.Identity, nn.Dropout)):
            return x
        if isinstance(module, base.MemoryModule):
            return self.neuron(path, module, x)
        self.replace(path, plain(module))
        many = getattr(module, "step_mode", "s") == "m" and not isinstance(module, nn.Linear)
        if not many:
            return self.emit("call_module", path, (x,))
        dims = self.inference.dims(x)
        merged = self.view(x, ((*dims[0], *dims[1]), *dims[2:]))
        y = self.emit("call_module", path, (merged,))
        out = self.inference.dims(y)
        return self.view(y, (dims[0], dims[1], *out[1:]))

    def neuron(self, path: str, module: base.MemoryModule, x: fx.Node) -> fx.Node:
        if not ops.is_neuron(module):
            known = ", ".join(t.__name__ for t in ops.NEURONS)
            raise self.refuse(
                f"neuron {path} is a {type(module).__name__}, which svitc does not know",
                hint=f"Known neurons: {known}.",
            )
        if module.v_threshold <= 0 or (module.v_reset is not None and module.v_reset >= module.v_threshold):  # type: ignore[operator]
            raise self.refuse(f"neuron {path} fires without input (threshold {module.v_threshold}, reset {module.v_reset})")
        module.store_v_seq = False  # type: ignore[assignment]
        return self.emit("call_module", path, (x,))

    def replace(self, path: str, module: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        setattr(self.program.module.get_submodule(owner), name, module)


def plain(module: nn.Module) -> nn.Module:
    """SpikingJelly's step-mode subclass of a layer as the ``torch.nn`` layer itself, with the same parameters.

    Raises:
        UnsupportedError: a batch norm without statistics, a padding mode other than zeros.
    """
    if isinstance(module, ops.BATCH_NORMS) and module.running_mean is None:
        raise UnsupportedError(f"{type(module).__name__} keeps no running statistics")
    if getattr(module, "padding_mode", "zeros") != "zeros":
        raise UnsupportedError(f"padding mode {module.padding_mode!r} is not supported")
    for kind in (*ops.CONVOLUTIONS, nn.Linear, *ops.BATCH_NORMS, *ops.POOLS):
        if isinstance(module, kind):
            if type(module) is kind:
                return module
            if type(module).forward is not kind.forward and not isinstance(module, base.StepModule):
                raise UnsupportedError(f"{type(module).__name__} changes what {kind.__name__} computes")
            twin = kind.__new__(kind)
            twin.__dict__.update({k: v for k, v in module.__dict__.items() if k != "_step_mode"})
            return twin
    raise UnsupportedError(f"{type(module).__name__} is not a layer that svitc knows")
