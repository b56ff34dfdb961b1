"""Building of a model from ``module:factory`` and arguments.

A file may name only the factories of a closed table; the user may name any code.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import re
import traceback
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import nn

from svitc.errors import InputError, SvitcError, UnsupportedError, UsageError
from svitc.frontends import published
from svitc.frontends.checkpoint import neuron_json, spikingjelly_families
from svitc.frontends.checkpoint.reader import AMBIGUOUS, TIME_NAMES
from svitc.frontends.compat.import_hooks import find_factory
from svitc.support.cpu_only import on_cpu
from svitc.support.types import Json, JsonDict, JsonMapping
from svitc.support.user_code import importable

STAGED = ("MetaSpikeFormer", "ESpikeFormer")  # factories that take a width for each stage
ARCH_FORM = "It is module:factory, such as my_models.vit:build, or path/to/file.py:factory."
Factory = Callable[..., object]  # code of the user, which may return anything
Model = TypeVar("Model")


def check_json(value: object, what: str, blame: type[SvitcError] = InputError) -> Json:
    """Check that a value is plain JSON, and return it with tuples as lists.

    Args:
        what: name of the value, for messages.
        blame: class of the error.

    Raises:
        SvitcError: of class ``blame``: a tensor, NaN, a key that is not a string, a list that contains itself.
    """
    try:
        return _plain(value, what, blame)
    except RecursionError as error:
        raise blame(f"{what} is nested too deeply") from error


def check_json_object(value: object, what: str, blame: type[SvitcError] = InputError) -> JsonDict:
    """Check that a value is a JSON object, and return it, as ``check_json`` does."""
    result = check_json(value, what, blame)
    if not isinstance(result, dict):
        raise blame(f"{what} is not an object of names and values")
    return result


def _plain(value: object, what: str, blame: type[SvitcError]) -> Json:
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, what, blame) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{what}.{key}", blame) for key, item in value.items()}
    raise blame(f"{what} is not a plain JSON value: {value!r:.80}")


def build_spikingjelly(factory: str, args: JsonMapping, blame: type[SvitcError], tensors: int) -> nn.Module:
    """Build one of SpikingJelly's models on the meta device.

    Args:
        factory: a name of ``spikingjelly_families.KNOWN``.
        args: arguments of the factory, JSON values.
        blame: class of the error where the arguments are wrong: ``UsageError`` if they come from the user,
            ``InputError`` if they come from the file.
        tensors: number of tensors in the file; a model with more blocks is refused before it is built.

    Raises:
        SvitcError: of class ``blame``: the factory does not accept the arguments.
    """
    call = getattr(spikingjelly_families.models, factory)
    accepted = [*_parameters(call), *neuron_json.ARGUMENTS]
    _check_arguments(factory, call, accepted, args, blame)
    _check_depth(factory, args, blame, tensors)
    return _call(factory, call, args, blame, lambda: spikingjelly_families.build(factory, args))


def build_published(factory: str, args: JsonMapping, blame: type[SvitcError], tensors: int) -> nn.Module:
    """Build one of svitc's definitions of published models on the meta device; see ``build_spikingjelly``."""
    call = published.FACTORIES[factory]

    def build() -> nn.Module:
        with torch.device("meta"):
            return call(**args)

    _check_arguments(factory, call, [*_parameters(call)], args, blame)
    _check_depth(factory, args, blame, tensors)
    return _call(factory, call, args, blame, build)


def build_custom(
    arch: str,
    args: JsonMapping,
    time_steps: int | None,
    saved_steps: int | None = None,
    saved_options: JsonMapping | None = None,
) -> tuple[nn.Module, JsonDict]:
    """Build a model from the user's own code: an importable module, or a model file (read with ``compat``).

    Args:
        arch: ``module:factory`` or ``path/to/file.py:factory``.
        args: arguments of the factory.
        time_steps: number of time steps that the user asks for; an error if the factory takes none.
        saved_steps: number of time steps in the options of the checkpoint; ignored if the factory takes none.
        saved_options: options of the checkpoint; of these, ``step`` is a number of time steps if the factory takes one.

    Returns:
        The model, and the named arguments of the factory, defaults included.

    Raises:
        UsageError: there is no such module or factory, an import fails, or the arguments do not fit.
        UnsupportedError: the file uses a missing package, and not only its names.
    """
    place, _, name = arch.rpartition(":")
    if not place or not name:
        raise UsageError(f"--arch {arch!r} does not name a factory", hint=ARCH_FORM)
    factory: Factory
    with importable(Path.cwd()), on_cpu():
        if place.endswith(".py"):
            factory = find_factory(Path(place), name, UsageError)
            original = getattr(factory, "__wrapped__", factory)
        else:
            factory = original = _factory(_import(place), name, place)
        if isinstance(original, nn.Module):
            if args or time_steps is not None:
                raise UsageError(f"{arch} is a model, not a factory: it takes no arguments")
            return original, {}
        if saved_steps is None and AMBIGUOUS in _parameters(factory):
            saved = (saved_options or {}).get(AMBIGUOUS)
            saved_steps = saved if type(saved) is int and saved > 0 else None
        model: object = None
        if time_steps is not None:
            model, args = _with_time_steps(name, factory, args, time_steps)
        elif saved_steps is not None and not any(key in args for key in TIME_NAMES):
            with contextlib.suppress(UsageError):  # if something else is wrong, the call below raises it again
                model, args = _with_time_steps(name, factory, args, saved_steps)
        if model is None:
            model = _call(name, factory, args, UsageError, lambda: factory(**args))
    if not isinstance(model, nn.Module):
        raise UsageError(f"{arch} returned a {type(model).__name__}, not a torch.nn.Module")
    return model, _all_arguments(factory, args)


def _check_arguments(
    factory: str, call: Factory, accepted: list[str], args: JsonMapping, blame: type[SvitcError]
) -> None:
    """Check sizes and names of arguments before a factory is called with them."""
    for name in ("depths", "embed_dims", "T", "num_classes", "in_channels"):
        sizes = args.get(name, 1)
        listed = isinstance(sizes, list) and (name == "depths" or (factory in STAGED and name == "embed_dims"))
        for size in sizes if listed else [sizes]:
            if type(size) is not int or size < (0 if listed else 1):
                raise blame(f"argument {name} of {factory} must be a positive whole number, not {size!r}")
    unknown = [name for name in args if name not in accepted]
    if unknown:
        close = get_close_matches(unknown[0], accepted, 1)
        raise blame(
            f"{factory} takes no argument {unknown[0]}" + _did_you_mean(close),
            hint=f"Its signature is {factory}({_signature(call)}).",
        )


def _check_depth(factory: str, args: JsonMapping, blame: type[SvitcError], tensors: int) -> None:
    """Check that a model does not have more blocks than the file has tensors."""
    depths = args.get("depths", 1)
    if (sum(depths) if isinstance(depths, list) else depths) > tensors:
        raise blame(f"depths = {depths} of {factory} is more blocks than the file has tensors ({tensors})")


def _with_time_steps(name: str, factory: Factory, args: JsonMapping, steps: int) -> tuple[object, JsonMapping]:
    """Build a model with a number of time steps, under whichever name of ``TIME_NAMES`` its factory has for them.

    Returns:
        The model, and the arguments that the factory was called with.

    Raises:
        UsageError: the arguments say another number, or the model has no number of time steps.
    """
    other = next((key for key in TIME_NAMES if args.get(key, steps) != steps), None)
    if other is not None:
        raise UsageError(f"--time-steps says {steps}, and --arch-args says {other} = {args[other]}")
    parameters = _parameters(factory)
    named = [key for key in TIME_NAMES if key in parameters or key in args]
    has_kwargs = _has_kwargs(factory)  # then its signature does not list all names
    for key in named[:1] or (TIME_NAMES if has_kwargs else ()):
        candidate = {**args, key: steps}
        try:
            model = _call(name, factory, candidate, UsageError, functools.partial(factory, **candidate))
        except UsageError as error:
            if named or not isinstance(error.__cause__, TypeError):
                raise
            continue
        if named or _steps_of(model) == steps:  # a factory with **kwargs may ignore the argument
            return model, candidate
    if has_kwargs or inspect.isclass(inspect.unwrap(factory)):  # set the attribute, as some training scripts do
        model = _call(name, factory, args, UsageError, lambda: factory(**args))
        attribute = next((key for key in TIME_NAMES if type(getattr(model, key, None)) is int), None)
        if attribute is not None:
            setattr(model, attribute, steps)
            return model, args
    raise UsageError(
        f"{name} takes no number of time steps",
        hint=f"It takes {', '.join(parameters) or 'nothing'}; use --arch-args.",
    )


def _steps_of(model: object) -> int | None:
    """Return the number of time steps that a model has as an attribute, or None."""
    values = (getattr(model, key, None) for key in TIME_NAMES)
    return next((value for value in values if type(value) is int), None)


def _import(place: str) -> ModuleType:
    """Import a module that the user names. Raises UsageError, with file and line where there is one."""
    try:
        return importlib.import_module(place)
    except SvitcError:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{place}.".startswith(f"{error.name}."):
            raise UsageError(
                f"--arch: there is no module {error.name}",
                hint="svitc searched the current folder and PYTHONPATH; you can also give path/to/file.py:factory.",
            ) from error
        raise UsageError(
            f"--arch: {place} imports {error.name}, which is not installed",
            where=_raised_at(error),
            hint="Install it, or remove the import; path/to/file.py:factory replaces packages that old models import.",
        ) from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise UsageError(
            f"--arch: importing {place} failed: {type(error).__name__}: {error}", where=_raised_at(error)
        ) from error


def _factory(module: ModuleType, name: str, place: str) -> Factory:
    """Return a callable of a module. Raises UsageError, with the closest name, where there is none."""
    factory = getattr(module, name, None)
    if callable(factory):
        return factory
    public = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
    defined = [key for key, value in public.items() if getattr(value, "__module__", None) == module.__name__]
    names = defined or list(public)
    close = get_close_matches(name, names, 1)
    raise UsageError(
        f"--arch: {place} has no factory {name}" + (f"; the closest is {close[0]}" if close else ""),
        hint=f"It has {', '.join(names[:12])}." if names else "It defines no function and no class.",
    )


def _call(name: str, factory: Factory, args: JsonMapping, blame: type[SvitcError], build: Callable[[], Model]) -> Model:
    """Call ``build``, and turn errors of the factory into a ``blame`` that shows the factory's signature."""
    try:
        return build()
    except UnsupportedError:  # raised by a stand-in for a missing package
        raise
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        close = get_close_matches(unknown[1], _parameters(factory), 1) if unknown else []
        raise blame(
            f"{name} does not take these arguments: {error}" + _did_you_mean(close),
            hint=f"Its signature is {name}({_signature(factory)}).",
        ) from error
    except Exception as error:  # the factory's code may raise anything
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise blame(
            f"{name}({', '.join(f'{k}={v!r}' for k, v in args.items())}) failed: {text}",
            hint=f"Its signature is {name}({_signature(factory)}).",
        ) from error


def _did_you_mean(close: list[str]) -> str:
    return f"; did you mean {close[0]}?" if close else ""


def _parameters(factory: Factory) -> dict[str, inspect.Parameter]:
    """Return the parameters that can be given by name; none where the signature cannot be read."""
    try:
        named = inspect.signature(factory).parameters.items()
    except (TypeError, ValueError):
        return {}
    return {key: p for key, p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _signature(factory: Factory) -> str:
    """Return the parameters as text, with defaults but without types."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return "…"
    return ", ".join(str(p.replace(annotation=p.empty)).replace(" = ", "=") for p in parameters)


def _all_arguments(factory: Factory, args: JsonMapping) -> JsonDict:
    """Return the arguments, completed with the factory's defaults."""
    defaults = {key: p.default for key, p in _parameters(factory).items() if p.default is not p.empty}
    return {**defaults, **args}


def _has_kwargs(factory: Factory) -> bool:
    """Tell whether a factory takes arguments of any name."""
    try:
        return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return False


def _raised_at(error: BaseException) -> str | None:
    """Return ``file:line`` of the innermost frame outside this module and importlib, or None."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    user_frames = [f for f in frames if "importlib" not in f.filename]
    return f"{user_frames[-1].filename}:{user_frames[-1].lineno}" if user_frames else None
