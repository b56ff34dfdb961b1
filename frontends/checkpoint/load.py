"""Loading of a checkpoint: from the file that the user names to a model with weights and the shape of its input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from svitc.errors import InputError, SvitcError, UsageError
from svitc.frontends.checkpoint import model_factory, neuron_json, recognize_published, spikingjelly_families, weights
from svitc.frontends.checkpoint.labels import labels, metrics
from svitc.frontends.checkpoint.model_factory import check_json, check_json_object
from svitc.frontends.checkpoint.reader import TIME_NAMES, Contents, prefix_errors, read
from svitc.frontends.checkpoint.recognize_spikingjelly import assumed_input, recognize, shape_note
from svitc.frontends.checkpoint.wrappers import unwrapped
from svitc.frontends.compat.import_hooks import compatible
from svitc.frontends.published import Layout
from svitc.ir.graph import InputSpec
from svitc.support.cpu_only import on_cpu
from svitc.support.limits import check_claim
from svitc.support.types import JsonDict, JsonMapping

IMAGE_ARGUMENTS = (("img_size_h", "img_size_w"), ("img_size", "img_size"), ("image_size", "image_size"))


@dataclass(frozen=True)
class LoadOptions:
    """What the user says of a checkpoint; it overrides what the file says.

    Attributes:
        arch: ``module:factory`` or ``path/to/file.py:factory``: code that the user vouches for.
        arch_args: arguments of the factory, JSON values.
        input_shape: ``(C, H, W)`` for images, ``(T, C, H, W)`` for event frames.
        time_steps: how often a static image is shown.
        trust_pickle: unpickle a whole model, which runs code from the file.
        ema: take the averaged weights that a training script saved beside the last ones.
        rewrite_model: let ``capture`` mend what is wrong in the model's own code, where it offers to.
    """

    arch: str | None = None
    arch_args: Mapping[str, Any] | None = None
    input_shape: tuple[int, ...] | None = None
    time_steps: int | None = None
    trust_pickle: bool = False
    ema: bool = False
    rewrite_model: bool = False


@dataclass
class Loaded:
    """A model in eval mode with its weights, on the CPU in float32.

    Attributes:
        model: the model.
        input: the shape of its input, without the batch dimension.
        info: JSON values: ``arch``, ``arch_args``, ``assumptions`` (sentences), ``normalize``, ``classes``,
            ``num_classes``, ``metrics``, ``format`` (self-describing, state_dict or pickle), ``sha256``.
        file: the model file that defines the model's class, or None.
    """

    model: nn.Module
    input: InputSpec
    info: JsonDict
    file: Path | None = None

    def callable_within(self) -> AbstractContextManager[object]:
        """Return the context in which the model can be called: its forward may import a missing package."""
        return on_cpu() if self.file is None else compatible(self.file)


@dataclass
class _Draft:
    """A model that is to be built.

    Attributes:
        arch: ``module:factory`` or ``path/to/file.py:factory``.
        args: arguments of the factory.
        shape: shape of the input, None where neither the file nor the user gives it.
        notes: assumptions, name of the argument -> a sentence for the user.
    """

    arch: str
    args: JsonDict
    shape: tuple[int, ...] | None
    notes: dict[str, str] = field(default_factory=dict)


def load_model(path: Path | str, options: LoadOptions | None = None) -> Loaded:
    """Load the model of a checkpoint: a self-describing file, a state_dict, or a pickle that the user trusts.

    Args:
        path: the checkpoint.
        options: what the user says about the checkpoint.

    Raises:
        InputError: not a checkpoint, a damaged one, weights that do not fit, or an ``arch`` that a file may not name.
        UsageError: options that make no sense, or a factory that cannot be imported or called.
        UnsupportedError: weights of a family that svitc does not recognize, without ``arch``.
    """
    path, options = Path(path), options or LoadOptions()
    _check_options(options)
    contents, digest = read(path, options.trust_pickle, options.ema)
    source = path.name
    described = contents.arch is not None
    if contents.module is not None:
        loaded = _load_pickled(contents, options, source)
    else:
        draft = _draft(contents, options, source)
        if spikingjelly_families.known_factory(draft.arch):
            loaded = _load_spikingjelly(draft, contents, options, source)
        elif recognize_published.known_factory(draft.arch):
            loaded = _load_published(draft, contents, options, source)
        else:
            loaded = _load_custom(draft, contents, options, source)
    kind = "pickle" if contents.module is not None else "self-describing" if described else "state_dict"
    _check_input_size(loaded, source)
    loaded.info["assumptions"] += contents.notes
    loaded.info |= {"metrics": metrics(contents.metrics), "format": kind, "sha256": digest}
    loaded.info |= labels(contents, loaded.info["num_classes"], loaded.input.shape[-3], source)
    return loaded


def _check_input_size(loaded: Loaded, source: str) -> None:
    """Check how much one input takes, in all time steps: no weight bounds their number. Raises InputError."""
    steps = loaded.info["arch_args"].get("T", 1)
    if type(steps) is int and not loaded.input.events:
        size = "x".join(map(str, loaded.input.shape))
        check_claim(4 * steps * math.prod(loaded.input.shape), f"{source}: an image {size} in {steps:,} time steps (T)")


def _check_options(options: LoadOptions) -> None:
    if options.arch_args is not None:
        if not isinstance(options.arch_args, Mapping):
            raise UsageError(
                "--arch-args is not a JSON object", hint="For example --arch-args '{\"embed_dims\": 384}'."
            )
        check_json(options.arch_args, "--arch-args", UsageError)
    if options.time_steps is not None and options.time_steps < 1:
        raise UsageError(f"--time-steps {options.time_steps} is not a positive number")
    if options.input_shape is not None:
        _shape(options.input_shape, "--input-shape", UsageError)


def _shape(value: object, what: str, blame: type[SvitcError]) -> tuple[int, ...] | None:
    """Check the shape of an input, without the batch dimension, and return it as a tuple; None stays None."""
    if value is None:
        return None
    if (
        not isinstance(value, list | tuple)
        or len(value) not in (3, 4)
        or any(type(n) is not int or n < 1 for n in value)
    ):
        raise blame(
            f"{what} {value!r} is not the shape of an input",
            hint="Give C,H,W for images, such as 3,224,224, or T,C,H,W for event frames.",
        )
    return tuple(value)


def _draft(contents: Contents, options: LoadOptions, source: str) -> _Draft:
    """Combine what the file and the user say; where they differ, the user's word counts."""
    user_args = dict(options.arch_args or {})
    shape = options.input_shape or _shape(contents.input_shape, f"{source}: input_shape", InputError)
    if options.arch is None and contents.arch is None:
        return _recognized(contents, options, shape, user_args, source)
    named = spikingjelly_families.known_factory(contents.arch or "") or recognize_published.known_factory(contents.arch)
    if options.arch is None and named is None:
        raise InputError(
            f"{source} names the factory {contents.arch!r}, which is not one that a file may name: only "
            f"SpikingJelly's {', '.join(spikingjelly_families.KNOWN)}, or one of svitc's own definitions",
            hint="A file must not choose what code runs. Name the factory of your own model with --arch.",
        )
    file_args: JsonDict = {}
    if contents.arch_args is not None:
        file_args = check_json_object(contents.arch_args, f"{source}: arch_args")
    arch = options.arch or contents.arch
    assert arch is not None
    factory = spikingjelly_families.known_factory(arch)
    file_factory = spikingjelly_families.known_factory(contents.arch or "")
    if arch != contents.arch and (factory is None or factory != file_factory):
        file_args = {}  # arguments of another factory
    shape, steps = _reconcile_time(options, shape, file_args, user_args, source)
    draft = _Draft(f"{spikingjelly_families.HOME}:{factory}" if factory else arch, file_args | user_args, shape)
    if steps is not None and (factory or _takes_steps(arch)):
        if len(shape or ()) != 4 and file_args.get("T", steps) != steps:
            draft.notes["T"] = f"T = {steps}, as asked; the checkpoint was made for T = {file_args['T']}"
        draft.args["T"] = steps
    return draft


def _recognized(
    contents: Contents,
    options: LoadOptions,
    shape: tuple[int, ...] | None,
    user_args: JsonDict,
    source: str,
) -> _Draft:
    """Recognize the model of a bare state dict; what the user says is not listed as an assumption."""
    shape, steps = _reconcile_time(options, shape, {}, user_args, source)
    with prefix_errors(source):
        recognized = recognize_published.recognize_within(contents, shape, steps)
    if isinstance(recognized, Layout):
        notes = {key: note for key, note in recognized.assumptions.items() if key not in user_args}
        return _Draft(recognized.arch, recognized.arguments | user_args, recognized.input_shape, notes)
    steps = steps or contents.time_steps
    image = _image_size(user_args)
    if shape is None and image:
        shape = (recognized.arch_args["in_channels"], *image)
        recognized = recognize(contents.state, input_shape=shape, time_steps=steps)
    settled = user_args.keys() | ({"neurons"} if user_args.keys() & set(neuron_json.ARGUMENTS) else set())
    notes = {key: note for key, note in recognized.assumptions.items() if key not in settled}
    return _Draft(recognized.arch, recognized.arch_args | user_args, recognized.input_shape, notes)


def _image_size(args: JsonMapping) -> tuple[int, int] | None:
    """Return height and width of the image from a factory's arguments, or None where they do not have them."""
    for height_name, width_name in IMAGE_ARGUMENTS:
        height, width = args.get(height_name), args.get(width_name)
        if type(height) is int and type(width) is int and height > 0 and width > 0:
            return height, width
    return None


def _reconcile_time(
    options: LoadOptions,
    shape: tuple[int, ...] | None,
    file_args: JsonMapping,
    user_args: JsonMapping,
    source: str,
) -> tuple[tuple[int, ...] | None, int | None]:
    """Return the shape of the input and the number of time steps, each None where it is not given.

    Where the file and the user differ, the user's word counts.

    Raises:
        UsageError: two options of the user differ.
        InputError: two entries of the file differ, and the user does not say which is right.
    """
    in_args = next((user_args[name] for name in TIME_NAMES if type(user_args.get(name)) is int), None)
    by_option = {"--time-steps": options.time_steps, "--arch-args": in_args}
    if options.input_shape is not None and len(options.input_shape) == 4:
        by_option["--input-shape"] = options.input_shape[0]
    by_option = {key: value for key, value in by_option.items() if value is not None}
    if len(set(by_option.values())) > 1:
        values = ", but ".join(f"{value} in {key}" for key, value in by_option.items())
        raise UsageError(f"the number of time steps is {values}")
    steps = next(iter(by_option.values()), None)
    if shape is not None and len(shape) == 4:
        if steps is None and file_args.get("T", shape[0]) != shape[0]:
            raise InputError(
                f"{source}: arch_args says T = {file_args['T']}, but input_shape has {shape[0]} time steps",
                hint="Give the right number with --time-steps.",
            )
        steps = steps or shape[0]
        shape = (steps, *shape[1:])
    return shape, steps


def _load_spikingjelly(draft: _Draft, contents: Contents, options: LoadOptions, source: str) -> Loaded:
    """Build one of SpikingJelly's models and load the weights into it."""
    factory = draft.arch.rpartition(":")[2]
    blame = UsageError if options.arch or options.arch_args else InputError
    with prefix_errors(source, blame is InputError):
        model = model_factory.build_spikingjelly(factory, draft.args, blame, len(contents.state))
    notes = _fit(model, contents, source, factory)
    family = spikingjelly_families.family_of(model)
    channels, classes = contents.state[family.stem].shape[1], contents.state["head.weight"].shape[0]
    shape = draft.shape
    if shape is None:
        shape, why = assumed_input(channels, classes, family)
        if family.name == "Spikformer":  # the only class that has the image size as an argument
            shape, why = (channels, *model.patch_embed.image_size), "the image size of its factory"  # type: ignore
        if len(shape) == 4:
            shape = (draft.args.get("T", shape[0]), *shape[1:])
        draft.notes["input_shape"] = shape_note(shape, why)
    _check_channels(shape, channels, family.stem, contents, options, source)
    info = _info(draft.arch, draft.args, [*draft.notes.values(), *notes], classes)
    return Loaded(model.eval(), InputSpec(shape), info)


def _load_published(draft: _Draft, contents: Contents, options: LoadOptions, source: str) -> Loaded:
    """Build one of svitc's definitions of published models and load the weights into it."""
    factory = draft.arch.rpartition(":")[2]
    if options.time_steps and not _takes_steps(draft.arch) and len(draft.shape or ()) != 4:
        raise UsageError(f"{factory} has no time steps: its spikes are whole numbers, counted in one step")
    blame = UsageError if options.arch or options.arch_args else InputError
    with prefix_errors(source, blame is InputError):
        model = model_factory.build_published(factory, draft.args, blame, len(contents.state))
    notes = _fit(model, contents, source, factory)
    first = recognize_published.stem(model)
    channels, classes = contents.state[first].shape[1], contents.state["head.weight"].shape[0]
    shape = draft.shape
    if shape is None:
        raise _no_shape_error(source, channels)
    _check_channels(shape, channels, first, contents, options, source)
    info = _info(draft.arch, draft.args, [*draft.notes.values(), *notes], classes)
    return Loaded(model.eval(), InputSpec(shape), info)


def _fit(model: nn.Module, contents: Contents, source: str, name: str, hint: str | None = None) -> list[str]:
    """Load a checkpoint's weights into a model, whose own names ``contents.state`` gets; return assumptions.

    Args:
        name: name of the model, for messages.
        hint: what to do where the weights do not fit, besides what is known of them.
    """
    try:
        state, notes = weights.align(model.state_dict(), contents.state, source)
        contents.state = dict(state)
        return notes + weights.fit(model, contents.state, source, name)
    except InputError as error:
        error.hint = error.hint or " ".join(filter(None, (recognize_published.summary(contents), hint))) or None
        raise


def _takes_steps(arch: str) -> bool:
    """Tell whether a published factory takes T; the neurons of ESpikeFormer have no time steps."""
    return recognize_published.known_factory(arch) not in (None, "ESpikeFormer")


def _check_channels(
    shape: tuple[int, ...], channels: int, stem: str, contents: Contents, options: LoadOptions, source: str
) -> None:
    """Raise an error where the weights take another number of input channels than ``shape`` has."""
    if shape[-3] == channels:
        return
    corrected = ",".join(map(str, (*shape[:-3], channels, *shape[-2:])))
    raise (UsageError if options.input_shape else InputError)(
        f"the input shape {','.join(map(str, shape))} does not fit {source}, whose weights take "
        f"{channels} channels ({stem} is {list(contents.state[stem].shape)})",
        hint=f"Give --input-shape {corrected}.",
    )


def _load_custom(draft: _Draft, contents: Contents, options: LoadOptions, source: str) -> Loaded:
    """Build a model from the user's own code and load the weights into it."""
    steps = options.time_steps if draft.shape is None or len(draft.shape) == 3 else None
    is_static = draft.shape is None or len(draft.shape) == 3
    saved_steps, saved_options = (contents.time_steps, contents.options) if is_static else (None, {})
    model, arguments = model_factory.build_custom(draft.arch, draft.args, steps, saved_steps, saved_options)
    model = model.float().eval()
    check = "Check --arch-args, and that the weights were trained with this code."
    notes = _fit(model, contents, source, draft.arch.rpartition(":")[2], check)
    shape = draft.shape
    if shape is None:
        image, channels = _image_size(arguments), _first_channels(model)
        if image is None or channels is None:
            raise _no_shape_error(draft.arch, channels)
        shape = (channels, *image)
        draft.notes["input_shape"] = shape_note(shape, "the factory's image size")
    place = draft.arch.rpartition(":")[0]
    info = _info(draft.arch, draft.args, [*draft.notes.values(), *notes])
    return Loaded(model, InputSpec(shape), info, Path(place) if place.endswith(".py") else None)


def _first_channels(model: nn.Module) -> int | None:
    """Return the input channels of a model's first convolution, or None where it has none."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)


def _no_shape_error(what: str, channels: int | None) -> UsageError:
    """Return the error for an input shape that neither the file nor the user gives."""
    shape, _ = assumed_input(channels or 3, 1000)
    text = ",".join(map(str, shape))
    why = f"its first convolution takes {channels} channels" if channels else "as for ImageNet"
    return UsageError(
        f"nothing says what shape of input {what} takes",
        hint=f"Give --input-shape C,H,W, such as {text} ({why}).",
    )


def _load_pickled(contents: Contents, options: LoadOptions, source: str) -> Loaded:
    """Take a complete model from a pickle that the user trusts."""
    assert contents.module is not None
    model = unwrapped(contents.module)
    if options.arch or options.arch_args:
        raise UsageError(f"{source} holds a whole model: --arch and --arch-args have no effect")
    model = model.float().eval()
    weights.fit(model, {k: v.clone() for k, v in model.state_dict().items()}, source, type(model).__name__)
    shape = options.input_shape or _shape(contents.input_shape, f"{source}: input_shape", InputError)
    shape, steps = _reconcile_time(options, shape, {}, {}, source)
    if steps is not None and (shape is None or len(shape) == 3):
        name = next((n for n in TIME_NAMES if type(getattr(model, n, None)) is int), None)
        if name is None:
            raise UsageError(f"the model in {source} has no number of time steps that --time-steps could set")
        setattr(model, name, steps)
    if shape is None:
        raise _no_shape_error(source, _first_channels(model))
    cls = type(model)
    return Loaded(model, InputSpec(shape), _info(f"{cls.__module__}:{cls.__qualname__}", {}, []))


def _info(arch: str, args: JsonMapping, notes: list[str], classes: int | None = None) -> JsonDict:
    return {"arch": arch, "arch_args": dict(args), "assumptions": notes, "num_classes": classes}
