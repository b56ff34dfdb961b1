"""Energy tables: what one operation and one memory access cost, in pJ, read from YAML.

The one that comes with svitc is Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, for
45 nm (energy_tables/horowitz-2014.yaml); ``--table`` takes another with the same keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from svitc.errors import InputError

DEFAULT = Path(__file__).parent / "energy_tables" / "horowitz-2014.yaml"
NEEDED = ("float32", "int32", "int8")  # number types that svitc prices
KNOWN = ("float32", "float16", "int32", "int8")
HINT = "A table has the keys of the one that svitc brings along: docs/energy.md shows it."


@dataclass(frozen=True)
class Memory:
    """One level of memory.

    Attributes:
        name: such as ``SRAM 32 kB``, or ``DRAM``.
        bytes: what it holds; None for DRAM, which holds anything.
        pj: energy of one access.
    """

    name: str
    bytes: int | None
    pj: float


@dataclass(frozen=True)
class Table:
    """What operations and memory accesses cost.

    Attributes:
        name, source, process: where the figures are from.
        operations: pJ of each, by name: ``float32.add``, ``int8.mult``, …
        memories: the levels, smallest first, DRAM last.
        access_bits: bits that one access moves.
    """

    name: str
    source: str
    process: str
    operations: Mapping[str, float]
    memories: tuple[Memory, ...]
    access_bits: int

    def holding(self, size: float) -> Memory:
        """The smallest memory for a buffer of ``size`` bytes."""
        return next(each for each in self.memories if each.bytes is None or size <= each.bytes)

    def moving(self, moved: float, held: float) -> float:
        """pJ to move ``moved`` bytes into or out of a buffer of ``held`` bytes."""
        return moved * 8 / self.access_bits * self.holding(held).pj

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def load_table(path: Path | None = None) -> Table:
    """Read a table of energies; without a path the one that comes with svitc.

    Raises:
        InputError: the file cannot be read, is not YAML, or has a key that is missing, unknown or no such number.
    """
    path = path or DEFAULT
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the energy table {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"the energy table {path} is not YAML: {str(error).splitlines()[0]}", hint=HINT) from error
    return _TableParser(path).table(content)


class _TableParser:
    """Checks a table key by key, and names the first that is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def table(self, content: Any) -> Table:
        top = self._mapping(content, "", ("name", "source", "operations", "memory"), ("process",))
        types = self._mapping(top["operations"], "operations", NEEDED, KNOWN)
        operations = {}
        for kind in types:
            costs = self._mapping(types[kind], f"operations.{kind}", ("add", "mult"))
            for name in costs:
                operations[f"{kind}.{name}"] = self._number(costs[name], f"operations.{kind}.{name}")
        memory = self._mapping(top["memory"], "memory", ("access_bits", "sram", "dram"))
        dram = self._mapping(memory["dram"], "memory.dram", ("pj",))
        levels = [*self._sram(memory["sram"]), Memory("DRAM", None, self._number(dram["pj"], "memory.dram.pj"))]
        return Table(
            self._text(top["name"], "name"),
            self._text(top["source"], "source"),
            self._text(top.get("process", "not stated"), "process"),
            operations,
            tuple(levels),
            self._whole(memory["access_bits"], "memory.access_bits"),
        )

    def _sram(self, levels: Any) -> list[Memory]:
        if not isinstance(levels, list):
            raise self._wrong("memory.sram", levels, "a list of memories, each with bytes and pj")
        found: list[Memory] = []
        for i, each in enumerate(levels):
            key = f"memory.sram[{i}]"
            self._mapping(each, key, ("bytes", "pj"))
            size = self._whole(each["bytes"], f"{key}.bytes")
            if found and size <= (found[-1].bytes or 0):
                raise self._wrong(f"{key}.bytes", size, "larger than the one before it")
            found.append(Memory(f"SRAM {capacity(size)}", size, self._number(each["pj"], f"{key}.pj")))
        return found

    def _mapping(self, value: Any, key: str, needed: tuple[str, ...], known: tuple[str, ...] = ()) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(key, value, f"a mapping with {', '.join(needed)}")
        below = f"{key}." if key else ""
        for each in needed:
            if each not in value:
                raise InputError(f"{self.path}: {below}{each} is missing", hint=HINT)
        for each in value:
            if each not in (*needed, *known):
                raise InputError(f"{self.path}: {below}{each} is not a key of an energy table", hint=HINT)
        return value

    def _number(self, value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
            raise self._wrong(key, value, "a number of pJ, 0 or more")
        return float(value)

    def _whole(self, value: Any, key: str) -> int:
        if type(value) is not int or value < 1:
            raise self._wrong(key, value, "a whole number above 0")
        return value

    def _text(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, value, "a text")
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> InputError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return InputError(f"{self.path}: {key or 'the file'} is {shown}, not {wanted}", hint=HINT)


def capacity(size: int) -> str:
    """A memory's size in the powers of two that memories come in."""
    for unit, each in (("MB", 1 << 20), ("kB", 1 << 10)):
        if size >= each:
            return f"{size / each:g} {unit}"
    return f"{size} B"
