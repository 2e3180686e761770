"""Checks of lesson 04: the range of a layer, its 8-bit activations, and what "loses 5 %" means."""

import math

import torch

from qatcourse.checks import Exercise, always
from qatcourse.checks.powers import power_of_two
from qatcourse.labs.ptq import percent_lost
from qatlib.quantizers import round_half_up

check_threshold = power_of_two(
    "my_threshold(largest): the smallest whole t for which 2^t is at least `largest`.",
    [(f"largest value {largest:g}", largest) for largest in (7.3, 18.0, 8.0, 0.4, 1.0, 0.0625)],
    praise="The range covers the largest value and wastes less than one bit.",
)


def _activation(x, threshold, rounding=round_half_up, lowest=-128, highest=127):
    step = 2.0**threshold / 128
    return rounding(x / step).clamp(lowest, highest) * step


_VALUES = torch.tensor([-9.0, -1.01, -0.3, 0.0, 0.004, 0.6, 0.999, 1.3, 5.0, 7.96, 8.0])
_TIES = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]) * 2.0**3 / 128

check_activation = Exercise(
    "my_activation(x, threshold): 8-bit codes over +-2^threshold, half up, back in real values.",
    _activation,
    [("range +-1", _VALUES, 0), ("range +-8", _VALUES, 3), ("range +-8, ties", _TIES, 3)],
    (lambda right, _, t: right / 2.0**t * 128, "these are the codes; multiply by the step again to return real values."),
    (lambda _, *case: _activation(*case, highest=math.inf, lowest=None),
     "rounded, but not clipped: a code of 8 bits lies in -128..127."),
    (lambda _, x, t: _activation(x, 0),
     "this is the range +-1, without calibration; with threshold {2} the range ends at 2^{2}."),
    (lambda _, *case: _activation(*case, torch.round),
     "ties go the wrong way: round() rounds half to even, the chip rounds half up, floor(q + 0.5)."),
    (lambda _, *case: _activation(*case, torch.floor), "floor alone loses half a step on average; add 0.5 before it."),
    (lambda _, x, t: _activation(x, t + 1),
     "the step is 2^threshold / 128: divide by it, round half up, clip to -128..127, multiply by it.", always),
    praise="With the right range the large values survive; with +-1 they were clipped.",
)  # fmt: skip

check_loss = Exercise(
    "my_loss(fp32, quantized): percent of the float network's score that quantization lost.",
    percent_lost,
    [(f"{a:g} -> {b:g}", a, b) for a, b in ((0.8, 0.76), (0.8, 0.4), (0.25, 0.24), (0.5, 0.51))],
    (lambda right, fp32, _: right * fp32,
     "these are percentage points; the claim is about a share of the float network's score: divide by fp32."),
    (lambda right, *_: right / 100, "this is a share; times 100 makes it percent."),
    (lambda right, *_: -right, "the sign: what is lost counts as positive, a gain as negative."),
    (lambda right, *_: 100 - right, "this is what was kept; lost is 100 minus that."),
    (lambda right, fp32, quantized: right * fp32 / quantized, "relative to the float network, not to the quantized one."),
    tolerance=1e-9,  # a few roundings of float64 numbers below 100
    praise="0.25 to 0.24 is one point, but 4 percent: always say which.",
)  # fmt: skip
