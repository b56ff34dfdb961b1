"""The check that a captured program is the model: every layer's input, on inputs that make the layers fire.

A layer that is silent proves nothing. One batch therefore holds images of several contrasts, up to 0 to 255, and an
image for which every neuron fires random spikes, the same in the model and in the program. Neurons that are silent
even then are compared by themselves, on a current that makes them fire. The model runs once, and the program follows
layer by layer, so that few values are in memory at a time.
"""

from __future__ import annotations

import math

import torch
from spikingjelly.activation_based import base, functional
from torch import fx, nn
from torch.nn.utils import parametrize

from svitc.data.inputs import random_inputs
from svitc.driver.follower import LAST_BITS, ROUNDING, Follower, RoundingError, Stimulus
from svitc.errors import SvitcError, UnsupportedError
from svitc.frontends.capture.leaves import leaf_kind
from svitc.frontends.capture.model_rewrites import prepare
from svitc.frontends.capture.reparametrized import copy_model
from svitc.frontends.capture.user_line import raised_at
from svitc.ir.axes import Kind
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.outputs import tensors_of
from svitc.ir.program import Program
from svitc.support.cpu_only import on_cpu
from svitc.verification.recorder import stimulate

IMAGES = 5  # in a batch, the one with random spikes included
STRONG_CURRENT = 4.0  # standard deviation, in thresholds
CURRENTS = 256  # that a neuron is compared on by itself
DRAWN = 65_537  # random spikes of a neuron; a larger layer repeats them, at no period of its own as this is a prime


def check_capture(model: nn.Module, program: Program, seed: int = 0) -> float:
    """Compare the captured program with the eager model, layer by layer.

    Neurons that could not be made to fire, and buffers with which calls depend on earlier ones, are named in
    ``info["assumptions"]``.

    Args:
        model: the eager model.
        program: the program that was captured from it.
        seed: seed of the inputs.

    Returns:
        The largest difference of the outputs, which is 0.0 unless the program rounds in another order.

    Raises:
        UnsupportedError: a layer's input or an output differs, so that the program is not the model.
    """
    tolerance = ROUNDING if program.info.get("rounded") else 0.0
    try:
        comparison, largest = _compare(model, program, seed, tolerance)
    except RoundingError as error:
        if tolerance:
            raise
        program.info["rounded"] = [error.layer]
        _note(program, f"{error.layer} differs from the model's in the last bits: sums are added in another order")
        comparison, largest = _compare(model, program, seed, LAST_BITS)
    if changed := comparison.remembered():
        note = f"calls change {', '.join(changed)}, and with it what the next call computes; the file is the first call"
        _note(program, note)
    silent = [str(node.target) for node in program.neurons() if not comparison.fires(node)]
    if silent:
        names = ", ".join(sorted(silent)[:5]) + (", …" if len(silent) > 5 else "")
        note = f"no input of the check against the model made these neurons fire: {names}"
        _note(program, note)
    return largest


def _note(program: Program, note: str) -> None:
    """Add a sentence to ``info["assumptions"]``."""
    program.info["assumptions"] = [*program.info.get("assumptions", []), note]


def _compare(model: nn.Module, program: Program, seed: int, tolerance: float) -> tuple[_Comparison, float]:
    """Run both on all batches; return the comparison and the largest difference of the outputs."""
    comparison = _Comparison(model, program, torch.Generator().manual_seed(seed), tolerance)
    return comparison, max(comparison.run(*batch) for batch in _batches(program, seed))


def _batches(program: Program, seed: int) -> list[tuple[torch.Tensor, int]]:
    """Return batches of inputs, with the number of images at their end for which neurons fire random spikes."""
    generator = torch.Generator().manual_seed(seed + 1)
    uniform = torch.rand(program.input.batched(1), generator=generator)
    if program.input.events:
        uniform = (3 * uniform).floor()
    noise = random_inputs(program, 1, 1, seed)[0]
    strong = [255 * uniform, 5 * noise.abs().ceil() if program.input.events else 5 * noise]
    if program.info.get("fixed"):
        # the code of a model whose mistakes ``capture`` has corrected is only right for single images
        return [(noise, 0), (strong[0], 0), (uniform, 1)]
    if program.info.get("rounded"):
        # a spike that rounding flips changes everything behind it, unless all neurons fire what they are told
        return [(torch.cat([noise, uniform], program.input.batch_dim), 2)]
    images = [noise, *strong, uniform][: max(1, program.input.at_once(IMAGES) - 1)]  # large ones take long
    return [(torch.cat([*images, uniform], program.input.batch_dim), 1)]


class _Comparison:
    """A model and the program that was captured from it.

    Args:
        model: The model. It is copied.
        program: The program.
        generator: Draws what neurons fire.
        tolerance: Largest difference that counts as rounding, of the largest magnitude in a tensor.
    """

    def __init__(self, model: nn.Module, program: Program, generator: torch.Generator, tolerance: float) -> None:
        self.model, self.program, self.generator, self.tolerance = model, program, generator, tolerance
        self.eager = self._copied()
        layers = dict(self.eager.named_modules(remove_duplicate=False))
        self.layers = {path for path, m in layers.items() if leaf_kind(m) or parametrize.is_parametrized(m)}
        self._fired: set[str] = set()
        self._changed: dict[str, None] = {}  # buffers that a call of the model changed, in order
        self._copy_inputs = False
        self._fresh = True

    def run(self, x: torch.Tensor, stimulated: int) -> float:
        """Run the model on a batch from rest, and the program behind it.

        Args:
            x: In the program's layout.
            stimulated: For so many images at its end neurons fire random spikes instead of their own.

        Returns:
            The largest difference of the outputs.

        Raises:
            UnsupportedError: A layer's input or an output differs, or the model or the program fails.
        """
        if not self._fresh:  # a model may keep state that only its own code knows how to reset
            self.eager = self._copied()
        self._fresh = False
        stimuli = self._stimuli(x.shape[self.program.input.batch_dim], stimulated) if stimulated else {}
        follower = Follower(self.program, self.layers, stimuli, self._copy_inputs, self.tolerance)
        before = {name: value.clone() for name, value in self.eager.named_buffers()}
        with follower.following(self.eager, x):
            outputs = self._eager_run(x)
        after = dict(self.eager.named_buffers())
        self._changed |= {name: None for name in before if name in after and not torch.equal(after[name], before[name])}
        if follower.outdated:  # the model changes in place what a layer has read
            self._copy_inputs = True
            return self.run(x, stimulated)
        largest = follower.compare_outputs(outputs)
        self._fired |= follower.neurons_fired
        return largest

    def remembered(self) -> list[str]:
        """Return the buffers that calls of the model change, if its next call computes something else for it."""
        if not self._changed:
            return []
        self.eager = self._copied()
        self._fresh = False
        x = random_inputs(self.program, 1, 1, 0)[0]
        first = self._eager_run(x)
        functional.reset_net(self.eager)
        try:
            second = self._eager_run(x)
        except UnsupportedError:  # what the first call left behind fits no second one
            return list(self._changed)
        return [] if all(map(torch.equal, first, second)) else list(self._changed)

    def fires(self, node: fx.Node) -> bool:
        """Return whether a neuron has fired; one that has not is compared with the model's on a strong current.

        Raises:
            UnsupportedError: The two differ.
        """
        path = str(node.target)
        if path in self._fired or path not in self.layers:
            return path in self._fired
        neuron, eager = self.program.module_of(node), self.eager.get_submodule(path)
        if not isinstance(eager, base.MemoryModule):
            return False
        shape = (self.program.shape_of(node)[0], CURRENTS)  # one for each time step; elements do not depend on others
        scale = STRONG_CURRENT * max(1.0, abs(dynamics_of(neuron).threshold))
        current = scale * torch.randn(shape, generator=self.generator)
        functional.reset_net(eager)
        self.program.reset()
        with torch.no_grad():
            expected = eager(current) if eager.step_mode == "m" else torch.stack([eager(x) for x in current])
            actual = neuron(current)  # type: ignore[misc]
        self.program.reset()
        Follower(self.program, set(), {}, tolerance=self.tolerance).check_equal(
            node, actual, expected, "what {layer} fires differs by {difference}"
        )
        return bool(actual.any())

    def _copied(self) -> nn.Module:
        """Return a copy of the model as it was captured."""
        eager = copy_model(self.model).float().eval()
        prepare(eager)
        functional.reset_net(eager)
        return eager

    def _stimuli(self, batch: int, stimulated: int) -> dict[str, Stimulus]:
        """Return random spikes for each neuron of the program that is a neuron of the model, too."""
        stimuli = {}
        for node in self.program.neurons():
            path, dims = str(node.target), self.program.type_of(node)
            flat = [axis for dim in dims for axis in dim]
            at = [i for i, axis in enumerate(flat) if axis.kind == Kind.BATCH]
            if path not in self.layers or len(at) != 1:
                continue
            sizes = [axis.size for axis in flat]
            sizes[at[0]] = stimulated
            size = math.prod(sizes)
            drawn = stimulate(self.program.module_of(node), torch.empty(min(size, DRAWN)), self.generator)
            drawn = drawn.repeat(-(-size // len(drawn)))[:size].view(sizes)
            sizes[at[0]] = batch
            spikes = torch.zeros(sizes)
            spikes.narrow(at[0], batch - stimulated, stimulated).copy_(drawn)
            mask = torch.arange(batch) >= batch - stimulated
            mask = mask.view([batch if i == at[0] else 1 for i in range(len(sizes))]).expand(sizes)
            stimuli[path] = Stimulus(spikes.flatten(), mask.flatten())
        return stimuli

    def _eager_run(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the model's outputs."""
        try:
            with torch.no_grad(), on_cpu():  # not inference mode: tensors need a version
                # a copy, as a model may change its input in place
                output = self.eager((x.transpose(0, 1) if self.program.info.get("batch_first") else x).clone())
        except SvitcError:
            raise
        except Exception as error:  # the user's code
            raise UnsupportedError(
                f"the model's forward fails on a batch of {x.shape[self.program.input.batch_dim]}:"
                f" {type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
                where=raised_at(error),
                hint="A model must take batches of any size.",
            ) from error
        return tuple(tensors_of(output))
