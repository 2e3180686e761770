"""The look of every figure: palette, style, and how a figure and its sentence are shown."""

import functools
import html
import io

from qatlib.wording import columns

PALETTE = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "red": "#D55E00",
    "pink": "#CC79A7",
}  # Okabe & Ito 2008: told apart with any colour vision; never red against green alone
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")

_RC = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "qatlib",
}


def style():
    """A context in which matplotlib draws in the course's style: `with style(): ...`."""
    import matplotlib

    order = ("blue", "orange", "green", "red", "sky", "pink", "black")
    cycle = matplotlib.cycler(color=[PALETTE[name] for name in order])
    return matplotlib.rc_context({**_RC, "axes.prop_cycle": cycle})


def figure(rows: int = 1, columns: int = 1, width: float = 7.2, height: float = 2.9, **options):
    """A new (figure, axes) with no global state (no pyplot); inches; `options` go to `Figure.subplots`."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height))
    return made, made.subplots(rows, columns, **options)


def drawing(function):
    """Decorator of drawing functions: they run in `style()`, so a figure looks the same wherever it is drawn."""

    @functools.wraps(function)
    def styled(*args, **kwargs):
        with style():
            return function(*args, **kwargs)

    return styled


def array(values):
    """Numbers of any kind (list, NumPy array, tensor with or without gradient) as a float64 array."""
    import numpy as np

    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)


def png(fig, dpi: int = 100) -> bytes:
    """The figure as PNG bytes, the same bytes for the same drawing."""
    buffer = io.BytesIO()
    with style():
        fig.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def show(fig, sentence: str) -> None:
    """Display a figure (matplotlib Figure, PNG bytes or SVG text) and, below it, its sentence as text.

    Raises ValueError for an empty sentence: a reader who cannot see the figure has nothing else.
    """
    from IPython.display import display

    if not isinstance(sentence, str) or not sentence.strip():
        raise ValueError("show() needs one sentence that says what the figure shows; pass it as the second argument")
    data, metadata = bundle(fig, sentence)
    display(data, metadata=metadata, raw=True)
    display({"text/markdown": f"*{sentence}*", "text/plain": sentence}, raw=True)


def bundle(picture, sentence: str) -> tuple[dict, dict]:
    """(data, metadata) of a picture as Jupyter displays it: PNG or SVG, and the sentence as plain text.

    The metadata names the sentence `alt`, too: exporters may use it, JupyterLab 4 does not.
    """
    import base64

    if isinstance(picture, str):
        return {"image/svg+xml": picture, "text/plain": sentence}, {"image/svg+xml": {"alt": sentence}}
    raw = picture if isinstance(picture, bytes) else png(picture)
    return {"image/png": base64.b64encode(raw).decode(), "text/plain": sentence}, {"image/png": {"alt": sentence}}


class Table:
    """A small table that displays itself as HTML and as aligned text. `rows` is kept for tests."""

    def __init__(self, rows: list[dict], caption: str = ""):
        self.rows, self.caption = rows, caption

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return names, [[_text(row.get(name, "")) for name in names] for row in self.rows]

    def __repr__(self) -> str:
        names, cells = self._cells()
        return (f"{self.caption}\n" if self.caption else "") + columns([names, *cells])

    def _repr_html_(self) -> str:
        names, cells = self._cells()
        look = "text-align:left;caption-side:top;white-space:nowrap"
        caption = f'<caption style="{look}">{html.escape(self.caption)}</caption>' if self.caption else ""
        head = "".join(f'<th scope="col" style="text-align:left">{html.escape(name)}</th>' for name in names)
        body = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in line) + "</tr>" for line in cells
        )
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: list[dict], caption: str = "") -> Table:
    """A small table from one dict a row (its keys are the columns), with a caption above.

    >>> table([{"bits": 8, "levels": 256}, {"bits": 4, "levels": 16}], "Codes")
    Codes
    bits  levels
    8     256
    4     16
    """
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("table() needs at least one row, each a dict of column name to value")
    return Table(list(rows), caption)
