"""The sweep is never lost: every finished point is on disk, and what resumes ends as if it had never stopped."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import svitc
from support.measured import digits_file, family, halved, prunable
from support.paths import DIGITS
from svitc.cli.main import main
from svitc.data.dataset import Reading, load_data
from svitc.errors import InputError, OutputError
from svitc.evaluation.evaluator import Measurement
from svitc.evaluation.store import Store, fingerprint, key_of
from svitc.evaluation.sweep import Sweep, SweepSettings, open_sweep
from svitc.planning.plan import Plan
from svitc.support.reporter import Reporter


def point(n: int) -> Measurement:
    return Measurement(n, 100, 90 - n, 0, 0.25 + n / 7, 1 / 3)


@dataclass
class Counted:
    """A measurement under way."""

    evaluator: Counting
    point: Measurement
    cancelled: bool = False

    def result(self) -> Measurement:
        if self.evaluator.calls == self.evaluator.die_after:
            raise KeyboardInterrupt
        self.evaluator.calls += 1
        return self.point

    def cancel(self) -> None:
        self.cancelled = True


class Counting:
    """An evaluator that runs nothing: a point is known by the parameters that are left."""

    def __init__(self, die_after: int | None = None) -> None:
        self.calls, self.die_after, self.images, self.original = 0, die_after, 100, point(90)

    def start(self, candidate, plan) -> Counted:
        return Counted(self, point(candidate.parameter_count() % 90))


@pytest.fixture(scope="module")
def program():
    return family("spikformer")


@pytest.fixture(scope="module")
def plans(program):
    return [halved(program, group) for group in prunable(program)[:7]]


def lines(path):
    return path.read_text().splitlines()


def test_points_are_on_disk_as_soon_as_they_are_measured(program, plans, tmp_path):
    path = tmp_path / "new" / "folder" / "s.jsonl"
    evaluator = Counting(die_after=4)
    with pytest.raises(KeyboardInterrupt):
        Sweep(program, evaluator, None, Store(path, "me"))(plans)
    assert len(lines(path)) == 5, "the head, and four points"
    assert json.loads(lines(path)[1])["keeps"], "a person can read what was cut"


def test_resumed_and_not_measured_again(program, plans, tmp_path):
    path = tmp_path / "s.jsonl"
    want = Sweep(program, Counting(), None, Store(None, ""))(plans)
    with pytest.raises(KeyboardInterrupt):
        Sweep(program, Counting(die_after=4), None, Store(path, "me"))(plans)
    again = Counting()
    sweep = Sweep(program, again, None, Store(path, "me", resume=True))
    assert sweep(plans) == want and again.calls == sweep.measured == 3
    assert sweep(plans) == want and again.calls == 3
    assert Store(path, "me", resume=True).points == sweep.store.points


def test_threads_take_short_turns_while_a_sweep_runs(program, plans):
    before, seen = sys.getswitchinterval(), []

    class Watching(Counting):
        def start(self, candidate, plan) -> Counted:
            seen.append(sys.getswitchinterval())
            return super().start(candidate, plan)

    with pytest.raises(KeyboardInterrupt):
        Sweep(program, Watching(die_after=1), None, Store(None, ""))(plans)
    assert max(seen) < before == sys.getswitchinterval()


def test_a_kill_at_any_byte_costs_one_point_at_most(tmp_path):
    path = tmp_path / "s.jsonl"
    store = Store(path, "me")
    for n in range(3):
        store.add(f"k{n}", point(n), {"keeps": {"größe": "1/2"}})
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (*range(ends[0] + 2), *range(ends[1] - 2, ends[2] + 2)):
        path.write_bytes(whole[:cut])
        resumed = Store(path, "me", resume=True)
        left = max(0, sum(end <= cut for end in ends) - 1)
        assert resumed.points == {f"k{n}": point(n) for n in range(left)}, cut
        for n in range(left, 4):
            resumed.add(f"k{n}", point(n), {})
        assert Store(path, "me", resume=True).points == {f"k{n}": point(n) for n in range(4)}, cut


def test_a_file_that_cannot_be_cut_off_where_it_is_damaged(tmp_path, monkeypatch):
    path = tmp_path / "s.jsonl"
    Store(path, "me").add("k", point(1), {})
    path.write_bytes(path.read_bytes() + b"{")
    whole, opened = path.read_bytes(), Path.open

    def read_only(path, mode="r", *more, **options):
        if mode != "rb":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, mode, *more, **options)

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(OutputError, match="cannot write .*Read-only file system"):
        Store(path, "me", resume=True)
    assert path.read_bytes() == whole


def test_a_changed_number_is_measured_again(tmp_path):
    path = tmp_path / "s.jsonl"
    store = Store(path, "me")
    for n in range(3):
        store.add(f"k{n}", point(n), {})
    whole = path.read_text()
    for damaged in (whole.replace('"right": 1', '"right": 2'), whole.replace('"key": "k1"', '"key": "k7"')):
        assert damaged != whole
        path.write_text(damaged)
        assert Store(path, "me", resume=True).points == {"k0": point(0)}
    path.write_text(re.sub(r', "crc32": "\w+"', "", whole))  # as 0.1.0 wrote it
    assert Store(path, "me", resume=True).points == {f"k{n}": point(n) for n in range(3)}
    path.write_text(re.sub(r', "crc32": "\w+"', "", whole).replace('"right": 1', '"right": "1"'))
    assert Store(path, "me", resume=True).points == {"k0": point(0)}, "what is no measurement is none"


def test_another_sweep_is_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    Store(path, "me").add("k", point(1), {})
    before = path.read_bytes()
    with pytest.raises(InputError, match="is of another model, other images or other settings") as caught:
        Store(path, "you", resume=True)
    assert "--resume" in str(caught.value.hint) and path.read_bytes() == before
    begun = Store(path, "you")
    assert begun.points == {} and path.read_bytes() == before, "nothing is erased before there is something new"
    begun.add("l", point(2), {})
    assert [json.loads(line).get("key", json.loads(line).get("of")) for line in lines(path)] == ["you", "l"], (
        "not resumed: begun anew"
    )
    for text in ("mine", "{}\n", "[1]\n", '{"format": "svitc-plan-1"}\n'):
        path.write_text(text)
        with pytest.raises(InputError, match="holds no points of a sweep"):
            Store(path, "me", resume=True)
        assert path.read_text() == text
    path.write_text("")  # killed before its first line
    begun = Store(path, "me", resume=True)
    begun.add("m", point(3), {})
    assert Store(path, "me", resume=True).points == {"m": point(3)} and len(lines(path)) == 2


def test_a_disk_that_fills_up(tmp_path, monkeypatch):
    store = Store(tmp_path / "s.jsonl", "me")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        store.add("k", point(1), {})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Store(tmp_path / "file" / "below" / "s.jsonl", "me").add("k", point(1), {})


def test_a_key_is_of_what_is_measured(program, plans):
    group = prunable(program)[0]
    whole = Plan({group.name: ~halved(program, group).keep[group.name] | True})
    assert key_of(whole, "none") == key_of(Plan({}), "none")
    keys = {key_of(plan, refit) for plan in [*plans, whole] for refit in ("none", "full")}
    assert len(keys) == 2 * (len(plans) + 1)
    other = Plan({group.name: plans[0].keep[group.name][:, ::-1].copy()})
    assert key_of(other, "none") != key_of(plans[0], "none"), "as many channels, but others"


def test_a_fingerprint_is_of_all_that_decides(program):
    assert fingerprint(program, 1) == fingerprint(program.copy(), 1) != fingerprint(program, 2)
    other = program.copy()
    with torch.no_grad():
        next(other.module.parameters())[0] += 1e-6
    assert fingerprint(other) != fingerprint(program)
    steps = [fingerprint(svitc.load(DIGITS, time_steps=t)) for t in (2, 4)]
    assert steps[0] != steps[1], "the weights are the same, the network is not"
    other = program.copy()
    next(m for m in other.module.modules() if hasattr(m, "v_threshold")).v_threshold = 0.5
    assert fingerprint(other) != fingerprint(program)


class Ranks:
    """Threads instead of processes; as DistributedContext, with what each rank sees checked to be in step."""

    def __init__(self, rank: int, values: list, barrier: threading.Barrier) -> None:
        self.rank, self.size, self.values, self.barrier = rank, len(values), values, barrier

    def gather(self, value):
        self.values[self.rank] = value
        self.barrier.wait(20)
        found = list(self.values)
        self.barrier.wait(20)
        return found

    def broadcast(self, value, source=0):
        return self.gather(value)[source]


@pytest.mark.parametrize("finished", [0, 3])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_points(program, plans, tmp_path, size, finished):
    path = tmp_path / "s.jsonl"
    want = Sweep(program, Counting(), None, Store(None, ""))(plans)
    Sweep(program, Counting(), None, Store(path, "me"))(plans[:finished])
    values, barrier = [None] * size, threading.Barrier(size)
    found, evaluators, errors = {}, [Counting() for _ in range(size)], []

    def work(rank: int) -> None:
        try:
            store = Store(path if rank == 0 else None, "me", resume=True)  # as Compiler gives them
            found[rank] = Sweep(program, evaluators[rank], None, store, Ranks(rank, values, barrier))(plans)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert all(found[rank] == want for rank in range(size))
    calls = [each.calls for each in evaluators]
    assert sum(calls) == len(plans) - finished and max(calls) - min(calls) <= 1
    assert len(lines(path)) == 1 + len(plans), "one writer"


def test_samples_are_balanced_and_apart(tmp_path):
    program = svitc.load(DIGITS)
    data = load_data(digits_file(tmp_path, 200), program.input, program.info)
    sweep = open_sweep(program, data, Store(None, ""), SweepSettings(60, 40, 0, seen=True), Reporter())
    assert sweep.evaluator.images == 60 and sweep.calibration.images == 40
    labels = torch.cat([torch.from_numpy(y) for _, y in sweep.evaluator.chunks])
    assert labels.bincount(minlength=10).tolist() == [6] * 10
    assert sweep.calibration.labels.bincount(minlength=10).tolist() == [4] * 10
    measured = {x.tobytes() for chunk, _ in sweep.evaluator.chunks for x in chunk}
    assert not measured & {x.numpy().tobytes() for x in sweep.calibration.inputs}
    settings = SweepSettings(1000, 256, 0, seen=True)
    few = open_sweep(program, data.subset(range(9)), Store(None, ""), settings, Reporter())
    assert few.evaluator.images >= 4 and few.calibration.images >= 4
    with pytest.raises(InputError, match="3 images, too few"):
        open_sweep(program, data.subset(range(3)), Store(None, ""), settings, Reporter())


@pytest.mark.parametrize(
    ("count", "settings", "measured", "calibration", "shared"),
    [
        (200, SweepSettings(), 200, 200, True),  # fewer than 256 + 200: all of them for both
        (200, SweepSettings(60, 40), 200 - 140, 40, True),
        (300, SweepSettings(60, 40), 60, 40, False),
        (20, SweepSettings(), 20, 20, True),
        (4, SweepSettings(), 4, 4, True),
    ],
)
def test_few_images_without_labels_are_used_twice(tmp_path, count, settings, measured, calibration, shared):
    program = svitc.load(DIGITS)
    data = load_data(digits_file(tmp_path, count), program.input, program.info, reading=Reading(unlabeled=True))
    sweep = open_sweep(program, data, Store(None, ""), settings, Reporter())
    assert (sweep.evaluator.images, sweep.calibration.images, sweep.shared) == (measured, calibration, shared)
    measured_images = {x.tobytes() for chunk, _ in sweep.evaluator.chunks for x in chunk}
    calibrated = {x.numpy().tobytes() for x in sweep.calibration.inputs}
    assert bool(measured_images & calibrated) == shared
    said = sweep.to_json()
    assert (said["labels"], said["calibration_images_measured"]) == (False, shared)
    assert "digits.npz: no labels, so that a point lost" in sweep.remarks[0]
    assert len(sweep.remarks) == (1 if measured >= 64 else 2)
    with pytest.raises(InputError, match="3 images, too few"):
        open_sweep(program, data.subset(range(3)), Store(None, ""), settings, Reporter())


def test_images_with_labels_have_no_remarks_unless_they_are_few(tmp_path):
    program = svitc.load(DIGITS)
    data = load_data(digits_file(tmp_path, 200), program.input, program.info)
    sweep = open_sweep(program, data, Store(None, ""), SweepSettings(64, 40), Reporter())
    assert (sweep.remarks, sweep.shared, sweep.to_json()["labels"]) == ([], False, True)
    sweep = open_sweep(program, data, Store(None, ""), SweepSettings(63, 40), Reporter())
    assert sweep.remarks == ["the plan is unsure: 63 images are few to choose it on, some hundreds are better"]


COMPILE = (
    "-b",
    "0.75",
    "--policy",
    "primesvt",
    "--max-drop",
    "40",
    "--include",
    "*mlp*",
    "--refit",
    "batch-norm",
    "--sweep-images",
    "30",
    "--calibration-images",
    "20",
    "--verify-images",
    "1",
    "-T",
    "2",
)


def compiled(folder, data, *more: str) -> dict:
    assert main(["compile", str(DIGITS), "--data", str(data), "-o", str(folder), *COMPILE, *more]) == 0
    return json.loads((folder / "report.json").read_text())


def test_killed_in_the_middle_and_resumed(tmp_path, capsys):
    """kill -9 of a real process; then a last line that the kill has cut short as well."""
    data = digits_file(tmp_path, 80)
    want = compiled(tmp_path / "whole", data)["sweep"]["evaluations"]
    assert want > 8
    path = tmp_path / "out.sweep.jsonl"
    command = [sys.executable, "-m", "svitc", "compile", DIGITS, "--data", data, "-o", tmp_path / "out", *COMPILE]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while time.monotonic() < end and (not path.exists() or len(lines(path)) < 5):
            assert process.poll() is None, "it was over before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    path.write_bytes(path.read_bytes()[:-20])
    finished = len(path.read_text().split("\n")) - 2
    assert 3 <= finished < want
    report = compiled(tmp_path / "out", data, "--resume")
    assert report["sweep"]["evaluations"] == want - finished and report["sweep"]["points"] == want
    for name in ("plan.json", "model.onnx", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(lines(path)) == sorted(lines(tmp_path / "whole.sweep.jsonl"))
    assert compiled(tmp_path / "out", data, "--resume")["sweep"]["evaluations"] == 0
    capsys.readouterr()
    for more in (["--seed", "1"], ["--sweep-images", "31"], ["-T", "3"]):  # not what the points are of
        args = ["compile", str(DIGITS), "--data", str(data), "-o", str(tmp_path / "out"), *COMPILE, *more, "--resume"]
        assert main(args) == 3
        assert "another model, other images or other settings" in capsys.readouterr().err
