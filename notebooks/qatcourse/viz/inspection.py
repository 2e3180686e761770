"""Looking into a network: outputs before and after quantization starts, and how a threshold is chosen."""

import numpy as np
import torch

from qatcourse.viz.base import PALETTE, array, drawing, figure
from qatcourse.viz.svg import Plot, side_by_side
from qatlib.ai8x.qat import layers
from qatlib.ai8x.statistics import histogram, log2_threshold, merge, quantization_errors, remove_outliers
from qatlib.quantizers import fake_quantize

__all__ = ["on_the_grid", "outputs_of", "threshold_panel"]
_AXES = ("real value", "log10 values per bar")


def outputs_of(model, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every ai8x layer with weights gives for the batch x, by name, in order of execution."""
    kept, hooks = {}, []
    for name, layer in layers(model).items():
        if layer.op is not None:
            hooks.append(layer.register_forward_hook(lambda m, i, y, name=name: kept.update({name: y.detach()})))
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


@drawing
def on_the_grid(before, after, low: float, high: float, name: str = "outputs", step: float = 1 / 128):
    """Values between `low` and `high` counted finely, before and after quantization; grid points are `step` apart."""
    before, after = array(before).ravel(), array(after).ravel()
    fig, axes = figure(1, 2, sharex=True)
    said, bins = [], np.arange(low - step / 16, high + step / 8, step / 8)
    for axis, values, label, colour in zip(axes, (before, after), ("before", "after"), ("blue", "red")):
        inside = values[(values >= low - step / 16) & (values <= high + step / 16)]
        axis.hist(inside, bins=bins, color=PALETTE[colour])
        axis.set(title=f"{name}, {label}", xlabel=_AXES[0])
        axis.locator_params(axis="x", nbins=4)  # labels of small numbers are long
        off = (values / step != np.round(values / step)).mean()
        said.append(f"{label} {off:.1%} of all values lie off the grid")
    axes[0].set_ylabel("values per bar")
    return fig, f"{name} from {low:g} to {high:.3g}, in bars finer than the grid of 1/{1 / step:g}: {', '.join(said)}."


def threshold_panel(values: torch.Tensor, name: str = "outputs"):
    """For sliders: what draws (svg, sentence) of a layer's outputs for a threshold and a z-score: range, outliers, both errors."""
    values = values.detach().flatten()
    mean, deviation, recorded = values.mean().item(), values.std().item(), histogram(values)
    counts, edges = np.histogram(values.numpy(), bins=90)
    errors = {t: max((fake_quantize(values, 2.0**t / 128) - values).square().mean().item(), 1e-12) for t in range(-4, 6)}
    top, floor = np.log10(1 + counts.max()), np.log10(min(errors.values())) - 2.5

    def draw(threshold: int, z_score: float):
        cut = mean + z_score * deviation
        chosen = int(log2_threshold([recorded], z_score).item())
        first, tried = quantization_errors(*remove_outliers(*merge([recorded]), z_score))
        left = Plot((edges[0], edges[-1]), (0, top * 1.2), f"{name}: ±2^{threshold} = ±{2.0**threshold:g}", *_AXES, 400)
        left.bars(edges, np.log10(1 + counts))
        for x, colour, dash in ((2.0**threshold, "red", "6 3"), (cut, "orange", "3 3")):
            if edges[0] < x < edges[-1]:
                left.line([x, x], [0, top], colour, dash, 2)
        left.legend({"your range ends": "red", "ai8x: outliers begin": "orange"}, x=190)
        right = Plot((-4.5, 5.5), (floor, 0.6), "error of each threshold", "threshold", "log10 mean squared error", width=340)
        right.line(list(errors), np.log10(list(errors.values())), "blue")
        right.points([threshold], [np.log10(errors[threshold])], "red", 6)
        ranks, seen = np.log2(first.item()) - np.arange(len(tried)), np.maximum(np.log10(tried), floor)
        kept = ranks >= -4
        right.line(ranks[kept], seen[kept], "orange", "3 3").points([chosen], seen[ranks == chosen], "orange", 6)
        right.legend({"all values": "blue", "yours": "red", "without outliers (ai8x)": "orange"}, x=120)
        clipped, dropped = ((values.abs() > x).float().mean().item() for x in (2.0**threshold, cut))
        return side_by_side(left, right), (
            f"Threshold {threshold}: the range ends at {2.0**threshold:g}, {clipped:.2%} of the {name} are clipped, the step is "
            f"{2.0**threshold / 128:.3g}, the mean squared error {errors[threshold]:.3g}. With z-score {z_score:g}, ai8x leaves "
            f"out values beyond {cut:.3g} ({dropped:.2%}) and chooses {chosen}."
        )

    return draw
