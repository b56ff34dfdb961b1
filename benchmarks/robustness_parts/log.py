"""What is done, as JSON lines, so that a part can be run in slices."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Log:
    """A file of finished tries.

    Attributes:
        path: the file.
        rows: what it holds.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.end = path, time.monotonic() + seconds
        lines = path.read_text().split("\n")[:-1] if path.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    @property
    def is_over(self) -> bool:
        """Whether the time for this slice is up."""
        return time.monotonic() > self.end

    def add(self, **row: Any) -> None:
        text = json.dumps(row).replace(f"{self.path.parent.resolve()}/", "")  # results name no folder of this machine
        self.rows.append(json.loads(text))
        with self.path.open("a") as file:
            file.write(text + "\n")

    def has(self, **keys: Any) -> bool:
        """Tell whether there is a row with these values."""
        return any(all(row.get(key) == value for key, value in keys.items()) for row in self.rows)
