"""Values that do not depend on the input: parameters, buffers, and what ``forward`` makes or computes of them.

They are real tensors while a model is traced. Where one meets a value that depends on the input, it becomes a number,
a layer's weight, or an attribute of the model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Target

from svitc.errors import UnsupportedError
from svitc.frontends.capture import functional_layers
from svitc.frontends.capture.graph_builder import unused_name
from svitc.frontends.capture.proxies import Tracer, ValueProxy
from svitc.frontends.capture.user_line import user_line

# Operations of two tensors for which a number has the effect of a tensor that holds it everywhere
_BINARY: dict[str, Callable] = {
    **dict.fromkeys(("add", "radd"), operator.add),
    **dict.fromkeys(("sub", "subtract", "rsub"), operator.sub),
    **dict.fromkeys(("mul", "multiply", "rmul"), operator.mul),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv", "rtruediv", "rdiv"), operator.truediv),
    **dict.fromkeys(("gt", "greater"), operator.gt),
    **dict.fromkeys(("ge", "greater_equal"), operator.ge),
    **dict.fromkeys(("lt", "less"), operator.lt),
    **dict.fromkeys(("le", "less_equal"), operator.le),
    **dict.fromkeys(("eq",), operator.eq),
    **dict.fromkeys(("ne", "not_equal"), operator.ne),
}
_COMPARISONS = (operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne)
_REFLECTED = ("rsub", "rtruediv", "rdiv")
_BROADCASTING = {"where", "masked_fill", "maximum", "minimum", "fmax", "fmin", "clamp", "pow", "lerp", "addcmul"}
_AND, _OR = {"and", "and_", "logical_and", "bitwise_and"}, {"or", "or_", "logical_or", "bitwise_or"}
_JOINING = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"}
_DROPOUT = {
    f"{name}{n}" for name in ("dropout", "alpha_dropout", "feature_alpha_dropout") for n in ("", "1d", "2d", "3d")
}


def name_of(target: Target) -> str:
    """Return the name of a function or method, without the underscores of a special one."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name[2:-2] if name.startswith("__") and name.endswith("__") else name


class Constants:
    """The values of one model that do not depend on its input.

    Args:
        tracer: What records the model.
        root: The model. Attributes are added to it.

    Attributes:
        views: Path of a parameter that was added to the model -> that of the parameter that it is in another shape.
        rounded: What is computed in another order than in the model, and differs by rounding.
    """

    def __init__(self, tracer: Tracer, root: nn.Module) -> None:
        self.tracer, self.root = tracer, root
        tensors = [*root.named_parameters(), *root.named_buffers()]
        self._known = {id(t): (name, t, t._version) for name, t in tensors}
        self._places = {_place(t): (name, t, t._version) for name, t in reversed(tensors) if t.numel()}
        self._made: dict[tuple[int, int], tuple[torch.Tensor, str]] = {}
        self._nodes: dict[str, fx.Node] = {}
        self._layers = functional_layers.Layers(self)
        self.views: dict[str, str] = {}
        self.rounded: list[str] = []

    def call(self, kind: str, target: Target, args: tuple, kwargs: dict, name: str | None = None) -> Any:
        """Record a call in which real tensors may meet proxies."""
        operation = name_of(target)
        if operation in _DROPOUT:
            return self._dropout(target, args, kwargs)
        if operation == "select" and len(args) == 3 and target is not operator.getitem:
            return self.tracer.record("call_function", operator.getitem, (args[0], at(args[0], *args[1:])), {})
        layer = self._layers.call(kind, target, args, kwargs)
        if layer is not None:
            return layer
        if operation in _JOINING:
            args, kwargs = self._joined(operation, args, kwargs)
        elif operation in _BINARY and len(args) == 2 and any(isinstance(a, torch.Tensor) for a in args):
            if kwargs and set(kwargs) - {"alpha"}:
                return self.tracer.record(kind, target, args, kwargs, name)
            return self._binary(kind, target, args, kwargs)
        elif operation in _AND | _OR and len(args) == 2 and any(isinstance(a, torch.Tensor) for a in args):
            return self._logical(operation in _AND, kind, target, args)
        elif operation in _BROADCASTING:
            shape = torch.broadcast_shapes(*(tuple(a.shape) for a in args if isinstance(a, ValueProxy)))
            args = tuple(self.narrowed(a, shape) if isinstance(a, torch.Tensor) else a for a in args)
        elif operation == "scatter" and isinstance(args[0], torch.Tensor) and len(args) > 2:
            index = args[2]
            thin = self.tracer.record("call_function", operator.getitem, (index, at(index, args[1], slice(0, 1))), {})
            args = (self.like(thin, args[0]), *args[1:])
        elif operation == "matmul" and len(args) == 2:
            args = tuple(self._narrowed_in_front(a, *reversed(args[:i] + args[i + 1 :])) for i, a in enumerate(args))
        elif operation == "einsum" and isinstance(args[0], str):
            args = self._narrowed_by_letters(args)
        return self.tracer.record(kind, target, args, kwargs, name)

    def node(self, tensor: torch.Tensor) -> fx.Node:
        """Return the node that reads a tensor from the model; one that ``forward`` made is added to the model."""
        path = self.path(tensor) or self._add(tensor)
        if path not in self._nodes:
            self._nodes[path] = self.tracer.record("get_attr", path, (), {})._node
        return self._nodes[path]

    def path(self, tensor: torch.Tensor) -> str | None:
        """Return the name of the parameter or buffer that a tensor is, perhaps detached, or None."""
        known = self._known.get(id(tensor)) or (self._places.get(_place(tensor)) if tensor.numel() else None)
        return known[0] if known is not None and known[1]._version == known[2] else None

    def parameter(self, tensor: torch.Tensor) -> nn.Parameter:
        """Return a tensor as a parameter: the very parameter if it is one."""
        known = self._known.get(id(tensor)) or (self._places.get(_place(tensor)) if tensor.numel() else None)
        if known is not None and isinstance(known[1], nn.Parameter) and known[1]._version == known[2]:
            return known[1]
        return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.is_floating_point())

    def like(self, shaped: ValueProxy, constant: torch.Tensor) -> ValueProxy:
        """Return a constant broadcast to a value's shape, whose batch size is not known beforehand."""
        zeros = self.tracer.record("call_function", operator.mul, (shaped, 0.0), {})
        if not constant.any() and torch.broadcast_shapes(tuple(shaped.shape), constant.shape) == shaped.shape:
            return zeros
        return self.call("call_function", operator.add, (zeros, constant), {})

    def narrowed(self, constant: torch.Tensor, shape: tuple[int, ...], drop: bool = True) -> torch.Tensor:
        """Return a constant of size 1 where it holds the same along a dimension and is broadcast with ``shape``.

        This makes it independent of the batch size.

        Args:
            constant: The constant.
            shape: That of the value that it meets.
            drop: Whether to drop dimensions of size 1 in front that the value has not.
        """
        if self.path(constant) is not None:
            return constant
        for dim, size in enumerate(reversed(constant.shape), 1):
            first = constant.narrow(-dim, 0, min(1, size))
            if (
                size > 1
                and dim <= len(shape)
                and shape[-dim] == size
                and torch.equal(first.expand_as(constant), constant)
            ):
                constant = first
        while drop and constant.dim() > len(shape) and constant.shape[0] == 1:
            constant = constant[0]
        return constant

    def _narrowed_in_front(self, constant: Any, value: Any) -> Any:
        """Return a factor of a product of matrices with size 1 along dimensions in front where it is the same."""
        if not isinstance(constant, torch.Tensor) or not isinstance(value, ValueProxy) or constant.dim() < 3:
            return constant
        shape = tuple(value.shape)
        ahead = (*shape[:-2], 1, 1) if len(shape) >= constant.dim() else shape
        return self.narrowed(constant, ahead) if len(ahead) > 2 else constant

    def _narrowed_by_letters(self, args: tuple) -> tuple:
        """Return the arguments of an einsum with constants of size 1 where they are the same along a dimension.

        The dimension must be one of a value's, too, and not be summed over, so that every sum has the same terms.
        """
        left, arrow, right = args[0].replace(" ", "").partition("->")
        tensors = list(args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:])
        operands = left.split(",")
        if not arrow or "." in left or len(operands) != len(tensors):
            return args
        sizes = {
            letter: size
            for letters, value in zip(operands, tensors, strict=True)
            if isinstance(value, ValueProxy)
            for letter, size in zip(letters, value.shape, strict=True)
            if letter in right
        }
        for i, (letters, value) in enumerate(zip(operands, tensors, strict=True)):
            if isinstance(value, torch.Tensor):
                tensors[i] = self.narrowed(value, tuple(sizes.get(letter, 0) for letter in letters), drop=False)
        return (args[0], *tensors)

    def _number(self, constant: torch.Tensor, other: ValueProxy, is_comparison: bool) -> float | None:
        """Return the number that can take a constant's place next to a value, bit for bit, or None."""
        is_trained = isinstance(constant, nn.Parameter) and self.path(constant) is not None
        if constant.numel() == 0 or (is_trained and not is_comparison):
            return None
        if constant.dtype == torch.float64 and constant.dim() > 0:  # the result would be of this type
            return None
        first = constant.reshape(-1)[0]
        broadcast = torch.broadcast_shapes(constant.shape, tuple(other.shape))
        if broadcast != tuple(other.shape) or other.dtype in (torch.float16, torch.bfloat16, torch.float64):
            return None
        if constant.numel() > 1 and (is_trained or not torch.equal(first.expand_as(constant), constant)):
            return None
        value = first.item()
        return value if torch.isfinite(first) else None

    def _binary(self, kind: str, target: Target, args: tuple, kwargs: dict) -> ValueProxy:
        """Record an operation of a value and a constant."""
        function = _BINARY[name_of(target)]
        left, right = reversed(args) if name_of(target) in _REFLECTED else args
        constant, other = (left, right) if isinstance(left, torch.Tensor) else (right, left)
        if not isinstance(other, ValueProxy):
            return self.tracer.record(kind, target, args, kwargs)
        alpha = kwargs.get("alpha", 1)
        if alpha != 1:
            right = right * alpha
            constant = right if isinstance(right, torch.Tensor) else constant
        number: Any = self._number(constant, other, function in _COMPARISONS)
        if number is None:
            number = self.narrowed(constant, tuple(other.shape))
        values = (number, other) if constant is left else (other, number)
        return self.tracer.record("call_function", function, values, {})

    def _logical(self, is_and: bool, kind: str, target: Target, args: tuple) -> ValueProxy:
        """Record ``x & y`` or ``x | y`` of a truth value that depends on the input and a constant one."""
        constant, value = args if isinstance(args[0], torch.Tensor) else reversed(args)
        whole = torch.broadcast_shapes(tuple(constant.shape), tuple(value.shape)) == tuple(value.shape)
        if not whole or constant.dtype != torch.bool or constant.any() != constant.all():
            return self.tracer.record(
                kind, target, tuple(self.narrowed(a, tuple(value.shape)) if a is constant else a for a in args), {}
            )
        if bool(constant.all()) == is_and:
            return value
        opposite = self.tracer.record("call_function", torch.logical_not, (value,), {})
        return self.tracer.record(
            "call_function", torch.logical_and if is_and else torch.logical_or, (value, opposite), {}
        )

    def _joined(self, operation: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Return the arguments of a concatenation with constants as values that know the batch size."""
        parts = list(args[0] if args else kwargs["tensors"])
        # PyTorch ignores torch.tensor([]), from which loops let a tensor grow
        parts = [p for p in parts if not (isinstance(p, torch.Tensor) and tuple(p.shape) == (0,))] or parts
        shaped = next((p for p in parts if isinstance(p, ValueProxy)), None)
        if shaped is None or not any(isinstance(p, torch.Tensor) for p in parts):
            return ((parts, *args[1:]), kwargs) if args else (args, {**kwargs, "tensors": parts})
        if operation != "stack":
            dim = {"hstack": 1, "vstack": 0, "dstack": 2}.get(
                operation, kwargs.get("dim", (*args, 0)[1] if len(args) > 1 else 0)
            )
            dim = dim % len(shaped.shape)
            shaped = self.tracer.record("call_function", operator.getitem, (shaped, at(shaped, dim, slice(0, 1))), {})
        parts = [self.like(shaped, p) if isinstance(p, torch.Tensor) else p for p in parts]
        return ((parts, *args[1:]), kwargs) if args else (args, {**kwargs, "tensors": parts})

    def _dropout(self, target: Any, args: tuple, kwargs: dict) -> Any:
        """Return the input of dropout, which does nothing in inference."""
        names = ("input", "p", "train") if target is torch.dropout else ("input", "p", "training")
        default = name_of(target) in ("dropout", "dropout1d", "dropout2d", "dropout3d") and target is not torch.dropout
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get(names[2], default) and given.get("p", 0.5):
            raise UnsupportedError(
                f"{name_of(target)} drops values in inference, too, so that two calls differ",
                where=user_line(),
                hint="Pass training=self.training.",
            )
        return given["input"]

    def _add(self, tensor: torch.Tensor) -> str:
        """Add a tensor that ``forward`` made to the model, and return its path."""
        key = (id(tensor), tensor._version)
        if key in self._made:
            return self._made[key][1]
        viewed = next(
            (v for v in self._known.values() if _is_view_of_all(tensor, v[1]) and v[1]._version == v[2]), None
        )
        scope = self.tracer.scope.module_path if viewed is None else viewed[0].rpartition(".")[0]
        owner = self.root.get_submodule(scope)
        name = unused_name(owner, "constant" if viewed is None else viewed[0].rpartition(".")[2] + "_view")
        path = f"{scope}.{name}".lstrip(".")
        if viewed is None:
            owner.register_buffer(name, tensor.detach().clone(memory_format=torch.contiguous_format))
        else:
            owner.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=viewed[1].requires_grad))
            self.views[path] = viewed[0]
        self._made[key] = (tensor, path)
        return path


def at(x: ValueProxy, dim: int, index: int | slice) -> tuple[int | slice, ...]:
    """Return the index of a position, or of a range, of one dimension."""
    return (*(slice(None),) * (dim % len(x.shape)), index)


def _place(tensor: torch.Tensor) -> tuple:
    """Return what identifies a tensor in memory."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride() if tensor.numel() > 1 else None, tensor.dtype


def _is_view_of_all(tensor: torch.Tensor, of: torch.Tensor) -> bool:
    """Return whether a tensor is a trained parameter's data in another shape."""
    return (
        isinstance(of, nn.Parameter)
        and tensor.data_ptr() == of.data_ptr()
        and tensor.numel() == of.numel() > 0
        and tensor.dtype == of.dtype
        and tensor.is_contiguous()
    )


def keep_names(graph: fx.Graph, model: nn.Module, views: dict[str, str]) -> None:
    """Give parameters that are only read in another shape this shape under their own name.

    Args:
        graph: The raw graph.
        model: What it calls.
        views: Path of a reshaped parameter -> that of the parameter.
    """
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr" and n.users}
    called = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    for path, original in views.items():
        owner, _, name = original.rpartition(".")
        others = [p for p in views if views[p] == original and p in read]
        if path not in read or original in read or len(others) > 1 or owner in called:
            continue
        module = model.get_submodule(owner)
        module._parameters[name] = module._parameters.pop(path.rpartition(".")[2])
        for node in graph.nodes:
            if node.op == "get_attr" and node.target == path:
                node.target = original
