"""The zoo: small definitions of published spiking networks, written from their papers in the style of their authors.

Each file holds one architecture, or closely related ones, with the paper in its docstring, and a table ``ZOO`` of
definitions by name. None is written around what svitc supports. Start with ``definition.py``.
"""

from __future__ import annotations

from . import (
    braincog,
    dense,
    e_spikeformer_large,
    experts,
    maxformer,
    ms_resnet,
    mst,
    msvit,
    norms,
    psn,
    sew_resnet,
    sglformer,
    spikezip,
    spikingformer,
    spikingresformer,
    statten,
    swformer,
    tim,
    token_pruning,
    trevsnn,
)
from .definition import Definition

FILES = (
    spikingformer,
    spikingresformer,
    sglformer,
    statten,
    swformer,
    token_pruning,
    msvit,
    maxformer,
    tim,
    experts,
    mst,
    spikezip,
    e_spikeformer_large,
    braincog,
    dense,
    trevsnn,
    sew_resnet,
    ms_resnet,
    psn,
    norms,
)
ZOO: dict[str, Definition] = {name: definition for file in FILES for name, definition in file.ZOO.items()}

__all__ = ["ZOO", "Definition"]
