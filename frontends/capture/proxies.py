"""Proxies: stand-ins for tensors while a model is traced, which follow changes in place."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.fx.node import Target

from svitc.errors import UnsupportedError
from svitc.frontends.capture.data_dependent import UnknownNumber, data_dependent, number_of, truth_of
from svitc.frontends.capture.user_line import user_line

Tracer: TypeAlias = Any  # the tracer, whose module imports this one
# attributes that a proxy takes from its fake value
VALUE_ATTRIBUTES = (
    *("shape", "ndim", "dtype", "device", "is_cuda", "layout", "requires_grad", "is_leaf", "grad"),
    *("is_sparse", "is_quantized", "is_mps", "is_meta", "itemsize", "nbytes", "names"),
)
# attributes that are operations, and whose value may be asked for its shape in turn
_OPERATIONS = ("T", "mT", "H", "mH", "data", "real", "imag")


@dataclass
class View:
    """How a proxy's value is made of a tensor with which it shares memory.

    Attributes:
        source: The tensor.
        kind: ``call_function`` or ``call_method``.
        target: What is called.
        args: Its arguments, among them ``source``.
        kwargs: Its arguments by keyword.
        version: Of ``source`` when the value was recorded.
        shape_version: Of the shape of ``source`` then.
    """

    source: ValueProxy
    kind: str
    target: Target
    args: tuple
    kwargs: dict[str, Any]
    version: int
    shape_version: int = 0


class ValueProxy(fx.Proxy):
    """A proxy that knows its value's shape and type, from the fake tensor in its node's ``meta["val"]``.

    Where the tensor is changed in place, the proxy stands for the changed value from then on, and so do the views of
    it, which are recorded again.

    Attributes:
        view_of: Set if the tensor shares memory with another one.
    """

    tracer: Tracer
    __array_ufunc__ = None  # NumPy's numbers leave an operation with a proxy to the proxy

    def __init__(self, node: fx.Node, tracer: Tracer) -> None:
        super().__init__(node, tracer)
        self.view_of: View | None = None
        self._own_version = 0
        self.shape_version = 0  # number of changes of the shape in place

    @property
    def node(self) -> fx.Node:
        """The node that computes the present value."""
        view = self.__dict__.get("view_of")
        if view is not None and view.version != view.source.version:
            if view.shape_version != view.source.shape_version:
                raise UnsupportedError(
                    "a view of a tensor is read after the tensor's shape and then its values were changed in place",
                    where=user_line(),
                    hint="Write x = x.unsqueeze(0), say, instead of x.unsqueeze_(0).",
                )
            self._node = self.tracer.record(view.kind, view.target, view.args, view.kwargs).node
            view.version = view.source.version
        return self._node

    @node.setter
    def node(self, node: fx.Node) -> None:
        self._node = node

    @property
    def version(self) -> int:
        """Number of changes in place so far of the memory that the tensor is in."""
        return self._own_version if self.view_of is None else self.view_of.source.version

    def become(self, node: fx.Node) -> None:
        """Take the value of a node after a change in place. Whoever calls this on a view writes it back, too."""
        self._node = node
        if self.view_of is None:
            self._own_version += 1
        else:
            self.view_of.version = self.view_of.source.version

    def reshape_to(self, view: ValueProxy) -> None:
        """Become a view of what the tensor was before its shape changed in place."""
        self._node, self.view_of = view._node, view.view_of
        self.shape_version += 1

    @property
    def value(self) -> Any:
        """The fake value: a tensor without data, or a tuple of them."""
        return self._node.meta["val"]

    def __getattr__(self, name: str) -> Any:
        if name in VALUE_ATTRIBUTES:
            return getattr(self.value, name)
        if name in _OPERATIONS or (isinstance(self.value, tuple) and name in ("values", "indices")):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if name.startswith("__"):  # a protocol, such as NumPy's, that tensors may follow but a proxy does not
            raise AttributeError(name)
        if not hasattr(torch.Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute '{name}'")
        return super().__getattr__(name)

    def __format__(self, spec: str) -> str:
        return str(self)

    def size(self, dim: int | None = None) -> int | torch.Size:
        return self.value.size() if dim is None else self.value.size(dim)

    def dim(self) -> int:
        return self.value.dim()

    ndimension = dim

    def numel(self) -> int:
        return self.value.numel()

    nelement = numel

    def stride(self, dim: int | None = None) -> int | tuple[int, ...]:
        return self.value.stride() if dim is None else self.value.stride(dim)

    def is_floating_point(self) -> bool:
        return self.value.is_floating_point()

    def is_contiguous(self, **kwargs: object) -> bool:
        return self.value.is_contiguous(**kwargs)

    def get_device(self) -> int:
        return self.value.get_device()

    def element_size(self) -> int:
        return self.value.element_size()

    def requires_grad_(self, requires_grad: bool = True) -> ValueProxy:
        return self

    def detach_(self) -> ValueProxy:
        return self

    def retain_grad(self) -> None:
        """Do nothing, as a capture has no backward."""

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))  # type: ignore[index]

    def __bool__(self) -> bool:
        truth = truth_of(self.node)
        if truth is None:
            raise data_dependent("the truth")
        self.tracer.unchecked.append(user_line())
        return truth

    def __float__(self) -> float:
        return number_of(sys._getframe(1))

    def __int__(self) -> int:
        raise data_dependent("the value")

    def __index__(self) -> int:
        raise data_dependent("the value")

    def item(self) -> object:
        return bool(self) if truth_of(self.node) is not None else UnknownNumber()

    def tolist(self) -> UnknownNumber:
        return UnknownNumber()

    def numpy(self, **_: object) -> UnknownNumber:
        return UnknownNumber()

    def __setitem__(self, key: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __deepcopy__(self, memo: dict[int, Any]) -> ValueProxy:
        return self


# Methods that answer from the value's shape and type, and record nothing
ANSWERS = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point", "is_contiguous", "get_device"),
    *("element_size", "requires_grad_", "detach_", "retain_grad", "__len__", "__bool__", "__float__", "__int__"),
    *("__index__", "item", "tolist", "numpy"),
}


def _in_place_operator(target: Callable) -> Callable:
    """Return a method that records ``x += y`` as such, as it also changes other references to ``x``."""

    def method(self: ValueProxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


IN_PLACE_OPERATORS: dict[Callable, Callable] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
for _target in IN_PLACE_OPERATORS:
    setattr(ValueProxy, f"__{_target.__name__}__", _in_place_operator(_target))
