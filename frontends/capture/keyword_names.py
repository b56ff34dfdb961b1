"""Layers whose names are keywords of Python, as ``nn.ModuleDict`` allows: source code cannot name them."""

from __future__ import annotations

import keyword

from torch import fx, nn

from svitc.frontends.capture.graph_builder import unused_name


def rename_keywords(graph: fx.Graph, model: nn.Module) -> None:
    """Rename modules, parameters and buffers that are named by a keyword, ``class`` to ``class_``, and their uses.

    Args:
        graph: the graph of the model, which is changed.
        model: the model, which is changed.
    """
    renamed: dict[str, str] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        for members in (module._modules, module._parameters, module._buffers):
            for name in [name for name in members if keyword.iskeyword(name)]:
                renamed[f"{path}.{name}".lstrip(".")] = unused_name(module, f"{name}_")
    for path, name in sorted(renamed.items(), key=lambda item: -item[0].count(".")):  # the innermost first
        owner = model.get_submodule(path.rpartition(".")[0])
        for members in (owner._modules, owner._parameters, owner._buffers):
            old = path.rpartition(".")[2]
            if old in members:
                members[name] = members.pop(old)  # type: ignore[assignment, type-var]
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            parts = str(node.target).split(".")
            paths = (".".join(parts[: i + 1]) for i in range(len(parts)))
            node.target = ".".join(renamed.get(path, part) for path, part in zip(paths, parts, strict=True))
