"""Do budgets hold? Every family at its published size, at four budgets: the achieved ratio, on the written bytes."""

from __future__ import annotations

import argparse
import time

import svitc
from common import FULL_SIZE, build, publish
from svitc import driver, onnx
from svitc.budget import byte_cost, parse_budget
from svitc.frontends.capture import capture
from svitc.pass_base import Pipeline
from svitc.passes import Prune, inference
from svitc.passes.policies import Uniform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=list(FULL_SIZE), choices=list(FULL_SIZE))
    parser.add_argument("--budgets", nargs="+", default=["0.9", "0.78", "0.5", "0.3"])
    args = parser.parse_args()
    rows = []
    for name in args.families:
        model, shape = build(name)
        program = capture(model, svitc.InputSpec(shape), {"arch": name})
        driver.canonicalise(program)
        folded = program.copy()
        Pipeline(inference())(folded)
        original = onnx.weight_bytes(onnx.lower(folded))
        cost = byte_cost(program, folded, original)
        for text in args.budgets:
            start = time.perf_counter()
            limit = parse_budget(text).limit(original)
            plan = Uniform().plan(program, cost, limit, "bytes")
            pruned = program.copy()
            Prune(plan)(pruned)
            stored = onnx.weight_bytes(driver.export(pruned))
            ratio, wanted = stored / original, float(text)
            rows.append({
                "family": name, "budget": wanted, "ratio": round(ratio, 5), "original bytes": original, "bytes": stored,
                "parameters": pruned.parameter_count(), "within (b-0.01, b]": wanted - 0.01 < ratio <= wanted,
                "seconds": round(time.perf_counter() - start, 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
    publish("budgets", rows, __doc__ or "")
    assert all(row["within (b-0.01, b]"] for row in rows)


if __name__ == "__main__":
    main()
