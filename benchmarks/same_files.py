"""Compile small models at two commits and compare what was written and printed, byte for byte.

    python benchmarks/same_files.py f866f8d            # that commit against the working tree
    python benchmarks/same_files.py f866f8d HEAD --large

For a change that must change nothing: moves, renames, refactorings. Each commit runs the same commands on the same
checkpoints in a process of its own. It compares exit statuses, the five files of every output folder and what
the commands print, and leaves out times, and the paths and lines of svitc's own sources, which a move changes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
ZOO, OURS = "spikingjelly.activation_based.model", "svitc.frontends.official"
SMALL = {"T": 2, "num_classes": 5, "embed_dims": 32, "num_heads": 2, "depths": 1}
STAGES = {"embed_dims": [8, 16, 16, 32], "num_heads": 4, "depths": [6, 2], "num_classes": 3}
EVENTS = {**SMALL, "in_channels": 2, "num_classes": 3}
IMAGE = (3, 32, 48)
QK = {**SMALL, "embed_dims": 64, "num_heads": [2, 2, 4], "depths": [1, 1, 1]}
MAX = {"T": 2, "num_classes": 5, "embed_dims": 128, "depths": [1, 1, 1]}
# name -> (factory, its arguments, shape of the input)
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "spikformer": (
        f"{ZOO}.spikformer:Spikformer",
        {**SMALL, "img_size_h": 32, "img_size_w": 48, "patch_size": 4},
        IMAGE,
    ),
    "sdt": (f"{ZOO}.spike_driven_transformer:SpikeDrivenTransformer", SMALL, IMAGE),
    "qkformer-token": (f"{ZOO}.qkformer:QKFormer", QK, IMAGE),
    "qkformer-channel": (f"{ZOO}.qkformer:QKFormer", {**QK, "qka_type": "channel"}, IMAGE),
    "maxformer": (f"{ZOO}.maxformer:MaxFormer", MAX, IMAGE),
    "maxformer-cifar": (f"{ZOO}.maxformer:MaxFormer", {**MAX, "embed_dims": 64, "cifar": True}, IMAGE),
    "published-spikformer": (f"{OURS}:Spikformer", {**SMALL, "variant": "imagenet"}, (3, 32, 64)),
    "published-sdt": (
        f"{OURS}:SpikeDrivenTransformer",
        {**EVENTS, "pooling_stat": "0111", "spike_mode": "plif"},
        (2, 2, 16, 32),
    ),
    "published-meta": (f"{OURS}:MetaSpikeFormer", {**STAGES, "T": 2}, (3, 32, 64)),
    "published-espikeformer": (f"{OURS}:ESpikeFormer", STAGES, (3, 32, 64)),
    "published-qkformer": (
        f"{OURS}:QKFormer",
        {**SMALL, "variant": "cifar", "depths": [1, 1, 1], "num_heads": 4, "embed_dims": 64},
        (3, 16, 32),
    ),
}
LARGE = {  # not compared unless asked for
    name: (f"{ZOO}.spikformer:{name}", {"T": 4}, (3, 224, 224)) for name in ("spikformer_s", "spikformer_ti")
}
# of every model; {data} only where a model has images of one size
EVERY = {
    "fp32": ["--budget", "0.78"],
    "int8": ["--weights", "int8", "--budget", "params=0.78"],
    "int4": ["--weights", "int4"],
    "int2": ["--weights", "int2"],
    "cuda": ["--target", "cuda", "--weights", "int8"],
}
LABELLED = {
    "auto": ["--budget", "0.6"],
    "joint": ["--budget", "0.1"],
    "qsvit": ["--policy", "qsvit", "--max-drop", "3"],
    "aq-greedy": ["--policy", "aq-greedy", "--budget", "0.175"],
    "psvit": ["--policy", "psvit", "--budget", "0.78", "--refit", "full"],
    "finetune": ["--budget", "0.5", "--finetune", "1", "--train-data", "{data}", "--batch", "32"],
    "front": ["--budget", "0.9,0.7", "--policy", "uniform", "--criterion", "firing"],
}
DIGITS = {
    "primesvt": ["--policy", "primesvt", "--budget", "0.7"],
    "aq-beam": ["--policy", "aq-beam", "--budget", "0.15"],
    "taylor": ["--policy", "uniform", "--criterion", "taylor", "--budget", "0.7"],
    "reconstruction": ["--policy", "uniform", "--criterion", "reconstruction", "--budget", "0.7"],
    "max-drop": ["--max-drop", "2"],
    "impossible": ["--budget", "0.0001"],
    "bad-type": ["--weights", "int3"],
    "heads": ["--budget", "0.8", "--prune-heads", "--policy", "uniform", "--include", "*attn*"],
}
COMMANDS = ("compile", "inspect", "verify", "bench", "energy", "sensitivity")
TIMED = re.compile(r"seconds|_s$|^time")


def main() -> int:
    """Compare two commits; return 0 where nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", help="a commit; by default the working tree")
    parser.add_argument("--only", default="", help="names of models, separated by commas")
    parser.add_argument("--large", action="store_true", help="also spikformer_s at 224 x 224, fp32 and int8")
    parser.add_argument("--work", type=Path, help="keep models and outputs here, and reuse those that are there")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        sides = {
            name: package(commit, work) for name, commit in (("before", arguments.before), ("after", arguments.after))
        }
        wanted = [name for name in arguments.only.split(",") if name] or [*MODELS, "digits"]
        wanted += ["spikformer_s"] if arguments.large else []
        make_models(work / "models", wanted, sides["after"])
        running = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", str(work / "models"), str(work / name), *wanted],
                env={**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
            )
            for name, path in sides.items()
            if not (work / name / "done").exists()
        ]
        if any(process.wait() for process in running):
            return 1
        return compare(work / "before", work / "after")


def package(commit: str | None, work: Path) -> Path:
    """Return a folder in which ``svitc`` is the package of a commit, or of the working tree."""
    home = work / f"package-{commit or 'working-tree'}"
    tree = ROOT
    if commit is not None:
        tree = home / "tree"
        if not tree.exists():
            tree.mkdir(parents=True)
            archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    folder = home / "path" / "svitc"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for part in [*(tree / "compiler").iterdir(), tree / "passes", tree / "frontends"]:
        if part.name != "__pycache__":
            (folder / part.name).symlink_to(part)
    return folder.parent


def make_models(folder: Path, names: list[str], path: Path) -> None:
    """Write checkpoints whose neurons fire, and images that mostly have the labels that the model itself gives them."""
    sys.path.insert(0, str(path))
    folder.mkdir(exist_ok=True)
    for name in names:
        target = folder / f"{name}.pt"
        if target.exists():
            continue
        if name == "digits":
            target.write_bytes((ROOT / "demo" / "digits.pt").read_bytes())
            subprocess.run([sys.executable, ROOT / "demo" / "make_data.py", "-o", folder], check=True)
            (folder / "digits-test.npz").rename(folder / "digits.npz")
            continue
        arch, arguments, shape = {**MODELS, **LARGE}[name]
        module, _, factory = arch.partition(":")
        torch.manual_seed(0)
        model = getattr(__import__(module, fromlist=[factory]), factory)(**arguments)
        warm(model, shape, 2 if name in MODELS else 1)
        torch.save(
            {"state_dict": model.state_dict(), "arch": arch, "arch_args": arguments, "input_shape": list(shape)}, target
        )
        if len(shape) == 3 and name in MODELS:
            images = torch.rand(64, *shape)
            functional.reset_net(model)
            with torch.no_grad():
                logits = model(images)
            labels = (logits.mean(0) if logits.ndim == 3 else logits).argmax(-1)
            labels[::4] = (labels[::4] + 1) % arguments["num_classes"]
            np.savez(folder / f"{name}.npz", images=images.numpy(), labels=labels.numpy())


def warm(model: nn.Module, shape: tuple[int, ...], batches: int) -> None:
    """Give batch norms statistics of random inputs, and shifts under which most neurons fire."""
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        norm.momentum = None  # the average over all batches
        norm.reset_running_stats()
        nn.init.uniform_(norm.weight, 0.7, 1.5)
        nn.init.uniform_(norm.bias, 0.0, 0.8)
    model.train()
    with torch.no_grad():
        for _ in range(batches):
            functional.reset_net(model)
            model(torch.randn((shape[0], 2, *shape[1:]) if len(shape) == 4 else (2, *shape)))
    functional.reset_net(model)
    model.eval()


def commands(models: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the arguments of every command of a model; ``{out}`` is the command's own folder."""
    model, data = str(models / f"{name}.pt"), models / f"{name}.npz"
    few = ["--sweep-images", "32", "--calibration-images", "16", "--data", str(data)]
    every = {key: [*values, *without_images()] for key, values in EVERY.items()}
    if name in LARGE:
        yield from ((f"{name}/{key}", ["compile", model, *every[key], "-o", "{out}"]) for key in ("fp32", "int8"))
        return
    fix = ["--fix"] if name == "published-qkformer" else []
    if data.exists() and name in ("spikformer", "digits"):
        every |= {key: [*values, *few] for key, values in LABELLED.items()}
    if name == "digits":
        every |= {key: [*values, *few] for key, values in DIGITS.items()}
        every |= {"synthetic": ["--budget", "0.6", *few[:-2]]}
    for key, values in every.items():
        filled = [value.replace("{data}", str(data)) for value in values]
        yield f"{name}/{key}", ["compile", model, *filled, *fix, "-o", "{out}"]
    yield f"{name}/inspect", ["inspect", model, *fix]
    yield f"{name}/program", ["inspect", model, "--program", *fix]
    yield f"{name}/json", ["inspect", model, "--json", *fix]
    yield f"{name}/verify", ["verify", f"{name}/int8", "--verify-images", "2"]
    if name == "digits":
        yield f"{name}/energy", ["energy", f"{name}/int8", "--against", model, "--data", str(data), "--limit", "16"]
        yield f"{name}/sensitivity", ["sensitivity", model, *few, "--rates", "0.25,0.5", "-o", "{out}.json"]
        yield f"{name}/bits", ["sensitivity", model, *few, "--bits", "-o", "{out}.json"]
        yield f"{name}/missing", ["compile", "{out}/missing.pt", "--budget", "0.5"]
        for command in COMMANDS:
            yield f"help/{command}", [command, "--help"]
        yield "help/svitc", ["--help"]


def without_images() -> list[str]:
    """Return the option that draws no synthetic images, where a commit has it; older commits draw none anyway."""
    import svitc

    return ["--no-data", "uniform"] if hasattr(svitc.CompileOptions, "no_data") else []


def work_through(models: Path, out: Path, names: list[str]) -> None:
    """Run every command in this process and keep what it printed."""
    os.environ.update(COLUMNS="120", TERM="dumb", NO_COLOR="1")
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)  # so that messages name no folder of one side
    for name in names:
        for label, arguments in commands(models, name):
            Path(label).parent.mkdir(parents=True, exist_ok=True)
            sys.argv = ["svitc", *(value.replace("{out}", label) for value in arguments)]
            stdout, stderr, status = io.StringIO(), io.StringIO(), 0
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                try:
                    runpy.run_module("svitc", run_name="__main__")
                except SystemExit as done:
                    status = int(done.code or 0)
            texts = (json.dumps({"status": status}), stdout.getvalue(), stderr.getvalue())
            Path(f"{label}.printed").write_text("\n".join(texts))
    (out / "done").touch()


def compare(before: Path, after: Path) -> int:
    """Print every file that differs; return 1 if there is one, else 0."""
    names = {str(p.relative_to(side)) for side in (before, after) for p in side.rglob("*") if p.is_file()}
    different = 0
    for name in sorted(names - {"done"}):
        texts = [content(side / name) for side in (before, after)]
        if texts[0] != texts[1]:
            different += 1
            print(
                f"differs: {name}"
                if None not in texts
                else f"only in {'after' if texts[0] is None else 'before'}: {name}"
            )
            if isinstance(texts[0], str) and isinstance(texts[1], str):
                pairs = zip(texts[0].splitlines(), texts[1].splitlines(), strict=False)
                for a, b in [(a, b) for a, b in pairs if a != b][:3]:
                    print(f"    - {a[:200]}\n    + {b[:200]}")
    print(f"{len(names) - 1} files, {different} differ")
    return int(different > 0)


def content(path: Path) -> bytes | str | None:
    """Return a file without times; None where there is none."""
    if not path.is_file():
        return None
    if path.suffix == ".json":
        return json.dumps(without_times(json.loads(path.read_text())), indent=1)
    if path.suffix == ".html":
        text = re.sub(r"about \d+ (s|min)\b|took [\d.]+ s", "(time)", path.read_text())
        return re.sub(r'<td class="right">\d+\.\d\d</td>', "<td>(time)</td>", text)  # the seconds of a stage
    if path.suffix == ".printed":
        text = path.read_text()
        if path.name in ("json.printed",):
            return re.sub(r"svitc/frontends/[\w/]+\.py:\d+", "svitc/frontends", text)
        text = re.sub(r"\(\d+\.\d s\)|about \d+ (s|min)\b|[\d.]+ m?s\b", "(time)", text)
        return re.sub(r"\S*svitc/frontends/[\w/]+\.py:\d+|\s*\S*\.py:\d+", " (line)", text)
    return path.read_bytes()


def without_times(value: Any) -> Any:
    """Return JSON values without the keys that hold times, and without lines of sources."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not TIMED.search(k) and k != "where"}
    if isinstance(value, str):
        return re.sub(r"about \d+ (s|min)\b", "about (time)", value)
    return [without_times(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work_through(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main())
