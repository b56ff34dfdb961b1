"""A newcomer's first five minutes: the README's commands as they stand, from a fresh wheel, in a pseudo-terminal.

From the installed wheel to a verified model.onnx, the page in a real browser, and one prediction on a JPEG. ``make
newcomer`` runs every command, in about 40 s of one thread without the install. Otherwise the search for a plan on
images, which takes half of that, is left out: about 20 s.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from support.browser import BROWSER, browser
from support.paths import DIGITS
from support.shell import environment_apart, run_apart

pty = pytest.importorskip("pty")  # not on Windows
ROOT = Path(__file__).resolve().parents[2]
IMAGES = 60
EVERY_COMMAND = "SVITC_NEWCOMER" in os.environ
LIMIT_S = 180
SIZE = 16

pytestmark = pytest.mark.slow


def commands() -> list[str]:
    """The commands of the README's section of three, without their comments."""
    section = (ROOT / "README.md").read_text().partition("## Three commands")[2].partition("\n- ")[0]
    return [line.partition("#")[0].strip() for line in re.findall(r"^    (svitc .*)$", section, re.MULTILINE)]


def picture(number: int) -> Image.Image:
    pixels = Image.fromarray((load_digits().images[number] * 255 / 16).astype(np.uint8))
    return pixels.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as the README assumes: model.pt, and val/ with a folder of pictures for each class."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "model.pt").write_bytes(DIGITS.read_bytes())
    for number, label in enumerate(load_digits().target[:IMAGES]):
        place = folder / "val" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number}.png")
    picture(IMAGES + 1).save(folder / "digit.jpg", quality=95)
    return folder


def typed(command: str, scripts: Path, folder: Path) -> str:
    """Type a command into a pseudo-terminal, and return what it shows; it must succeed."""
    master, slave = pty.openpty()
    settings = environment_apart() | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "TERM": "xterm"}
    words = shlex.split(command)
    words[0] = str(scripts / words[0])
    process = subprocess.Popen(words, cwd=folder, env=settings, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown, end = b"", time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the other end is closed
                break
        elif process.poll() is not None:
            break
    else:
        process.kill()
    text = shown.decode()
    os.close(master)
    assert process.wait() == 0 and "Traceback" not in text, f"{command}\n{text[-3000:]}"
    return text


def test_the_readme_leads_from_a_wheel_to_a_verified_file_a_page_and_a_prediction(scripts, folder):
    listed = commands()
    assert len(listed) == 3 and {command.split()[1] for command in listed} == {"compile", "verify"}
    start = time.monotonic()
    for command in listed if EVERY_COMMAND else listed[1:]:
        text = typed(command, scripts, folder)
        assert "verified" in text and "0/?" not in text
        if "--data" in command:
            assert "top-1" in text and (folder / "svitc-out" / "report.html").is_file()
    assert time.monotonic() - start < LIMIT_S
    done = run_apart(scripts / "python", "svitc-out/predict.py", "digit.jpg", cwd=folder)
    assert done.startswith(f"digit.jpg: {load_digits().target[IMAGES + 1]} ")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine to open report.html with")
def test_the_page_opens_in_a_browser_without_an_error(scripts, folder):
    if not (folder / "svitc-out").is_dir():
        typed(commands()[1], scripts, folder)
    with browser() as page:
        page.open(folder / "svitc-out" / "report.html", 1400)
        assert page.problems == [] and " became " in page.value("document.title")
