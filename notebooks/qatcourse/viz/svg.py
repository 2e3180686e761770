"""Small plots written as SVG text in under a millisecond, for sliders: a picture is a string, and needs no matplotlib."""

import html

import numpy as np

from qatcourse.viz.base import PALETTE

__all__ = ["Plot", "side_by_side"]


class Plot:
    """One pair of axes. Coordinates are data units; `str(plot)` is a complete SVG element.

    `x_ticks`: where the x axis is labelled (None: at round values; (): nowhere, where names stand at the data).

    >>> plot = Plot((0, 1), (0, 1), title="a line").line([0, 1], [0, 1])
    >>> str(plot).startswith("<svg") and "polyline" in str(plot)
    True
    """

    def __init__(self, x_range, y_range, title="", x_label="", y_label="", width=420, height=270, x_ticks=None):
        self.x_range, self.y_range = x_range, y_range
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = 52, width - 12, 30, height - 42
        self.parts = [f'<rect width="{width}" height="{height}" fill="white"/>']
        self._axes(title, x_label, y_label, ticks(*x_range) if x_ticks is None else x_ticks)

    def _x(self, x):
        low, high = self.x_range
        return self.left + (np.asarray(x, float) - low) / (high - low) * (self.right - self.left)

    def _y(self, y):
        low, high = self.y_range
        return self.bottom - (np.asarray(y, float) - low) / (high - low) * (self.bottom - self.top)

    def _axes(self, title, x_label, y_label, x_ticks):
        for x in x_ticks:
            self._segment(self._x(x), self.top, self._x(x), self.bottom, "#dddddd")
            self.text_at(self._x(x), self.bottom + 15, f"{x:g}", anchor="middle")
        for y in ticks(*self.y_range):
            self._segment(self.left, self._y(y), self.right, self._y(y), "#dddddd")
            label = f"{y / 1000:g}k" if abs(y) >= 10_000 else f"{y:g}"
            self.text_at(self.left - 5, self._y(y) + 4, label, anchor="end")
        self._segment(self.left, self.bottom, self.right, self.bottom, "black")
        self._segment(self.left, self.top, self.left, self.bottom, "black")
        self.text_at(self.left, 17, title, size=13, weight="bold")
        self.text_at((self.left + self.right) / 2, self.height - 9, x_label, anchor="middle")
        middle = (self.top + self.bottom) / 2
        turn = f'transform="rotate(-90 12 {middle:.0f})"'
        self.parts.append(f'<text x="12" y="{middle:.0f}" font-size="11" text-anchor="middle" {turn}>{html.escape(y_label)}</text>')

    def _segment(self, x1, y1, x2, y2, colour, width=1.0, dash=""):
        dash = f' stroke-dasharray="{dash}"' if dash else ""
        path = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"
        self.parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="{width}"{dash} fill="none"/>')

    def text_at(self, x, y, text, anchor="start", size=11, weight="normal", colour="black"):
        """Text at a place in SVG units (from the top left corner)."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="{colour}">{html.escape(str(text))}</text>'
        )
        return self

    def text(self, x, y, text, **options):
        """Text at a place in data units."""
        return self.text_at(float(self._x(x)), float(self._y(y)), text, **options)

    def line(self, x, y, colour="blue", dash="", width=2.0):
        """A line through the points; `dash` as in SVG ("6 4")."""
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(self._x(x), self._y(y)))
        dash = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{points}" fill="none" stroke="{PALETTE[colour]}" stroke-width="{width}"{dash}/>')
        return self

    def points(self, x, y, colour="orange", radius=3.0, hollow=False):
        """A circle at each point."""
        fill = "white" if hollow else PALETTE[colour]
        for a, b in zip(self._x(x), self._y(y)):
            self.parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius}" fill="{fill}" stroke="{PALETTE[colour]}"/>')
        return self

    def bars(self, edges, heights, colour="sky"):
        """A histogram: one bar between each pair of neighbouring edges."""
        x, y, zero = self._x(edges), self._y(heights), float(self._y(max(0, self.y_range[0])))
        for a, b, h in zip(x[:-1], x[1:], y):
            if zero - h > 0.05:
                size = f'width="{max(b - a - 0.4, 0.6):.1f}" height="{zero - h:.1f}"'
                self.parts.append(f'<rect x="{a:.1f}" y="{h:.1f}" {size} fill="{PALETTE[colour]}"/>')
        return self

    def spikes(self, x, heights, colour="red", width=1.2):
        """A thin vertical line at each x, from 0 to its height."""
        zero = float(self._y(max(0, self.y_range[0])))
        path = "".join(f"M{a:.1f} {zero:.1f}V{b:.1f}" for a, b in zip(self._x(x), self._y(heights)))
        self.parts.append(f'<path d="{path}" stroke="{PALETTE[colour]}" stroke-width="{width}" fill="none"/>')
        return self

    def band(self, low, high, colour="orange", opacity=0.2):
        """A shaded range of x over the whole height."""
        a, b = float(self._x(low)), float(self._x(high))
        size = f'width="{b - a:.1f}" height="{self.bottom - self.top:.1f}"'
        self.parts.append(f'<rect x="{a:.1f}" y="{self.top}" {size} fill="{PALETTE[colour]}" opacity="{opacity}"/>')
        return self

    def legend(self, entries: dict[str, str], x=8.0, y=14.0):
        """Names in their colours, {text: colour name}, one a line, `x` and `y` SVG units from the upper left corner of the axes."""
        for i, (text, colour) in enumerate(entries.items()):
            left, top = self.left + x, self.top + y + 15 * i
            self.parts.append(f'<rect x="{left}" y="{top - 8}" width="14" height="8" fill="{PALETTE[colour]}"/>')
            self.text_at(left + 19, top, text)
        return self

    def __str__(self) -> str:
        return _wrap(self.width, self.height, "".join(self.parts))


def _wrap(width, height, content) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="DejaVu Sans, Arial, sans-serif">{content}</svg>'
    )


def side_by_side(*plots: Plot) -> str:
    """Several plots in one row, as one SVG."""
    parts, x = [], 0
    for plot in plots:
        parts.append(f'<g transform="translate({x} 0)">{"".join(plot.parts)}</g>')
        x += plot.width
    return _wrap(x, max(plot.height for plot in plots), "".join(parts))


def ticks(low: float, high: float, about: int = 5) -> np.ndarray:
    """Round numbers from low to high, about so many.

    >>> ticks(-1, 1).tolist()
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    raw = (high - low) / about
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return np.round(np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step, 10) + 0.0
