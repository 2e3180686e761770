"""What quantizers do to numbers: staircases, errors, weights that snap to a grid, clipping against rounding, shifts.

One colour means one thing: sky the real values, red what is quantized, green what rounding costs, orange what clipping costs.
"""

import numpy as np
import torch

from qatcourse.viz.base import PALETTE, drawing, figure
from qatcourse.viz.svg import Plot, side_by_side
from qatlib.quantizers import IntRange, dequantize, quantize, round_half_up, symmetric_scale

__all__ = ["clip_tradeoff", "errors", "quantizer_panel", "snapping", "sqnr", "staircase"]


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
    top.plot(x, y, color=PALETTE["red"], label=f"{bit_width} bits")
    bottom.plot(x, y - x, color=PALETTE["black"], linewidth=1.2)
    for axis in (top, bottom):
        axis.axvspan(x[0], low - scale / 2, color=PALETTE["orange"], alpha=0.25, linewidth=0)
        axis.axvspan(high + scale / 2, x[-1], color=PALETTE["orange"], alpha=0.25, linewidth=0, label="clipped")
        axis.axvspan(low - scale / 2, high + scale / 2, color=PALETTE["green"], alpha=0.12, linewidth=0, label="rounded")
        axis.set_xlabel("real value x")
    top.set(ylabel="fake-quantized value", title="The staircase")
    bottom.set(ylabel="error", title="What it costs")
    top.legend(loc="upper left", fontsize=9)
    return fig, (
        f"A {bit_width}-bit quantizer has {codes.levels} steps, {scale:g} apart, from {low:g} to {high:g}; inside, the error stays "
        f"within {scale / 2:g} (half a step); in the shaded ranges values are clipped and the error grows without limit."
    )


@drawing
def snapping(values: torch.Tensor, fake: torch.Tensor, name: str = "weights"):
    """Histograms of real values and of their fake-quantized values `fake`, with the same axes; counts on a log scale."""
    values, fake = (torch.as_tensor(v).detach().flatten().float() for v in (values, fake))
    limit = max(values.abs().max().item(), fake.abs().max().item()) * 1.03
    marks, counts = (t.numpy() for t in fake.unique(return_counts=True))
    fig, (left, right) = figure(1, 2, sharex=True, sharey=True)
    left.hist(values.numpy(), bins=121, range=(-limit, limit), color=PALETTE["sky"])
    right.vlines(marks, 0.7, counts, color=PALETTE["red"], linewidth=1.4)
    right.plot(marks, counts, "o", color=PALETTE["red"], markersize=4)
    left.set(title=f"{name}, float32", xlabel="real value", ylabel="how many (log scale)", yscale="log", ylim=(0.7, None))
    right.set(title=f"{name}, quantized", xlabel="fake-quantized value", xlim=(-limit, limit))
    return fig, (
        f"{values.numel():,} {name} with {values.unique().numel():,} different values snap to {len(marks)} marks; "
        f"{counts.max() / values.numel():.0%} of them land on the fullest one, {counts.min():,} on the emptiest of these."
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
        (rounding, "round error", "green", "--"), (clipping, "clip error", "orange", "-."), (total, "both", "black", "-"),
    ):  # fmt: skip
        axis.plot(fractions * 100, y, line, color=PALETTE[colour], label=label)
    axis.plot(fractions[best] * 100, total[best], "o", color=PALETTE["black"], label="least", markersize=8)
    axis.set(xlabel="clip threshold, % of the largest magnitude", ylabel="mean squared error", ylim=(0, 2.5 * total[-1]))
    axis.set_title(f"{name} at {bit_width} bits: where to clip?")
    axis.legend()
    return fig, (
        f"At {bit_width} bits the total error of the {name} is least when values beyond {fractions[best]:.0%} of the largest are "
        f"clipped: {total[best] / total[-1]:.0%} of the error at full range; {found[best]['clipped']:.2%} of the values pay for it."
    )


def quantizer_panel(values: torch.Tensor, bits: int, clip_percent: float = 100, name: str = "weights"):
    """For a slider: histogram of `values` with the grid on it, and the power of both errors, on axes that stay. (svg, sentence).

    The range of the symmetric grid ends at `clip_percent` of the largest magnitude.
    """
    values = values.detach().flatten()
    scale = symmetric_scale(values * clip_percent / 100, bits)
    found, edge = errors(values, scale, 0, bits), 1.03 * values.abs().max().item()
    counts, edges = np.histogram(values.numpy(), bins=100, range=(-edge, edge))
    grid = scale.item() * np.arange(IntRange(bits).q_min, IntRange(bits).q_max + 1)
    inside = grid[np.abs(grid) <= edge]
    top = np.sqrt(counts.max())  # counts span decades: their square roots stay visible
    left = Plot((-edge, edge), (0, top * 1.12), f"{name} and the {bits}-bit grid", "real value", "√ how many")
    left.bars(edges, np.sqrt(counts)).spikes(inside, np.full(len(inside), top * 0.35), width=1.6 if bits < 6 else 0.7)
    left.legend({name: "sky", "marks": "red"})
    signal, total = values.double().square().mean().item(), found["round"] + found["clip"]
    right = Plot((0, 4), (-70, 10), f"error, SQNR {found['sqnr']:.1f} dB", "", "dB against the values", width=330, x_ticks=())
    for x, part, power, colour in ((1, "rounding", found["round"], "green"), (2, "clipping", found["clip"], "orange"),
                                   (3, "both", total, "black")):  # fmt: skip
        level = 10 * np.log10(max(power / signal, 1e-7))
        right.line([x, x], [-70, level], colour, width=40).text(x, -76, part, anchor="middle", size=13)
        right.text(x, level + 2, f"{level:.1f}" if power else "none", anchor="middle", size=12)
    return side_by_side(left, right), (
        f"{bits} bits, range at {clip_percent:g} % of the largest: step {scale.item():.3g}, {found['clipped']:.2%} of the values "
        f"clipped, {found['clip'] / max(total, 1e-30):.0%} of the squared error is clipping, SQNR {found['sqnr']:.1f} dB."
    )
