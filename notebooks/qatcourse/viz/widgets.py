"""Sliders and questions for the lessons: thin wrappers over pure drawing functions.

A widget is held in a variable, so a cell can set `w.sliders["bits"].value = 3` and assert on `w.sentence`. Everything works
from the keyboard. Where no kernel runs (GitHub, a reopened notebook) the stored output is the picture and its sentence.
"""

import base64
import html as escape
import itertools
import re
from collections.abc import Callable

import ipywidgets

from qatcourse.viz.base import bundle, png


def _view(widget, fallback: dict, metadata: dict | None = None) -> None:
    """Display a live widget together with what a reader sees where no kernel runs."""
    from IPython.display import display

    live = widget._repr_mimebundle_()
    display({**live, **fallback}, metadata=metadata or {}, raw=True)


LOOK = {"style": {"description_width": "9em"}, "layout": {"width": "28em"}}  # of every slider, so that they stand in line
STORED = "application/vnd.qatlib.figure+json"
KEPT = 64  # frames kept of a slider that draws on demand: a fine slider dragged for an hour must not fill the memory


def separate(control: ipywidgets.RadioButtons) -> ipywidgets.VBox:
    """A view of radio buttons in which each is a tab stop of its own: Tab moves, Space chooses.

    JupyterLab takes the arrow keys that move within one group of radio buttons, so a group cannot be left at its first choice.
    """
    each = [ipywidgets.RadioButtons(options=[choice], value=None, layout={"width": "auto"}) for choice in control.options]

    def follow(change=None):
        for button in each:
            button.value = control.value if button.options[0] == control.value else None

    def choose(change):
        if change["new"] is not None:
            control.value = change["new"]

    for button in each:
        button.observe(choose, names="value")
    control.observe(follow, names="value")
    follow()
    title = [ipywidgets.Label(control.description)] if control.description else []
    return ipywidgets.VBox([*title, *each])


class SliderFigure:
    """A picture redrawn by sliders. See `slider_figure`.

    `sliders`: name -> ipywidgets control; `picture`: the HTML widget that holds the drawing; `sentence`: the text below it;
    `values`: the sliders' values; `html`: what is shown now. `stored`: what its output keeps (JSON text) of a figure whose
    data takes too long to compute again; None for the others.
    """

    stored: str | None = None

    def __init__(self, draw: Callable, sliders: dict, height: int, prerender: bool):
        self._draw, self._frames, self._kept = draw, {}, KEPT
        self.sliders, self.height = sliders, height
        self.picture = ipywidgets.HTML(layout={"height": f"{height}px", "min_height": f"{height}px", "overflow": "hidden"})
        self._text = ipywidgets.HTML(layout={"min_height": "4.5em"})  # three lines: the page below never jumps
        if prerender:
            for values in itertools.product(*(options(slider) for slider in sliders.values())):
                self._kept += 1
                self.frame(dict(zip(sliders, values)))
        for slider in sliders.values():
            slider.observe(self._redraw, names="value")
        self._redraw()

    @property
    def values(self) -> dict:
        return {name: slider.value for name, slider in self.sliders.items()}

    @property
    def html(self) -> str:
        return self.picture.value

    @property
    def sentence(self) -> str:
        return self.frame(self.values)[1]

    def frame(self, values: dict) -> tuple[str | bytes, str]:
        """(picture, sentence) at these values of all sliders; a picture is SVG, HTML or PNG bytes."""
        key = tuple(values.values())
        if key not in self._frames:
            drawn = self._draw(**values)
            if not isinstance(drawn, tuple) or len(drawn) != 2 or not isinstance(drawn[1], str):
                raise TypeError(f"the drawing function of a slider must return (picture, sentence), not {type(drawn).__name__}")
            picture, sentence = drawn
            if len(self._frames) >= self._kept:
                del self._frames[next(iter(self._frames))]
            self._frames[key] = (picture if isinstance(picture, (str, bytes)) else png(picture), sentence)
        return self._frames[key]

    def _redraw(self, change=None):
        try:
            picture, sentence = self.frame(self.values)
        except Exception as problem:
            self._text.value = f'<p role="alert">This drawing failed: {escape.escape(str(problem))}</p>'
            raise
        self.picture.value, self._text.value = markup(picture, sentence)

    def _ipython_display_(self) -> None:
        picture, sentence = self.frame(self.values)
        if isinstance(picture, str) and not picture.startswith("<svg"):
            data, metadata = {"text/html": picture, "text/plain": sentence}, {}
        else:
            data, metadata = bundle(picture, sentence)
        if self.stored:
            data[STORED] = self.stored
        radio = ipywidgets.RadioButtons
        controls = [separate(control) if isinstance(control, radio) else control for control in self.sliders.values()]
        _view(ipywidgets.VBox([*controls, self.picture]), data, metadata)
        moved = ", ".join(f"{name} = {value}" for name, value in self.values.items())
        still = f"*{sentence}* (Sliders at {moved}; run the cell to move them.)"
        _view(self._text, {"text/markdown": still, "text/plain": sentence})


def markup(picture: str | bytes, sentence: str) -> tuple[str, str]:
    """A picture and its sentence as HTML, in JupyterLab and in the book."""
    said = escape.escape(sentence)
    if isinstance(picture, bytes):
        picture = f'<img alt="{said}" src="data:image/png;base64,{base64.b64encode(picture).decode()}"/>'
    elif picture.startswith("<svg"):
        picture = picture.replace("<svg", f'<svg aria-label="{said}"', 1)
    return picture, f'<p aria-live="polite" class="qatlib-sentence" style="line-height:1.4;margin:0">{said}</p>'


def options(control) -> list:
    """The values that a control can have. Raises TypeError where they cannot be counted."""
    if isinstance(control, ipywidgets.widget_selection._Selection):
        return [option[1] if isinstance(option, tuple) else option for option in control.options]
    if isinstance(control, ipywidgets.IntSlider):
        return list(range(control.min, control.max + 1, control.step))
    raise TypeError(f"{type(control).__name__} {control.description!r} has no countable set of values: give a range or a list")


def _control(name: str, values, start) -> ipywidgets.Widget:
    if isinstance(values, ipywidgets.Widget):
        return values
    look = {"description": name.replace("_", " "), **LOOK}
    if isinstance(values, range) and len(values):
        first = values[0] if start is None else start
        return ipywidgets.IntSlider(value=first, min=values[0], max=values[-1], step=values.step, continuous_update=True, **look)
    values = list(values)
    if not values:
        raise ValueError(f"slider {name!r} has no values; give a range, or a list of at least one value")
    first = values[0] if start is None else start
    if all(isinstance(value, str) for value in values):
        return ipywidgets.RadioButtons(options=values, value=first, **look)
    return ipywidgets.SelectionSlider(options=[(f"{v:g}", v) for v in values], value=first, continuous_update=True, **look)


def slider_figure(
    draw: Callable, *, start: dict | None = None, height: int = 280, prerender: bool = False, **sliders
) -> SliderFigure:
    """A picture with sliders: `slider_figure(draw, bits=range(1, 9), kind=["symmetric", "affine"], start={"bits": 4})`.

    `draw(**values)` is a pure function returning (picture, sentence); a picture is SVG or HTML text, PNG bytes, or a matplotlib
    Figure. The latest frames are kept; `prerender` draws all of them now. A range gives an integer slider, a list of
    numbers a slider over them, a list of words radio buttons, an ipywidgets control itself. `height` (pixels) is fixed, so the
    page never jumps. An error in `draw` is raised where the slider was set.
    """
    if not sliders:
        raise ValueError("slider_figure needs at least one slider, such as bits=range(1, 9)")
    unknown = set(start or {}) - set(sliders)
    if unknown:
        raise ValueError(f"start names {', '.join(sorted(unknown))}, but the sliders are {', '.join(sliders)}")
    controls = {name: _control(name, values, (start or {}).get(name)) for name, values in sliders.items()}
    return SliderFigure(draw, controls, height, prerender)


class Prediction:
    """A question to answer before the next cell. `buttons`: the radio buttons; `feedback`: the text shown; `answer`: the truth."""

    def __init__(self, question: str, choices: list[str], answer: str, because: str):
        self.question, self.choices, self.answer, self.because = question, choices, answer, because
        self.title = ipywidgets.HTML(f"<b>Predict first.</b> {escape.escape(question)}")
        self.buttons = ipywidgets.RadioButtons(options=choices, value=None, layout={"width": "auto"})
        self._answer = ipywidgets.HTML(value="<i>Choose an answer, then read on.</i>", layout={"min_height": "4em"})
        self.buttons.observe(self._reply, names="value")

    @property
    def feedback(self) -> str:
        return re.sub("<[^>]+>", "", self._answer.value)

    def reply(self, choice: str) -> str:
        """The feedback on `choice`, as HTML."""
        verdict = "Yes." if choice == self.answer else f"Not this time: {escape.escape(self.answer)}."
        return f'<div aria-live="polite"><b>{verdict}</b> {escape.escape(self.because)}</div>'

    def _reply(self, change):
        self._answer.value = self.reply(change["new"])

    @property
    def still(self) -> str:
        """The question as Markdown, for readers without a kernel; `Prediction.read` turns it back."""
        listed = "\n".join(f"- {choice}" for choice in self.choices)
        hidden = f"<details><summary>Answer</summary>{escape.escape(self.answer)}. {escape.escape(self.because)}</details>"
        return f"**Predict first.** {self.question}\n\n{listed}\n\n{hidden}"

    @classmethod
    def read(cls, still: str) -> "Prediction | None":
        """The question that a stored output holds as Markdown; None where it is something else."""
        pattern = r"\*\*Predict first\.\*\* (.+)\n\n((?:- .+\n)+)\n<details><summary>Answer</summary>(.+)</details>"
        if not (found := re.fullmatch(pattern, still.strip(), re.DOTALL)):
            return None
        question, listed, solved = found.groups()
        choices, solved = listed.strip()[2:].split("\n- "), escape.unescape(solved)
        answer = max((choice for choice in choices if solved.startswith(f"{choice}. ")), key=len, default=None)
        return answer and cls(question, choices, answer, solved[len(answer) + 2 :])

    def _ipython_display_(self) -> None:
        asked = ipywidgets.VBox([self.title, separate(self.buttons), self._answer])
        _view(asked, {"text/markdown": self.still, "text/plain": self.question})


def predict(question: str, choices: list[str], answer: str, because: str) -> Prediction:
    """Radio buttons to answer before a surprising result; choosing shows the truth and why.

    `answer` is one of `choices`; `because` is one or two sentences (numbers in it come from code: use an f-string).

    >>> p = predict("How many codes have 3 bits?", ["3", "6", "8"], "8", "Each bit doubles the number.")
    >>> p.buttons.value = "6"; p.feedback
    'Not this time: 8. Each bit doubles the number.'
    """
    choices = list(choices)
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ValueError("predict() needs at least two different choices")
    if answer not in choices:
        raise ValueError(f"the answer {answer!r} is not among the choices {choices}")
    if not because:
        raise ValueError("predict() needs `because`: the sentence that explains the answer")
    return Prediction(question, choices, answer, because)
