"""Checks of lesson 07: an integer layer, accumulator to code, two codes in one byte, and the first layer that differs."""

import numpy as np
import torch
import torch.nn.functional as F

from qatcourse.checks import UNTOUCHED, Exercise, NotYet, always, ask, judged, not_whole, row
from qatcourse.labs.pixel import first_difference
from qatlib.integer.compact import unpack
from qatlib.integer.engine import round_shift
from qatlib.quantizers import round_half_up


def _integer_layer(x, weight, bias, e, padding=1, unit=128, half=0.5, low=0, high=127):
    accumulator = F.conv2d(x.double(), weight.double(), unit * bias.double(), padding=padding)
    return torch.floor(accumulator * 2.0**e / 128 + half).clamp(low, high)


def _layers():
    random = torch.Generator().manual_seed(7)
    codes = lambda *shape: torch.randint(-128, 128, shape, generator=random, dtype=torch.int8)  # noqa: E731
    for e in (-4, -2, 1):
        weight, bias = codes(5, 6, 3, 3), codes(5)
        yield f"e = {e:+d}", codes(2, 6, 8, 8).clamp(min=0), weight if e < 0 else weight // 8, bias, e


check_integer_layer = Exercise(
    "my_integer_layer(x, weight, bias, e): int8 codes (N, C, H, W) of a 3x3 layer with padding 1 and ReLU, to output codes 0..127.",
    _integer_layer,
    _layers,
    (lambda _, *case: _integer_layer(*case, unit=0), "the bias is missing: the accumulator starts at 128 times its code."),
    (lambda _, *case: _integer_layer(*case, unit=1),
     "products are in units of 1/128 x 1/128, bias codes in 1/128: multiply the bias by 128 before it is added."),
    (lambda _, *case: _integer_layer(*case, half=0), "half a step is missing: the chip adds it before it drops the fraction."),
    (lambda _, *case: _integer_layer(*case, low=-128), "negative outputs: the layer has a ReLU.", lambda got, *_: got.min() < 0),
    (lambda _, *case: _integer_layer(*case, high=None), "codes above 127: saturate at the end.", lambda got, *_: got.max() > 127),
    (lambda _, x, w, b, e: _integer_layer(x, w, b, -e), "the shift goes the wrong way: multiply by 2^e."),
    (lambda _, x, w, b, e: _integer_layer(x, w, b, e + 7).clamp(max=127), "divide by 128 at the end: an output code is 1/128."),
    (lambda _, x, w, b, e: _integer_layer(x, w.flip(-1), b, e),
     "products, bias, shift, ReLU, half up, saturation, in that order; widen int8 first, or sums overflow.", always),
    praise="Every code agrees. Integers in, integers out: this is the layer that the chip computes.",
    right=[lambda x, w, b, e: _integer_layer(x, w, b, e).to(torch.int8), lambda *case: _integer_layer(*case).float().numpy(),
           lambda x, w, b, e: round_half_up((F.conv2d(x.double(), w.double(), padding=1) + 128.0 * b.view(-1, 1, 1)) * 2.0**e / 128)
           .relu().clamp(max=127)],
    piece=True,
)  # fmt: skip

ACCUMULATORS = np.array([-40000, -16385, -1345, -1344, -193, -192, -64, -1, 0, 63, 64, 65, 192, 193, 1344, 16192, 16385, 40000])

check_narrow = Exercise(
    "my_narrow(accumulator, n) must give int8 codes: floor(accumulator / 2^n + 1/2), saturated to -128..127.",
    lambda accumulator, n: np.clip(round_shift(accumulator, n), -128, 127),
    [(f"n = {n}", ACCUMULATORS, n) for n in (7, 5, 1)],
    (lambda _, accumulator, n: accumulator / 2**n, "codes are whole numbers; use integer arithmetic, >> instead of /.", not_whole),
    (lambda _, *case: round_shift(*case),
     "some codes leave -128..127: saturate (np.clip) after the shift, as the chip does. int8 would wrap around.",
     lambda got, *_: got.max() > 127 or got.min() < -128),
    (lambda _, accumulator, n: np.clip(accumulator >> n, -128, 127),
     "that is truncation: half of all codes come out one too low. Add half a step, 1 << (n - 1), before the shift."),
    (lambda _, accumulator, n: np.clip(np.round(accumulator / 2**n), -128, 127),
     "ties differ: NumPy rounds half to even, the chip adds half and drops bits, so halves go up."),
    (lambda right, *_: right.clip(-127, 127), "the lowest code is -128, one further down than up.",
     lambda got, *_: np.abs(got).max() == 127),
    (lambda _, accumulator, n: np.clip((accumulator + (1 << n)) >> n, -128, 127),
     "a whole step is added before the shift, not half a one: 1 << (n - 1)."),
    praise="Every code agrees, ties and both ends included. This line is the whole output stage of the chip.",
    right=[lambda a, n: [min(max((int(v) + (1 << n - 1)) >> n, -128), 127) for v in a],
           lambda a, n: np.clip(np.floor(a / 2**n + 0.5), -128, 127).astype(np.float32),
           lambda a, n: torch.floor(torch.tensor(a) / 2.0**n + 0.5).clamp(-128, 127)],
)  # fmt: skip


check_unpack = Exercise(
    "my_unpack(raw) must give the two signed 4-bit codes of each byte, the lower half first: uint8 (n,) -> (2n,).",
    lambda raw: unpack(raw, 4, (2 * len(raw),)),
    [("bytes 0..255", np.arange(256, dtype=np.uint8))],
    (lambda right, _: right & 15,
     "codes above 7: fields of 8 to 15 stand for negative codes (two's complement); subtract 16 from those.",
     lambda got, *_: got.max() > 7),
    (lambda right, _: right.reshape(-1, 2)[:, ::-1].ravel(),
     "the two codes of each byte are swapped: the first code lies in the lower four bits."),
    (lambda right, _: right.reshape(-1, 2).T.ravel(),
     "all lower halves come first, then all upper ones; they belong side by side, byte after byte."),
    (lambda _, raw: np.repeat(((raw ^ 8) & 15).astype(int) - 8, 2),
     "the lower half stands in both places; shift right by 4 for the upper."),
    (lambda right, _: right.clip(min=0), "codes are signed: fields of 8 to 15 stand for -8 to -1.", lambda got, *_: got.min() >= 0),
    (lambda right, _: right / 8, "codes are whole numbers: no division.", not_whole),
    praise="All 256 bytes agree. This is how a 4-bit layer takes half the memory.",
    right=[lambda raw: [((b >> s & 15) ^ 8) - 8 for b in raw.tolist() for s in (0, 4)],
           lambda raw: torch.tensor(unpack(raw, 4, (2 * len(raw),))).float()],
)  # fmt: skip


def _puzzles() -> list[tuple[str, dict, dict]]:
    """Triples of description and {layer: codes}, expected and got."""
    rng = np.random.default_rng(7)
    names = ["input", "conv1", "up2", "conv3", "head"]  # not in alphabetical order
    good = {name: rng.integers(-128, 128, (4, 6, 6)).astype(np.int8) for name in names}
    late = {name: value if name in names[:2] else np.roll(value, 1) for name, value in good.items()}
    one = {name: value.copy() for name, value in good.items()}
    one["conv1"][2, 3, 4] ^= 1
    one["head"][:] = 0
    return [("wrong from up2 on", good, late), ("all equal", good, good), ("one code in conv1, all of head", good, one)]


def _differing(expected, got):
    return [name for name in expected if not np.array_equal(expected[name], got[name])]


@judged(
    "my_first_difference", "Found each time. Everything after the first difference is only its echo.",
    wrong=[
        (lambda e, g: (_differing(e, g) or ["input"])[0], "return None when no layer differs"),
        (lambda e, g: (_differing(e, g) or [None])[-1], "the last difference"),
        (lambda e, g: next((n for n in e if abs(e[n].mean() - g[n].mean()) > 0.1), None), "exactly"),
        (lambda e, g: next((n for n in sorted(e) if not np.array_equal(e[n], g[n])), None), "not in alphabetical order"),
        (lambda e, g: _differing(e, g), "the name of one layer"),
        (lambda e, g: len(_differing(e, g)), "the name of one layer"),
        (lambda e, g: [value.sort() for value in e.values()] and (_differing(e, g) or [None])[0], "exactly"),
    ],
    right=[lambda e, g: (_differing(e, g) or [None])[0],
           lambda e, g: next((a for a, b in zip(e, g) if (np.asarray(e[a]) - g[b].astype(int)).any()), None)],
)  # fmt: skip
def check_first_difference(my_first_difference):
    """my_first_difference(expected, got) must name the first layer whose codes are not all equal, or return None."""
    lines = []
    for case, *pair in _puzzles():
        # as text, since None is an answer here
        want, got = str(first_difference(*pair)), ask(lambda *two: str(my_first_difference(*two)), *pair, read=str)
        lines.append((row(case, want, got, got == want), _advice(case, want, got)))
    if all(one["got"] == "None" for one, _ in lines):
        raise NotYet(UNTOUCHED)
    return lines


def _advice(case: str, want: str, got: str) -> str:
    if want == "None":
        return "two equal networks: return None when no layer differs."
    if want == "conv1" and got in ("None", "head"):
        return "one code in conv1 differs by one, and you missed it: compare all codes exactly (np.array_equal), not their mean."
    if got[:1] in "[0123456789":
        return "return the name of one layer, as text, or None."
    if got == "conv3":
        return "up2 runs before conv3 and differs, too: go through the layers in the dictionary's order, not in alphabetical order."
    if got == "head":
        return "that is the last difference; go through the layers in order and stop at the first."
    return f"case '{case}': expected {want}, got {got}. Go through the layers in order, compare exactly."
