"""Figures: drawn without global state, described in words that are true, in colours that everyone can tell apart."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from qatcourse import viz
from qatlib.quantizers import fake_quantize, symmetric_scale

torch.manual_seed(0)
WEIGHTS = torch.randn(8, 4, 3, 3) * torch.linspace(0.05, 0.5, 8).view(-1, 1, 1, 1)
JOINTS = np.random.default_rng(0).uniform(5, 60, (3, 14, 2))
FIGURES = {
    "staircase": lambda: viz.staircase(),
    "snapping": lambda: viz.snapping(WEIGHTS, fake_quantize(WEIGHTS, symmetric_scale(WEIGHTS, 4), 0, 4)),
    "clip_tradeoff": lambda: viz.clip_tradeoff(WEIGHTS),
    "rounding_gradient": lambda: viz.rounding_gradient(),
    "oscillation": lambda: viz.oscillation({"slow": viz.descend(-0.9, 0.45, 0.25, 4)}, 0.45, 0.25),
    "skeletons": lambda: viz.skeletons(np.zeros((3, 64, 64, 3), np.uint8), [JOINTS, JOINTS + [3, 4]], ["truth", "guess"]),
    "curves": lambda: viz.curves({"FP32": [3, 2, 1], "QAT": ([1, 2], [5, 4])}, "epoch", "loss", marks={"QAT on": 2}),
    "bars": lambda: viz.bars({"PTQ": [0.5, 0.7], "QAT": [0.6, 0.7]}, "PCK", groups=["4 bits", "8 bits"]),
    "expected_and_got": lambda: viz.expected_and_got([1, 2, 3], [1, 2, 5]),
}
PANELS = {
    "weights": lambda: viz.quantizer_panel(WEIGHTS, 4, 80),
    "one bit": lambda: viz.quantizer_panel(WEIGHTS, 1, 20),
    "microscope": lambda: viz.microscope_panel(0.4, 2),
    "descent": lambda: viz.descent_panel(0.1, 0.45),
    "guesses": lambda: viz.guesses(np.array([0.0, 4.0, 10.0]), np.array([40.0, 24.0, 60.0]), np.array([0.6, 0.0, 0.4])),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_sentence_and_the_same_bytes_twice(name):
    (figure, sentence), (again, _) = FIGURES[name](), FIGURES[name]()
    assert sentence.endswith(".") and len(sentence) > 30 and "nan" not in sentence.lower()
    picture = viz.png(figure)
    assert picture.startswith(b"\x89PNG") and picture == viz.png(again)


@pytest.mark.parametrize("name", FIGURES)
def test_every_drawn_axis_is_named(name):
    for axis in FIGURES[name]()[0].axes:
        if axis.get_visible() and (axis.lines or axis.collections or axis.patches) and not axis.images:
            assert axis.get_title(loc="left") or axis.get_xlabel() or axis.get_ylabel()


@pytest.mark.parametrize("name", PANELS)
def test_panel_is_well_formed_svg(name):
    svg, sentence = PANELS[name]()
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg") and sentence.endswith(".") and "nan" not in svg


def test_sentences_state_measured_numbers():
    sentence = viz.expected_and_got([1, 2, 3], [1, 2, 5])[1]
    assert "1 differ" in sentence and "largest difference is 2" in sentence
    assert "all are equal" in viz.expected_and_got([1, 2], [1, 2])[1]
    assert "'guess' lies 5.0 pixels" in FIGURES["skeletons"]()[1]
    other_people = viz.skeletons(np.zeros((2, 3, 128, 128, 3), np.uint8), [JOINTS, JOINTS], ["best", "worst"])
    assert "'best' and 'worst'" in other_people[1] and "lies" not in other_people[1] and len(other_people[0].axes) == 6
    assert "FP32 goes from 3 to 1" in FIGURES["curves"]()[1]


def test_codes_are_drawn_as_stairs_not_as_ramps():
    """A code holds until the step that changes it: in the slider's SVG and in the figure."""
    lines = [line for line in ET.fromstring(viz.descent_panel(0.1, 0.45)[0]).iter() if line.get("stroke-dasharray") == "6 3"]
    points = [tuple(map(float, point.split(","))) for point in lines[0].get("points").split()]
    assert len(lines) == 1 and all(a[0] == b[0] or a[1] == b[1] for a, b in zip(points, points[1:]))
    drawn = FIGURES["oscillation"]()[0].axes[0].lines
    assert [line.get_drawstyle() for line in drawn if line.get_label() == "quantized"] == ["steps-post"]


def test_every_mark_that_holds_weights_is_seen():
    """Counts on a log scale, each with a dot: a mark of one weight shows beside one of thousands."""
    fake = fake_quantize(WEIGHTS, symmetric_scale(WEIGHTS, 4), 0, 4)
    figure, sentence = viz.snapping(WEIGHTS, fake)
    axis = figure.axes[1]
    x, y = axis.lines[0].get_data()
    assert axis.get_yscale() == "log" and len(x) == fake.unique().numel() and min(y) >= 1 > axis.get_ylim()[0]
    assert f"snap to {len(x)} marks" in sentence


def test_legends_hide_no_line():
    figure = FIGURES["oscillation"]()[0]
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().y1 <= figure.axes[0].get_window_extent().y0
    figure = FIGURES["rounding_gradient"]()[0]
    figure.draw_without_rendering()
    axis = figure.axes[1]
    tallest = max(line.get_ydata().max() for line in axis.lines)
    assert axis.transData.transform((0, tallest))[1] < axis.get_legend().get_window_extent().y0


def test_errors_split_into_rounding_and_clipping():
    x = torch.tensor([-1.0, -0.1, 0.1, 0.3, 2.0])
    found = viz.errors(x, 0.25, 0, 3)  # grid -1 .. 0.75: only 2.0 is clipped
    assert found["clipped"] == 0.2 and found["clip"] == pytest.approx(1.25**2 / 5)
    assert found["round"] == pytest.approx((0.1**2 + 0.1**2 + 0.05**2) / 5)
    assert found["codes"] == 4
    y = fake_quantize(x, 0.25, 0, 3)
    assert found["sqnr"] == pytest.approx(viz.sqnr(x, y))
    assert viz.sqnr(x, x) == float("inf")


def test_six_decibels_a_bit():
    x = torch.rand(50_000) * 2 - 1
    ten, eleven = (viz.errors(x, symmetric_scale(x, b), 0, b)["sqnr"] for b in (10, 11))
    # 6.02 plus 20 log10(2047/1023 / 2) = 0.004; the spread of the mean square of 50,000 uniform errors is below 0.03 dB
    assert eleven - ten == pytest.approx(6.02, abs=0.1)


@pytest.mark.parametrize("estimator", viz.ESTIMATORS)
@pytest.mark.parametrize("start", [-1.7, -0.9, 0.1, 0.374, 1.6])
def test_descent_equals_autograd(estimator, start):
    """The fast float32 loop against a loop that asks autograd for each gradient, to the last bit."""
    w, path = torch.tensor([start]), []
    for _ in range(40):
        y = fake_quantize(w, 0.25, 0, 3)
        path.append((w.item(), y.item()))
        w = w - 0.1 * viz.gradients.estimate(w, 0.4, 0.25, 3, estimator)[1]
    floats, quantized = viz.descend(start, 0.4, 0.25, 3, estimator, 0.1, 39)
    assert np.array_equal(floats, [p[0] for p in path]) and np.array_equal(quantized, [p[1] for p in path])


def test_show_displays_the_figure_and_its_words(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    viz.show(*viz.staircase())
    (picture, options), (words, _) = shown
    assert picture["image/png"] and options["metadata"]["image/png"]["alt"] == picture["text/plain"]
    assert words["text/markdown"] == f"*{picture['text/plain']}*"
    with pytest.raises(ValueError, match="sentence"):
        viz.show(viz.staircase()[0], " ")


def test_table_as_text_and_html():
    made = viz.table([{"name": "<w>", "bits": 8}, {"name": "b", "share": 0.123456}], "Two rows")
    assert repr(made).splitlines() == ["Two rows", "name  bits  share", "<w>   8", "b           0.1235"]
    assert "&lt;w&gt;" in made._repr_html_() and "<caption" in made._repr_html_()
    with pytest.raises(ValueError, match="at least one row"):
        viz.table([])


def _contrast(colour: str) -> float:
    """WCAG contrast ratio against white."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 1.05 / (float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)


def test_palette_is_okabe_ito_and_line_colours_stand_out():
    assert viz.PALETTE["blue"] == "#0072B2" and viz.PALETTE["red"] == "#D55E00" and len(set(viz.PALETTE.values())) == 8
    # Okabe-Ito's own orange (2.25) is the palest that draws lines; yellow (1.2) must not, and no style uses it
    assert all(_contrast(viz.PALETTE[name]) > 2.2 for name in ("black", "blue", "red", "green", "orange", "pink", "sky"))
    with viz.style():
        import matplotlib

        assert viz.PALETTE["yellow"] not in [entry["color"] for entry in matplotlib.rcParams["axes.prop_cycle"]]


def test_wrong_arguments_are_refused_in_a_sentence():
    for call in (
        lambda: viz.skeletons(np.zeros((1, 64, 64, 3), np.uint8), [JOINTS[:, :3]]),
        lambda: viz.bars({"a": [1, 2]}, "PCK", groups=["one"]),
        lambda: viz.curves({}, "x", "y"),
        lambda: viz.descend(0, 0, 1, 3, "magic"),
        lambda: viz.expected_and_got([1], [1, 2]),
    ):
        with pytest.raises(ValueError, match=r"\w+ "):
            call()
    with pytest.raises(AttributeError, match="staircase"):
        viz.stairs  # noqa: B018


def test_importing_viz_is_light():
    code = "import sys, qatcourse.viz; assert not {'matplotlib', 'torch', 'IPython', 'ipywidgets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_leaves_no_global_state():
    # Reading the parameter "backend" imports pyplot where no MPLBACKEND is set, so it is left out.
    code = """import matplotlib, sys
settings = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}
before = settings()
from qatcourse import viz
viz.png(viz.staircase()[0])
assert settings() == before and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
