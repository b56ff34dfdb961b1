"""Groups of options: frozen dataclasses that a command takes as one parameter each.

typer reads a command's options from its signature and has no groups. ``grouped`` gives a command the signature that
typer needs, one parameter for each field, and calls the command with its groups filled.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a dataclass by its fields, for typer.

    Fields stand in ``--help`` in the order of the parameters; within a group its own fields come before those of the
    groups that it extends.

    Args:
        command: its parameters are annotated with dataclasses, or as typer wants them.

    Returns:
        A function of keywords, with a signature for typer.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        annotation = hints[name]
        if is_dataclass(annotation) and isinstance(annotation, type):
            fields = field_parameters(annotation)
            groups[name] = annotation, [field.name for field in fields]
            parameters += fields
        else:
            parameters.append(_keyword(name, annotation, parameter.default))

    @functools.wraps(command)
    def call(**values: Any) -> None:
        filled = {
            name: kind(**{field: values.pop(field) for field in fields}) for name, (kind, fields) in groups.items()
        }
        command(**values, **filled)

    del call.__dict__["__wrapped__"]  # typer would look through it, at the signature with groups
    call.__dict__["__signature__"] = inspect.Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def field_parameters(group: type) -> list[inspect.Parameter]:
    """Return the fields of a group as parameters: its own first, then those of its bases."""
    hints = get_type_hints(group, include_extras=True)
    names = dict.fromkeys(name for base in group.__mro__ for name in inspect.get_annotations(base))
    return [_keyword(name, hints[name], getattr(group, name)) for name in names]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
