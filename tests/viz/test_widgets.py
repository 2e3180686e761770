"""Sliders and questions: what is shown follows the controls, errors are raised, and a reader without a kernel sees a picture."""

import statistics
import time
from pathlib import Path

import ipywidgets
import latency
import pytest
import torch

from qatcourse import viz
from qatcourse.viz import widgets

WIDGET = "application/vnd.jupyter.widget-view+json"
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def draw(bits, kind="plain"):
    if bits == 7:
        raise RuntimeError("seven is broken")
    return f"<svg>{bits} {kind}</svg>", f"{bits} bits, {kind}."


def test_setting_a_slider_changes_picture_and_sentence():
    w = widgets.slider_figure(draw, bits=range(1, 7), kind=["plain", "fancy"], start={"bits": 4})
    assert w.values == {"bits": 4, "kind": "plain"} and ">4 plain<" in w.html
    w.sliders["bits"].value = 5
    w.sliders["kind"].value = "fancy"
    assert w.sentence == "5 bits, fancy." and ">5 fancy<" in w.html
    assert 'aria-label="5 bits, fancy."' in w.html and "5 bits, fancy." in w._text.value and "aria-live" in w._text.value


def test_controls_follow_the_kind_of_values():
    own = ipywidgets.IntSlider(value=2, min=1, max=3)
    w = widgets.slider_figure(lambda a, b, c, d: ("<svg/>", "fine."), a=range(0, 10, 2), b=[0.1, 0.5], c=["x", "y"], d=own)
    a, b, c, d = w.sliders.values()
    assert isinstance(a, ipywidgets.IntSlider) and (a.min, a.max, a.step) == (0, 8, 2)
    assert isinstance(b, ipywidgets.SelectionSlider) and b.continuous_update
    assert isinstance(c, ipywidgets.RadioButtons) and d is own


def test_the_page_keeps_its_height():
    w = widgets.slider_figure(draw, bits=range(1, 7), height=200)
    assert w.picture.layout.height == w.picture.layout.min_height == "200px"


def test_a_broken_drawing_raises_where_the_slider_was_set_and_says_so():
    w = widgets.slider_figure(draw, bits=range(1, 9))
    with pytest.raises(RuntimeError, match="seven"):
        w.sliders["bits"].value = 7
    assert "seven is broken" in w._text.value
    w.sliders["bits"].value = 6
    assert w.sentence == "6 bits, plain."


def test_frames_are_drawn_once():
    calls = []
    w = widgets.slider_figure(lambda n: (calls.append(n), (f"<svg>{n}</svg>", f"{n}."))[1], n=range(1, 5), prerender=True)
    assert sorted(calls) == [1, 2, 3, 4]
    for n in (4, 1, 3, 2):
        w.sliders["n"].value = n
    assert len(calls) == 4


def test_figures_and_bytes_become_images_with_alt_text():
    made = widgets.slider_figure(lambda bits: viz.staircase(bits), bits=range(2, 4))
    raw = widgets.slider_figure(lambda bits: (viz.png(viz.staircase(bits)[0]), "A <staircase>."), bits=range(2, 4))
    assert made.html.startswith('<img alt="A 2-bit quantizer') and 'alt="A &lt;staircase&gt;."' in raw.html


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="at least one slider"):
        widgets.slider_figure(draw)
    with pytest.raises(ValueError, match="start names bit"):
        widgets.slider_figure(draw, bits=range(3), start={"bit": 1})
    with pytest.raises(ValueError, match="no values"):
        widgets.slider_figure(draw, bits=[])
    with pytest.raises(TypeError, match="picture, sentence"):
        widgets.slider_figure(lambda bits: "<svg/>", bits=range(3))


def test_stored_output_holds_picture_and_words_beside_the_live_widget(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data))
    widgets.slider_figure(draw, bits=range(1, 7))._ipython_display_()
    picture, words = shown
    assert WIDGET in picture and picture["image/svg+xml"] == "<svg>1 plain</svg>" and picture["text/plain"] == "1 bits, plain."
    assert WIDGET in words and "bits = 1" in words["text/markdown"]
    shown.clear()
    widgets.predict("Which?", ["a", "b"], "b", "Because.")._ipython_display_()
    assert WIDGET in shown[0] and "<details>" in shown[0]["text/markdown"] and "- a\n- b" in shown[0]["text/markdown"]


def test_prediction_answers_only_when_asked():
    p = widgets.predict("How many?", ["3", "8"], "8", "Each bit doubles <it>.")
    assert p.buttons.value is None and "doubles" not in p.feedback
    p.buttons.value = "3"
    assert p.feedback.startswith("Not this time: 8.")
    p.buttons.value = "8"
    assert p.feedback.startswith("Yes.") and "&lt;it&gt;" in p._answer.value and "aria-live" in p._answer.value


def test_radio_buttons_are_tab_stops_of_their_own_and_stay_in_step():
    control = ipywidgets.RadioButtons(options=["a", "b", "c"], value=None, description="kind")
    title, *each = widgets.separate(control).children
    assert title.value == "kind" and [button.value for button in each] == [None, None, None]
    each[1].value = "b"
    assert control.value == "b"
    control.value = "c"
    assert [button.value for button in each] == [None, None, "c"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("Q?", ["a"], "a", "b"), "two different"),
        (("Q?", ["a", "a"], "a", "b"), "two different"),
        (("Q?", ["a", "b"], "c", "d"), "not among"),
        (("Q?", ["a", "b"], "a", ""), "because"),
    ],
)
def test_prediction_refuses_what_cannot_be_answered(arguments, words):
    with pytest.raises(ValueError, match=words):
        widgets.predict(*arguments)


@pytest.mark.parametrize("panel", ["quantizer", "microscope", "descent"])
def test_lesson_panels_redraw_fast_without_a_cache(panel):
    """The kernel's share of a redraw; key press to page adds about 20 ms. Median of 15 against a third of the 100 ms allowed."""
    weights = torch.randn(64, 48, 3, 3)
    drawing = {
        "quantizer": lambda i: viz.quantizer_panel(weights, 2 + i % 7, 40 + i),
        "microscope": lambda i: viz.microscope_panel(-1 + i / 10),
        "descent": lambda i: viz.descent_panel(0.01 * (i + 1), 0.45),
    }[panel]
    drawing(0)
    taken = []
    for i in range(15):
        start = time.process_time()
        drawing(i)
        taken.append(time.process_time() - start)
    assert statistics.median(taken) < 0.033


def test_latency_measures_every_lesson_that_shows_a_slider(capsys):
    """Told from the stored outputs, not from the sources that `latency` searches."""
    still = "run the cell to move them"
    shown = [path.name for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")) if still in path.read_text()]
    assert shown and latency.lessons([]) == shown and latency.lessons([shown[0][:2]]) == shown[:1]
    assert latency.main(["77"]) == 2 and "lesson 77 has no slider; lessons with one: 00, 01" in capsys.readouterr().err
