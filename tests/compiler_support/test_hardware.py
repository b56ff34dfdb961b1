"""Whether the processor multiplies bytes in one instruction."""

from __future__ import annotations

import pytest

from svitc.support.hardware import integer_dot_products


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model name\t: x\nflags\t\t: fpu avx2 avx512_vnni\n", True),
        ("flags\t\t: fpu avx2 fma\n", False),
        ("Features\t: fp asimd asimddp\n", True),
        ("Features\t: fp asimd\n", False),
        ("nothing of the kind\n", None),
    ],
)
def test_flags(tmp_path, text, found):
    (tmp_path / "cpuinfo").write_text(text)
    assert integer_dot_products(tmp_path / "cpuinfo") is found


def test_no_such_file(tmp_path):
    assert integer_dot_products(tmp_path / "cpuinfo") is None
