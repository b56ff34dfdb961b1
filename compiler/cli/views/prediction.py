"""The predicted loss of accuracy, as cells, sentences and a warning."""

from __future__ import annotations

from svitc.cli.terminal import err
from svitc.support import human
from svitc.support.types import JsonDict

INT8_SHARE = 0.27  # of the bytes, which int8 weights fit into
RECOMMENDED_POINTS = 2  # of the smallest budget that is recommended


def predicted_cells(prediction: JsonDict) -> list[str]:
    """Return the range of a predicted loss and its middle, as cells of a table."""
    if prediction["too_small"]:
        return ["too small", "to tell"]
    low, high = (f"{100 * loss:.1f}" for loss in prediction["interval"])
    return [f"-{low} to -{high}", f"about -{100 * prediction['loss']:.1f} points"]


def predicted_from(prediction: JsonDict) -> str:
    """Return the sentence that says what a prediction is made from, and how it errs."""
    images, same = f"{prediction['images']:,}", human.share(prediction["agreement"])
    if prediction["basis"] == "synthetic":
        return (
            f"[yellow]predicted[/] from {images} synthetic images: on {same} of them model.onnx and the original "
            "choose the same class. Real images are easier and agree more often. --data DIR with any images, without "
            "labels, makes a better plan and a better prediction"
        )
    return (
        f"[yellow]predicted[/] from {images} of your images: on {same} of them model.onnx and the original choose the "
        "same class. The plan was chosen on them, so that new images agree a little less often"
    )


def warn_of_loss(report: JsonDict) -> None:
    """Print, in red, that a large loss is predicted, and what would lose less."""
    prediction = report["prediction"]
    if not prediction or not prediction["large"]:
        return
    budget = prediction["recommended"]
    text = report["budget"]["text"]
    way_out = "Give --data, or more bits with --weights."
    if budget is not None:
        way_out = f"The smallest budget with at most {RECOMMENDED_POINTS} points predicted is {budget:.2f}. "
        if report["weights"]["type"] == "fp32" and report["memory"]["ratio"] > INT8_SHARE:
            way_out += "--weights int8 takes a quarter of the bytes with every channel kept. "
        way_out += "--data DIR makes a better plan, --train-data DIR --finetune 5 trains it."
    low, high = (100 * loss for loss in prediction["interval"])
    err.print(
        f"[bold red]warning:[/] {f'--budget {text}' if text else 'this file'} is predicted to lose {low:.0f} to "
        f"{high:.0f} points of top-1. {way_out}",
        soft_wrap=True,
    )
