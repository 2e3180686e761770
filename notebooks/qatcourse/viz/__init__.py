"""Pictures of quantization, each with one generated sentence that says what it shows.

Every drawing function returns `(figure, sentence)`; `show(*staircase(...))` displays both.
Drawings for sliders return `(svg_text, sentence)` instead. Nothing here keeps state; matplotlib loads at the first drawing.

    base       palette, style, show, table        quantizers  staircases, error histograms, weights snapping to a grid
    svg        small fast plots for sliders       gradients   what rounding does to gradients; training one weight
    people     skeletons on pictures              training    curves, bars
    pose       training, heat maps, versions      pixel       one sum of a layer, product by product
    overview   the map of lessons, accuracy against bytes, sensitivity of layers

Any of their functions is reached as `viz.name`.
"""

from importlib import import_module

from qatcourse.viz.base import LINES, MARKERS, PALETTE, drawing, figure, png, show, style, table

_PARTS = ("pose", "pixel", "quantizers", "gradients", "people", "training", "svg", "inspection", "overview")

__all__ = ["LINES", "MARKERS", "PALETTE", "drawing", "figure", "png", "show", "style", "table"]


def __getattr__(name: str):
    if name.startswith("_"):
        raise AttributeError(name)
    for part in _PARTS:
        module = import_module(f"qatcourse.viz.{part}")
        if name == part:
            return module
        if name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"qatcourse.viz has no {name!r}; it offers {', '.join(__dir__())}")


def __dir__():
    return sorted([*__all__, *(name for part in _PARTS for name in import_module(f"qatcourse.viz.{part}").__all__)])
