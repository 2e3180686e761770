"""The doctor's knowledge: each rule looks at the measurements and yields findings, with the remedy and the lesson."""

import math
from dataclasses import dataclass, field

import torch

from qatlib.doctor.measure import Layer

LESSONS = {
    "01": "01_numbers_and_quantizers", "02": "02_straight_through", "03": "03_ai8x_layers", "04": "04_traditional_ptq_qat",
    "05": "05_train_pose_tiny", "06": "06_inspect_parameters", "07": "07_export_int8",
}  # fmt: skip
SATURATION = 0.05  # calibrated layers clip far less; uncalibrated ones usually more
START = "call ai8x.start_qat(model, train_loader, policy): it fuses batch norm, measures thresholds, and switches QAT on"


@dataclass(frozen=True)
class Finding:
    """One thing found. `problem` False: a note, which leaves the network healthy."""

    name: str
    layer: str  # "" for the whole network, "input" for the input
    text: str
    remedy: str
    lesson: str  # its number, as in LESSONS
    problem: bool = True


@dataclass
class Case:
    """Everything the rules look at."""

    rows: list[Layer]
    x: torch.Tensor | None = None
    output: torch.Tensor | None = None
    has_head_gain: bool = False
    losses: list[float] = field(default_factory=list)

    @property
    def layers(self) -> list[Layer]:
        return [row for row in self.rows if row.kind == "layer"]

    @property
    def any_on(self) -> bool:
        return any(row.on for row in self.layers)


def input_range(case: Case):
    if case.x is None:
        return
    x, remedy = case.x.detach().float(), "use x = (image_0_to_255 - 128) / 128, or ai8x.normalize on images of 0..1"
    if not x.isfinite().all():
        yield Finding("input range", "input", "the input holds NaN or infinity", "check the data loader", "01")
        return
    low, high, codes = x.min().item(), x.max().item(), x * 128
    whole = bool((x == x.round()).all())
    said = None
    if low >= 0 and 1 < high <= 255 and whole:
        said = "raw bytes, 0..255"
    elif low < -1 and high <= 127 and whole:
        said, remedy = "the chip's integer codes, -128..127, in a network that trains with real values", "divide by 128"
    elif low >= 0 and high <= 1:
        said = "0..1 (as ToTensor makes it): half of the codes stay unused, and the picture is not centred"
    elif low < -1 or high > 127 / 128:
        said = "outside of -1..127/128 (normalised by mean and deviation?)"
    elif (codes != codes.round()).any():
        said = f"not on the grid of 1/128 ({(codes != codes.round()).float().mean():.0%} of the values)"
    if said:
        yield Finding("input range", "input", f"the input is {said}; it spans {low:.4g} to {high:.4g}", remedy, "01")


def started(case: Case):
    off = [row for row in case.layers if not row.on]
    if off and case.any_on:
        names = ", ".join(row.name for row in off)
        yield Finding("QAT partly off", names, "weight_bits is 0 here, though other layers are quantized",
                      "call ai8x.initiate_qat(model, policy) on the whole network", "03")  # fmt: skip
    elif off and not any(row.integers for row in off):
        shares = [row.off_grid for row in off if row.off_grid is not None]
        seen = f"; {sum(shares) / len(shares):.0%} of the activations are off the grid" if shares else ""
        yield Finding("QAT never started", "", f"weight_bits is 0 in all {len(off)} layers{seen}; set_device alone starts nothing",
                      START, "03")  # fmt: skip


def batch_norm(case: Case):
    for row in case.layers:
        if row.batch_norm and row.on:
            yield Finding("batch norm not fused", row.name, "batch norm runs behind the quantized weights; the chip has none",
                          f"from the float checkpoint, {START}", "03")  # fmt: skip


def numbers(case: Case):
    for row in case.layers:
        if not row.finite:
            yield Finding("not a number", row.name, "weights or bias hold NaN or infinity",
                          "go back to the last sound checkpoint; lower the learning rate", "05")  # fmt: skip
    for row in case.rows:
        t = row.threshold
        if not math.isfinite(t) or abs(t) > 15 or t != round(t):
            yield Finding("threshold", row.name, f"activation_threshold is {t:g}; it must be a whole number from -15 to 15",
                          "a dead layer gives -inf: revive it, then measure anew with pre_qat on training data", "06")  # fmt: skip


def checkpoint(case: Case):
    whole = [row.name for row in case.layers if row.integers]
    if whole:
        yield Finding("wrong checkpoint", ", ".join(whole), "the weights are integers: this is the converted checkpoint",
                      "load the one that QAT saved; integers run with set_device(85, simulate=True) and inputs of -128..127",
                      "07")  # fmt: skip


def learning_rate(case: Case):
    remedy = "start QAT from the sound float weights with a tenth of the rate, or less, and let it fall"
    losses = case.losses
    if losses and not all(map(math.isfinite, losses)):
        yield Finding("learning rate", "", "the loss became NaN or infinite", remedy, "05")
    elif len(losses) > 1:
        tail = sorted(losses[-max(1, len(losses) // 4) :])
        ends = tail[len(tail) // 2]
        if ends > 1.2 * losses[0] or ends > 3 * min(losses) + 1e-6 and ends > 0.5 * losses[0]:
            yield Finding("learning rate", "", f"the loss rises: {losses[0]:.3g} at first, {min(losses):.3g} at best, "
                          f"{ends:.3g} at the end", remedy, "05")  # fmt: skip
    for row in case.layers:
        if not row.integers and row.shift is not None and row.shift >= 4 and not row.bias_cost:
            yield Finding("learning rate", row.name, f"weights have grown beyond {2 ** (row.shift - 1):g}: training diverges",
                          remedy, "05")  # fmt: skip


def arithmetic(case: Case):
    said = {
        "half-even": ("rounding", "ties are rounded to even (torch.round); the chip rounds them up: floor(x + 0.5)",
                      "use quantizers.round_half_up", "01"),
        "unclamped": ("clamp missing", "outputs leave -1..127/128; the chip saturates", "clamp after rounding", "03"),
        "other": ("arithmetic", "outputs differ from the chip's arithmetic", "compare with integer.run, layer by layer", "07"),
    }  # fmt: skip
    on_grid = {row.name: not row.off_grid for row in case.rows}
    for row in case.layers:
        sound = case.x is not None and not any(input_range(case)) and all(on_grid[r.name] for r in _before(case.rows, row))
        if row.arithmetic and (sound or row.arithmetic != "other"):
            name, text, remedy, lesson = said[row.arithmetic]
            yield Finding(name, row.name, f"{text} ({row.differing:.2%} of the outputs differ)", remedy, lesson)
    for row in case.rows:
        if row.kind == "sum" and not row.clamped and case.any_on:
            beyond = f" ({row.saturated:.1%} of its outputs are beyond the range)" if row.saturated else ""
            yield Finding("clamp missing", row.name, f"this sum is not clamped{beyond}; the chip saturates",
                          "call ai8x.update_model(model) after loading a checkpoint (or set_clamp(True))", "03")  # fmt: skip


def _before(rows: list[Layer], row: Layer) -> list[Layer]:
    return rows[: rows.index(row)]


def resolution(case: Case):
    for row in case.layers:
        if row.integers or not row.on or row.range_used is None:
            continue
        if row.bias_cost:
            yield Finding("big bias", row.name, f"a bias larger than all weights costs them {row.bias_cost:g} bit"
                          f"{'s' if row.bias_cost > 1 else ''} ({row.weight_codes} of {2**row.bits} codes are used)",
                          "limit the bias (a channel that is always off stays off), or shift_quantile below 1", "03",
                          problem=row.bias_cost >= 3)  # fmt: skip
        elif row.range_used < 0.55:
            yield Finding("wasted bit", row.name, f"the largest weight uses {row.range_used:.1%} of the range: just above a power "
                          "of two, it wastes almost a bit", "shift_quantile slightly below 1 gains it back", "03",
                          problem=False)  # fmt: skip


def saturation(case: Case):
    for row in case.rows:
        if row.saturated and row.saturated > SATURATION and (row.on or row.clamped):
            yield Finding("clipping", row.name, f"{row.saturated:.0%} of the outputs stand at the end of the range",
                          "thresholds were not measured, or on other data: run pre_qat on training data from the float weights",
                          "04")  # fmt: skip


def dead(case: Case):
    for row in case.layers:
        if not row.dead:
            continue
        if row.dead == row.channels and (row.channels > 1 or not row.wide):
            yield Finding("dead layer", row.name, f"no output of its {row.channels} channels ever changes",
                          "go back to a checkpoint where it lives; lower the learning rate", "06")  # fmt: skip
        elif not row.wide:
            yield Finding("dead channels", row.name, f"{row.dead} of {row.channels} channels never change",
                          "they cost memory and give nothing: prune them, or train longer", "06",
                          problem=row.dead > 0.75 * row.channels)  # fmt: skip


def head(case: Case):
    for row in case.layers:
        if row.wide and row.on and row.shift and not case.has_head_gain:
            maps = case.output is not None and case.output.dim() > 2
            said = "for heat maps this looks like a collapse" if maps else "an arg-max does not mind, a loss does"
            yield Finding("wide head", row.name, f"wide outputs are never shifted: they are {2**-row.shift:g} times the float "
                          f"network's ({said})", "give the network a head_gain() = 2^weight_shift and multiply by it before the "
                          "loss, as PoseTiny does", "05", problem=maps)  # fmt: skip


RULES = (input_range, checkpoint, numbers, started, batch_norm, learning_rate, arithmetic, dead, resolution, saturation, head)


def findings(case: Case) -> list[Finding]:
    """All findings, problems first."""
    return sorted((finding for rule in RULES for finding in rule(case)), key=lambda finding: not finding.problem)
