"""Type aliases for JSON values, shared by every room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

# A JSON object whose keys are fixed by a format, such as a plan or a report. The values have different types under
# different keys, so the type checker leaves them to the code that reads them.
JsonDict: TypeAlias = dict[str, Any]
JsonMapping: TypeAlias = Mapping[str, Any]
