"""Checks of lesson 03: the weights' power of two, batch norm fused, and the way from accumulator to output code."""

import numpy as np
import torch

from qatlib.ai8x import calc_weight_shift
from qatlib.checks import Report, compare


def check_weight_shift(my_weight_shift) -> Report:
    """`my_weight_shift(weight, bias)`: the smallest whole s with every |weight| and |bias| at most 2^s."""
    cases = [
        (torch.tensor([0.3, -0.2]), torch.tensor([0.1])),
        (torch.tensor([0.502, -0.1]), torch.tensor([0.0])),
        (torch.tensor([0.2, -0.499]), torch.tensor([0.05])),
        (torch.tensor([-3.0, 0.5]), torch.tensor([0.1])),
        (torch.tensor([0.2, 0.1]), torch.tensor([-5.0])),
    ]

    def expected(weight, bias):
        return calc_weight_shift(torch.cat([weight, bias]))[0] + 0.0

    def advice(case, want, got):
        weight, bias = case
        alone = calc_weight_shift(weight).item()
        if got == -want:
            return "the sign is turned round: s is the exponent of the full scale 2^s, and small weights have a negative one."
        if got == alone != want:
            return "the bias counts too: weights and bias share one power of two."
        if np.isclose(got, np.log2(torch.cat(case).abs().max())):
            return "a shift is a whole number; round up, so that the largest weight fits."
        if got == want - 1:
            return f"2^{got:g} is smaller than the largest value: round up, not down."
        return None

    labels = [f"largest |w| {w.abs().max():g}, largest |b| {b.abs().max():g}" for w, b in cases]
    return compare("my_weight_shift", my_weight_shift, expected, cases, advice, 0.0, "Five layers, five shifts.", labels)


def check_fuse(my_fuse) -> Report:
    """`my_fuse(weight, bias, mean, var, gamma, beta, eps)`: (weight, bias) that do convolution and batch norm in one."""
    random = torch.Generator().manual_seed(3)

    def case(channels, inputs):
        def normal(*shape):
            return torch.randn(*shape, generator=random)

        return (normal(channels, inputs, 3, 3), normal(channels), normal(channels), normal(channels).abs() + 0.1,
                normal(channels), normal(channels), 1e-5)  # fmt: skip

    def expected(weight, bias, mean, var, gamma, beta, eps):
        factor = gamma / torch.sqrt(var + eps)
        return weight * factor.view(-1, 1, 1, 1), (bias - mean) * factor + beta

    def flat(answer):
        def run(*arguments):
            parts = answer(*arguments)
            if parts is None:
                return None
            if not isinstance(parts, (tuple, list)) or len(parts) != 2:
                raise TypeError("it must return two tensors, weight and bias")
            return torch.cat([part.flatten() for part in parts])

        return run

    def advice(arguments, want, got):
        weight, bias, mean, var, gamma, beta, eps = arguments
        n = weight.numel()
        if np.allclose(got[:n], want[:n], atol=1e-4):
            if np.allclose(got[n:], ((bias - mean) * gamma / torch.sqrt(var + eps)).numpy(), atol=1e-4):
                return "the weights are right; the bias lacks beta, added at the end."
            return "the weights are right, the bias is not: subtract the mean, multiply by the same factor, add beta."
        if np.allclose(got[:n], (weight * (gamma / (var + eps)).view(-1, 1, 1, 1)).flatten().numpy(), atol=1e-4):
            return "divide by the square root of the variance, not by the variance."
        if np.allclose(got[:n], (weight / torch.sqrt(var + eps).view(-1, 1, 1, 1)).flatten().numpy(), atol=1e-4):
            return "gamma multiplies the weights, too."
        return "each output channel (dimension 0 of the weight) has its own factor: gamma / sqrt(var + eps), shaped (-1, 1, 1, 1)."

    answer = flat(my_fuse) if callable(my_fuse) else my_fuse
    # a handful of float32 roundings, relative error 2^-24 each, of values below 32
    return compare("my_fuse", answer, lambda *a: flat(expected)(*a), [case(4, 3), case(2, 5)], advice, 32 * 8 * 2**-24,
                   "Two layers fused: a convolution does what both did.", ["4 channels", "2 channels"])  # fmt: skip


def check_output_code(my_output_code) -> Report:
    """`my_output_code(accumulator, shift)`: ReLU layer, 8-bit weights. Codes 0..127 from integer accumulators.

    The accumulator is in units of 2^-14 (input code times weight code); `shift` is the effective output_shift e.
    """
    acc = torch.tensor([-5000, -64, 0, 63, 64, 65, 191, 192, 4000, 8128, 8191, 16320, 20000, 500000])
    cases = [(acc, 0), (acc, -2), (acc, 3)]

    def expected(accumulator, shift):
        return torch.floor(accumulator.double() * 2.0**shift / 128 + 0.5).clamp(0, 127)

    def exact(case):
        return (case[0].double() * 2.0 ** case[1] / 128).numpy()

    def advice(case, want, got):
        value = exact(case)
        if (got < 0).any():
            return "negative outputs: the layer has a ReLU."
        if got.max() > 127:
            return "codes above 127: saturate at the end."
        if np.array_equal(got, np.floor(value).clip(0, 127)):
            return "you drop the fraction; the chip adds a half first: floor(v + 0.5)."
        if np.array_equal(got, np.rint(value).clip(0, 127)):
            return "ties go to the even neighbour in torch.round; the chip's go up: floor(v + 0.5)."
        if np.array_equal(got, np.floor(case[0].numpy() * 2.0 ** -case[1] / 128 + 0.5).clip(0, 127)):
            return "the shift has the wrong direction: multiply by 2^shift."
        return "an accumulator of 128 is one output code before the shift: multiply by 2^shift / 128."

    labels = [f"shift {shift:+d}" for _, shift in cases]
    return compare("my_output_code", my_output_code, expected, cases, advice, 0.0, "Every accumulator, three shifts.", labels)
