"""Verification of streaming files: every layer at every step with the reference's membranes, then all steps in turn.

The reference is the program of all steps (step_reference.py). The streaming file is split at its neurons, and at each
step it gets the reference's spikes of that step and the membranes after the step before. Spikes and the membranes after
the step are compared: bit for bit with integer weights, within rounding (float_error.py) otherwise. So every step of
every layer is checked by itself, with the spikes that the inputs cause and with random ones. Running sums are the
file's own: their last result is that of all steps. At last the file runs all steps by itself, and gives the outputs of
the file for all steps at once.

A file with a packed state (packed_state.py) is unpacked before it is split. The packed file itself runs all steps, and
a step from random states, after which each part must lie in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from svitc import onnx as backend
from svitc.analysis.exactness import inexact
from svitc.analysis.float_error import bound, magnitudes, margins, output_sum_lengths, step_margins, sum_lengths
from svitc.analysis.time_mixing import Role, step_roles, steps_of, time_places
from svitc.errors import InputError
from svitc.ir import ops
from svitc.ir.axes import Dims
from svitc.ir.outputs import as_tuple, output_values
from svitc.ir.program import Program, Stage
from svitc.onnx.int16_sums import beyond_int16
from svitc.onnx.model_info import read_structure
from svitc.onnx.packed_state import unpack_states
from svitc.onnx.states import FileState, states_of
from svitc.passes.lowering.average_steps import SCOPE
from svitc.passes.pipelines import exportable_program
from svitc.runtimes import ONNX_RUNTIME, Runtime, Session
from svitc.verification.exact_check import NEAR
from svitc.verification.packing_check import misplaced_values
from svitc.verification.quantization_check import check_quantization
from svitc.verification.recorder import STIMULUS_SEED, record_magnitudes, stimulate
from svitc.verification.step_reference import StepReference, at_step
from svitc.verification.verdict import LayerVerdict, Verdict

ROUNDING = 2.0**-18  # largest difference of a membrane, in units of the threshold, from products of floats


def verify_stream(
    program: Program,
    exported: bytes,
    whole: bytes,
    inputs: Iterable[torch.Tensor],
    progress: Callable[[int], None] | None = None,
    original: Program | None = None,
    runtime: Runtime = ONNX_RUNTIME,
) -> Verdict:
    """Compare a streaming file with the program that it was exported from, and with the file for all steps at once.

    Args:
        program: the reference, of all time steps.
        exported: bytes of the streaming file.
        whole: bytes of the file for all steps at once.
        inputs: batches in the program's input layout.
        progress: called with the number of images done.
        original: the float program that was quantized (quantization_check.py); None where there is none at hand.
        runtime: runs the files.

    Returns:
        the differences in each layer and in the outputs.

    Raises:
        InputError: the file is no streaming file, or the runtime cannot run it.
    """
    check = _StreamCheck(program, exported, runtime)
    whole_session = runtime.open(whole)
    verdict = Verdict.of(check.lowered, runtime.described())
    verdict.calls = check.steps
    verdict.beyond_int16 = beyond_int16(exported) if check.is_exact else None
    for number, x in enumerate(inputs):
        run = StepReference(program, check.lowered, x)
        if number == 0 and original is not None:
            verdict.quantization = check_quantization(original, program, x.narrow(program.input.batch_dim, 0, 1))
        check.judge(verdict, x, run)
        if number == 0:
            check.judge_packing(verdict, x)
            generator = torch.Generator().manual_seed(STIMULUS_SEED)
            spikes = {name: stimulate(run.modules[name], s, generator) for name, s in run.recorder.spikes.items()}
            check.judge(verdict, x, StepReference(program, check.lowered, x, spikes), natural=False)
        final = check.run_in_turn(x)
        at_once = whole_session.run(program.output_names, {whole_session.input_names[0]: x.numpy()})
        for i, (value, expected) in enumerate(zip(final, at_once, strict=True)):
            if check.is_exact and verdict.outputs[i].name not in check.inexact:
                verdict.outputs[i].values_beyond_rounding += int((value.reshape(expected.shape) != expected).sum())
        verdict.add([v.reshape(e.shape) for v, e in zip(final, at_once, strict=True)], at_once, check.batch(x))
        if progress is not None:
            progress(verdict.images)
    return verdict


def averages(model: onnx.ModelProto) -> bool:
    """Return whether a streaming file returns the average of the class scores so far, not those of each step."""
    return any(f".{SCOPE}." in name for state in states_of(model) or () for name in state.names)


@dataclass(frozen=True)
class _Rounding:
    """What rounding explains in one run of a float program.

    Attributes:
        currents: neuron -> magnitudes of its current.
        outputs: magnitudes of each output.
    """

    currents: dict[str, torch.Tensor]
    outputs: tuple[torch.Tensor, ...]


class _StreamCheck:
    """A streaming file, unpacked and split at its neurons, and as it is, beside its program.

    Args:
        program: the program of all steps.
        exported: bytes of the file.
        runtime: runs the file.

    Attributes:
        lowered: the program with layers joined as in the file.
        passed: states of the file as it is.
        states: states of the split file.
        is_exact: whether the program has integer weights.
        same_bits: whether the file computes with integers, so that membranes must have the reference's bits. Where
            weights are integers but products are of floats (qdq), a runtime may fuse these with the bias.
        inexact: neurons and outputs that depend on the order of a float sum all the same.
    """

    def __init__(self, program: Program, exported: bytes, runtime: Runtime) -> None:
        states = states_of(read_structure(exported))
        if states is None:
            raise InputError("the file is no streaming file", hint="svitc compile --streaming writes one.")
        unpacked = unpack_states(exported)
        split, self.neurons = backend.split_step(unpacked)
        self.exported, self.runtime = exported, runtime
        self.program, self.passed, self.states = program, states, states_of(read_structure(unpacked)) or []
        self.lowered = exportable_program(program, per_step=True)
        self.steps = steps_of(program)
        self.session, self.split = runtime.open(exported), runtime.open(split, few_runs=True)
        self.is_exact = program.stage >= Stage.QUANTIZED
        self.inexact = set(inexact(self.lowered)) if self.is_exact else set()
        self.same_bits = any(node.op_type.endswith("Integer") for node in read_structure(exported).graph.node)
        self.averages = averages(read_structure(exported))
        roles = step_roles(self.lowered).roles
        self.roles = [roles[value] for value in output_values(self.lowered.graph)]
        if not self.is_exact:
            self.bounds = magnitudes(program)
            self.lengths, self.output_lengths = sum_lengths(program), output_sum_lengths(program)

    def batch(self, x: torch.Tensor) -> int:
        """Return the number of images of a batch."""
        return x.shape[self.program.input.batch_dim]

    def frame(self, x: torch.Tensor, t: int) -> np.ndarray:
        """Return what the file gets at a step."""
        return (x[t] if self.program.input.events else x).numpy()

    def judge(self, verdict: Verdict, x: torch.Tensor, run: StepReference, natural: bool = True) -> None:
        """Run the split file at every step of a run of the reference, and add the differences to a verdict.

        Args:
            verdict: the verdict.
            x: the input of the run.
            run: the run of the reference.
            natural: whether the spikes are those that the images cause, not random ones.
        """
        rounding = None
        if not self.is_exact:
            recorder, outputs = record_magnitudes(self.bounds, x, run.recorder)
            rounding = _Rounding(recorder.currents, as_tuple(outputs))
        states = {state.input: state.start(self.batch(x)) for state in self.states}
        names = self.split.output_names
        for t in range(self.steps):
            feed = {self.session.input_names[0]: self.frame(x, t), **states}
            for neuron in self.neurons:
                feed.update(neuron.spikes.steps_of(run.of(run.recorder.fed, neuron.path, t)))
                if neuron.membrane is not None:
                    feed[neuron.membrane.state.input] = neuron.membrane.of(run.membrane_before(neuron.path, t))
            values = dict(zip(names, self.split.run(names, feed), strict=True))
            for neuron in self.neurons:
                _Step(run, t, values, rounding, natural).judge(verdict.layers[neuron.path], neuron, self)
            states = {state.input: values[state.output] for state in self.states}
            self._judge_outputs(verdict, values, as_tuple(run.output), t, rounding)

    def _judge_outputs(
        self,
        verdict: Verdict,
        values: dict[str, np.ndarray],
        expected: tuple[torch.Tensor, ...],
        t: int,
        rounding: _Rounding | None,
    ) -> None:
        """Compare the outputs after a step: those of a reduction inside the network at the last step alone."""
        nodes = output_values(self.program.graph)
        for i, name in enumerate(self.program.output_names):
            per_step = self.roles[i] is Role.PER_STEP
            if not per_step and self.roles[i] is Role.SO_FAR and t < self.steps - 1:
                continue
            dims = self.program.type_of(nodes[i])

            def so_far(value: torch.Tensor, dims: Dims = dims, per_step: bool = per_step) -> np.ndarray:
                if not per_step:
                    return value.numpy()
                steps = [at_step(value.numpy(), dims, s) for s in range(t + 1)]
                return np.asarray(sum(steps)) * np.float32(1 / (t + 1)) if self.averages else steps[t]

            reference, value = so_far(expected[i]), values[name]
            value = value.reshape(reference.shape)
            if rounding is None:
                beyond = ~np.isclose(value, reference, rtol=1e-4, atol=1e-5 * float(abs(reference).max(initial=0)))
            else:
                allowed = bound(so_far(rounding.outputs[i]), self.output_lengths[i] + (t + 1) * self.averages)
                with np.errstate(invalid="ignore"):
                    beyond = (value != reference) & ~(abs(value - reference) <= allowed)
            verdict.outputs[i].values_beyond_rounding += int(beyond.sum())

    def judge_packing(self, verdict: Verdict, x: torch.Tensor) -> None:
        """Add the parts of a packed state that are not in their places: membranes to their layers, sums to the outputs.

        Args:
            verdict: the verdict.
            x: an input.
        """
        owners = {n.membrane.state.input: n.path for n in self.neurons if n.membrane is not None}
        for state in self.passed:
            if not state.parts:
                continue
            for name, count in misplaced_values(self.exported, state, self.frame(x, 0), self.runtime).items():
                if name in owners:
                    verdict.layers[owners[name]].membranes_beyond_rounding += count
                else:
                    verdict.outputs[0].values_beyond_rounding += count

    def run_in_turn(self, x: torch.Tensor) -> list[np.ndarray]:
        """Return the outputs of the file for all steps at once, from one call for each step."""
        steps = outputs_in_turn(
            self.session, self.passed, [self.frame(x, t) for t in range(self.steps)], self.program.output_names
        )
        stacked = []
        for i, (role, node) in enumerate(zip(self.roles, output_values(self.program.graph), strict=True)):
            values, places = [step[i] for step in steps], time_places(self.program.type_of(node))
            is_stacked = role is Role.PER_STEP and not self.averages
            stacked.append(np.stack(values, places[0][0]) if is_stacked else values[-1])
        return stacked


def outputs_in_turn(
    session: Session, states: list[FileState], frames: Iterable[np.ndarray], names: list[str]
) -> list[list[np.ndarray]]:
    """Run a streaming file on frames in turn, from the initial states, and return its outputs after each.

    Args:
        session: the file.
        states: its states.
        frames: the frames, each ``[N, C, H, W]``.
        names: the outputs to return.
    """
    outputs, feed = [], None
    after = [state.output for state in states]
    for frame in frames:
        feed = feed or {state.input: state.start(len(frame)) for state in states}
        values = session.run([*names, *after], {session.input_names[0]: frame, **feed})
        outputs.append(values[: len(names)])
        feed = {state.input: value for state, value in zip(states, values[len(names) :], strict=True)}
    return outputs


@dataclass(frozen=True)
class _Step:
    """One step of a run of the split file and of the reference.

    Attributes:
        run: the run of the reference.
        t: the step.
        values: outputs of the split file.
        rounding: what rounding explains; None for integer weights.
        natural: whether the spikes are those that the images cause, not random ones.
    """

    run: StepReference
    t: int
    values: dict[str, np.ndarray]
    rounding: _Rounding | None
    natural: bool

    def judge(self, layer: LayerVerdict, neuron: backend.SplitStepNeuron, check: _StreamCheck) -> None:
        """Compare one neuron's spikes, its current and its membrane after the step with the reference's."""
        path, run, t = neuron.path, self.run, self.t
        expected = run.of(run.recorder.spikes, path, t)
        spikes = neuron.spikes.array_of(self.values).reshape(expected.shape)
        layer.spikes += expected.size
        layer.firing += float(expected.sum()) if self.natural else 0.0
        differs = spikes != expected
        if self.rounding is None:
            count, is_soft = int(differs.sum()), path in check.inexact
            within = is_soft and count <= max(1, NEAR * expected.size)
            far = differs if not within else np.zeros_like(differs)
            allowed: np.ndarray | float = np.inf if is_soft else 0.0 if check.same_bits else ROUNDING
        else:
            far, allowed = self._beyond(layer, neuron, differs, max(check.lengths[m] for m in run.members(path)))
        layer.flips_beyond_rounding += int(far.sum())
        layer.flips_within_rounding += int(differs.sum()) - int(far.sum())
        if neuron.membrane is None:
            return
        after = run.of(run.membranes, path, t)
        value = neuron.membrane.array_of(self.values[neuron.membrane.state.output]).reshape(after.shape)
        wrong = (value != after) & ~(abs(value - after) <= allowed) & ~differs
        layer.membranes_beyond_rounding += int(wrong.sum())

    def _beyond(
        self, layer: LayerVerdict, neuron: backend.SplitStepNeuron, differs: np.ndarray, terms: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare a float neuron's current; return which spikes differ by more than rounding, and what it explains.

        Args:
            layer: the verdict to which the result is added.
            neuron: the neuron in the file.
            differs: where its spikes differ.
            terms: length of the sums behind its current.
        """
        assert self.rounding is not None
        path, run, t = neuron.path, self.run, self.t
        current = run.of(run.recorder.currents, path, t)
        magnitude = run.of(self.rounding.currents, path, t)
        difference = np.zeros(current.shape)
        if neuron.current is not None:
            difference = abs(neuron.current.array_of(self.values).reshape(current.shape) - current)
            layer.max_current_difference = max(layer.max_current_difference, float(difference.max(initial=0.0)))
            layer.currents_beyond_rounding += int((difference > bound(magnitude, terms)).sum())
        module = run.module(path)
        if not ops.has_state(module):
            distance, allowed = margins(module, current, run.of(run.recorder.spikes, path, t), magnitude, terms)
        else:
            distance, allowed = step_margins(module, run.membrane_before(path, t), current, magnitude, terms)
        return differs & ((distance > allowed) | (difference == 0)), allowed


__all__ = ["outputs_in_turn", "verify_stream"]
