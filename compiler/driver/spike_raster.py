"""The spikes of one image through the network, before and after: the report's section ``spikes``.

It holds no pixel of the image, which may be the user's: only which neurons of a sample fired.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from svitc.data.inputs import has_labels, random_inputs
from svitc.driver.input_range import span_of, within
from svitc.driver.prepare import Workspace
from svitc.ir.axes import Kind, resolve
from svitc.ir.outputs import as_tuple, class_scores
from svitc.ir.program import Program
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict
from svitc.verification.recorder import Recorder

SAMPLE = 96  # neurons of a layer that are shown
MOST_STEPS = 16  # time steps that are shown
Image = tuple[torch.Tensor, str, int | None]  # a batch of one, what it is called, and its label


@dataclass(frozen=True)
class _Run:
    """One program on one image.

    Attributes:
        nodes: neuron -> its node.
        spikes: neuron -> whether each neuron of the layer fired, ``[T, neurons]``.
        chosen: the class that it chooses, None where no output scores classes.
    """

    nodes: dict[str, fx.Node]
    spikes: dict[str, np.ndarray]
    chosen: int | None

    @classmethod
    def of(cls, program: Program, x: torch.Tensor) -> _Run:
        """Run a program on a batch of one image."""
        recorder, outputs = Recorder.record(program, x)
        nodes = {str(node.target): node for node in program.neurons()}
        spikes = {name: _by_step(program, node, recorder.spikes[name]) for name, node in nodes.items()}
        scores = class_scores(program.graph, program.info)
        chosen = None if scores is None else int(scores.of(as_tuple(outputs)).argmax())
        return cls(nodes, spikes, chosen)


def _by_step(program: Program, node: fx.Node, values: torch.Tensor) -> np.ndarray:
    """Return which neurons fired, ``[T, neurons]``; the neurons are in the order of the value's other axes."""
    axes = [axis for dim in program.type_of(node) for axis in resolve(dim)]
    shape = [1 if axis.kind == Kind.BATCH else axis.size for axis in axes]
    fired = (values != 0).numpy().reshape(shape)
    times = [place for place, axis in enumerate(axes) if axis.kind == Kind.TIME]
    fired = np.moveaxis(fired, times, range(len(times)))
    return fired.reshape(math.prod(shape[place] for place in times), -1)


def _kept(program: Program, node: fx.Node, masks: dict[str, np.ndarray]) -> np.ndarray:
    """Return which neurons of a layer a plan keeps, ``[neurons]``, in the order of ``_by_step``."""
    axes = [axis for dim in program.type_of(node) for axis in resolve(dim)]
    axes = [axis for axis in axes if axis.kind != Kind.TIME]
    shape = [1 if axis.kind == Kind.BATCH else axis.size for axis in axes]
    kept = np.ones(shape, bool)
    for group in program.groups:
        places = [
            next((i for i, axis in enumerate(axes) if axis is part), None) for part in (group.head_axis, group.axis)
        ]
        mask = masks[group.name]
        if places[1] is None or (places[0] is None and len(mask) > 1):
            continue
        size = [1] * len(shape)
        for place, count in zip(places, mask.shape, strict=True):
            if place is not None:
                size[place] = count
        ordered = mask if places[0] is None or places[0] < places[1] else mask.T
        kept &= ordered.reshape(size)
    return kept.reshape(-1)


def first_image(workspace: Workspace) -> Image:
    """Return the first of the user's images, else the first that was drawn to choose plans on, else noise."""
    program, options = workspace.program, workspace.options
    given = next((data for data in (options.data, options.train_data) if data is not None), None)
    data = given if given is not None else workspace.drawn
    batch = None if data is None else next(iter(data.batches(1)), None)
    if batch is None:
        return random_inputs(program, 1, 1, options.seed)[0], "random noise, as there were no images", None
    x, labels = batch
    x = x.narrow(program.input.batch_dim, 0, 1)
    if given is None:
        return x, "an image that svitc drew, as there were no others", None
    label = int(labels[0]) if has_labels(given) else -1
    return x, f"the first image of {getattr(given, 'name', 'the data')}", None if label < 0 else label


def spikes_report(
    workspace: Workspace, before: Program, after: Program, plan: Plan, reporter: Reporter
) -> JsonDict | None:
    """Return the report's section ``spikes``, of the first image of the workspace; see ``spike_raster``.

    A picture for the report must not cost a finished compilation: where it fails, None, and the reporter says why.
    """
    try:
        return spike_raster(before, after, plan, first_image(workspace), reporter)
    except Exception as error:  # whatever the user's images and networks make it raise
        reporter.decide(f"the report shows no spikes: {type(error).__name__}: {error}")
        return None


def spike_raster(before: Program, after: Program, plan: Plan, image: Image, reporter: Reporter) -> JsonDict:
    """Run one image through the network before and after, and return the report's section ``spikes``.

    Args:
        before: the program that the plan was made for.
        after: the program that was exported.
        plan: what it keeps.
        image: what ``first_image`` returns.
        reporter: told about the stage.
    """
    x, words, label = image
    with reporter.stage("spikes"):
        original = _Run.of(before, x)
        compiled = _Run.of(after, next(within([x], span_of(after))))
    masks = plan.validate(before)
    layers = [
        _layer(name, original.spikes[name], compiled.spikes[name], _kept(before, original.nodes[name], masks))
        for name in original.spikes
        if name in compiled.spikes
    ]
    return {
        "image": words,
        "label": label,
        "original_class": original.chosen,
        "compiled_class": compiled.chosen,
        "time_steps": max((len(spikes) for spikes in original.spikes.values()), default=0),
        "sample": SAMPLE,
        "layers": layers,
    }


def _layer(name: str, original: np.ndarray, compiled: np.ndarray, kept: np.ndarray) -> JsonDict:
    """Return the entry of one neuron layer.

    Args:
        name: its path.
        original, compiled: which of its neurons fired, ``[T, neurons]``.
        kept: which of the original's neurons the compiled network has; of no use where their number is another one, as
            where a pass has moved the neurons.
    """
    neurons = original.shape[1]
    shown = np.linspace(0, neurons - 1, min(SAMPLE, neurons)).round().astype(int)
    entry: JsonDict = {
        "name": name,
        "neurons": neurons,
        "compiled_neurons": compiled.shape[1],
        "original_rate": float(original.mean()),
        "compiled_rate": float(compiled.mean()) if compiled.size else 0.0,
        "shown": len(shown),
        "original": _digits(original[:, shown]),
    }
    if len(kept) == neurons and int(kept.sum()) == compiled.shape[1]:
        places = np.where(kept, np.cumsum(kept) - 1, 0)[shown]
        entry |= {
            "compiled": _digits(compiled[:, places] & kept[shown]),
            "removed": _digits(~kept[shown][None])[0],
        }
    else:
        same = np.linspace(0, compiled.shape[1] - 1, len(shown)).round().astype(int)
        entry |= {"compiled": _digits(compiled[:, same]), "removed": None}
    return entry


def _digits(fired: np.ndarray) -> list[str]:
    """Return a row of hexadecimal digits for each time step; the first neuron is the highest bit of the first digit."""
    return [np.packbits(row).tobytes().hex() for row in fired[:MOST_STEPS]]


__all__ = ["spike_raster", "spikes_report"]
