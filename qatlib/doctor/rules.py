"""The doctor's knowledge: what the measurements tell of a network, with the remedy and the lesson."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch

from qatlib.ai8x import mode as device
from qatlib.chip.operations import BITS
from qatlib.doctor.advice import ADVICE, SWITCH, Finding, as_told
from qatlib.doctor.measure import ENOUGH, Measured, Seen
from qatlib.doctor.paths import Paths
from qatlib.integer.engine import has_abs
from qatlib.integer.source import answer_rows
from qatlib.quantizers import round_half_up

SATURATION = 0.05  # calibrated layers clip far less; uncalibrated ones usually more
CLIPPED = 0.05  # of the weights' energy: 8-bit rounding costs 1e-5, a shift_quantile of 0.9 less than this
LOST = 0.2  # of the outputs' energy: thresholds that were not measured lose more, layers that QAT has trained less
TIES = 0.1  # share of inputs whose two highest outputs are the same code
PICTURES = 32  # that are computed in integers, too
GROWN, ABSURD = 4, 9  # log2 of weights: batch norm fused into them may reach the first, and hardly the second
ARITHMETIC = {
    "half-even": ("rounding", "ties are rounded to even (torch.round); the chip rounds them up: floor(x + 0.5)"),
    "unclamped": ("clamp missing", "outputs leave -1..127/128; the chip saturates"),
    "other": ("arithmetic", "outputs differ from the chip's arithmetic"),
}
REFUSED = ("not a number", "batch norm not fused")  # by the exports, also in layers that nothing calls
SPOILT = ("dead layer", "dead channels", "clipping", "big bias")  # consequences of exploded weights, not causes


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
        (whole and low >= 0 and 1 < high <= 255, "raw bytes, 0..255", "x = (x - 128) / 128"),
        (codes, "the chip's integer codes, -128..127, in a network that trains with real values", "divide by 128: x = x / 128"),
        (0 <= low < high <= 1 and (off > 0 or len(x) >= ENOUGH),
         "0..1 (as ToTensor makes it): half of the codes stay unused, and the picture is not centred",
         "use (image_0_to_255 - 128) / 128, or, from 0..1, x = ((x - 0.5) * 256).round().clamp(-128, 127) / 128"),
        (low < -1 or high > 127 / 128, "outside of -1..127/128 (normalised by mean and deviation?)", ""),
        (off > 0, f"not on the grid of 1/128 ({off:.0%} of the values)", ""),
    )  # fmt: skip
    if told := next((told for applies, *told in kinds if applies), None):
        yield Finding("input range", "input", f"the input is {told[0]}; it spans {low:.4g} to {high:.4g}", remedy=told[1])


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
        text = f"weight_bits is 0 in all {len(off)} layers{seen}; set_device alone starts nothing"
        measured = any(row.threshold or row.final_scale for row in off)  # start_qat would refuse to measure twice
        yield Finding("QAT never started", "", text, remedy=SWITCH if measured else "")


def of_flags(rows: list[Measured]) -> Iterator[Finding]:
    on = any(row.on for row in rows)
    for row in rows:
        if row.stale:
            yield Finding("stale flags", row.name, f"it computes with {', '.join(row.stale)}")
        if row.round_avg not in (None, device.dev.round_avg):
            text = f"averages are computed with round_avg={row.round_avg}, but the device has {device.dev.round_avg}"
            meant = f"call ai8x.set_device({device.dev.device}, round_avg={row.round_avg}) if it was trained so"
            yield Finding("stale flags", row.name, text, problem=False, remedy=f"{meant}, else ai8x.update_model(model)")
        if not on or row.integers or row.kind == "sum":
            continue
        if row.kind == "layer" and row.on:
            yield from _of_bits(row)
        if row.rounds is False and (row.on or row.kind == "pool"):
            yield Finding("QAT partly off", row.name, "quantize_activation is off: its outputs are neither rounded nor clamped")
        elif row.clamps is False and row.on:
            yield Finding("QAT partly off", row.name, "clamp_activation is off, which is how no QAT leaves it", problem=False)


def _of_bits(row: Measured) -> Iterator[Finding]:
    if row.bits not in BITS:
        yield Finding("bits", row.name, f"weight_bits is {row.bits}; the chip has 1, 2, 4 and 8")
    elif row.bias_bits not in (None, row.bits):
        text = f"weight_bits {row.bits}, bias_bits {row.bias_bits}: the chip has one grid for both, and export refuses two"
        yield Finding("bits", row.name, text)
    if row.shifts is False:
        text = "adjust_output_shift is off though the weights are no integers: QAT was started while the device simulated the chip"
        yield Finding("simulated start", row.name, text)


def of_paths(rows: list[Measured], paths: Paths) -> Iterator[Finding]:
    if paths.unreadable:
        yield as_told("graph", "", paths.unreadable)
    for name, found in (("foreign layer", paths.foreign), ("plain sum", paths.sums)):
        yield from (as_told(name, node, sentence) for node, sentence in found.items())
    yield from (as_told("refused by export", "", sentence) for sentence in paths.refused)
    for where, scales in paths.unequal.items():
        yield Finding("unequal scales", where, f"what meets here is held at unequal scales ({scales})")
    for layer, left in paths.astray.items():
        text = f"the thresholds on the way to it leave 2^{left:g} that its final_scale does not undo; biases no longer fit"
        yield Finding("changed threshold", layer, f"{text}: a threshold was changed after all were measured")
    for name in paths.outside:
        yield Finding("outside", name, "a plain operation behind the last ai8x layer, which no export holds", problem=False)
    for row in rows:
        if paths.used is not None and row.name not in paths.used:
            text = "evaluation never calls it, so it was neither measured nor scaled, and no export holds it"
            yield Finding("never called", row.name, text, problem=False)


def of_abs(x: torch.Tensor | None, paths: Paths) -> Iterator[Finding]:
    """How far the chip's integers and training's lie apart, on the first inputs: see `integer.engine.narrow`."""
    if paths.compact is None or not has_abs(paths.compact):
        return
    text = "the chip takes the absolute value after rounding, training before it"
    with suppress(OverflowError):  # no integers where sums leave 32 bits
        if x is not None and x.isfinite().all():
            codes = round_half_up(x.detach().cpu()[:PICTURES] * 128).clamp(-128, 127).to(torch.int8).numpy()
            chip, training = (answer_rows(paths.compact, codes, first).astype("int64") for first in (False, True))
            gap = abs(chip - training)
            counted = f"{(gap > 0).sum():,} of {gap.size:,} outputs are other integers on it, by up to {gap.max():,}"
            text += f"; for {len(codes)} of these inputs {counted}"
    names = dict.fromkeys(op["layer"] for op in paths.compact.ops if op.get("activation") == "abs")
    yield Finding("Abs", ", ".join(names), text, problem=False)


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
    if row.on and row.weight_error > max(CLIPPED, 2 * row.least_error):
        text = f"{row.beyond:.1%} of the weights lie beyond the range, at the outermost codes, and"
        yield Finding("clipped weights", row.name, f"{text} {row.weight_error:.0%} of their energy is lost: the shift is too small")
    if row.on and row.bias_cost:
        bits = f"{row.bias_cost:g} bit{'s' if row.bias_cost > 1 else ''}"
        text = f"a bias larger than all weights costs them {bits} ({row.weight_codes} of {2**row.bits} codes are used)"
        yield Finding("big bias", row.name, text, problem=row.bias_cost >= 3)
    elif row.on and row.range_used < 0.55:
        text = f"the largest weight uses {row.range_used:.1%} of the range: just above a power of two, it wastes almost a bit"
        yield Finding("wasted bit", row.name, text, problem=False)


def of_outputs(row: Measured, seen: Seen, paths: Paths) -> Iterator[Finding]:
    if row.saturated and row.saturated > SATURATION and (row.on or row.clamped):
        text = f"{row.saturated:.0%} of the outputs lie at the end of the range"
        yield Finding("clipping", row.name, text, problem=_clips(row, seen, row.name in paths.heads))
    if row.kind == "sum" or seen.pictures < ENOUGH:
        return
    if row.dead and row.dead == row.channels and (row.channels > 1 or not row.wide):
        yield Finding("dead layer", row.name, f"no output of its {row.channels} channels ever changes")
    elif row.dead and not row.wide:
        text = f"{row.dead} of {row.channels} channels give one value for every picture"
        yield Finding("dead channels", row.name, text, problem=row.dead > 0.75 * row.channels)


def _clips(row: Measured, seen: Seen, head: bool) -> bool:
    """Does it cost? Not what training itself drives a little out of the range; not ends that are meant; not without ties."""
    scores = len(row.shape) == 1 < row.shape[0]
    if head and (row.saturated <= SATURATION + seen.at_ends or scores and ties(row, seen) <= TIES):
        return False
    return row.lost > LOST or row.saturated > 2 * SATURATION and seen.pictures >= ENOUGH


def ties(row: Measured, seen: Seen) -> float:
    """Share of places whose two highest channels are equal, in what a layer gives the network to return."""
    for y in (y for y in seen.outputs if tuple(y.shape[1:]) == row.shape and y.shape[1] > 1):
        best = y.topk(2, dim=1).values
        return (best[:, 0] == best[:, 1]).float().mean().item()
    return 0.0


def of_levels(rows: list[Measured], seen: Seen, paths: Paths) -> Iterator[Finding]:
    """Layers that must share one scale are judged by the one that uses most of it."""
    for row in (row for row in rows if row.kind == "layer" and row.on and row.reach and seen.pictures >= ENOUGH):
        group = next((group for group in paths.groups if row.name in group), {row.name})
        reach = max(other.reach or 0 for other in rows if other.name in group)
        if reach <= 16 and not any(name.startswith("<") for name in group):  # beside the input no threshold is free
            text = f"its codes hardly go beyond {reach} of 128 ({row.levels} levels)"
            yield Finding("wasted levels", row.name, text, problem=reach <= 8)


def of_heads(rows: list[Measured], seen: Seen, paths: Paths, head_gain: bool) -> Iterator[Finding]:
    returned = [tuple(y.shape[1:]) for y in seen.outputs]
    for row in (row for row in rows if row.on):
        if row.wide and row.shift and not head_gain:
            one_map = row.shape in returned and len(row.shape) > 1 and row.shape[0] == 1 < max(row.shape)
            said = "for heat maps this looks like a collapse" if one_map else "an arg-max does not mind, a loss does"
            text = f"wide outputs are never shifted: they are {2**-row.shift:g} times the float network's ({said})"
            yield Finding("wide head", row.name, text, problem=one_map and abs(row.shift) >= 3)
        if row.name in paths.heads and not row.wide:
            said, share = "its outputs have 8 bits, where a wide layer gives 32", ties(row, seen)
            costs = seen.pictures >= ENOUGH and share > TIES and (len(row.shape) == 1 or row.saturated > SATURATION)
            text = f"{said}: the two highest are equal for {share:.0%} of the inputs" if costs else said
            yield Finding("narrow head", row.name, text, problem=costs)


def exploded(rows: list[Measured], found: dict[str, list[Finding]]) -> None:
    """Weights beyond sense are one finding in every layer that they spoil, instead of the consequences that were found there."""
    spoilt = {row.name for row in rows if any(finding.problem and finding.name in SPOILT for finding in found[row.name])}
    grown = [row for row in rows if row.kind == "layer" and row.grown >= GROWN]
    wrong = [row.name for row in grown if row.grown >= ABSURD or row.name in spoilt or _beyond_sense(row)]
    for row in rows:
        if row in grown or wrong and row.name in spoilt:
            text = f"weights have grown beyond {2 ** (row.grown - 1):g}" if row in grown else "its outputs make no sense"
            text += f": training diverged, with a learning rate too high (it shows in {wrong[0]})" if wrong else ""
            rest = [finding for finding in found[row.name] if not wrong or finding.name not in SPOILT]
            found[row.name] = [Finding("exploded weights", row.name, text, problem=bool(wrong)), *rest]


def _beyond_sense(row: Measured) -> bool:
    """Of a layer of large weights: its input too, or, where none was given, weights far beyond what batch norm leaves."""
    return row.grown >= GROWN + 2 if row.low is None else max(-row.low, row.high) > 2.0**10


def of_arithmetic(rows: list[Measured]) -> Iterator[Finding]:
    for row in rows:
        if row.arithmetic and row.rounds is not False and not (row.off_input and row.arithmetic == "other"):
            name, text = ARITHMETIC[row.arithmetic]
            yield Finding(name, row.name, f"{text} ({row.differing:.2%} of the outputs differ)")
    on = any(row.on for row in rows)
    for row in rows:
        if on and row.kind == "sum" and not row.clamped:
            beyond = f" ({row.saturated:.1%} of its outputs are beyond the range)" if row.saturated else ""
            yield Finding("clamp missing", row.name, f"this sum is not clamped{beyond}; the chip saturates",
                          remedy="call ai8x.update_model(model) after loading a checkpoint (or set_clamp(True))")  # fmt: skip


def findings(rows: list[Measured], x=None, seen: Seen | None = None, head_gain=False, losses: Sequence[float] = (),
             paths: Paths | None = None) -> list[Finding]:  # fmt: skip
    """All findings: problems first, then notes, both in the order of ADVICE.

    `x`, `seen`: inputs and what they showed, where it ran; `head_gain`: has the network that method?; `losses`: of its training;
    `paths`: what its graph tells.
    """
    seen, paths = seen or Seen(), paths or Paths()
    found = [*of_input(x), *of_network(rows), *of_flags(rows), *of_paths(rows, paths), *of_abs(x, paths), *of_losses(losses)]
    for row in (row for row in rows if paths.used is not None and row.name not in paths.used):
        found += [finding for finding in of_parameters(row) if finding.name in REFUSED]
    rows = [row for row in rows if row.kind != "pool" and (paths.used is None or row.name in paths.used)]
    of_rows = {row.name: [*of_parameters(row), *of_outputs(row, seen, paths)] for row in rows}
    exploded(rows, of_rows)
    found += [finding for row in rows for finding in of_rows[row.name]]
    found += [*of_arithmetic(rows), *of_levels(rows, seen, paths), *of_heads(rows, seen, paths, head_gain)]
    if x is not None and seen.pictures < ENOUGH:
        said = f"of {seen.pictures} different input{'s' if seen.pictures > 1 else ''} nothing follows for dead channels and levels"
        found.append(Finding("few inputs", "input", said, problem=False))
    if paths.last_word and not any(finding.problem for finding in found):
        found.append(as_told("refused by export", "", paths.last_word))
    return sorted(found, key=lambda finding: (not finding.problem, ADVICE[finding.name][0]))
