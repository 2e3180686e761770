"""Lesson 01's exercises that are no table, and answers of other kinds that are right too."""

import numpy as np
import torch
from exercises import both_ways

from qatcourse.checks import lesson01 as lesson


def affine(x_min, x_max, bit_width):
    x_min, x_max = min(x_min, 0.0), max(x_max, 0.0)
    scale = (x_max - x_min) / (2**bit_width - 1)
    return scale, np.floor(-x_min / scale + 0.5)


def clip(x, bit_width):
    tried = torch.linspace(0.02, 1, 99) * x.abs().max()
    return min(tried.tolist(), key=lambda c: lesson.clip_error(x, c, bit_width))


SOLUTIONS = [(lesson.check_clip, clip)]
WRONG = [
    (lesson.check_clip, lambda x, b: x.abs().max(), "smaller"),
    (lesson.check_clip, lambda x, b: 0.3 * x.abs().max(), "larger threshold"),
    (lesson.check_clip, lambda x, b: -1.0, "no sense"),
    (lesson.check_clip, lambda x, b: x, "only"),
]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)


def test_expected_shift_is_the_layers_own():
    from qatlib.ai8x import calc_weight_shift

    assert lesson.check_shift(lambda w: calc_weight_shift(w)[0]).ok


def test_an_affine_answer_in_float64_or_float32_is_drawn_as_equal():
    def in_float32(a, b, n):
        scale, zero_point = affine(torch.tensor(a), torch.tensor(b), n)
        return torch.as_tensor(scale), zero_point

    for answer in (affine, in_float32):
        report = lesson.check_affine(answer)
        assert report.ok and "all are equal" in report.picture[1]
    assert not lesson.check_affine(lambda a, b, n: (affine(a, b, n)[0] * (1 + 1e-6), affine(a, b, n)[1])).ok
