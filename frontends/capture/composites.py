"""Calls that consist of others: each is traced as what it computes, so that no later stage needs to know it.

To support a call that other calls can express, write it here in terms of these and name it in ``COMPOSITES``. Where the
result rounds in another way than the call itself, name it in ``ROUNDED``, too.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn import functional as F


def plain_of(target: Any) -> Any:
    """Return the function or method of tensors that one of PyTorch's registered operations stands for."""
    if not isinstance(target, (OpOverload, OpOverloadPacket)):
        return target
    name = target._opname if isinstance(target, OpOverload) else target.__name__
    namespace = target.namespace if isinstance(target, OpOverload) else target._qualified_op_name.partition("::")[0]
    if namespace != "aten":
        return target
    return next((getattr(place, name) for place in (torch, F, torch.Tensor) if hasattr(place, name)), target)


def _python(function: Any) -> Callable:
    """Return a function of ``torch.nn.functional`` that runs its Python code, where PyTorch would ask its arguments.

    Args:
        function: A function that asks with ``has_torch_function``.
    """
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**function.__globals__, **dict.fromkeys(names, lambda *_: False)}
    return types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)


def _equal(x: Any, y: Any) -> Any:
    if y is None:
        return False
    return torch.logical_and(x >= y, x <= y)


def _different(x: Any, y: Any) -> Any:
    if y is None:
        return True
    return torch.logical_not(_equal(x, y))


def _exclusive_or(x: Any, y: Any) -> Any:
    return torch.logical_or(torch.logical_and(x, torch.logical_not(y)), torch.logical_and(y, torch.logical_not(x)))


def _heaviside(x: Any, values: Any) -> Any:
    if isinstance(values, torch.Tensor) and bool((values == values.flatten()[0]).all()):
        at_zero = values.flatten()[0].item()
        if at_zero in (0, 1):
            return (x >= 0 if at_zero else x > 0).to(x.dtype)
    return torch.where(_equal(x, 0), values, (x > 0).to(x.dtype))


def _threshold(x: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    return torch.where(x > threshold, x, float(value))


def _glu(x: Any, dim: int = -1) -> Any:
    values, gates = x.chunk(2, dim)
    return values * torch.sigmoid(gates)


def _soft_shrink(x: Any, lambd: float = 0.5) -> Any:
    return torch.where(x > lambd, x - lambd, torch.where(x < -lambd, x + lambd, 0.0))


def _hard_shrink(x: Any, lambd: float = 0.5) -> Any:
    return torch.where(x.abs() > lambd, x, 0.0)


_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946  # of SELU (arXiv 1706.02515)


def _selu(x: Any, inplace: bool = False) -> Any:
    return F.elu(x, _ALPHA) * _SCALE


def _celu(x: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return F.elu(x) if alpha == 1 else F.elu(x / alpha) * alpha


def _rrelu(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False) -> Any:
    return F.leaky_relu(x, (lower + upper) / 2)


def _lerp(x: Any, end: Any, weight: Any) -> Any:
    return x + weight * (end - x)


def _add_product(x: Any, y: Any, z: Any, value: float = 1) -> Any:
    return x + (y * z if value == 1 else (y * value) * z)


def _add_quotient(x: Any, y: Any, z: Any, value: float = 1) -> Any:
    return x + (y if value == 1 else y * value) / z


def _floor_divide(x: Any, y: Any) -> Any:
    return torch.floor(x / y)


def _divide(x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    quotient = x / y
    return {None: lambda q: q, "floor": torch.floor, "trunc": torch.trunc}[rounding_mode](quotient)


def _remainder(x: Any, y: Any) -> Any:
    return x - torch.floor(x / y) * y


def _truncated_remainder(x: Any, y: Any) -> Any:
    return x - torch.trunc(x / y) * y


def _triangle(mask: Callable) -> Callable:
    """Return ``tril`` or ``triu``: what is outside of the triangle becomes 0."""

    def composite(x: Any, diagonal: int = 0) -> Any:
        kept = mask(torch.ones(tuple(x.shape[-2:]), dtype=torch.bool), diagonal)
        return torch.where(kept, x, 0.0)

    return composite


def _diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    rows, columns = x.shape[dim1], x.shape[dim2]
    start, count = (
        (offset, min(rows, columns - offset)) if offset >= 0 else (-offset * columns, min(rows + offset, columns))
    )
    places = [start + i * (columns + 1) for i in range(count)]
    return x.movedim((dim1, dim2), (-2, -1)).flatten(-2)[..., places]


def _rotate(x: Any, k: int = 1, dims: Sequence[int] = (0, 1)) -> Any:
    first, second = dims
    if k % 4 == 2:
        return x.flip((first, second))
    if k % 4 == 0:
        return x
    turned = x.transpose(first, second)
    return turned.flip((first if k % 4 == 1 else second,))


def _split_along(dim: int) -> Callable:
    """Return ``hsplit``, ``vsplit`` or ``dsplit``, which split along ``dim``."""
    return lambda x, parts: x.tensor_split(parts, 0 if dim == 1 and x.dim() == 1 else dim)


def _broadcast_tensors(*tensors: Any) -> tuple:
    values = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)) else tensors
    shape = torch.broadcast_shapes(*(tuple(x.shape) for x in values))
    return tuple(x.expand(shape) for x in values)


def _at_least(rank: int) -> Callable:
    """Return ``atleast_1d`` to ``atleast_3d`` of one tensor."""

    def composite(x: Any) -> Any:
        while x.dim() < rank:
            x = x.unsqueeze(-1 if rank == 3 and x.dim() == 2 else 0)
        return x

    return composite


def _distances(x: Any, y: Any, p: float = 2.0, compute_mode: str = "") -> Any:
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


def _pairwise_distance(x: Any, y: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    return torch.linalg.vector_norm(x - y + eps, p, -1, keepdim=keepdim)


def _bilinear(x: Any, y: Any, weight: Any, bias: Any = None) -> Any:
    product = torch.einsum("...i,oij,...j->...o", x, weight, y)
    return product if bias is None else product + bias


def _outer(x: Any, y: Any) -> Any:
    return x.unsqueeze(-1) * y


def _repeated(x: Any, repeats: torch.Tensor, dim: int | None = None, output_size: int | None = None) -> Any:
    """Return positions of a dimension, each repeated as often as a constant says."""
    x, dim = (x.flatten(), 0) if dim is None else (x, dim)
    places = torch.repeat_interleave(torch.arange(x.shape[dim]), repeats.expand(x.shape[dim]))
    return x.index_select(dim, places)


def _einsum(equation: str, *tensors: Any) -> Any:
    """Return a product in which a letter that stands twice in an operand means its diagonal."""
    values = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)) else list(tensors)
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    for i, letters in enumerate(operands):
        while (double := next((c for c in letters if letters.count(c) > 1), None)) is not None:
            first, second = letters.index(double), letters.rindex(double)
            values[i] = _diagonal(values[i], 0, first, second)
            letters = "".join(c for j, c in enumerate(letters) if j not in (first, second)) + double
        operands[i] = letters
    return torch.einsum(",".join(operands) + arrow + right, *values)


def _has_diagonal(equation: object) -> bool:
    """Return whether a letter stands twice in an operand of an equation whose result is spelled out."""
    left, arrow, _ = str(equation).replace(" ", "").partition("->")
    parts = left.split(",")
    return bool(arrow) and "." not in left and any(len(set(part)) < len(part) for part in parts)


def composite_of(called: str, args: tuple, kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """Return what computes a call by means of others, or None for a call that is recorded as it is.

    Args:
        called: Name of the function or method.
        args: Its arguments.
        kwargs: Its arguments by keyword.
    """
    if called == "div" and kwargs.get("rounding_mode"):
        return _divide
    if called == "repeat_interleave" and isinstance(
        kwargs.get("repeats", args[1] if len(args) > 1 else 0), torch.Tensor
    ):
        return _repeated
    if called == "einsum" and _has_diagonal(args[0]):
        return _einsum
    return COMPOSITES.get(called)


COMPOSITES: dict[str, Callable[..., Any]] = {
    "eq": _equal,
    **dict.fromkeys(("ne", "not_equal"), _different),
    **dict.fromkeys(("xor", "logical_xor", "bitwise_xor"), _exclusive_or),
    "heaviside": _heaviside,
    **dict.fromkeys(("threshold", "_threshold"), _threshold),
    "glu": _glu,
    "softshrink": _soft_shrink,
    "hardshrink": _hard_shrink,
    "tanhshrink": lambda x: x - torch.tanh(x),
    "softsign": lambda x: x / (x.abs() + 1),
    **dict.fromkeys(("logsigmoid", "log_sigmoid"), lambda x: -F.softplus(-x)),
    "selu": _selu,
    "celu": _celu,
    "rrelu": _rrelu,
    "special_expit": torch.sigmoid,
    "positive": lambda x: x,
    "expm1": lambda x: torch.exp(x) - 1,
    "log1p": lambda x: torch.log(x + 1),
    "log2": lambda x: torch.log(x) / 0.6931471805599453,
    "log10": lambda x: torch.log(x) / 2.302585092994046,
    "tan": lambda x: torch.sin(x) / torch.cos(x),
    "frac": lambda x: x - torch.trunc(x),
    "lerp": _lerp,
    "addcmul": _add_product,
    "addcdiv": _add_quotient,
    "subtract": lambda x, y, **k: torch.sub(x, y, **k),
    **dict.fromkeys(("divide", "true_divide"), _divide),
    **dict.fromkeys(("floordiv", "floor_divide"), _floor_divide),
    **dict.fromkeys(("mod", "remainder"), _remainder),
    "fmod": _truncated_remainder,
    "tril": _triangle(torch.tril),
    "triu": _triangle(torch.triu),
    **dict.fromkeys(("diagonal", "linalg_diagonal"), _diagonal),
    "rot90": _rotate,
    "t": lambda x: x.transpose(0, 1) if x.dim() == 2 else x,
    "adjoint": lambda x: x.transpose(-1, -2),
    "view_as": lambda x, other: x.reshape(tuple(other.shape)),
    "reshape_as": lambda x, other: x.reshape(tuple(other.shape)),
    "hsplit": _split_along(1),
    "vsplit": _split_along(0),
    "dsplit": _split_along(2),
    "broadcast_tensors": _broadcast_tensors,
    **{f"atleast_{n}d": _at_least(n) for n in (1, 2, 3)},
    "cdist": _distances,
    "pairwise_distance": _pairwise_distance,
    "bilinear": _bilinear,
    **dict.fromkeys(("outer", "ger"), _outer),
    "count_nonzero": lambda x, dim=None: _different(x, 0).float().sum(dim),
    "local_response_norm": _python(F.local_response_norm),
}
# whose last bits can differ from the call's own
ROUNDED = {
    *(
        "glu",
        "logsigmoid",
        "log_sigmoid",
        "selu",
        "expm1",
        "log1p",
        "log2",
        "log10",
        "tan",
        "lerp",
        "addcmul",
        "addcdiv",
    ),
    *("floordiv", "floor_divide", "mod", "remainder", "fmod", "cdist", "pairwise_distance", "bilinear", "celu"),
    *("local_response_norm", "special_expit", "tanhshrink"),
}
__all__ = ["COMPOSITES", "ROUNDED", "composite_of", "plain_of"]
