"""Lesson 06: other ways to write the right answers, and its drawings."""

import re

import torch
from exercises import both_ways

from qatcourse import viz
from qatcourse.checks import lesson06 as lesson
from qatcourse.labs import break_it
from qatcourse.viz import widgets
from qatlib import ai8x

SOLUTIONS = [
    (lesson.check_layers_off, lambda model: [n for n, m in model.named_modules() if not getattr(m, "weight_bits", True)]),
    (lesson.check_off_grid, lambda y: ((y * 128) % 1 != 0).double().mean()),
]
WRONG = [(lesson.check_layers_off, lambda model: model.nothing, "AttributeError")]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)


def test_outputs_of_names_every_layer_and_leaves_no_hook():
    patient = break_it.healthy()
    kept = viz.outputs_of(patient.model, patient.x)
    assert list(kept) == ["conv1", "conv2", "conv3", "conv4", "head"]
    with torch.no_grad():
        assert torch.equal(kept["head"], patient.model(patient.x))
    assert not any(m._forward_hooks for m in patient.model.modules())


def test_the_grid_picture_counts_what_lies_off_it():
    values = torch.tensor([0.0, 1 / 128, 1 / 256, 3 / 256])
    fig, sentence = viz.on_the_grid(values, torch.zeros(4), 0, 0.1)
    assert "before 50.0%" in sentence and "after 0.0%" in sentence and len(fig.axes) == 2


def test_the_threshold_panel_agrees_with_the_statistics():
    torch.manual_seed(0)
    values = torch.cat([torch.randn(20000).abs(), torch.tensor([30.0])])
    draw = viz.threshold_panel(values)
    svg, sentence = draw(2, 2.0)
    chosen = ai8x.statistics.log2_threshold([ai8x.statistics.histogram(values)], 2.0)
    assert svg.startswith("<svg") and f"and chooses {int(chosen)}." in sentence and "the range ends at 4," in sentence
    clipped = (values > 4).float().mean().item()
    assert f"{clipped:.2%} of the outputs are clipped" in sentence


def test_labels_of_small_numbers_stay_apart():
    fig, _ = viz.on_the_grid(torch.linspace(0, 1, 99), torch.zeros(9), 1 / 64, 1 / 8, "outputs")
    fig.canvas.draw()
    for axis in fig.axes:
        boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert all(left.x1 + 20 < right.x0 for left, right in zip(boxes, boxes[1:]))  # pixels


def test_the_axes_of_the_threshold_panel_stand_still_and_it_follows_both_sliders():
    torch.manual_seed(0)
    values = torch.cat([torch.randn(20000).abs(), torch.tensor([30.0])])
    panel = viz.threshold_panel(values)
    w = widgets.slider_figure(panel, threshold=range(-3, 6), z_score=[1, 8, 100], start={"threshold": 2, "z_score": 8})
    axes = [re.findall(r'<text[^>]*text-anchor="(?:end|middle)"[^>]*>[^<]*', w.html)]
    for slider, value in (("threshold", 0), ("z_score", 1), ("z_score", 100)):
        before = w.sentence
        w.sliders[slider].value = value
        axes.append(re.findall(r'<text[^>]*text-anchor="(?:end|middle)"[^>]*>[^<]*', w.html))
        assert w.sentence != before
    assert all(labels == axes[0] for labels in axes)
    assert "and chooses 5." in w.sentence  # with no value left out, the range covers the largest
