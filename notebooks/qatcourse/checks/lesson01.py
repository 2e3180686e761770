"""Checks of lesson 01: a quantizer, an affine range, a power of two, a pixel, and a good clip threshold."""

import numpy as np
import torch

from qatcourse.checks import Exercise, NotYet, ask, judged, not_whole, number, numbers, row
from qatcourse.checks.powers import power_of_two
from qatlib.quantizers import IntRange, affine_params, dequantize, quantize, round_half_up

_X = torch.tensor([-3.0, -1.01, -1.0, -0.625, -0.375, -0.125, -0.1, 0.0, 0.1, 0.125, 0.375, 0.625, 0.86, 0.9, 3.0])

check_quantize = Exercise(
    "my_quantize(x, scale, bit_width) must give the signed integer codes of x: half up, zero point 0, clamped.",
    lambda x, scale, bits: quantize(x, scale, 0, bits),
    [(f"{bits} bits, scale {scale:g}", _X, scale, bits) for scale, bits in ((0.25, 3), (0.25, 4), (1 / 128, 8))],
    (lambda right, x, scale, bits: right * scale,
     "codes are whole numbers; some of yours are not. Did you return the fake-quantized values instead? Do not multiply back.",
     not_whole),
    (lambda _, x, scale, bits: round_half_up(x / scale),
     "some codes leave {want[0]:g}..{want[14]:g}: {3} bits cannot store them. Clamp after rounding.",
     lambda got, want, *_: got.max() > want.max() or got.min() < want.min()),
    (lambda _, x, scale, bits: quantize(x, scale, 0, bits, rounding=torch.round),
     "ties differ: torch.round goes to the even neighbour, the chip rounds half up. Use torch.floor(v + 0.5)."),
    (lambda right, *_: right.clamp(min=right.min() + 1),
     "the lowest code, {want[0]:g}, is never used: signed codes reach one further down than up."),
    praise="Every code agrees, ties and ends included. This is the rule of the chip.",
)  # fmt: skip

check_affine = Exercise(
    "my_affine(x_min, x_max, bit_width) must give (scale, zero_point) of unsigned codes, with an exact code for real 0.",
    lambda low, high, bits: affine_params(low, high, bits, signed=False),
    [(f"{low:g} to {high:g}, {bits} bits", low, high, bits)
     for low, high, bits in ((-1.0, 3.0, 8), (0.0, 6.0, 8), (0.5, 2.0, 4), (-2.0, -0.25, 4))],
    (lambda right, low, *_: (right[0], -low / right[0]), "zero_point is a code, so it must be a whole number: round it.",
     lambda got, *_: not_whole(got[1])),
    (lambda _, low, high, bits: ((high - low) / 2**bits, round(-low / (high - low) * 2**bits)),
     lambda got, want, _, low, high, b: f"{2**b} codes have {2**b - 1} gaps between them: divide the range by the gaps.",
     lambda got, want, _, low, high, bits: np.isclose(got[0], (high - low) / 2**bits)),
    (lambda _, low, high, bits: ((high - low) / (2**bits - 1), round(-low / (high - low) * (2**bits - 1))),
     "this range does not hold 0, so padding has no exact code. Widen it first: min(x_min, 0) and max(x_max, 0).",
     lambda got, want, _, low, high, bits: not low <= 0 <= high and np.isclose(got[0], (high - low) / (2**bits - 1))),
    (lambda right, *_: (right[0], 0), "the scale is right, the zero point is not: which code stands for real 0? "
     "Expected {want[1]:.0f}, got {got[1]:.0f}.", lambda got, want, *_: np.isclose(got[0], want[0], rtol=1e-6)),
    praise="Scales and zero points agree in float32, also for ranges that do not hold 0.",
    read=lambda answer: numbers(np.float32(numbers(answer))),  # Python's float64 has digits that the course's float32 has not
)  # fmt: skip

check_shift = power_of_two(
    "my_shift(weights) must give the smallest whole s with max|w| <= 2^s, as ai8x's weight shift.",
    [(f"largest |w| = {peak:g}", torch.tensor([peak / 3, -peak, peak / 7])) for peak in (0.499, 0.502, 0.5, 1.0, 0.03, 3.0)],
    praise="All shifts agree. 0.499 and 0.502 look alike, and cost a bit of difference.",
)

check_pixel = Exercise(
    "my_pixel(u8) must give the network's real input for camera bytes 0..255: (u8 - 128) / 128.",
    lambda u8: (u8.float() - 128) / 128,
    [("bytes 0..255", torch.arange(256, dtype=torch.uint8))],
    (lambda _, u8: u8, "255 stays large: subtract 128 in a signed or float type (uint8 wraps around), then divide.",
     lambda got, *_: got.max() > 128),
    (lambda right, _: right * 128, "these look like integer codes; the real value of a code is code / 128.",
     lambda got, *_: got.max() > 1),
    (lambda _, u8: u8 / 255, "0 to 1 is what most PyTorch code uses; the chip's bytes are signed. Black must become -1.",
     lambda got, *_: got.min() >= 0),
    (lambda _, u8: u8 / 127.5 - 1,
     "255 must not become 1: the largest code is 127, so the largest real value is 127/128. Divide by 128, not by 127.5."),
    praise="All 256 bytes agree: black is -1, 128 is 0, white is 127/128.",
)  # fmt: skip


@judged("my_clip", "Within 5 % of the best threshold for all three signals.")
def check_clip(my_clip):
    """my_clip(x, bit_width) must give a clip threshold whose squared error is within 5 % of the best of a fine search."""
    random = torch.Generator().manual_seed(1)
    bell, long = torch.randn(20_000, generator=random), torch.randn(20_000, generator=random) ** 3
    flat = torch.rand(20_000, generator=random) * 2 - 1
    for label, x, bits in (("bell-shaped, 4 bits", bell, 4), ("long-tailed, 4 bits", long, 4), ("flat, 8 bits", flat, 8)):
        got, peak = ask(my_clip, x, bits, read=number), x.abs().max().item()
        if not 0 < got <= peak * 1.001:
            raise NotYet(f"gave a threshold of {got:g}, which makes no sense here; choose above 0, at most {peak:.3g}.")
        best = min(np.linspace(0.02, 1, 197) * peak, key=lambda c: clip_error(x, c, bits))  # noqa: B023
        times, side = clip_error(x, got, bits) / clip_error(x, best, bits), "smaller" if got > best else "larger"
        said = f"{label}: your error is {times:.2f} times the best one; try a {side} threshold. Search: try many, keep the best."
        yield row(label, f"{best:.3g}", f"{got:.3g}", times <= 1.05, **{"error / best": f"{times:.2f}"}), said


def clip_error(x: torch.Tensor, threshold: float, bit_width: int) -> float:
    """Mean squared error of a symmetric quantizer of `bit_width` bits whose largest code means `threshold`."""
    scale = threshold / max(IntRange(bit_width).q_max, 1)
    return (dequantize(quantize(x, scale, 0, bit_width, rounding=round_half_up), scale) - x).double().square().mean().item()
