"""Energy tables, and the command as a user meets it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from support.measured import digits_file, family
from support.paths import DIGITS
from support.shell import run
from svitc.cli.main import main
from svitc.energy.cost_table import DEFAULT, load_table
from svitc.energy.estimate import energy
from svitc.errors import InputError

# tables


def test_the_table_is_the_published_one():
    table = load_table()
    assert "ISSCC 2014" in table.source and "45 nm" in table.process
    of = table.operations
    assert of["float32.mult"] + of["float32.add"] == pytest.approx(4.6)
    assert (of["float32.add"], of["float16.add"], of["float16.mult"]) == (0.9, 0.4, 1.1)
    assert (of["int32.add"], of["int32.mult"], of["int8.add"], of["int8.mult"]) == (0.1, 3.1, 0.03, 0.2)
    for size, pj in ((1, 10), (8192, 10), (8193, 20), (32768, 20), (1 << 20, 100), ((1 << 20) + 1, 1300)):
        assert table.moving(8, size) == pj


def changed(path: Path, **keys) -> Path:
    """The table that ships, with values at dotted keys replaced, or removed where they are None."""
    content = yaml.safe_load(DEFAULT.read_bytes())
    for key, value in keys.items():
        at = content
        *above, last = key.split("__")
        for each in above:
            at = at[int(each) if each.isdigit() else each]
        if value is None:
            del at[last]
        else:
            at[int(last) if last.isdigit() else last] = value
    path.write_text(yaml.safe_dump(content))
    return path


def test_another_table_changes_the_energy_by_what_it_says(tmp_path):
    program, x = family("spikformer"), [torch.randn(1, 3, 32, 48)]
    before = energy(program, x)
    table = load_table(changed(tmp_path / "t.yaml", operations__float32__add=1.9, memory__dram__pj=0, memory__sram=[]))
    after = energy(program, x, table)
    a, b = before.totals(), after.totals()
    adds = sum(each.operations.get("float32.add", 0) for each in before.rows)
    assert b["compute_pj"] - a["compute_pj"] == pytest.approx(adds)
    assert b["memory_pj"] == 0 and after.weights_in == "DRAM" and a["memory_pj"] > 0
    assert (a["ac"], a["mac"], a["weight_bytes"]) == (b["ac"], b["mac"], b["weight_bytes"])


MALFORMED = {
    "name is missing": {"name": None},
    "operations.float32.add is missing": {"operations__float32__add": None},
    "operations.int8 is missing": {"operations__int8": None},
    "operations.int8.mult is -1": {"operations__int8__mult": -1},
    "operations.int8.add is True": {"operations__int8__add": True},
    "operations.int8.add is nan": {"operations__int8__add": math.nan},
    "operations.int8.add is '1e3'": {"operations__int8__add": "1e3"},
    "operations.int8.div is not a key": {"operations__int8__div": 1},
    "operations.int4 is not a key": {"operations__int4": {"add": 1, "mult": 1}},
    "operations is [1], not a mapping": {"operations": [1]},
    "memory.access_bits is 0": {"memory__access_bits": 0},
    "memory.dram is 5, not a mapping": {"memory__dram": 5},
    "memory.sram is 5, not a list": {"memory__sram": 5},
    "memory.sram[1].bytes is 8192, not larger": {"memory__sram__1__bytes": 8192},
    "memory.sram[2].pj is missing": {"memory__sram__2__pj": None},
    "memory.sram[0].bytes is 1.5": {"memory__sram__0__bytes": 1.5},
    "source is 5, not a text": {"source": 5},
}


@pytest.mark.parametrize("message", MALFORMED)
def test_a_malformed_table_is_refused_by_its_key(tmp_path, message):
    with pytest.raises(InputError) as caught:
        load_table(changed(tmp_path / "t.yaml", **MALFORMED[message]))
    assert message in caught.value.message and "t.yaml" in caught.value.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: [", "not YAML"),
        (b"\xff\xfe\xfd", "not YAML"),
        (b"", "the file is None"),
        (b"- 1", r"the file is [1]"),
        (b"[" * 20_000, "not YAML"),
        (b"!!python/object:os.system {}", "not YAML"),
    ],
)
def test_a_file_that_is_no_table(tmp_path, data, message):
    (tmp_path / "t.yaml").write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_table(tmp_path / "t.yaml")
    assert message in caught.value.message
    with pytest.raises(InputError, match="cannot read"):
        load_table(tmp_path / "none.yaml")


# the command


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Digits as int8 and as fp32, and images."""
    at = tmp_path_factory.mktemp("energy")
    assert main(["compile", str(DIGITS), "--no-data", "uniform", "--weights", "int8", "-o", str(at / "int8")]) == 0
    assert main(["compile", str(DIGITS), "--no-data", "uniform", "-b", "0.5", "-o", str(at / "fp32")]) == 0
    return at / "int8", at / "fp32", digits_file(at, 40)


def test_the_command_says_what_is_missing(capsys):
    status, out, err = run(capsys, "energy", DIGITS)
    assert status == 2 and "--data" in err and out == ""


def test_a_bad_table_is_refused_before_the_model_is_loaded(capsys, tmp_path, folders):
    table = changed(tmp_path / "t.yaml", operations__int8=None)
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    status, out, err = run(capsys, "energy", tmp_path / "broken.pt", "--data", folders[2], "--table", table)
    assert status == 3 and "operations.int8 is missing" in err and out == ""


def test_against_as_json(capsys, folders):
    int8, _, data = folders
    status, out, _ = run(capsys, "energy", int8, "--against", DIGITS, "--data", data, "--limit", 20, "--json")
    assert status == 0
    report = json.loads(out)
    assert report["images"] == report["against"]["images"] == 20
    assert (report["weights"], report["against"]["weights"]) == ("int16/8", "fp32")
    ours, theirs = report["totals"], report["against"]["totals"]
    assert report["saving"]["total"] == pytest.approx(1 - ours["pj"] / theirs["pj"])
    assert report["saving"]["compute"] == pytest.approx(1 - ours["compute_pj"] / theirs["compute_pj"])
    assert 0 < report["saving"]["compute"] < 1
    for each in (report, report["against"]):
        totals = each["totals"]
        for key in ("ac", "int_ac", "mac", "pj", "memory_pj", "weight_bytes"):
            assert totals[key] == pytest.approx(sum(layer[key] for layer in each["layers"]))
        assert totals["pj"] == pytest.approx(totals["compute_pj"] + totals["memory_pj"])
    ours, theirs = (
        next(layer for layer in each["layers"] if layer["name"] == "blocks.0.mlp.fc1.0")
        for each in (report, report["against"])
    )
    assert (ours["weight_bits"], ours["weight_bytes"]) == (8, 64 * 256 + 8 * 256)  # int8; float32 scales and biases
    assert (theirs["weight_bits"], theirs["weight_bytes"]) == (32, 4 * (64 * 256 + 256))


def test_as_a_table(capsys, folders):
    int8, fp32, data = folders
    status, out, _ = run(capsys, "energy", int8, "--against", fp32, "--data", data, "--limit", 10)
    assert status == 0
    for word in (
        "saving",
        "blocks.0.mlp.fc1.0",
        "integer AC",
        "fixed point",
        "ISSCC 2014",
        "float32 add 0.9, mult 3.7",
    ):
        assert word in out, word
    status, out, _ = run(capsys, "energy", DIGITS, "--data", data, "--limit", 10)
    assert status == 0 and "saving" not in out and "firing rate" in out


def test_a_step_between_memories_is_named(capsys, tmp_path, folders):
    """The int8 digits take 162 kB, the original 646 kB: a table with 256 kB of SRAM puts them apart."""
    table = changed(tmp_path / "t.yaml", memory__sram=[{"bytes": 1 << 18, "pj": 100}])
    given = ("energy", folders[0], "--against", DIGITS, "--data", folders[2], "--limit", 10)
    report = json.loads(run(capsys, *given, "--table", table, "--json")[1])
    assert (report["weights_in"], report["against"]["weights_in"]) == ("SRAM 256 kB", "DRAM")
    a, b = report["totals"], report["against"]["totals"]
    assert (
        b["weight_pj"] == pytest.approx(b["weight_bytes"] / 8 * 1300) and a["weight_pj"] == a["weight_bytes"] / 8 * 100
    )
    same = 1 - a["pj"] / (b["compute_pj"] + b["activation_pj"] + b["membrane_pj"] + b["weight_bytes"] / 8 * 100)
    assert report["saving"]["total_same_memory"] == pytest.approx(same) and same < report["saving"]["total"]
    assert f"{same:.1%} of the total" in report["notes"][-1] and "SRAM 256 kB" in report["notes"][-1]
    report = json.loads(run(capsys, *given, "--json")[1])
    assert report["weights_in"] == report["against"]["weights_in"] == "SRAM 1 MB"
    assert report["saving"]["total_same_memory"] == pytest.approx(report["saving"]["total"])
    assert not any("SRAM" in note for note in report["notes"])


def test_a_folder_and_its_checkpoint_are_the_same_network(capsys, tmp_path, folders):
    data = folders[2]
    assert (
        run(capsys, "compile", DIGITS, "--no-data", "uniform", "-b", "1", "--clean", "off", "-o", tmp_path / "whole")[0]
        == 0
    )
    models = DIGITS, tmp_path / "whole"
    found = [json.loads(run(capsys, "energy", each, "--data", data, "--json")[1]) for each in models]
    assert found[0]["totals"] == found[1]["totals"] and found[0]["images"] == 40


def test_a_table_of_ones_counts_operations(capsys, tmp_path, folders):
    ones = {kind: {"add": 1, "mult": 1} for kind in ("float32", "int32", "int8")}
    table = changed(tmp_path / "t.yaml", operations=ones)
    status, out, _ = run(capsys, "energy", folders[0], "--data", folders[2], "--limit", 10, "--table", table, "--json")
    report = json.loads(out)
    assert status == 0 and set(report["table"]["operations"].values()) == {1}
    for layer in report["layers"]:
        assert layer["compute_pj"] == pytest.approx(sum(layer["operations"].values()))
