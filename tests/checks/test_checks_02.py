"""Lesson 02's exercises and pictures: what no row of a table says."""

import pytest
import torch

from qatcourse import viz
from qatcourse.checks import lesson02 as lesson
from qatlib import quantizers


def changed_in_place(x, rounded):
    x.data = rounded.clone()
    return x


@pytest.mark.parametrize(
    ("check", "answer", "said"),
    [
        (lesson.check_straight_through, changed_in_place, "changes x itself"),
        (lesson.check_straight_through, lambda x, rounded: x.tolist(), "it returned a list"),
        (lesson.check_straight_through, lambda x, rounded: x.sum(), "it returned a tensor of shape ()"),
        (lesson.check_straight_through, lambda x, rounded: x.floor_(), "stopped with RuntimeError"),
        (lesson.check_clipped, lambda x, scale, low, high: (x / scale).detach().numpy(), "it returned a ndarray"),
    ],
)
def test_what_gives_no_tensor_of_its_own_is_told_so(check, answer, said):
    report = check(answer)
    assert not report.ok and said in report.message, report


@pytest.mark.parametrize("answer", [answer for answer in lesson.check_clipped.right if answer is not lesson._clamped_first])
def test_a_right_fake_quantizer_is_ai8xs_to_the_bit(answer):
    """Values and gradients, also beyond the range and half a step before its end."""
    one, start, sent = torch.ones(1), torch.randn(5000), torch.randn(5000)
    x, z = (start.clone().requires_grad_() for _ in range(2))
    yours, theirs = answer(x, 1 / 8, -8, 7), quantizers.FusedWeightQuantize.apply(one, one, 4, z)[0]
    (yours * sent).sum().backward()
    (theirs * sent).sum().backward()
    assert (x.grad == 0).sum() > 100 and torch.equal(yours.float(), theirs) and torch.equal(x.grad, z.grad)


def test_clamping_first_passes_and_differs_from_ai8x_half_a_step_beyond_the_end():
    assert lesson.check_clipped(lesson._clamped_first).ok
    x = torch.tensor([0.8, 0.9], requires_grad=True)  # 3 bits, scale 0.25: the codes end at 0.75
    lesson._clamped_first(x, 0.25, -4, 3).sum().backward()
    assert x.grad.tolist() == [0, 0]
    x.grad = None
    lesson.check_clipped.reference(x, 0.25, -4, 3).sum().backward()
    assert x.grad.tolist() == [1, 0]


def test_beyond_the_range_the_microscope_shows_no_clipped_gradient():
    assert "straight-through +0.380, clipped +0.000" in viz.microscope_panel(1.3)[1]
    assert "is seen as 0.75 on a grid of 0.25" in viz.microscope_panel(1.3)[1]


def test_a_target_on_a_code_lets_the_weight_rest():
    assert "with 0 jumps" in viz.descent_panel(0.1, 0.25)[1] and "with 0 jumps" not in viz.descent_panel(0.01, 0.45, steps=400)[1]


def test_captions_tell_float_weight_and_seen_value_apart():
    sentence = viz.oscillation({"from 1.6": viz.descend(1.6, 0.4, 0.25, 3)}, 0.4, 0.25)[1]
    assert "from 1.6: the float weight ends at 1.6, seen as 0.75, with 0 jumps" in sentence
