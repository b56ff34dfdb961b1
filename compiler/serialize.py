"""A program as one safetensors file: weights, layers and graph as data, never as code.

Tensors are the program's parameters and buffers under their paths. Two strings stand in the file's metadata:
``format``, and ``program``, sorted JSON:

    input       shape without batch
    stage       CAPTURED or PRUNED
    info        what the frontend knew
    layers      path -> {"type": "Conv2d", constructor arguments}; a neuron's surrogate stands in it the same way
    parameters  path -> "parameter" or "buffer", of bare parameters that nodes read
    nodes       in order: name, op, target, args, kwargs, scope, source; {"node": name} is another node's value,
                {"tuple": [...]} a tuple

Layers and functions come from closed tables, and every name is checked before it reaches ``torch.fx``, which writes
names into the code that it generates: a file cannot run anything. The same program gives the same bytes.
"""

from __future__ import annotations

import json
import keyword
import re
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import fx, nn

from . import ops
from .check import check
from .errors import InputError, InternalError, SvitcError, UnsupportedError, UsageError
from .infer import attribute_of
from .serialize_layers import build_layer, describe_layer, stored_info
from .program import InputSpec, Program, Stage

FORMAT = "svitc-program-1"
STAGES = (Stage.CAPTURED, Stage.PRUNED)
OPS = ("placeholder", "get_attr", "call_module", "call_function", "output")
FUNCTIONS = {function.__name__: function for function in ops.FUNCTIONS}
PATH = re.compile(r"[\w-]+(\.[\w-]+)*")
PATTERN = re.compile(r"[\w() ]+->[\w() ]+")
# the order in which safetensors lays tensors out, so that each begins at a multiple of its own size
DTYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL",
}  # fmt: skip
HINT = "Compile the model again; svitc reads only the model.safetensors that svitc writes."


# program -> file


def save_program(program: Program, to: Path | str | IO[bytes]) -> None:
    """Write a program that still trains to a path or an open binary file; see ``to_bytes``."""
    data = to_bytes(program)
    if isinstance(to, (str, Path)):
        Path(to).write_bytes(data)
    else:
        to.write(data)


def to_bytes(program: Program) -> bytes:
    """A program that still trains as the bytes of a safetensors file; the same program gives the same bytes.

    A surrogate gradient that is not SpikingJelly's own is stored as ATan, and ``info["assumptions"]`` says so.

    Raises:
        UsageError: batch norms are folded already.
        UnsupportedError: a layer's name or a neuron that cannot be stored.
    """
    if program.stage not in STAGES:
        raise UsageError(
            f"a program at stage {program.stage.name.lower()} no longer trains and is not saved",
            hint="Save it before the passes of svitc.passes.inference().",
        )
    layers: dict[str, Any] = {}
    parameters: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for node in program.graph.nodes:
        path, module = str(node.target), program.module_of(node)
        if module is not None and path not in layers:
            _storable(path)
            layers[path] = describe_layer(path, module)
            state = module.state_dict()
            for name, like in build_layer(layers[path]).state_dict().items():
                # a count of batches may be missing where batch norm was put together by hand
                tensors[f"{path}.{name}"] = state.get(name, torch.zeros(like.shape, dtype=like.dtype))
        elif node.op == "get_attr":
            _storable(path)
            value = attribute_of(program.module, path)
            parameters[path] = "parameter" if isinstance(value, nn.Parameter) else "buffer"
            tensors[path] = value
    content = {
        "input": list(program.input.shape), "stage": program.stage.name, "info": stored_info(program),
        "layers": layers, "parameters": parameters, "nodes": [_node(node) for node in program.graph.nodes],
    }  # fmt: skip
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _safetensors(tensors, {"format": FORMAT, "program": text})


def _storable(path: str) -> None:
    if not PATH.fullmatch(path):
        raise UnsupportedError(
            f"the layer name {path!r} cannot be stored",
            hint="Use letters, digits, underscores and hyphens in the names of layers.",
        )


def _safetensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """The safetensors format, written here because the library puts metadata in another order every time."""
    order = list(DTYPES)
    header: dict[str, Any] = {"__metadata__": metadata}
    chunks, offset = [], 0
    for name in sorted(tensors, key=lambda n: (order.index(tensors[n].dtype), n)):
        value = tensors[name].detach().cpu().contiguous()
        chunk = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        shape = list(value.shape)
        header[name] = {"dtype": DTYPES[value.dtype], "shape": shape, "data_offsets": [offset, offset + len(chunk)]}
        chunks.append(chunk)
        offset += len(chunk)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *chunks])


def _node(node: fx.Node) -> dict[str, Any]:
    target = node.target.__name__ if node.op == "call_function" else str(node.target)  # type: ignore[union-attr]
    return {
        "name": node.name, "op": node.op, "target": target,
        "args": [_value(arg) for arg in node.args], "kwargs": {k: _value(v) for k, v in node.kwargs.items()},
        "scope": node.meta.get("scope") or "", "source": short_source(node.meta.get("source")),
    }  # fmt: skip


def _value(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_value(v) for v in value]}
    if isinstance(value, list):
        return [_value(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InternalError(f"{value!r} in a canonical program is not a JSON value")


def short_source(source: str | None) -> str | None:
    """``folder/file.py:line``: enough to find the line, without the user's folders."""
    return None if source is None else "/".join(re.split(r"[/\\]", source)[-2:])


# file -> program


def load_program(path: Path | str) -> Program:
    """Read a program that ``save_program`` wrote.

    Raises:
        InputError: the file cannot be read or is malformed, naming what is wrong with it.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}", hint=HINT) from error
    if metadata.get("format") != FORMAT or "program" not in metadata:
        raise InputError(f"{path} holds weights but no program of svitc", hint=HINT)
    try:
        return _Reader(json.loads(metadata["program"], parse_constant=_refuse_constant), tensors).program()
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=HINT) from error
    except SvitcError as error:  # the graph does not type, or fails its check
        raise InputError(f"{path}: {error.message}", hint=HINT, where=error.where) from error
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, OverflowError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: the program in it is malformed: {text}", hint=HINT) from error


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


class _Reader:
    """Builds a program from its JSON and tensors, trusting neither."""

    def __init__(self, content: Any, tensors: dict[str, torch.Tensor]) -> None:
        self.content, self.tensors = content, tensors
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def program(self) -> Program:
        what = "the program"
        shape = _field(self.content, "input", list, what)
        if len(shape) not in (3, 4) or not all(type(n) is int and n > 0 for n in shape):
            raise InputError(f"the input shape {shape} is neither C,H,W nor T,C,H,W")
        stage = _field(self.content, "stage", str, what)
        if stage not in [s.name for s in STAGES]:
            raise InputError(f"unknown stage {stage!r}")
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
        program = Program(module, InputSpec(tuple(shape)), Stage[stage], info)
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
        state = {key: self.tensor(f"{path}.{key}", like) for key, like in module.state_dict().items()}
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

    def tensor(self, name: str, like: torch.Tensor | None) -> torch.Tensor:
        value = self.tensors.pop(name, None)
        if value is None:
            raise InputError(f"tensor {name} is missing")
        if like is not None and value.shape != like.shape:
            raise InputError(f"tensor {name} has shape {tuple(value.shape)}, its layer wants {tuple(like.shape)}")
        if like is not None and value.is_floating_point() != like.is_floating_point():
            raise InputError(f"tensor {name} has type {value.dtype}, its layer wants {like.dtype}")
        return value


def _is_name(name: str) -> bool:
    return name.isidentifier() and name.isascii() and not keyword.iskeyword(name)


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
    return len(nodes) == 2 and any(nodes) and all(n or type(a) in (int, float) for n, a in zip(nodes, args, strict=True))
