"""Checks of lesson 04: the range of a layer, its 8-bit activations, and what "loses 5 %" means."""

import math

import numpy as np
import torch

from qatlib.checks import Report, compare
from qatlib.ptq import percent_lost
from qatlib.quantizers import round_half_up


def check_threshold(my_threshold) -> Report:
    """`my_threshold(largest)`: the smallest whole t for which 2^t is at least `largest`."""

    def expected(largest):
        return math.ceil(math.log2(largest))

    def advice(case, want, got):
        (largest,) = case
        if np.isclose(got, 2.0**want):
            return "you returned the range itself; its logarithm is wanted: the t in 2^t."
        if got != np.floor(got):
            return "t must be whole: the chip can only shift. Which way do you round it?"
        if 2.0**got < largest:
            return f"2^{got:g} = {2.0**got:g} does not reach {largest:g}; values above it would be clipped. Round the logarithm up."
        if got > want:
            return f"2^{got:g} = {2.0**got:g} covers {largest:g}, but 2^{want:g} does too, with steps half as large."
        return None

    cases = [(7.3,), (18.0,), (8.0,), (0.4,), (1.0,), (0.0625,)]
    praise = "The range covers the largest value and wastes less than one bit."
    return compare("my_threshold", my_threshold, expected, cases, advice, 0.0, praise, [f"largest value {c[0]:g}" for c in cases])


def check_activation(my_activation) -> Report:
    """`my_activation(x, threshold)`: 8-bit codes over +-2^threshold, half up, back in real values."""

    def expected(x, threshold):
        step = 2.0**threshold / 128
        return round_half_up(x / step).clamp(-128, 127) * step

    def advice(case, want, got):
        x, threshold = case
        step = 2.0**threshold / 128
        codes = want / step
        if np.allclose(got, codes):
            return "these are the codes; multiply by the step again to return real values."
        if np.allclose(got, (round_half_up(x / step) * step).numpy()):
            return "rounded, but not clipped: a code of 8 bits lies in -128..127."
        if threshold and np.allclose(got, (round_half_up(x * 128).clamp(-128, 127) / 128).numpy()):
            return f"this is the range +-1, without calibration; with threshold {threshold} the range ends at {2.0**threshold:g}."
        if np.allclose(got, np.clip(np.rint((x / step).numpy()), -128, 127) * step):
            return "ties go the wrong way: round() rounds half to even, the chip rounds half up, floor(q + 0.5)."
        if np.allclose(got, np.clip(np.floor((x / step).numpy()), -128, 127) * step):
            return "floor alone loses half a step on average; add 0.5 before it."
        return "the step is 2^threshold / 128: divide by it, round half up, clip to -128..127, multiply by it."

    x = torch.tensor([-9.0, -1.01, -0.3, 0.0, 0.004, 0.6, 0.999, 1.3, 5.0, 7.96, 8.0])
    ties = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]) * 2.0**3 / 128
    cases = [(x, 0), (x, 3), (ties, 3)]
    labels = ["range +-1", "range +-8", "range +-8, ties"]
    praise = "With the right range the large values survive; with +-1 they were clipped."
    return compare("my_activation", my_activation, expected, cases, advice, 0.0, praise, labels)


def check_loss(my_loss) -> Report:
    """`my_loss(fp32, quantized)`: percent of the float network's score that quantization lost."""

    def advice(case, want, got):
        fp32, quantized = case
        if np.isclose(got, 100 * (fp32 - quantized)):
            return "these are percentage points; the claim is about a share of the float network's score: divide by fp32."
        if np.isclose(got, want / 100):
            return "this is a share; times 100 makes it percent."
        if np.isclose(got, -want):
            return "the sign: what is lost counts as positive, a gain as negative."
        if np.isclose(got, 100 * quantized / fp32):
            return "this is what was kept; lost is 100 minus that."
        if quantized and np.isclose(got, 100 * (fp32 - quantized) / quantized):
            return "relative to the float network, not to the quantized one."
        return None

    cases = [(0.8, 0.76), (0.8, 0.4), (0.25, 0.24), (0.5, 0.51)]
    # a few roundings of float64 numbers below 100
    praise = "0.25 to 0.24 is one point, but 4 percent: always say which."
    return compare("my_loss", my_loss, percent_lost, cases, advice, 1e-9, praise, [f"{a:g} -> {b:g}" for a, b in cases])
