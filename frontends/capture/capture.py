"""Capture a model: run its ``forward`` once on shapes alone and record it as an ``fx`` graph.

``torch.fx.symbolic_trace`` fails on spiking vision transformers because they branch on shapes. Here every proxy
carries a fake tensor (shape and dtype, no data), so that ``x.shape``, ``x.ndim``, ``len`` and arithmetic on sizes
give numbers; layers with weights and neurons are leaves and keep their names. A branch on *values* cannot be recorded
and is refused with its line in the user's code.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import fx, nn

from svitc.errors import SvitcError, UnsupportedError
from svitc.frontends.capture import constants
from svitc.frontends.capture.autograd_functions import record_autograd_functions
from svitc.frontends.capture.batch_positions import rewrite_batch_positions
from svitc.frontends.capture.canonicalize import canonicalize
from svitc.frontends.capture.data_dependent import data_dependent
from svitc.frontends.capture.integer_spikes import fuse_integer_spikes
from svitc.frontends.capture.keyword_names import rename_keywords
from svitc.frontends.capture.leaves import drop_hooks
from svitc.frontends.capture.membranes import MembraneRead, trace_into
from svitc.frontends.capture.model_rewrites import prepare
from svitc.frontends.capture.recognize_neurons import NotOverTime, recognize_neurons, recognize_step_neurons
from svitc.frontends.capture.reparametrized import bake, copy_model
from svitc.frontends.capture.single_steps import merge_single_steps
from svitc.frontends.capture.tracer import Tracer
from svitc.frontends.capture.user_line import raised_at, user_line
from svitc.ir.graph import BATCH_PROBE, InputSpec
from svitc.ir.program import Program
from svitc.support.cpu_only import on_cpu
from svitc.support.renamed import renamed_keywords
from svitc.support.types import JsonDict


@renamed_keywords(fix="rewrite_model")
def capture(
    model: nn.Module, input_spec: InputSpec, info: Mapping[str, Any] | None = None, rewrite_model: bool = False
) -> Program:
    """Capture a model as a canonical program.

    The model is copied: later changes to either do not touch the other. Membranes are reset first.

    A model of event frames may take ``[N, T, C, H, W]``: where ``[T, N, C, H, W]`` does not lead through its
    neurons, the program turns its own input around first.

    Args:
        model: an SViT whose ``forward`` takes one tensor, ``[N, C, H, W]`` or ``[T, N, C, H, W]``, and
            returns tensors with a batch dimension, by themselves or in tuples, lists and dictionaries.
        input_spec: the input's shape without batch.
        info: what is known of the model, kept with the program; ``assumptions`` is added to.
        rewrite_model: split time from batch before a neuron that runs them together.

    Raises:
        UnsupportedError: an operation, neuron or control flow that svitc cannot represent, with its line.
    """
    functional.reset_net(model)
    given = info is not None and "assumptions" in info
    info = dict(info or {})
    info["assumptions"] = [*info.get("assumptions", [])]
    failures: list[tuple[int, UnsupportedError]] = []
    for batch_first in (False, True) if input_spec.events else (False,):
        done: list[fx.Node] = []
        try:
            program = _capture_recognizing(model, input_spec, info, batch_first, rewrite_model, done)
            if not program.info["assumptions"] and not given:
                del program.info["assumptions"]
            return program
        except UnsupportedError as error:
            failures.append((len(done), error))
    raise max(failures, key=lambda failure: failure[0])[1]  # the layout that led further


def _keep_integers_as_buffers(model: nn.Module) -> None:
    """Turn parameters that cannot be trained, such as masks and tables of positions, into buffers, in place."""
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and not value.is_floating_point():
                del module._parameters[name]
                module.register_buffer(name, value.detach())


def some(what: str, paths: list[str]) -> str:
    """Return a count and an example of paths, such as ``8 neurons (a, …)``."""
    return f"1 {what} ({paths[0]})" if len(paths) == 1 else f"{len(paths)} {what}s ({paths[0]}, …)"


def _capture_recognizing(
    model: nn.Module, input_spec: InputSpec, info: JsonDict, batch_first: bool, fix: bool, done: list[fx.Node]
) -> Program:
    """Capture a model; what looks like a neuron but does not run over time stays ordinary operations.

    So does a neuron whose membrane is read.
    """
    ignored: set[int] = set()
    while True:
        try:
            return _capture(model, input_spec, info, batch_first, fix, done, ignored)
        except NotOverTime as error:
            ignored.add(error.number)
            done.clear()
        except MembraneRead as error:
            model = copy_model(model)  # which is marked
            if not trace_into(model, error.path):
                raise
            done.clear()


def _capture(
    model: nn.Module,
    input_spec: InputSpec,
    info: JsonDict,
    batch_first: bool,
    rewrite_model: bool,
    done: list[fx.Node],
    ignored: Collection[int] = (),
) -> Program:
    """Capture a copy of a model.

    Args:
        batch_first: Whether it takes ``[N, T, C, H, W]``.
        done: Receives the operations that could be represented.
        ignored: Numbers of the regions that are not taken for neurons.
    """
    model = copy_model(model).eval().float()
    bake(model)
    _keep_integers_as_buffers(model)
    rewritten = prepare(model)
    parameters = {name: (p.numel(), p.data_ptr()) for name, p in model.named_parameters()}
    graph, rounded, recognized = _trace(model, input_spec, batch_first)
    rename_keywords(graph, model)
    recognized += recognize_neurons(graph, model, ignored)
    fuse_integer_spikes(graph, model)
    program = Program(fx.GraphModule(model, graph), input_spec, info=copy.deepcopy(info))
    notes = program.info["assumptions"]
    if rewritten:
        notes.append(
            f"zeros are padded before {some('batch norm', rewritten)}, not written around it as what it makes of"
            " them: the same but for rounding"
        )
    if batch_first:
        program.info["batch_first"] = True
        notes.append("the model takes [N, T, C, H, W]; the program takes [T, N, C, H, W]")
    fixed, functions = canonicalize(program, rewrite_model, done)
    rounded += program.info.pop("rounded", [])
    notes += recognized
    if rounded:
        program.info["rounded"] = rounded
        notes += [f"{what} is computed in another order: the same but for rounding" for what in rounded]
    if fixed:
        program.info["fixed"] = fixed
        notes.append(f"time and batch, run together in the model's code, are split before {some('neuron', fixed)}")
    if functions:
        notes.append(f"gradients of {', '.join(functions)} are those of their forward, not their own")
    used = {p.data_ptr() for p in program.module.parameters()}
    program.info["dead"] = {name: n for name, (n, place) in parameters.items() if place not in used}
    return program


def _trace(model: nn.Module, input_spec: InputSpec, batch_first: bool) -> tuple[fx.Graph, list[str], list[str]]:
    """Record the raw graph of a model.

    Returns:
        The graph, what in it is computed in another order than in the model, and sentences on recognized neurons.

    Raises:
        UnsupportedError: The model cannot be traced; the error names the user's line.
    """
    tracer = Tracer()
    name = _only_input(model)
    example = torch.empty(input_spec.batched(BATCH_PROBE))
    tracer.example = {name: example.transpose(0, 1).contiguous() if batch_first else example}
    try:
        with on_cpu(), record_autograd_functions(tracer), _fake_tensor_log_silenced():
            graph = tracer.trace(model)
    except SvitcError:
        raise
    except Exception as error:
        raise _failure(error, tuple(tracer.example[name].shape)) from error
    drop_hooks(graph, model)
    recognized = recognize_step_neurons(graph, model)
    merge_single_steps(graph, model, tracer)
    rewrite_batch_positions(graph, model, tracer)
    constants.keep_names(graph, model, tracer.constants.views)
    checked = [f"what the model checks of values is taken to hold (line {line})" for line in tracer.unchecked if line]
    return graph, tracer.constants.rounded, recognized + list(dict.fromkeys(checked))


def _failure(error: Exception, shape: tuple[int, ...]) -> UnsupportedError:
    """Return the error for one that the model's own code raised while it was traced."""
    where = raised_at(error) or user_line()
    text = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")
    if "UnknownNumber" in text:
        return data_dependent("the value", where)
    if "Proxy" in text or (isinstance(error, KeyError) and error.args == ("val",)):
        return UnsupportedError(
            "a call takes tensors past what can be recorded, such as a module that torch.jit.script compiled, "
            f"torch.vmap, or a method called on its class ({text})",
            where=where,
            hint="Call plain functions of PyTorch and methods of tensors; leave out torch.jit.script.",
        )
    return UnsupportedError(
        f"the model's forward failed on an input of shape {shape}: {text}",
        where=where,
        hint="Check the input shape (--input-shape), or see -v for the traceback.",
    )


@contextlib.contextmanager
def _fake_tensor_log_silenced() -> Iterator[None]:
    """Silence PyTorch's log of tracebacks for operations that do not fit; the error names the user's line instead."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _only_input(model: nn.Module) -> str:
    """Return the name of the one argument that ``forward`` needs."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    optional = [p for p in parameters if p not in required and p.kind != p.VAR_KEYWORD and p.kind != p.KEYWORD_ONLY]
    if not required and optional:  # forward(self, x=None) or forward(self, *args)
        return optional[0].name
    if len(required) != 1:
        names = ", ".join(p.name for p in required) or "none"
        raise UnsupportedError(f"the model's forward must take one tensor; it takes {names}")
    return required[0].name
