"""Hints for misspelt names, and paths that do not exist."""

from __future__ import annotations

import pytest

from svitc.cli.main import main
from svitc.errors import UsageError
from svitc.onnx import target_of
from svitc.passes.policies import make
from svitc.support.names import known


def test_a_misspelt_name_is_answered_with_the_one_that_was_meant():
    assert known("unifrom", ["uniform", "auto"]) == "Did you mean uniform? Known: uniform, auto."
    assert known("zebra", ["uniform", "auto"], "Policies are") == "Policies are uniform, auto."
    for call, words in [
        (lambda: make("unifrom"), "Did you mean uniform"),
        (lambda: make("uniform", criterion="tylor"), "Did you mean taylor"),
        (lambda: target_of("opnvino"), "Did you mean openvino. Targets are cpu"),
    ]:
        with pytest.raises(UsageError, match=words):
            call()


def test_a_missing_model_is_refused_before_torch_is_imported(monkeypatch, capsys, tmp_path):
    (tmp_path / "model.pt").touch()
    monkeypatch.setitem(__import__("sys").modules, "svitc.driver.load", None)
    assert main(["compile", str(tmp_path / "modl.pt")]) == 3
    assert "modl.pt does not exist" in capsys.readouterr().err
