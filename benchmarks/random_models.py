"""Try random models of everything that a model may be made of, and say what does not hold.

    python benchmarks/random_models.py                     # 1,000 models, and write results/random_models.md
    python benchmarks/random_models.py --models 50 --first 200

Each model is captured (the same bits as the eager model, on inputs of the range that it is made for), pruned (equal to
the network whose removed channels are silenced, in float64), exported and quantized, and every file is verified. A
model that is refused is not a failure, but it is counted; a wrong number or an internal error is one.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

import onnxruntime

from common import RESULTS, environment, made_with
from svitc.errors import InternalError, SvitcError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.random_checks import check_model


def outcome(seed: int) -> tuple[str, str]:
    """Return how one model ended, and why."""
    try:
        check_model(seed)
    except AssertionError as error:
        return "wrong", str(error)
    except InternalError as error:
        return "internal error", error.message
    except SvitcError as error:
        return "refused", error.message
    except Exception as error:  # any other error is a fault of svitc's, too
        return "internal error", f"{type(error).__name__}: {error}"
    return "ok", ""


def main() -> None:
    """Try the models, print those that fail, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first model")
    parser.add_argument("--markdown", type=Path, default=RESULTS / "random_models.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    onnxruntime.set_default_logger_severity(4)
    counts: Counter[str] = Counter()
    rows = []
    for seed in range(options.first, options.first + options.models):
        kind, why = outcome(seed)
        counts[kind] += 1
        if kind != "ok":
            first = " ".join(why.split())[:160]
            rows.append(f"| {seed} | {kind} | {first.replace('|', '/')} |")
            print(seed, kind, first, flush=True)
        elif counts["ok"] % 10 == 0:
            print(dict(counts), flush=True)
    table = [f"| {kind} | {counts[kind]} |" for kind in ("ok", "refused", "wrong", "internal error")]
    env = environment()
    text = [
        "# Random models",
        "",
        f"Seeds {options.first} to {options.first + options.models - 1}.",
        "",
        "| outcome | models |",
        "| --- | --- |",
        *table,
        "",
    ]
    text += [
        "| seed | outcome | why |",
        "| --- | --- | --- |",
        *rows,
        "",
        f"`{env['command']}`, {made_with(env)}",
        "",
    ]
    options.markdown.write_text("\n".join(text))


if __name__ == "__main__":
    main()
