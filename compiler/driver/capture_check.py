"""The check that a captured program is the model: every layer's input, on inputs that make the layers fire.

A layer that is silent proves nothing. The images have several contrasts, up to 0 to 255 where some neuron is still
silent, and one more run feeds every layer with the same random spikes in the model and in the program.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import fx, nn
from torch.nn.utils import parametrize

from svitc.data.inputs import random_inputs
from svitc.errors import SvitcError, UnsupportedError
from svitc.frontends.capture.leaves import leaf_kind
from svitc.frontends.capture.model_rewrites import prepare
from svitc.frontends.capture.reparametrized import copy_model
from svitc.frontends.capture.user_line import raised_at
from svitc.ir import ops
from svitc.ir.outputs import as_tuple, tensors_of
from svitc.ir.program import Program
from svitc.verification.recorder import stimulate

ROUNDING = 1e-4  # largest difference that rounding explains, of the largest magnitude in the tensor


@dataclass
class Run:
    """What a model or a program computes on one batch.

    Attributes:
        outputs: What it returns.
        inputs: Layer -> its input at each call.
        spikes: Neuron -> what it fired at each call.
    """

    outputs: tuple[torch.Tensor, ...] = ()
    inputs: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    spikes: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))


def check_capture(model: nn.Module, program: Program, seed: int = 0) -> float:
    """Compare the captured program with the eager model, layer by layer.

    Neurons that no input makes fire are named in ``info["assumptions"]``.

    Args:
        model: the eager model.
        program: the program that was captured from it.
        seed: seed of the inputs.

    Returns:
        The largest difference of the outputs, which is 0.0 unless the program rounds in another order.

    Raises:
        UnsupportedError: a layer's input or an output differs, so that the program is not the model.
    """
    eager = copy_model(model).float().eval()
    prepare(eager)
    silent = {str(n.target) for n in program.neurons()}
    largest = 0.0
    compared = _Comparison(eager, program)
    rounded = bool(program.info.get("rounded"))
    last: tuple[torch.Tensor, Run] | None = None
    for name, x in _inputs(program, seed):
        if last is not None and not silent and name == "strong inputs":
            break
        run = compared.program_run(x)
        if not rounded:  # a spike that rounding flips changes everything behind it
            largest = max(largest, compared.compare(run, compared.eager_run(x), name))
        silent -= {path for path, fired in run.spikes.items() if any(bool(s.any()) for s in fired)}
        last = (x, run) if last is None else last
    assert last is not None
    x, run = last
    spikes = _stimuli(eager, program, run, seed)
    run = compared.program_run(x, spikes)
    largest = max(largest, compared.compare(run, compared.eager_run(x, spikes), "random spikes"))
    silent -= {path for path, fired in run.spikes.items() if any(bool(s.any()) for s in fired)}
    if silent:
        names = ", ".join(sorted(silent)[:5]) + (", …" if len(silent) > 5 else "")
        note = f"no input of the check against the model made these neurons fire: {names}"
        program.info["assumptions"] = [*program.info.get("assumptions", []), note]
    return largest


def _inputs(program: Program, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield batches of inputs by a name for messages, the stronger ones last."""
    # the code of a model whose mistakes ``capture`` has corrected is only right for single images
    single = bool(program.info.get("fixed"))
    generator = torch.Generator().manual_seed(seed + 1)
    uniform = torch.rand(program.input.batched(1), generator=generator)
    if program.input.events:
        uniform = (3 * uniform).floor()
    noise = random_inputs(program, 1, 1, seed)[0]
    strong = [255 * uniform, 5 * noise.abs().ceil() if program.input.events else 5 * noise]
    for name, batch in (("random images", [noise, uniform]), ("strong inputs", strong)):
        for x in batch if single else [torch.cat(batch, program.input.batch_dim)]:
            yield name, x


class _Comparison:
    """A model and the program that was captured from it.

    Args:
        eager: The model, in inference mode.
        program: The program.
    """

    def __init__(self, eager: nn.Module, program: Program) -> None:
        self.eager, self.program = eager, program
        self.parameters = {id(p): p for p in eager.parameters()}

    def program_run(self, x: torch.Tensor, spikes: dict[str, torch.Tensor] | None = None) -> Run:
        """Run the program, with these spikes in the place of its neurons'."""
        recorder = _Recorder(self.program, spikes or {})
        self.program.module.eval()
        self.program.reset()
        try:
            with torch.inference_mode():
                recorder.record.outputs = as_tuple(recorder.run(x))
        except RuntimeError as error:
            raise UnsupportedError(
                f"the captured program fails on a batch of {x.shape[self.program.input.batch_dim]}: {error}",
                hint="The model makes tensors whose size is that of the batch in a way that cannot be followed.",
            ) from error
        self.program.reset()
        return recorder.record

    def eager_run(self, x: torch.Tensor, spikes: dict[str, torch.Tensor] | None = None) -> Run:
        """Run the model from rest, with these spikes in the place of its neurons'."""
        # a model may keep state that only its own code knows how to reset
        eager = copy.deepcopy(self.eager, dict(self.parameters))
        functional.reset_net(eager)
        run = Run()
        rest = {path: values.flatten() for path, values in (spikes or {}).items()}
        for path, module in eager.named_modules(remove_duplicate=False):
            if _is_comparable(module):
                module.register_forward_hook(_recording_hook(run, path, rest), prepend=True, with_kwargs=True)
        try:
            with torch.inference_mode():
                output = eager(x.transpose(0, 1) if self.program.info.get("batch_first") else x)
        except SvitcError:
            raise
        except Exception as error:  # the user's code
            raise UnsupportedError(
                f"the model's forward fails on a batch of {x.shape[self.program.input.batch_dim]}:"
                f" {type(error).__name__}: {error}",
                where=raised_at(error),
                hint="A model must take batches of any size.",
            ) from error
        run.outputs = tuple(tensors_of(output))
        return run

    def compare(self, actual: Run, expected: Run, name: str) -> float:
        """Return the largest difference of the outputs. Raises UnsupportedError for the first layer that differs."""
        sources = {str(n.target): n.meta.get("source") for n in self.program.graph.nodes if n.op == "call_module"}
        for path, values in actual.inputs.items():
            want = expected.inputs.get(path, [])
            if sum(v.numel() for v in values) != sum(v.numel() for v in want):
                continue  # not the same layer: one of several calls, or a function that became a layer
            a, e = (torch.cat([v.flatten() for v in vs]) if len(vs) > 1 else vs[0].flatten() for vs in (values, want))
            difference = self._difference(a, e)
            if difference:
                raise self._refuse(f"the input of {path} differs by {difference:g} on {name}", sources.get(path))
        if len(actual.outputs) != len(expected.outputs):
            raise self._refuse(f"it returns {len(actual.outputs)} tensors, the model {len(expected.outputs)}", None)
        for a, e in zip(actual.outputs, expected.outputs, strict=True):
            if a.shape != e.shape:
                raise self._refuse(f"it returns {tuple(a.shape)}, the model {tuple(e.shape)}", None)
            if difference := self._difference(a, e):
                raise self._refuse(f"the output differs by {difference:g} on {name}", None)
        pairs = zip(actual.outputs, expected.outputs, strict=True)
        return max((float((a - e).abs().max()) for a, e in pairs if a.is_floating_point() and a.numel()), default=0.0)

    def _difference(self, a: torch.Tensor, e: torch.Tensor) -> float:
        """Return the largest difference of two tensors, 0 where they are equal, or differ by rounding that is known."""
        if torch.equal(a, e):
            return 0.0
        difference = (a.double() - e.double()).abs().nan_to_num(float("inf"))
        largest = float(torch.where(a.isnan() & e.isnan(), 0.0, difference).max())
        rounds = bool(self.program.info.get("rounded"))
        return 0.0 if rounds and largest <= ROUNDING * float(e.double().abs().max()) else largest

    def _refuse(self, text: str, where: str | None) -> UnsupportedError:
        return UnsupportedError(
            f"the captured program differs from the model: {text}",
            where=where,
            hint="The model does something that depends on values, on the batch or on earlier calls; please report it.",
        )


class _Recorder(fx.Interpreter):
    """Interpreter that keeps the inputs of a program's layers.

    Args:
        program: The program.
        spikes: Neuron -> spikes to pass on instead of its own.
    """

    def __init__(self, program: Program, spikes: dict[str, torch.Tensor]) -> None:
        super().__init__(program.module)
        self.spikes, self.record = spikes, Run()

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> object:
        y = super().call_module(target, args, kwargs)
        self.record.inputs[target].append(args[0])
        if ops.is_neuron(self.fetch_attr(target)):
            self.record.spikes[target].append(y)  # type: ignore[arg-type]
        return self.spikes.get(target, y)


def _is_comparable(module: nn.Module) -> bool:
    """Return whether the input of a module of the model is that of the layer at its path in the program."""
    return leaf_kind(module) is not None or parametrize.is_parametrized(module)


def _recording_hook(run: Run, path: str, rest: dict[str, torch.Tensor]) -> Any:
    """Return a hook that keeps the input of a layer, and lets it fire the next of the given spikes.

    Args:
        run: Receives the inputs.
        path: The layer.
        rest: Neuron -> the spikes that are left, which are taken from.
    """

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        run.inputs[path].append(x.clone())  # the model may change it in place
        if path not in rest:
            return None
        fired, rest[path] = rest[path][: output.numel()], rest[path][output.numel() :]
        return fired.reshape(output.shape) if fired.numel() == output.numel() else None

    return hook


def _stimuli(eager: nn.Module, program: Program, run: Run, seed: int) -> dict[str, torch.Tensor]:
    """Return random spikes for each neuron of the program that is a neuron of the model, too."""
    generator = torch.Generator().manual_seed(seed)
    modules = {str(n.target): program.module_of(n) for n in program.neurons()}
    own = {path for path, m in eager.named_modules(remove_duplicate=False) if leaf_kind(m) is not None}
    return {
        path: stimulate(modules[path], fired[0], generator)
        for path, fired in run.spikes.items()
        if path in own and len(fired) == 1
    }
