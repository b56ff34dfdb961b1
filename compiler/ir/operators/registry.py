"""All general operators, by their function."""

from __future__ import annotations

from collections.abc import Callable

from svitc.ir.operators.normalization import NORMALIZATION
from svitc.ir.operators.pointwise import POINTWISE
from svitc.ir.operators.products import PRODUCTS
from svitc.ir.operators.regroup import REGROUP
from svitc.ir.operators.resampling import RESAMPLING
from svitc.ir.operators.selection import SELECTION
from svitc.ir.operators.several import SEVERAL
from svitc.ir.operators.slicing import SLICING
from svitc.ir.operators.structure import STRUCTURE
from svitc.ir.operators.table import Operator
from svitc.ir.operators.time import TIME

GROUPS = (POINTWISE, SEVERAL, REGROUP, SLICING, STRUCTURE, NORMALIZATION, RESAMPLING, PRODUCTS, TIME, SELECTION)
OPERATORS: dict[Callable, Operator] = {operator.function: operator for group in GROUPS for operator in group}


def operator_of(target: object) -> Operator | None:
    """Return the general operator that a node calls, or None."""
    return OPERATORS.get(target) if callable(target) else None
