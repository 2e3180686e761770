"""Looking into a network: outputs before and after quantization starts, and how a threshold is chosen."""

import numpy as np
import torch

from qatcourse.viz.base import PALETTE, array, drawing, figure
from qatcourse.viz.svg import Plot, side_by_side
from qatlib.ai8x.qat import layers
from qatlib.ai8x.statistics import histogram, log2_threshold
from qatlib.quantizers import dequantize, quantize

__all__ = ["on_the_grid", "outputs_of", "threshold_panel"]


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
        axis.set(title=f"{name}, {label}", xlabel="real value")
        axis.locator_params(axis="x", nbins=4)  # labels of small numbers are long
        off = (values / step != np.round(values / step)).mean()
        said.append(f"{label} {off:.1%} of all values lie off the grid")
    axes[0].set_ylabel("how many")
    return fig, f"{name} from {low:g} to {high:.3g}, finer than the grid of 1/{1 / step:g}: {', '.join(said)}."


def threshold_panel(values: torch.Tensor, threshold: int, z_score: float, name: str = "outputs"):
    """For sliders: a layer's outputs, the range +-2^threshold, what z_score drops, the error of each choice. (svg, sentence)."""
    values = values.detach().flatten()
    mean, deviation = values.mean().item(), values.std().item()
    cut = mean + z_score * deviation
    chosen = int(log2_threshold([histogram(values)], z_score).item())
    errors = {t: _error(values, t) for t in range(-3, 6)}
    counts, edges = np.histogram(values.numpy(), bins=90)
    top = np.log10(1 + counts.max())
    title = f"{name}: ±2^{threshold} = {2.0**threshold:g}"
    left = Plot((edges[0], edges[-1]), (0, top * 1.2), title, "real value", "log10 how many", width=400)
    left.bars(edges, np.log10(1 + counts))
    for x, colour, dash in ((2.0**threshold, "red", "6 3"), (cut, "orange", "3 3")):
        if edges[0] < x < edges[-1]:
            left.line([x, x], [0, top], colour, dash, 2)
    left.legend({"full scale": "red", "outliers from here": "orange"}, x=230)
    low, high = np.log10(min(errors.values())) - 0.3, np.log10(max(errors.values())) + 0.6
    right = Plot((-3.5, 5.5), (low, high), "error of each threshold", "threshold", "log10 mean squared error", width=340)
    right.line(list(errors), np.log10(list(errors.values())), "blue")
    right.points([threshold], [np.log10(errors[threshold])], "red", 6).points([chosen], [np.log10(errors[chosen])], "orange", 4)
    right.legend({"yours": "red", "chosen by ai8x": "orange"}, x=150)
    clipped = (values.abs() > 2.0**threshold).float().mean().item()
    dropped = (values > cut).float().mean().item()
    return side_by_side(left, right), (
        f"Threshold {threshold}: full scale {2.0**threshold:g}, {clipped:.2%} of the {name} are clipped, "
        f"step {2.0**threshold / 128:.3g}, mean squared error {errors[threshold]:.3g}. With z-score {z_score:g} values beyond "
        f"{cut:.3g} do not count ({dropped:.2%}), and ai8x chooses {chosen}."
    )


def _error(values: torch.Tensor, threshold: int) -> float:
    scale = 2.0**threshold / 128
    return max((dequantize(quantize(values, scale), scale) - values).double().square().mean().item(), 1e-12)
