"""Documents name files, tests and modules that are there."""

from __future__ import annotations

import re
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.paths import DIGITS
from support.shell import run
from svitc.frontends.capture.supported import page

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
FOLDERS = "compiler|passes|frontends|benchmarks|tests|docs|demo"
# what commands in the documents write, and a file of ONNX Runtime's repository
ELSEWHERE = ("demo/out", "demo/digits-test.npz", "demo/digits-train.npz", "docs/OperatorKernels.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(document):
    text = document.read_text()
    paths = set(re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w", text))
    missing = sorted(p for p in paths if not p.startswith(ELSEWHERE) and not (ROOT / p).exists())
    assert not missing, f"{document.name} names {missing}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = re.sub(r"^(```.*?^```|    .*?$)|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing, f"{document.name} links to {missing}"


def test_the_page_of_what_is_supported_is_what_the_code_says():
    stored = (ROOT / "docs" / "operators.md").read_text()
    assert stored == page(), "write it again: svitc inspect --supported > docs/operators.md"


def test_the_quickstart_shows_what_inspect_prints(capsys):
    text = (ROOT / "docs" / "quickstart.md").read_text()
    session = re.search(r"\$ svitc inspect demo/digits.pt\n(.*?)\n\n", text, re.DOTALL)
    assert session is not None
    status, out, _ = run(capsys, "inspect", DIGITS)
    printed = "\n".join(line.rstrip() for line in out.splitlines())
    parts = [part.strip("\n") for part in textwrap.dedent(session[1]).split("…")]
    assert status == 0 and len(parts) == 3 and all(part in printed for part in parts)


def test_names_of_tests_in_the_guide_exist():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert f"def {name}(" in tests, name


def test_the_guide_draws_the_rooms_that_are_checked():
    guide, settings = (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / "pyproject.toml").read_text()
    drawing = re.search(r"```\n(cli .*?)```", guide, re.DOTALL)
    layers = re.search(r"^layers = \[\n(.*?)^\]", settings, re.DOTALL | re.MULTILINE)
    assert drawing and layers
    drawn = [re.split(r" {2,}", line)[0] for line in drawing[1].splitlines()]
    assert drawn == re.findall(r'"(.+)"', layers[1])
    for room in re.findall(r"\w+", " ".join(drawn)):
        assert find_spec(f"svitc.{room}") is not None, room


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert [
        line for line in text.splitlines() if line.startswith("|") and len(re.sub(r"\]\([^)]*\)", "]", line)) > 100
    ] == []
