"""The reading half of ``serialize``: a program from JSON and tensors, neither of which is trusted."""

from __future__ import annotations

import json
import keyword
import math
import re
from typing import Any

import torch
from torch import fx, nn

from svitc.errors import InputError
from svitc.ir import ops
from svitc.ir.graph import InputSpec
from svitc.ir.program import Program, Stage
from svitc.ir.verifier import check
from svitc.serialization.layer_schema import QUANTIZED_ONLY, build_layer

STAGES = (Stage.CAPTURED, Stage.PRUNED, Stage.QUANTIZED)
OPS = ("placeholder", "get_attr", "call_module", "call_function", "output")
FUNCTIONS = {function.__name__: function for function in ops.FUNCTIONS}
LARGEST = 1 << 16  # time steps, channels or pixels of an input: more is no image
# names go into code that torch.fx writes and runs: nothing in them may end a string or a name
PATH = re.compile(r"[\w-]+(\.[\w-]+)*")
PATTERN = re.compile(r"[\w() ]+->[\w() ]+")


def read_program(text: str, tensors: dict[str, torch.Tensor]) -> Program:
    """The program of a file's metadata; takes the tensors that it uses out of ``tensors``.

    Raises:
        InputError: naming what is malformed.
        SvitcError: the graph does not type, or fails its check.
        ValueError, TypeError, LookupError, ...: malformed in a way that the table below does not foresee.
    """
    return ProgramReader(json.loads(text, parse_constant=_refuse_constant), tensors).program()


def _refuse_constant(name: str) -> Any:
    raise InputError(f"{name} is not a number that a program can hold")


def _field(entry: Any, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """``entry[key]``, of the wanted type.

    Raises:
        InputError: it is missing or of another type.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get(key), kind) or isinstance(entry.get(key), bool):
        raise InputError(f"{what} has no valid {key!r}")
    return entry[key]


class ProgramReader:
    """Builds a program from its JSON and tensors, trusting neither."""

    def __init__(self, content: Any, tensors: dict[str, torch.Tensor]) -> None:
        self.content, self.tensors = content, tensors
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def program(self) -> Program:
        what = "the program"
        shape = _field(self.content, "input", list, what)
        if len(shape) not in (3, 4) or not all(type(n) is int and 0 < n <= LARGEST for n in shape):
            raise InputError(f"the input shape {shape} is neither C,H,W nor T,C,H,W")
        stage = _field(self.content, "stage", str, what)
        if stage not in [s.name for s in STAGES]:
            raise InputError(f"unknown stage {stage!r}")
        self.stage = Stage[stage]
        self.layers: dict[str, Any] = _field(self.content, "layers", dict, what)
        self.parameters: dict[str, Any] = _field(self.content, "parameters", dict, what)
        info = _field(self.content, "info", dict, what)
        for name, value in self.tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"tensor {name} holds values that are not finite numbers")
        for entry in _field(self.content, "nodes", list, what):
            self.node(entry)
        self.finished()
        module = fx.GraphModule(self.root, self.graph).eval()
        program = Program(module, InputSpec(tuple(shape)), self.stage, info)
        program.retype()
        check(program, "load")
        return program

    def finished(self) -> None:
        ops_seen = [node.op for node in self.graph.nodes]
        if ops_seen.count("placeholder") != 1 or ops_seen.count("output") != 1 or ops_seen[-1] != "output":
            raise InputError("a program has one input, and one output, which comes last")
        if self.tensors:
            raise InputError(f"tensor {min(self.tensors)} belongs to no layer of the program")

    # one node

    def node(self, entry: Any) -> None:
        name, op = _field(entry, "name", str, "a node"), _field(entry, "op", str, "a node")
        what = f"node {name}"
        target = _field(entry, "target", str, what)
        args = _field(entry, "args", list, what)
        kwargs = _field(entry, "kwargs", dict, what)
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
        values = tuple(self.value(arg, what) for arg in args)
        named = {key: self.value(value, what) for key, value in kwargs.items()}
        if not _fits(op, target, values, named):
            raise InputError(f"{what}: {target} is not called with {len(args)} arguments of this kind")
        node = self.graph.create_node(op, call, values, named, name=name)
        if node.name != name:
            raise InputError(f"{name!r} is not a valid name for a node")
        node.meta.update(scope=str(entry.get("scope") or ""), source=entry.get("source"))
        self.values[name] = node

    def value(self, value: Any, what: str) -> Any:
        if isinstance(value, dict):
            if set(value) == {"node"} and isinstance(value["node"], str) and value["node"] in self.values:
                return self.values[value["node"]]
            if set(value) == {"tuple"} and isinstance(value["tuple"], list):
                return tuple(self.value(v, what) for v in value["tuple"])
            raise InputError(f"{what} refers to {value}, which no node before it makes")
        if isinstance(value, list):
            return [self.value(v, what) for v in value]
        return value

    # layers and parameters

    def owner(self, path: str) -> tuple[nn.Module, str]:
        """The container of a path, made where it is missing."""
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
        parent, name = self.owner(path)
        if name in parent._modules:
            if not isinstance(parent._modules[name], ops.MODULES):
                raise InputError(f"{path} is a layer and holds layers, too")
            return  # called twice
        if type(parent) is not nn.Module:
            raise InputError(f"{path} lies within another layer")
        if path not in self.layers:
            raise InputError(f"layer {path} is not described")
        try:
            module = build_layer(self.layers[path])
        except InputError as error:
            raise InputError(f"layer {path}: {error.message}") from error
        if isinstance(module, QUANTIZED_ONLY) and self.stage < Stage.QUANTIZED:
            raise InputError(f"layer {path} is quantized, a program at stage {self.stage.name} is not")
        exact = ops.is_quantized(module)
        state = {key: self.tensor(f"{path}.{key}", like, exact) for key, like in module.state_dict().items()}
        if exact and not bool((state["scale"] > 0).all()):
            raise InputError(f"tensor {path}.scale holds a scale that is not above 0")
        module.load_state_dict(state, assign=True)
        parent.add_module(name, module)

    def parameter(self, path: str) -> None:
        parent, name = self.owner(path)
        if name in parent._parameters or name in parent._buffers:
            return  # read twice, or a layer's own
        kind = self.parameters.get(path)
        if type(parent) is not nn.Module or kind not in ("parameter", "buffer"):
            raise InputError(f"parameter {path} is not described")
        value = self.tensor(path, None)
        if kind == "buffer":
            parent.register_buffer(name, value)
        else:
            parent.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))

    def tensor(self, name: str, like: torch.Tensor | None, exact: bool = False) -> torch.Tensor:
        """The tensor of a name, of the shape of ``like`` and of its type; floats of any width unless ``exact``."""
        value = self.tensors.pop(name, None)
        if value is None:
            raise InputError(f"tensor {name} is missing")
        if like is None:
            return value
        if value.shape != like.shape:
            raise InputError(f"tensor {name} has shape {tuple(value.shape)}, its layer wants {tuple(like.shape)}")
        if value.is_floating_point() != like.is_floating_point() or (exact and value.dtype != like.dtype):
            raise InputError(f"tensor {name} has type {value.dtype}, its layer wants {like.dtype}")
        return value


def _is_name(name: str) -> bool:
    return name.isidentifier() and name.isascii() and not keyword.iskeyword(name)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # JSON's 1e999 is infinite


def _fits(op: str, target: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether an operation is called the way that the transfer rules and ``torch`` expect."""
    nodes = [isinstance(arg, fx.Node) for arg in args]
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
    if kwargs:
        return False
    if target == "take_block":
        return nodes == [True, False, False, False] and all(type(a) is int and a >= 0 for a in args[1:])
    if target == "matmul":
        return nodes == [True, True]
    return len(nodes) == 2 and any(nodes) and all(n or _is_number(a) for n, a in zip(nodes, args, strict=True))
