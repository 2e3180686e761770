"""Checks of lesson 07: accumulator to code, two codes in one byte, and the first layer that differs."""

import numpy as np

from qatlib.checks import UNTOUCHED, Report, compare, failed, no_function
from qatlib.compact import pack
from qatlib.integer import round_shift
from qatlib.pixel import first_difference

ACCUMULATORS = np.array([-40000, -16385, -1345, -1344, -193, -192, -64, -1, 0, 63, 64, 65, 192, 193, 1344, 16192, 16385, 40000])


def check_narrow(my_narrow) -> Report:
    """`my_narrow(accumulator, n)` must give int8 codes: floor(accumulator / 2^n + 1/2), saturated to -128..127."""

    def expected(accumulator, n):
        return np.clip(round_shift(accumulator, n), -128, 127)

    def advice(case, want, got):
        accumulator, n = case
        if np.abs(got - np.round(got)).max() > 0:
            return "codes are whole numbers; use integer arithmetic, >> instead of /."
        if got.max() > 127 or got.min() < -128:
            return "some codes leave -128..127: saturate (np.clip) after the shift, as the chip does. int8 would wrap around."
        if np.array_equal(got, np.clip(accumulator >> n, -128, 127)):
            return "that is truncation: half of all codes come out one too low. Add half a step, 1 << (n - 1), before the shift."
        if np.array_equal(got, np.clip(np.round(accumulator / 2.0**n), -128, 127)):
            return "ties differ: NumPy rounds half to even, the chip adds half and drops bits, so halves go up."
        if np.abs(got).max() == 127 and want.min() == -128:
            return "the lowest code is -128, one further down than up."
        return None

    cases = [(ACCUMULATORS, 7), (ACCUMULATORS, 5), (ACCUMULATORS, 1)]
    labels = [f"n = {n}" for _, n in cases]
    praise = "Every code agrees, ties and both ends included. This line is the whole output stage of the chip."
    return compare("my_narrow", my_narrow, expected, cases, advice, praise=praise, labels=labels)


def check_unpack(my_unpack) -> Report:
    """`my_unpack(raw)` must give the two signed 4-bit codes of each byte, the lower half first: uint8 (n,) -> (2n,)."""
    raw = np.arange(256, dtype=np.uint8)

    def expected(raw):
        fields = np.stack([raw & 15, raw >> 4], axis=1).ravel().astype(np.int64)
        assert np.array_equal(pack((fields ^ 8) - 8, 4), raw)
        return (fields ^ 8) - 8

    def advice(case, want, got):
        if got.max() > 7:
            return "codes above 7: fields of 8 to 15 stand for negative codes (two's complement); subtract 16 from those."
        if np.array_equal(got.reshape(-1, 2)[:, ::-1].ravel(), want):
            return "the two codes of each byte are swapped: the first code lies in the lower four bits."
        if np.array_equal(got, np.concatenate([want[::2], want[1::2]])):
            return "all lower halves come first, then all upper ones; they belong side by side, byte after byte."
        return None

    praise = "All 256 bytes agree. This is how a 4-bit layer takes half the memory."
    return compare("my_unpack", my_unpack, expected, [(raw,)], advice, praise=praise, labels=["bytes 0..255"])


def puzzles() -> list[tuple[dict, dict]]:
    """Pairs of {layer: codes}, expected and got: one differs from the third layer on, one nowhere, one in a single code."""
    rng = np.random.default_rng(7)
    names = ["input", "conv1", "conv2", "conv3", "head"]
    good = {name: rng.integers(-128, 128, (4, 6, 6)).astype(np.int8) for name in names}
    late = {name: value if name in names[:3] else np.roll(value, 1) for name, value in good.items()}
    one = {name: value.copy() for name, value in good.items()}
    one["conv1"][2, 3, 4] ^= 1
    one["head"][:] = 0
    return [(good, late), (good, {name: value.copy() for name, value in good.items()}), (good, one)]


def check_first_difference(my_first_difference) -> Report:
    """`my_first_difference(expected, got)` must name the first layer whose codes are not all equal, or return None."""
    if not callable(my_first_difference):
        return no_function("my_first_difference", my_first_difference)
    rows = []
    for (expected, got), case in zip(puzzles(), ("wrong from conv3 on", "all equal", "one code in conv1, all of head")):
        try:
            answer = my_first_difference(expected, got)
        except Exception as problem:
            return failed("my_first_difference", f"not yet: it stopped with {type(problem).__name__}: {problem}.")
        want = first_difference(expected, got)
        rows.append({"case": case, "expected": str(want), "got": str(answer), "ok": "yes" if answer == want else "no"})
    if all(row["got"] == "None" for row in rows):
        return failed("my_first_difference", UNTOUCHED.format(name="my_first_difference"))
    wrong = [row for row in rows if row["ok"] == "no"]
    if not wrong:
        return Report("my_first_difference", True, "Found each time. Everything after the first difference is only its echo.", rows)
    return Report("my_first_difference", False, f"not yet: {_advice(wrong[0])}", rows)


def _advice(row: dict) -> str:
    if row["expected"] == "None":
        return "two equal networks: return None when no layer differs."
    if row["expected"] == "conv1" and row["got"] in ("None", "head"):
        return "one code in conv1 differs by one, and you missed it: compare all codes exactly (np.array_equal), not their mean."
    if row["got"] == "head":
        return "that is the last difference; go through the layers in order and stop at the first."
    return f"case '{row['case']}': expected {row['expected']}, got {row['got']}. Go through the layers in order, compare exactly."
