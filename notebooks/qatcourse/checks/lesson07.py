"""Checks of lesson 07: accumulator to code, two codes in one byte, and the first layer that differs."""

import numpy as np

from qatcourse.checks import UNTOUCHED, Exercise, NotYet, ask, judged, not_whole, row
from qatcourse.labs.pixel import first_difference
from qatlib.integer.compact import unpack
from qatlib.integer.engine import round_shift

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
    praise="Every code agrees, ties and both ends included. This line is the whole output stage of the chip.",
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
    praise="All 256 bytes agree. This is how a 4-bit layer takes half the memory.",
)  # fmt: skip


def _puzzles() -> list[tuple[str, dict, dict]]:
    """Triples of description and {layer: codes}, expected and got."""
    rng = np.random.default_rng(7)
    names = ["input", "conv1", "conv2", "conv3", "head"]
    good = {name: rng.integers(-128, 128, (4, 6, 6)).astype(np.int8) for name in names}
    late = {name: value if name in names[:3] else np.roll(value, 1) for name, value in good.items()}
    one = {name: value.copy() for name, value in good.items()}
    one["conv1"][2, 3, 4] ^= 1
    one["head"][:] = 0
    return [("wrong from conv3 on", good, late), ("all equal", good, good), ("one code in conv1, all of head", good, one)]


@judged("my_first_difference", "Found each time. Everything after the first difference is only its echo.")
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
    if got == "head":
        return "that is the last difference; go through the layers in order and stop at the first."
    return f"case '{case}': expected {want}, got {got}. Go through the layers in order, compare exactly."
