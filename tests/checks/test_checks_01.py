"""Lesson 01's exercises: what no row of their tables says."""

import re

import torch

from qatcourse import viz
from qatcourse.checks import lesson01 as lesson


def test_expected_shift_is_the_layers_own():
    from qatlib.ai8x import calc_weight_shift

    weights = torch.randn(200, 9) * torch.logspace(-4, 1, 200).view(-1, 1)
    for w in weights:
        assert lesson.check_shift.reference(w) == calc_weight_shift(w).item()


def test_an_affine_answer_in_float64_or_float32_is_drawn_as_equal():
    for answer in lesson.check_affine.right:
        report = lesson.check_affine(answer)
        assert report.ok and "all are equal" in report.picture[1]
    scale, zero_point = 1 + 1e-6, lambda *case: lesson.check_affine.reference(*case)[1]
    assert not lesson.check_affine(lambda *case: (lesson.check_affine.reference(*case)[0] * scale, zero_point(*case))).ok


def test_a_piece_that_gives_a_list_passes_and_hears_that_a_tensor_is_needed():
    as_list = lesson.check_quantize(lambda *case: lesson.check_quantize.reference(*case).tolist())
    assert as_list.ok and "Yours returns a list" in as_list.message
    assert "Yours" not in lesson.check_quantize(lesson.check_quantize.reference).message


def test_the_sliders_picture_keeps_its_axes():
    """Whatever the bits and the range, the labels of both axes are the same; the sentence says what moved."""
    weights = torch.randn(3000)
    settings = [(bits, clip) for bits in (1, 2, 4, 8) for clip in (20, 60, 100)]
    labels = set()
    for bits, clip in settings:
        svg, sentence = viz.quantizer_panel(weights, bits, clip)
        labels.add(tuple(re.findall(r'<text x="([\d.]+)" y="([\d.]+)" font-size="11"[^>]*>([^<]*)', svg)))
        assert f"{bits} bits, range at {clip} % of the largest" in sentence and len(sentence) < 150
    assert len(labels) == 1


def test_clipping_a_little_at_few_bits_gives_a_better_ratio():
    weights = torch.randn(3000)
    ratio = {clip: float(viz.quantizer_panel(weights, 4, clip)[1].split("SQNR ")[1].split(" dB")[0]) for clip in (20, 70, 100)}
    assert ratio[70] > ratio[100] > ratio[20]
