"""One sum of the integer network as a drawing for sliders: the accumulator filling up, then shift, rounding, saturation."""

import numpy as np

from qatcourse.viz.svg import Plot

__all__ = ["running_sum"]


def running_sum(step, width: int = 640, height: int = 300):
    """The accumulator of a `qatcourse.labs.pixel.Step`, tap after tap, and what becomes of it. Returns (svg text, sentence)."""
    sums = np.concatenate([[0], np.cumsum(step.products), [step.accumulator]])
    low, high = min(sums.min(), 0), max(sums.max(), 1)
    span = high - low
    limits = (float(low - 0.08 * span), float(high + 0.25 * span))
    title = f"{step.layer}, channel {step.channel}, row {step.row}, column {step.column}"
    plot = Plot((0, len(sums) - 1), limits, title, "products added so far", "accumulator", width, height)
    plot.line([0, len(sums) - 1], [0, 0], "black", "2 3", 1).line(range(len(sums)), sums, "blue")
    plot.points([len(sums) - 1], [sums[-1]], "red", 5)
    plot.text_at(plot.left + 8, plot.top + 14, _steps(step))
    return str(plot), _sentence(step)


def _steps(step) -> str:
    if step.shift is None:
        return f"sum {step.accumulator:,}  (wide: kept as it is)"
    return f"sum {step.accumulator:,}  / 2^{step.shift} = {step.exact:.3f}  -> rounded {step.rounded}  -> code {step.code}"


def _sentence(step) -> str:
    total = step.accumulator - step.bias
    said = f"{step.layer}: {len(step.products)} products add up to {total:,}, with the bias {step.accumulator:,}"
    if step.shift is None:
        return f"{said}; this layer is wide, so the 32-bit sum is the output."
    end = "" if step.code == step.rounded else f", and saturation or ReLU makes it {step.code}"
    return f"{said}; divided by 2^{step.shift} that is {step.exact:.3f}, rounded {step.rounded}{end}."
