"""Check that the ONNX file classifies real images as the eager model does: the unpruned export of a trained checkpoint
in ONNX Runtime against SpikingJelly's eager model, on every test image, with every neuron checked layer by layer. With
`--weights int8`, the file with integer sums, whose spikes must equal those of its model.py bit for bit."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from spikingjelly.activation_based import functional

from common import publish
from svitc import onnx, runtimes
from svitc.data.dataset import load_data
from svitc.data.inputs import top1
from svitc.driver.load import load
from svitc.frontends import LoadOptions, load_model
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--weights", choices=["fp32", "int8"], default="fp32")
    args = parser.parse_args()
    loaded = load_model(args.checkpoint, LoadOptions())
    program = load(args.checkpoint)
    checked = program if args.weights == "fp32" else quantize(program)[0]
    exported = export(checked)
    whole = onnx.weight_bytes(export(program))
    data = load_data(args.data, program.input, program.info, limit=args.limit)
    session = runtimes.session(exported)
    agree = eager_right = ours_right = seen = 0
    start = time.perf_counter()
    for x, labels in data.batches(100):
        functional.reset_net(loaded.model)
        with torch.inference_mode():
            eager = top1(loaded.model(x).numpy())
        ours = top1(session.run(None, {"image": x.numpy()})[0])
        agree += int((eager == ours).sum())
        eager_right += int((eager == labels.numpy()).sum())
        ours_right += int((ours == labels.numpy()).sum())
        seen += len(eager)
    seconds = time.perf_counter() - start
    check = verify if args.weights == "fp32" else verify_exact
    verdict = check(checked, exported, (x for x, _ in data.batches(100)))
    rows = [
        {
            "weights": args.weights,
            "bytes of fp32": onnx.weight_bytes(exported) / whole,
            "images": seen,
            "eager top-1": eager_right / seen,
            "ONNX Runtime top-1": ours_right / seen,
            "same class": agree / seen,
            "spikes compared": verdict.total("spikes"),
            "flips within rounding": verdict.total("flips_within_rounding"),
            "flips beyond rounding": verdict.total("flips_beyond_rounding"),
            "currents beyond rounding": verdict.total("currents_beyond_rounding"),
            "seconds for both": round(seconds, 1),
        }
    ]
    publish(
        "cifar10_agreement" + f"_{args.weights}" * (args.weights != "fp32"),
        rows,
        __doc__ or "",
        verify=verdict.to_json(),
    )


if __name__ == "__main__":
    main()
