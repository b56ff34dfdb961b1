"""What a user names on the command line, as a model with its weights and the shape of its input."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from svitc.errors import InputError, SvitcError, UsageError
from svitc.frontends.checkpoint import model_factory, neuron_json, recognize_published, spikingjelly_families, weights
from svitc.frontends.checkpoint.model_factory import check_json
from svitc.frontends.checkpoint.reader import TIME_NAMES, Contents, naming, read
from svitc.frontends.checkpoint.recognize_spikingjelly import assumed_input, recognize, shape_note
from svitc.frontends.compat.import_hooks import compatible
from svitc.frontends.published import Layout
from svitc.ir.graph import InputSpec

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
        info: JSON values: ``arch``, ``arch_args``, ``assumptions`` (sentences), ``normalize``, ``classes``,
            ``num_classes``, ``metrics``, ``format`` (self-describing, state_dict or pickle), ``sha256``.
        file: the user's model file that the model's class is from, or None.
    """

    model: nn.Module
    input: InputSpec
    info: dict[str, Any]
    file: Path | None = None

    def callable_within(self) -> AbstractContextManager[Any]:
        """Where to call the model: its forward may import what only stands in for a package."""
        return nullcontext() if self.file is None else compatible(self.file)


@dataclass
class _Draft:
    """What is to be built.

    Attributes:
        shape: of the input, None where nobody says.
        notes: what is assumed: name -> a sentence for the user.
    """

    arch: str
    args: dict[str, Any]
    shape: tuple[int, ...] | None
    notes: dict[str, str] = field(default_factory=dict)


def load_model(path: Path | str, options: LoadOptions | None = None) -> Loaded:
    """Load a checkpoint as a model: self-describing, a bare state_dict, the user's own, or a trusted pickle.

    Raises:
        InputError: not a checkpoint, damaged, weights that do not fit, an ``arch`` that a file may not name.
        UsageError: options that make no sense, a factory that cannot be imported or called.
        UnsupportedError: weights of a family that svitc does not know, without ``arch``.
    """
    path, options = Path(path), options or LoadOptions()
    _check_options(options)
    contents, digest = read(path, options.trust_pickle, options.ema)
    source = path.name
    described = contents.arch is not None
    if contents.module is not None:
        loaded = _pickled(contents, options, source)
    else:
        draft = _draft(contents, options, source)
        known = spikingjelly_families.known_factory(draft.arch)
        official = recognize_published.known_factory(draft.arch)
        loaded = (_known if known else _official if official else _own)(draft, contents, options, source)
    kind = "pickle" if contents.module is not None else "self-describing" if described else "state_dict"
    loaded.info["assumptions"] += contents.notes
    loaded.info |= {"metrics": _metrics(contents.metrics), "format": kind, "sha256": digest}
    _check_labels(loaded, contents, source)
    return loaded


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


def _shape(value: Any, what: str, blame: type[SvitcError]) -> tuple[int, ...] | None:
    """A shape without batch, checked; None stays None."""
    if value is None:
        return None
    listed = isinstance(value, list | tuple) and len(value) in (3, 4)
    if not listed or any(type(n) is not int or n < 1 for n in value):
        raise blame(
            f"{what} {value!r} is not the shape of an input",
            hint="It is C,H,W for images, such as 3,224,224, or T,C,H,W for event frames.",
        )
    return tuple(value)


def _draft(contents: Contents, options: LoadOptions, source: str) -> _Draft:
    """Put together what the file and the user say; the user wins."""
    asked = dict(options.arch_args or {})
    shape = options.input_shape or _shape(contents.input_shape, f"{source}: input_shape", InputError)
    if options.arch is None and contents.arch is None:
        return _recognized(contents, options, shape, asked, source)
    named = spikingjelly_families.known_factory(contents.arch or "") or recognize_published.known_factory(contents.arch)
    if options.arch is None and named is None:
        raise InputError(
            f"{source} names the factory {contents.arch!r}, which is not one that a file may name: only "
            f"SpikingJelly's {', '.join(spikingjelly_families.KNOWN)}, or one of svitc's own definitions",
            hint="A file must not choose what code runs. Name the factory of your own model with --arch.",
        )
    told = {} if contents.arch_args is None else check_json(contents.arch_args, f"{source}: arch_args")
    if not isinstance(told, dict):
        raise InputError(f"{source}: arch_args is not an object of names and values")
    arch = options.arch or contents.arch
    assert arch is not None
    known = spikingjelly_families.known_factory(arch)
    if arch != contents.arch and (known is None or known != spikingjelly_families.known_factory(contents.arch or "")):
        told = {}  # arguments of another factory
    shape, steps = _reconcile_time(options, shape, told, asked, source)
    draft = _Draft(f"{spikingjelly_families.HOME}:{known}" if known else arch, told | asked, shape)
    if steps is not None and (known or _takes_steps(arch)):
        if len(shape or ()) != 4 and told.get("T", steps) != steps:
            draft.notes["T"] = f"T = {steps}, as asked; the checkpoint was made for T = {told['T']}"
        draft.args["T"] = steps
    return draft


def _recognized(
    contents: Contents,
    options: LoadOptions,
    shape: tuple[int, ...] | None,
    asked: dict[str, Any],
    source: str,
) -> _Draft:
    """What a bare state dict is of; what the user says is no longer an assumption."""
    shape, steps = _reconcile_time(options, shape, {}, asked, source)
    with naming(source):
        found = recognize_published.recognize_any(contents, shape, steps)
    if isinstance(found, Layout):
        notes = {key: note for key, note in found.assumptions.items() if key not in asked}
        return _Draft(found.arch, found.arguments | asked, found.input_shape, notes)
    steps = steps or contents.time_steps
    image = _image_size(asked)
    if shape is None and image:
        found = recognize(contents.state, input_shape=(found.arch_args["in_channels"], *image), time_steps=steps)
    said = asked.keys() | ({"neurons"} if asked.keys() & set(neuron_json.ARGUMENTS) else set())
    notes = {key: note for key, note in found.assumptions.items() if key not in said}
    return _Draft(found.arch, found.arch_args | asked, found.input_shape, notes)


def _image_size(args: Mapping[str, Any]) -> tuple[int, int] | None:
    for high, wide in IMAGE_ARGUMENTS:
        pair = args.get(high), args.get(wide)
        if all(type(n) is int and n > 0 for n in pair):
            return pair  # type: ignore[return-value]
    return None


def _reconcile_time(
    options: LoadOptions,
    shape: tuple[int, ...] | None,
    told: Mapping[str, Any],
    asked: Mapping[str, Any],
    source: str,
) -> tuple[tuple[int, ...] | None, int | None]:
    """The input's shape and the number of time steps, where somebody says; the user wins.

    Raises:
        UsageError: the user says two things.
        InputError: the file says two things, and the user nothing.
    """
    in_args = next((asked[name] for name in TIME_NAMES if type(asked.get(name)) is int), None)
    sayings = {"--time-steps": options.time_steps, "--arch-args": in_args}
    if options.input_shape is not None and len(options.input_shape) == 4:
        sayings["--input-shape"] = options.input_shape[0]
    sayings = {key: value for key, value in sayings.items() if value is not None}
    if len(set(sayings.values())) > 1:
        said = ", but ".join(f"{value} in {key}" for key, value in sayings.items())
        raise UsageError(f"the number of time steps is {said}")
    steps = next(iter(sayings.values()), None)
    if shape is not None and len(shape) == 4:
        if steps is None and told.get("T", shape[0]) != shape[0]:
            raise InputError(
                f"{source}: arch_args says T = {told['T']}, but input_shape has {shape[0]} time steps",
                hint="Say which with --time-steps.",
            )
        steps = steps or shape[0]
        shape = (steps, *shape[1:])
    return shape, steps


def _known(draft: _Draft, contents: Contents, options: LoadOptions, source: str) -> Loaded:
    """A model of SpikingJelly's, on the meta device until its weights are there."""
    factory = draft.arch.rpartition(":")[2]
    blame = UsageError if options.arch or options.arch_args else InputError
    with naming(source, blame is InputError):
        model = model_factory.build_known(factory, draft.args, blame, len(contents.state))
    try:
        notes = weights.fit(model, contents.state, source, factory)
    except InputError as error:
        error.hint = error.hint or recognize_published.summary(contents)
        raise
    family = spikingjelly_families.family_of(model)
    channels, classes = contents.state[family.stem].shape[1], contents.state["head.weight"].shape[0]
    shape = draft.shape
    if shape is None:
        shape, why = assumed_input(channels, classes, family)
        if family.name == "Spikformer":  # the one class that is told its image's size
            shape, why = (channels, *model.patch_embed.image_size), "the image size of its factory"  # type: ignore
        if len(shape) == 4:
            shape = (draft.args.get("T", shape[0]), *shape[1:])
        draft.notes["input_shape"] = shape_note(shape, why)
    _check_channels(shape, channels, family.stem, contents, options, source)
    info = _info(draft.arch, draft.args, [*draft.notes.values(), *notes], classes)
    return Loaded(model.eval(), InputSpec(shape), info)


def _official(draft: _Draft, contents: Contents, options: LoadOptions, source: str) -> Loaded:
    """A published model, of our own definitions."""
    factory = draft.arch.rpartition(":")[2]
    if options.time_steps and not _takes_steps(draft.arch) and len(draft.shape or ()) != 4:
        raise UsageError(f"{factory} has no time steps: its spikes are whole numbers, counted in one step")
    blame = UsageError if options.arch or options.arch_args else InputError
    with naming(source, blame is InputError):
        model = model_factory.build_official(factory, draft.args, blame, len(contents.state))
    try:
        notes = weights.fit(model, contents.state, source, factory)
    except InputError as error:
        error.hint = error.hint or recognize_published.summary(contents)
        raise
    first = recognize_published.stem(model)
    channels, classes = contents.state[first].shape[1], contents.state["head.weight"].shape[0]
    shape = draft.shape
    if shape is None:
        raise _shape_wanted(source, channels)
    _check_channels(shape, channels, first, contents, options, source)
    info = _info(draft.arch, draft.args, [*draft.notes.values(), *notes], classes)
    return Loaded(model.eval(), InputSpec(shape), info)


def _takes_steps(arch: str) -> bool:
    return recognize_published.known_factory(arch) not in (None, "ESpikeFormer")  # its neurons have no time


def _check_channels(
    shape: tuple[int, ...], channels: int, stem: str, contents: Contents, options: LoadOptions, source: str
) -> None:
    if shape[-3] == channels:
        return
    right = ",".join(map(str, (*shape[:-3], channels, *shape[-2:])))
    raise (UsageError if options.input_shape else InputError)(
        f"the input shape {','.join(map(str, shape))} does not fit {source}, whose weights take "
        f"{channels} channels ({stem} is {list(contents.state[stem].shape)})",
        hint=f"Give --input-shape {right}.",
    )


def _own(draft: _Draft, contents: Contents, options: LoadOptions, source: str) -> Loaded:
    """A model of the user's own code."""
    steps = options.time_steps if draft.shape is None or len(draft.shape) == 3 else None
    saved = contents.time_steps if draft.shape is None or len(draft.shape) == 3 else None
    model, arguments = model_factory.build_own(draft.arch, draft.args, steps, saved)
    model = model.float().eval()
    try:
        notes = weights.fit(model, contents.state, source, draft.arch.rpartition(":")[2])
    except InputError as error:
        check = "Check --arch-args, and that this is the code that the weights come from."
        error.hint = error.hint or " ".join(filter(None, (recognize_published.summary(contents), check)))
        raise
    shape = draft.shape
    if shape is None:
        image, channels = _image_size(arguments), _first_channels(model)
        if image is None or channels is None:
            raise _shape_wanted(draft.arch, channels)
        shape = (channels, *image)
        draft.notes["input_shape"] = shape_note(shape, "the factory's image size")
    place = draft.arch.rpartition(":")[0]
    info = _info(draft.arch, draft.args, [*draft.notes.values(), *notes])
    return Loaded(model, InputSpec(shape), info, Path(place) if place.endswith(".py") else None)


def _first_channels(model: nn.Module) -> int | None:
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)


def _shape_wanted(what: str, channels: int | None) -> UsageError:
    shape, _ = assumed_input(channels or 3, 1000)
    text = ",".join(map(str, shape))
    why = f"its first convolution takes {channels} channels" if channels else "ImageNet's"
    return UsageError(
        f"nothing says what shape of input {what} takes",
        hint=f"Give --input-shape C,H,W, such as {text} ({why}).",
    )


def _pickled(contents: Contents, options: LoadOptions, source: str) -> Loaded:
    """A whole model out of a pickle that the user trusts."""
    model = contents.module
    assert model is not None
    if options.arch or options.arch_args:
        raise UsageError(f"{source} holds a whole model: --arch and --arch-args have no use")
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
        raise _shape_wanted(source, _first_channels(model))
    kind = type(model)
    return Loaded(model, InputSpec(shape), _info(f"{kind.__module__}:{kind.__qualname__}", {}, []))


def _info(arch: str, args: Mapping[str, Any], notes: list[str], classes: int | None = None) -> dict[str, Any]:
    return {"arch": arch, "arch_args": dict(args), "assumptions": notes, "num_classes": classes}


def _metrics(value: Any) -> Any:
    """What the file says of its accuracy; for information only, so that what is not JSON is left out."""
    try:
        return check_json(value, "metrics")
    except InputError:
        return None


def _check_labels(loaded: Loaded, contents: Contents, source: str) -> None:
    """Add classes and normalisation to the info, where they fit the model. Raises InputError."""
    classes, count = contents.classes, loaded.info["num_classes"]
    if classes is not None:
        if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
            raise InputError(f"{source}: classes is not a list of names")
        if len(set(classes)) != len(classes) or (count is not None and len(classes) != count):
            raise InputError(f"{source}: classes has {len(set(classes))} names, but the head has {count}")
        loaded.info["num_classes"] = len(classes)
    normalize, channels = contents.normalize, loaded.input.shape[-3]
    if normalize is not None:
        normalize = check_json(normalize, f"{source}: normalize")
        good = isinstance(normalize, dict) and all(
            isinstance(normalize.get(key), list)
            and len(normalize[key]) == channels
            and all(isinstance(x, int | float) and not isinstance(x, bool) for x in normalize[key])
            for key in ("mean", "std")
        )
        if not good or min(normalize["std"]) <= 0:
            raise InputError(
                f'{source}: normalize is not {{"mean": […], "std": […]}} of {channels} numbers, std above 0'
            )
    scaling = {"resize": contents.resize, "crop_pct": contents.crop_pct}  # load_data looks whether they make sense
    loaded.info |= {key: value for key, value in scaling.items() if value is not None}
    loaded.info |= {"normalize": normalize, "classes": None if classes is None else list(classes)}
