"""Energy tables: the energy of one operation and of one memory access, in pJ, read from YAML.

The built-in table is Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, for 45 nm
(energy_tables/horowitz-2014.yaml); ``--table`` takes another one with the same keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from svitc.errors import InputError
from svitc.support.types import JsonDict, JsonMapping

DEFAULT = Path(__file__).parent / "energy_tables" / "horowitz-2014.yaml"
REQUIRED_TYPES = ("float32", "int32", "int8")  # number types that svitc needs prices for
ALL_TYPES = ("float32", "float16", "int32", "int8")
HINT = "An energy table has the same keys as the built-in one: see docs/energy.md."


@dataclass(frozen=True)
class Memory:
    """One level of memory.

    Attributes:
        name: such as ``SRAM 32 kB``, or ``DRAM``.
        bytes: capacity; None for DRAM, which holds anything.
        pj: energy of one access, pJ.
    """

    name: str
    bytes: int | None
    pj: float


@dataclass(frozen=True)
class Table:
    """Energy of operations and memory accesses.

    Attributes:
        name, source, process: where the figures are from.
        operations: energy of each operation, pJ, by name: ``float32.add``, ``int8.mult``, ...
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
        """Return the smallest memory for a buffer of ``size`` bytes."""
        return next(memory for memory in self.memories if memory.bytes is None or size <= memory.bytes)

    def moving(self, moved: float, held: float) -> float:
        """Return the energy, pJ, to move ``moved`` bytes into or out of a buffer of ``held`` bytes."""
        return moved * 8 / self.access_bits * self.holding(held).pj

    def to_json(self) -> JsonDict:
        """Return the table as JSON values."""
        return asdict(self)


def load_table(path: Path | None = None) -> Table:
    """Read a table of energies.

    Args:
        path: a YAML file; None for the built-in table.

    Raises:
        InputError: the file cannot be read or is not YAML, or a key is missing, unknown or has a wrong value.
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
    """Parser that checks a table key by key and reports the first error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def table(self, content: object) -> Table:
        """Return the table that a YAML document holds."""
        top = self._mapping(content, "", ("name", "source", "operations", "memory"), ("process",))
        types = self._mapping(top["operations"], "operations", REQUIRED_TYPES, ALL_TYPES)
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
            self._integer(memory["access_bits"], "memory.access_bits"),
        )

    def _sram(self, levels: object) -> list[Memory]:
        if not isinstance(levels, list):
            raise self._wrong("memory.sram", levels, "a list of memories, each with bytes and pj")
        memories: list[Memory] = []
        for i, entry in enumerate(levels):
            key = f"memory.sram[{i}]"
            level = self._mapping(entry, key, ("bytes", "pj"))
            size = self._integer(level["bytes"], f"{key}.bytes")
            if memories and size <= (memories[-1].bytes or 0):
                raise self._wrong(f"{key}.bytes", size, "larger than the one before it")
            memories.append(Memory(f"SRAM {capacity(size)}", size, self._number(level["pj"], f"{key}.pj")))
        return memories

    def _mapping(
        self, value: object, key: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> JsonMapping:
        if not isinstance(value, dict):
            raise self._wrong(key, value, f"a mapping with {', '.join(required)}")
        prefix = f"{key}." if key else ""
        for name in required:
            if name not in value:
                raise InputError(f"{self.path}: {prefix}{name} is missing", hint=HINT)
        for name in value:
            if name not in (*required, *optional):
                raise InputError(f"{self.path}: {prefix}{name} is not a key of an energy table", hint=HINT)
        return value

    def _number(self, value: object, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
            raise self._wrong(key, value, "a number of pJ, 0 or more")
        return float(value)

    def _integer(self, value: object, key: str) -> int:
        if type(value) is not int or value < 1:
            raise self._wrong(key, value, "a whole number above 0")
        return value

    def _text(self, value: object, key: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, value, "a text")
        return value

    def _wrong(self, key: str, value: object, expected: str) -> InputError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return InputError(f"{self.path}: {key or 'the file'} is {shown}, not {expected}", hint=HINT)


def capacity(size: int) -> str:
    """Return the size of a memory as text, in powers of two, as memories are sold."""
    for unit, unit_bytes in (("MB", 1 << 20), ("kB", 1 << 10)):
        if size >= unit_bytes:
            return f"{size / unit_bytes:g} {unit}"
    return f"{size} B"
