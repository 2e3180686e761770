"""Checks of lesson 01: a quantizer, an affine range, a power of two, a pixel, and a good clip threshold."""

import numpy as np
import torch

from qatlib.checks import UNTOUCHED, Report, compare, failed, no_function, numbers
from qatlib.quantizers import IntRange, affine_params, dequantize, quantize, round_half_up

_X = torch.tensor([-3.0, -1.01, -1.0, -0.625, -0.375, -0.125, -0.1, 0.0, 0.1, 0.125, 0.375, 0.625, 0.86, 0.9, 3.0])


def check_quantize(my_quantize) -> Report:
    """`my_quantize(x, scale, bit_width)` must give the signed integer codes of x: half up, zero point 0, clamped."""

    def advice(case, want, got):
        x, scale, bit_width = case
        codes = IntRange(bit_width)
        if np.abs(got - np.round(got)).max() > 0:
            return (
                "codes are whole numbers; some of yours are not. Did you return the fake-quantized values instead? Do not "
                "multiply back."
            )
        if got.max() > codes.q_max or got.min() < codes.q_min:
            return f"some codes leave {codes.q_min}..{codes.q_max}: {bit_width} bits cannot store them. Clamp after rounding."
        if np.array_equal(got, np.clip(torch.round(x / scale).numpy(), codes.q_min, codes.q_max)):
            return "ties differ: torch.round goes to the even neighbour, the chip rounds half up. Use torch.floor(v + 0.5)."
        if got.min() > codes.q_min and want.min() == codes.q_min:
            return f"the lowest code, {codes.q_min}, is never used: signed codes reach one further down than up."
        return None

    cases = [(_X, 0.25, 3), (_X, 0.25, 4), (_X, 1 / 128, 8)]
    labels = [f"{bits} bits, scale {scale:g}" for _, scale, bits in cases]
    praise = "Every code agrees, ties and ends included. This is the rule of the chip."
    return compare("my_quantize", my_quantize, lambda x, s, b: quantize(x, s, 0, b), cases, advice, praise=praise, labels=labels)


def check_affine(my_affine) -> Report:
    """`my_affine(x_min, x_max, bit_width)` must give (scale, zero_point) of unsigned codes, with an exact code for real 0."""

    def expected(x_min, x_max, bit_width):
        return affine_params(x_min, x_max, bit_width, signed=False)

    def advice(case, want, got):
        x_min, x_max, bit_width = case
        if got[1] != np.round(got[1]):
            return "zero_point is a code, so it must be a whole number: round it."
        if np.isclose(got[0], (x_max - x_min) / 2**bit_width):
            return f"{2**bit_width} codes have {2**bit_width - 1} gaps between them: divide the range by the gaps."
        if (x_min > 0 or x_max < 0) and np.isclose(got[0], (x_max - x_min) / (2**bit_width - 1)):
            return "this range does not hold 0, so padding has no exact code. Widen it first: min(x_min, 0) and max(x_max, 0)."
        if np.isclose(got[0], want[0], rtol=1e-6):
            return (
                f"the scale is right, the zero point is not: which code stands for real 0? Expected {want[1]:.0f}, got "
                f"{got[1]:.0f}."
            )
        return None

    cases = [(-1.0, 3.0, 8), (0.0, 6.0, 8), (0.5, 2.0, 4), (-2.0, -0.25, 4)]
    labels = [f"{low:g} to {high:g}, {bits} bits" for low, high, bits in cases]

    def in_float32(*case):
        """The learner's numbers as the course keeps them: Python's float64 has digits that float32 does not."""
        got = my_affine(*case)
        return None if got is None else np.float32(numbers(got))

    praise = "Scales and zero points agree in float32, also for ranges that do not hold 0."
    answer = in_float32 if callable(my_affine) else my_affine
    return compare("my_affine", answer, expected, cases, advice, praise=praise, labels=labels)


def check_shift(my_shift) -> Report:
    """`my_shift(weights)` must give the smallest whole s with max|w| <= 2^s, as ai8x's weight shift."""

    def expected(weights):
        return float(np.ceil(np.log2(weights.abs().max().item())))

    def advice(case, want, got):
        if got != np.round(got):
            return "a shift is a whole number of bit positions; take floor or ceil of the logarithm (which one?)."
        if got == want - 1:
            return f"with s = {got:.0f} the largest weight exceeds 2^s and would be clipped. The range must cover it: round up."
        if got == -want:
            return "right size, wrong sign: small weights (below a half) have a negative shift."
        if got == want + 1:
            return f"2^{want:.0f} already covers the largest weight; one more throws a bit away. Look at a weight of exactly 2^n."
        return None

    peaks = (0.499, 0.502, 0.5, 1.0, 0.03, 3.0)
    cases = [(torch.tensor([peak / 3, -peak, peak / 7]),) for peak in peaks]
    praise = "All shifts agree. 0.499 and 0.502 look alike, and cost a bit of difference."
    labels = [f"largest |w| = {peak:g}" for peak in peaks]
    return compare("my_shift", my_shift, expected, cases, advice, praise=praise, labels=labels)


def check_pixel(my_pixel) -> Report:
    """`my_pixel(u8)` must give the network's real input for camera bytes 0..255: (u8 - 128) / 128."""
    pixels = torch.arange(256, dtype=torch.uint8)

    def advice(case, want, got):
        if got.min() >= 0 and got.max() <= 1:
            return "0 to 1 is what most PyTorch code uses; the chip's bytes are signed. Black must become -1."
        if np.abs(got).max() > 1:
            if np.abs(got).max() > 128:
                return "255 stays large: subtract 128 in a signed or float type (uint8 wraps around), then divide."
            return "these look like integer codes; the real value of a code is code / 128."
        if np.isclose(got.max(), 1.0):
            return (
                "255 must not become 1: the largest code is 127, so the largest real value is 127/128. Divide by 128, not "
                "by 127.5."
            )
        return None

    praise = "All 256 bytes agree: black is -1, 128 is 0, white is 127/128."
    labels = ["bytes 0..255"]
    return compare("my_pixel", my_pixel, lambda u: (u.float() - 128) / 128, [(pixels,)], advice, praise=praise, labels=labels)


def check_clip(my_clip) -> Report:
    """`my_clip(x, bit_width)` must give a clip threshold whose squared error is within 5 % of the best of a fine search."""
    if not callable(my_clip):
        return no_function("my_clip", my_clip)
    torch.manual_seed(1)
    signals = {"bell-shaped, 4 bits": (torch.randn(20_000), 4), "long-tailed, 4 bits": (torch.randn(20_000) ** 3, 4)}
    signals["flat, 8 bits"] = (torch.rand(20_000) * 2 - 1, 8)
    rows = []
    for label, (x, bits) in signals.items():
        try:
            answer = my_clip(x.clone(), bits)
            if answer is None:
                return failed("my_clip", UNTOUCHED.format(name="my_clip"))
            got = float(numbers(answer))
        except Exception as problem:
            return failed("my_clip", f"not yet: my_clip stopped with {type(problem).__name__}: {problem}.")
        peak = x.abs().max().item()
        if not 0 < got <= peak * 1.001:
            return failed("my_clip", f"not yet: a threshold of {got:g} makes no sense here; choose above 0, at most {peak:.3g}.")
        best = min(np.linspace(0.02, 1, 197) * peak, key=lambda c: clip_error(x, c, bits))
        ratio = clip_error(x, got, bits) / clip_error(x, best, bits)
        row = {"case": label, "expected": f"{best:.3g}", "got": f"{got:.3g}", "error / best": f"{ratio:.2f}"}
        rows.append({**row, "ok": "yes" if ratio <= 1.05 else "no"})
    worst = next((row for row in rows if row["ok"] == "no"), None)
    if worst is None:
        return Report("my_clip", True, "Within 5 % of the best threshold for all three signals.", rows)
    side = "smaller" if float(worst["got"]) > float(worst["expected"]) else "larger"
    said = (
        f"{worst['case']}: your error is {worst['error / best']} times the best one; try a {side} threshold. Search: try "
        "many, keep the best."
    )
    return Report("my_clip", False, f"not yet: {said}", rows)


def clip_error(x: torch.Tensor, threshold: float, bit_width: int) -> float:
    """Mean squared error of a symmetric quantizer of `bit_width` bits whose largest code means `threshold`."""
    scale = threshold / max(IntRange(bit_width).q_max, 1)
    return (dequantize(quantize(x, scale, 0, bit_width, rounding=round_half_up), scale) - x).double().square().mean().item()
