"""Gradients through rounding: the microscope on one weight, and what descent does with them."""

import numpy as np
import torch

from qatcourse.viz.base import PALETTE, drawing, figure
from qatcourse.viz.svg import Plot
from qatlib.quantizers import IntRange, fake_quantize

__all__ = ["ESTIMATORS", "descend", "descent_panel", "microscope", "microscope_panel", "oscillation", "rounding_gradient"]

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
    """Rounding, and its slope measured with smaller and smaller differences."""
    x = np.linspace(-2.2, 2.2, 1101)
    fig, (left, right) = figure(1, 2)
    left.plot(x, np.floor(x + 0.5), color=PALETTE["blue"])
    left.set(title="floor(x + 0.5)", xlabel="x", ylabel="value")
    shares = []
    for h, colour, line in ((0.2, "orange", "--"), (0.02, "red", "-")):
        slope = (np.floor(x + h + 0.5) - np.floor(x - h + 0.5)) / (2 * h)
        shares.append((slope == 0).mean())
        right.plot(x, slope, line, color=PALETTE[colour], label=f"h = {h:g}")
    right.set(title="(f(x + h) - f(x - h)) / 2h", xlabel="x", ylabel="slope", ylim=(-1, 33))
    right.legend(loc="upper center", ncols=2)
    return fig, (
        f"The slope of rounding, measured over 2h: at h = 0.2 it is zero on {shares[0]:.0%} of the points, at h = 0.02 on "
        f"{shares[1]:.0%}, with ever taller spikes at the jumps; in the limit it is zero wherever it exists."
    )


@drawing
def microscope(target: float = 0.37, scale: float = 0.25, bit_width: int = 3):
    """The loss of one quantized weight, and three answers to 'which way is down?'."""
    codes = IntRange(bit_width)
    w = torch.linspace(scale * (codes.q_min - 2.5), scale * (codes.q_max + 2.5), 1601)
    fig, (left, right) = figure(1, 2)
    loss, _ = estimate(w, target, scale, bit_width, "true")
    left.plot(w, loss, color=PALETTE["black"])
    left.set(title="Loss: (quantized w - target)² / 2", xlabel="weight w", ylabel="loss")
    left.axvline(target, color=PALETTE["blue"], linestyle=":", label="target")
    left.legend()
    for estimator, colour, line in zip(ESTIMATORS, ("black", "orange", "blue"), (":", "--", "-")):
        right.plot(w, estimate(w, target, scale, bit_width, estimator)[1], line, color=PALETTE[colour], label=estimator)
    right.set(title="Gradient by three rules", xlabel="weight w", ylabel="gradient")
    right.legend()
    return fig, (
        f"The loss of a {bit_width}-bit weight is a staircase, so its true gradient is zero; the straight-through gradient "
        f"points to the target from everywhere; the clipped one does so inside the range {scale * codes.q_min:g} to "
        f"{scale * codes.q_max:g} and is zero outside."
    )


def microscope_panel(weight: float, bits: int = 3, target: float = 0.37, reach: float = 1.0):
    """For a slider: one weight on the staircase of its loss, and its three gradients as arrows. (svg, sentence)."""
    scale = reach / max(IntRange(bits).q_max, 1)
    grid = torch.linspace(-1.6, 1.6, 1281)
    loss = estimate(grid, target, scale, bits, "true")[0]
    one = torch.tensor([float(weight)])
    here = {name: [v.item() for v in estimate(one, target, scale, bits, name)] for name in ESTIMATORS}
    y = here["true"][0]
    title = f"One {bits}-bit weight under the microscope"
    plot = Plot((-1.6, 1.6), (0, float(loss.max()) * 1.25), title, "weight w", "loss", width=640)
    plot.line(grid, loss, "black", width=1.5).line([target, target], [0, float(loss.max())], "blue", "3 3", 1.2)
    for i, (name, colour) in enumerate((("straight-through", "orange"), ("clipped", "sky"))):
        height = y + (0.06 + 0.05 * i) * float(loss.max())
        plot.line([weight, weight - 0.5 * here[name][1]], [height, height], colour, width=4)
    plot.points([weight], [y], "red", radius=6)
    plot.legend({"the weight": "red", "step by straight-through": "orange", "step by clipped": "sky", "target": "blue"}, x=420)
    quantized = fake_quantize(one, scale, 0, bits).item()
    return str(plot), (
        f"w = {weight:.2f} is seen as {quantized:.3f}; loss {y:.3f}. Gradients: true 0, straight-through "
        f"{here['straight-through'][1]:+.3f}, clipped {here['clipped'][1]:+.3f}."
    )


def _crossings(values: np.ndarray) -> int:
    return int((np.diff(values) != 0).sum())


@drawing
def oscillation(paths: dict, target: float, scale: float):
    """Weights on their way down: {name: (float weights, quantized values)} from `descend`, one picture each."""
    fig, axes = figure(1, len(paths), width=7.6, height=3.0, sharey=True, squeeze=False)
    said = []
    for axis, (name, path) in zip(axes[0], paths.items()):
        w, q = (np.asarray(values) for values in path)
        low, high = np.floor(min(w.min(), target) / scale - 0.5), np.ceil(max(w.max(), target) / scale + 0.5)
        for k in np.arange(low, high + 1):
            axis.axhline((k + 0.5) * scale, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axis.plot(w, color=PALETTE["blue"], label="float weight")
        axis.step(range(len(q)), q, where="post", color=PALETTE["red"], linewidth=1.2, linestyle="--", label="quantized")
        axis.axhline(target, color="black", linewidth=1, label="target")
        axis.set(title=name, xlabel="step")
        axis.grid(False)
        half = len(q) // 2
        said.append(f"{name}: ends at {q[-1]:.3g}, with {_crossings(q[half:])} jumps in the second half")
    axes[0, 0].set_ylabel("weight")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return fig, f"One weight descends to the target {target:g} on a grid of {scale:g}. {'; '.join(said)}."


def descent_panel(rate: float, target: float, start: float = -0.9, bits: int = 3, estimator: str = "clipped", steps: int = 80):
    """For a slider: descent on one weight with a learning rate. (svg, sentence)."""
    scale = 1.0 / max(IntRange(bits).q_max, 1)
    w, q = descend(start, target, scale, bits, estimator, rate, steps)
    plot = Plot((0, steps), (-1.7, 1.7), f"Descent with {estimator} gradients, learning rate {rate:g}", "step", "weight", width=640)
    edges = np.repeat(np.arange(steps + 1), 2)[1:]  # a code holds until the next step: a staircase, not a ramp
    plot.line([0, steps], [target, target], "black", "3 3", 1.2).line(edges, np.repeat(q, 2)[:-1], "red", "6 3", 1.4)
    plot.line(range(steps + 1), w, "blue").legend({"float weight": "blue", "quantized": "red", "target": "black"}, x=470, y=145)
    jumps, half = _crossings(q[steps // 2 :]), steps // 2
    return str(plot), (
        f"Target {target:g}: after {steps} steps the float weight is {w[-1]:.3f}, seen as {q[-1]:.3f}; the quantized value jumped "
        f"{jumps} times in the last {half} steps."
    )
