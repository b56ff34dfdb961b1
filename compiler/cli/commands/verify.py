"""``svitc verify``: check a compiled file against its source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import load_images, start
from svitc.cli.options import DataOptions, VerifiedRunOptions, VerifyImages
from svitc.cli.views.verify import differing_layers, verdict_line
from svitc.errors import VerifyError


@dataclass(frozen=True)
class VerifyOptions(VerifiedRunOptions):
    """The options of a verified run, with more images by default, as verifying is all that is done."""

    verify_images: VerifyImages = 16


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="An output folder of svitc compile.", show_default=False)
    ],
    data: DataOptions,
    output: VerifyOptions,
) -> None:
    """Check that the ONNX file in FOLDER is the same network as its model.safetensors and model.py.

    Layer by layer, then as a whole.
    """
    start(output.verbose)
    from svitc.driver.output_folder import open_folder, verify_folder

    with terminal.reporting(output.quiet) as reporter:
        program, exported = open_folder(folder)
        images = load_images(data.data, program, data.limit, output.seed, data, data.unlabeled)
        verdict = verify_folder(program, exported, images, output.verify_images, output.seed, reporter)
    if output.as_json:
        print(json.dumps(verdict.to_json(), indent=1))
    else:
        verdict_line(verdict.to_json())
        differing_layers(verdict)
    if not verdict.passed:
        raise VerifyError(
            f"{folder}/model.onnx is not the same network: it diverges first at {verdict.first_divergence}"
        )
