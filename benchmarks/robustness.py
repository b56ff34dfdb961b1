"""Try hostile files, faults, load and other machines' settings, and say what does not hold.

    python benchmarks/robustness.py hostile --inputs 10000     # mutated files of every kind, by seed
    python benchmarks/robustness.py kills --kills 200          # kill -9 at random moments, then --resume
    python benchmarks/robustness.py ranks --rank-kills 30      # the same under torchrun, and of one rank alone
    python benchmarks/robustness.py disk                       # a disk that is full at each file, read-only, removed
    python benchmarks/robustness.py clock                      # the system's clock jumps by hours
    python benchmarks/robustness.py together                   # two compilations into one folder, readers beside one
    python benchmarks/robustness.py same                       # the same bytes with other threads, locale, folder, …
    python benchmarks/robustness.py threads                    # several threads and forks run one session
    python benchmarks/robustness.py scale                      # time and memory against size
    python benchmarks/robustness.py memory                     # peak memory at 224x224, and that of torch.onnx.export
    python benchmarks/robustness.py publish                    # write results/robustness.md from all of them

Every subcommand stops after ``--seconds`` and goes on where it stopped when it is called again: what is done is in
``--work`` as JSON lines, one for each try, with its seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from common import environment
from robustness_parts import clock, disk, faults, hostile, ranks, report, same, scale, together
from robustness_parts.log import Log

PARTS = {
    "hostile": hostile.run,
    "kills": faults.run,
    "ranks": ranks.run,
    "disk": disk.run,
    "clock": clock.run,
    "together": together.run,
    "same": same.run,
    "threads": same.run_threads,
    "scale": scale.run,
    "memory": scale.run_memory,
}


def main() -> None:
    """Run one part for a while, or publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "publish"])
    parser.add_argument("--inputs", type=int, default=10_000, help="hostile files")
    parser.add_argument("--kills", type=int, default=200, help="kills, of which a run may get several")
    parser.add_argument("--rank-kills", type=int, default=30, help="kills of runs of two processes")
    parser.add_argument("--seconds", type=float, default=170.0, help="stop after about this long")
    parser.add_argument("--work", type=Path, default=Path("build/robustness"), help="folder of what is done")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "publish":
        report.publish_all(options.work)
        return
    (options.work / f"{options.part}.made.json").write_text(json.dumps(environment()))
    log = Log(options.work / f"{options.part}.jsonl", options.seconds)
    PARTS[options.part](log, options)
    print(f"{len(log.rows)} in {log.path}")


if __name__ == "__main__":
    main()
