"""What verification looked at, what was refused, what to be careful about, and what repeats the compilation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from svitc.html_report.facts import section
from svitc.support import human
from svitc.support.types import JsonDict


@dataclass(frozen=True)
class Refusal:
    """A place that was left as it was.

    Attributes:
        place: the layer, neuron or channel group.
        what: what could not be done there.
        why: the reason.
    """

    place: str
    what: str
    why: str


def cautions(report: JsonDict) -> list[str]:
    """Return what makes the figures less certain than they look."""
    sweep, finetune = section(report, "sweep"), section(report, "finetune")
    accuracy, prediction = section(report, "accuracy"), section(report, "prediction")
    found = []
    if sweep.get("on_reported_images") and sweep.get("points"):
        found.append(
            "The plan was chosen on some of the images that the accuracy is reported on, so that the figure flatters "
            "a little. --train-data chooses it on other images."
        )
    if finetune and finetune.get("chosen_epoch") == 0:
        found.append("Fine-tuning found nothing better than the network before it, which was kept.")
    if prediction.get("large"):
        budget = prediction.get("recommended")
        way_out = f" A budget of {budget:.2f} is expected to lose little." if budget else ""
        found.append(f"The loss is predicted to be large, and nothing has measured it.{way_out}")
    if accuracy.get("unreadable"):
        found.append(f"Unreadable, and not counted: {human.counted(accuracy['unreadable'], 'image')}.")
    assumed = section(report, "model").get("assumptions") or ()
    notes = accuracy.get("notes") or section(report, "agreement").get("notes") or ()
    return [*found, *(f"{str(note)[:1].upper()}{str(note)[1:]}." for note in dict.fromkeys([*assumed, *notes]))]


def looked(report: JsonDict) -> list[str]:
    """Return what verification compared, and what it found, as sentences."""
    verify = section(report, "verify")
    if not verify:
        return []
    within, beyond = verify.get("flips_within_rounding", 0), verify.get("flips_beyond_rounding", 0)
    sentences = [
        f"{verify.get('spikes', 0):,} spikes of {human.counted(verify.get('neurons', 0), 'neuron layer')} on "
        f"{human.counted(verify.get('images', 0), 'image')}, and on random spikes, which reach layers that images "
        "leave silent.",
        f"{within:,} spikes differ as the rounding of floats explains; {beyond:,} differ otherwise."
        if within or beyond
        else "Not one spike differs.",
        f"{verify.get('currents_beyond_rounding', 0):,} input currents and {verify.get('logits_beyond_rounding', 0):,} "
        "outputs are off by more than the rounding of floats explains.",
    ]
    agreement = verify.get("top1_agreement")
    if agreement is not None:
        sentences.append(
            f"The file and the network in PyTorch choose the same class for {human.share(agreement)} of them."
        )
    silent = verify.get("silent_neurons") or ()
    if silent:
        names = ", ".join(map(str, silent[:5])) + (" and others" if len(silent) > 5 else "")
        sentences.append(
            f"{human.counted(len(silent), 'layer')} never fired on these images, and "
            f"{human.agree(len(silent), 'was', 'were')} checked on random spikes: {names}."
        )
    if verify.get("calls"):
        sentences.append(
            f"The file runs one time step per call: {human.subject(verify['calls'], 'call', 'was', 'were')} compared."
        )
    raw = section(verify, "raw_input")
    if raw:
        wrong = raw["pixels_differing"] + raw["values_differing"]
        sentences.append(
            f"The file normalizes bytes itself: {raw['pixels']:,} bytes, every value in every channel, and "
            f"{raw['values']:,} outputs were compared bit for bit with those of normalized floats, and "
            + (f"{wrong:,} differ." if wrong else "none differs.")
        )
    quantization = section(verify, "quantization")
    if quantization:
        sentences.append(
            f"The network with rounded weights was compared with the one in floats: {quantization['compared']:,} "
            f"values, {quantization['beyond_rounding']:,} further off than rounding explains."
        )
    weights = section(report, "weights")
    if weights.get("neurons"):
        sentences.append(
            f"{weights['exact_neurons']} of {weights['neurons']} neuron layers fire the same, bit for bit, in whatever "
            "order a processor adds."
        )
    return sentences


def refused(report: JsonDict) -> list[Refusal]:
    """Return all places that were left as they were, each with its reason."""
    return list(_refused(report))


def _refused(report: JsonDict) -> Iterator[Refusal]:
    for group in report.get("groups") or ():
        if group.get("frozen"):
            yield Refusal(group["name"], "no channels can be removed", str(group["frozen"]))
    for place, why in section(report, "refused").items():
        yield Refusal(place, "not rewritten", str(why))
    weights = section(report, "weights")
    for place, why in section(weights, "refused").items():
        yield Refusal(place, "not rewritten for integer weights", str(why))
    for place, why in section(weights, "inexact").items():
        yield Refusal(place, "not exact in every order of sums", str(why))
    for place, chain in section(report, "reparam").items():
        if isinstance(chain, dict) and not chain.get("merged"):
            yield Refusal(place, "convolutions not merged", str(chain.get("why", "")))
    for kind in ("neurons", "groups"):
        for place, found in section(section(report, "clean"), kind).items():
            why = found.get("why") if isinstance(found, dict) else None
            if why:
                yield Refusal(place, "constant channels not removed", str(why))


def replay(report: JsonDict) -> str:
    """Return in words how to make the same files from the plan that was found."""
    made = section(report, "policy").get("weights")
    weights = f" and --weights {made}" if made not in (None, "fp32", "mixed") else ""
    return (
        f"plan.json holds the plan that was found. With --plan plan.json{weights} in place of the budget and the "
        "policy, and all other options as they were, svitc compile makes the same network again without searching."
    )


def origin(report: JsonDict) -> list[tuple[str, str]]:
    """Return rows on what the file was made of and with."""
    model, described, policy = section(report, "model"), section(report, "input"), section(report, "policy")
    rows = [("svitc", str(report.get("svitc", "unknown")))]
    rows += [(name, str(number)) for name, number in section(report, "versions").items()]
    rows.append(("Model", str(model.get("arch", "unknown"))))
    if model.get("sha256"):
        rows.append(("SHA-256 of the checkpoint", str(model["sha256"])))
    if described.get("shape"):
        rows.append(
            (
                "Input",
                f"{' × '.join(map(str, described['shape']))}{', event frames' if described.get('events') else ''}",
            )
        )
    classes = model.get("classes")
    if classes:
        shown = ", ".join(map(str, classes[:12]))
        rows.append(("Classes", f"{len(classes)}: {shown}{', …' if len(classes) > 12 else ''}"))
    if policy.get("policy"):
        details = ", ".join(f"{key} {policy[key]}" for key in ("criterion", "refit", "seed") if key in policy)
        rows.append(("Policy", f"{policy['policy']} ({details})"))
    file = section(report, "file")
    if file:
        batch = "any number of images" if file.get("batch") is None else human.counted(file["batch"], "image")
        rows.append(("File", f"opset {file.get('opset')}, for {report.get('target')}; takes {batch} at once"))
    return rows
