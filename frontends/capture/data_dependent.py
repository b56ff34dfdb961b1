"""What a model asks of values while only shapes are known: numbers to print or keep, and checks that always hold."""

from __future__ import annotations

import ast
import dis
import linecache
import sys
from types import FrameType
from typing import Any, NoReturn

from torch import fx, nn

from svitc.errors import UnsupportedError
from svitc.frontends.capture.user_line import is_user_code, user_line

_STAND_INS: dict[int, float] = {}  # numbers of number_of by id, until they are kept


def data_dependent(need: str, where: str | None = None) -> UnsupportedError:
    """Return the error for control flow that needs a value, at a line of the model; at the present one for None."""
    return UnsupportedError(
        f"control flow depends on the data: {need} of a tensor is needed while the model is captured",
        where=where or user_line(),
        hint="A compiled graph takes the same path for every input; branch on shapes or on configuration instead.",
    )


class UnknownNumber:
    """A number, or several, computed from the input. It can be kept, printed and computed with, but not used."""

    def __repr__(self) -> str:
        return "(depends on the input)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __getattr__(self, name: str) -> UnknownNumber:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: object, **__: object) -> UnknownNumber:
        return self

    def _refuse(self, *_: object) -> NoReturn:
        raise data_dependent("the value")

    def _unknown(self, *_: object) -> UnknownNumber:
        return self

    def __float__(self) -> float:
        return number_of(sys._getframe(1))

    __bool__ = __int__ = __index__ = __len__ = __iter__ = __contains__ = __complex__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse  # type: ignore[assignment]
    __hash__ = object.__hash__  # type: ignore[assignment]
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _unknown
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __abs__ = __round__ = _unknown
    __getitem__ = _unknown


def number_of(frame: FrameType) -> float:
    """Return what ``float(x)`` gives for a value that depends on the input, in the code that a frame runs.

    Python wants a number, which nobody knows yet. There is one only for ``self.rate = float(x.mean())``, which keeps it
    for a log: it is recognized when it is kept, and an ``UnknownNumber`` takes its place (``kept_value``).

    Raises:
        UnsupportedError: the code does something else with the number.
    """
    present, *following = [i for i in dis.get_instructions(frame.f_code) if i.offset >= frame.f_lasti][:4]
    # once it has run a few times, Python 3.11 makes a call at the first of its two instructions
    following = following[1:] if present.opname == "PRECALL" else following[:2]
    names = [instruction.opname for instruction in following]
    if names[:1] not in (["LOAD_FAST"], ["LOAD_FAST_BORROW"], ["LOAD_DEREF"]) or names[1:] != ["STORE_ATTR"]:
        raise data_dependent("the value")
    if not isinstance(frame.f_locals.get(following[0].argval), nn.Module):
        raise data_dependent("the value")
    number = float("nan")
    _STAND_INS[id(number)] = number
    return number


def kept_value(value: object) -> object:
    """Return what a module keeps as an attribute: an ``UnknownNumber`` for what ``number_of`` gave, else the value."""
    return UnknownNumber() if _STAND_INS.pop(id(value), None) is value and value is not None else value


def truth_of(node: fx.Node) -> bool | None:
    """Return the truth of a value that a model checks: values are finite, and what ``assert`` says holds; else None."""
    truth = _of_finite(node)
    return _asserted() if truth is None else truth


def _of_finite(node: Any) -> bool | None:
    """Return the truth of a check of finite values, such as ``torch.isnan(x).any()``; None for other values."""
    if not isinstance(node, fx.Node) or not node.args:
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in ("isnan", "isinf", "isposinf", "isneginf"):
        return False
    if name == "isfinite":
        return True
    inner = _of_finite(node.args[0])
    if name in ("any", "all", "max", "min", "bool"):
        return inner
    return not inner if name in ("logical_not", "invert", "bitwise_not") and inner is not None else None


def _asserted() -> bool | None:
    """Return what the user's present line asserts to be true or, after ``not``, false; None for other lines."""
    frame = sys._getframe(1)
    while frame is not None and not is_user_code(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return None
    try:
        [statement] = ast.parse(linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()).body
    except (SyntaxError, ValueError):
        return None
    if not isinstance(statement, ast.Assert):
        return None
    negated = isinstance(statement.test, ast.UnaryOp) and isinstance(statement.test.op, ast.Not)
    test = statement.test.operand if negated else statement.test  # type: ignore[attr-defined]
    is_plain = not any(isinstance(part, (ast.Not, ast.IfExp, ast.Or)) for part in ast.walk(test))
    return not negated if is_plain and not (negated and isinstance(test, ast.BoolOp)) else None
