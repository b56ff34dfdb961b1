"""Recordings of events: every format that is read, frames as SpikingJelly makes them, and what is wrong with a file."""

from __future__ import annotations

import ast
import importlib.util
import io
import struct
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from svitc.cli.common import load_images
from svitc.cli.image_options import PreparationOptions
from svitc.data import camera_files
from svitc.data.dataset import Reading, load_data
from svitc.data.event_frames import checked_events, frames_of
from svitc.data.event_options import EventOptions, parse_event_options
from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec

HEIGHT, WIDTH = 12, 16
SPEC = InputSpec((4, 2, HEIGHT, WIDTH))
FOURS = np.array([4, 2, HEIGHT, WIDTH])
FIELDS = ("t", "x", "y", "p")
DEFAULT = EventOptions()


def recording(count: int = 403, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> dict[str, np.ndarray]:
    """Return events in the order of time, whose rate changes."""
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.integers(0, 50, count) * (1 + np.arange(count) // 100))
    x, y, p = (rng.integers(0, limit, count) for limit in (width, height, 2))
    return {"t": t + 1000, "x": x, "y": y, "p": p}


def structured(events: dict[str, np.ndarray], names: dict[str, str]) -> np.ndarray:
    """Return a structured array whose fields have these names and this order."""
    kinds = {"t": "<i8", "x": "<u2", "y": "<u2", "p": "i1"}
    array = np.zeros(len(events["t"]), [(name, kinds[field]) for field, name in names.items()])
    for field, name in names.items():
        array[name] = events[field]
    return array


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def dat(events: dict[str, np.ndarray], size: tuple[int, int] | None = (HEIGHT, WIDTH)) -> bytes:
    """Return a Prophesee .dat, version 2: 32 bits of time, then 14 of x, 14 of y and 4 of polarity."""
    geometry = f"% Height {size[0]}\n% Width {size[1]}\n" if size else ""
    words = zip(*(events[field].tolist() for field in FIELDS), strict=True)
    body = b"".join(struct.pack("<II", t, x | y << 14 | p << 28) for t, x, y, p in words)
    return f"% Data file containing CD events.\n% Version 2\n{geometry}% end\n".encode() + b"\x0c\x08" + body


def evt2(events: dict[str, np.ndarray]) -> bytes:
    """Return a Prophesee .raw, EVT 2.0: words of 32 bits, whose upper four tell their kind."""
    words, high = [], None
    for t, x, y, p in zip(*(events[field].tolist() for field in FIELDS), strict=True):
        if t >> 6 != high:
            high = t >> 6
            words.append(8 << 28 | high)
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    return f"% evt 2.0\n% geometry {WIDTH}x{HEIGHT}\n% end\n".encode() + struct.pack(f"<{len(words)}I", *words)


def evt3(events: dict[str, np.ndarray]) -> bytes:
    """Return a Prophesee .raw, EVT 3.0: words of 16 bits, each of which changes a part of the state."""
    words: list[int] = []
    for t, x, y, p in zip(*(events[field].tolist() for field in FIELDS), strict=True):
        words += [8 << 12 | t >> 12, 6 << 12 | t & 4095, y, 2 << 12 | p << 11 | x]
    return f"% evt 3.0\n% geometry {WIDTH}x{HEIGHT}\n% end\n".encode() + struct.pack(f"<{len(words)}H", *words)


def aedat4(path: Path, events: dict[str, np.ndarray]) -> bytes:
    """Return an AEDAT4 file, which the library writes."""
    faery = pytest.importorskip("faery")
    array = np.zeros(len(events["t"]), faery.EVENTS_DTYPE)
    for field, name in zip(FIELDS, ("t", "x", "y", "on"), strict=True):
        array[name] = events[field]
    faery.events_stream_from_array(array, dimensions=(WIDTH, HEIGHT)).to_file(path / "made.aedat4")
    return (path / "made.aedat4").read_bytes()


def spikingjelly_frames(events: dict[str, np.ndarray], split_by: str, frames: int, height: int, width: int):
    """Return what SpikingJelly's own code makes; its module imports torchvision, whose binaries may not fit torch's."""
    package = importlib.util.find_spec("spikingjelly")
    assert package is not None and package.origin is not None
    source = ast.parse((Path(package.origin).parent / "datasets" / "utils.py").read_text())
    names = ("integrate_events_segment_to_frame", "cal_fixed_frames_number_segment_index")
    wanted = [*names, "integrate_events_by_fixed_frames_number"]
    source.body = [part for part in source.body if isinstance(part, ast.FunctionDef) and part.name in wanted]
    space = {"np": np, "Optional": object()}
    for part in source.body:
        assert isinstance(part, ast.FunctionDef)
        part.returns = None
        for argument in part.args.args:
            argument.annotation = None
    exec(compile(source, "utils.py", "exec"), space)
    return space[wanted[-1]](events, split_by, frames, height, width)


@pytest.fixture
def write(tmp_path):
    """Writes a file and gives its path."""

    def put(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return put


def frames_in(path: Path, options: EventOptions = DEFAULT, spec: InputSpec = SPEC) -> np.ndarray:
    """Return the frames of the only recording, ``[T, 2, H, W]``."""
    ((x, labels),) = load_data(path, spec, {}, reading=Reading(events=options)).batches(2)
    assert labels.tolist() == [-1] and x.dtype == torch.float32
    return x[:, 0].numpy()


# frames


@pytest.mark.parametrize("split_by", ["number", "time"])
@pytest.mark.parametrize("frames", [1, 4, 7])
def test_frames_are_spikingjellys(split_by, frames):
    for seed in range(5):
        events = recording(350 + 11 * seed, seed)
        made = frames_of("a", checked_events(events), (frames, 2, HEIGHT, WIDTH), EventOptions(split_by))
        assert np.array_equal(made, spikingjelly_frames(events, split_by, frames, HEIGHT, WIDTH))
        assert made.sum() == len(events["t"])


def test_a_silent_part_is_an_empty_frame():
    events = {key: np.array(values) for key, values in {"t": [0, 10, 390, 400], "x": [0, 1, 2, 3]}.items()}
    events |= {"y": np.zeros(4, int), "p": np.ones(4, int)}
    made = frames_of("a", checked_events(events), SPEC.shape, EventOptions("time"))
    assert made.sum((1, 2, 3)).tolist() == [2, 0, 0, 2]


def test_times_as_far_apart_as_can_be():
    ends = np.array([-(2**63), 2**63 - 1])
    events = {"t": ends, "x": np.array([3, 4]), "y": np.array([0, 0]), "p": np.array([0, 1])}
    for frames in (1, 4):
        made = frames_of("a", checked_events(events), (frames, 2, HEIGHT, WIDTH), EventOptions("time"))
        assert made[0, 0, 0, 3] == 1 and made[-1, 1, 0, 4] == 1 and made.sum() == 2


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_pooling(pool):
    events = recording(height=2 * HEIGHT, width=3 * WIDTH)
    options = EventOptions(sensor=(2 * HEIGHT, 3 * WIDTH), pool=pool)
    made = frames_of("a", checked_events(events), SPEC.shape, options)
    large = spikingjelly_frames(events, "number", 4, 2 * HEIGHT, 3 * WIDTH).reshape(4, 2, HEIGHT, 2, WIDTH, 3)
    np.testing.assert_allclose(made, getattr(large, pool)((3, 5)), rtol=1e-6)


# formats


@pytest.mark.parametrize(
    "names",
    [
        dict(zip("txyp", "txyp", strict=True)),
        {"x": "x", "y": "y", "p": "polarity", "t": "timestamp"},
        {"p": "pol", "t": "ts", "y": "Y", "x": "X"},
    ],
    ids=lambda names: ",".join(names.values()),
)
@pytest.mark.parametrize("signed", [False, True])
def test_structured_arrays(write, names, signed):
    events = recording()
    stored = structured(events | ({"p": 2 * events["p"] - 1} if signed else {}), names)
    expected = spikingjelly_frames(events, "number", 4, HEIGHT, WIDTH)
    for name, data in (("a.npy", npy(stored)), ("a.npz", npz(events=stored))):
        assert np.array_equal(frames_in(write(name, data)), expected)


def test_spikingjellys_own_files(write):
    events = recording()
    expected = spikingjelly_frames(events, "time", 4, HEIGHT, WIDTH)
    assert np.array_equal(frames_in(write("events.npz", npz(**events)), EventOptions("time")), expected)
    assert np.array_equal(frames_in(write("frames.npz", npz(frames=expected))), expected)
    assert np.array_equal(frames_in(write("frames.npy", npy(expected))), expected)


@pytest.mark.parametrize("split_by", ["number", "time"])
@pytest.mark.parametrize("kind", ["a.dat", "no-size.dat", "evt2.raw", "evt3.raw", "a.aedat4"])
def test_files_of_cameras(write, tmp_path, kind, split_by):
    pytest.importorskip("faery")
    events = recording()
    data = {
        "a.dat": lambda: dat(events),
        "no-size.dat": lambda: dat(events, None),
        "evt2.raw": lambda: evt2(events),
        "evt3.raw": lambda: evt3(events),
        "a.aedat4": lambda: aedat4(tmp_path, events),
    }[kind]()
    expected = spikingjelly_frames(events, split_by, 4, HEIGHT, WIDTH)
    assert np.array_equal(frames_in(write(kind, data), EventOptions(split_by)), expected)


def test_class_folders_archives_and_lists(write, tmp_path):
    contents = {f"train/{name}/{i}.npz": npz(**recording(seed=i)) for i, name in enumerate(("a", "a", "b"))}
    paths = [write(f"set/{name}", data) for name, data in contents.items()]
    write("list.txt", "\n".join(str(path.relative_to(tmp_path)) for path in paths).encode())
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    prints = []
    for name, labels in (("set", [0, 0, 1]), ("set.zip", [0, 0, 1]), ("list.txt", [-1, -1, -1])):
        data = load_data(tmp_path / name, SPEC, {"num_classes": 2})
        ((x, found),) = data.batches(4)
        assert found.tolist() == labels and x.shape == (4, 3, 2, HEIGHT, WIDTH)
        for i in range(3):
            assert np.array_equal(x[:, i], spikingjelly_frames(recording(seed=i), "number", 4, HEIGHT, WIDTH))
        prints += [
            data.fingerprint(),
            load_data(tmp_path / name, SPEC, {}, reading=Reading(events=EventOptions("time"))).fingerprint(),
        ]
    assert len(set(prints)) == len(prints)  # how frames are made counts


def test_a_camera_file_in_an_archive(tmp_path):
    pytest.importorskip("faery")
    events = recording()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("0.DAT", dat(events))
    assert np.array_equal(frames_in(tmp_path / "set.zip"), spikingjelly_frames(events, "number", 4, HEIGHT, WIDTH))


# what is wrong


def changed(**changes) -> bytes:
    return npz(**(recording() | changes))


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.npz", npz(**{key: np.zeros(0, int) for key in FIELDS}), "a.npz cannot be used: it holds no events"),
        ("a.npz", changed(p=recording()["p"] + 1), "its polarities are 1, 2; they must be 0 and 1, or -1 and 1"),
        ("a.npz", changed(t=recording()["t"][::-1]), r"its times are not sorted: event \d+ is at \d+, after one at"),
        ("a.npz", changed(t=recording()["t"] * np.nan), "t holds NaN or infinity"),
        ("a.npz", changed(x=recording()["x"] + 0.5), "x has fractions"),
        ("a.npz", changed(x=recording()["x"] - 1), "its x go from -1, but pixels count from 0"),
        ("a.npz", changed(y=recording()["y"] + 1), "its y go up to 12, but the model takes frames of 12x16"),
        ("a.npz", changed(x=recording()["x"][:9]), r"have shapes \[403\], \[9\], \[403\], \[403\]"),
        ("a.npz", changed(t=np.full(403, 2**64 - 1, np.uint64)), "t goes up to 18446744073709551615, beyond 63 bits"),
        ("a.npz", npz(x=np.zeros(3)), r"holds no events: it has x float64 \[3\]"),
        (
            "a.npz",
            npz(frames=np.zeros((9, 2, 4, 4))),
            r"frames are \[9, 2, 4, 4\], but the model takes \[4, 2, 12, 16\]",
        ),
        ("a.npz", npz(frames=np.full(FOURS, np.nan)), "its frames hold NaN or infinity"),
        ("a.npz", npz(**recording())[:900], "it is no file of plain arrays, or damaged"),
        ("a.npy", npy(structured(recording(), dict(zip("txyp", "txyp", strict=True))))[:-7], "or damaged"),
        ("a.npy", npy(np.zeros(9)).replace(b"(9,)", b"(99999999999999,)"), "or damaged"),
        ("a.npy", b"\x93NUMPY\x01\x00", "it is no file of plain arrays, or damaged"),
        ("a.npy", npy(np.array([None])), "it is no file of plain arrays, or damaged: it is no file of NumPy"),
        ("a.npy", npy(np.zeros((5, 4))), r"holds no events: it has an array float64 \[5, 4\]"),
        ("a.aedat4", b"", "the file is empty"),
        ("a.aedat4", b"#!AER-DAT4.0\r\n", "it is truncated"),
        ("a.aedat4", b"no event camera wrote this", "faery cannot read it"),
        ("a.dat", dat(recording())[:-3], "it is truncated: it ends with 5 bytes of an event"),
        ("a.dat", dat(recording(), (HEIGHT - 4, WIDTH)), r"faery cannot read it: y overflow"),
        ("a.dat", dat(recording(0)), "it holds no events"),
        ("a.raw", evt2(recording())[:-3], "it is truncated: it ends with 1 bytes of an event"),
        ("a.raw", evt3(recording())[:-1], "it is truncated: it ends with 1 bytes of an event"),
        ("a.dat", dat(recording(), (24, 32)), "is of a sensor of 24x32, but the model takes 12x16"),
        ("a.dat", dat(recording(), (25, 32)), "25x32, but the model takes 12x16, which does not divide it"),
        ("a.png", b"", "is neither a recording"),
        (
            "a.npz",
            npz(images=np.zeros((3, *FOURS + 1), np.uint8)),
            r"images are \[3, 5, 3, 13, 17\], but the model takes",
        ),
    ],
)
def test_bad_files(write, name, data, text):
    if name.endswith((".aedat4", ".dat", ".raw")):
        pytest.importorskip("faery")
    path = write(name, data)
    with pytest.raises(InputError, match=text):
        load_data(path, SPEC, {})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"t": recording()["t"] / 1e6}, "its times have fractions; --split-by time takes whole numbers"),
        ({"t": np.full(403, 5)}, "its times go from 5 to 5, too short for 4 frames"),
    ],
)
def test_times_that_only_numbers_can_split(write, changes, text):
    path = write("a.npz", changed(**changes))
    assert frames_in(path).sum() == 403
    with pytest.raises(InputError, match=text):
        load_data(path, SPEC, {}, reading=Reading(events=EventOptions("time")))


def test_a_truncated_aedat4(write, tmp_path):
    whole = aedat4(tmp_path, recording())
    for size in (20, len(whole) // 2, len(whole) - 30):
        with pytest.raises(InputError, match="it is truncated or damaged"):
            load_data(write("a.aedat4", whole[:size]), SPEC, {})


def test_a_damaged_recording_among_many_is_skipped(write, tmp_path):
    for i in range(120):
        write(f"set/{i:03}.npz", b"" if i == 0 else npz(**recording(9)))
    data = load_data(tmp_path / "set", SPEC, {})
    assert sum(len(labels) for _, labels in data.batches(50)) == 119 and data.unreadable == ["000.npz"]
    write("set/001.npz", changed(p=np.full(403, 7)))
    with pytest.raises(InputError, match="more than 1% of its 120 recordings cannot be read") as caught:
        list(load_data(tmp_path / "set", SPEC, {}).batches(50))
    assert "The last of them: 001.npz: its polarities are 7;" in str(caught.value)


def test_sensors_of_another_size(write):
    path = write("a.npz", npz(**recording()))
    with pytest.raises(InputError, match=r"sensor of 24x16, but the model takes 12x16") as caught:
        load_data(path, SPEC, {}, reading=Reading(events=EventOptions(sensor=(24, 16))))
    assert "--pool sum or --pool mean" in str(caught.value)
    with pytest.raises(InputError, match="its y go up to 11, but the sensor is of 6x16"):
        load_data(path, InputSpec((4, 2, 6, 16)), {}, reading=Reading(events=EventOptions(sensor=(6, 16))))
    pytest.importorskip("faery")
    with pytest.raises(InputError, match="recorded by a sensor of 12x16, not of --sensor 16x12"):
        load_data(write("a.dat", dat(recording())), SPEC, {}, reading=Reading(events=EventOptions(sensor=(16, 12))))


def test_options_that_do_not_apply(write):
    frames = write("frames.npz", npz(frames=np.zeros(FOURS)))
    images = write("images.npz", npz(images=np.zeros((3, *FOURS), np.uint8)))
    cases = [
        (frames, SPEC, "--pool does not apply: frames.npz holds frames already"),
        (images, SPEC, "--pool does not apply: images.npz holds frames already"),
        (images, InputSpec((3, 8, 8)), "--pool does not apply: the model takes images"),
        ("module:factory", SPEC, "--pool does not apply: module:factory gives frames"),
    ]
    for path, spec, text in cases:
        with pytest.raises(UsageError, match=text):
            load_data(path, spec, {}, reading=Reading(events=EventOptions(pool="sum")))
    with pytest.raises(InputError, match="frames of 2 channels, for both polarities, but the model takes 3"):
        load_data(write("a.npz", npz(**recording())), InputSpec((4, 3, HEIGHT, WIDTH)), {})


def test_malformed_options():
    assert parse_event_options("time", "180x240", "mean") == EventOptions("time", (180, 240), "mean")
    cases = [
        (("times", None, None), "--split-by 'times' is neither number nor time"),
        ((None, None, "max"), "--pool 'max' is neither sum nor mean"),
        ((None, "128", None), "--sensor '128' is not a size"),
        ((None, "0x5", None), "--sensor 0x5: the sides of a sensor are from 1 to 65,536 pixels"),
        ((None, "999999x5", None), "the sides of a sensor are from 1 to"),
    ]
    for values, text in cases:
        with pytest.raises(UsageError, match=text):
            parse_event_options(*values)


def test_a_list_with_a_file_that_is_no_recording(write):
    write("a.npz", npz(**recording()))
    write("a.csv", b"")
    with pytest.raises(InputError, match="list.txt: a.csv is no recording"):
        load_data(write("list.txt", b"a.npz\na.csv"), SPEC, {})


def test_the_command_line_passes_its_options_on(write):
    events = recording(height=2 * HEIGHT, width=2 * WIDTH)
    program = SimpleNamespace(input=SPEC, info={})
    options = PreparationOptions(split_by="time", sensor=f"{2 * HEIGHT}x{2 * WIDTH}", pool="sum")
    data = load_images(write("a.npz", npz(**events)), program, None, 0, options)
    large = spikingjelly_frames(events, "time", 4, 2 * HEIGHT, 2 * WIDTH).reshape(4, 2, HEIGHT, 2, WIDTH, 2)
    assert data is not None and np.array_equal(next(data.batches(1))[0][:, 0], large.sum((3, 5)))
    assert program.info == {} and not data.notes  # neither pixels that are scaled nor a way to split was assumed


def test_without_the_package_that_reads_camera_files(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "faery", None)
    with pytest.raises(
        InputError, match=r"a.dat: the package that reads .aedat4, .dat, .raw is not installed"
    ) as caught:
        load_data(write("a.dat", dat(recording())), SPEC, {})
    assert "pip install faery" in str(caught.value)
    assert frames_in(write("a.npz", npz(**recording()))).sum() == 403


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("os.abort()", "a.dat cannot be used: faery crashed on it: it is damaged"),
        ("class Panic(BaseException): pass; raise Panic('index 9')", "faery cannot read it: index 9"),
        ("print('hello'); raise RuntimeError('no events')", "faery cannot read it: no events"),
    ],
)
def test_a_crash_of_the_package_is_an_error(write, monkeypatch, tmp_path, code, text):
    call = "\n    ".join(code.split("; "))
    write("site/faery.py", f"import os\ndef events_stream_from_file(path, **options):\n    {call}\n".encode())
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "faery", raising=False)
    reader = camera_files.CameraReader()
    monkeypatch.setattr(camera_files, "_reader", reader)
    path = write("a.dat", dat(recording()))
    for _ in range(2):  # the second is read by another process if the first has died
        with pytest.raises(InputError, match=text):
            load_data(path, SPEC, {})
    reader.close()
