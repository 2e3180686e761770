"""Checks of lesson 09: bytes of mixed precision, the Pareto front, and a choice of bits under a budget."""

import math

import numpy as np

from qatcourse.checks import Exercise, NotYet, always, ask, judged, not_whole, row
from qatcourse.labs.mixed import greedy, weight_bytes
from qatcourse.viz.overview import pareto_front

_COUNTS = {"conv1": 1000, "conv2": 4000, "conv3": 8001, "head": 90}
_DROPS = {
    "conv1": {4: 0.05, 2: 0.30},
    "conv2": {4: 0.01, 2: 0.06},
    "conv3": {4: 0.02, 2: 0.25},
    "head": {4: 0.04, 2: 0.20},
}


def _bits(counts, bits) -> int:
    return sum(n * b for n, b in zip(counts, bits))


_ROUND_UP = "a layer's last, half-filled byte counts as a whole one: round up in each layer."

check_bytes = Exercise(
    "my_bytes(counts, bits): whole bytes for `counts[i]` weights of `bits[i]` bits each, layer by layer, added up.",
    lambda counts, bits: sum(weight_bytes({"": n}, b) for n, b in zip(counts, bits)),
    [(f"{counts} weights at {bits} bits", counts, bits)
     for counts, bits in (((100, 9), (8, 4)), ((1000, 4001, 91), (8, 2, 4)), ((7, 7, 7), (1, 2, 4)))],
    (lambda _, *layers: _bits(*layers), "these are bits; a byte has 8."),
    (lambda _, counts, bits: sum(n * b // 8 for n, b in zip(counts, bits)), _ROUND_UP),
    (lambda _, *layers: _bits(*layers) / 8, _ROUND_UP, not_whole),
    (lambda _, *layers: math.ceil(_bits(*layers) / 8),
     "each layer begins with a new byte: round up in each layer, then add."),
)  # fmt: skip


def _clouds() -> list[tuple[str, list]]:
    rng = np.random.default_rng(3)
    many = [(int(b), round(float(a), 2)) for b, a in zip(rng.integers(1, 50, 30) * 1000, rng.random(30))]
    return [("four points", [(100, 0.5), (200, 0.4), (200, 0.7), (300, 0.7)]), ("one point", [(10, 0.1)]), ("30 points", many)]


def _beaten(got, want, *_) -> str | None:
    for size, pck in got:
        if (size, pck) not in want:
            better = next((p for p in want if p[0] <= size and p[1] >= pck), None)
            return f"{(size, pck)} is beaten by {better}: no more bytes, and no lower PCK."
    return None


check_front = Exercise(
    "my_front(points): the points (bytes, PCK) that no other beats, with rising bytes.",
    pareto_front,
    _clouds,
    (lambda _, points: sorted(points), _beaten, _beaten),
    (lambda right, _: right[::-1], "the right points, in another order or doubled: sort by bytes, each once.",
     lambda got, want, *_: set(got) == set(want)),
    (lambda right, _: right[:1], lambda got, want, *_:
     f"{next(p for p in want if p not in got)} is missing: nothing has fewer bytes and a higher PCK.", always),
    read=lambda points: [(size, pck) for size, pck in points],
    praise="Every front agrees.",
)  # fmt: skip


def _choice(bits) -> dict[str, int]:
    if not isinstance(bits, dict) or set(bits) != set(_COUNTS) or not set(bits.values()) <= {8, 4, 2}:
        raise NotYet(f"must return a dict with 8, 4 or 2 for each of {', '.join(_COUNTS)}; this was {bits}.")
    return bits


@judged("my_choice", "Within every budget, and as good as the course's own choice.")
def check_choice(my_choice):
    """my_choice(drops, counts, budget): layer -> 8, 4 or 2 bits within the budget, losing no more than `mixed.greedy` does."""
    for budget in (9000, 7000, 5500):
        got, best = ask(my_choice, _DROPS, _COUNTS, budget, read=_choice), lost(greedy(_DROPS, _COUNTS, budget))
        size, loss = weight_bytes(_COUNTS, got), lost(got)
        said = f"{budget:,} bytes: you lose {loss:.3f}, {best:.3f} is possible. Compare loss for each byte saved, step by step."
        if size > budget:
            said = f"{size:,} bytes do not fit into {budget:,}: lower more layers."
        ok = size <= budget and loss <= best + 1e-9  # sums of decimals in another order
        yield row(f"budget {budget:,}", f"loss up to {best:.3f}", f"loss {loss:.3f}, {size:,} bytes", ok), said


def lost(bits: dict[str, int]) -> float:
    """The losses of all layers at `bits`, added up."""
    return sum(_DROPS[name].get(width, 0.0) for name, width in bits.items())
