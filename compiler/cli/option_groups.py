"""Groups of options: frozen dataclasses that a command takes as one parameter each.

typer reads a command's options from its signature and has no groups of options. ``grouped`` gives a command the
signature that typer needs, one parameter for each field, and calls the command with instances of its groups.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a dataclass by the fields of that dataclass, for typer.

    ``--help`` lists the fields in the order of the parameters. Within a group, the fields that it declares itself come
    before those that it inherits.

    Args:
        command: a function whose parameters are annotated with dataclasses, or as typer expects.

    Returns:
        A function of keyword arguments, with the signature that typer reads.
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
    def call(**values: object) -> None:
        filled = {
            name: kind(**{field: values.pop(field) for field in fields}) for name, (kind, fields) in groups.items()
        }
        command(**values, **filled)

    del call.__dict__["__wrapped__"]  # otherwise typer would find the signature with groups
    call.__dict__["__signature__"] = inspect.Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


@functools.cache  # commands share groups, and every start of svitc builds all commands
def field_parameters(group: type) -> list[inspect.Parameter]:
    """Return the fields of a group as parameters: declared ones first, then inherited ones."""
    hints = get_type_hints(group, include_extras=True)
    names = dict.fromkeys(name for base in group.__mro__ for name in inspect.get_annotations(base))
    return [_keyword(name, hints[name], getattr(group, name)) for name in names]


def _keyword(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
