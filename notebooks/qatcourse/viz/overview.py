"""The map of the lessons, and pictures of many networks at once: accuracy against bytes, sensitivity of layers."""

import textwrap

import numpy as np

from qatcourse.viz.base import LINES, MARKERS, PALETTE, drawing, figure

__all__ = ["lesson_map", "pareto", "pareto_front", "sensitivity"]
_COLOURS = [PALETTE[name] for name in ("blue", "orange", "green", "pink", "black", "sky")]
_TICKS = (25, 50, 100, 150, 200, 300, 400, 800, 1600)  # kilobytes
_PLACES = {"00": (0, 3), "01": (1, 3), "08": (2, 3), "10": (3, 3), "02": (0, 2), "03": (1, 2), "04": (2, 2), "15": (3, 2),
           "14": (0, 1), "06": (1, 1), "05": (2, 1), "13": (3, 1), "11": (0, 0), "07": (1, 0), "09": (2, 0),
           "12": (3, 0), "16": (1, -1)}  # fmt: skip  # no arrow passes behind a box


@drawing
def lesson_map(lessons):
    """The `LESSONS` as boxes, an arrow from each to those that build on it. Returns (figure, sentence)."""
    fig, axis = figure(width=8.6, height=7)
    boxes = {lesson.number: _box(axis, lesson) for lesson in lessons}
    for lesson in lessons:
        for before in lesson.needs:
            _arrow(axis, before, lesson.number, boxes)
    axis.set(xlim=(-0.5, 3.5), ylim=(-1.4, 3.4), xticks=[], yticks=[], title="The lessons: what each gives, and what comes before")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    after = [f" after {' and '.join(lesson.needs)}" if lesson.needs else "" for lesson in lessons]
    ways = "; ".join(f"{lesson.number} {lesson.title}{needs}" for lesson, needs in zip(lessons, after))
    return fig, f"A map of {len(lessons)} lessons, {sum(lesson.minutes for lesson in lessons)} minutes in all: {ways}."


def _box(axis, lesson):
    from matplotlib.patches import FancyBboxPatch

    column, row = _PLACES[lesson.number]
    look = {"boxstyle": "round,pad=0.02", "edgecolor": PALETTE["blue"], "facecolor": "#eef5fb"}
    box = axis.add_patch(FancyBboxPatch((column - 0.4, row - 0.27), 0.8, 0.54, zorder=2, **look))
    title = "\n".join(textwrap.wrap(f"{lesson.number}  {lesson.title}", 24))
    axis.text(column, row + 0.25, title, ha="center", va="top", fontsize=8, weight="bold", zorder=3)
    gives = "\n".join(textwrap.wrap(lesson.gives, 27))
    axis.text(column, row - 0.25, f"{gives}\n{lesson.minutes} min", ha="center", va="bottom", fontsize=7.5, zorder=3)
    return box


def _arrow(axis, before: str, after: str, boxes: dict) -> None:
    start, end = _PLACES[before], _PLACES[after]
    bend = 0.35 if abs(start[0] - end[0]) > 1 else 0.0
    look = {"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.3, "patchA": boxes[before], "patchB": boxes[after], "zorder": 1}
    axis.annotate("", end, start, zorder=1, arrowprops=look | {"connectionstyle": f"arc3,rad={bend}"})


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (bytes, accuracy) that no other beats: none has at most as many bytes and at least as much accuracy.

    >>> pareto_front([(100, 0.5), (200, 0.4), (200, 0.7), (300, 0.7)])
    [(100, 0.5), (200, 0.7)]
    """
    front = []
    for size, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((size, accuracy))
    return front


@drawing
def pareto(groups: dict[str, dict], y_label: str = "PCK@0.2", least: float = 0.0, level: tuple[str, float] | None = None):
    """{group: {what a point is: (bytes, score or one score a seed)}}, and the front of the means. Returns (figure, sentence).

    Scores below `least` stand at the lower edge, with their value; `level`: (name, score) of a line across.
    """
    points = [(size, float(np.mean(scores))) for group in groups.values() for size, scores in group.values()]
    if not points:
        raise ValueError("pareto() needs at least one point: {name: {what: (bytes, accuracy)}}")
    fig, axis = figure(height=4.2)
    for number, (name, group) in enumerate(groups.items()):
        _dots(axis, number, name, group, least)
    front, sizes = pareto_front(points), [size for size, _ in points]
    low, high, top = min(sizes) / 1350, max(sizes) / 740, max([score for _, score in points] + [level[1]] * bool(level))
    shown = [(size / 1000, score) for size, score in front if score >= least]
    look = {"where": "post", "color": "#888888", "linestyle": LINES[1], "label": "front: no other beats it", "zorder": 1}
    axis.step(*zip(*shown, (high, shown[-1][1])), **look)
    if level:
        axis.axhline(level[1], color="black", linestyle=":", linewidth=1.2)
        axis.annotate(level[0], (0.01, level[1]), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points")
    room = top - least
    axis.set(xlim=(low, high), ylim=(least - 0.05 * room, top + 0.1 * room), xscale="log")
    axis.set(xlabel="kilobytes of weights", ylabel=y_label, title=f"{y_label} against bytes; a dot is a seed")
    axis.set_xticks(ticks := [tick for tick in _TICKS if low <= tick <= high], ticks)
    axis.xaxis.set_minor_formatter("")
    axis.legend(loc="lower right")
    said = ", ".join(f"{accuracy:.3f} with {size:,.0f} bytes" for size, accuracy in front)
    return fig, f"{len(points)} networks; {len(front)} of them are beaten by no other: {said}."


def _dots(axis, number: int, name: str, group: dict, least: float) -> None:
    """A group's dots; names above and below them by turns, so that neighbours' do not meet."""
    look = {"linestyle": "none", "marker": MARKERS[number % 8], "color": _COLOURS[number % 6]}
    axis.plot([], [], label=name, **look)
    for turn, (what, (size, scores)) in enumerate(sorted(group.items(), key=lambda item: item[1][0]), number):
        at, low = np.maximum(np.atleast_1d(scores), least), np.mean(scores) < least
        axis.plot([size / 1000] * len(at), at, alpha=0.8, **look)
        text = f"{what}: below, {np.mean(scores):.2f}" if low else what
        place = {"xytext": (0, 6 if turn % 2 or low else -15), "ha": "left" if low else "center", "color": look["color"]}
        place["bbox"] = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0}
        axis.annotate(text, (size / 1000, max(at) if turn % 2 or low else min(at)), textcoords="offset points", **place)


@drawing
def sensitivity(drops: dict[str, dict[int, float]], y_label: str = "PCK lost"):
    """{layer: {bits: loss}}: what quantizing each layer alone to few bits costs. Returns (figure, sentence)."""
    names, widths = list(drops), sorted({bits for losses in drops.values() for bits in losses}, reverse=True)
    fig, axis = figure(height=3.0)
    for i, bits in enumerate(widths):
        at = np.arange(len(names)) + (i - (len(widths) - 1) / 2) * 0.38
        look = {"color": _COLOURS[i % 6], "hatch": ("", "//", "..")[i % 3], "edgecolor": "white"}
        axis.bar(at, [drops[name][bits] for name in names], 0.36, label=f"{bits} bits", **look)
    axis.set_xticks(range(len(names)), names, fontsize=9)
    axis.set(ylabel=y_label, title="One layer alone at few bits, all others at 8")
    axis.legend()
    few = widths[-1]
    order = sorted(names, key=lambda name: -drops[name][few])
    return fig, (
        f"At {few} bits {order[0]} costs most ({drops[order[0]][few]:.3f}), {order[-1]} least ({drops[order[-1]][few]:.3f}), "
        f"of {len(names)} layers."
    )
