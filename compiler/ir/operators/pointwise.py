"""Operators of one tensor that change each element alone."""

from __future__ import annotations

import torch

from svitc.ir.operators.broadcasting import pointwise_rule
from svitc.ir.operators.table import Operator, Validator, is_number, one_of


def relu(x):
    return torch.relu(x)


def gelu(x, approximate):
    return torch.nn.functional.gelu(x, approximate=approximate)


def silu(x):
    return torch.nn.functional.silu(x)


def mish(x):
    return torch.nn.functional.mish(x)


def sigmoid(x):
    return torch.sigmoid(x)


def tanh(x):
    return torch.tanh(x)


def hard_swish(x):
    return torch.nn.functional.hardswish(x)


def hard_sigmoid(x):
    return torch.nn.functional.hardsigmoid(x)


def leaky_relu(x, negative_slope):
    return torch.nn.functional.leaky_relu(x, negative_slope)


def elu(x, alpha):
    return torch.nn.functional.elu(x, alpha)


def softplus(x, beta, threshold):
    return torch.nn.functional.softplus(x, beta, threshold)


def clamp(x, low, high):
    return torch.clamp(x, low, high)


def exp(x):
    return torch.exp(x)


def log(x):
    return torch.log(x)


def sqrt(x):
    return torch.sqrt(x)


def rsqrt(x):
    return torch.rsqrt(x)


def reciprocal(x):
    return torch.reciprocal(x)


def absolute(x):
    return torch.abs(x)


def negative(x):
    return torch.neg(x)


def sign(x):
    return torch.sign(x)


def floor(x):
    return torch.floor(x)


def ceil(x):
    return torch.ceil(x)


def round_half_even(x):
    return torch.round(x)


def truncate(x):
    return torch.trunc(x)


def sine(x):
    return torch.sin(x)


def cosine(x):
    return torch.cos(x)


def error_function(x):
    return torch.erf(x)


def power(x, exponent):
    return torch.pow(x, exponent)


def add_number(x, number):
    return x + number


def subtract_from(x, number):
    return number - x


def divide_number(x, number):
    return number / x


def _number_or_none(value: object) -> bool:
    return value is None or is_number(value)


_SAME_BITS = (
    *(relu, clamp, absolute, negative, sign, floor, ceil, round_half_even, truncate),
    *(add_number, subtract_from, divide_number),
)


def _pointwise(function, what: str, lipschitz: float | None = None, **attributes: Validator) -> Operator:
    return Operator(function, pointwise_rule, what, attributes, same_bits=function in _SAME_BITS, lipschitz=lipschitz)


POINTWISE = (
    _pointwise(relu, "relu, nn.ReLU", 1.0),
    _pointwise(gelu, "gelu, nn.GELU", 1.13, approximate=one_of("none", "tanh")),
    _pointwise(silu, "silu, nn.SiLU", 1.1),
    _pointwise(mish, "mish, nn.Mish", 1.09),
    _pointwise(sigmoid, "sigmoid, nn.Sigmoid", 0.25),
    _pointwise(tanh, "tanh, nn.Tanh", 1.0),
    _pointwise(hard_swish, "hardswish, nn.Hardswish", 1.5),
    _pointwise(hard_sigmoid, "hardsigmoid, nn.Hardsigmoid", 1 / 6),
    _pointwise(leaky_relu, "leaky_relu, nn.LeakyReLU", negative_slope=is_number),
    _pointwise(elu, "elu, nn.ELU", alpha=is_number),
    _pointwise(softplus, "softplus, nn.Softplus", 1.0, beta=is_number, threshold=is_number),
    _pointwise(clamp, "clamp, clip, relu6, hardtanh", 1.0, low=_number_or_none, high=_number_or_none),
    Operator(exp, pointwise_rule, "exp", slope=torch.exp),
    _pointwise(log, "log"),
    _pointwise(sqrt, "sqrt"),
    _pointwise(rsqrt, "rsqrt"),
    _pointwise(reciprocal, "reciprocal"),
    _pointwise(absolute, "abs", 1.0),
    _pointwise(negative, "-x, neg", 1.0),
    _pointwise(sign, "sign"),
    _pointwise(floor, "floor"),
    _pointwise(ceil, "ceil"),
    _pointwise(round_half_even, "round"),
    _pointwise(truncate, "trunc, .int(), .long()"),
    _pointwise(sine, "sin", 1.0),
    _pointwise(cosine, "cos", 1.0),
    _pointwise(error_function, "erf", 1.13),
    _pointwise(power, "x ** n, pow, square", exponent=is_number),
    _pointwise(add_number, "x + n, x - n", 1.0, number=is_number),
    _pointwise(subtract_from, "n - x", 1.0, number=is_number),
    _pointwise(divide_number, "n / x", number=is_number),
)
