"""The published configurations that svitc recognizes from a bare checkpoint, as rows of a table."""

from __future__ import annotations

import torch

from svitc.frontends.checkpoint import spikingjelly_families
from svitc.frontends.published.registry import IMAGENET, PUBLISHED, TOP1
from svitc.support.types import JsonDict

# Under which key the repositories' training scripts save the weights: those that came from timm's say "state_dict",
# those from MAE's and for event data "model".
OF_MAE = ("MetaSpikeFormer", "ESpikeFormer")
EVENT_SCRIPTS = {"spikformer_cifar10dvs", "qkformer_cifar10dvs", "qkformer_gesture"}


def known_models() -> list[JsonDict]:
    """Return a row for each configuration.

    Returns:
        Its ``name``, ``family``, ``source`` (``official`` repository or ``spikingjelly``), ``input`` shape without the
        batch, time ``steps``, ``parameters``, published ``top1`` in percent or None, and ``entry``, the key
        under which the training script's checkpoint has the weights, None for a bare state dict.
    """
    rows: list[JsonDict] = []
    for name, published in PUBLISHED.items():
        of_mae = published.factory in OF_MAE or (published.factory == "QKFormer" and published.input == IMAGENET)
        rows.append(
            {
                "name": name,
                "family": published.factory,
                "source": "official",
                "input": list(published.input),
                "steps": published.arguments.get("T", 1),
                "parameters": published.parameters,
                "top1": TOP1.get(name),
                "entry": "model" if of_mae or name in EVENT_SCRIPTS else "state_dict",
            }
        )
    return rows + [_spikingjelly(published) for published in spikingjelly_families.PUBLISHED]


def _spikingjelly(published: spikingjelly_families.Published) -> JsonDict:
    with torch.device("meta"):
        model = spikingjelly_families.build(published.name, {})
    return {
        "name": published.name,
        "family": published.family,
        "source": "spikingjelly",
        "input": [3, *([32, 32] if "cifar" in published.name else [224, 224])],
        "steps": model.T,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "top1": None,
        "entry": None,
    }
