"""Checks of lesson 03: the weights' power of two, batch norm fused, and the way from accumulator to output code."""

import math

import numpy as np
import torch

from qatcourse.checks import Exercise, NotYet, always, numbers
from qatcourse.checks.powers import log2, power_of_two
from qatlib.quantizers import round_half_up

check_weight_shift = power_of_two(
    "my_weight_shift(weight, bias): the smallest whole s with every |weight| and |bias| at most 2^s.",
    [(f"largest |w| {max(map(abs, w)):g}, largest |b| {abs(b):g}", torch.tensor(w), torch.tensor([b]))
     for w, b in (([0.3, -0.2], 0.1), ([0.502, -0.1], 0.0), ([0.2, -0.499], 0.05), ([-3.0, 0.5], 0.1), ([0.2, 0.1], -5.0))],
    (lambda _, weight, bias: math.ceil(log2(weight)), "the bias counts too: weights and bias share one power of two."),
    praise="Five layers, five shifts.",
)  # fmt: skip


def _layers():
    random = torch.Generator().manual_seed(3)
    for channels, inputs in ((4, 3), (2, 5)):
        shapes = [(channels, inputs, 3, 3), *[(channels,)] * 5]
        weight, bias, mean, var, gamma, beta = (torch.randn(*shape, generator=random) for shape in shapes)
        yield f"{channels} channels", weight, bias, mean, var.abs() + 0.1, gamma, beta, 1e-5


def _two_tensors(parts):
    if not isinstance(parts, (tuple, list)) or len(parts) != 2:
        raise NotYet("must return numbers that fit; problem: it must return two tensors, weight and bias.")
    return np.concatenate([numbers(part).ravel() for part in parts])


def _fuse(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / torch.sqrt(var + eps)
    return weight * factor.view(-1, 1, 1, 1), (bias - mean) * factor + beta


def _output_code(accumulator, shift, rounding=round_half_up, lowest=0, highest=127):
    return rounding(accumulator.double() * 2.0**shift / 128).clamp(lowest, highest)


check_fuse = Exercise(
    "my_fuse(weight, bias, mean, var, gamma, beta, eps): (weight, bias) that do convolution and batch norm in one.",
    _fuse,
    _layers,
    (lambda right, w, b, mean, var, gamma, beta, eps: (right[0], right[1] - beta),
     "the weights are right; the bias lacks beta, added at the end."),
    (lambda right, w, b, *_: (right[0], b),
     "the weights are right, the bias is not: subtract the mean, multiply by the same factor, add beta.",
     lambda got, want, _, w, *rest: np.allclose(got[: w.numel()], want[: w.numel()], atol=1e-4)),
    (lambda _, w, b, mean, var, gamma, beta, eps: _fuse(w, b, mean, (var + eps) ** 2, gamma, beta, 0),
     "divide by the square root of the variance, not by the variance."),
    (lambda _, w, b, mean, var, gamma, beta, eps: _fuse(w, b, mean, var, gamma**0, beta, eps),
     "gamma multiplies the weights, too."),
    (lambda _, *case: case[:2],
     "each output channel (dimension 0 of the weight) has its own factor: gamma / sqrt(var + eps), shaped (-1, 1, 1, 1).", always),
    tolerance=32 * 8 * 2**-24,  # a handful of float32 roundings, relative error 2^-24 each, of values below 32
    read=_two_tensors,
    praise="Two layers fused: a convolution does what both did.",
)  # fmt: skip

# accumulators are in units of 2^-14 (input code times weight code); `shift` is the effective output_shift e
_ACCUMULATORS = torch.tensor([-5000, -64, 0, 63, 64, 65, 191, 192, 4000, 8128, 8191, 16320, 20000, 500000])

check_output_code = Exercise(
    "my_output_code(accumulator, shift): ReLU layer, 8-bit weights. Codes 0..127 from integer accumulators.",
    _output_code,
    [(f"shift {shift:+d}", _ACCUMULATORS, shift) for shift in (0, -2, 3)],
    (lambda _, *case: _output_code(*case, lowest=-128), "negative outputs: the layer has a ReLU.", lambda got, *_: got.min() < 0),
    (lambda _, *case: _output_code(*case, highest=None), "codes above 127: saturate at the end.", lambda got, *_: got.max() > 127),
    (lambda _, *case: _output_code(*case, torch.floor), "you drop the fraction; the chip adds a half first: floor(v + 0.5)."),
    (lambda _, *case: _output_code(*case, torch.round),
     "ties go to the even neighbour in torch.round; the chip's go up: floor(v + 0.5)."),
    (lambda _, acc, shift: _output_code(acc, -shift), "the shift has the wrong direction: multiply by 2^shift."),
    (lambda _, acc, shift: _output_code(acc, shift - 1),
     "an accumulator of 128 is one output code before the shift: multiply by 2^shift / 128.", always),
    praise="Every accumulator, three shifts.",
)  # fmt: skip
