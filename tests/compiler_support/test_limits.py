"""Bounds on memory, and JSON of unknown origin."""

from __future__ import annotations

import pytest

from svitc.errors import InputError, UsageError
from svitc.support.json_text import parse_json
from svitc.support.limits import check_claim, is_out_of_memory, max_memory, parse_size, set_max_memory


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("1.5 mb", 1_500_000), ("700", 700), ("2K", 2000), ("3B", 3)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "4 EB", "nan", "1e9"])
def test_no_sizes(text):
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


def test_a_claim_above_the_bound_is_refused():
    try:
        set_max_memory(1000)
        check_claim(1000, "x.pt")
        with pytest.raises(InputError, match="x.pt claims 1.00 kB of memory, more than the limit of 1.00 kB"):
            check_claim(1001, "x.pt")
    finally:
        set_max_memory(None)
    assert max_memory() > 1 << 28


def test_errors_of_memory_are_told_from_others():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory")
    )
    assert not is_out_of_memory(RuntimeError("out of range"))


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "{", b"\xff"])
def test_all_that_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('{"a": [1]}') == {"a": [1]}
