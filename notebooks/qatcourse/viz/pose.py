"""The pose network's pictures: its training, its heat maps, its versions side by side, and the chip's memory."""

import numpy as np

from qatcourse.viz.base import PALETTE, array, drawing, figure, png, show
from qatcourse.viz.people import skeletons
from qatcourse.viz.svg import Plot
from qatlib.files import write_atomic

__all__ = ["bit_width_panel", "budget", "comparison", "guesses", "heat_maps", "keep", "shares", "training_curves"]
_VERSIONS = {"FP32": ("blue", ""), "PTQ": ("sky", "//"), "QAT": ("orange", ".."), "": ("pink", "xx")}
GUESS = 0.15  # PCK of guessing every joint where it is on average: what ranks below that has learned nothing
_JOINTS = (("blue", "o"), ("red", "s"), ("orange", "D"), ("green", "^"))


def keep(path, fig, sentence: str) -> None:
    """Show a figure and its sentence, and write the figure to `path` (PNG)."""
    write_atomic(path, png(fig))
    show(fig, sentence)


@drawing
def training_curves(history: list[dict], start_epoch: int, weight_bits: int | None = None):
    """Loss and PCK of each epoch, with the moment QAT starts; `history` as `train` returns it. Returns (figure, sentence)."""
    fig, axes = figure(1, 2)
    x = [row["epoch"] + 1 for row in history]
    said = []
    for axis, key, label, colour in zip(axes, ("loss", "pck"), ("training loss", "PCK@0.2 on test pictures"), ("blue", "green")):
        values = [row[key] for row in history]
        axis.plot(x, values, "o-", color=PALETTE[colour], markersize=4)
        axis.set(xlabel="epoch", title=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        said.append(f"{label} goes from {values[0]:.3g} to {values[-1]:.3g}")
    starts = weight_bits is not None and x[0] <= start_epoch + 1 <= x[-1]
    if starts:
        for axis in axes:
            axis.axvline(start_epoch + 0.5, color="black", linestyle=":", linewidth=1.2)
            axis.text(start_epoch + 0.5, 1.0, " QAT", transform=axis.get_xaxis_transform(), va="top")
        before, after = (next((row for row in history if row["epoch"] == e), None) for e in (start_epoch - 1, start_epoch))
        if before and after:
            said.append(f"PCK is {before['pck']:.3f} after the last epoch in float, {after['pck']:.3f} after the first one of QAT")
    when = f", quantized to {weight_bits} bits after epoch {start_epoch}" if starts else ""
    return fig, f"{len(x)} epochs{when}: {'; '.join(said)}."


@drawing
def heat_maps(image: np.ndarray, maps: dict, joints: np.ndarray, title: str = ""):
    """A picture, and one joint's heat maps (H, W) by name, each with the predicted joint.

    `joints`: (len(maps), 2) pixels of the picture, x right, y down. Returns (figure, sentence).
    """
    fig, axes = figure(1, len(maps) + 1, width=7.4, height=2.5)
    look = {"extent": (0, image.shape[1], image.shape[0], 0), "interpolation": "nearest"}
    axes[0].imshow(image, **look)
    axes[0].set_title(title or "picture")
    said = []
    for axis, (name, values), (colour, marker), (x, y) in zip(axes[1:], maps.items(), _JOINTS, joints):
        values = array(values)
        drawn = axis.imshow(values, cmap="cividis", **look)
        fig.colorbar(drawn, ax=axis, shrink=0.7)
        axis.set_title(name, fontsize=9)
        for target in (axis, axes[0]):
            target.plot(x, y, marker, color=PALETTE[colour], markeredgecolor="white", markersize=7)
        said.append(f"{name}: values {values.min():.3g} to {values.max():.3g}, joint at ({x:.1f}, {y:.1f})")
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    return fig, f"{title or 'Heat maps'}. {'; '.join(said)}."


@drawing
def comparison(rows: list):
    """PCK of each version (rows of `qatcourse.labs.compare`) as bars, with bits and bytes. Returns (figure, sentence)."""
    fig, axis = figure(height=0.5 * len(rows) + 0.7)
    y = np.arange(len(rows))[::-1]
    looks = [next(look for start, look in _VERSIONS.items() if row.version.startswith(start)) for row in rows]
    colours, hatches = [PALETTE[colour] for colour, _ in looks], [hatch for _, hatch in looks]
    drawn = axis.barh(y, [row.pck for row in rows], color=colours, hatch=hatches, edgecolor="white")
    axis.bar_label(drawn, [f" {row.pck:.3f}   {row.weight_bits} bits, {row.bytes / 1000:,.0f} kB" for row in rows], fontsize=9)
    axis.set_yticks(y, [row.version for row in rows])
    axis.set(title="Versions of one network", xlabel="PCK@0.2 (torso)", xlim=(0, 1.45 * max(row.pck for row in rows) + 0.01))
    best = max(rows, key=lambda row: row.pck)
    small = f"None beats a guess ({GUESS}): the run is too small to rank them"
    highest = f"Highest: {best.version}" if best.pck > GUESS else small
    listed = ", ".join(f"{row.version}: {row.pck:.3f}" for row in rows)
    size = f"The integer file is {rows[0].bytes / rows[-1].bytes:.1f} times smaller"
    return fig, f"PCK@0.2 of {len(rows)} versions: {listed}. {highest}. {size}."


def bit_width_panel(images: np.ndarray, width, columns: int = 6):
    """Skeletons of PTQ above those of QAT at one bit width (a `pose_widgets.Width`). Returns (figure, sentence)."""
    fig, _ = skeletons(images, [width.ptq, width.qat], [f"PTQ {width.ptq_pck:.3f}", f"QAT {width.qat_pck:.3f}"], columns)
    gap = round(width.qat_pck - width.ptq_pck, 3)
    ahead = f"QAT ahead by {gap:.3f}" if gap > 0 else f"PTQ ahead by {-gap:.3f}" if gap < 0 else "no difference"
    epochs = f"{width.epochs} epoch{'s' if width.epochs != 1 else ''}"
    return fig, (
        f"{width.bits}-bit weights: PCK@0.2 {width.ptq_pck:.3f} after PTQ (upper row), {width.qat_pck:.3f} after {epochs} of QAT "
        f"(lower row), {ahead}; the file has {width.bytes:,} bytes."
    )


@drawing
def budget(fit):
    """The chip's kernel memory, processor by processor, of an `ai8x.fit` result. Returns (figure, sentence)."""
    fig, axis = figure(width=8.4, height=3.6)
    fit.plot(axis)
    axis.set_title(f"weights: {fit.weight_bytes:,} bytes")
    axis.grid(False)
    return fig, fit.sentence()


@drawing
def shares(values: dict, unit: str, title: str = ""):
    """Horizontal bars by name with the number written beside each, for layers or parts of a file. Returns (figure, sentence)."""
    fig, axis = figure(height=0.27 * len(values) + 0.8)
    y = np.arange(len(values))[::-1]
    numbers = np.array(list(values.values()), float)
    drawn = axis.barh(y, numbers, color=PALETTE["sky"])
    axis.bar_label(drawn, [f" {_short(value)}" for value in numbers], fontsize=9)
    axis.set_yticks(y, list(values))
    axis.locator_params(axis="x", nbins=6)
    axis.xaxis.set_major_formatter("{x:,.6g}")
    axis.set(xlabel=unit, title=title, xlim=(0, 1.2 * numbers.max() or 1))
    largest = max(values, key=values.get)
    return fig, f"{title or unit}: of {len(values)} values the largest is {largest} with {_short(values[largest])} {unit}."


def guesses(guess: np.ndarray, squared: np.ndarray, found: np.ndarray) -> tuple[str, str]:
    """For a slider: (svg, sentence) of the expected squared error and the chance to be found of each guess [pixels]."""
    least, best = guess[squared.argmin()], found.max()
    plot = Plot((guess[0], guess[-1]), (0, 1.5), "One guess for two places", "guess [pixels]", width=560)
    plot.line(guess, squared / 100, "blue").line(guess, found, "orange").line([least, least], [0, 1.1], "blue", "3 3")
    plot.legend({"expected squared error [100 px²], dotted: least": "blue", "chance to be found": "orange"}, 90)
    said = f"The squared error is least at {least:.1f} pixels, where the chance to be found is {found[squared.argmin()]:.0%}"
    return str(plot), f"{said}; the best chance is {best:.0%}."


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
