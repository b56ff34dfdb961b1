"""Rewrite a raw captured graph into the closed list of canonical operations, and type each node.

Layers that SpikingJelly runs over time and batch at once become the plain torch layer between two rearranges. Anything
outside the list is refused by name, with its line in the user's code.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import fx, nn

from svitc.errors import UnsupportedError
from svitc.frontends.capture.advice import advice
from svitc.frontends.capture.effects import has_effect, in_place
from svitc.frontends.capture.graph_builder import GraphBuilder, Value, are_steps, has_module
from svitc.frontends.capture.leaf_checks import check_layer, check_neuron
from svitc.frontends.capture.leaves import leaf_kind
from svitc.frontends.capture.normalization_handlers import NORMALIZATION_LAYERS
from svitc.frontends.capture.op_handlers import HANDLERS
from svitc.frontends.capture.recognize_neurons import NotOverTime
from svitc.frontends.capture.resampling_handlers import RESAMPLING_LAYERS, pad_edges, pool_2d_of, pooled_3d
from svitc.frontends.capture.structure_handlers import padded
from svitc.ir import axes, ops
from svitc.ir.graph import describe, input_type
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.outputs import Unrepresentable, describe_outputs, output_names, problem_of
from svitc.ir.program import Program

LAYERS = {**NORMALIZATION_LAYERS, **RESAMPLING_LAYERS}  # layers that become general operators


def canonicalize(program: Program, fix: bool, done: list[fx.Node]) -> tuple[list[str], list[str]]:
    """Bring a raw program into canonical form, in place, and type it.

    Args:
        fix: Split time from batch before a neuron that runs over both as one dimension.
        done: Receives the raw operations that could be represented.

    Returns:
        The neurons that needed ``fix``, and the autograd functions whose own gradient is lost.

    Raises:
        UnsupportedError: The program has an operation or neuron outside the closed list.
    """
    raw = program.graph
    raw.eliminate_dead_code(has_effect)
    canonicalizer = Canonicalizer(program, fix)
    program.module.graph = canonicalizer.run(raw, done)
    program.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    program.module.delete_all_unused_submodules()
    _drop_unused_parameters(program)
    program.retype()
    program.module.recompile()
    return canonicalizer.fixed, sorted({n.meta["function"] for n in raw.nodes if "function" in n.meta})


class Canonicalizer(GraphBuilder):
    """Rewriter of a raw graph, node by node.

    Args:
        fix: Split time from batch before a neuron that runs over both as one dimension.

    Attributes:
        fixed: The neurons that needed ``fix``.
        called: The neurons called so far.
        layers: Layers by path, as the model defines them: a second call must not see the replacement of the first.
    """

    def __init__(self, program: Program, fix: bool = False) -> None:
        super().__init__(program)
        self.fix = fix
        self.fixed: list[str] = []
        self.called: set[str] = set()
        self.layers: dict[str, nn.Module | None] = {}

    def run(self, raw: fx.Graph, done: list[fx.Node]) -> fx.Graph:
        """Return the canonical graph, and check each shape against the recorded one."""
        for node in raw.nodes:
            self.origin = node
            try:
                new = self.handle(node)
            except axes.AxisConflict as conflict:
                name = getattr(node.target, "__name__", node.target)
                raise self.refuse(f"{name}: {conflict}") from conflict
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

    def handle(self, node: fx.Node) -> Value:
        """Emit the canonical operations of a raw node, and return the node, or tuple of nodes, that it became."""
        if node.op == "placeholder":
            x = self.emit("placeholder", str(node.target), name="x")
            return self.permute(x, (1, 0, 2, 3, 4)) if self.program.info.get("batch_first") else x
        if node.op == "output":
            return self.output(node)
        if node.op == "get_attr":
            return self.emit("get_attr", node.target)
        if node.op == "call_module":
            return self.call_module(node)
        if dataclasses.is_dataclass(node.target):  # torch.fx makes nodes of these in what the model returns
            return self.arg(node.kwargs)
        if hasattr(node.target, "_fields"):
            return node.target(*self.arg(node.args))  # type: ignore[operator]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        handler = HANDLERS.get(name.strip("_") if name not in HANDLERS else name)
        if in_place(node) and list(node.all_input_nodes[0].users)[-1] is not node:
            raise self.refuse(f"{name} changes a tensor in place, and what it was is used again")
        if handler is None:
            raise self.refuse(
                f"{name} is not an operation that svitc can represent",
                hint=advice(name),
            )
        return handler(self, node)

    def output(self, node: fx.Node) -> fx.Node:
        """Emit the output, and describe the names and the structure of what the model returns in ``info``."""
        try:
            values, described = describe_outputs(self.arg(node.args[0]), fx.Node)
        except Unrepresentable as error:
            raise self.refuse(
                f"the model returns a {error}, which no file can hold",
                hint="Return tensors, in tuples, lists or dictionaries.",
            ) from error
        if not values:
            raise self.refuse("the model returns no tensor that is computed from its input")
        for value, name in zip(values, output_names({"outputs": described}), strict=True):
            if (problem := problem_of(value)) is not None:
                which = "the model" if described is None else f"the model, as {name},"
                raise self.refuse(f"{which} returns {problem}")
        if described is not None:
            self.program.info["outputs"] = described
        return self.emit("output", "output", (values[0] if len(values) == 1 else tuple(values),))

    def call_module(self, node: fx.Node) -> fx.Node:
        """Emit the call of a layer or neuron, with time and batch merged around a layer in multi-step mode."""
        path = str(node.target)
        module = self.layers.setdefault(path, self.program.module_of(node))
        x = self.arg(node.args[0])
        assert module is not None
        check_layer(path, module, node.meta.get("source"))
        if isinstance(module, (nn.Identity, nn.Dropout)):
            return x
        if isinstance(module, (base.MemoryModule, ops.LeakyNeuron)):
            return self.neuron(path, module, x)
        if isinstance(module, (nn.MaxPool3d, nn.AvgPool3d)):
            return self.pool_3d(path, module, x)
        if ops.is_neuron(module):
            path, module = self.path_of_call(path), copy.deepcopy(module)
        general: Callable[..., fx.Node] | None = LAYERS.get(leaf_kind(module)) if not ops.is_neuron(module) else None  # type: ignore[arg-type]
        if general is None:
            self.replace(path, plain(module))
            general = edged_convolution if getattr(module, "padding_mode", "zeros") != "zeros" else None
            general = lopsided_convolution if any(_excess(module)) else general
        multi_step = getattr(module, "step_mode", "s") == "m" and not isinstance(module, nn.Linear)
        if not multi_step:
            return general(self, path, module, x) if general else self.emit("call_module", path, (x,))
        dims = input_type(x)
        merged = self.view(x, ((*dims[0], *dims[1]), *dims[2:]))
        y = general(self, path, module, merged) if general else self.emit("call_module", path, (merged,))
        out = input_type(y)
        return self.view(y, (dims[0], dims[1], *out[1:]))

    def neuron(self, path: str, module: base.MemoryModule | ops.LeakyNeuron, x: fx.Node) -> fx.Node:
        """Emit the call of a neuron that has a membrane potential."""
        assert self.origin is not None
        if not ops.is_neuron(module) and leaf_kind(module) in ops.NEURONS:
            module = plain(module)  # type: ignore[assignment]
            self.replace(path, module)
        if isinstance(module, base.MemoryModule):
            check_neuron(path, module, self.origin.meta.get("source"))
        dynamics = dynamics_of(module)
        if dynamics.threshold <= 0 or dynamics.rest >= dynamics.threshold:
            raise self.refuse(
                f"neuron {path} fires without input (threshold {dynamics.threshold}, reset {dynamics.reset})"
            )
        if path in self.called:
            raise self.refuse(
                f"neuron {path} is called twice in one forward, so that its membrane runs on from one place to"
                " the other",
                hint="Give each place a neuron of its own.",
            )
        self.called.add(path)
        if isinstance(module, base.MemoryModule):
            module.store_v_seq = False  # type: ignore[assignment]
        dims = input_type(x)
        if "region" in self.origin.meta and (not dims or [axis.kind for axis in dims[0]] != [axes.Kind.TIME]):
            text = f"{path} runs over {axes.show(dims)}, whose first dimension is not time"
            raise NotOverTime(self.origin.meta["region"], text, where=self.origin.meta.get("source"))
        if not dims or [axis.kind for axis in dims[0]] != [axes.Kind.TIME, axes.Kind.BATCH]:
            if dims and not are_steps(dims[0]) and all(axis.kind != axes.Kind.BATCH for axis in dims[0]):
                x = self.at_steps(x, 0)  # over columns of an image, say, which the author means by steps
            return self.emit("call_module", path, (x,))
        if not self.fix:
            raise self.refuse(
                f"the neuron's first dimension is not time alone but time and batch run together ({axes.show(dims)}),"
                " so that an image's result depends on its neighbors in the batch",
                hint="This is a mistake in the model's own code; one image at a time, it computes what was meant."
                " --rewrite-model splits time from batch before such neurons.",
            )
        self.fixed.append(path)
        time, batch = dims[0]
        spikes = self.emit("call_module", path, (self.view(x, ((time,), (batch,), *dims[1:])),))
        return self.view(spikes, dims)

    def path_of_call(self, path: str) -> str:
        """Return a path of its own for each call of a stateless neuron, so that spikes can be told apart by name."""
        unique, count = path, 0
        while unique in self.called or (unique != path and has_module(self.program.module, unique)):
            count += 1
            unique = f"{path}_{count}"
        self.called.add(unique)
        return unique

    def pool_3d(self, path: str, module: nn.MaxPool3d | nn.AvgPool3d, x: fx.Node) -> fx.Node:
        """Emit a 3D pooling; one whose window has size 1 in its first dimension as a 2D one over the other two."""
        dims, pool_2d = input_type(x), pool_2d_of(module)
        if pool_2d is None or len(dims) != 5:
            return pooled_3d(self, module, x)
        self.replace(path, pool_2d)
        y = self.emit("call_module", path, (self.view(x, ((*dims[0], *dims[1]), *dims[2:])),))
        out = input_type(y)
        return self.view(y, (dims[0], dims[1], *out[1:]))


def _drop_unused_parameters(program: Program) -> None:
    """Delete parameters and buffers of containers that no node reads; unused layers are already gone."""
    used = {str(n.target) for n in program.graph.nodes if n.op in ("call_module", "get_attr")}
    for path, module in list(program.module.named_modules()):
        if path in used:
            continue
        for store in (module._parameters, module._buffers):
            for name in [n for n in store if (f"{path}.{n}" if path else n) not in used]:
                del store[name]


def plain(module: nn.Module) -> nn.Module:
    """Return the ``torch.nn`` layer of one of SpikingJelly's step-mode subclasses, with the same parameters.

    Raises:
        UnsupportedError: A batch norm has no running statistics.
    """
    if isinstance(module, ops.BATCH_NORMS) and module.running_mean is None:
        raise UnsupportedError(f"{type(module).__name__} keeps no running statistics")
    kind = leaf_kind(module)
    if kind is None or kind not in ops.MODULES:
        raise UnsupportedError(f"{type(module).__name__} is not a layer that svitc knows")
    if type(module) is kind and not isinstance(getattr(module, "padding", None), str):
        return module
    layer = kind.__new__(kind)
    layer.__dict__.update({k: v for k, v in module.__dict__.items() if k != "_step_mode" or ops.is_neuron(layer)})
    if isinstance(getattr(module, "padding", None), str):
        layer.padding = tuple(zeros // 2 for zeros in _zeros(module))  # type: ignore[assignment]
    return layer


def _zeros(layer: Any) -> list[int]:
    """Return how many zeros a convolution whose padding is a word adds to each dimension, on both sides together."""
    same = layer.padding == "same"
    return [d * (k - 1) if same else 0 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]


def _excess(layer: Any) -> list[int]:
    """Return how many zeros more a convolution adds behind each dimension than before: 1 around an even kernel."""
    return [zeros % 2 for zeros in _zeros(layer)] if isinstance(getattr(layer, "padding", None), str) else []


def edged_convolution(b: GraphBuilder, path: str, layer: Any, x: fx.Node) -> fx.Node:
    """Emit a convolution that pads its input with its own pixels as a padding and a convolution that pads nothing."""
    bare = copy.copy(plain(layer))
    bare.padding = (0,) * len(layer.kernel_size)  # type: ignore[assignment]
    bare.padding_mode = "zeros"  # type: ignore[assignment]
    b.replace(path, bare)
    return b.emit("call_module", path, (pad_edges(b, x, layer),))


def lopsided_convolution(b: GraphBuilder, path: str, layer: Any, x: fx.Node) -> fx.Node:
    """Emit a convolution with ``padding="same"`` around an even kernel: the odd zeros are added before it."""
    if layer.padding_mode != "zeros":
        return edged_convolution(b, path, layer, x)
    sizes = tuple(size for excess in reversed(_excess(layer)) for size in (0, excess))
    return b.emit("call_module", path, (padded(b, x, sizes, "constant", 0),))
