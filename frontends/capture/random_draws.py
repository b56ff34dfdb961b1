"""Random numbers of ``torch.rand``, which are no obstacle where every draw gives the same.

Masks of a ratio that is 0 in inference, ``x * torch.rand(x.shape).gt(0)``, are such. A draw of exactly 0, one in 16
million, counts as above 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from svitc.errors import UnsupportedError
from svitc.frontends.capture.user_line import user_line

# comparison -> its result for a limit of 0 or less, and of 1 or more; each limit lies below, or above, all draws
_COMPARISONS: dict[str, tuple[bool, bool]] = {
    **dict.fromkeys(("gt", "ge", "greater", "greater_equal"), (True, False)),
    **dict.fromkeys(("lt", "le", "less", "less_equal"), (False, True)),
}
_OTHERS = ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "pow", "neg", "getitem")


def random_error(name: str) -> UnsupportedError:
    """Return the error for random numbers in inference, with the user's line."""
    return UnsupportedError(
        f"{name} draws random numbers in forward, so that two calls differ",
        where=user_line(),
        hint="Draw them only while training (if self.training).",
    )


class Draws:
    """Numbers in [0, 1) that are drawn anew in each call.

    Args:
        name: function that draws them.
        shape: their shape.
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, torch.Size(shape)

    def compared(self, comparison: str, limit: object) -> torch.Tensor:
        """Return the result of a comparison with a number that is the same for all draws.

        Raises:
            UnsupportedError: the result differs between draws.
        """
        if not isinstance(limit, int | float) or 0 < limit < 1:
            raise random_error(self.name)
        return torch.full(self.shape, _COMPARISONS[comparison][limit >= 1])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Draws) and name in _COMPARISONS and len(args) == 2 and not kwargs:
            return first.compared(name, args[1])
        draws = next((value for value in args if isinstance(value, Draws)), None)
        raise random_error(draws.name if draws is not None else "torch.rand")

    def __getattr__(self, name: str) -> Callable[[object], torch.Tensor]:
        if name in _COMPARISONS:
            return lambda limit: self.compared(name, limit)
        if name.startswith("__"):
            raise AttributeError(name)
        raise random_error(self.name)


def _comparison(name: str) -> Callable[[Draws, object], torch.Tensor]:
    return lambda self, limit: self.compared(name, limit)


def _refused(self: Draws, *_: object) -> NoReturn:
    raise random_error(self.name)


for _name in ("gt", "ge", "lt", "le"):
    setattr(Draws, f"__{_name}__", _comparison(_name))
for _name in _OTHERS:
    setattr(Draws, f"__{_name}__", _refused)
