"""A section of the report: a dataclass whose fields are the keys."""

from __future__ import annotations

from dataclasses import dataclass, fields

from svitc.support.types import JsonDict


@dataclass(frozen=True)
class Section:
    """A part of the report, whose fields are the keys."""

    def to_json(self) -> JsonDict:
        """Return the fields as JSON values, in their order."""
        return {field.name: _json(getattr(self, field.name)) for field in fields(self)}


def _json(value: object) -> object:
    if isinstance(value, Section):
        return value.to_json()
    return [_json(item) for item in value] if isinstance(value, list | tuple) else value


__all__ = ["Section"]
