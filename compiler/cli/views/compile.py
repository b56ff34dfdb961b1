"""Tables of the result of a compilation, or of a front of several."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from svitc.cli.terminal import assumptions, make_table, out
from svitc.cli.views.anytime import anytime
from svitc.cli.views.prediction import predicted_cells, predicted_from
from svitc.cli.views.promise import promise
from svitc.cli.views.remarks import energy_origin, trained
from svitc.cli.views.verify import int16_line, verdict_line
from svitc.support import human
from svitc.support.hardware import integer_dot_products
from svitc.support.types import JsonDict


def summary(report: JsonDict, paths: list[Path]) -> None:
    """Print the result of a compilation."""
    assumptions(report["model"])
    memory, parameters = report["memory"], report["parameters"]
    table = make_table("", "original", "compiled", "ratio")
    a, b = memory["original_bytes"], memory["compiled_bytes"]
    table.add_row("weights in ONNX", human.byte_size(a), human.byte_size(b), f"[bold]{b / a:.4f}[/]")
    table.add_row(
        "parameters",
        f"{parameters['original']:,}",
        f"{parameters['compiled']:,}",
        f"{parameters['ratio']:.4f}",
    )
    a, b = report["macs"]["original"], report["macs"]["compiled"]
    table.add_row("multiply-accumulates", human.millions(a), human.millions(b), f"{b / a:.4f}")
    _tokens_row(table, report.get("tokens"))
    accuracy, agreement = report["accuracy"], report["agreement"]
    if agreement:
        same = f"[bold]{human.accuracy(agreement['share'])}[/]"
        table.add_row(f"same class on {human.counted(agreement['images'], 'image')}", "-", same, "")
        table.add_row("  95% interval", "", human.share_interval(agreement["interval"]), "")
    compared = report.get("outputs")
    if compared:
        _outputs_rows(table, compared)
    prediction = report["prediction"]
    if prediction:
        table.add_row("predicted change of top-1", "", *predicted_cells(prediction))
    _accuracy_rows(table, accuracy)
    spent = report.get("energy")
    if spent:
        a, b = (spent[which]["pj"] for which in ("original", "compiled"))
        table.add_row("energy of an image", human.microjoules(a), human.microjoules(b), f"{b / a:.4f}")
    _latency_row(table, report["budget"])
    out.print(table)
    for remark in (trained(report["finetune"]), energy_origin(spent)):
        if remark is not None:
            out.print(remark, soft_wrap=True)
    for note in (agreement or accuracy).get("notes", ()):
        out.print(f"[yellow]data[/] {escape(note)}")
    if agreement:
        no_accuracy()
    if prediction:
        out.print(predicted_from(prediction))
    promise(report.get("promise"))
    if report.get("anytime"):
        anytime(report["anytime"])
    verdict_line(report["verify"])
    lossless(report)
    if parameters["dead"]:
        out.print(f"{parameters['dead']:,} parameters that the model never uses were dropped before counting")
    if paths:
        _written(report, paths)


def _accuracy_rows(table: Table, accuracy: JsonDict) -> None:
    """Add top-1 before and after, with intervals, where images with labels told."""
    if not accuracy["images"]:
        return
    a, b, n = accuracy["original"], accuracy["pruned"], accuracy["images"]
    table.add_row(
        f"top-1 on {human.counted(n, 'image')}",
        human.accuracy(a),
        human.accuracy(b),
        f"{human.change(a - b)} points",
    )
    table.add_row(
        "  95% interval",
        *(human.share_interval(accuracy[f"{which}_interval"]) for which in ("original", "pruned")),
        human.change_interval(accuracy["drop_interval"]),
    )


def _written(report: JsonDict, paths: list[Path]) -> None:
    """Print what was written, and how it is used."""
    names = ", ".join(path.name for path in paths)
    out.print(f"wrote {escape(str(paths[0].parent))}/: {names}  ({report['seconds']['total']:.1f} s)")
    out.print(form_of(report["file"]))
    raw_input_line(report["input"])
    streaming_line(report.get("streaming"))
    device_check(paths, report["file"]["opset"])


def _tokens_row(table: Table, tokens: JsonDict | None) -> None:
    """Add how many tokens run through the parts of the network that leave some out."""
    if tokens:
        pairs = sorted({(stage["of"], stage["kept"]) for stage in tokens.values()}, reverse=True)
        share = sum(stage["kept"] for stage in tokens.values()) / sum(stage["of"] for stage in tokens.values())
        before, after = (" / ".join(f"{pair[i]:,}" for pair in pairs) for i in (0, 1))
        table.add_row("tokens", before, after, f"{share:.4f}")


def _latency_row(table: Table, budget: JsonDict) -> None:
    """Add the times of an image that a search by latency measured."""
    if budget.get("compiled_ms"):
        a, b = budget["original_ms"], budget["compiled_ms"]
        table.add_row("time of an image here", human.milliseconds(a), human.milliseconds(b), f"{b / a:.4f}")


def form_of(file: JsonDict) -> str:
    """Return in words which opset a file needs, and how many images it takes at once."""
    count = file["batch"]
    batch = "any number of images" if count is None else f"exactly {human.counted(count, 'image')}"
    return f"model.onnx: opset {file['opset']}, for {file['opset_for']}; takes {batch} at once"


def raw_input_line(described: JsonDict) -> None:
    """Print what a file takes that normalizes the bytes of images itself."""
    if described.get("dtype") == "uint8":
        channels, height, width = described["shape"]
        shape = escape(f"[N, {height}, {width}, {channels}]")
        out.print(f"raw input: it takes uint8 {shape}, and scales and normalizes pixels itself")


def streaming_line(streaming: JsonDict | None) -> None:
    """Print what a call of a streaming file passes on to the next."""
    if streaming is not None:
        size = human.byte_size(streaming["bytes"])
        states = human.subject(streaming["states"], "state", "goes", "go")
        out.print(f"one time step per call: {states} from call to call, {size} for each stream")


def device_check(paths: list[Path], opset: int) -> None:
    """Print how to check the file on the machine that it is for; OpenVINO reads no weights of 2 bits."""
    from svitc.onnx.target import WEIGHT_OPSETS

    script = next((path for path in paths if path.name == "check.py"), None)
    if script is not None:
        also = ", or --openvino" if opset < WEIGHT_OPSETS[2] else ""
        out.print(f"on the device: python {escape(str(script))}, with numpy and onnxruntime{also}")
    predict = next((path for path in paths if path.name == "predict.py"), None)
    if predict is not None:
        out.print(f"on pictures: python {escape(str(predict))} PICTURE…, with numpy, pillow and onnxruntime")
    caller = next((path for path in paths if path.name == "stream.py"), None)
    if caller is not None:
        out.print(f"frame by frame: python {escape(str(caller))} FRAMES.npy, with numpy and onnxruntime; or stream.cpp")


def _outputs_rows(table: Table, compared: JsonDict) -> None:
    """Add what is known of outputs that are not class scores."""
    for name, error in compared["relative_errors"].items():
        table.add_row(f"relative error of {escape(name)}", "-", f"{error:.3g}", "")
    metric = compared["metric"]
    if metric:
        name = f"{escape(metric['name'])} on {human.counted(compared['images'], 'image')}"
        table.add_row(name, f"{metric['original']:.4f}", f"{metric['compiled']:.4f}", f"{-metric['drop']:+.4f}")


def no_accuracy() -> None:
    """Print that agreement is not accuracy."""
    out.print(
        '[yellow]note[/] without labels nothing says which classes are right: "same class" compares with the '
        "original, and is not an accuracy"
    )


def lossless(report: JsonDict) -> None:
    """Print how many channels were removed without loss, and how many neurons of a network of integers are exact."""
    clean, weights = report["clean"], report["weights"]
    if clean.get("removed"):
        folded = f", {clean['folded']} of them by folding a constant into a bias" if clean["folded"] else ""
        out.print(f"{clean['removed']:,} channels that no input can change were removed without any loss{folded}")
    trained_line(weights)
    if weights["type"] != "fp32":
        exact, of = weights["exact_neurons"], weights["neurons"]
        text = "every neuron fires" if exact == of else f"{exact} of {of} neurons fire"
        kind = "integer weights" if weights["type"] == "mixed" else weights["type"]
        out.print(
            f"{kind}: {text} the same, bit for bit, in whatever order a processor adds; {tried(report['runtimes'])}"
        )
        int16_line(report["verify"])
        input_line(report["input"])
        if weights["streams"]:
            out.print(
                f"[yellow]note[/] {len(weights['streams'])} layers read a membrane stream instead of spikes: it is "
                "rounded to 8 bits for them (weights.streams in report.json)"
            )
        if integer_dot_products() is False:
            out.print(
                "[yellow]note[/] this processor has no integer dot products (AVX-512 VNNI, AVX-VNNI, Arm dotprod): the "
                "file is as exact here, but hardly faster than fp32"
            )
        neurons = {layer["name"] for layer in report["verify"]["layers"]}
        for reason in sorted({why for name, why in weights["inexact"].items() if name in neurons}):
            out.print(f"[yellow]note[/] not exact, since the order of a float sum is the runtime's: {escape(reason)}")


def tried(rows: list[JsonDict]) -> str:
    """Return in which runtimes a file was verified, with the results, and which others svitc can verify it in."""
    told = [f"{row['result']} in {row['name']} {row['version']}" for row in rows if row["version"] is not None]
    others = ", ".join(row["name"] for row in rows if row["version"] is None)
    return "; ".join(told) + (f" (svitc verify --runtime tries {others})" if others else "")


def trained_line(weights: JsonDict) -> None:
    """Print how many layers keep the grids of few bits that their weights were trained on."""
    errors: dict[int, list[float]] = {}
    for layer in weights.get("layers", {}).values():
        if "grid" in layer:
            errors.setdefault(layer["grid"], []).append(layer["scale_error"])
    for bits, found in sorted(errors.items()):
        layers = human.subject(len(found), "layer", "lie", "lie")
        scales = f", times scales that are right to within {max(found):.1g}" if max(found) else ""
        out.print(f"the weights of {layers} on a grid of {bits} bits: kept exactly{scales}")


RANGE_SOURCES = {
    "declared": "as declared",
    "measured": "as measured on the images",
    "normalization": "from the checkpoint's normalization",
    "batch norm": "from the model's first batch norm",
    "assumed": "as normalized pixels and counts of events are",
}


def input_line(described: JsonDict) -> None:
    """Print the range of the input, outside which a quantized file clamps."""
    if "range" in described:
        low, high = described["range"]
        source = RANGE_SOURCES[described["range_from"]]
        out.print(f"inputs from {low:g} to {high:g}, {source}; beyond, the file clamps them (--input-range)")


def front(reports: list[JsonDict], out_folder: Path) -> None:
    """Print the results of several budgets, one line for each."""
    unlabeled = any(report["agreement"] for report in reports)
    measured = ("same class as the original",) if unlabeled else ("top-1", "change")
    columns = ("budget", "weights in ONNX", "ratio", "parameters", "MMACs", *measured, "95% interval", "verified")
    table = make_table(*columns, left={"verified"})
    for report in reports:
        memory = report["memory"]
        table.add_row(
            str(report["budget"]["text"]),
            human.byte_size(memory["compiled_bytes"]),
            f"[bold]{memory['ratio']:.4f}[/]",
            f"{report['parameters']['compiled']:,}",
            f"{report['macs']['compiled'] / 1e6:,.1f}",
            *(_agreement_cells(report["agreement"]) if unlabeled else _accuracy_cells(report["accuracy"])),
            report["verify"]["status"],
        )
    out.print(table)
    if unlabeled:
        no_accuracy()
    page = ", and report.html, which compares them" if (out_folder / "report.html").is_file() else ""
    out.print(f"wrote one folder for each budget into {escape(str(out_folder))}/{page}")


def _accuracy_cells(accuracy: JsonDict) -> list[str]:
    if not accuracy["images"]:
        return ["-", "-", "-"]
    change = f"{human.change(accuracy['drop'])} points"
    return [human.accuracy(accuracy["pruned"]), change, human.change_interval(accuracy["drop_interval"])]


def _agreement_cells(agreement: JsonDict) -> list[str]:
    return [human.accuracy(agreement["share"]), human.share_interval(agreement["interval"])]
