"""The doctor's knowledge: what the measurements tell of a network, with the remedy and the lesson."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qatlib.doctor.measure import Measured

LESSONS = {
    "01": "01_numbers_and_quantizers", "02": "02_straight_through", "03": "03_ai8x_layers", "04": "04_traditional_ptq_qat",
    "05": "05_train_pose_tiny", "06": "06_inspect_parameters", "07": "07_export_int8",
}  # fmt: skip
SATURATION = 0.05  # calibrated layers clip far less; uncalibrated ones usually more
START = "call ai8x.start_qat(model, train_loader, policy): it fuses batch norm, measures thresholds, and switches QAT on"

# The name of a finding: (its place in the report, lesson, remedy).
ADVICE = {
    "input range": (0, "01", "use x = (image_0_to_255 - 128) / 128, or ai8x.normalize on images of 0..1"),
    "wrong checkpoint":
        (1, "07", "load the one that QAT saved; integers run with set_device(85, simulate=True) and inputs of -128..127"),
    "not a number": (2, "05", "go back to the last sound checkpoint; lower the learning rate"),
    "threshold": (3, "06", "a dead layer gives -inf: revive it, then measure anew with pre_qat on training data"),
    "QAT partly off": (4, "03", "call ai8x.initiate_qat(model, policy) on the whole network"),
    "QAT never started": (4, "03", START),
    "batch norm not fused": (5, "03", f"from the float checkpoint, {START}"),
    "learning rate": (6, "05", "start QAT from the sound float weights with a tenth of the rate, or less, and let it fall"),
    "rounding": (7, "01", "use quantizers.round_half_up"),
    "clamp missing": (7, "03", "clamp after rounding"),
    "arithmetic": (7, "07", "compare with integer.run, layer by layer"),
    "dead layer": (8, "06", "go back to a checkpoint where it lives; lower the learning rate"),
    "dead channels": (8, "06", "they cost memory and give nothing: prune them, or train longer"),
    "big bias": (9, "03", "limit the bias (a channel that is always off stays off), or shift_quantile below 1"),
    "wasted bit": (9, "03", "shift_quantile slightly below 1 gains it back"),
    "clipping":
        (10, "04", "thresholds were not measured, or on other data: run pre_qat on training data from the float weights"),
    "wide head":
        (11, "05", "give the network a head_gain() = 2^weight_shift and multiply by it before the loss, as PoseTiny does"),
}  # fmt: skip
ARITHMETIC = {
    "half-even": ("rounding", "ties are rounded to even (torch.round); the chip rounds them up: floor(x + 0.5)"),
    "unclamped": ("clamp missing", "outputs leave -1..127/128; the chip saturates"),
    "other": ("arithmetic", "outputs differ from the chip's arithmetic"),
}


@dataclass
class Finding:
    """One thing found, a key of ADVICE. `problem` False: a note, which leaves the network healthy."""

    name: str
    layer: str  # "" for the whole network, "input" for the input
    text: str
    problem: bool = True
    remedy: str = ""  # here and below "": as in ADVICE
    lesson: str = ""  # its number, as in LESSONS

    def __post_init__(self):
        _, lesson, remedy = ADVICE[self.name]
        self.lesson, self.remedy = self.lesson or lesson, self.remedy or remedy


def of_input(x: torch.Tensor | None) -> Iterator[Finding]:
    if x is None:
        return
    x = x.detach().float()
    if not x.isfinite().all():
        yield Finding("input range", "input", "the input holds NaN or infinity", remedy="check the data loader")
        return
    low, high, whole = x.min().item(), x.max().item(), bool((x == x.round()).all())
    off = (x * 128 != (x * 128).round()).float().mean().item()
    codes = whole and low < -1 and high <= 127
    kinds = (
        (whole and low >= 0 and 1 < high <= 255, "raw bytes, 0..255"),
        (codes, "the chip's integer codes, -128..127, in a network that trains with real values"),
        (low >= 0 and high <= 1, "0..1 (as ToTensor makes it): half of the codes stay unused, and the picture is not centred"),
        (low < -1 or high > 127 / 128, "outside of -1..127/128 (normalised by mean and deviation?)"),
        (off > 0, f"not on the grid of 1/128 ({off:.0%} of the values)"),
    )
    if said := next((text for applies, text in kinds if applies), ""):
        text = f"the input is {said}; it spans {low:.4g} to {high:.4g}"
        yield Finding("input range", "input", text, remedy="divide by 128" if codes else "")


def of_network(rows: list[Measured]) -> Iterator[Finding]:
    whole = [row.name for row in rows if row.integers]
    if whole:
        yield Finding("wrong checkpoint", ", ".join(whole), "the weights are integers: this is the converted checkpoint")
    off = [row for row in rows if row.kind == "layer" and not row.on]
    if off and any(row.on for row in rows):
        names = ", ".join(row.name for row in off)
        yield Finding("QAT partly off", names, "weight_bits is 0 here, though other layers are quantized")
    elif off and not any(row.integers for row in off):
        shares = [row.off_grid for row in off if row.off_grid is not None]
        seen = f"; {sum(shares) / len(shares):.0%} of the activations are off the grid" if shares else ""
        yield Finding("QAT never started", "", f"weight_bits is 0 in all {len(off)} layers{seen}; set_device alone starts nothing")


def of_losses(losses: Sequence[float]) -> Iterator[Finding]:
    if not all(map(math.isfinite, losses)):
        yield Finding("learning rate", "", "the loss became NaN or infinite")
    elif len(losses) > 1:
        tail = sorted(losses[-max(1, len(losses) // 4) :])
        first, best, end = losses[0], min(losses), tail[len(tail) // 2]
        if end > 1.2 * first or end > 3 * best + 1e-6 and end > 0.5 * first:
            said = f"the loss rises: {first:.3g} at first, {best:.3g} at best, {end:.3g} at the end"
            yield Finding("learning rate", "", said)


def of_parameters(row: Measured) -> Iterator[Finding]:
    if not row.finite:
        yield Finding("not a number", row.name, "weights or bias hold NaN or infinity")
    if row.threshold not in range(-15, 16):
        text = f"activation_threshold is {row.threshold:g}; it must be a whole number from -15 to 15"
        yield Finding("threshold", row.name, text)
    if row.batch_norm and row.on:
        yield Finding("batch norm not fused", row.name, "batch norm runs behind the quantized weights; the chip has none")
    if row.integers or row.range_used is None:
        return
    if row.shift >= 4 and not row.bias_cost:
        yield Finding("learning rate", row.name, f"weights have grown beyond {2 ** (row.shift - 1):g}: training diverges")
    if row.on and row.bias_cost:
        bits = f"{row.bias_cost:g} bit{'s' if row.bias_cost > 1 else ''}"
        text = f"a bias larger than all weights costs them {bits} ({row.weight_codes} of {2**row.bits} codes are used)"
        yield Finding("big bias", row.name, text, problem=row.bias_cost >= 3)
    elif row.on and row.range_used < 0.55:
        text = f"the largest weight uses {row.range_used:.1%} of the range: just above a power of two, it wastes almost a bit"
        yield Finding("wasted bit", row.name, text, problem=False)


def of_outputs(row: Measured) -> Iterator[Finding]:
    if row.saturated and row.saturated > SATURATION and (row.on or row.clamped):
        yield Finding("clipping", row.name, f"{row.saturated:.0%} of the outputs lie at the end of the range")
    if row.kind == "sum":
        return
    if row.dead and row.dead == row.channels and (row.channels > 1 or not row.wide):
        yield Finding("dead layer", row.name, f"no output of its {row.channels} channels ever changes")
    elif row.dead and not row.wide:
        text = f"{row.dead} of {row.channels} channels give one value for every picture"
        yield Finding("dead channels", row.name, text, problem=row.dead > 0.75 * row.channels)


def of_head(row: Measured, output) -> Iterator[Finding]:
    if row.wide and row.on and row.shift:
        maps = isinstance(output, torch.Tensor) and output.dim() > 2
        said = "for heat maps this looks like a collapse" if maps else "an arg-max does not mind, a loss does"
        text = f"wide outputs are never shifted: they are {2**-row.shift:g} times the float network's ({said})"
        yield Finding("wide head", row.name, text, problem=maps)


def of_arithmetic(rows: list[Measured], x: torch.Tensor | None) -> Iterator[Finding]:
    sound = not any(of_input(x))  # so far: all that a row reads is on the grid
    for row in rows:
        if row.arithmetic and (sound or row.arithmetic != "other"):
            name, text = ARITHMETIC[row.arithmetic]
            yield Finding(name, row.name, f"{text} ({row.differing:.2%} of the outputs differ)")
        sound = sound and not row.off_grid
    on = any(row.on for row in rows)
    for row in rows:
        if on and row.kind == "sum" and not row.clamped:
            beyond = f" ({row.saturated:.1%} of its outputs are beyond the range)" if row.saturated else ""
            yield Finding("clamp missing", row.name, f"this sum is not clamped{beyond}; the chip saturates",
                          remedy="call ai8x.update_model(model) after loading a checkpoint (or set_clamp(True))")  # fmt: skip


def findings(rows: list[Measured], x=None, output=None, head_gain=False, losses: Sequence[float] = ()) -> list[Finding]:
    """All findings: problems first, then notes, both in the order of ADVICE.

    `x`, `output`: of the network, where it ran; `head_gain`: has it that method?; `losses`: of its training.
    """
    found = [*of_input(x), *of_network(rows), *of_losses(losses), *of_arithmetic(rows, x)]
    for row in rows:
        found += [*of_parameters(row), *of_outputs(row), *([] if head_gain else of_head(row, output))]
    return sorted(found, key=lambda finding: (not finding.problem, ADVICE[finding.name][0]))
