"""Checks of lesson 01: a quantizer and its way back, a good clip threshold, an affine range, a power of two, and a pixel."""

import numpy as np
import torch

from qatcourse.checks import Exercise, NotYet, always, ask, judged, not_whole, number, numbers, row
from qatcourse.checks.powers import log2, power_of_two
from qatlib.ai8x import calc_weight_shift
from qatlib.quantizers import IntRange, affine_params, dequantize, quantize, round_half_up

_X = torch.tensor([-3.0, -1.01, -1.0, -0.625, -0.375, -0.125, -0.1, 0.0, 0.1, 0.125, 0.375, 0.625, 0.86, 0.9, 3.0])
_ROWS = torch.tensor([[0.25], [0.5], [0.125]])  # one scale per row


class _Piece(Exercise):
    """An exercise whose answer later cells calculate with: one that gives a list or an array passes, and hears of it."""

    def given(self, answer, label, *arguments):
        def seen(*copies):
            got = answer(*copies)
            self.kind = type(got).__name__
            return got

        return super().given(seen, label, *arguments)

    def judge(self, answer):
        report = super().judge(answer)
        if report.ok and self.kind not in ("Tensor", "Parameter"):
            report.message += f" Yours returns a {self.kind}; later cells need a tensor, so wrap it: torch.as_tensor(...)."
        return report


check_quantize = _Piece(
    "my_quantize(x, scale, bit_width) must give the signed integer codes of x: half up, zero point 0, clamped.",
    lambda x, scale, bits: quantize(x, scale, 0, bits),
    [(f"{bits} bits, scale {scale:g}", _X, scale, bits) for scale, bits in ((0.25, 3), (0.25, 4), (1 / 128, 8))]
    + [("4 bits, one scale per row", _X.view(3, 5), _ROWS, 4)],
    (lambda right, x, scale, bits: right * scale,
     "codes are whole numbers; some of yours are not. Did you return the fake-quantized values instead? Do not multiply back.",
     not_whole),
    (lambda _, x, scale, bits: round_half_up(x / scale).clamp(0, 2**bits - 1),
     "none of your codes is negative, but half of the signed codes are: clamp from -2^(b-1) on.", lambda got, *_: got.min() >= 0),
    (lambda _, x, scale, bits: round_half_up(x / scale),
     lambda got, want, label, x, scale, bits: f"some codes leave {want.min():g}..{want.max():g}: {bits} bits cannot store them. "
     "Clamp after rounding.",
     lambda got, want, *_: got.max() > want.max() or got.min() < want.min()),
    (lambda _, x, scale, bits: quantize(x, scale, 0, bits, rounding=torch.round),
     "ties differ: torch.round goes to the even neighbour, the chip rounds half up. Use torch.floor(v + 0.5)."),
    (lambda _, x, scale, bits: quantize(x, scale, 0, bits, rounding=torch.floor),
     "floor alone takes the mark below, not the nearest: add a half before it."),
    (lambda _, x, scale, bits: quantize(x, 1 / scale, 0, bits), "a code counts steps of `scale`: divide by it, do not multiply."),
    (lambda right, *_: right.clamp(min=right.min() + 1),
     lambda got, want, *_: f"the lowest code, {want.min():g}, is never used: signed codes reach one further down than up."),
    praise="Every code agrees, ties and ends included. This is the rule of the chip.",
    right=[lambda x, s, b: torch.floor(x.double() / s + 0.5).clamp(-(2 ** (b - 1)), 2 ** (b - 1) - 1).int(),
           lambda x, s, b: np.clip(np.floor(x.numpy() / np.asarray(s) + 0.5), -(2 ** (b - 1)), 2 ** (b - 1) - 1),
           lambda x, s, b: quantize(x, s, 0, b).tolist(),
           lambda x, s, b: torch.floor(torch.clamp(x / s, -(2 ** (b - 1)), 2 ** (b - 1) - 1) + 0.5)],
    piece=True,
)  # fmt: skip

check_dequantize = _Piece(
    "my_dequantize(q, scale) must give the real values of codes with zero point 0: scale times code.",
    lambda q, scale: scale * q,
    [("codes in float32, scale 0.25", torch.tensor([-128.0, -3, -1, 0, 1, 2, 127]), 0.25),
     ("codes in int8, scale 1/128", torch.tensor([-128, -3, -1, 0, 1, 2, 127], dtype=torch.int8), 1 / 128),
     ("one scale per row", torch.arange(-6.0, 6).view(3, 4), _ROWS)],
    (lambda _, q, scale: q, "these are the codes themselves; each mark lies `scale` further than the one before it."),
    (lambda _, q, scale: q / scale, "a code counts steps of `scale`: multiply by it, do not divide."),
    (lambda _, q, scale: q / 128, "1/128 is the scale of camera pixels; use the scale that is given."),
    (lambda right, *_: round_half_up(right), "the values are rounded; only codes are whole numbers.",
     lambda got, *_: not not_whole(got)),
    (lambda _, q, scale: scale * (q + 0.5), "half a step too high: code 0 stands for 0, so the marks lie at scale * q."),
    (lambda right, *_: right.abs(), "the signs are gone: negative codes stand for negative numbers.",
     lambda got, *_: got.min() >= 0),
    (lambda right, *_: -right, "only one product is needed: scale times code.", always),
    tolerance=1e-5,
    praise="Codes became real values again, and each lies on its mark.",
    right=[lambda q, s: q.double() * s, lambda q, s: (q * s).tolist(), lambda q, s: q.numpy() * np.asarray(s),
           lambda q, s: q / (1 / s)],
    piece=True,
)  # fmt: skip


def _searched(x, bits, parts=99):
    tried = torch.linspace(0.02, 1, parts) * x.abs().max()
    return min(tried.tolist(), key=lambda c: clip_error(x, c, bits))


@judged(
    "my_clip",
    "Within 5 % of the best threshold for all three signals.",
    wrong=[(lambda x, b: x.abs().max(), "smaller"), (lambda x, b: 0.3 * x.abs().max(), "larger threshold"),
           (lambda x, b: x.std(), "larger threshold"), (lambda x, b: _searched(x, b) / 2 ** (b - 1), "threshold, not the scale"),
           (lambda x, b: -1.0, "no sense"), (lambda x, b: 0, "no sense"), (lambda x, b: 1.1 * x.abs().max(), "at most"),
           (lambda x, b: x, "one number"), (lambda x, b: float("nan"), "no sense"), (lambda x, b: "half", "numbers")],
    right=[_searched, lambda x, b: torch.tensor([_searched(x, b)]), lambda x, b: np.float64(_searched(x, b, 50)),
           lambda x, b: [_searched(x.double(), b)]],
)  # fmt: skip
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
        if got < 2 * best / 2 ** (bits - 1):
            said = f"{label}: {got:.3g} is about the best scale; return the threshold, not the scale (threshold = scale * q_max)."
        yield row(label, f"{best:.3g}", f"{got:.3g}", times <= 1.05, **{"error / best": f"{times:.2f}"}), said


def clip_error(x: torch.Tensor, threshold: float, bit_width: int) -> float:
    """Mean squared error of a symmetric quantizer of `bit_width` bits whose largest code means `threshold`."""
    scale = threshold / max(IntRange(bit_width).q_max, 1)
    return (dequantize(quantize(x, scale, 0, bit_width, rounding=round_half_up), scale) - x).double().square().mean().item()


def _affine(low, high, bits):
    return tuple(float(value) for value in affine_params(low, high, bits, signed=False))


check_affine = Exercise(
    "my_affine(x_min, x_max, bit_width) must give (scale, zero_point) of unsigned codes, with an exact code for real 0.",
    lambda low, high, bits: affine_params(low, high, bits, signed=False),
    [(f"{low:g} to {high:g}, {bits} bits", low, high, bits)
     for low, high, bits in ((-1.0, 2.0, 8), (0.0, 6.0, 8), (0.5, 2.0, 4), (-2.0, -0.25, 4))],
    (lambda right, *_: right[::-1], "the two are swapped: return the scale first, then the zero point.",
     lambda got, want, *_: got.shape == want.shape and np.allclose(got[::-1], want)),
    (lambda right, low, *_: (right[0], -low / right[0]), "zero_point is a code, so it must be a whole number: round it.",
     lambda got, *_: not_whole(got[1])),
    (lambda _, low, high, bits: ((high - low) / 2**bits, round(-low / (high - low) * 2**bits)),
     lambda got, want, _, low, high, b: f"{2**b} codes have {2**b - 1} gaps between them: divide the range by the gaps.",
     lambda got, want, _, low, high, bits: np.isclose(got[0], (high - low) / 2**bits)),
    (lambda _, low, high, bits: ((high - low) / (2**bits - 1), round(-low / (high - low) * (2**bits - 1))),
     "this range does not hold 0, so padding has no exact code. Widen it first: min(x_min, 0) and max(x_max, 0).",
     lambda got, want, _, low, high, bits: not low <= 0 <= high and np.isclose(got[0], (high - low) / (2**bits - 1))),
    (lambda right, *_: (right[0], -right[1]), "the zero point has the wrong sign: it is a code from 0 to 2^b - 1.",
     lambda got, want, *_: got[1] < 0 and got[1] == -want[1]),
    (lambda right, low, high, bits: (right[0], right[1] - 2 ** (bits - 1)),
     "that zero point is for signed codes; here the codes are unsigned and begin at 0.",
     lambda got, want, _, low, high, bits: got[1] == want[1] - 2 ** (bits - 1)),
    (lambda right, *_: (right[0], 0), "the scale is right, the zero point is not: which code stands for real 0? "
     "Expected {want[1]:.0f}, got {got[1]:.0f}.", lambda got, want, *_: np.isclose(got[0], want[0], rtol=1e-6)),
    praise="Scales and zero points agree in float32, also for ranges that do not hold 0.",
    read=lambda answer: numbers(np.float32(numbers(answer))).ravel(),  # Python's float64 has digits that float32 has not
    right=[_affine, lambda *case: list(_affine(*case)), lambda *case: np.array(_affine(*case)),
           lambda *case: tuple(torch.tensor([v], dtype=torch.float64) for v in _affine(*case))],
)  # fmt: skip


check_shift = power_of_two(
    "my_shift(weights) must give the smallest whole s with max|w| <= 2^s.",
    [(f"largest |w| = {peak:g}", torch.tensor([peak / 9, -peak, peak / 70])) for peak in (0.03, 0.499, 0.502, 0.5, 1.0, 3.0)],
    (lambda _, weights: np.ceil(np.log2(weights.max().item())),
     "the largest magnitude here is that of a negative weight: take the absolute values first."),
    (lambda _, *values: float(np.ceil(log2(*values) * np.log(2))),
     "that is the natural logarithm; the base is 2: torch.log2 or math.log2."),
    praise="All shifts agree. 0.499 and 0.502 look alike, but the second needs twice the range.",
    right=[calc_weight_shift, lambda w: int(calc_weight_shift(w)), lambda w: calc_weight_shift(w).double(),
           lambda w: np.ceil(np.log2(w.abs().max().numpy())), lambda w: [float(calc_weight_shift(w))]],
    piece=True,
)  # fmt: skip

check_pixel = Exercise(
    "my_pixel(u8) must give the network's real input for camera bytes 0..255: (u8 - 128) / 128.",
    lambda u8: (u8.float() - 128) / 128,
    [("bytes 0..255", torch.arange(256, dtype=torch.uint8))],
    (lambda _, u8: (u8 - 128) / 128,
     "dark pixels come out bright: uint8 has no negative numbers, so 0 - 128 wraps around to 128. Convert to float first."),
    (lambda _, u8: u8.to(torch.int8) / 128,
     "128 must become 0, not -1: int8 ends at 127, so large bytes wrap around. Convert to float, then subtract."),
    (lambda _, u8: u8 / 128, "0 to almost 2: subtract 128 before you divide; black must become -1."),
    (lambda _, u8: u8.float(), "255 stays large: subtract 128, then divide.", lambda got, *_: got.max() > 128),
    (lambda right, _: right * 128, "these look like integer codes; the real value of a code is code / 128.",
     lambda got, *_: got.max() > 1.01),
    (lambda _, u8: u8 / 255, "0 to 1 is what most PyTorch code uses; the chip's bytes are signed. Black must become -1.",
     lambda got, *_: got.min() >= 0),
    (lambda _, u8: u8 / 127.5 - 1,
     "255 must not become 1: the largest code is 127, so the largest real value is 127/128. Divide by 128, not by 127.5."),
    (lambda _, u8: (u8.float() - 127) / 128, "everything is one code too high: the byte 128 stands for 0, so subtract 128."),
    praise="All 256 bytes agree: black is -1, 128 is 0, white is 127/128.",
    right=[lambda u8: (u8 ^ 128).view(torch.int8) / 128, lambda u8: (u8.numpy() - 128.0) / 128, lambda u8: u8.double() / 128 - 1,
           lambda u8: [(int(b) - 128) / 128 for b in u8]],
)  # fmt: skip
