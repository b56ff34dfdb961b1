"""Build a program from the JSON and the tensors of a file, neither of which is trusted."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import fx, nn
from torch.fx.node import Argument

from svitc.errors import InputError
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.operators.registry import operator_of
from svitc.ir.outputs import check_description, output_values, problem_of, rename_reserved
from svitc.ir.program import Program, Stage
from svitc.ir.verifier import check
from svitc.serialization.layer_schema import QUANTIZED_ONLY, build_layer, is_number
from svitc.support.types import Json, JsonDict

T = TypeVar("T")

STAGES = (Stage.CAPTURED, Stage.PRUNED, Stage.QUANTIZED)
OPS = ("placeholder", "get_attr", "call_module", "call_function", "output")
FUNCTIONS = {function.__name__: function for function in ops.FUNCTIONS}
MAX_INPUT_SIZE = 1 << 16  # time steps, channels, or pixels along a side of the input
# torch.fx writes names into code that it runs, so they must not contain anything that ends a string or a name
PATH = re.compile(r"[\w-]+(\.[\w-]+)*")
PATTERN = re.compile(r"[\w() ]+->[\w() ]+")


def read_program(text: str, tensors: dict[str, torch.Tensor]) -> Program:
    """Return the program that is described in a file's metadata.

    Args:
        text: JSON as ``writer.to_bytes`` writes it.
        tensors: path -> tensor; those that belong to the program are removed from the dict.

    Raises:
        InputError: a part of the program is malformed; the message names it.
        SvitcError: type inference or the check of the graph fails.
        ValueError, TypeError, LookupError, ...: the program is malformed in any other way.
    """
    return ProgramReader(json.loads(text, parse_constant=_refuse_constant), tensors).program()


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not a number that a program can contain")


def _field(entry: object, key: str, kind: type[T], what: str) -> T:
    """Return ``entry[key]``, which must be of type ``kind``.

    Raises:
        InputError: the value is missing or of another type; the message calls ``entry`` by the name ``what``.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{what} has no valid {key!r}")
    return value


class ProgramReader:
    """Builder of one program.

    Args:
        content: JSON value that describes the program; not trusted.
        tensors: path -> tensor; those that belong to the program are removed from the dict.
    """

    def __init__(self, content: object, tensors: dict[str, torch.Tensor]) -> None:
        self.content, self.tensors = content, tensors
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def program(self) -> Program:
        """Return the program, with types and checked.

        Raises:
            InputError: the description is malformed, or a tensor is missing, superfluous or not finite.
        """
        what = "the program"
        shape = _field(self.content, "input", list, what)
        if len(shape) not in (3, 4) or not all(type(n) is int and 0 < n <= MAX_INPUT_SIZE for n in shape):
            raise InputError(f"the input shape {shape} is neither C,H,W nor T,C,H,W")
        stage = _field(self.content, "stage", str, what)
        if stage not in [s.name for s in STAGES]:
            raise InputError(f"unknown stage {stage!r}")
        self.stage = Stage[stage]
        self.layers: JsonDict = _field(self.content, "layers", dict, what)
        self.parameters: JsonDict = _field(self.content, "parameters", dict, what)
        self.info: JsonDict = _field(self.content, "info", dict, what)
        for name, value in self.tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"tensor {name} contains values that are not finite numbers")
        for entry in _field(self.content, "nodes", list, what):
            self.node(entry)
        self.check_complete()
        module = fx.GraphModule(self.root, self.graph).eval()
        program = Program(module, InputSpec(tuple(shape)), self.stage, self.info)
        program.retype()
        for output in output_values(program.graph):
            if (problem := problem_of(output)) is not None:
                raise InputError(f"the program returns {problem}")
        check(program, "load")
        return program

    def check_complete(self) -> None:
        """Raise ``InputError`` unless there is one input and one output node, and all tensors belong to the program."""
        node_ops = [node.op for node in self.graph.nodes]
        if node_ops.count("placeholder") != 1 or node_ops.count("output") != 1 or node_ops[-1] != "output":
            raise InputError("a program has one input, and one output node, which comes last")
        rename_reserved(self.info.get("outputs"))
        check_description(self.info.get("outputs"), len(output_values(self.graph)))
        if self.tensors:
            raise InputError(f"tensor {min(self.tensors)} belongs to no layer of the program")

    # nodes

    def node(self, entry: object) -> None:
        """Add a node to the graph, with the layer or parameter that it refers to.

        Raises:
            InputError: the description of the node is malformed.
        """
        name, op = _field(entry, "name", str, "a node"), _field(entry, "op", str, "a node")
        what = f"node {name}"
        target = _field(entry, "target", str, what)
        args = _field(entry, "args", list, what)
        kwargs = _field(entry, "kwargs", dict, what)
        assert isinstance(entry, dict)  # else the first field would have been refused
        if not _is_name(name) or name in self.values:
            raise InputError(f"{name!r} is not a valid name for a node, or two nodes have it")
        if op not in OPS:
            raise InputError(f"{what}: unknown op {op!r}")
        call: Any = target
        if op == "call_function":
            if target not in FUNCTIONS:
                raise InputError(f"{what}: unknown function {target!r}")
            call = FUNCTIONS[target]
        elif op == "placeholder" and not _is_name(target):
            raise InputError(f"{what}: {target!r} is not a valid name for an input")
        elif op == "output":
            call = "output"
        elif op == "call_module":
            self.layer(target)
        elif op == "get_attr":
            self.parameter(target)
        call_args = tuple(self.value(arg, what) for arg in args)
        call_kwargs = {key: self.value(value, what) for key, value in kwargs.items()}
        if not _is_valid_call(op, target, call_args, call_kwargs):
            raise InputError(f"{what}: {target} is not called with {len(args)} arguments of this kind")
        node = self.graph.create_node(op, call, call_args, call_kwargs, name=name)
        if node.name != name:
            raise InputError(f"{name!r} is not a valid name for a node")
        node.meta.update(scope=str(entry.get("scope") or ""), source=entry.get("source"))
        self.values[name] = node

    def value(self, value: Json, what: str) -> Argument:
        """Return the argument of a node from its JSON.

        Raises:
            InputError: the argument refers to a node that does not exist.
        """
        if isinstance(value, dict):
            if set(value) == {"node"} and isinstance(value["node"], str) and value["node"] in self.values:
                return self.values[value["node"]]
            if set(value) == {"tuple"} and isinstance(value["tuple"], list):
                return tuple(self.value(v, what) for v in value["tuple"])
            raise InputError(f"{what} refers to {value}, which is not the value of any node before it")
        if isinstance(value, list):
            return [self.value(v, what) for v in value]
        return value

    # layers and parameters

    def container_of(self, path: str) -> tuple[nn.Module, str]:
        """Return the module that contains ``path``, which is created if necessary, and the last part of the path."""
        if not PATH.fullmatch(path):
            raise InputError(f"{path!r} is not a valid path of a layer")
        module = self.root
        *containers, name = path.split(".")
        for part in containers:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        return module, name

    def layer(self, path: str) -> None:
        """Create the layer at ``path``, with its tensors, unless an earlier node calls it, too.

        Raises:
            InputError: the layer is not described correctly, or its tensors are missing or invalid.
        """
        parent, name = self.container_of(path)
        if name in parent._modules:
            if not isinstance(parent._modules[name], ops.MODULES):
                raise InputError(f"{path} is a layer, but contains layers, too")
            return  # called twice
        if type(parent) is not nn.Module:
            raise InputError(f"{path} is inside another layer")
        if path not in self.layers:
            raise InputError(f"layer {path} is not described")
        try:
            module = build_layer(self.layers[path])
        except InputError as error:
            raise InputError(f"layer {path}: {error.message}") from error
        if isinstance(module, QUANTIZED_ONLY) and self.stage < Stage.QUANTIZED:
            raise InputError(f"layer {path} is quantized, but a program at stage {self.stage.name} is not")
        exact = ops.is_quantized(module)
        state = {key: self.tensor(f"{path}.{key}", like, exact) for key, like in module.state_dict().items()}
        if exact and not bool((state["scale"] > 0).all()):
            raise InputError(f"tensor {path}.scale contains a scale that is not above 0")
        module.load_state_dict(state, assign=True)
        parent.add_module(name, module)

    def parameter(self, path: str) -> None:
        """Create the bare parameter or buffer at ``path``, unless it belongs to a layer or an earlier node reads it.

        Raises:
            InputError: the parameter is not described correctly, or its tensor is missing.
        """
        parent, name = self.container_of(path)
        if name in parent._parameters or name in parent._buffers:
            return  # read twice, or part of a layer
        kind = self.parameters.get(path)
        if type(parent) is not nn.Module or kind not in ("parameter", "buffer"):
            raise InputError(f"parameter {path} is not described")
        value = self.tensor(path, None)
        if kind == "buffer":
            parent.register_buffer(name, value)
        else:
            parent.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))

    def tensor(self, name: str, like: torch.Tensor | None, exact: bool = False) -> torch.Tensor:
        """Remove a tensor from ``tensors`` and return it.

        Args:
            name: path of the tensor.
            like: tensor with the expected shape and data type, or None to accept any.
            exact: whether the data type must be the same; otherwise floats can have any width.

        Raises:
            InputError: the tensor is missing, or has another shape or data type.
        """
        value = self.tensors.pop(name, None)
        if value is None:
            raise InputError(f"tensor {name} is missing")
        if like is None:
            return value
        if value.shape != like.shape:
            raise InputError(f"tensor {name} has shape {tuple(value.shape)}, but its layer needs {tuple(like.shape)}")
        if value.is_floating_point() != like.is_floating_point() or (exact and value.dtype != like.dtype):
            raise InputError(f"tensor {name} has type {value.dtype}, but its layer needs {like.dtype}")
        return value


def _is_name(name: str) -> bool:
    return name.isidentifier() and name.isascii() and not keyword.iskeyword(name)


def _is_valid_call(op: str, target: str, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Return whether an operation is called with the arguments that the transfer rules and ``torch`` expect."""
    nodes = [isinstance(arg, fx.Node) for arg in args]
    if op == "output" and nodes == [False]:
        several = args[0]
        return isinstance(several, tuple) and len(several) > 1 and all(isinstance(v, fx.Node) for v in several)
    if op != "call_function":
        return not kwargs and nodes == ([True] if op in ("call_module", "output") else [])
    if target in ("rearrange", "repeat"):
        return (
            nodes == [True, False]
            and isinstance(args[1], str)
            and PATTERN.fullmatch(args[1]) is not None
            and all(_is_name(k) and type(v) is int and v > 0 for k, v in kwargs.items())
        )
    if target in ("mean", "sum"):
        dim = kwargs.get("dim")
        return (
            nodes == [True]
            and set(kwargs) == {"dim", "keepdim"}
            and isinstance(dim, (tuple, list))
            and all(type(d) is int and d >= 0 for d in dim)
            and type(kwargs["keepdim"]) is bool
        )
    general = operator_of(FUNCTIONS[target])
    if general is not None:
        return all(nodes) and general.is_valid_call(len(nodes), kwargs)
    if kwargs:
        return False
    if target == "take_block":
        return nodes == [True, False, False, False] and all(type(a) is int and a >= 0 for a in args[1:])
    if target == "matmul":
        return nodes == [True, True]
    return len(nodes) == 2 and any(nodes) and all(n or is_number(a) for n, a in zip(nodes, args, strict=True))
