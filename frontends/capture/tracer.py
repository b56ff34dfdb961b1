"""Trace a model on fake tensors: record each call with its value's shape, the user's line and the enclosing module.

Only what depends on the input is recorded. Parameters, buffers and whatever ``forward`` computes from them or makes
by itself are real tensors, computed as the model does, so that a branch on their values is taken as it is in the
model; constants.py puts those that meet the input into the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import base
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx.node import Target
from torch.fx.proxy import Scope, ScopeContextManager
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from svitc.errors import UnsupportedError
from svitc.frontends.capture import composites, constants, in_place, indexing, interception
from svitc.frontends.capture.advice import advice
from svitc.frontends.capture.data_dependent import UnknownNumber, data_dependent
from svitc.frontends.capture.graph_builder import unused_name
from svitc.frontends.capture.leaves import is_leaf
from svitc.frontends.capture.membranes import Membrane, MembraneRead, Memories
from svitc.frontends.capture.proxies import ANSWERS, VALUE_ATTRIBUTES, ValueProxy, View
from svitc.frontends.capture.random_draws import Draws, random_error
from svitc.frontends.capture.registered_neurons import reference_of
from svitc.frontends.capture.user_line import user_line
from svitc.support.cpu_only import GPUS, host_arguments


class Tracer(fx.Tracer):
    """Tracer that records calls, with a fake value, the user's line and the enclosing module in each node's ``meta``.

    Attributes:
        mode: Makes tensors that have a shape and a type but no data.
        example: The input by the name of the argument that takes it.
        evaluating: Whether an operation runs on fake values, when nothing is recorded.
        unchecked: Lines of checks of values, which are taken to hold.
        memories: The membranes of neurons that were recorded.
        constants: The tensors that do not depend on the input.
        changed: Tensors, by id, that did not depend on the input until a value that does was written into them.
    """

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=False)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.example: dict[str, torch.Tensor] = {}
        self.evaluating = False
        self.changed: dict[int, tuple[torch.Tensor, ValueProxy]] = {}
        self.unchecked: list[str | None] = []
        self.memories = Memories()
        self.constants: constants.Constants

    def trace(self, root: nn.Module, concrete_args: object = None) -> fx.Graph:  # type: ignore[override]
        self.constants = constants.Constants(self, root)
        try:
            with _TensorCalls(self), interception.all_of(self, root):
                return super().trace(root, None)
        finally:
            self.memories.restore()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def proxy(self, node: fx.Node) -> ValueProxy:
        return ValueProxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable, is_module: bool, concrete_args: object = None
    ) -> tuple[Callable, list]:
        """Return the root and its arguments: one placeholder. Optional arguments keep their defaults."""
        x = self.record("placeholder", next(iter(self.example)), (), {})
        return lambda root, x: root(x), [self.root, x]  # the call runs the root's hooks, too

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:  # kept in a list, say, where PyTorch does not see it
            name = unused_name(self.root, "unregistered")
            self.root.add_module(name, mod)
            if self.submodule_paths is not None:
                self.submodule_paths.update({m: f"{name}.{path}".rstrip(".") for path, m in mod.named_modules()})
            return name

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        """Record the call of a leaf, whose hooks are traced; trace into other modules."""
        if not is_leaf(m):
            return super().call_module(m, forward, args, kwargs)
        if not any(isinstance(v, fx.Proxy) for v in self.resolve((args, kwargs))):
            return forward(*args, **kwargs)
        path = self.path_of_module(m)

        def record(*inputs: object, **named: object) -> object:
            values = (*inputs, *named.values())
            if len(values) != 1:
                raise UnsupportedError(f"{path} is called with {len(values)} arguments", where=user_line())
            spikes = self.record("call_module", path, self.substitute(values), {})
            if isinstance(m, base.MemoryModule):
                self.memories.hide(m, path)
            return spikes

        with ScopeContextManager(self.scope, Scope(path, type(m))):
            if not m._forward_hooks and not m._forward_pre_hooks:
                return record(*args, **kwargs)
            vars(m)["forward"] = record
            try:
                return forward(*args, **kwargs)
            finally:
                del vars(m)["forward"]

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        return attr_val

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Node):
            return a
        if isinstance(a, torch.Tensor):
            current = self.substitute(a)
            return current.node if isinstance(current, fx.Proxy) else self.constants.node(a)
        if isinstance(a, Draws):
            raise random_error(a.name)
        if isinstance(a, np.generic):
            return a.item()
        if isinstance(a, np.ndarray):
            return self.create_arg(torch.from_numpy(a))
        if type(a) is type(torch.FloatTensor):
            return a.dtype
        if isinstance(a, Membrane):
            raise MembraneRead(a._path)
        if isinstance(a, UnknownNumber):
            raise data_dependent("the value")
        try:
            return super().create_arg(a)
        except NotImplementedError as error:
            raise UnsupportedError(
                f"an object of class {type(a).__name__} is returned, or passed to a call that is recorded",
                where=user_line(),
                hint="Pass and return tensors, numbers, tuples, lists and dictionaries.",
            ) from error

    def resolve(self, values: object) -> list[Any]:
        """Return the leaves of nested arguments, with changed tensors as the proxies that stand for them."""
        return tree_flatten(self.substitute(values))[0]

    def substitute(self, values: Any) -> Any:
        """Return nested arguments with each changed tensor replaced by the proxy that stands for it."""
        if not self.changed:
            return values

        def current(value: object) -> object:
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) in self.changed:
                return self.changed[id(value)][1]
            if value._is_view() and id(value._base) in self.changed:
                raise UnsupportedError("a view of a tensor is read after the tensor was changed", where=user_line())
            return value

        return tree_map(current, values)

    def create_proxy(
        self,
        kind: str,
        target: Target,
        args: tuple,
        kwargs: dict,
        name: str | None = None,
        type_expr: object = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        if kind not in ("call_function", "call_method"):
            return self.record(kind, target, args, kwargs, name)
        reference = reference_of(target)
        if reference is not None:
            return reference(*args, **kwargs)
        target = composites.plain_of(target)
        called = constants.name_of(target)
        if called in (*GPUS, "cpu"):
            return args[0]
        if called in ANSWERS and callable(target) and isinstance(args[0], ValueProxy):  # torch.numel(x)
            return getattr(args[0], called)(*args[1:], **kwargs)
        if called == "_assert":
            return None if bool(args[0]) else target(*args, **kwargs)  # type: ignore[operator]
        args, kwargs = host_arguments(called, args, kwargs)
        if called in _FACTORIES:
            args, kwargs = tree_map(_with_data, (args, kwargs))
            return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)  # type: ignore[operator]
        change = in_place.change_of(kind, target, args, kwargs)
        if change is not None:
            return in_place.apply(self, change)
        args, kwargs = self.substitute((args, kwargs))
        composed = self.composed(called, args, kwargs)
        return self.constants.call(kind, target, args, kwargs, name) if composed is None else composed

    def composed(self, called: str, args: tuple, kwargs: dict) -> Any:
        """Trace a call that consists of others as these; return None for a call that is recorded as it is."""
        if called == "getitem" and isinstance(args[0], ValueProxy):
            return indexing.by_lists(*args)
        composite = composites.composite_of(called, args, kwargs)
        if composite is None:
            return None
        if called in composites.ROUNDED:
            self.constants.rounded.append(f"{called} at {user_line()}")
        try:
            return composite(*args, **{"x" if k in ("input", "self") else k: v for k, v in kwargs.items()})
        except TypeError as error:
            raise UnsupportedError(
                f"{called} is called in a way that is not supported: {error}", where=user_line()
            ) from error

    def record(self, kind: str, target: Target, args: tuple, kwargs: dict, name: str | None = None) -> ValueProxy:
        """Append a node, run it on fake values, and return its proxy."""
        if torch.is_autocast_enabled("cpu"):
            raise UnsupportedError(
                f"a part of the model runs under autocast, in {torch.get_autocast_dtype('cpu')}",
                where=user_line(),
                hint="svitc compiles float32; use autocast only while training, or with enabled=False.",
            )
        proxy: Any = super().create_proxy(kind, target, args, kwargs, name)
        node = proxy._node
        # the input has no line in the model: the frames above belong to the caller of capture
        node.meta["source"] = user_line() if kind != "placeholder" else None
        node.meta["scope"] = self.scope.module_path
        node.meta["val"] = self.value(node)
        source = next((a for a in tree_flatten((args, kwargs))[0] if _shares_memory(a, node.meta["val"])), None)
        if source is not None:
            proxy.view_of = View(source, kind, target, args, kwargs, source.version, source.shape_version)
        return proxy

    def value(self, node: fx.Node) -> object:
        """Run a node on the fake values of its inputs, and return its fake value."""
        args: Any
        kwargs: Any
        target: Any = node.target
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        self.evaluating = True
        with self.mode, torch.no_grad():
            try:
                if node.op == "placeholder":
                    return self.mode.from_tensor(self.example[str(node.target)])
                if node.op == "get_attr":
                    owner, _, name = str(node.target).rpartition(".")
                    return self.mode.from_tensor(getattr(self.root.get_submodule(owner), name).detach())
                if node.op == "call_module":
                    module = self.root.get_submodule(str(node.target))
                    if isinstance(module, base.MemoryModule):
                        return args[0].clone()
                    if _keeps_shape(module, *args):
                        return torch.empty(args[0].shape, dtype=args[0].dtype)
                    return type(module).forward(module, *args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                return target(*args, **kwargs)
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
                name = target if isinstance(target, str) else getattr(target, "__name__", target)
                if isinstance(error, (DynamicOutputShapeException, DataDependentOutputException)):
                    text = f"{name} gives something whose size depends on the data"
                    raise UnsupportedError(text, where=node.meta["source"], hint=advice("nonzero")) from error
                text = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UnsupportedError(f"{name} does not fit its input: {text}", where=node.meta["source"]) from error
            finally:
                self.evaluating = False


def _keeps_shape(module: nn.Module, x: torch.Tensor) -> bool:
    """Return whether a layer is a batch norm that fits its input: fake tensors would take most of a capture for it."""
    if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) or module.training or not x.is_contiguous():
        return False
    single = 4 if isinstance(module, nn.BatchNorm2d) else 3
    over_time = getattr(module, "step_mode", "s") == "m"
    fits = x.ndim == single + over_time and x.shape[1 + over_time] == module.num_features
    return fits and module.running_mean is not None and x.dtype == module.running_mean.dtype


def _storages(value: object) -> set[int]:
    """Return what identifies the memory of a tensor, or of the tensors in a tuple."""
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage()._cdata}
    return {s for v in value for s in _storages(v)} if isinstance(value, (tuple, list)) else set()


def _shares_memory(arg: object, value: object) -> bool:
    return isinstance(arg, ValueProxy) and not _storages(arg.value).isdisjoint(_storages(value))


# Calls that take no more from a tensor than its shape and type
_FACTORIES = {
    *("zeros_like", "ones_like", "full_like", "empty_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "new"),
}


class _TensorCalls(TorchFunctionMode):
    """Sees every call on tensors that do not depend on the input, to follow those that are written into."""

    EMPTY = {"empty", "empty_like", "new_empty", "empty_strided"}
    RANDOM = {
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "multinomial", "normal"),
        *("bernoulli", "bernoulli_", "normal_", "uniform_", "random_", "exponential_", "poisson", "log_normal_"),
        *("geometric_", "cauchy_"),
    }

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tracer, name = self.tracer, str(getattr(func, "__name__", ""))
        if tracer.evaluating:
            return func(*args, **kwargs)
        if name in ("rand", "rand_like") and kwargs.get("out") is None:
            args, kwargs = tree_map(_with_data, (args, kwargs))
            return Draws(name, tuple(func(*args, **kwargs).shape))
        if name in self.RANDOM:
            raise random_error(name)
        flat = tree_flatten((args, kwargs))[0]
        if any(isinstance(value, fx.Proxy) for value in flat):
            return func(*args, **kwargs)
        if tracer.changed and any(id(value) in tracer.changed for value in flat):
            return self.call_changed(func, name, args, kwargs)
        return self.make(func, name, args, kwargs)

    def make(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """Run a call on real tensors."""
        result = func(*args, **kwargs)
        if name in self.EMPTY and isinstance(result, torch.Tensor):
            return result.zero_()  # what is read before it is written is the same in each run
        return result

    def call_changed(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """Run or record a call on a tensor that a value was written into that depends on the input."""
        if name == "__get__" and func.__self__.__name__ in VALUE_ATTRIBUTES:
            return func(*args, **kwargs)
        if name in _FACTORIES:
            return self.make(func, name, args, kwargs)
        args, kwargs = self.tracer.substitute((args, kwargs))
        if name in ANSWERS:
            return getattr(args[0], name)(*args[1:], **kwargs)
        if name == "__get__":
            return getattr(args[0], func.__self__.__name__)
        return ValueProxy.__torch_function__(func, (ValueProxy,), args, kwargs)


def _with_data(value: object) -> object:
    """Return a tensor of the shape and type of a proxy; other values as they are."""
    if not isinstance(value, ValueProxy):
        return value
    return torch.zeros(tuple(value.shape), dtype=value.dtype)
