"""The exercise that four lessons have in their own words: the smallest power of two that covers some values."""

import math

import torch

from qatcourse.checks import Exercise, not_whole


def log2(*values) -> float:
    """The logarithm of the largest absolute value of all numbers and tensors."""
    return math.log2(max(torch.as_tensor(value).abs().max().item() for value in values))


def power_of_two(task: str, cases: list[tuple], *wrong, **options) -> Exercise:
    """To give the smallest whole t with 2^t at least all absolute values of a case. `wrong`: rows to try first; `options`: more."""
    return Exercise(
        task,
        lambda *values: math.ceil(log2(*values)),
        cases,
        *wrong,
        (lambda right, *_: 2.0**right, "you returned the range itself; its logarithm is wanted: the t in 2^t."),
        (lambda _, *values: log2(*values),
         "a shift is a whole number of bit positions: the chip can only shift. Which way do you round the logarithm?", not_whole),
        (lambda right, *_: -right, "right size, wrong sign: small values (all below a half) have a negative exponent."),
        (lambda right, *_: right - 1,
         "2^{got:g} does not reach the largest value, which would be clipped. The range must cover it: round the logarithm up.",
         lambda got, want, *_: got < want),
        (lambda right, *_: right + 1,
         "2^{want:g} already covers the largest value, with smaller steps; more throws a bit away. Look at a value of exactly 2^n.",
         lambda got, want, *_: got > want),
        **options,
    )  # fmt: skip
