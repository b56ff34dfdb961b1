"""From ``module:factory`` and arguments to a model: a closed table for files, any code of the user's."""

from __future__ import annotations

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

from torch import nn

from svitc.errors import InputError, SvitcError, UsageError

from . import families, neurons
from .compat import compatible, load
from .reading import TIME_NAMES, importable

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
    """A model of the closed table, on the meta device.

    Args:
        blame: kind of error where the arguments are wrong: the user's, or the file's.
        tensors: how many the file has; a model of more blocks is refused before it is built.
    """
    for name in ("depths", "embed_dims", "T", "num_classes", "in_channels"):
        sizes = args.get(name, 1)
        listed = isinstance(sizes, list) and name == "depths"
        for size in sizes if listed else [sizes]:
            if type(size) is not int or size < (0 if listed else 1):
                raise blame(f"argument {name} of {factory} must be a positive whole number, not {size!r}")
    depths = args.get("depths", 1)
    if (sum(depths) if isinstance(depths, list) else depths) > tensors:
        raise blame(f"depths = {depths} of {factory} is more blocks than the file has tensors ({tensors})")
    call = getattr(families.models, factory)
    takes = [*(name for name in _parameters(call)), *neurons.ARGUMENTS]
    unknown = [name for name in args if name not in takes]
    if unknown:
        close = get_close_matches(unknown[0], takes, 1)
        raise blame(
            f"{factory} takes no argument {unknown[0]}" + _did_you_mean(close),
            hint=f"It is {factory}({_signature(call)}).",
        )
    return _call(factory, call, args, blame, lambda: families.build(factory, args))


def build_own(arch: str, args: Mapping[str, Any], time_steps: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """A model of the user's own code.

    Returns:
        The model, and the factory's arguments with defaults, as far as it has names for them.

    Raises:
        UsageError: no such module or factory, an import that fails, arguments that do not fit.
    """
    place, _, name = arch.rpartition(":")
    if not place or not name:
        raise UsageError(f"--arch {arch!r} does not name a factory", hint=FORM)
    file = Path(place) if place.endswith(".py") else None
    with importable(Path.cwd()), compatible(file):
        factory = _factory(_import(place, file), name, place)
        if isinstance(factory, nn.Module):
            if args or time_steps is not None:
                raise UsageError(f"{arch} is a model, not a factory: it takes no arguments")
            return factory, {}
        args = _with_time_steps(name, factory, args, time_steps)
        model = _call(name, factory, args, UsageError, lambda: factory(**args))
    if not isinstance(model, nn.Module):
        raise UsageError(f"{arch} returned a {type(model).__name__}, not a torch.nn.Module")
    return model, _all_arguments(factory, args)


def _with_time_steps(
    name: str, factory: Callable[..., Any], args: Mapping[str, Any], time_steps: int | None
) -> Mapping[str, Any]:
    if time_steps is None:
        return args
    takes = _parameters(factory)
    for key in TIME_NAMES:
        if key in args and args[key] != time_steps:
            raise UsageError(f"--time-steps says {time_steps}, and --arch-args says {key} = {args[key]}")
        if key in takes:
            return {**args, key: time_steps}
    raise UsageError(
        f"{name} takes no number of time steps",
        hint=f"It takes {', '.join(takes) or 'nothing'}; use --arch-args.",
    )


def _import(place: str, file: Path | None) -> ModuleType:
    try:
        if file is None:
            return importlib.import_module(place)
        if not file.is_file():
            raise UsageError(f"--arch: there is no file {file}", hint=FORM)
        return load(file)
    except SvitcError:
        raise
    except ModuleNotFoundError as error:
        if file is None and error.name and f"{place}.".startswith(f"{error.name}."):
            raise UsageError(
                f"--arch: there is no module {error.name}",
                hint="Looked for in the current folder and on PYTHONPATH; or give path/to/file.py:factory.",
            ) from error
        raise UsageError(
            f"--arch: {place} imports {error.name}, which is not installed", where=_raised_at(error, file),
            hint="Install it, or take the import out.",
        ) from error  # fmt: skip
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise UsageError(
            f"--arch: importing {place} failed: {type(error).__name__}: {error}",
            where=_raised_at(error, file),
        ) from error


def _factory(module: ModuleType, name: str, place: str) -> Any:
    found = getattr(module, name, None)
    if callable(found):
        return found
    public = {
        key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")
    }
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


def _raised_at(error: BaseException, file: Path | None) -> str | None:
    """``file:line`` where the user's code raised: in ``file``, or in the last frame outside this module."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if file is not None and f.filename == str(file.absolute())] or [
        f for f in frames if "importlib" not in f.filename
    ]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None
