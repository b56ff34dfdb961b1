"""``svitc verify``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import Preparation, load_labelled, start
from svitc.cli.options import (
    AsJson,
    Crop,
    DataPath,
    Images,
    Limit,
    Mean,
    Resize,
    Seed,
    Std,
    Verbose,
)
from svitc.cli.views.compile import verdict_line
from svitc.errors import VerifyError


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="An output folder of svitc compile.", show_default=False)
    ],
    data: DataPath = None,
    limit: Limit = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    images: Images = 16,
    seed: Seed = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Is the ONNX file in FOLDER the same network as its model.safetensors and model.py? Layer by layer, then whole."""
    start(verbose)
    from svitc.driver.output_folder import open_folder, verify_folder
    from svitc.support.reporter import Reporter

    with terminal.progress(quiet=as_json or verbose) as show:
        program, exported = open_folder(folder)
        labelled = load_labelled(data, program, limit, seed, Preparation(mean, std, resize, crop))
        verdict = verify_folder(program, exported, labelled, images, seed, Reporter(show))
    if as_json:
        print(json.dumps(verdict.to_json(), indent=1))
    else:
        verdict_line(verdict.to_json())
        for layer in verdict.layers.values():
            if layer.flips_beyond_rounding or layer.currents_beyond_rounding:
                terminal.out.print(f"  {asdict(layer)}")
    if not verdict.passed:
        raise VerifyError(
            f"{folder}/model.onnx is not the same network: it diverges first at {verdict.first_divergence}"
        )
