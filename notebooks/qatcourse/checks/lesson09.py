"""Checks of lesson 09: bytes of mixed precision, the Pareto front, and a choice of bits under a budget."""

import itertools
import math

import numpy as np
import torch

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
    (lambda _, counts, bits: sum(counts), "this is a byte for each weight: multiply by the layer's bits."),
    (lambda _, counts, bits: sum(n * b // 8 + 1 for n, b in zip(counts, bits)),
     "where the weights fill the last byte exactly, nothing is added: round up, do not always add 1."),
    (lambda _, counts, bits: int(sum(counts) * np.mean(bits) / 8),
     "each layer has bits of its own: multiply layer by layer, not by an average."),
    right=[lambda counts, bits: sum(math.ceil(n * b / 8) for n, b in zip(counts, bits)),
           lambda counts, bits: np.ceil(np.float32(counts) * np.float32(bits) / 8).sum(),
           lambda counts, bits: torch.tensor([sum((n * b + 7) // 8 for n, b in zip(counts, bits))])],
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


def _missing(got, want, *_) -> str:
    return f"{next(p for p in want if p not in got)} is missing: nothing has fewer bytes and a higher PCK."


def _same_points(got, want, *_) -> bool:
    return set(got) == set(want)


def _points(points) -> list[tuple[int, float]]:
    try:
        return [(int(size), round(float(pck), 6)) for size, pck in points]
    except (TypeError, ValueError):
        raise NotYet(f"must return a list of pairs (bytes, PCK); this was {str(points)[:60]}.") from None


_DOUBLED = "the right points, in another order or doubled: sort by bytes, each once."

check_front = Exercise(
    "my_front(points): the points (bytes, PCK) that no other beats, with rising bytes.",
    pareto_front,
    _clouds,
    (lambda _, points: sorted(points), _beaten, _beaten),
    (lambda right, _: right[::-1], _DOUBLED, _same_points),
    (lambda right, points: [p for p in points if p[1] > 0.5], _beaten, _beaten),
    (lambda _, points: [p for p in sorted(points) if not any(q[0] < p[0] and q[1] > p[1] for q in points)], _beaten, _beaten),
    (lambda right, _: right + right, _DOUBLED, _same_points),
    (lambda right, _: sorted(right, key=lambda p: -p[1]), _DOUBLED, _same_points),
    (lambda right, _: right[-1:], _missing, always),
    (lambda right, _: right[:1], _missing, always),
    read=_points,
    right=[lambda points: np.array(pareto_front(points)), lambda points: torch.tensor(pareto_front(points)),
           lambda points: tuple(sorted(p for p in set(points) if not any(q[0] <= p[0] and q[1] >= p[1] for q in {*points} - {p})))],
    praise="Every front agrees.",
)  # fmt: skip


def _choice(bits) -> dict[str, int]:
    if isinstance(bits, dict) and set(bits) == set(_COUNTS) and all(width in (8, 4, 2) for width in bits.values()):
        return {name: int(width) for name, width in bits.items()}
    raise NotYet(f"must return a dict with 8, 4 or 2 for each of {', '.join(_COUNTS)}; this was {bits}.")


def _least(counts, budget, cost) -> dict[str, int]:
    """Of all combinations that fit, the one that `cost(bits)` is least for."""
    every = (dict(zip(counts, bits)) for bits in itertools.product((8, 4, 2), repeat=len(counts)))
    return min((bits for bits in every if weight_bytes(counts, bits) <= budget), key=cost)


_WRONG = [
    (lambda drops, counts, budget: dict.fromkeys(counts, 8), "do not fit"),
    (lambda drops, counts, budget: dict.fromkeys(counts, 2), "is possible"),
    (lambda drops, counts, budget: dict.fromkeys(counts, 3), "8, 4 or 2"),
    (lambda drops, counts, budget: [8] * len(counts), "must return a dict"),
    (lambda drops, counts, budget: {"conv1": 4}, "for each of conv1"),
    (lambda drops, counts, budget: greedy(drops, counts, 8 * budget), "do not fit"),
    (lambda drops, counts, budget: _least(counts, budget, lambda bits: -sum(bits.values())), "is possible"),
]
_RIGHT = [
    greedy,
    lambda drops, counts, budget: _least(counts, budget, lost),
    lambda *case: {name: torch.tensor(width) for name, width in greedy(*case).items()},
]


@judged("my_choice", "Within every budget, and as good as the course's own choice.", wrong=_WRONG, right=_RIGHT)
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
