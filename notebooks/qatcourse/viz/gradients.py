"""Gradients through rounding: the microscope on one weight, and what descent does with them.

One colour means one thing: blue the float weight, red its quantized value, green the target, orange and pink two estimators.
"""

import numpy as np
import torch

from qatcourse.viz.base import PALETTE, drawing, figure
from qatcourse.viz.svg import Plot, side_by_side
from qatlib.quantizers import IntRange, fake_quantize

__all__ = ["ESTIMATORS", "descend", "descent_panel", "microscope_panel", "oscillation", "rounding_gradient"]

ESTIMATORS = ("true", "straight-through", "clipped")


def estimate(w: torch.Tensor, target: float, scale: float, bit_width: int, estimator: str):
    """(loss, gradient) of (fake_quantize(w) - target)^2 / 2 at each w, by one of `ESTIMATORS`; both shaped like w."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; choose one of {', '.join(ESTIMATORS)}")
    w = w.detach().clone().requires_grad_()
    y = fake_quantize(w, scale, 0, bit_width, clip_gradient=estimator == "clipped")
    loss = 0.5 * (y - target) ** 2
    if estimator == "true":
        return loss.detach(), torch.zeros_like(w)  # flat everywhere but at the jumps, where it does not exist
    loss.sum().backward()
    return loss.detach(), w.grad


def descend(start: float, target: float, scale: float, bit_width: int, estimator: str = "clipped", rate=0.1, steps: int = 60):
    """Gradient descent on one weight. Returns arrays of steps + 1 values: the float weight and its fake-quantized value.

    Plain float32 arithmetic, fast enough for a slider; equal to descent with autograd's gradients (tested).

    `rate` is a number, or a function of the step number (0, 1, ...) that returns one.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; choose one of {', '.join(ESTIMATORS)}")
    codes, path = IntRange(bit_width), []
    one, half = np.float32(scale), np.float32(0.5)
    w, target = np.float32(start), np.float32(target)
    for step in range(steps + 1):
        code = np.floor(w / one + half)
        seen = min(max(code, codes.q_min), codes.q_max) * one
        path.append((w, seen))
        moves = estimator == "straight-through" or (estimator == "clipped" and codes.q_min <= code <= codes.q_max)
        w = w - np.float32(rate(step) if callable(rate) else rate) * (seen - target) * np.float32(moves)
    return tuple(np.array(path, np.float64).T)


@drawing
def rounding_gradient():
    """Rounding, and its slope measured over a whole grid step and over smaller and smaller differences."""
    x = np.linspace(-2.2, 2.2, 1100)  # never on a tie
    fig, (left, right) = figure(1, 2)
    left.plot(x, np.floor(x + 0.5), color=PALETTE["red"])
    left.set(title="floor(x + 0.5)", xlabel="x", ylabel="value")
    shares = []
    for h, colour, line in ((0.5, "blue", "-"), (0.2, "orange", "--"), (0.02, "black", ":")):
        slope = (np.floor(x + h + 0.5) - np.floor(x - h + 0.5)) / (2 * h)
        shares.append((slope == (h == 0.5)).mean())
        right.plot(x, slope, line, color=PALETTE[colour], label=f"h = {h:g}")
    right.set(title="(f(x + h) - f(x - h)) / 2h", xlabel="x", ylabel="slope", ylim=(-1, 33))
    right.legend(loc="upper center", ncols=3, columnspacing=1, handlelength=1.6)
    return fig, (
        f"The slope of rounding, measured over 2h. At h = 0.02 it is zero on {shares[2]:.0%} of the points, with tall spikes at "
        f"the jumps; at h = 0.2 it is zero on {shares[1]:.0%}; at h = 0.5, one whole grid step, it is 1 on {shares[0]:.0%}."
    )


def microscope_panel(weight: float, bits: int = 3, target: float = 0.37):
    """For a slider: one weight on the staircase of its loss, and its gradient by three rules; the axes stay. (svg, sentence).

    Codes of `bits` bits cover -1 to just below 1.
    """
    scale, grid = 2.0 ** (1 - bits), torch.linspace(-1.6, 1.6, 1281)
    seen = fake_quantize(torch.tensor([float(weight)]), scale, 0, bits).item()
    left = Plot((-1.6, 1.6), (0, 1.2), "loss of the quantized weight", "float weight w", "loss", width=350)
    left.line(grid, estimate(grid, target, scale, bits, "true")[0], "black", width=1.5)
    left.points([weight], [0.5 * (seen - target) ** 2], "blue", radius=6)
    left.line([target, target], [0, 0.6], "green", "3 3", 1.6).legend({"float weight": "blue", "target": "green"}, x=150)
    right = Plot((-1.6, 1.6), (-1.6, 1.6), "its gradient, by three rules", "float weight w", "gradient", width=370)
    found, colours = {}, dict(zip(ESTIMATORS, ("black", "orange", "pink")))
    for (name, colour), dash, width in zip(colours.items(), ("2 3", "", "7 4"), (1.6, 4, 2)):
        right.line(grid, estimate(grid, target, scale, bits, name)[1], colour, dash, width)
        found[name] = estimate(torch.tensor([float(weight)]), target, scale, bits, name)[1].item()
        right.points([weight], [found[name]], "blue", radius=4)
    right.legend(colours)
    return side_by_side(left, right), (
        f"w = {weight:.2f} is seen as {seen:.3g} on a grid of {scale:g}; loss {0.5 * (seen - target) ** 2:.3f}. "
        f"Gradients: true 0, straight-through {found['straight-through']:+.3f}, clipped {found['clipped']:+.3f}."
    )


def _ends(w, q) -> str:
    """Where a path ends, and how often the code jumped in its second half, in words."""
    half = len(q) // 2
    jumps = int((np.diff(q[half:]) != 0).sum())
    return f"the float weight ends at {w[-1]:.3g}, seen as {q[-1]:.3g}, with {jumps} jumps in the last {len(q) - 1 - half} steps"


@drawing
def oscillation(paths: dict, target: float, scale: float):
    """Weights on their way down: {name: (float weights, quantized values)} from `descend`, one picture each."""
    fig, axes = figure(1, len(paths), width=7.2, height=3.0, sharey=True, squeeze=False)
    paths = {name: [np.asarray(values) for values in path] for name, path in paths.items()}
    for axis, (name, (w, q)) in zip(axes[0], paths.items()):
        low, high = np.floor(min(q.min(), target) / scale), round(q.max() / scale)  # codes that there are
        for k in np.arange(low, high):
            label = "border between two codes" if k == low else None
            axis.axhline((k + 0.5) * scale, color="#888888", linewidth=0.8, linestyle=":", label=label)
        axis.plot(w, color=PALETTE["blue"], label="float weight")
        axis.step(range(len(q)), q, where="post", color=PALETTE["red"], linewidth=1.2, linestyle="--", label="quantized")
        axis.axhline(target, color=PALETTE["green"], linewidth=1.4, linestyle="-.", label="target")
        axis.set(title=name, xlabel="step")
        axis.grid(False)
    axes[0, 0].set_ylabel("weight")
    handles = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels())}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    said = "; ".join(f"{name}: {_ends(w, q)}" for name, (w, q) in paths.items())
    return fig, f"One weight descends to the target {target:g} on a grid of {scale:g}. {said}."


def descent_panel(rate: float, target: float, start: float = -0.9, bits: int = 3, steps: int = 80):
    """For a slider: descent on one weight with clipped gradients, codes of -1 to just below 1. (svg, sentence)."""
    scale = 2.0 ** (1 - bits)
    w, q = descend(start, target, scale, bits, "clipped", rate, steps)
    plot = Plot((0, steps), (-1.3, 1.3), f"Descent on a grid of {scale:g}, learning rate {rate:g}", "step", "weight", width=720)
    edges = np.repeat(np.arange(steps + 1), 2)[1:]  # a code holds until the next step: a staircase, not a ramp
    plot.line([0, steps], [target, target], "green", "9 3 2 3", 1.6).line(edges, np.repeat(q, 2)[:-1], "red", "6 3", 1.4)
    plot.line(range(steps + 1), w, "blue").legend({"float weight": "blue", "quantized": "red", "target": "green"}, x=530, y=145)
    return str(plot), f"Target {target:g}, rate {rate:g}: {_ends(w, q)}."
