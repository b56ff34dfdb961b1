"""Capture: run the user's ``forward`` once on shapes alone and record it as an ``fx`` graph.

``torch.fx.symbolic_trace`` fails on spiking vision transformers because they branch on shapes. Here every proxy
carries a fake tensor (shape and dtype, no data), so that ``x.shape``, ``x.ndim``, ``len`` and arithmetic on sizes
answer with numbers; layers with weights and neurons are leaves and keep their names. A branch on *values* has no
answer, and is refused with the user's line.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import operator
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import einops
import einops.einops
import spikingjelly
import torch
from spikingjelly.activation_based import base, functional
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from svitc.errors import SvitcError, UnsupportedError
from svitc.frontends.integer_spikes import fuse_integer_spikes
from svitc.frontends.normalise import normalise
from svitc.frontends.prepare import prepare
from svitc.frontends.recorded import functions_recorded
from svitc.ir import ops
from svitc.ir.graph import BATCH_PROBE, InputSpec
from svitc.ir.program import Program

LEAVES = (
    *ops.CONVOLUTIONS,
    nn.Linear,
    *ops.BATCH_NORMS,
    *ops.POOLS,
    nn.MaxPool3d,
    nn.AvgPool3d,
    *ops.PADS,
    *ops.STATELESS_NEURONS,
    nn.Dropout,
    nn.Identity,
    base.MemoryModule,
)
# frames that only pass a call on; the user's line is the one that called them
PLUMBING = (
    *(str(Path(str(package.__file__)).parent) + os.sep for package in (torch, einops)),
    *(
        str(Path(str(spikingjelly.__file__)).parent / "activation_based" / part)
        for part in ("layer/container.py", "layer/stateless_wrapper.py", "functional/forward.py", "base.py")
    ),
    *(str(Path(str(module.__file__)).parent) + os.sep for module in (ops, sys.modules[__name__])),
)
_ANSWERED = ("shape", "ndim", "dtype", "device", "is_cuda", "layout", "requires_grad")


def user_line() -> str | None:
    """``file.py:line`` of the innermost frame that is the model's own code."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(PLUMBING) and not name.startswith("<"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _data_dependent(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"control flow depends on the data: {what} of a tensor is needed while the model is captured",
        where=user_line(),
        hint="A compiled graph takes the same path for every input; branch on shapes or on configuration instead.",
    )


class ValueProxy(fx.Proxy):
    """A proxy that knows the shape of what it stands for."""

    def __getattr__(self, name: str) -> Any:
        if name in _ANSWERED:
            return getattr(self.node.meta["val"], name)
        return super().__getattr__(name)

    def size(self, dim: int | None = None) -> Any:
        value = self.node.meta["val"]
        return value.size() if dim is None else value.size(dim)

    def dim(self) -> int:
        return self.node.meta["val"].dim()

    def numel(self) -> int:
        return self.node.meta["val"].numel()

    def __len__(self) -> int:
        return len(self.node.meta["val"])

    def __iter__(self):
        return (self[i] for i in range(len(self)))  # type: ignore[index]

    def __bool__(self) -> bool:
        raise _data_dependent("the truth")

    def __float__(self) -> float:
        raise _data_dependent("the value")

    def __int__(self) -> int:
        raise _data_dependent("the value")

    def item(self) -> Any:
        raise _data_dependent("the value")

    def tolist(self) -> Any:
        raise _data_dependent("the values")

    def __setitem__(self, key: Any, value: Any) -> None:
        raise UnsupportedError("assignment into a tensor is not supported", where=user_line())


def _in_place(target: Callable) -> Callable:
    """``x += y`` recorded as such, as it changes what else ``x`` is known by."""

    def method(self: ValueProxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(ValueProxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class Tracer(fx.Tracer):
    """Records calls, with a fake value, the user's line and the enclosing module on each node."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=False)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.example: dict[str, torch.Tensor] = {}
        self.evaluating = False  # a leaf runs on fake values: nothing that it does is recorded

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES)

    def proxy(self, node: fx.Node) -> ValueProxy:
        return ValueProxy(node, self)

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple[Any, list]:
        """One placeholder; optional arguments keep their defaults, and are no part of the graph."""
        return root_fn, [self.root, self.create_proxy("placeholder", next(iter(self.example)), (), {})]

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if isinstance(m, ops.MODULES) and getattr(m, "step_mode", None) == "s" and ops.is_neuron(m):
            raise UnsupportedError(
                f"neuron {self.path_of_module(m)} is in single-step mode",
                where=user_line(),
                hint="Use spikingjelly.activation_based.functional.set_step_mode(model, 'm').",
            )
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest: Any, **more: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = proxy.node
        # the input has no line of its own: what lies above it is whoever called us
        node.meta["source"] = user_line() if kind != "placeholder" else None
        node.meta["scope"] = self.scope.module_path
        node.meta["val"] = self.value(node)
        return proxy

    def value(self, node: fx.Node) -> Any:
        """The fake value of a node, by running it on its inputs' fake values."""
        args: Any
        kwargs: Any
        target: Any = node.target
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with self.mode, torch.no_grad():
            if node.op == "placeholder":
                return self.mode.from_tensor(self.example[str(node.target)])
            if node.op == "output":
                return args[0]
            try:
                if node.op == "get_attr":
                    owner, _, name = str(node.target).rpartition(".")
                    self.evaluating = True
                    return self.mode.from_tensor(getattr(self.root.get_submodule(owner), name).detach())
                if node.op == "call_module":
                    module = self.root.get_submodule(str(node.target))
                    if isinstance(module, base.MemoryModule):
                        return args[0].clone()
                    self.evaluating = True
                    return module.forward(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                return target(*args, **kwargs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                name = target if isinstance(target, str) else getattr(target, "__name__", target)
                text = str(error).splitlines()[0]
                raise UnsupportedError(f"{name} does not fit its input: {text}", where=node.meta["source"]) from error
            finally:
                self.evaluating = False


@contextlib.contextmanager
def einops_recorded(tracer: Tracer) -> Iterator[None]:
    """Within, ``rearrange`` and ``repeat`` of einops, by whatever name the model imported them, record themselves."""
    plain = einops.einops.reduce

    def reduce(tensor: Any, pattern: str, reduction: Any, **sizes: int) -> Any:
        if isinstance(tensor, ValueProxy) and reduction in ("rearrange", "repeat"):
            return tracer.create_proxy("call_function", getattr(einops, reduction), (tensor, pattern), sizes)
        return plain(tensor, pattern, reduction, **sizes)

    einops.einops.reduce = reduce
    try:
        yield
    finally:
        einops.einops.reduce = plain


def capture(model: nn.Module, input_spec: InputSpec, info: dict[str, Any] | None = None, fix: bool = False) -> Program:
    """Capture a model as a canonical program.

    The model is copied: later changes to either do not touch the other. Membranes are reset first.

    A model of event frames may take ``[N, T, C, H, W]``: where ``[T, N, C, H, W]`` does not lead through its
    neurons, the program turns its own input around first.

    Args:
        model: an SViT whose ``forward`` takes one tensor, ``[N, C, H, W]`` or ``[T, N, C, H, W]``, and
            returns logits ``[N, classes]`` or ``[T, N, classes]``, perhaps with a dictionary of hooks.
        input_spec: the input's shape without batch.
        info: what is known of the model, kept with the program; ``assumptions`` is added to.
        fix: split time from batch before a neuron that runs them together.

    Raises:
        UnsupportedError: an operation, neuron or control flow that svitc cannot represent, with its line.
    """
    functional.reset_net(model)
    model = copy.deepcopy(model).eval().float()
    given = info is not None and "assumptions" in info
    info = {**(info or {})}
    info["assumptions"] = [*info.get("assumptions", [])]
    rewritten = prepare(model)
    if rewritten:
        info["assumptions"].append(
            f"zeros are padded before {some('batch norm', rewritten)}, not written around it as what it makes of"
            " them: the same but for rounding"
        )
    failures: list[tuple[int, UnsupportedError]] = []
    for batch_first in (False, True) if input_spec.events else (False,):
        done: list[fx.Node] = []
        try:
            program = _capture(copy.deepcopy(model), input_spec, info, batch_first, fix, done)
            if not program.info["assumptions"] and not given:
                del program.info["assumptions"]
            return program
        except UnsupportedError as error:
            failures.append((len(done), error))
    raise max(failures, key=lambda failure: failure[0])[1]  # the layout that led further


def some(what: str, paths: list[str]) -> str:
    """``8 neurons (a, …)``."""
    return f"1 {what} ({paths[0]})" if len(paths) == 1 else f"{len(paths)} {what}s ({paths[0]}, …)"


def _capture(
    model: nn.Module,
    input_spec: InputSpec,
    info: dict[str, Any],
    batch_first: bool,
    fix: bool,
    done: list[fx.Node],
) -> Program:
    """Capture a model that may be changed.

    Args:
        batch_first: it takes ``[N, T, C, H, W]``.
        done: filled with the operations that could be represented.
    """
    graph = _trace(model, input_spec, batch_first)
    fuse_integer_spikes(graph, model)
    program = Program(fx.GraphModule(model, graph), input_spec, info=copy.deepcopy(info))
    notes = program.info["assumptions"]
    if batch_first:
        program.info["batch_first"] = True
        notes.append("the model takes [N, T, C, H, W]; the program takes [T, N, C, H, W]")
    fixed, functions = normalise(program, fix, done)
    if fixed:
        program.info["fixed"] = fixed
        notes.append(f"time and batch, run together in the model's code, are split before {some('neuron', fixed)}")
    if functions:
        notes.append(f"gradients of {', '.join(functions)} are those of their forward, not their own")
    used = {name for name, _ in program.module.named_parameters()}
    program.info["dead"] = {name: p.numel() for name, p in model.named_parameters() if name not in used}
    return program


def _trace(model: nn.Module, input_spec: InputSpec, batch_first: bool) -> fx.Graph:
    tracer = Tracer()
    name = _only_input(model)
    example = torch.empty(input_spec.batched(BATCH_PROBE))
    tracer.example = {name: example.transpose(0, 1).contiguous() if batch_first else example}
    try:
        with einops_recorded(tracer), functions_recorded(tracer), _quiet():
            return tracer.trace(model)
    except SvitcError:
        raise
    except Exception as error:
        # whatever the user's forward raises on its own input shape is theirs to mend; we add the line
        where = _raised_at(error) or user_line()
        raise UnsupportedError(
            f"the model's forward failed on an input of shape {tuple(tracer.example[name].shape)}: "
            f"{type(error).__name__}: {error}",
            where=where,
            hint="Check the input shape (--input-shape), or see -v for the traceback.",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch logs a traceback of its own for every operation that does not fit; we name the user's line instead."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _only_input(model: nn.Module) -> str:
    parameters = list(inspect.signature(model.forward).parameters.values())
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) != 1:
        names = ", ".join(p.name for p in needed) or "none"
        raise UnsupportedError(f"the model's forward must take one tensor; it takes {names}")
    return needed[0].name


def _raised_at(error: BaseException) -> str | None:
    line, trace = None, error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith(PLUMBING):
            line = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line
