"""The ONNX graph under construction: names, constants, and the layout of each value of the program."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from svitc.errors import InternalError
from svitc.ir.axes import Dim, Dims
from svitc.ir.graph import attribute_of
from svitc.ir.outputs import INPUT
from svitc.ir.program import Program
from svitc.onnx import layout
from svitc.onnx.function_body import CURRENT_KEY, KIND_KEY, PATH_KEY, STATIC_KEY, FunctionKind, neuron_function
from svitc.onnx.states import AFTER, BEFORE, COUNTER, State, batch_first, counter_dims
from svitc.onnx.target import CPU, Target

FLOAT = ir.TensorType(ir.DataType.FLOAT)
Attributes = Mapping[str, int | float | Sequence[int]]


@dataclass(frozen=True)
class Stored:
    """A value of the program and its layout in the ONNX graph.

    Attributes:
        value: the ONNX value; None for a parameter that no node has read yet.
        dims: the layout in which it is stored. A token of ``view`` that is missing here is an axis along which the
            value does not change (a static image that is shown at every time step).
        view: its dimensions in the program, in the same tokens. View operations change only this.
        parameter: path of the parameter, for a value that no node computes.
    """

    value: ir.Value | None
    dims: Dims
    view: Dims
    parameter: str = ""

    @property
    def constant_along(self) -> Dim:
        """Return the axes of the view along which the value does not change, so that they are not stored."""
        stored = set(layout.flat(self.dims))
        return tuple(token for token in layout.flat(self.view) if token not in stored)

    @property
    def in_order(self) -> bool:
        """Return whether the elements are stored in the program's order; dimensions may be grouped differently."""
        return layout.flat(self.dims) == layout.flat(layout.without(self.view, self.constant_along))


class Names:
    """A source of unique names: the second ``add`` becomes ``add_2``."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def __call__(self, base: str) -> str:
        """Return ``base``, or ``base`` with the first free number, and mark the name as used."""
        name = base
        while name in self._count:
            self._count[base] += 1
            name = f"{base}_{self._count[base]}"
        self._count[name] = 1
        return name


class Builder:
    """Emits ONNX nodes in order; the rules (float_rules.py) call it, one rule for each node of the program.

    Attributes:
        target: what the file is written for.
        nodes, initializers, functions: what was emitted so far.
        cache: values that were emitted before, by what was asked for.
        stored: the layout of each lowered node's value.
        name: ONNX name of the main node of the layer that is being lowered.
        streaming: whether the file runs one time step per call: the program is of a single step.
        states: what a call passes on to the next one.
    """

    def __init__(self, program: Program, target: Target = CPU, streaming: bool = False) -> None:
        self.program = program
        self.streaming = streaming
        self.states: list[State] = []
        self.target = target
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.functions: dict[FunctionKind, ir.Function] = {}
        self.cache: dict[Hashable, Any] = {}
        self.stored: dict[fx.Node, Stored] = {}
        self.name = ""
        self._scope = ""
        self._node_names, self._value_names = Names(), Names()
        for name in (
            INPUT,
            *program.output_names,
            f"{BEFORE}{COUNTER}",
            f"{AFTER}{COUNTER}",
        ):  # the names of the file's input and outputs
            self._value_names(name)
        self._names: dict[fx.Node, str] = {}
        for op in ("call_module", "call_function"):  # layers first: they keep their paths
            for node in program.graph.nodes:
                if node.op == op:
                    self._names[node] = self._node_names(_label(node))

    def enter(self, node: fx.Node) -> None:
        """Name the nodes emitted from now on after ``node``."""
        self.name = self._names.get(node, str(node.target))
        self._scope = _scope(node)

    # values of the program

    def graph_input(self, node: fx.Node, name: str) -> tuple[ir.Value, Dims, Dims]:
        """Return the graph's input, its layout and its view; a streaming file's has no axis of time."""
        view = layout.fresh(self.program.type_of(node))
        dims = layout.without_step(view) if self.streaming else view
        return ir.Value(name=name, shape=ir.Shape(layout.shape(dims)), type=FLOAT), dims, view

    def at(self, node: object) -> Stored:
        """Return the stored value of a node.

        Args:
            node: argument of another node.

        Raises:
            InternalError: the argument is not a tensor that was lowered.
        """
        if not isinstance(node, fx.Node) or node not in self.stored:
            raise InternalError(f"{self.name} reads {node!r}, which is not a tensor that was lowered")
        return self.stored[node]

    def store(self, value: ir.Value, dims: Dims, view: Dims | None = None) -> Stored:
        """Record a value with its layout; ``view`` is the layout itself unless it is given."""
        return Stored(value, dims, dims if view is None else view)

    def read(self, stored: Stored, dims: Dims) -> ir.Value:
        """Return the value in the layout ``dims``, emitting the view operations that this takes, once each."""
        if stored.constant_along:
            return self._repeated(stored, dims)
        if stored.value is None:
            return self._parameter(stored, dims)
        value = stored.value
        for view in layout.view_operations(stored.dims, dims):
            key = (value, view.op, view.dims)
            if key not in self.cache:
                if view.op == "Reshape":
                    target = self.integers("shape", view.operand)
                    self.cache[key] = self.op("Reshape", [value, target], view.dims, helper="reshape")
                else:
                    perm = {"perm": list(view.operand)}
                    self.cache[key] = self.op("Transpose", [value], view.dims, perm, helper="transpose")
            value = self.cache[key]
        return value

    def _repeated(self, stored: Stored, dims: Dims) -> ir.Value:
        """Repeat a value along the axes along which it does not change."""
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
            split = tuple((token,) for token in layout.flat(dims))
            target = self.integers("shape", [token.size if token in new else 1 for (token,) in split])
            thin = self.read(bare, layout.without(split, new))
            value = self.op("Expand", [thin, target], split, helper="repeat")
            value = self.read(self.store(value, split), dims)
        self.cache[key] = value
        return value

    def _parameter(self, stored: Stored, dims: Dims) -> ir.Value:
        """Return a parameter in the layout ``dims``, rearranged now instead of in every run of the file."""
        key = (stored.parameter, dims)
        if key not in self.cache:
            values = as_array(attribute_of(self.program.module, stored.parameter))
            self.cache[key] = self.initializer(stored.parameter, layout.moved(values, stored.dims, dims))
        return self.cache[key]

    # emission

    def op(
        self,
        operator: str | ir.Function,
        inputs: Sequence[ir.Value],
        dims: Dims,
        attributes: Attributes | None = None,
        *,
        helper: str | None = None,
        dtype: ir.TensorType = FLOAT,
    ) -> ir.Value:
        """Emit one node with one output; ``dims`` is its layout, see ``ops`` for the other arguments."""
        return self.ops(operator, inputs, [dims], attributes, helper=helper, dtype=dtype)[0]

    def ops(
        self,
        operator: str | ir.Function,
        inputs: Sequence[ir.Value],
        dims: Sequence[Dims],
        attributes: Attributes | None = None,
        *,
        helper: str | None = None,
        dtype: ir.TensorType = FLOAT,
    ) -> list[ir.Value]:
        """Emit one node and return its outputs.

        Args:
            operator: an operator of the default domain, or a model-local function to call.
            inputs: values that the node reads.
            dims: layout of each output.
            attributes: the operator's attributes.
            helper: name of the node within the layer's scope; None for the layer's main node, which is named by
                the layer's path.
            dtype: element type of the outputs.
        """
        name = self._main_name() if helper is None else self._node_names(f"{self._scope}.{helper}".lstrip("."))
        shapes = [ir.Shape(layout.shape(output)) for output in dims]
        labels = self._labels(name, len(dims))
        outputs = [ir.Value(name=n, shape=shape, type=dtype) for n, shape in zip(labels, shapes, strict=True)]
        domain, op_type = (operator.domain, operator.name) if isinstance(operator, ir.Function) else ("", operator)
        self.nodes.append(ir.node(op_type, inputs, attributes, domain=domain, outputs=outputs, name=name))
        return outputs

    def _labels(self, name: str, count: int) -> list[str]:
        """Return unique names for the outputs of a node."""
        return [self._value_names(label) for label in ([name] if count == 1 else [f"{name}.{i}" for i in range(count)])]

    def _main_name(self) -> str:
        """Return the name of the layer's main node."""
        return self.name

    def neuron(
        self,
        kind: FunctionKind,
        inputs: Sequence[ir.Value],
        dims: Sequence[Dims],
        step: Dims,
        dtype: ir.TensorType = FLOAT,
    ) -> list[ir.Value]:
        """Emit a neuron and return its outputs: the nodes of its kind's function, or a call of it.

        Args:
            kind: the kind of neuron.
            inputs: the function's inputs, the current first.
            dims: layout of each output.
            step: layout of one time step's values.
            dtype: element type of the outputs.
        """
        if self.target.keeps_functions:
            outputs = self.ops(self._function_of(kind), inputs, dims, dtype=dtype)
        else:
            outputs = self._inlined(kind, inputs, dims, step)
        if kind.carried:
            outputs[-1].type = FLOAT
        node = outputs[0].producer()
        assert node is not None
        node.metadata_props.update({KIND_KEY: kind.name, PATH_KEY: self.name, CURRENT_KEY: str(inputs[0].name)})
        if kind.static:
            node.metadata_props[STATIC_KEY] = "1"
        return outputs

    def _inlined(
        self, kind: FunctionKind, inputs: Sequence[ir.Value], dims: Sequence[Dims], step: Dims
    ) -> list[ir.Value]:
        """Emit the nodes of a neuron, named by the layer, and return its outputs; ``neuron`` has the arguments."""
        body, name = kind.body(inputs), self._main_name()
        body.describe(*(ir.Shape(layout.shape(d)) for d in (step, dims[0])))
        for node in body.nodes:
            node.name = self._node_names(f"{name}/{node.name}")
            for output in node.outputs:
                if output not in body.outputs:
                    output.name = self._value_names(f"{name}/{output.name}")
        for output, label in zip(body.outputs, self._labels(name, len(dims)), strict=True):
            output.name = label
        self.nodes += body.nodes
        first = body.outputs[0].producer()
        assert first is not None
        first.doc_string = kind.formula
        return body.outputs

    def _function_of(self, kind: FunctionKind) -> ir.Function:
        """Return the function of a kind of neuron; it is written when it is first asked for."""
        if kind not in self.functions:
            used_names = {function.name for function in self.functions.values()}
            self.functions[kind] = neuron_function(kind, used_names, self.target.opset)
        return self.functions[kind]

    # states of a streaming file

    def state(self, path: str, dims: Dims, initial: float) -> State:
        """Add a state, whose input has the batch first.

        Args:
            path: the layer that it belongs to.
            dims: layout of the value that is kept.
            initial: every element of it before the first step.
        """
        own = batch_first(dims)
        name = self._value_names(f"{BEFORE}{path}")
        before = ir.Value(name=name, shape=ir.Shape(layout.shape(own)), type=FLOAT)
        self.states.append(State(path, before, initial, own))
        return self.states[-1]

    def pass_on(self, state: State, value: ir.Value, dims: Dims) -> None:
        """Make a value, which nothing else reads and which lies as ``dims``, a state after this step."""
        last = value.producer()
        views = [view.op for view in layout.view_operations(dims, state.dims)]
        if last is not None and last.op_type in ("Sub", "ThresholdedRelu") and views == ["Reshape"]:
            # what it reads is reshaped in place, while a graph output would be a copy
            inputs = [self.read(self.store(v, dims), state.dims) for v in last.inputs if v]
            attributes = {name: attribute.value for name, attribute in last.attributes.items()}
            state.after = self.op(last.op_type, inputs, state.dims, attributes)
            self.nodes.remove(last)
            for i in range(len(last.inputs)):
                last.replace_input_with(i, None)
        else:
            state.after = self.read(self.store(value, dims), state.dims)
        state.after.name = self._value_names(f"{AFTER}{state.path}")

    def share_of_steps(self, rank: int) -> ir.Value:
        """Return 1 / (number of steps so far), ``[N, 1, ...]`` with this many dimensions."""
        if COUNTER not in self.cache:
            dims = counter_dims()
            state = State(COUNTER, ir.Value(name=f"{BEFORE}{COUNTER}", shape=ir.Shape(("N", 1)), type=FLOAT), 0.0, dims)
            self.states.append(state)
            state.after = self.op("Add", [state.before, self.scalar("one", 1.0)], dims, helper="count_steps")
            state.after.name = f"{AFTER}{COUNTER}"
            # not 1 / steps: ONNX Runtime makes x / steps of x * (1 / steps), which is rounded in another way
            doubled = self.op("Add", [state.after, state.after], dims, helper="doubled")
            self.cache[COUNTER] = self.op("Div", [self.scalar("two", 2.0), doubled], dims, helper="share")
        share: ir.Value = self.cache[COUNTER]
        if rank == 2:
            return share
        key = (COUNTER, rank)
        if key not in self.cache:
            dims = (*counter_dims(), *((),) * (rank - 2))
            shape = self.integers("shape", [-1, *[1] * (rank - 1)])
            self.cache[key] = self.op("Reshape", [share, shape], dims, helper="reshape")
        return self.cache[key]

    # constants

    def initializer(self, name: str, values: np.ndarray) -> ir.Value:
        """Add a constant to the file, under a unique name."""
        name = self._value_names(name)
        values = np.ascontiguousarray(values).reshape(values.shape)  # ascontiguousarray makes scalars vectors
        value = ir.val(name, const_value=ir.Tensor(values, name=name))
        self.initializers.append(value)
        return value

    def weight(self, path: str, tensor: torch.Tensor, transpose: bool = False) -> ir.Value:
        """Return a parameter as a float32 constant; layers that share it share one initializer."""
        key = ("weight", id(tensor) if isinstance(tensor, torch.nn.Parameter) else path, transpose)
        if key not in self.cache:
            values = as_array(tensor)
            self.cache[key] = self.initializer(path, values.T if transpose else values)
        return self.cache[key]

    def scalar(self, name: str, number: float) -> ir.Value:
        """Return a float32 scalar constant; there is one initializer for each name and value."""
        values = np.array(number, np.float32)
        key = ("scalar", name, values.tobytes())
        if key not in self.cache:
            self.cache[key] = self.initializer(name, values)
        return self.cache[key]

    def integers(self, name: str, numbers: Sequence[int]) -> ir.Value:
        """Return an int64 vector constant: a shape, axes or sizes that an operator takes as an input."""
        key = (name, tuple(numbers))
        if key not in self.cache:
            label = f"{name}.{'_'.join(map(str, numbers))}"
            self.cache[key] = self.initializer(label, np.array(numbers, np.int64))
        return self.cache[key]


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values as a float32 array on the CPU."""
    return tensor.detach().to("cpu", torch.float32).numpy()


def _scope(node: fx.Node) -> str:
    """Return the path of the layer that a node belongs to."""
    return str(node.target if node.op == "call_module" else node.meta.get("scope") or "")


def _label(node: fx.Node) -> str:
    """Return ``blocks.0.mlp.fc1`` for a layer, ``blocks.0.add`` for an operation within one."""
    if node.op == "call_module":
        return str(node.target)
    return f"{_scope(node)}.{getattr(node.target, '__name__', 'op')}".lstrip(".")
