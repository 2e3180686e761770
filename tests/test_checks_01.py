"""Lesson 01's exercises: solutions pass; stubs and typical wrong answers fail, each with its own advice."""

import numpy as np
import torch
from exercises import both_ways

from qatlib.checks import lesson01 as lesson


def quantize(x, scale, bit_width):
    half = 2 ** (bit_width - 1)
    return torch.floor(x / scale + 0.5).clamp(-half, half - 1)


def affine(x_min, x_max, bit_width):
    x_min, x_max = min(x_min, 0.0), max(x_max, 0.0)
    scale = (x_max - x_min) / (2**bit_width - 1)
    return scale, np.floor(-x_min / scale + 0.5)


def shift(weights):
    return int(torch.ceil(torch.log2(weights.abs().max())))


def pixel(u8):
    return (u8.float() - 128) / 128


def clip(x, bit_width):
    tried = torch.linspace(0.02, 1, 99) * x.abs().max()
    return min(tried.tolist(), key=lambda c: lesson.clip_error(x, c, bit_width))


SOLUTIONS = [
    (lesson.check_quantize, quantize),
    (lesson.check_affine, affine),
    (lesson.check_shift, shift),
    (lesson.check_pixel, pixel),
    (lesson.check_clip, clip),
]
WRONG = [
    (lesson.check_quantize, lambda x, s, b: torch.round(x / s).clamp(-(2 ** (b - 1)), 2 ** (b - 1) - 1), "half up"),
    (lesson.check_quantize, lambda x, s, b: torch.floor(x / s + 0.5), "Clamp"),
    (lesson.check_quantize, lambda x, s, b: quantize(x, s, b) * s, "whole numbers"),
    (lesson.check_quantize, lambda x, s, b: quantize(x, s, b).clamp(min=-(2 ** (b - 1)) + 1), "lowest code"),
    (lesson.check_affine, lambda a, b, n: ((b - a) / 2**n, round(-a / ((b - a) / 2**n))), "gaps"),
    (lesson.check_affine, lambda a, b, n: ((b - a) / (2**n - 1), -a * (2**n - 1) / (b - a)), "whole number"),
    (lesson.check_affine, lambda a, b, n: ((b - a) / (2**n - 1), np.floor(-a * (2**n - 1) / (b - a) + 0.5)), "Widen"),
    (lesson.check_affine, lambda a, b, n: (affine(a, b, n)[0], 0), "zero point"),
    (lesson.check_shift, lambda w: torch.log2(w.abs().max()), "whole number"),
    (lesson.check_shift, lambda w: torch.floor(torch.log2(w.abs().max())), "round up"),
    (lesson.check_shift, lambda w: -shift(w), "sign"),
    (lesson.check_shift, lambda w: torch.floor(torch.log2(w.abs().max())) + 1, "exactly 2^n"),
    (lesson.check_pixel, lambda u: u.float() / 255, "Black must become -1"),
    (lesson.check_pixel, lambda u: u.float() / 127.5 - 1, "127/128"),
    (lesson.check_pixel, lambda u: u.float() - 128, "integer codes"),
    (lesson.check_pixel, lambda u: u.float(), "subtract 128"),
    (lesson.check_clip, lambda x, b: x.abs().max(), "smaller"),
    (lesson.check_clip, lambda x, b: 0.3 * x.abs().max(), "threshold"),
    (lesson.check_clip, lambda x, b: -1.0, "no sense"),
]
test_solution_passes, test_wrong_answer_is_advised, test_stub_and_broken_code_are_told_so = both_ways(SOLUTIONS, WRONG)


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
