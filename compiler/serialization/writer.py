"""Save a program as one safetensors file, and load it: weights, layers and graph as data, never as code.

The tensors are the program's parameters and buffers, named by their paths. The file's metadata has two strings:
``format``, and ``program``, which is JSON with sorted keys:

    input       shape without batch
    stage       CAPTURED, PRUNED or QUANTIZED
    info        information from the frontend about the model
    layers      path -> {"type": "Conv2d", constructor arguments}; for neurons also "surrogate", in the same form
    parameters  path -> "parameter" or "buffer", for bare parameters that nodes read
    nodes       in order: name, op, target, args, kwargs, scope, source; {"node": name} is the value of another
                node, {"tuple": [...]} is a tuple

Only layers and functions of fixed tables are allowed, and every name is checked before it reaches ``torch.fx``, which
writes names into the code that it generates. So loading a file cannot run code from it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import fx, nn

from svitc.errors import InputError, InternalError, SvitcError, UnsupportedError, UsageError
from svitc.ir.graph import attribute_of
from svitc.ir.program import Program
from svitc.serialization.layer_schema import build_layer, describe_layer, stored_info
from svitc.serialization.reader import PATH, STAGES, read_program
from svitc.support.types import Json, JsonDict

FORMAT = "svitc-program-1"
# in the order in which safetensors stores tensors, from large to small elements, so that all of them are aligned
DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}
HINT = "Compile the model again; svitc reads only the model.safetensors that svitc writes."


# program -> file


def save_program(program: Program, to: Path | str | IO[bytes]) -> None:
    """Write a program that is trainable or quantized to a path or an open binary file; see ``to_bytes``."""
    data = to_bytes(program)
    if isinstance(to, (str, Path)):
        Path(to).write_bytes(data)
    else:
        to.write(data)


def to_bytes(program: Program) -> bytes:
    """Return the safetensors file of a program that can still be trained, or is quantized.

    Equal programs give equal bytes. A surrogate gradient that is not one of SpikingJelly's is stored as ATan, with a
    note in ``info["assumptions"]``.

    Raises:
        UsageError: the program is at another stage.
        UnsupportedError: a layer's name or a neuron cannot be stored.
    """
    if program.stage not in STAGES:
        raise UsageError(
            f"a program at stage {program.stage.name.lower()} can no longer be trained and is not saved",
            hint="Save it before the passes of svitc.passes.pipelines.inference_passes(), or after quantization.",
        )
    layers: JsonDict = {}
    parameters: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for node in program.graph.nodes:
        path, module = str(node.target), program.module_of(node)
        if module is not None and path not in layers:
            _check_path(path)
            layers[path] = describe_layer(path, module)
            state = module.state_dict()
            for name, like in build_layer(layers[path]).state_dict().items():
                # a batch norm that was assembled by hand may lack num_batches_tracked
                tensors[f"{path}.{name}"] = state.get(name, torch.zeros(like.shape, dtype=like.dtype))
        elif node.op == "get_attr":
            _check_path(path)
            value = attribute_of(program.module, path)
            parameters[path] = "parameter" if isinstance(value, nn.Parameter) else "buffer"
            tensors[path] = value
    content = {
        "input": list(program.input.shape),
        "stage": program.stage.name,
        "info": stored_info(program),
        "layers": layers,
        "parameters": parameters,
        "nodes": [_node_entry(node) for node in program.graph.nodes],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _safetensors(tensors, {"format": FORMAT, "program": text})


def _check_path(path: str) -> None:
    if not PATH.fullmatch(path):
        raise UnsupportedError(
            f"the layer name {path!r} cannot be stored",
            hint="Use letters, digits, underscores and hyphens in the names of layers.",
        )


def _safetensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Return tensors in the safetensors format.

    ``safetensors.torch.save`` is not used because it writes the metadata in a different order every time.
    """
    order = list(DTYPES)
    header: JsonDict = {"__metadata__": metadata}
    chunks, offset = [], 0
    for name in sorted(tensors, key=lambda n: (order.index(tensors[n].dtype), n)):
        value = tensors[name].detach().cpu().contiguous()
        chunk = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        shape = list(value.shape)
        header[name] = {
            "dtype": DTYPES[value.dtype],
            "shape": shape,
            "data_offsets": [offset, offset + len(chunk)],
        }
        chunks.append(chunk)
        offset += len(chunk)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *chunks])


def _node_entry(node: fx.Node) -> JsonDict:
    target = node.target.__name__ if node.op == "call_function" else str(node.target)  # type: ignore[union-attr]
    return {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": [_argument(arg) for arg in node.args],
        "kwargs": {key: _argument(value) for key, value in node.kwargs.items()},
        "scope": node.meta.get("scope") or "",
        "source": short_source(node.meta.get("source")),
    }


def _argument(value: object) -> Json:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_argument(item) for item in value]}
    if isinstance(value, list):
        return [_argument(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InternalError(f"{value!r} in a canonical program cannot be stored as JSON")


def short_source(source: str | None) -> str | None:
    """Return ``folder/file.py:line``: enough to find the line, but without the names of the user's other folders."""
    return None if source is None else "/".join(re.split(r"[/\\]", source)[-2:])


# file -> program


def is_program(path: Path) -> bool:
    """Tell whether a file is one of ``save_program``, or a damaged one, of which ``load_program`` says more."""
    if not path.is_file():
        return False
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return (file.metadata() or {}).get("format", "").startswith("svitc")
    except (OSError, SafetensorError):
        return True


def load_program(path: Path | str) -> Program:
    """Return the program from a file that ``save_program`` wrote.

    Raises:
        InputError: the file cannot be read or is malformed; the message names the problem.
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
        raise InputError(f"{path} contains weights, but no program of svitc", hint=HINT)
    try:
        return read_program(metadata["program"], tensors)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=HINT) from error
    except SvitcError as error:  # type inference or the check of the graph failed
        raise InputError(f"{path}: {error.message}", hint=HINT, where=error.where) from error
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: the program in it is malformed: {text}", hint=HINT) from error
