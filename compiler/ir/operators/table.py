"""What an operator consists of: what it computes, the type of its result, and which attributes it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx

from svitc.ir.axes import Dims

OperatorRule: TypeAlias = Callable[[fx.Node], Dims]  # from a node whose inputs have types to the type of its value
Validator: TypeAlias = Callable[[object], bool]

MAX_ELEMENTS = 1 << 31


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def is_flag(value: object) -> bool:
    """Return whether a value is True or False."""
    return type(value) is bool


def is_index(value: object) -> bool:
    """Return whether a value can be the index of a dimension, or a size."""
    return type(value) is int and 0 <= value < MAX_ELEMENTS


def is_integer(value: object) -> bool:
    """Return whether a value is a whole number, such as a padding or a shift."""
    return type(value) is int and abs(value) < MAX_ELEMENTS


def is_size(value: object) -> bool:
    """Return whether a value is the size of a dimension or window, or a stride."""
    return is_index(value) and value != 0


def optional(is_valid: Validator) -> Validator:
    """Return a validator of values that may be None."""
    return lambda value: value is None or is_valid(value)


def are(is_valid: Validator) -> Validator:
    """Return a validator of tuples, whose elements are all valid."""
    return lambda value: isinstance(value, (tuple, list)) and all(is_valid(v) for v in value)


def one_of(*texts: str) -> Validator:
    """Return a validator of texts."""
    return lambda value: isinstance(value, str) and value in texts


@dataclass(frozen=True)
class Operator:
    """A function that a program may call.

    Attributes:
        function: What it computes: of tensors, by position, and of attributes, by keyword. It needs only torch, as its
            source is copied to model.py; programs call it under its own name.
        rule: Transfer rule of type inference.
        what: What it is in a model's code, for the list of supported operations.
        attributes: Name -> whether a value is valid. All of them are given in every call.
        tensors: Smallest and largest number of tensors; None for any number.
        fills: Whether channels that are 0 do not stay 0; None to find out by computing it for 0.
        moves: Whether every element of its value is an element of its inputs, or 0.
        same_bits: Whether every runtime computes the same bits, as for one addition; not so for an exponential.
        lipschitz: Largest factor by which it can enlarge a difference, or None if there is none, or none that is known.
        slope: Magnitude of its derivative at each element, of one tensor, where no factor bounds that.
        linear: Whether it sums products of its inputs with factors that are not negative, so that for their magnitudes
            it gives a bound on its own.
        terms: From a node to how many terms each of its sums has.
        addend: Index of the input that it adds to a product of the others, times the attribute ``beta`` if it has one;
            None for any other operator.
        bound: What bounds the magnitude of its value, of bounds on those of its inputs and the same attributes; None
            to bound it by ``lipschitz``.
    """

    function: Callable[..., torch.Tensor]
    rule: OperatorRule
    what: str
    attributes: Mapping[str, Validator] = field(default_factory=dict)
    tensors: tuple[int, int | None] = (1, 1)
    fills: bool | None = None
    moves: bool = False
    same_bits: bool = False
    lipschitz: float | None = None
    slope: Callable[[torch.Tensor], torch.Tensor] | None = None
    linear: bool = False
    terms: Callable[[fx.Node], int] = lambda _: 1
    addend: int | None = None
    bound: Callable[..., torch.Tensor] | None = None

    @property
    def name(self) -> str:
        """Name of the function, by which files and sources refer to the operator."""
        return self.function.__name__

    def is_valid_call(self, tensors: int, attributes: Mapping[str, Any]) -> bool:
        """Return whether the operator can be called with this many tensors and these attributes."""
        least, most = self.tensors
        return (
            least <= tensors <= (tensors if most is None else most)
            and set(attributes) == set(self.attributes)
            and all(is_valid(attributes[name]) for name, is_valid in self.attributes.items())
        )

    def is_filling(self, node: fx.Node) -> bool:
        """Return whether a call makes channels that are 0 in all its inputs something else than 0."""
        if self.fills is not None:
            return self.fills
        zeros = [torch.zeros(1) for _ in node.args]
        return bool(self.function(*zeros, **node.kwargs).ne(0).any())
