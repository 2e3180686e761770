"""A teacher's softened heat maps, the size of the gradient at each temperature, and scores seed by seed."""

import numpy as np
import torch
from matplotlib.colors import LogNorm

from qatcourse.pose.model import distillation_loss, soften
from qatcourse.viz.base import PALETTE, drawing, figure

__all__ = ["gradient_norms", "seeds", "softened"]


@drawing
def softened(image: np.ndarray, logits: torch.Tensor, names: list[str], temperature: float = 1.0):
    """A picture (64, 64, 3) and the maps (J, 16, 16) of some joints, softened; one range of colours for all temperatures.

    Returns (figure, sentence).
    """
    maps = soften(logits[None], temperature)[0].detach().numpy()
    fig, axes = figure(1, len(names) + 1, width=8.4, height=2.4)
    axes[0].imshow(image, interpolation="nearest")
    axes[0].set_title("picture")
    said = []
    for axis, name, values in zip(axes[1:], names, maps):
        drawn = axis.imshow(values.clip(1e-4), cmap="cividis", interpolation="nearest", norm=LogNorm(1e-4, 1))
        bits = float(-(values * np.log2(np.maximum(values, 1e-30))).sum())
        axis.set_title(f"{name}: {values.max():.2f}")
        said.append(f"{name} {values.max():.2f} ({bits:.1f} bits)")
    fig.colorbar(drawn, ax=axes, label="probability of the cell", shrink=0.8)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    return fig, f"Teacher at temperature {temperature:g}: likeliest of {maps[0].size} cells (and entropy): {'; '.join(said)}."


def gradient_norms(student: torch.Tensor, teacher: torch.Tensor, temperatures: list[float]) -> list[float]:
    """Norm of the gradient of KL alone, without the factor T^2, with respect to the student's logits, at each temperature."""
    norms = []
    for t in temperatures:
        s = student.detach().clone().requires_grad_()
        distillation_loss(s, teacher, torch.zeros(()), t, 1.0).backward()
        norms.append(float(s.grad.norm()) / t**2)
    return norms


@drawing
def seeds(runs: list[dict], title: str, span: tuple[float, float] = (0.4, 0.8), unit: str = "PCK@0.2"):
    """Scores by version, one dot a seed, a bar at the mean; `runs`: one dict (version -> score) a seed; `span` of the axis.

    Versions with a teacher are orange. Returns (figure, sentence).
    """
    names = list(runs[0])
    fig, axis = figure(height=0.42 * len(names) + 0.9)
    said = []
    for y, name in enumerate(reversed(names)):
        values = [run[name] for run in runs]
        axis.plot([np.mean(values)] * 2, [y - 0.3, y + 0.3], color=PALETTE["black"], linewidth=2)
        axis.plot(values, [y] * len(values), "o", color=PALETTE["orange" if "teacher" in name else "blue"], alpha=0.7)
        said.insert(0, f"{name} {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    axis.set_yticks(range(len(names)), names[::-1])
    axis.set(xlabel=f"{unit}; a dot is a seed, a bar the mean", title=title, xlim=span, ylim=(-0.5, len(names) - 0.5))
    return fig, f"{title}. {unit} over {len(runs)} seeds, mean and range: {'; '.join(said)}."
