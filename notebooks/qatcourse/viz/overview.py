"""The map of the lessons, and pictures of many networks at once: accuracy against bytes, sensitivity of layers."""

import textwrap

import numpy as np

from qatcourse.viz.base import LINES, MARKERS, PALETTE, drawing, figure

__all__ = ["lesson_map", "pareto", "pareto_front", "sensitivity"]
_COLOURS = [PALETTE[name] for name in ("blue", "orange", "green", "pink", "black", "sky")]
_PLACES = {"00": (0, 3), "01": (1, 3), "02": (2, 3), "03": (3, 3), "08": (1, 2), "04": (2, 2), "06": (3, 2),
           "10": (1, 1), "05": (2, 1), "11": (3, 1), "09": (1, 0), "07": (2, 0),
           "12": (3, 0)}  # fmt: skip  # no arrow passes behind a box


@drawing
def lesson_map(lessons):
    """The `LESSONS` as boxes, an arrow from each to those that build on it. Returns (figure, sentence)."""
    fig, axis = figure(width=8.6, height=5.6)
    boxes = {lesson.number: _box(axis, lesson) for lesson in lessons}
    for lesson in lessons:
        for before in lesson.needs:
            _arrow(axis, before, lesson.number, boxes)
    axis.set(xlim=(-0.5, 3.5), ylim=(-0.4, 3.4), xticks=[], yticks=[], title="The lessons: what each gives, and what comes before")
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
def pareto(groups: dict[str, list[tuple[float, float]]], y_label: str = "PCK@0.2"):
    """Points (bytes, score) by group, and the front that none of them beats. Returns (figure, sentence)."""
    every = [point for points in groups.values() for point in points]
    if not every:
        raise ValueError("pareto() needs at least one point: {name: [(bytes, accuracy)]}")
    fig, axis = figure(height=3.4)
    front = pareto_front(every)
    axis.step(*zip(*front), where="post", color="#888888", linestyle=LINES[1], label="front", zorder=1)
    for i, (name, points) in enumerate(groups.items()):
        axis.plot(*zip(*points), linestyle="none", marker=MARKERS[i % 8], color=_COLOURS[i % 6], markersize=7, label=name)
    axis.set(xlabel="bytes of weights", ylabel=y_label, title=f"{y_label} against bytes")
    axis.set_xscale("log")
    axis.legend(fontsize=8)
    said = ", ".join(f"{accuracy:.3f} with {size:,.0f} bytes" for size, accuracy in front)
    return fig, f"{len(every)} networks; {len(front)} of them are beaten by no other: {said}."


@drawing
def sensitivity(drops: dict[str, dict[int, float]], y_label: str = "PCK lost"):
    """{layer: {bits: loss}}: what quantizing each layer alone to few bits costs. Returns (figure, sentence)."""
    names, widths = list(drops), sorted({bits for losses in drops.values() for bits in losses}, reverse=True)
    fig, axis = figure(height=3.0)
    for i, bits in enumerate(widths):
        at = np.arange(len(names)) + (i - (len(widths) - 1) / 2) * 0.38
        look = {"color": _COLOURS[i % 6], "hatch": ("", "//", "..")[i % 3], "edgecolor": "white"}
        axis.bar(at, [drops[name][bits] for name in names], 0.36, label=f"{bits} bits", **look)
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel=y_label, title="One layer alone at few bits, all others at 8")
    axis.legend()
    few = widths[-1]
    order = sorted(names, key=lambda name: -drops[name][few])
    return fig, (
        f"At {few} bits {order[0]} costs most ({drops[order[0]][few]:.3f}), {order[-1]} least ({drops[order[-1]][few]:.3f}), "
        f"of {len(names)} layers."
    )
