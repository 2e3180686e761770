"""Curves, bars, and an answer beside what was expected."""

import numpy as np

from qatcourse.viz.base import LINES, MARKERS, PALETTE, array, drawing, figure

__all__ = ["bars", "curves", "expected_and_got"]
_COLOURS = [PALETTE[name] for name in ("blue", "orange", "green", "red", "pink", "sky", "black")]


@drawing
def curves(series: dict, x_label: str, y_label: str, title: str = "", marks: dict | None = None, log: str = "", decimals: int = 3):
    """Lines by name: {name: y values} or {name: (x values, y values)}.

    `marks`: {text: x} draws vertical lines; `log`: "x", "y" or "xy" has logarithmic axes. Returns (figure, sentence); the
    sentence tells where each line starts and ends.
    """
    if not series:
        raise ValueError("curves() needs at least one line: {name: values}")
    fig, axis = figure()
    said = []
    for i, (name, values) in enumerate(series.items()):
        pair = isinstance(values, tuple) and len(values) == 2 and np.ndim(values[0]) == 1
        x, y = values if pair else (range(1, len(values) + 1), values)
        x, y = array(x).ravel(), array(y).ravel()
        every = max(1, len(x) // 12)
        look = {"color": _COLOURS[i % 7], "linestyle": LINES[i % 4], "marker": MARKERS[i % 8], "markevery": every, "markersize": 4}
        axis.plot(x, y, label=name, **look)
        said.append(f"{name} goes from {y[0]:.{decimals}g} to {y[-1]:.{decimals}g}")
    for text, x in (marks or {}).items():
        axis.axvline(x, color="black", linestyle=":", linewidth=1.2)
        axis.text(x, 1.0, f" {text}", transform=axis.get_xaxis_transform(), va="top")
    axis.set(xlabel=x_label, ylabel=y_label, title=title)
    axis.set_xscale("log" if "x" in log else "linear")
    axis.set_yscale("log" if "y" in log else "linear")
    axis.legend()
    return fig, f"{y_label} against {x_label}: {'; '.join(said)}."


@drawing
def bars(values: dict, y_label: str, title: str = "", groups: list[str] | None = None, decimals: int = 3):
    """Bars by name: {name: number}, or {name: one number a group} with `groups` naming them. Returns (figure, sentence)."""
    groups = groups or [""]
    fig, axis = figure()
    width = 0.8 / len(values) if groups != [""] else 0.6
    for i, (name, heights) in enumerate(values.items()):
        heights = np.atleast_1d(array(heights))
        if len(heights) != len(groups):
            raise ValueError(f"bars(): {name!r} has {len(heights)} values for {len(groups)} groups")
        x = np.arange(len(groups)) + (i - (len(values) - 1) / 2) * width if groups != [""] else np.array([i])
        look = {"color": _COLOURS[i % 7], "hatch": ("", "//", "..", "xx")[i % 4], "edgecolor": "white"}
        drawn = axis.bar(x, heights, width * 0.94, label=name, **look)
        axis.bar_label(drawn, fmt=f"%.{decimals}g", fontsize=8)
    if groups == [""]:
        axis.set_xticks(range(len(values)), list(values), fontsize=8 if len(values) > 9 else None)
    else:
        axis.set_xticks(range(len(groups)), groups)
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(values))  # above the bars, never on them
    axis.set(ylabel=y_label, title=title)
    said = "; ".join(f"{name} {', '.join(f'{v:.{decimals}g}' for v in np.atleast_1d(array(values[name])))}" for name in values)
    over = f" over {', '.join(groups)}" if groups != [""] else ""
    return fig, f"{y_label}{over}: {said}."


@drawing
def expected_and_got(expected, got, title: str = "Your answer"):
    """An exercise's expected values beside the learner's, element by element. Returns (figure, sentence)."""
    expected, got = array(expected).ravel(), array(got).ravel()
    if expected.shape != got.shape:
        raise ValueError(f"expected {expected.size} values, got {got.size}")
    step = max(1, len(expected) // 120)
    x = np.arange(len(expected))[::step]
    fig, axis = figure(height=2.3)
    axis.plot(x, expected[::step], "o", color=PALETTE["blue"], fillstyle="none", markersize=7, label="expected")
    axis.plot(x, got[::step], "x", color=PALETTE["red"], markersize=5, label="yours")
    axis.set(xlabel="element", ylabel="value", title=title)
    axis.legend(loc="best")
    differ = int((np.nan_to_num(got, nan=np.inf) != expected).sum())
    said = "all are equal" if not differ else f"{differ} differ, the largest difference is {np.nanmax(np.abs(got - expected)):.4g}"
    return fig, f"{len(expected)} expected values (circles) beside yours (crosses): {said}."
