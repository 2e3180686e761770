"""Lesson 06: other ways to write the right answers, and its drawings."""

import torch
from exercises import both_ways

from qatcourse import viz
from qatcourse.checks import lesson06 as lesson
from qatcourse.labs import break_it
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
    svg, sentence = viz.threshold_panel(values, 2, 2.0)
    assert svg.startswith("<svg") or "<svg" in svg
    chosen = ai8x.statistics.log2_threshold([ai8x.statistics.histogram(values)], 2.0)
    assert f"ai8x chooses {int(chosen)}" in sentence and "full scale 4," in sentence
    clipped = (values > 4).float().mean().item()
    assert f"{clipped:.2%} of the outputs are clipped" in sentence


def test_labels_of_small_numbers_stay_apart():
    fig, _ = viz.on_the_grid(torch.linspace(0, 1, 99), torch.zeros(9), 1 / 64, 1 / 8, "outputs")
    fig.canvas.draw()
    for axis in fig.axes:
        boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert all(left.x1 + 20 < right.x0 for left, right in zip(boxes, boxes[1:]))  # pixels
