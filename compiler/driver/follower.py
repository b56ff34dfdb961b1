"""A program that runs behind the model it was captured from: each layer once the model has called it."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from svitc.errors import SvitcError, UnsupportedError
from svitc.ir import ops
from svitc.ir.operators.selection import positions
from svitc.ir.outputs import as_tuple
from svitc.ir.program import Program

TIES = (
    "The model sorts, and torch keeps equal scores in the order of their positions, as files do, only if told so: write"
    " torch.sort(…, stable=True) instead of topk and argsort. Otherwise please report it."
)
UNEXPLAINED = "The model depends on values, on the batch, on chance or on earlier calls; please report it."
ROUNDING = 1e-4  # largest difference that rounding explains, of the largest magnitude in the tensor
LAST_BITS = 1e-6  # the same where nothing in the model's code says why it rounds otherwise: 8 units in the last place


class RoundingError(UnsupportedError):
    """The program differs from the model in the last bits only.

    Attributes:
        layer: What differs, or what reads it.
    """

    layer: str = ""


@dataclass(frozen=True)
class Stimulus:
    """What a neuron fires instead of its own spikes, in the program's layout but flat.

    Attributes:
        spikes: The spikes.
        mask: Where they replace the neuron's own.
    """

    spikes: torch.Tensor
    mask: torch.Tensor

    def replace(self, fired: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return what is passed on instead of ``fired``, whose first element is number ``start``."""
        spikes, mask = (t[start : start + fired.numel()] for t in (self.spikes, self.mask))
        if spikes.numel() < fired.numel():
            return fired
        return torch.where(mask.view(fired.shape), spikes.view(fired.shape), fired)


def _version_of(x: torch.Tensor) -> int:
    """Return the number of changes in place of a tensor; tensors that inference mode makes do not count them."""
    return 0 if x.is_inference() else x._version


class _Outdated(Exception):
    """A tensor that a layer has read was changed before the program came to the layer."""


@dataclass
class _Calls:
    """Calls of a layer by the model that the program has not come to.

    Attributes:
        values: A tensor of each call.
        versions: The version that each tensor had, which changes in place raise.
    """

    values: deque[torch.Tensor]
    versions: deque[int]

    @classmethod
    def none(cls) -> _Calls:
        return cls(deque(), deque())

    def append(self, value: torch.Tensor) -> None:
        self.values.append(value)
        self.versions.append(_version_of(value))

    def cover(self, size: int) -> bool:
        """Return whether the calls have at least so many elements."""
        return sum(value.numel() for value in self.values) >= size

    def take(self, size: int) -> torch.Tensor | None:
        """Take off the calls, one or one for each time step, that have so many elements; None if there are none.

        Raises:
            _Outdated: One of the tensors has changed.
        """
        parts: list[torch.Tensor] = []
        while self.values and sum(part.numel() for part in parts) < size:
            parts.append(self.values.popleft())
            if _version_of(parts[-1]) != self.versions.popleft():
                raise _Outdated
        if sum(part.numel() for part in parts) != size:
            self.values.clear()
            self.versions.clear()
            return None
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])


class Follower(fx.Interpreter):
    """Interpreter that runs a program behind its model, and compares the inputs of the layers as it goes.

    Args:
        program: The program.
        layers: Paths of the model's layers.
        stimuli: Neuron -> what it fires, in both, instead of its own spikes.
        copy_inputs: Whether to copy what the model's layers read, as the model changes some of it afterwards.
        tolerance: Largest difference that counts as rounding, of the largest magnitude in the tensor.

    Attributes:
        neurons_fired: The program's neurons that have fired spikes of their own.
        outdated: Whether the comparison was given up since ``copy_inputs`` is needed.
    """

    def __init__(
        self,
        program: Program,
        layers: Collection[str],
        stimuli: Mapping[str, Stimulus],
        copy_inputs: bool = False,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__(program.module)
        self.program, self.layers, self.stimuli, self.copy_inputs = program, layers, stimuli, copy_inputs
        self.tolerance = tolerance
        self.neurons_fired: set[str] = set()
        self.outdated = False
        self._inputs: dict[str, _Calls] = defaultdict(_Calls.none)
        self._fired: dict[str, _Calls] = defaultdict(_Calls.none)
        self._starts: dict[str, int] = defaultdict(int)
        self._pending = deque(program.graph.nodes)
        self._error: Exception | None = None
        self._node: fx.Node | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    @contextlib.contextmanager
    def following(self, model: nn.Module, x: torch.Tensor) -> Iterator[None]:
        """Follow a model that runs in the body of a ``with`` statement on an input in the program's layout.

        Raises:
            UnsupportedError: A layer's input, or what a neuron fires, differs, or the program fails.
        """
        self.args_iter = iter((x,))
        self.program.module.eval()
        self.program.reset()
        handles = [
            module.register_forward_hook(partial(self._called, path), prepend=True, with_kwargs=True)
            for path, module in model.named_modules(remove_duplicate=False)
            if path in self.layers
        ]
        try:
            yield
            self._advance(to_the_end=True)
        finally:
            for handle in handles:
                handle.remove()
            self.program.reset()
        if isinstance(self._error, SvitcError):
            raise self._error
        if self._error is not None:
            raise UnsupportedError(
                f"the captured program fails on a batch of {x.shape[self.program.input.batch_dim]}: {self._error}",
                hint="The model makes tensors whose size is that of the batch in a way that cannot be followed.",
            ) from self._error

    def _called(self, path: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Keep the input of a layer of the model, let the program follow, and replace what a neuron fires."""
        if self.outdated or self._error is not None:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        self._inputs[path].append(x.clone() if self.copy_inputs else x)
        passed_on = None
        if path in self.stimuli:
            self._fired[path].append(output)
            passed_on = self.stimuli[path].replace(output, self._starts[path])
            self._starts[path] += output.numel()
        self._advance()
        return passed_on

    def _advance(self, to_the_end: bool = False) -> None:
        """Run the program as far as the model is, or to its end."""
        try:
            with torch.inference_mode():
                while self._pending and not self.outdated and self._error is None:
                    if not to_the_end and not self._can_run(self._pending[0]):
                        break
                    node = self._node = self._pending.popleft()
                    self.env[node] = self.run_node(node)
                    if node.op == "output":
                        self._outputs = as_tuple(self.env[node])
                    for used in self.user_to_last_uses.get(node, ()):
                        del self.env[used]
        except _Outdated:
            self.outdated = True
        except (RuntimeError, SvitcError) as error:  # raised once the user's code has returned, which might catch it
            self._error = error

    def _can_run(self, node: fx.Node) -> bool:
        """Return whether the model has called the layer that a node calls."""
        if node.op != "call_module" or node.target not in self.layers:
            return True
        x = self.env[node.args[0]]  # type: ignore[index]
        return self._inputs[str(node.target)].cover(x.numel())

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> object:
        assert self._node is not None
        if target in self.layers:
            what = "the input of {layer} differs by {difference}"
            args = (self._compare(self._node, args[0], self._inputs[target], what), *args[1:])
        y: Any = super().call_module(target, args, kwargs)
        if target not in self.neurons_fired and ops.is_neuron(self.fetch_attr(target)) and bool(y.any()):  # type: ignore[arg-type]
            self.neurons_fired.add(target)
        if target not in self.stimuli:
            return y
        if not self.tolerance:
            self._compare(self._node, y, self._fired[target], "what {layer} fires differs by {difference}")
        return self.stimuli[target].replace(y)

    def _compare(self, node: fx.Node, actual: torch.Tensor, calls: _Calls, what: str) -> torch.Tensor:
        """Refuse the program if a tensor of a layer differs from the model's.

        The two cannot be compared where a function became a layer, or a layer another one.

        Returns:
            The model's tensor where it has the shape of ``actual``, so that differences do not add up, and in the
            model's order in memory: some convolutions round otherwise in another order. Otherwise ``actual``.
        """
        expected = calls.take(actual.numel())
        if expected is None:
            return actual
        self.check_equal(node, actual, expected, what)
        return expected if expected.shape == actual.shape else actual

    def check_equal(self, node: fx.Node, actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
        """Refuse the program if two tensors differ.

        Args:
            node: The call of a layer.
            actual: A tensor of the program.
            expected: The same of the model, of any shape.
            what: What differs, for messages; ``{layer}`` and ``{difference}`` are filled in.
        """
        difference = self._difference(actual.reshape(expected.shape), expected)
        if difference and actual.ndim != expected.ndim:  # a layer over three dimensions that became one over two
            difference = self._difference(actual.flatten().sort().values, expected.flatten().sort().values)
        if difference:
            text = what.format(layer=node.target, difference=f"{difference:g}")
            raise self._refuse(text, difference, expected, node)

    def compare_outputs(self, expected: tuple[torch.Tensor, ...]) -> float:
        """Return the largest difference of the outputs from the model's.

        Raises:
            UnsupportedError: It is not explained.
        """
        if len(self._outputs) != len(expected):
            raise self._refuse(f"it returns {len(self._outputs)} tensors, the model {len(expected)}")
        largest = 0.0
        for a, e in zip(self._outputs, expected, strict=True):
            if a.shape != e.shape:
                raise self._refuse(f"it returns {tuple(a.shape)}, the model {tuple(e.shape)}")
            if difference := self._difference(a, e):
                raise self._refuse(f"the output differs by {difference:g}", difference, e)
            if not torch.equal(a, e):
                largest = max(largest, float((a.double() - e.double()).abs().nan_to_num(0.0).max()))
        return largest

    def _difference(self, a: torch.Tensor, e: torch.Tensor) -> float:
        """Return the largest difference of two tensors; 0 where they are equal, or differ by rounding that is known."""
        if torch.equal(a, e):
            return 0.0
        difference = (a.double() - e.double()).abs().nan_to_num(float("inf"))
        largest = float(torch.where((a.isnan() & e.isnan()) | (a == e), 0.0, difference).max())
        return 0.0 if largest <= self.tolerance * float(e.double().abs().max()) else largest

    def _refuse(
        self, text: str, difference: float = math.inf, expected: torch.Tensor | None = None, node: fx.Node | None = None
    ) -> UnsupportedError:
        """Return the error for a program that is not the model, or that rounds otherwise."""
        sorts = any(n.target is positions for n in self.program.graph.nodes)
        last_bits = expected is not None and difference <= LAST_BITS * float(expected.double().abs().max())
        error = (RoundingError if last_bits else UnsupportedError)(
            f"the captured program differs from the model: {text}",
            where=None if node is None else node.meta.get("source"),
            hint=TIES if sorts else UNEXPLAINED,
        )
        if isinstance(error, RoundingError):
            error.layer = "the output" if node is None else f"the input of {node.target}"
        return error
