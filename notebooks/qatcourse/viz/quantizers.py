"""What quantizers do to numbers: staircases, errors, weights that snap to a grid, decibels a bit, channels, powers of two."""

import numpy as np
import torch

from qatcourse.viz.base import LINES, MARKERS, PALETTE, drawing, figure
from qatcourse.viz.svg import Plot, side_by_side
from qatlib.ai8x import calc_weight_shift
from qatlib.quantizers import IntRange, affine_params, dequantize, quantize, round_half_up, symmetric_scale

__all__ = [
    "channels", "clip_tradeoff", "decibels", "errors", "powers_of_two", "quantizer_panel", "rounding_rules",
    "shift_quantiles", "snapping", "sqnr", "staircase",
]  # fmt: skip

_COLOURS = ("blue", "orange", "red")


def parameters(values: torch.Tensor, bit_width: int, clip: float = 1.0, kind: str = "symmetric"):
    """(scale, zero_point) of signed codes that cover the fraction `clip` of the range of `values`.

    'symmetric' covers +-clip * max|x|, 'affine' covers clip * (min..max), widened to hold 0.
    """
    if kind not in ("symmetric", "affine"):
        raise ValueError(f"kind is {kind!r}; choose 'symmetric' or 'affine'")
    if kind == "symmetric":
        return symmetric_scale(values * clip, bit_width), 0
    return affine_params(values.min() * clip, values.max() * clip, bit_width)


def errors(values: torch.Tensor, scale, zero_point=0, bit_width: int = 8, signed: bool = True) -> dict:
    """Where the error of a quantizer comes from.

    Mean squared `round` error and `clip` error, `sqnr` in decibels, the share `clipped`, and how many `codes` are used.
    """
    values = values.detach()
    q = quantize(values, scale, zero_point, bit_width, signed)
    codes = IntRange(bit_width, signed)
    unclamped = round_half_up(values / scale) + torch.as_tensor(zero_point)
    outside = (unclamped < codes.q_min) | (unclamped > codes.q_max)
    square = (dequantize(q, scale, zero_point) - values).double().square()
    total, zero = square.mean().item(), torch.zeros(())
    return {
        "round": torch.where(outside, zero, square).mean().item(),
        "clip": torch.where(outside, square, zero).mean().item(),
        "sqnr": 10 * np.log10(values.double().square().mean().item() / total) if total else float("inf"),
        "clipped": outside.double().mean().item(),
        "codes": q.unique().numel(),
    }


def sqnr(values: torch.Tensor, approximation: torch.Tensor) -> float:
    """Signal-to-quantization-noise ratio in decibels: 10 log10(sum x^2 / sum (x - approximation)^2)."""
    values, approximation = values.detach().double(), approximation.detach().double()
    noise = (values - approximation).square().sum().item()
    return 10 * float(np.log10(values.square().sum().item() / noise)) if noise else float("inf")


@drawing
def staircase(bit_width: int = 3, scale: float = 0.25, zero_point: int = 0, signed: bool = True):
    """A quantizer as a staircase, and its error below the same axis: round error inside the range, clip error outside."""
    codes = IntRange(bit_width, signed)
    low, high = scale * (codes.q_min - zero_point), scale * (codes.q_max - zero_point)
    x = torch.linspace(low - 3 * scale, high + 3 * scale, 2001)
    y = dequantize(quantize(x, scale, zero_point, bit_width, signed), scale, zero_point)
    fig, (top, bottom) = figure(1, 2, height=2.9)
    top.plot(x, x, "--", color=PALETTE["black"], linewidth=1, label="no quantization")
    top.plot(x, y, color=PALETTE["blue"], label=f"{bit_width} bits")
    bottom.plot(x, y - x, color=PALETTE["red"])
    for axis in (top, bottom):
        axis.axvspan(x[0], low - scale / 2, color=PALETTE["orange"], alpha=0.25, linewidth=0)
        axis.axvspan(high + scale / 2, x[-1], color=PALETTE["orange"], alpha=0.25, linewidth=0, label="clipped")
        axis.set_xlabel("real value x")
    top.set(ylabel="fake-quantized value", title="The staircase")
    bottom.set(ylabel="error", title="What it costs")
    top.legend(loc="upper left", fontsize=9)
    return fig, (
        f"A {bit_width}-bit quantizer has {codes.levels} steps, {scale:g} apart, from {low:g} to {high:g}; inside, the error stays "
        f"within {scale / 2:g} (half a step); in the shaded ranges values are clipped and the error grows without limit."
    )


@drawing
def snapping(values: torch.Tensor, bit_width: int = 4, clip: float = 1.0, name: str = "weights"):
    """Histogram of real values before and after they snap to the grid of a symmetric quantizer."""
    values = values.detach().flatten()
    scale, zero_point = parameters(values, bit_width, clip)
    q = quantize(values, scale, zero_point, bit_width)
    limit = values.abs().max().item()
    fig, (left, right) = figure(1, 2)
    left.hist(values.numpy(), bins=121, range=(-limit, limit), color=PALETTE["sky"])
    codes, counts = (t.numpy() for t in q.unique(return_counts=True))
    right.vlines(codes * scale.item(), 0, counts, color=PALETTE["red"], linewidth=max(0.8, 3 - bit_width / 4))
    left.set(title=f"{name}, float32", xlabel="real value", ylabel="how many", xlim=(-limit, limit))
    right.set(title=f"{name}, {bit_width} bits", xlabel="fake-quantized value", xlim=(-limit, limit))
    distinct = values.unique().numel()
    return fig, (
        f"{values.numel():,} {name} with {distinct:,} different values snap to {len(codes)} of {IntRange(bit_width).levels} grid "
        f"points, {scale.item():.3g} apart; {counts.max() / values.numel():.0%} of them land on the fullest one."
    )


@drawing
def clip_tradeoff(values: torch.Tensor, bit_width: int = 4, name: str = "weights"):
    """Round error, clip error and their sum against the clip threshold, as a share of the largest magnitude."""
    fractions = np.linspace(0.1, 1.0, 37)
    found = [errors(values, symmetric_scale(values * f, bit_width), 0, bit_width) for f in fractions]
    rounding, clipping = (np.array([e[part] for e in found]) for part in ("round", "clip"))
    total = rounding + clipping
    best = int(total.argmin())
    fig, axis = figure()
    for y, label, colour, line in (
        (rounding, "round error", "blue", "--"), (clipping, "clip error", "orange", "-."), (total, "both", "black", "-"),
    ):  # fmt: skip
        axis.plot(fractions * 100, y, line, color=PALETTE[colour], label=label)
    axis.plot(fractions[best] * 100, total[best], "o", color=PALETTE["red"], label="best", markersize=8)
    axis.set(xlabel="clip threshold, % of the largest magnitude", ylabel="mean squared error", ylim=(0, 2.5 * total[-1]))
    axis.set_title(f"{name} at {bit_width} bits: where to clip?")
    axis.legend()
    return fig, (
        f"At {bit_width} bits the total error of the {name} is smallest when values beyond {fractions[best]:.0%} of the largest "
        f"are clipped: {total[best] / total[-1]:.0%} of the error at full range; {found[best]['clipped']:.2%} of the values "
        "pay for it."
    )


@drawing
def decibels(signals: dict, bit_widths=range(2, 11)):
    """Signal-to-noise ratio against bit width for each {name: values}, with the line of 6.02 dB a bit."""
    bit_widths = list(bit_widths)
    fig, axis = figure()
    slopes = {}
    for i, (name, values) in enumerate(signals.items()):
        y = [errors(values, symmetric_scale(values, b), 0, b)["sqnr"] for b in bit_widths]
        slopes[name] = (y[-1] - y[len(y) // 2]) / (bit_widths[-1] - bit_widths[len(y) // 2])
        axis.plot(bit_widths, y, LINES[i % 4], marker=MARKERS[i], label=name)
    axis.plot(bit_widths, 6.02 * np.array(bit_widths), ":", color=PALETTE["black"], label="6.02 dB a bit")
    axis.set(xlabel="bit width", ylabel="SQNR in dB", title="SQNR and bits", xticks=bit_widths)
    axis.legend()
    middle = bit_widths[len(bit_widths) // 2]
    said = "; ".join(f"{name} {slope:.2f} dB" for name, slope in slopes.items())
    return fig, f"SQNR against bit width: from {middle} to {bit_widths[-1]} bits each bit adds {said} (theory: 6.02)."


@drawing
def channels(weight: torch.Tensor, bit_width: int = 4, name: str = "weights"):
    """One range for a layer against one for each output channel (dimension 0 of `weight`): largest |w| and SQNR by channel."""
    weight = weight.detach()
    one, many = symmetric_scale(weight, bit_width), symmetric_scale(weight, bit_width, dim=0)
    tensor, channel = (dequantize(quantize(weight, s, 0, bit_width), s) for s in (one, many))
    per = [[sqnr(w, a) for w, a in zip(weight, approximation)] for approximation in (tensor, channel)]
    order = np.argsort(weight.flatten(1).abs().amax(1).numpy())
    fig, (left, right) = figure(1, 2, sharex=True)
    left.bar(range(len(weight)), weight.flatten(1).abs().amax(1).numpy()[order], color=PALETTE["sky"])
    left.set(title="Largest |w| of each channel", xlabel="output channel, sorted", ylabel="largest |w|")
    for y, label, colour, marker in ((per[0], "one scale", "red", "x"), (per[1], "one a channel", "blue", "o")):
        right.plot(np.array(y)[order], marker, color=PALETTE[colour], markersize=4, label=label, fillstyle="none")
    right.set(title=f"Quality of each channel, {bit_width} bits", xlabel="output channel, sorted", ylabel="SQNR in dB")
    right.legend()
    peak = weight.flatten(1).abs().amax(1)
    return fig, (
        f"The largest |w| of a channel of the {name} ranges from {peak.min():.3g} to {peak.max():.3g}; with one scale the worst "
        f"channel has {min(per[0]):.1f} dB, with one scale a channel {min(per[1]):.1f} dB; over all weights "
        f"{sqnr(weight, tensor):.1f} against {sqnr(weight, channel):.1f} dB at {bit_width} bits."
    )


@drawing
def powers_of_two(layers: dict):
    """How much of the code range a power-of-two scale uses, against the largest magnitude; {name: weights} are marked.

    ai8x's weight_shift s is the smallest power with largest <= 2^s (`qatlib.ai8x.calc_weight_shift`).
    """
    peaks = np.geomspace(0.06, 4.2, 1500)
    used = peaks / 2.0 ** np.array([calc_weight_shift(torch.tensor([p], dtype=torch.float32)).item() for p in peaks])
    fig, axis = figure()
    axis.plot(peaks, used * 100, color=PALETTE["blue"])
    said = []
    for i, (name, values) in enumerate(layers.items()):
        peak = values.detach().abs().max().item()
        shift = int(calc_weight_shift(values.detach()).item())
        share = peak / 2.0**shift
        axis.plot(peak, share * 100, MARKERS[i % 8], color=PALETTE["red"], markersize=7)
        axis.annotate(name, (peak, share * 100), xytext=(6, (-3, 6, -12)[i % 3]), textcoords="offset points", fontsize=8)
        said.append(f"{name} has shift {shift:+d} and uses {share:.0%}")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="largest |w| of the layer", ylabel="share of the range used, %", ylim=(40, 104))
    axis.set_title("A power of two uses between half and all of the range")
    return fig, f"Share of the code range that a power-of-two scale uses, between 50 and 100 %: {'; '.join(said)}."


@drawing
def shift_quantiles(values: torch.Tensor, bit_widths=(8, 4, 2), name: str = "weights", lowest: float = 0.95):
    """ai8x's shift for each `shift_quantile` from `lowest` to 1, of a layer's weights and bias together, and the SQNR it gives."""
    shares = np.linspace(lowest, 1, 101)
    values = values.detach().flatten()
    shifts = [int(calc_weight_shift(values, float(share)).item()) for share in shares]
    found = {b: {s: errors(values, 2.0**s / 2 ** (b - 1), 0, b) for s in set(shifts)} for b in bit_widths}
    fig, (left, right) = figure(1, 2)
    left.step(shares * 100, shifts, where="post", color=PALETTE["blue"])
    left.set(title="The shift is a staircase", ylabel="weight_shift s", yticks=sorted(set(shifts)))
    for i, (b, at) in enumerate(found.items()):
        sqnrs = [at[s]["sqnr"] for s in shifts]
        right.step(shares * 100, sqnrs, where="post", linestyle=LINES[i % 4], color=PALETTE[_COLOURS[i % 3]], label=f"{b} bits")
    right.set(title="What the weights gain or lose", ylabel="SQNR in dB")
    right.legend()
    for axis in (left, right):
        axis.set_xlabel("shift_quantile, % of the weights held")
    best = {b: max(at, key=lambda s: at[s]["sqnr"]) for b, at in found.items()}
    said = "; ".join(
        f"at {b} bits s = {s:+d} is best ({found[b][s]['sqnr']:.1f} dB, {found[b][s]['clipped']:.2%} clipped; "
        f"{found[b][shifts[-1]]['sqnr']:.1f} dB at s = {shifts[-1]:+d})"
        for b, s in best.items()
    )
    return fig, f"shift_quantile 1 gives the {name} s = {shifts[-1]:+d}, {shares[0]:.2f} gives {shifts[0]:+d}; {said}."


@drawing
def rounding_rules(shift: int = 3):
    """Four rules that drop the last `shift` bits of an integer accumulator: the result minus the exact quotient, around zero."""
    acc = np.arange(-(2 << shift), (2 << shift) + 1)
    exact = acc / 2**shift
    rules = {
        "half up: floor(x + 0.5)": np.floor(exact + 0.5),
        "half to even": np.rint(exact),
        "floor: >> alone": acc >> shift,
        "toward zero: C division": np.trunc(exact),
    }
    fig, axes = figure(1, 4, height=2.3, width=8.2, sharey=True)
    means = []
    for axis, (name, y), colour in zip(axes, rules.items(), ("blue", "green", "orange", "red")):
        axis.plot(exact, y - exact, "o", color=PALETTE[colour], markersize=3.5)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("accumulator / 2^" + str(shift), fontsize=9)
        one_period = slice(0, 4 << shift)
        means.append(f"{name.split(':')[0]} {np.mean((y - exact)[one_period]):+.3f}")
    axes[0].set_ylabel("result - exact")
    return fig, f"Error of four ways to drop {shift} bits, in units of the result; mean error: {', '.join(means)}."


def quantizer_panel(values: torch.Tensor, bits: int, clip: float = 100, kind: str = "symmetric", name: str = "weights"):
    """For a slider: histogram of `values` with the grid on it, and of the error. `clip` in % of the range. (svg, sentence)."""
    values = values.detach().flatten()
    scale, zero_point = parameters(values, bits, clip / 100, kind)
    q = quantize(values, scale, zero_point, bits)
    found = errors(values, scale, zero_point, bits)
    low, high = min(values.min().item(), 0), max(values.max().item(), 0)
    edge = 0.03 * (high - low)
    counts, edges = np.histogram(values.numpy(), bins=100, range=(low - edge, high + edge))
    codes = IntRange(bits)
    grid = scale.item() * (np.arange(codes.q_min, codes.q_max + 1) - int(zero_point))
    inside = grid[(grid >= low - edge) & (grid <= high + edge)]
    root = np.sqrt  # counts span decades: their square roots stay visible
    top = root(counts.max())
    left = Plot((low - edge, high + edge), (0, top * 1.12), f"{name} and the {bits}-bit grid", "real value", "√ how many")
    left.bars(edges, root(counts)).spikes(inside, np.full(len(inside), top * 0.35), width=1.6 if bits < 6 else 0.7)
    left.legend({name: "sky", "grid points": "red"})
    error = (dequantize(q, scale, zero_point) - values).numpy()
    span = max(scale.item() * 0.75, float(np.abs(error).max()) * 1.05)
    counts, edges = np.histogram(error, bins=80, range=(-span, span))
    right = Plot((-span, span), (0, counts.max() * 1.15), f"error: {found['sqnr']:.1f} dB", "error", "how many", width=340)
    right.band(-scale.item() / 2, scale.item() / 2).bars(edges, counts, "blue")
    right.legend({"± half a step": "orange", "error": "blue"})
    clip_share = found["clip"] / max(found["clip"] + found["round"], 1e-30)
    return side_by_side(left, right), (
        f"{bits} bits, {kind}, range at {clip:g} %: step {scale.item():.3g}, {found['codes']} of {codes.levels} codes used, "
        f"{found['clipped']:.2%} of the values clipped, {clip_share:.0%} of the squared error is clipping, "
        f"SQNR {found['sqnr']:.1f} dB."
    )
