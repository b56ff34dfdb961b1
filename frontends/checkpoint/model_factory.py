"""From ``module:factory`` and arguments to a model: a closed table for files, any code of the user's."""

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
from typing import Any

import torch
from torch import nn

from svitc.errors import InputError, SvitcError, UnsupportedError, UsageError
from svitc.frontends import published
from svitc.frontends.checkpoint import neuron_json, spikingjelly_families
from svitc.frontends.checkpoint.reader import TIME_NAMES
from svitc.frontends.compat.import_hooks import model_factory
from svitc.support.user_code import importable

STAGED = ("MetaSpikeFormer", "ESpikeFormer")  # take a width for each stage
FORM = "It is module:factory, such as my_models.vit:build, or path/to/file.py:factory."


def check_json(value: Any, what: str, blame: type[SvitcError] = InputError) -> Any:
    """A plain JSON value, tuples as lists.

    Raises:
        SvitcError: of kind ``blame``, anything else: a tensor, NaN, a key that is no text, a list in itself.
    """
    try:
        return _plain(value, what, blame)
    except RecursionError as error:
        raise blame(f"{what} is nested too deeply") from error


def _plain(value: Any, what: str, blame: type[SvitcError]) -> Any:
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, what, blame) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{what}.{key}", blame) for key, item in value.items()}
    raise blame(f"{what} is not a plain JSON value: {value!r:.80}")


def build_known(factory: str, args: Mapping[str, Any], blame: type[SvitcError], tensors: int) -> nn.Module:
    """One of SpikingJelly's models, on the meta device.

    Args:
        blame: kind of error where the arguments are wrong: the user's, or the file's.
        tensors: how many the file has; a model of more blocks is refused before it is built.
    """
    call = getattr(spikingjelly_families.models, factory)
    takes = [*_parameters(call), *neuron_json.ARGUMENTS]
    return _build_bounded(
        factory, call, takes, args, blame, tensors, lambda: spikingjelly_families.build(factory, args)
    )


def build_official(factory: str, args: Mapping[str, Any], blame: type[SvitcError], tensors: int) -> nn.Module:
    """A model of our own definitions of published ones, likewise."""
    call = published.FACTORIES[factory]

    def build() -> nn.Module:
        with torch.device("meta"):
            return call(**args)

    return _build_bounded(factory, call, [*_parameters(call)], args, blame, tensors, build)


def _build_bounded(
    factory: str,
    call: Callable[..., Any],
    takes: list[str],
    args: Mapping[str, Any],
    blame: type[SvitcError],
    tensors: int,
    build: Callable[[], nn.Module],
) -> nn.Module:
    for name in ("depths", "embed_dims", "T", "num_classes", "in_channels"):
        sizes = args.get(name, 1)
        listed = isinstance(sizes, list) and (name == "depths" or (factory in STAGED and name == "embed_dims"))
        for size in sizes if listed else [sizes]:
            if type(size) is not int or size < (0 if listed else 1):
                raise blame(f"argument {name} of {factory} must be a positive whole number, not {size!r}")
    depths = args.get("depths", 1)
    if (sum(depths) if isinstance(depths, list) else depths) > tensors:
        raise blame(f"depths = {depths} of {factory} is more blocks than the file has tensors ({tensors})")
    unknown = [name for name in args if name not in takes]
    if unknown:
        close = get_close_matches(unknown[0], takes, 1)
        raise blame(
            f"{factory} takes no argument {unknown[0]}" + _did_you_mean(close),
            hint=f"It is {factory}({_signature(call)}).",
        )
    return _call(factory, call, args, blame, build)


def build_own(
    arch: str, args: Mapping[str, Any], time_steps: int | None, saved_steps: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A model of the user's own code: of an importable module as it is, of a file through ``compat``.

    Args:
        time_steps: what the user asks for; it is an error where the factory takes none.
        saved_steps: what the checkpoint's options say; it counts where the factory takes any.

    Returns:
        The model, and the factory's arguments with defaults, as far as it has names for them.

    Raises:
        UsageError: no such module or factory, an import that fails, arguments that do not fit.
        UnsupportedError: the file uses something of a package that is not there, and not only its names.
    """
    place, _, name = arch.rpartition(":")
    if not place or not name:
        raise UsageError(f"--arch {arch!r} does not name a factory", hint=FORM)
    with importable(Path.cwd()):
        if place.endswith(".py"):
            factory = model_factory(Path(place), name, UsageError)
            there = getattr(factory, "__wrapped__", factory)
        else:
            factory = there = _factory(_import(place), name, place)
        if isinstance(there, nn.Module):
            if args or time_steps is not None:
                raise UsageError(f"{arch} is a model, not a factory: it takes no arguments")
            return there, {}
        model = None
        if time_steps is not None:
            model, args = _with_time_steps(name, factory, args, time_steps)
        elif saved_steps is not None and not any(key in args for key in TIME_NAMES):
            with contextlib.suppress(UsageError):  # what is wrong otherwise shows again below
                model, args = _with_time_steps(name, factory, args, saved_steps)
        if model is None:
            model = _call(name, factory, args, UsageError, lambda: factory(**args))
    if not isinstance(model, nn.Module):
        raise UsageError(f"{arch} returned a {type(model).__name__}, not a torch.nn.Module")
    return model, _all_arguments(factory, args)


def _with_time_steps(
    name: str, factory: Callable[..., Any], args: Mapping[str, Any], steps: int
) -> tuple[Any, Mapping[str, Any]]:
    """A model with that number of time steps, whatever it calls them, and the factory's arguments."""
    said = next((key for key in TIME_NAMES if args.get(key, steps) != steps), None)
    if said is not None:
        raise UsageError(f"--time-steps says {steps}, and --arch-args says {said} = {args[said]}")
    takes = _parameters(factory)
    named = [key for key in TIME_NAMES if key in takes or key in args]
    passes_on = _takes_any(factory)  # and so does not say which names there are
    for key in named[:1] or (TIME_NAMES if passes_on else ()):
        tried = {**args, key: steps}
        try:
            model = _call(name, factory, tried, UsageError, functools.partial(factory, **tried))
        except UsageError as error:
            if named or not isinstance(error.__cause__, TypeError):
                raise
            continue
        if named or _steps_of(model) == steps:  # not swallowed
            return model, tried
    if passes_on or inspect.isclass(inspect.unwrap(factory)):  # as training scripts do it, too
        model = _call(name, factory, args, UsageError, lambda: factory(**args))
        own = next((key for key in TIME_NAMES if type(getattr(model, key, None)) is int), None)
        if own is not None:
            setattr(model, own, steps)
            return model, args
    raise UsageError(
        f"{name} takes no number of time steps",
        hint=f"It takes {', '.join(takes) or 'nothing'}; use --arch-args.",
    )


def _steps_of(model: Any) -> int | None:
    values = (getattr(model, key, None) for key in TIME_NAMES)
    return next((value for value in values if type(value) is int), None)


def _import(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except SvitcError:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{place}.".startswith(f"{error.name}."):
            raise UsageError(
                f"--arch: there is no module {error.name}",
                hint="Looked for in the current folder and on PYTHONPATH; or give path/to/file.py:factory.",
            ) from error
        raise UsageError(
            f"--arch: {place} imports {error.name}, which is not installed",
            where=_raised_at(error),
            hint="Install it, or take the import out; path/to/file.py:factory stands in for what old models import.",
        ) from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise UsageError(
            f"--arch: importing {place} failed: {type(error).__name__}: {error}", where=_raised_at(error)
        ) from error


def _factory(module: ModuleType, name: str, place: str) -> Any:
    found = getattr(module, name, None)
    if callable(found):
        return found
    public = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
    here = [key for key, value in public.items() if getattr(value, "__module__", None) == module.__name__]
    own = here or list(public)
    close = get_close_matches(name, own, 1)
    raise UsageError(
        f"--arch: {place} has no factory {name}" + (f"; the closest is {close[0]}" if close else ""),
        hint=f"It has {', '.join(own[:12])}." if own else "It defines no function and no class.",
    )


def _call(
    name: str,
    factory: Callable[..., Any],
    args: Mapping[str, Any],
    blame: type[SvitcError],
    build: Callable[[], Any],
) -> Any:
    """Build, with what the factory raises turned into an error that shows its signature."""
    try:
        return build()
    except UnsupportedError:  # a stand-in that is used
        raise
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        close = get_close_matches(unknown[1], _parameters(factory), 1) if unknown else []
        raise blame(
            f"{name} does not take these arguments: {error}" + _did_you_mean(close),
            hint=f"It is {name}({_signature(factory)}).",
        ) from error
    except Exception as error:  # asserts and sums of the factory's own
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise blame(
            f"{name}({', '.join(f'{k}={v!r}' for k, v in args.items())}) failed: {text}",
            hint=f"It is {name}({_signature(factory)}).",
        ) from error


def _did_you_mean(close: list[str]) -> str:
    return f"; did you mean {close[0]}?" if close else ""


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        named = inspect.signature(factory).parameters.items()
    except (TypeError, ValueError):
        return {}
    return {key: p for key, p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _signature(factory: Callable[..., Any]) -> str:
    """Names and defaults, without the types."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return "…"
    return ", ".join(str(p.replace(annotation=p.empty)).replace(" = ", "=") for p in parameters)


def _all_arguments(factory: Callable[..., Any], args: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {key: p.default for key, p in _parameters(factory).items() if p.default is not p.empty}
    return {**defaults, **args}


def _takes_any(factory: Callable[..., Any]) -> bool:
    try:
        return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return False


def _raised_at(error: BaseException) -> str | None:
    """``file:line`` where the user's code raised: in the last frame outside this module."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if "importlib" not in f.filename]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None
