"""The check that a captured program is the model: every layer's input, on inputs that make the layers fire.

A layer that is silent proves nothing. The images have several contrasts, up to 0 to 255 where some neuron is still
silent, and one more run feeds every layer with the same random spikes in the model and in the program.
"""

from __future__ import annotations

import copy
import math
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
from svitc.ir import axes, ops
from svitc.ir.operators.selection import positions
from svitc.ir.outputs import as_tuple, tensors_of
from svitc.ir.program import Program
from svitc.support.cpu_only import on_cpu
from svitc.verification.recorder import stimulate

UNEXPLAINED = "The model depends on values, on the batch, on chance or on earlier calls; please report it."
TIES = (
    "The model sorts, and torch keeps equal scores in the order of their positions, as files do, only if told so: write"
    " torch.sort(…, stable=True) instead of topk and argsort. Otherwise please report it."
)
STRONG = "strong inputs"
ROUNDING = 1e-4  # largest difference that rounding explains, of the largest magnitude in the tensor


@dataclass
class Run:
    """What a model computes on one batch.

    Attributes:
        outputs: What it returns.
        inputs: Layer -> its input at each call, and the version of this tensor, which changes in place raise.
        fired: Neuron that passes on other spikes than its own -> its own at each call.
    """

    outputs: tuple[torch.Tensor, ...] = ()
    inputs: dict[str, list[tuple[torch.Tensor, int]]] = field(default_factory=lambda: defaultdict(list))
    fired: dict[str, list[tuple[torch.Tensor, int]]] = field(default_factory=lambda: defaultdict(list))


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
    comparison = _Comparison(model, program)
    silent = {str(n.target) for n in program.neurons()}
    largest = 0.0
    first: torch.Tensor | None = None
    for name, x in _inputs(program, seed):
        if name == STRONG and not silent:
            break
        first = x if first is None else first
        if program.input.at_once(2) < 2:
            break  # large images, for which each run takes long; the one with random spikes shows the most
        # a spike that rounding flips changes everything behind it
        largest = max(largest, comparison.run(x, name, compare=not program.info.get("rounded")))
        silent -= comparison.fired
    assert first is not None
    largest = max(largest, comparison.run(first, "random spikes", torch.Generator().manual_seed(seed)))
    silent -= comparison.fired
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
    for name, batch in (("random images", [noise, uniform]), (STRONG, strong)):
        for x in batch if single else [torch.cat(batch, program.input.batch_dim)]:
            yield name, x


class _Comparison:
    """A model and the program that was captured from it.

    Args:
        model: The model. It is copied.
        program: The program.

    Attributes:
        fired: The neurons that have fired in the program.
    """

    def __init__(self, model: nn.Module, program: Program) -> None:
        self.eager, self.program = copy_model(model).float().eval(), program
        prepare(self.eager)
        self.fired: set[str] = set()
        self._keep = False
        self._parameters = {id(p): p for p in self.eager.parameters()}
        layers = dict(self.eager.named_modules(remove_duplicate=False))
        self.layers = {path for path, m in layers.items() if leaf_kind(m) or parametrize.is_parametrized(m)}

    def run(self, x: torch.Tensor, name: str, spikes: torch.Generator | None = None, compare: bool = True) -> float:
        """Run both on a batch.

        Args:
            x: In the program's layout.
            name: Of the inputs, for messages.
            spikes: Draws what each neuron fires instead of its own spikes, the same in both.
            compare: Whether to compare them.

        Returns:
            The largest difference of the outputs.

        Raises:
            UnsupportedError: A layer's input or an output differs.
        """
        stimuli = {} if spikes is None else self._stimuli(x, spikes)
        expected = self._eager_run(x, stimuli) if compare else Run()
        outputs = self._program_run(x, stimuli, expected, name)
        return self._compare_outputs(outputs, expected.outputs, name) if compare else 0.0

    def _stimuli(self, x: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return random spikes for each neuron of the program that is a neuron of the model, too."""
        batch, stimuli = x.shape[self.program.input.batch_dim], {}
        for node in self.program.neurons():
            path = str(node.target)
            if path in self.layers:
                shape = [batch_size(dim, batch) for dim in self.program.type_of(node)]
                stimuli[path] = stimulate(self.program.module_of(node), torch.empty(shape), generator)
        return stimuli

    def _eager_run(self, x: torch.Tensor, spikes: dict[str, torch.Tensor]) -> Run:
        """Run the model from rest, with these spikes in the place of its neurons'."""
        # a model may keep state that only its own code knows how to reset
        eager = copy.deepcopy(self.eager, dict(self._parameters))
        functional.reset_net(eager)
        run = Run()
        rest = {path: values.flatten() for path, values in spikes.items()}
        for path, module in eager.named_modules(remove_duplicate=False):
            if path in self.layers:
                module.register_forward_hook(
                    _recording_hook(run, path, rest, self._keep), prepend=True, with_kwargs=True
                )
        try:
            with torch.no_grad(), on_cpu():  # not inference mode: tensors need a version
                # a copy, as a model may change its input in place
                output = eager((x.transpose(0, 1) if self.program.info.get("batch_first") else x).clone())
        except SvitcError:
            raise
        except Exception as error:  # the user's code
            raise UnsupportedError(
                f"the model's forward fails on a batch of {x.shape[self.program.input.batch_dim]}:"
                f" {type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
                where=raised_at(error),
                hint="A model must take batches of any size.",
            ) from error
        run.outputs = tuple(tensors_of(output))
        changed = any(version_of(value) != version for calls in run.inputs.values() for value, version in calls)
        if changed and not self._keep:
            self._keep = True
            return self._eager_run(x, spikes)
        return run

    def _program_run(
        self, x: torch.Tensor, spikes: dict[str, torch.Tensor], expected: Run, name: str
    ) -> tuple[torch.Tensor, ...]:
        """Run the program, with these spikes in the place of its neurons', and compare the inputs of its layers."""
        interpreter = _Interpreter(self, spikes, expected, name)
        self.program.module.eval()
        self.program.reset()
        try:
            with torch.inference_mode():
                return as_tuple(interpreter.run(x))
        except RuntimeError as error:
            raise UnsupportedError(
                f"the captured program fails on a batch of {x.shape[self.program.input.batch_dim]}: {error}",
                hint="The model makes tensors whose size is that of the batch in a way that cannot be followed.",
            ) from error
        finally:
            self.program.reset()

    def compare(
        self, node: fx.Node, actual: torch.Tensor, calls: list[tuple[torch.Tensor, int]], what: str
    ) -> torch.Tensor:
        """Refuse the program if the input of a layer, or what a neuron fires, differs from the model's.

        Args:
            node: The call of the layer.
            actual: Its input.
            calls: The model's calls of the layer, in their order: one, or one for each time step. They are taken off.
            what: What is compared, for messages; ``{layer}`` and ``{difference}`` are filled in.

        Returns:
            The same numbers as ``actual``, in the model's order in memory where that is known: some convolutions round
            otherwise in another order.
        """
        parts, size = [], 0
        while calls and size < actual.numel():
            parts.append(calls.pop(0)[0])
            size += parts[-1].numel()
        if size != actual.numel():
            calls.clear()
            return actual  # a function that became a layer, or a layer that became another one
        joined = parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])
        difference = self.difference(actual.reshape(joined.shape), joined)
        if difference and actual.ndim != joined.ndim:  # a layer over three dimensions that became one over two
            difference = self.difference(actual.flatten().sort().values, joined.flatten().sort().values)
        if difference:
            text = what.format(layer=node.target, difference=f"{difference:g}")
            raise self.refuse(text, node.meta.get("source"))
        return parts[0] if len(parts) == 1 and torch.equal(parts[0], actual) else actual

    def _compare_outputs(
        self, actual: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], name: str
    ) -> float:
        """Return the largest difference of the outputs. Raises UnsupportedError if it is not explained."""
        if len(actual) != len(expected):
            raise self.refuse(f"it returns {len(actual)} tensors, the model {len(expected)}")
        largest = 0.0
        for a, e in zip(actual, expected, strict=True):
            if a.shape != e.shape:
                raise self.refuse(f"it returns {tuple(a.shape)}, the model {tuple(e.shape)}")
            if difference := self.difference(a, e):
                raise self.refuse(f"the output differs by {difference:g} on {name}")
            if not torch.equal(a, e):
                largest = max(largest, float((a.double() - e.double()).abs().nan_to_num(0.0).max()))
        return largest

    def difference(self, a: torch.Tensor, e: torch.Tensor) -> float:
        """Return the largest difference of two tensors; 0 where they are equal, or differ by rounding that is known."""
        if torch.equal(a, e):
            return 0.0
        difference = (a.double() - e.double()).abs().nan_to_num(float("inf"))
        largest = float(torch.where((a.isnan() & e.isnan()) | (a == e), 0.0, difference).max())
        rounds = bool(self.program.info.get("rounded"))
        return 0.0 if rounds and largest <= ROUNDING * float(e.double().abs().max()) else largest

    def refuse(self, text: str, where: str | None = None) -> UnsupportedError:
        """Return the error for a program that is not the model."""
        sorts = any(node.target is positions for node in self.program.graph.nodes)
        return UnsupportedError(
            f"the captured program differs from the model: {text}",
            where=where,
            hint=TIES if sorts else UNEXPLAINED,
        )


def version_of(x: torch.Tensor) -> int:
    """Return the number of changes in place of a tensor; tensors that inference mode makes do not count them."""
    return 0 if x.is_inference() else x._version


def batch_size(dim: axes.Dim, batch: int) -> int:
    """Return the size of a dimension for a batch of another size than the one that types are written for."""
    return math.prod(batch if axis.kind == axes.Kind.BATCH else axis.size for axis in dim)


class _Interpreter(fx.Interpreter):
    """Interpreter that compares the inputs of a program's layers with those of the model as it runs.

    Args:
        comparison: Compares them.
        spikes: Neuron -> spikes to pass on instead of its own.
        expected: The run of the model. What was compared is removed.
        name: Of the inputs, for messages.
    """

    def __init__(self, comparison: _Comparison, spikes: dict[str, torch.Tensor], expected: Run, name: str) -> None:
        super().__init__(comparison.program.module)
        self.comparison, self.spikes, self.expected, self.name = comparison, spikes, expected, name
        self.node: fx.Node | None = None
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> object:
        self.node = n
        return super().run_node(n)

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> object:
        assert self.node is not None
        want = self.expected.inputs.get(target)
        if want:
            what = f"the input of {{layer}} differs by {{difference}} on {self.name}"
            args = (self.comparison.compare(self.node, args[0], want, what), *args[1:])
        y = super().call_module(target, args, kwargs)
        if ops.is_neuron(self.fetch_attr(target)) and target not in self.comparison.fired and bool(y.any()):  # type: ignore[attr-defined]
            self.comparison.fired.add(target)
        if target not in self.spikes:
            return y
        if not self.comparison.program.info.get("rounded"):
            what = f"what {{layer}} fires differs by {{difference}} on {self.name}"
            self.comparison.compare(self.node, y, self.expected.fired.get(target, []), what)  # type: ignore[arg-type]
        return self.spikes[target]


def _recording_hook(run: Run, path: str, rest: dict[str, torch.Tensor], keep: bool) -> Any:
    """Return a hook that keeps the input of a layer, and lets it fire the next of the given spikes.

    Args:
        run: Receives the inputs.
        path: The layer.
        rest: Neuron -> the spikes that are left, which are taken from.
        keep: Whether to copy the inputs, as the model changes some in place afterwards.
    """

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        x = x.clone() if keep else x
        run.inputs[path].append((x, version_of(x)))
        if path not in rest:
            return None
        run.fired[path].append((output, version_of(output)))
        fired, rest[path] = rest[path][: output.numel()], rest[path][output.numel() :]
        return fired.reshape(output.shape).clone() if fired.numel() == output.numel() else None

    return hook
