"""Hostile checkpoints: archives of torch.save, files of the old format, arguments, safetensors, indexes of shards."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import re
import struct
import zipfile
import zlib
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from spikingjelly.activation_based.model.spikformer import Spikformer

from campaign.cases import Kind, Made
from campaign.mutations import BYTES, ODD_VALUES, changed_json, json_text
from svitc.frontends.checkpoint.load import load_model

ARCH = "spikingjelly.activation_based.model:Spikformer"
ARGUMENTS = {
    "T": 2,
    "img_size_h": 16,
    "img_size_w": 16,
    "embed_dims": 16,
    "num_heads": 2,
    "depths": 1,
    "num_classes": 4,
}
NAMES = (
    "../../outside/secret",
    "/etc/passwd",
    "a/../../x",
    "",
    "archive/data.pkl",
    "archive/data/0",
    "\x7f",
    "n" * 4000,
)
# what may be said of a checkpoint with any bytes changed
DAMAGED = (
    r"is damaged|is truncated|is not a PyTorch checkpoint|cannot be read as a PyTorch checkpoint|cannot be read safely|"
    r"does not fit Spikformer|must import and call|NaN or infinity|negative variance|not a dense tensor|"
    r"claims .* (numbers|memory)|no weights|holds an? \w+, not|is a zip file, but not|is an? \w+, not a tensor|"
    r"arch|input_shape|numbers up to .* too large|not a spiking vision transformer"
)
UNREADABLE = r"is damaged|is truncated|cannot be read as a PyTorch checkpoint|is a zip file, but not|claims .* memory"
BOMB = 400 << 20  # bytes that 400 KiB expand to


@functools.cache
def state() -> dict[str, torch.Tensor]:
    """The weights of a small Spikformer."""
    torch.manual_seed(0)
    return Spikformer(**ARGUMENTS).state_dict()


def content() -> dict:
    """A checkpoint that describes itself."""
    return {"state_dict": state(), "arch": ARCH, "arch_args": dict(ARGUMENTS), "input_shape": [3, 16, 16]}


@functools.cache
def archive(zipped: bool = True, protocol: int = 2) -> bytes:
    """The file of that checkpoint."""
    return saved(content(), zipped, protocol)


def saved(value: object, zipped: bool = True, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def bytes_of_torch(rng: random.Random, folder: Path) -> Made:
    zipped, protocol = rng.random() < 0.6, rng.choice((2, 2, 4, 5))
    change = rng.choice(list(BYTES))
    data = BYTES[change](rng, archive(zipped, protocol))
    words = {
        "truncated": r"is truncated|cannot be read as a PyTorch checkpoint|is not a PyTorch checkpoint",
        "without start": r"is not a PyTorch checkpoint \(it begins with|torch did not write|is truncated|is damaged",
        "random bytes": r"is not a PyTorch checkpoint|is truncated|cannot be read as a PyTorch checkpoint|is damaged",
    }
    path = _written(folder, "m.pt", data)
    return Made(change, path, rf"m\.pt.*({words.get(change, DAMAGED)})", must_fail=change in words)


def zip_directory(rng: random.Random, folder: Path) -> Made:
    """An archive whose entries are renamed, repeated, compressed, linked, too large or not where they should be."""
    way = rng.choice(("rename", "repeat", "link", "bomb", "lie", "end"))
    entries = _entries(archive())
    index = rng.randrange(len(entries))
    if way == "lie":
        return Made("zip: lie", _written(folder, "m.pt", _directory_lies(rng, archive())), rf"m\.pt.*({UNREADABLE})")
    if way == "bomb":
        words = r"m\.pt claims 419\.\d+ MB of memory.*--max-memory"
        return Made("zip: bomb", _written(folder, "m.pt", _bomb(entries[index][0])), words, must_fail=True)
    if way == "end":
        data = bytearray(archive())
        name, length = rng.choice(((b"PK\x05\x06", 22), (b"PK\x06\x07", 20), (b"PK\x06\x06", 56)))
        place = data.rfind(name) + rng.randrange(4, length)
        data[place : place + 4] = rng.choice((b"\xff" * 4, bytes(4), rng.randbytes(4)))
        return Made("zip: end", _written(folder, "m.pt", bytes(data)), rf"m\.pt.*({UNREADABLE})")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i, (name, data) in enumerate(entries):
            info = zipfile.ZipInfo(rng.choice(NAMES) if way == "rename" and i == index else name)
            if way == "link" and i == index:
                info.external_attr, data = 0o120777 << 16, b"../outside/secret"
            file.writestr(info, data)
            if way == "repeat" and i == index:
                file.writestr(zipfile.ZipInfo(name), rng.randbytes(len(data)))
    changed = r"|cannot be read safely|NaN or infinity|negative variance|does not fit"  # another entry is read for it
    return Made(f"zip: {way}", _written(folder, "m.pt", buffer.getvalue()), rf"m\.pt.*({UNREADABLE}{changed})")


def zip_bomb(folder: Path) -> Path:
    """A checkpoint one of whose tensors expands to ``BOMB`` bytes."""
    return _written(folder, "m.pt", _bomb(_entries(archive())[-1][0]))


@functools.cache
def _bomb(bombed: str) -> bytes:
    """The archive with one entry that expands to ``BOMB`` bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # which can be repeated
    packed = block * (BOMB >> 20) + packer.flush()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in _entries(archive()):
            file.writestr(zipfile.ZipInfo(name), packed if name == bombed else data)
        place = file.getinfo(bombed).header_offset
    data = bytearray(buffer.getvalue())
    directory = data.rfind(b"PK\x01\x02", 0, data.rfind(bombed.encode()))
    for start, method, size in ((place, 8, 22), (directory, 10, 24)):
        data[start + method : start + method + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        data[start + size : start + size + 4] = struct.pack("<I", BOMB)
    return bytes(data)


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(info.filename, file.read(info)) for info in file.infolist()]


def _directory_lies(rng: random.Random, data: bytes) -> bytes:
    """Change fields of the central directory: method, sizes, lengths, attributes, offsets."""
    changed = bytearray(data)
    starts = [i for i in range(len(data)) if data.startswith(b"PK\x01\x02", i)]
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(starts) + rng.choice((8, 10, 16, 20, 24, 28, 30, 32, 38, 42))
        value = rng.choice((0, 1, 8, 99, 0xFFFF, 0xFFFFFFFF, rng.randrange(1 << 32)))
        changed[place : place + 4] = struct.pack("<I", value)
    return bytes(changed)


def arguments(rng: random.Random, folder: Path) -> Made:
    """A checkpoint whose own description is changed."""
    entry = {key: value for key, value in content().items() if key != "state_dict"}
    entry |= {"normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}, "classes": list("abcd"), "resize": 16}
    if rng.random() < 0.5:
        name = rng.choice(list(ARGUMENTS))
        entry["arch_args"][name] = rng.choice((10**4, 10**6, 10**9, 2**40, 2**63, -1, 0))
        change, words = (
            "large arguments",
            rf"m\.pt.*({name}|time steps|does not fit Spikformer|does not take these arguments)",
        )
    else:
        entry, change = changed_json(rng, entry), "changed description"
        words = r"normalize|classes|arch|input.shape|argument|does not fit|resize|factory|crop|JSON|--arch|time steps"
    if not isinstance(entry, dict):
        entry = {"arch": entry}
    return Made(change, _written(folder, "m.pt", saved({**entry, "state_dict": state()})), words)


def odd_entries(rng: random.Random, folder: Path) -> Made:
    """A state dict with tensors of other shapes, types and values, and entries that are none."""
    weights = dict(state())
    name = rng.choice(list(weights))
    like = weights[name]
    odd = (
        lambda: rng.choice(ODD_VALUES[:-1]),
        lambda: like.to(torch.complex64),
        lambda: torch.zeros(1).expand(10**9, 10**9),
        lambda: torch.zeros(0),
        lambda: like.to_sparse() if like.dim() else like,
        lambda: torch.full(like.shape, float("nan")),
        lambda: torch.empty(like.shape, device="meta"),
        lambda: torch.zeros((1,) * 60),
        lambda: like.double() * 1e300,
    )
    weights[name] = rng.choice(odd)()
    if rng.random() < 0.3:
        weights["x." * rng.choice((1, 500)) + "weight"] = weights.pop(name)
    inner: object = weights
    for _ in range(rng.choice((0, 0, 1, 5, 60))):
        inner = {"state_dict": inner}
    other = "holds no weights|not a spiking vision transformer|a weight that shows one of its sizes"
    words = rf"{re.escape(name)}|x\.weight|x\.x|{other}"
    return Made("odd entries", _written(folder, "m.pt", saved(inner)), words)


def safetensors(rng: random.Random, folder: Path) -> Made:
    """A safetensors file with a header that lies."""
    data = safetensors_bytes(state(), {"format": "pt"})
    size = struct.unpack("<Q", data[:8])[0]
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    way = rng.choice(("bytes", "header length", "json", "offsets", "shape", "twice"))
    name = rng.choice(list(head))
    path, words = folder / "m.safetensors", r"m\.safetensors is not a safetensors file"
    if way == "bytes":
        path.write_bytes(BYTES[rng.choice(list(BYTES))](rng, data))
        return Made("safetensors: bytes", path, rf"{words}|m\.safetensors.*({DAMAGED}|is a program)")
    if way == "header length":
        length = rng.choice((0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        return Made("safetensors: header length", path, words, must_fail=True)
    entry = head[name]
    if way == "offsets" and "data_offsets" in entry:
        entry["data_offsets"] = [rng.choice((0, -1, 8, 2**40, 2**63)) for _ in range(2)]
    if way == "shape" and "shape" in entry:
        entry["shape"] = rng.choice(([2**31, 2**31], [-1], [0], [2**62] * 3, [], [1] * 100))
    text = json.dumps(head).encode()
    if way == "json":
        text = json_text(rng, head)[1]
    if way == "twice":
        text = text[:-1] + b"," + text[1:]
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    other = rf"|m\.safetensors.*({DAMAGED})" if way == "json" else ""  # which may leave a header that is one
    return Made(f"safetensors: {way}", path, words + other, must_fail=way == "twice")


def index_file(rng: random.Random, folder: Path) -> Made:
    """An index of shards that names files which are not beside it, or are no shards."""
    names = list(state())
    good = "a.safetensors"
    _written(folder, good, safetensors_bytes(state(), {"format": "pt"}))
    path = folder / "m.safetensors.index.json"
    way = rng.choice(("outside", "json", "link", "special"))
    weight_map: dict[str, object] = dict.fromkeys(names, good)
    if way == "outside":
        weight_map[rng.choice(names)] = rng.choice(
            ("../outside/secret", "/etc/passwd", "..", ".", "", "a/b", "\0", "x" * 5000)
        )
    if way == "link":
        (folder / "b.safetensors").symlink_to("/dev/zero")
        weight_map[rng.choice(names)] = "b.safetensors"
    if way == "special":
        os.mkfifo(folder / "c.safetensors")
        weight_map[rng.choice(names)] = rng.choice(("c.safetensors", path.name, "A.SAFETENSORS"))
    change, text = (
        json_text(rng, {"weight_map": weight_map})
        if way == "json"
        else (way, json.dumps({"weight_map": weight_map}).encode())
    )
    path.write_bytes(text)
    words = {
        "outside": r"which is not a file beside it|is not beside it",
        "link": r"1 of them is not beside it \(b\.safetensors\)",
        "special": r"1 of them is not beside it|names itself as a shard",
        "json": r"is not an index of shards|names no shards|which is not a file beside it|not beside it|does not fit",
    }
    return Made(f"index: {change}", path, rf"m\.safetensors\.index\.json.*({words[way]})", must_fail=way != "json")


INSPECT = ("inspect", "{}")
KINDS = (
    Kind("torch bytes", bytes_of_torch, load_model, INSPECT, share=3),
    Kind("zip directory", zip_directory, load_model, INSPECT, share=2),
    Kind("arguments", arguments, load_model, INSPECT, frozenset({2, 3, 4})),
    Kind("entries", odd_entries, load_model, INSPECT),
    Kind("safetensors", safetensors, load_model, INSPECT, share=2),
    Kind("index", index_file, load_model, INSPECT),
)
