"""Generated source: written to a folder, loaded, and compared with its program."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from spikingjelly.activation_based import functional

from svitc.codegen.module import program_source
from svitc.ir.program import Program
from svitc.serialization.writer import save_program


def write(program: Program, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    source = program_source(program)
    (folder / "model.py").write_text(source)
    save_program(program, folder / "model.safetensors")
    return source


def classes(source: str) -> list[str]:
    return re.findall(r"^class (\w+)", source, flags=re.M)


def assert_loads(program: Program, folder: Path) -> str:
    source = write(program, folder)
    names = {"__file__": str(folder / "model.py"), "__name__": "model"}
    exec(compile(source, "model.py", "exec"), names)
    model = names["load"]()
    x = torch.randn(program.input.batched(2))
    want = program(x)
    with torch.no_grad():
        assert torch.equal(model(x), want)
    functional.reset_net(model)
    assert want.any()
    return source
