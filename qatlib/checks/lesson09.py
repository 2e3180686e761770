"""Checks of lesson 09: bytes of mixed precision, the Pareto front, and a choice of bits under a budget."""

import math

import numpy as np

from qatlib.checks import UNTOUCHED, Report, compare, failed, no_function
from qatlib.mixed import greedy, weight_bytes
from qatlib.viz.overview import pareto_front

_COUNTS = {"conv1": 1000, "conv2": 4000, "conv3": 8001, "head": 90}
_DROPS = {
    "conv1": {4: 0.05, 2: 0.30},
    "conv2": {4: 0.01, 2: 0.06},
    "conv3": {4: 0.02, 2: 0.25},
    "head": {4: 0.04, 2: 0.20},
}
_BUDGETS = (9000, 7000, 5500)


def check_bytes(my_bytes) -> Report:
    """`my_bytes(counts, bits)`: whole bytes for `counts[i]` weights of `bits[i]` bits each, layer by layer, added up."""

    def expected(counts, bits):
        return weight_bytes(dict(enumerate(counts)), dict(enumerate(bits)))

    def advice(case, want, got):
        counts, bits = case
        whole = sum(n * b for n, b in zip(counts, bits))
        if got == whole:
            return "these are bits; a byte has 8."
        if got == sum(n * b // 8 for n, b in zip(counts, bits)) or got != round(float(got)):
            return "a layer's last, half-filled byte counts as a whole one: round up in each layer."
        if got == math.ceil(whole / 8):
            return "each layer begins with a new byte: round up in each layer, then add."
        return None

    cases = [((100, 9), (8, 4)), ((1000, 4001, 91), (8, 2, 4)), ((7, 7, 7), (1, 2, 4))]
    labels = [f"{counts} weights at {bits} bits" for counts, bits in cases]
    return compare("my_bytes", my_bytes, expected, cases, advice, labels=labels)


def check_front(my_front) -> Report:
    """`my_front(points)`: the points (bytes, PCK) that no other beats, with rising bytes."""
    if not callable(my_front):
        return no_function("my_front", my_front)
    name = "my_front"
    rng = np.random.default_rng(3)
    clouds = {"four points": [(100, 0.5), (200, 0.4), (200, 0.7), (300, 0.7)], "one point": [(10, 0.1)]}
    clouds["30 points"] = [(int(b), round(float(a), 2)) for b, a in zip(rng.integers(1, 50, 30) * 1000, rng.random(30))]
    rows, message = [], None
    for label, points in clouds.items():
        want = pareto_front(points)
        try:
            got = my_front(list(points))
            if got is None:
                return failed(name, UNTOUCHED.format(name=name))
            got = [(size, pck) for size, pck in got]
        except Exception as problem:
            return failed(name, f"not yet: my_front stopped with {type(problem).__name__}: {problem}.")
        rows.append({"case": label, "expected": str(want[:5]), "got": str(got[:5]), "ok": "yes" if got == want else "no"})
        if got != want and message is None:
            message = _front_advice(points, want, got)
    return Report(name, message is None, "Every front agrees." if message is None else f"not yet: {message}", rows)


def _front_advice(points, want, got) -> str:
    if extra := [p for p in got if p not in want]:
        size, pck = extra[0]
        better = next((p for p in want if p[0] <= size and p[1] >= pck), None)
        return f"{extra[0]} is beaten by {better}: no more bytes, and no lower PCK."
    if set(got) == set(want):
        return "the right points, in another order or doubled: sort by bytes, each once."
    return f"{next(p for p in want if p not in got)} is missing: nothing has fewer bytes and a higher PCK."


def check_choice(my_choice) -> Report:
    """`my_choice(drops, counts, budget)`: layer -> 8, 4 or 2 bits within the budget, losing no more than `mixed.greedy` does."""
    if not callable(my_choice):
        return no_function("my_choice", my_choice)
    name, rows, message = "my_choice", [], None
    for budget in _BUDGETS:
        best = lost(greedy(_DROPS, _COUNTS, budget))
        try:
            got = my_choice({layer: dict(losses) for layer, losses in _DROPS.items()}, dict(_COUNTS), budget)
        except Exception as problem:
            return failed(name, f"not yet: my_choice stopped with {type(problem).__name__}: {problem}.")
        if got is None:
            return failed(name, UNTOUCHED.format(name=name))
        if not isinstance(got, dict) or set(got) != set(_COUNTS) or not set(got.values()) <= {8, 4, 2}:
            return failed(name, f"not yet: return a dict with 8, 4 or 2 for each of {', '.join(_COUNTS)}; this was {got}.")
        size, loss = weight_bytes(_COUNTS, got), lost(got)
        ok = size <= budget and loss <= best + 1e-9  # sums of decimals in another order
        row = {"case": f"budget {budget:,}", "expected": f"loss up to {best:.3f}", "got": f"loss {loss:.3f}, {size:,} bytes"}
        rows.append({**row, "ok": "yes" if ok else "no"})
        if not ok and message is None:
            over = f"{size:,} bytes do not fit into {budget:,}: lower more layers."
            less = f"{budget:,} bytes: you lose {loss:.3f}, {best:.3f} is possible. Compare loss for each byte saved, step by step."
            message = over if size > budget else less
    praise = "Within every budget, and as good as the course's own choice."
    return Report(name, message is None, praise if message is None else f"not yet: {message}", rows)


def lost(bits: dict[str, int]) -> float:
    """The losses of all layers at `bits`, added up."""
    return sum(_DROPS[name].get(width, 0.0) for name, width in bits.items())

