"""Check budgets: every family at its published size, at four budgets, and the ratio that the written bytes achieve."""

from __future__ import annotations

import argparse

import svitc
from common import FULL_SIZE, build, publish
from svitc.driver.load import run_canonical_passes
from svitc.frontends.capture.capture import capture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=list(FULL_SIZE), choices=list(FULL_SIZE))
    parser.add_argument("--budgets", nargs="+", default=["0.9", "0.78", "0.5", "0.3"])
    args = parser.parse_args()
    rows = []
    for name in args.families:
        model, shape = build(name)
        program = capture(model, svitc.InputSpec(shape), {"arch": name})
        run_canonical_passes(program)
        for text in args.budgets:
            report = svitc.compile(program, text, images=1, remove_dead_channels="off", no_data="uniform").report
            memory, wanted = report["memory"], float(text)
            rows.append(
                {
                    "family": name,
                    "budget": wanted,
                    "ratio": round(memory["ratio"], 5),
                    "original bytes": memory["original_bytes"],
                    "bytes": memory["compiled_bytes"],
                    "parameters": report["parameters"]["compiled"],
                    "within (b-0.01, b]": "yes" if wanted - 0.01 < memory["ratio"] <= wanted else "NO",
                    "flips beyond rounding": report["verify"]["flips_beyond_rounding"],
                    "verified": report["verify"]["status"],
                }
            )
            print(rows[-1], flush=True)
    publish("budgets", rows, __doc__ or "")
    assert all(row["within (b-0.01, b]"] == "yes" and row["verified"] == "passed" for row in rows)


if __name__ == "__main__":
    main()
