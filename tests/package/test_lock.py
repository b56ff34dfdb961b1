"""The lock has the versions of constraints.txt, with hashes."""

from __future__ import annotations

import re

from support.paths import ROOT

PYTORCH = {"torch", "torchvision", "torchaudio"}  # whose builds of one version differ from index to index
AGAIN = "make lock writes it anew"


def test_the_lock_is_of_the_versions_in_the_constraints():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert locked == {name: version for name, version in pinned.items() if name not in PYTORCH}, AGAIN


def test_every_version_has_hashes():
    entries = re.split(r"^(?=[\w.-]+==)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]
    bare = [entry.split()[0] for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)]
    assert entries and bare == [], AGAIN
