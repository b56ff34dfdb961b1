"""Elementwise operators of several tensors, which are broadcast."""

from __future__ import annotations

import torch

from svitc.ir.operators.broadcasting import broadcast_rule
from svitc.ir.operators.table import Operator


def maximum(x, y):
    return torch.maximum(x, y)


def minimum(x, y):
    return torch.minimum(x, y)


def divide(x, y):
    return x / y


def power_of(x, y):
    return torch.pow(x, y)


def where(condition, x, y):
    return torch.where(condition != 0, x, y)


SEVERAL = (
    Operator(maximum, broadcast_rule, "maximum, max(x, y)", tensors=(2, 2), moves=True, same_bits=True, lipschitz=1.0),
    Operator(minimum, broadcast_rule, "minimum, min(x, y)", tensors=(2, 2), moves=True, same_bits=True, lipschitz=1.0),
    Operator(divide, broadcast_rule, "x / y", tensors=(2, 2), fills=True, same_bits=True),
    Operator(power_of, broadcast_rule, "x ** y", tensors=(2, 2), fills=True),
    Operator(where, broadcast_rule, "where, masked_fill", tensors=(3, 3), same_bits=True),
)
