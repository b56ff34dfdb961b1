"""The ONNX graph under construction: names, constants, and where each value of the program lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from svitc.errors import InternalError
from svitc.ir import axes
from svitc.ir.axes import Dim, Dims
from svitc.ir.graph import attribute_of
from svitc.ir.program import Program
from svitc.onnx import layout
from svitc.onnx.neuron_functions import AnyKind
from svitc.onnx.target import CPU, Target

FLOAT = ir.TensorType(ir.DataType.FLOAT)


@dataclass(frozen=True)
class Stored:
    """A value of the program, as it lies in the ONNX graph.

    Attributes:
        value: the ONNX value, None for a constant that no node has read yet.
        dims: how it lies. A token of ``view`` that is missing here is an axis along which it does not change
            (a static image shown at every time step).
        view: the dimensions that the program gives it, in the same tokens. Views change only this.
        parameter: path of the parameter that this is, which no node computes.
    """

    value: ir.Value | None
    dims: Dims
    view: Dims
    parameter: str = ""

    @property
    def constant_along(self) -> Dim:
        there = set(layout.flat(self.dims))
        return tuple(token for token in layout.flat(self.view) if token not in there)

    @property
    def in_order(self) -> bool:
        """Whether it lies as the program sees it but for the grouping of dimensions."""
        return layout.flat(self.dims) == layout.flat(layout.without(self.view, self.constant_along))


class Names:
    """Unique names: the second ``add`` is ``add_2``."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def __call__(self, wanted: str) -> str:
        name = wanted
        while name in self._count:
            self._count[wanted] += 1
            name = f"{wanted}_{self._count[wanted]}"
        self._count[name] = 1
        return name


class Builder:
    """Emits ONNX nodes in order; rules (rules.py) call it, one for each node of the program.

    Attributes:
        target: what the file is made for.
        nodes, initializers, functions: what was emitted.
        name: the ONNX name of the node being lowered.
    """

    def __init__(self, program: Program, target: Target = CPU) -> None:
        self.program = program
        self.target = target
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.functions: dict[AnyKind, ir.Function] = {}
        self.cache: dict[Any, Any] = {}
        self.stored: dict[fx.Node, Stored] = {}
        self.name = ""
        self._scope = ""
        self._node_names, self._value_names = Names(), Names()
        self._value_names("x")  # the names of the file's input and output
        self._value_names("logits")
        self._names: dict[fx.Node, str] = {}
        for op in ("call_module", "call_function"):  # layers first: they keep their paths
            for node in program.graph.nodes:
                if node.op == op:
                    self._names[node] = self._node_names(_label(node))

    def enter(self, node: fx.Node) -> None:
        """Name what follows after ``node``."""
        self.name = self._names.get(node, str(node.target))
        self._scope = _scope(node)

    # values of the program

    def at(self, node: Any) -> Stored:
        if not isinstance(node, fx.Node) or node not in self.stored:
            raise InternalError(f"{self.name} reads {node!r}, which is not a tensor that was lowered")
        return self.stored[node]

    def store(self, value: ir.Value, dims: Dims, view: Dims | None = None) -> Stored:
        return Stored(value, dims, dims if view is None else view)

    def read(self, stored: Stored, dims: Dims) -> ir.Value:
        """The value in the layout ``dims``, with the views that this takes; the same request is met once."""
        if stored.constant_along:
            return self._repeated(stored, dims)
        if stored.value is None:
            return self._parameter(stored, dims)
        value = stored.value
        for step in layout.steps(stored.dims, dims):
            key = (value, step.op, step.dims)
            if key not in self.cache:
                if step.op == "Reshape":
                    target = self.integers("shape", step.operand)
                    self.cache[key] = self.op("Reshape", [value, target], step.dims, helper="reshape")
                else:
                    perm = {"perm": list(step.operand)}
                    self.cache[key] = self.op("Transpose", [value], step.dims, perm, helper="transpose")
            value = self.cache[key]
        return value

    def _repeated(self, stored: Stored, dims: Dims) -> ir.Value:
        """Write out the axes along which a value does not change."""
        new = stored.constant_along
        bare = Stored(stored.value, stored.dims, layout.without(stored.view, new), stored.parameter)
        key = (stored.parameter or stored.value, "repeat", dims)
        if key in self.cache:
            return self.cache[key]
        if len(new) == 1 and dims[0][:1] == new:
            # along the outermost axis, where no shape constant is needed
            copies = [self.read(bare, layout.without(dims, new))] * new[0].size
            value = self.op("Concat", copies, dims, {"axis": 0}, helper="repeat")
        else:
            each = tuple((token,) for token in layout.flat(dims))
            target = self.integers("shape", [token.size if token in new else 1 for (token,) in each])
            thin = self.read(bare, layout.without(each, new))
            value = self.op("Expand", [thin, target], each, helper="repeat")
            value = self.read(self.store(value, each), dims)
        self.cache[key] = value
        return value

    def _parameter(self, stored: Stored, dims: Dims) -> ir.Value:
        """A parameter in the layout ``dims``: moved here, so that the file need not move it."""
        key = (stored.parameter, dims)
        if key not in self.cache:
            values = as_array(attribute_of(self.program.module, stored.parameter))
            values = values.reshape(axes.shape(stored.dims))
            for step in layout.steps(stored.dims, dims):
                if step.op == "Transpose":
                    values = values.transpose(step.operand)
                values = values.reshape(axes.shape(step.dims))
            self.cache[key] = self.initializer(stored.parameter, values)
        return self.cache[key]

    # emission

    def op(
        self,
        operator: str | ir.Function,
        inputs: Sequence[ir.Value],
        dims: Dims,
        attributes: Mapping[str, Any] | None = None,
        *,
        helper: str | None = None,
        dtype: ir.TensorType = FLOAT,
    ) -> ir.Value:
        """Emit one node with one output, named for the layer, or for ``helper`` within its scope."""
        return self.ops(operator, inputs, [dims], attributes, helper=helper, dtype=dtype)[0]

    def ops(
        self,
        operator: str | ir.Function,
        inputs: Sequence[ir.Value],
        dims: Sequence[Dims],
        attributes: Mapping[str, Any] | None = None,
        *,
        helper: str | None = None,
        dtype: ir.TensorType = FLOAT,
    ) -> list[ir.Value]:
        """Emit one node.

        Args:
            operator: of the default domain, or a function of the model to call.
            inputs: values that it reads.
            dims: the layout of each of its outputs.
            attributes: of the operator.
            helper: name of the node within its scope; None for the node that does the layer's own work.
            dtype: of the outputs' elements.
        """
        name = self._main_name() if helper is None else self._node_names(f"{self._scope}.{helper}".lstrip("."))
        labels = [name] if len(dims) == 1 else [f"{name}.{i}" for i in range(len(dims))]
        outputs = [
            ir.Value(name=self._value_names(label), shape=ir.Shape(layout.shape(each)), type=dtype)
            for label, each in zip(labels, dims, strict=True)
        ]
        domain, op_type = (operator.domain, operator.name) if isinstance(operator, ir.Function) else ("", operator)
        self.nodes.append(ir.node(op_type, inputs, attributes, domain=domain, outputs=outputs, name=name))
        return outputs

    def _main_name(self) -> str:
        """The name of the node that does the layer's own work."""
        return self.name

    def call(self, kind: AnyKind, inputs: Sequence[ir.Value], dims: Dims) -> ir.Value:
        """Call the function of a kind of neuron, which is written on its first call."""
        if kind not in self.functions:
            taken = {function.name for function in self.functions.values()}
            self.functions[kind] = kind.function(taken, self.target.opset)
        return self.op(self.functions[kind], inputs, dims)

    # constants

    def initializer(self, name: str, values: np.ndarray) -> ir.Value:
        name = self._value_names(name)
        values = np.ascontiguousarray(values).reshape(values.shape)  # which makes vectors of scalars
        value = ir.val(name, const_value=ir.tensor(values, name=name))
        self.initializers.append(value)
        return value

    def weight(self, path: str, tensor: torch.Tensor, transpose: bool = False) -> ir.Value:
        """A parameter as float32; layers that share it share one initializer."""
        key = ("weight", id(tensor) if isinstance(tensor, torch.nn.Parameter) else path, transpose)
        if key not in self.cache:
            values = as_array(tensor)
            self.cache[key] = self.initializer(path, values.T if transpose else values)
        return self.cache[key]

    def scalar(self, name: str, number: float) -> ir.Value:
        """A float32 scalar; one initializer for each name and value."""
        values = np.array(number, np.float32)
        key = ("scalar", name, values.tobytes())
        if key not in self.cache:
            self.cache[key] = self.initializer(name, values)
        return self.cache[key]

    def integers(self, name: str, numbers: Sequence[int]) -> ir.Value:
        """An int64 vector: the shape, axes or repeats that some operators take as an input."""
        key = (name, tuple(numbers))
        if key not in self.cache:
            label = f"{name}.{'_'.join(map(str, numbers))}"
            self.cache[key] = self.initializer(label, np.array(numbers, np.int64))
        return self.cache[key]


def as_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).numpy()


def _scope(node: fx.Node) -> str:
    """Path of the layer that a node belongs to."""
    return str(node.target if node.op == "call_module" else node.meta.get("scope") or "")


def _label(node: fx.Node) -> str:
    """``blocks.0.mlp.fc1`` for a layer, ``blocks.0.add`` for an operation within one."""
    if node.op == "call_module":
        return str(node.target)
    return f"{_scope(node)}.{getattr(node.target, '__name__', 'op')}".lstrip(".")
