"""Files of torch.save in every form: all pickle protocols, plain values beside the weights, and what is refused."""

from __future__ import annotations

import argparse
import datetime
import functools
import io
import pathlib
import pickle

import numpy as np
import pytest
import torch

from svitc.errors import InputError
from svitc.frontends.checkpoint.load import LoadOptions, load_model
from svitc.frontends.checkpoint.pickle_protocol import UnknownInstruction, as_protocol_2

VALUES = [
    {"a": 1, "b": [2.5, None, True, False, -7, 2**40, -(2**70)], "long": "x" * 1000, "é": "é" * 300},
    [["again"] * 3, ("again", "again"), {"again": "again"}],
    (lambda shared: [shared, shared, {"k": shared}])([1, 2]),
    argparse.Namespace(T=4, name="n" * 300, inner=argparse.Namespace(T=5)),
    set(),
    b"bytes \x00\xff",
]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_rewritten_pickle_is_the_same_object(protocol, value):
    data = as_protocol_2(io.BytesIO(pickle.dumps(value, protocol=protocol)))
    assert data[:2] == b"\x80\x02"
    assert pickle.loads(data) == value


def test_shared_objects_stay_shared():
    shared = [1]
    first, second = pickle.loads(as_protocol_2(io.BytesIO(pickle.dumps([shared, shared], protocol=4))))
    assert first is second


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({1, 2}, protocol=4),  # instructions that protocol 2 does not have
        pickle.PROTO + b"\x04" + pickle.STACK_GLOBAL + b".",
        pickle.PROTO + b"\x04" + b"\x8c\x01aN" + pickle.STACK_GLOBAL + b".",
        pickle.PROTO + b"\x04" + b"\x8c\x03a\nb\x8c\x01c" + pickle.STACK_GLOBAL + b".",
        b"\x80\x04\x95",
        b"",
    ],
)
def test_what_cannot_be_rewritten_is_refused(data):
    with pytest.raises(UnknownInstruction):
        as_protocol_2(io.BytesIO(data))


# not protocol 1 of the old format, which does not begin as a pickle does
@pytest.mark.parametrize(
    ("protocol", "zipped"), [(1, True), *((protocol, zipped) for protocol in (2, 3, 4, 5) for zipped in (True, False))]
)
def test_every_pickle_protocol(tmp_path, described, model, protocol, zipped):
    content = {**described, "args": argparse.Namespace(T=2, output=None)}
    path = tmp_path / "m.pt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    if protocol == 1:  # its Namespace needs a function
        with pytest.raises(InputError, match="entry 'args'"):
            load_model(path)
        torch.save(described, path, pickle_protocol=protocol)
    loaded = load_model(path).model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


class Ran:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_protocol_runs_code(tmp_path, described, protocol, zipped):
    ran = tmp_path / "ran"
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save({**described, "extra": Ran(str(ran))}, tmp_path / "m.pt", **options)
    with pytest.raises(InputError, match="is more than weights"):
        load_model(tmp_path / "m.pt")
    assert not ran.exists()


def test_instructions_that_no_safe_reading_has_say_what_to_do(tmp_path, described):
    torch.save({**described, "ids": frozenset((1, 2))}, tmp_path / "m.pt", pickle_protocol=4)
    with pytest.raises(InputError, match="has pickle protocol 4, with instructions that cannot be read") as caught:
        load_model(tmp_path / "m.pt")
    assert "without the argument pickle_protocol" in caught.value.hint


def test_plain_values_of_training_scripts_are_read(tmp_path, model):
    """Best accuracies of numpy, paths, states of random numbers and versions: none of them runs anything."""
    content = {
        "model": model.state_dict(),
        "best": np.float64(71.5),
        "epoch": np.int64(3),
        "random": np.random.get_state(),
        "version": torch.__version__,
        "args": argparse.Namespace(time_step=6, output_dir=pathlib.Path("a") / "b"),
    }
    for protocol in (2, 4):
        torch.save(content, tmp_path / "m.pt", pickle_protocol=protocol)
        assert load_model(tmp_path / "m.pt").model.T == 6


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("args", {"T": 4, "opt": functools.partial(max, 3)}),
        ("args", argparse.Namespace(inner=[argparse.Namespace(f=functools.partial(max))])),
        ("config", {"opt": functools.partial(max, 3), "args": 3}),
        ("hyper_parameters", {"loss": functools.partial(max), "model": "m"}),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_entry_that_is_refused_is_named(tmp_path, model, entry, value, protocol):
    torch.save({"state_dict": model.state_dict(), entry: value}, tmp_path / "m.pt", pickle_protocol=protocol)
    with pytest.raises(InputError, match=f"is refused for its entry {entry!r}") as caught:
        load_model(tmp_path / "m.pt")
    assert f"del checkpoint[{entry!r}]" in caught.value.hint
    checkpoint = torch.load(tmp_path / "m.pt", weights_only=False)
    del checkpoint[entry]  # the hint is true
    torch.save(checkpoint, tmp_path / "m.pt")
    load_model(tmp_path / "m.pt")


def test_another_entry_is_named_too(tmp_path, model):
    content = {"model": model.state_dict(), "args": {"a": 1}, "history": [{"when": datetime.date(2024, 1, 2)}]}
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(InputError, match="to read it, in its entry 'history', Python must import and call datetime"):
        load_model(tmp_path / "m.pt")


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_pickled_wrappers_are_taken_off(tmp_path, model, logits, wrap):
    torch.save({"model": wrap(model)}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", LoadOptions(trust_pickle=True, input_shape=(3, 16, 16)))
    assert type(loaded.model) is type(model)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(logits(loaded.model, x), logits(model, x))


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path, described):
    path = tmp_path / "m.pt"
    torch.save(described, path)
    whole = path.read_bytes()
    place = whole.index(described["state_dict"]["head.weight"].numpy().tobytes()[:16])
    path.write_bytes(whole[:place] + bytes((whole[place] ^ 1,)) + whole[place + 1 :])
    with pytest.raises(InputError, match="the checksum of m/data/.* is wrong"):
        load_model(path)
    try:
        torch.serialization.set_crc32_options(False)  # then there is none, and none is missed
        torch.save(described, path)
    finally:
        torch.serialization.set_crc32_options(True)
    load_model(path)


def test_an_archive_that_says_it_is_in_several_pieces_is_refused(tmp_path, described):
    path = tmp_path / "m.pt"
    torch.save(described, path)
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x06\x07")  # the locator of a 64-bit directory: its last field is the number of pieces
    assert place > 0
    data[place + 16] = 3
    path.write_bytes(data)
    with pytest.raises(InputError, match="m.pt is truncated"):
        load_model(path)
