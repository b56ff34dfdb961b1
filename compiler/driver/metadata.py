"""What a written file says of itself: how to feed it, what it returns, and where it comes from.

Every value is JSON text under its key in the model's ``metadata_props``. Nothing in it depends on the time or the place
of a compilation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version

import onnx

from svitc.data.dataset import Dataset
from svitc.data.sources import Scaling, choose_scaling
from svitc.driver.apply import Exported
from svitc.driver.input_range import span_of
from svitc.driver.options import CompileOptions
from svitc.errors import SvitcError
from svitc.ir.outputs import INPUT, output_values, scores_of_single_output
from svitc.ir.program import Program
from svitc.onnx.states import STATES_KEY
from svitc.onnx.target import OPENVINO
from svitc.onnx.words import dims_words, output_words, time_steps
from svitc.planning.plan import Plan
from svitc.support.types import Json, JsonDict

KEYS = {  # key -> its meaning; docs/file.md shows this table
    "image.dtype": '`"float32"`; `"uint8"` where the file takes the bytes of a picture as they are, and scales and '
    "normalizes them itself (`--raw-input`)",
    "image.layout": 'dimensions of the input `image`: `"NCHW"`, or `"TNCHW"` for event frames; of a streaming file '
    'always `"NCHW"`: one frame; of bytes `"NHWC"`',
    "image.size": "height and width of the input, in pixels",
    "image.color": 'channels of a picture, in order: `"RGB"` or `"gray"`; `"events"` for counts of events, null for '
    "other channels",
    "image.range": "what pixels from 0 to 255 are scaled to before `image.mean` and `image.std`; null for event "
    "frames, which are taken as they are",
    "image.mean": "subtracted from each channel",
    "image.std": "divides each channel after that",
    "image.normalization": '`"declared"` by the checkpoint or by options; `"assumed"` where nothing says how images '
    "are normalized, so that they are only scaled",
    "image.resize": "length that the shorter side of a picture is scaled to before it is cropped; null to scale it so "
    "that it just covers `image.crop`, 0 to crop it as it is",
    "image.crop": "height and width that are cut from the center; scaled to `image.size` where that differs",
    "image.interpolation": "how pictures are scaled",
    "image.limits": "smallest and largest value of the input, outside which a file with integer weights clamps; null "
    "for float weights",
    "batch": "the only number of images that the file takes at once, the `N` of its outputs; null for any",
    "classes": "names of the classes in the order of the scores; null where the checkpoint does not tell",
    "time_steps": "time steps of the neurons",
    "outputs": "name of each output, and what it is",
    "early_exit": "when inference may stop before the last time step (anytime.md); null without `--anytime`",
    "tokens": "stage -> how many of its tokens run through it (tokens.md); null where all do",
    "promise": "what the file loses at most (promises.md); null where nothing is promised",
    "weights": '`"fp32"`, `"int16"`, `"int8"`, `"int4"`, `"int2"`, `"ternary"`, or `"mixed"` where bits differ from '
    "layer to layer",
    "budget": "the budget of the plan, as it was given; `1.0` where there was none",
    "target": "what the file was written for (targets.md)",
    "openvino": "properties that OpenVINO needs to compute exactly",
    "checkpoint.sha256": "of the file that was compiled; null for a model in memory",
    "spikes.sha256": "of the spikes for the images of `check.npz`; null where the verification failed",
    "svitc.version": "version of svitc that wrote the file",
}


@dataclass(frozen=True)
class Origin:
    """Where a file comes from.

    Attributes:
        weights: type of the weights.
        budget: the budget as it was given, or None.
        limits: smallest and largest input that is not clamped, or None.
        digest: digest of the spikes for the images of the proof, or None.
        early_exit: rule for stopping before the last time step, or None.
        tokens: token stage -> number of tokens that run through it, or None.
        promise: what the plan says is promised, or None.
    """

    weights: str
    budget: str | None
    limits: list[float] | None
    digest: str | None
    early_exit: JsonDict | None = None
    tokens: dict[str, int] | None = None
    promise: JsonDict | None = None


def metadata(program: Program, options: CompileOptions, origin: Origin) -> JsonDict:
    """Return the value of each of ``KEYS``.

    Args:
        program: the program that the file was exported from.
        options: how it was compiled.
        origin: where the file comes from.
    """
    spec, info = program.input, program.info
    channels = spec.shape[-3]
    normalize = info.get("normalize")
    scaling = _scaling(program, options)
    color = "events" if spec.events else {1: "gray", 3: "RGB"}.get(channels)
    values: JsonDict = {
        "image.dtype": "uint8" if options.raw_input else "float32",
        "image.layout": _layout(spec.events, options),
        "image.size": list(spec.shape[-2:]),
        "image.color": color,
        "image.range": None if spec.events else [0, 1],
        "image.mean": list(normalize["mean"]) if normalize else [0.0] * channels,
        "image.std": list(normalize["std"]) if normalize else [1.0] * channels,
        "image.normalization": "declared" if normalize else "assumed",
        "image.resize": declared_resize(scaling),
        "image.crop": list(scaling.window),
        "image.interpolation": "bicubic",
        "image.limits": origin.limits,
        "batch": options.static_batch,
        "classes": info.get("classes"),
        "time_steps": time_steps(program),
        "outputs": meanings(program, options.per_step, options.streaming),
        "early_exit": origin.early_exit,
        "tokens": origin.tokens,
        "promise": origin.promise,
        "weights": origin.weights,
        "budget": origin.budget,
        "target": options.target,
        "openvino": dict(OPENVINO.settings),
        "checkpoint.sha256": info.get("sha256"),
        "spikes.sha256": origin.digest,
        "svitc.version": version("svitc"),
    }
    assert values.keys() == KEYS.keys()
    return values


def with_metadata(
    plan: Plan, lowered: Exported, options: CompileOptions, digest: str | None, early_exit: JsonDict | None
) -> bytes:
    """Return the written file with its metadata; budget and promise are the plan's: a replay gives the same bytes.

    Args:
        plan: the plan of the file.
        lowered: the file.
        options: how it was written.
        digest: digest of the spikes for the images of the proof, or None.
        early_exit: rule for stopping before the last time step, or None.
    """
    span = span_of(lowered.program)
    origin = Origin(
        weights=lowered.weights.type,
        budget=plan.provenance.get("budget"),
        limits=None if span is None else [-span, span],
        digest=digest,
        early_exit=early_exit,
        tokens={stage: len(positions) for stage, positions in plan.tokens.items()} or None,
        promise=plan.provenance.get("promise"),
    )
    return described(lowered.written, metadata(lowered.program, options, origin), options.streaming)


def described(exported: bytes, values: JsonDict, streaming: bool = False) -> bytes:
    """Return a file with metadata, and with a description in words; its graph has the same bytes.

    Messages of protobuf are joined by putting one behind the other.
    """
    more = onnx.ModelProto(doc_string=description(values, streaming))
    for key, value in values.items():
        more.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    return exported + more.SerializeToString(deterministic=True)


def description(values: JsonDict, streaming: bool = False) -> str:
    """Return in words how to feed a file, and what it returns."""
    size = "x".join(map(str, values["image.size"]))
    if values["image.color"] == "events":
        image = f"event frames {_dims(values['image.layout'])} of {size} pixels, float32"
    else:
        color = values["image.color"] or "channels"
        image = f"images {_dims(values['image.layout'])} of {size} pixels, {values['image.dtype']}, {color}"
        does = "which the file itself has " if values["image.dtype"] == "uint8" else ""
        image += f", {does}scaled to [0, 1], minus {values['image.mean']}, divided by {values['image.std']}"
    if streaming:
        image = f"one time step of {image}; then the states, at first as {STATES_KEY} says, later the outputs before"
    if values["batch"] is not None:
        image += f"; N is {values['batch']}"
    outputs = "; ".join(f"{name}: {meaning}" for name, meaning in values["outputs"].items())
    return (
        f"A spiking vision transformer with {values['weights']} weights, compiled by svitc {values['svitc.version']}. "
        f"Input {INPUT}: {image}. Outputs: {outputs}. The metadata have it all in JSON."
    )


def _layout(events: bool, options: CompileOptions) -> str:
    """Return the dimensions of the input."""
    if options.raw_input:
        return "NHWC"
    return "TNCHW" if events and not options.streaming else "NCHW"


def _dims(layout: str) -> str:
    return f"[{', '.join(layout)}]"


def _scaling(program: Program, options: CompileOptions) -> Scaling:
    """Return how pictures come to the input's size: as the images were that were given, or as the checkpoint says."""
    for data in (options.data, options.train_data):
        if isinstance(data, Dataset):
            return data.scaling
    try:
        return choose_scaling(program.input, program.info, None, None)
    except SvitcError:  # a wrong entry of the checkpoint, which nobody asked for here
        return Scaling((program.input.shape[-2], program.input.shape[-1]))


def declared_resize(scaling: Scaling) -> int | None:
    """Return the value of ``image.resize``: 0 where pictures are cropped as they are, None where the default holds."""
    return None if scaling.default else scaling.resize or 0


def meanings(program: Program, per_step: bool, streaming: bool = False) -> dict[str, Json]:
    """Return what each output of a program's file is.

    Args:
        program: the program.
        per_step: whether class scores stay as they are at each time step.
        streaming: whether the file runs one step per call.
    """
    found: dict[str, Json] = dict(zip(program.output_names, output_words(program), strict=True))
    scores = None if per_step and not streaming else scores_of_single_output(program.graph, program.info)
    if scores is not None:
        (name,), (value,) = program.output_names, output_values(program.graph)
        dims = [dim for i, dim in enumerate(program.type_of(value)) if i != scores.time]
        over = "of this time step" if per_step else f"averaged over the time steps{' so far' if streaming else ''}"
        found[name] = f"class scores, before softmax, {over}, {dims_words(tuple(dims))}"
    return found


__all__ = ["KEYS", "Origin", "declared_resize", "described", "description", "meanings", "metadata", "with_metadata"]
