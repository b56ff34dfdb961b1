"""Type aliases that several rooms share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

# Values of a JSON object are checked where they are read, so that mypy need not know their types.
JsonDict: TypeAlias = dict[str, Any]
JsonMapping: TypeAlias = Mapping[str, Any]
