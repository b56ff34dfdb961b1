"""The code in README, CONTRIBUTING and docs/ works.

Python blocks are run, JSON and YAML is read, and every ``svitc`` line is checked by the command line itself, up to the
point where it would load the model; some are run. What cannot run here says so in the document:
``<!-- not run: why -->`` above the block.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch.utils.data import DataLoader, TensorDataset
from typer.main import get_command

import svitc
from support.documents import DOCUMENTS, Block, blocks, words
from support.families import warm
from support.paths import DIGITS, ROOT
from svitc.cli.main import app, main
from svitc.driver import synthetic_data
from svitc.passes.policies import auto

BLOCKS = blocks()
PYTHON_PAGES = sorted({b.document for b in BLOCKS if b.language == "python" and b.reason is None})
SHELL_LINES = [(b, line) for b in BLOCKS if b.language == "shell" and b.reason is None for line in b.commands()]
ARGUMENTS = dict(img_size_h=32, img_size_w=32, patch_size=4, embed_dims=16, num_heads=2, depths=1, num_classes=10, T=2)
REACHED = 64  # exit status of a command whose arguments are right
STARTS_WORK = (  # what commands call once they have checked their arguments
    *(f"svitc.cli.commands.{name}.load_program" for name in ("compile", "energy", "inspect", "sensitivity")),
    "svitc.driver.output_folder.open_folder",
    "svitc.bench.compare.measure",
)
COMPILED = "svitc compile model.pt --budget 0.6 --data val/"
STREAMING = "svitc compile model.pt --weights int8 --streaming"
RUN = (  # lines of the documents that are run, beside the two above
    "svitc compile model.pt --weights int8",
    "svitc verify svitc-out",
    "svitc inspect demo/digits.pt",
    "svitc report svitc-out",
    "svitc energy model.pt --data val/ --limit 100",
)
SCRIPTS = {  # of an output folder -> the folder, and lines that run it
    "predict.py": ("svitc-out", ["python svitc-out/predict.py cat.jpg dog.png"]),
    "check.py": ("svitc-out", ["python check.py", "python check.py --spikes"]),
    "stream.py": ("out", ["python stream.py frames.npy", "python stream.py image.npy 8"]),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what the documents name: a small model, images, and what two of their lines write."""
    folder = tmp_path_factory.mktemp("documents")
    torch.manual_seed(0)
    model = warm(Spikformer(**ARGUMENTS), (3, 32, 32))
    scaled = {"mean": [0.5] * 3, "std": [0.5] * 3}
    svitc.save(
        model, folder / "model.pt", arch="Spikformer", arch_args=ARGUMENTS, input_shape=(3, 32, 32), normalize=scaled
    )
    digits = load_digits()
    for name, first in (("val", 0), ("train", 100), ("more", 200)):
        for i in range(first, first + 100):
            picture = Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).convert("RGB").resize((32, 32))
            (folder / name / str(digits.target[i])).mkdir(parents=True, exist_ok=True)
            picture.save(folder / name / str(digits.target[i]) / f"{i}.png")
    for name in ("cat.jpg", "dog.png"):
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / name)
    (folder / "demo").mkdir()
    (folder / "demo" / "digits.pt").symlink_to(DIGITS)
    for name in (
        "demo/digits-test.npz",
        "demo/digits-train.npz",
        "recordings/0.npy",
        "frames/0.png",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    generator = np.random.default_rng(0)
    np.save(folder / "frames.npy", generator.standard_normal((3, 3, 32, 32), dtype=np.float32))
    np.save(folder / "image.npy", generator.standard_normal((3, 32, 32), dtype=np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _hurry(patch)
        assert main(words(COMPILED)[1:]) == 0
        assert main([*words(STREAMING)[1:], "-o", "out"]) == 0
    for budget in ("0.9", "0.6"):
        (folder / "out" / budget).symlink_to(folder / "svitc-out")
    return folder


def _hurry(patch: pytest.MonkeyPatch) -> None:
    """Draw 32 synthetic images instead of 1,368, and measure each group at one rate instead of nine."""
    patch.setattr(synthetic_data, "IMAGES", (32, 32))
    patch.setattr(synthetic_data, "CANDIDATES", 1)
    curves = auto.sensitivity_curves
    patch.setattr(
        auto, "sensitivity_curves", lambda problem, space, rates, *rest: curves(problem, space, rates[4:5], *rest)
    )


def test_every_block_is_of_a_kind_that_is_checked_or_says_why_not():
    kinds = {"python", "json", "yaml", "shell", "text"}
    assert [str(block) for block in BLOCKS if block.reason is None and block.language not in kinds] == []
    hidden = [b for b in BLOCKS if b.language == "text" and re.search(r"^(svitc |import |from |def )", b.code, re.M)]
    assert [str(block) for block in hidden] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("json", "yaml")], ids=str)
def test_data_can_be_read(block):
    assert (json.loads if block.language == "json" else yaml.safe_load)(block.code)


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_runs(page, workplace, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, and share their names."""
    for path in workplace.iterdir():
        (tmp_path / path.name).symlink_to(path)
    if page == "docs/python.md":
        (tmp_path / "out").unlink()  # it writes one of its own
    monkeypatch.chdir(tmp_path)
    _hurry(monkeypatch)
    for folder in (tmp_path, tmp_path / "svitc-out", tmp_path / "out"):
        monkeypatch.syspath_prepend(str(folder))
    names = {"__name__": "__main__", **GIVEN.get(page, dict)()}
    for block in BLOCKS:
        if block.document == page and block.language == "python" and block.reason is None:
            source = "\n" * block.line + block.code  # so that errors name the line of the document
            exec(compile(source, str(ROOT / page), "exec"), names)
    if page in HOLDS:
        assert HOLDS[page](names)


@pytest.mark.parametrize(("block", "line"), SHELL_LINES, ids=lambda value: str(value))
def test_command_lines_are_right(block: Block, line, workplace, monkeypatch, capsys):
    program, *arguments = words(line)
    if program == "torchrun":
        program, arguments = "svitc", arguments[arguments.index("svitc") + 1 :]
    if program == "svitc":
        monkeypatch.chdir(workplace)
        for place in STARTS_WORK:
            monkeypatch.setattr(place, _stop)
        if "--runtime" in arguments:
            pytest.importorskip(arguments[arguments.index("--runtime") + 1])
        status = main(arguments)
        assert status == (0 if arguments[0] == "report" else REACHED), capsys.readouterr().err
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program.startswith(".venv/bin/"):
        paths = [word for word in arguments if "/" in word]
        assert all((ROOT / path).exists() for path in paths)
    elif program == "python":
        assert Path(arguments[0]).name in SCRIPTS
    else:
        assert program in ("pip", "git", "npm", "./stream")


def test_options_in_the_text_exist():
    """Of svitc, or of the programs that the documents name beside it."""
    others = {"--index-url", "--update-golden", "--spikes", "--openvino", "--only", "--rounds", "--strict", "--quick"}
    root = get_command(app)
    commands = [root, *root.commands.values()]
    known = {name for command in commands for option in command.params for name in option.opts + option.secondary_opts}
    for document in DOCUMENTS:
        inline = re.findall(r"`([^`\n]+)`", (ROOT / document).read_text())
        named = {name for text in inline for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
        assert named - known - others - {"--help", "--version"} == set(), document


def _stop(*_args: object, **_options: object) -> None:
    raise SystemExit(REACHED)


@pytest.mark.parametrize("line", RUN)
def test_commands_run(line, workplace, monkeypatch, capsys):
    assert any(line == " ".join(words(written)) for _, written in SHELL_LINES)
    monkeypatch.chdir(workplace)
    _hurry(monkeypatch)
    extra = ["-o", "int8-out"] if line.startswith("svitc compile") else []
    assert main([*words(line)[1:], *extra]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for shown in _shown(line):
        assert " ".join(shown.split()) in printed


def _shown(line: str) -> list[str]:
    """Return what a document says that a command prints."""
    shown: list[str] = []
    for block in BLOCKS:
        lines = block.code.splitlines()
        if block.language == "shell" and lines[0] == f"$ {line}":
            shown += [text for text in lines[1:] if text != "…"]
    return shown


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_of_an_output_folder_run(script, workplace):
    folder, lines = SCRIPTS[script]
    written = {" ".join(words(line)) for _, line in SHELL_LINES}
    for line in lines:
        assert line in written
        _, name, *arguments = words(line)
        path = workplace / folder / Path(name).name
        where = path.parent if script == "check.py" else workplace
        done = subprocess.run([sys.executable, path, *arguments], cwd=where, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def _anytime() -> dict:
    return {"np": np, "t": 0, "logits": np.array([1.0, 3.0]), "offsets": [[0.0, 0.1]], "thresholds": [0.5]}


def _notebook() -> dict:
    images = np.random.default_rng(0).integers(0, 256, (120, 3, 32, 32)).astype(np.uint8)
    labels = np.arange(120) % 10
    pixels = torch.from_numpy(images) / 255
    loader = DataLoader(TensorDataset(pixels, torch.from_numpy(labels)), batch_size=50)
    model = warm(Spikformer(**ARGUMENTS), (3, 32, 32))
    return {"torch": torch, "model": model, "images": images, "labels": labels, "loader": loader}


def _frames() -> dict:
    frames = np.load("frames.npy")[:, None]
    Path("model.onnx").symlink_to(Path("out") / "model.onnx")
    return {"frames": frames, "frame": frames[0], "np": np}


def _network() -> dict:
    return {"outputs": torch.rand(2, 5, 4, 4), "targets": torch.rand(2, 5, 4, 4), "torch": torch}


# page -> what its text takes as given, by name
GIVEN = {
    "docs/anytime.md": _anytime,
    "docs/python.md": _notebook,
    "docs/streaming.md": _frames,
    "docs/outputs.md": _network,
}
# page -> what is true afterwards
HOLDS = {
    "docs/data.md": lambda names: names["val"]().dataset[0][0].shape == (3, 224, 224),
    "docs/outputs.md": lambda names: names["pixel_agreement"](names["outputs"], names["targets"]).shape == (2,),
    "docs/passes.md": lambda names: names["pipeline"].results[0].changed == [],
    "docs/python.md": lambda names: names["done"].verdict.passed,
}
