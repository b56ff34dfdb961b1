"""Pickles that would run code, and storages that overlap or lie about their size."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import random
import struct
import zipfile
from pathlib import Path

import torch

from campaign.cases import Kind, Made
from campaign.checkpoints import DAMAGED, INSPECT, archive, content, state
from svitc.frontends.checkpoint.load import load_model

FORBIDDEN = (
    ("os", "system", ("touch outside/ran",)),
    ("posix", "system", ("touch outside/ran",)),
    ("builtins", "eval", ("__import__('campaign_canary')",)),
    ("builtins", "exec", ("import campaign_canary",)),
    ("subprocess", "Popen", (["touch", "outside/ran"],)),
    ("campaign_canary", "run", ()),
    ("builtins", "__import__", ("campaign_canary",)),
    ("importlib", "import_module", ("campaign_canary",)),
    ("torch.hub", "load", ("outside", "x")),
    ("torch.serialization", "load", ("outside/secret",)),
    ("numpy", "load", ("outside/secret",)),
    ("builtins", "open", ("outside/ran", "w")),
    ("shutil", "rmtree", ("outside",)),
    ("operator", "attrgetter", ("__class__.__base__",)),
    ("functools", "partial", (print,)),
    ("torch.nn.modules.linear", "Linear", (3, 4)),
    ("torch.utils.data", "DataLoader", ([],)),
)
REFUSED = r"must import and call|cannot be read safely|it holds a pickle that torch did not write"


class Call:
    """Pickled as a call of a function, which need not exist here."""

    def __init__(self, module: str, name: str, arguments: tuple) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class Pickler(pickle._Pickler):
    """A pickler that writes ``Call`` in any of the ways that pickles have to name and to call something."""

    def __init__(self, file: io.BytesIO, protocol: int, rng: random.Random) -> None:
        super().__init__(file, protocol)
        self.rng, self.storages = rng, []

    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, Call):
            super().save(obj, save_persistent_id)
            return
        way = self.rng.choice(("reduce", "reduce", "inst", "obj", "newobj", "global", "build"))
        if self.proto == 4 and way == "reduce":
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        elif way == "inst":
            self.write(pickle.MARK)
            for value in obj.arguments:
                self._plain(value)
            self.write(f"i{obj.module}\n{obj.name}\n".encode())
            return
        else:
            self.write((pickle.MARK if way == "obj" else b"") + f"c{obj.module}\n{obj.name}\n".encode())
        if way == "global":
            return
        if way == "obj":
            for value in obj.arguments:
                self._plain(value)
            self.write(pickle.OBJ)
            return
        self._plain(tuple(v if not callable(v) else "print" for v in obj.arguments))
        self.write(pickle.NEWOBJ if way == "newobj" else pickle.REDUCE)
        if way == "build":
            self._plain({"campaign_canary": 1})
            self.write(pickle.BUILD)

    def _plain(self, value: object) -> None:
        super().save("print" if callable(value) else value)

    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, torch.UntypedStorage):
            self.storages.append(obj)
            return ("storage", torch.FloatStorage, str(len(self.storages) - 1), "cpu", obj.nbytes() // 4)
        return None


def nested(rng: random.Random, value: object) -> object:
    """A value at some depth of containers."""
    for _ in range(rng.randint(0, 12)):
        way = rng.randrange(6)
        if way == 0:
            value = [1, value]
        elif way == 1:
            value = (value, "x")
        elif way == 2:
            value = {"k": value}
        elif way == 3:
            value = collections.OrderedDict(a=1, b=value)
        elif way == 4:
            value = argparse.Namespace(T=2, inner=value)
        else:
            value = {"list": [{"deep": value}]}
    return value


def forbidden(rng: random.Random, folder: Path) -> Made:
    """A checkpoint with a call of something that runs code, at any depth, in any protocol and in both formats."""
    call = Call(*rng.choice(FORBIDDEN))
    value = {
        **content(),
        "state_dict": {},
        rng.choice(("args", "optimizer", "x", "hyper_parameters")): nested(rng, call),
    }
    if rng.random() < 0.3:
        value = nested(rng, call)
    buffer = io.BytesIO()
    protocol = rng.choice((0, 1, 2, 2, 3, 4))
    Pickler(buffer, protocol, rng).dump(value)
    path = folder / "m.pt"
    if rng.random() < 0.75:
        path.write_bytes(_with_pickle(buffer.getvalue()))
    else:
        parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path.write_bytes(b"".join(parts) + buffer.getvalue() + pickle.dumps([], 2))
    return Made("forbidden call", path, REFUSED, must_fail=True)


def _with_pickle(data: bytes) -> bytes:
    """The archive with another ``data.pkl``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive())) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, data if info.filename.endswith("data.pkl") else old.read(info))
    return buffer.getvalue()


def instructions(rng: random.Random, folder: Path) -> Made:
    """A checkpoint whose pickle has other instructions: odd ones, deep ones, ones with lengths that lie."""
    with zipfile.ZipFile(io.BytesIO(archive(True, rng.choice((2, 4))))) as file:
        name = next(n for n in file.namelist() if n.endswith("data.pkl"))
        data = file.read(name)
    way = rng.choice(("inserted", "deep", "lengths", "shuffled", "memo", "loops"))
    if way == "deep":
        depth = rng.choice((900, 20_000, 100_000))
        opening, closing = rng.choice(((b"]", b"a"), (b")", b"\x86"), (b"}X\x01\0\0\0k", b"s")))
        data = (
            b"\x80\x02" + (opening * depth) + b"N" + (b"\x85" * depth if closing == b"\x86" else closing * depth) + b"."
        )
    elif way == "lengths":
        code, size = rng.choice(
            ((b"X", "<I"), (b"T", "<i"), (b"\x8b", "<i"), (b"\x8d", "<Q"), (b"\x8e", "<Q"), (b"\x96", "<Q"))
        )
        data = b"\x80\x04" + code + struct.pack(size, rng.choice((2**31 - 1, 10**9))) + b"abc."
    elif way == "memo":
        data = (
            b"\x80\x02N"
            + b"r"
            + struct.pack("<I", 2**32 - 1)
            + b"j"
            + struct.pack("<I", rng.randrange(2**32))
            + b"\x86."
        )
    elif way == "loops":  # a list that doubles forty times
        data = b"\x80\x02]q\0" + b"".join(
            b"]q" + bytes((i + 1,)) + b"(h" + bytes((i,)) + b"h" + bytes((i,)) + b"e" for i in range(40)
        )
        data += b"."
    else:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(2, len(changed))
            if way == "inserted":
                changed[place:place] = bytes((rng.randrange(256),))
            else:
                start = rng.randrange(2, len(changed))
                changed[place : place + 8] = changed[start : start + 8]
        data = bytes(changed)
    path = folder / "m.pt"
    path.write_bytes(_with_pickle(data))
    words = {
        "deep": r"holds an? (list|tuple), not|holds no weights",
        "lengths": r"cannot be read safely|cannot be read as a PyTorch checkpoint",
        "memo": r"cannot be read as a PyTorch checkpoint",
        "loops": r"holds a list, not",
    }
    return Made(f"instructions: {way}", path, rf"m\.pt.*({words.get(way, DAMAGED)})", must_fail=way in words)


class _Rebuilt:
    """A tensor as a pickle describes it: offset, shape and strides in a storage, none of them true."""

    def __init__(self, tensor: torch.Tensor, offset: int, shape: tuple, stride: tuple) -> None:
        self.parts = (tensor, offset, shape, stride)


class StoragePickler(pickle._Pickler):
    """A pickler as torch.save's, whose tensors and storages say what a case wants them to say."""

    def __init__(self, file: io.BytesIO, storage: tuple) -> None:
        super().__init__(file, 2)
        self.storage = storage

    def persistent_id(self, obj: object) -> object:
        return self.storage if isinstance(obj, torch.UntypedStorage) else None

    def reducer_override(self, obj: object) -> object:
        return NotImplemented

    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Rebuilt):
            tensor, *parts = obj.parts
            arguments = (tensor.untyped_storage(), *parts, False, collections.OrderedDict())
            self.save_reduce(torch._utils._rebuild_tensor_v2, arguments)
        else:
            super().save(obj, save_persistent_id)


def storages(rng: random.Random, folder: Path) -> Made:
    """A checkpoint whose tensors lie outside their storage, overlap, or claim what the file does not hold."""
    name = rng.choice([key for key, value in state().items() if value.dim()])
    tensor = state()[name]
    huge = rng.choice((10**6, 2**31, 2**40, 2**62))
    way = rng.choice(("offset", "shape", "stride", "size of storage", "overlap", "key", "device", "negative"))
    offset, shape, stride = 0, tuple(tensor.shape), tuple(tensor.stride())
    key = str([*state()].index(name))  # as torch.save numbers them, so that all but the lie is true
    storage: list[object] = ["storage", torch.FloatStorage, key, "cpu", tensor.numel()]
    if way == "offset":
        offset = huge
    elif way == "shape":
        shape = (huge, *shape[1:])
    elif way == "stride":
        stride = (huge, *stride[1:])
    elif way == "size of storage":
        storage[4] = huge
    elif way == "overlap":
        shape, stride = (huge,), (0,)
    elif way == "key":
        storage[2] = rng.choice(("../../outside/secret", "/etc/passwd", "99", "", "\0", 7, None))
    elif way == "device":
        storage[3] = rng.choice(("cuda", "meta", "cpu:9", "nonsense", 3))
    else:
        offset, shape, stride = rng.choice(((-1, shape, stride), (0, (-2,), (1,)), (0, shape, (-1,) * len(shape))))
    buffer = io.BytesIO()
    StoragePickler(buffer, tuple(storage)).dump({"state_dict": {name: _Rebuilt(tensor, offset, shape, stride)}})
    path = folder / "m.pt"
    path.write_bytes(_with_pickle(buffer.getvalue()))
    words = r"m\.pt.*(cannot be read as a PyTorch checkpoint|claims .* (numbers|memory)|not a dense tensor)"
    if way == "device":  # which is passed over; a single tensor is no model
        words += "|m.pt.*(none belongs to an attention layer|of no family)"
    return Made(f"storage: {way}", path, words, must_fail=way not in ("device", "stride"))


KINDS = (
    Kind("pickle calls", forbidden, load_model, INSPECT, frozenset({3}), share=4),
    Kind("pickle instructions", instructions, load_model, INSPECT, share=2),
    Kind("storages", storages, load_model, INSPECT, share=2),
)
