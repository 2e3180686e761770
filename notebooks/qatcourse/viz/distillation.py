"""A teacher's softened heat maps, the size of the gradient at each temperature, and scores seed by seed."""

import numpy as np
import torch

from qatcourse.pose.model import distillation_loss, soften
from qatcourse.viz.base import MARKERS, PALETTE, drawing, figure

__all__ = ["gradient_norms", "gradient_sizes", "seeds", "softened", "temperatures"]


@drawing
def softened(image: np.ndarray, logits: torch.Tensor, names: list[str], temperature: float = 1.0):
    """A picture (64, 64, 3) and the maps (J, 16, 16) of some joints, softened. Returns (figure, sentence)."""
    maps = soften(logits[None], temperature)[0].detach().numpy()
    fig, axes = figure(1, len(names) + 1, width=7.4, height=2.4)
    axes[0].imshow(image, interpolation="nearest")
    axes[0].set_title("picture")
    said = []
    for axis, name, values in zip(axes[1:], names, maps):
        axis.imshow(values, cmap="cividis", interpolation="nearest", vmin=0)
        bits = float(-(values * np.log2(np.maximum(values, 1e-30))).sum())
        axis.set_title(f"{name}: {values.max():.2f}", fontsize=9)
        said.append(f"{name} {values.max():.2f} ({bits:.1f} bits)")
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    return fig, f"Teacher at temperature {temperature:g}: likeliest of {maps[0].size} cells (and entropy): {'; '.join(said)}."


@drawing
def temperatures(logits: torch.Tensor, name: str, values: list[float]):
    """One joint's map (16, 16) softened at several temperatures, one picture each. Returns (figure, sentence)."""
    fig, axes = figure(1, len(values), width=7.4, height=2.2)
    said = []
    for axis, t in zip(axes, values):
        p = soften(logits[None, None], t)[0, 0].detach().numpy()
        axis.imshow(p, cmap="cividis", interpolation="nearest", vmin=0)
        axis.set(title=f"T = {t:g}: {p.max():.2f}", xticks=[], yticks=[])
        axis.grid(False)
        said.append(f"{p.max():.2f} at T = {t:g}, with {(p > p.max() / 10).sum()} cells above a tenth of it")
    return fig, f"The teacher's map of the {name}, its likeliest cell: {'; '.join(said)}. Each has its own colour range."


def gradient_norms(student: torch.Tensor, teacher: torch.Tensor, temperatures: list[float]) -> list[float]:
    """Norm of the gradient of KL alone, without the factor T^2, with respect to the student's logits, at each temperature."""
    norms = []
    for t in temperatures:
        s = student.detach().clone().requires_grad_()
        distillation_loss(s, teacher, torch.zeros(()), t, 1.0).backward()
        norms.append(float(s.grad.norm()) / t**2)
    return norms


@drawing
def gradient_sizes(student: torch.Tensor, teacher: torch.Tensor, temperatures: list[float]):
    """Size of the distillation gradient at each temperature, with the factor T^2 and without. Returns (figure, sentence)."""
    without = gradient_norms(student, teacher, temperatures)
    sizes = [norm * t**2 for norm, t in zip(without, temperatures)]
    fig, axis = figure(height=2.6)
    axis.loglog(temperatures, without, "o--", color=PALETTE["orange"], label="KL alone")
    axis.loglog(temperatures, sizes, "s-", color=PALETTE["blue"], label="T² · KL")
    axis.set(xlabel="temperature T", ylabel="norm of the gradient", title="Why the loss has the factor T²")
    axis.legend()
    shrinks, keeps = without[0] / without[-1], sizes[0] / sizes[-1]
    return fig, (
        f"From T = {temperatures[0]:g} to {temperatures[-1]:g} the gradient of KL alone becomes {shrinks:.0f} times smaller; "
        f"with the factor T² it changes by a factor of {max(keeps, 1 / keeps):.1f}."
    )


@drawing
def seeds(runs: list[dict], unit: str = "PCK@0.2"):
    """Scores by version, one point a seed, a line at the mean; `runs`: one dict (version -> score) a seed. (figure, sentence)."""
    names = list(runs[0])
    fig, axis = figure(height=0.42 * len(names) + 0.9)
    said = []
    for i, name in enumerate(names):
        values = [run[name] for run in runs]
        y = len(names) - 1 - i
        axis.plot([np.mean(values)] * 2, [y - 0.3, y + 0.3], color=PALETTE["black"], linewidth=2)
        for j, value in enumerate(values):
            axis.plot(value, y, MARKERS[j % 8], color=PALETTE["orange" if "QAT" in name or "PTQ" in name else "blue"])
        said.append(f"{name} {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    axis.set_yticks(range(len(names)), names[::-1])
    axis.set(xlabel=unit, title="Every seed, and the mean of each version")
    return fig, f"{unit} over {len(runs)} seeds, mean and range: {'; '.join(said)}."
