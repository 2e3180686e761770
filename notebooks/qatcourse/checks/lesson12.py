"""Checks of lesson 12: where a heat map's mean, its peak and its second peak lie."""

import numpy as np
import torch

from qatcourse.checks import Exercise


def hills(*tops, size: int = 8) -> np.ndarray:
    """A map (size, size) that sums to 1, of hills (x, y, share) of width 0.7 cells; x and y in cells from the top left corner."""
    centres = np.arange(size) + 0.5
    distance = [((centres - y) ** 2)[:, None] + (centres - x) ** 2 for x, y, _ in tops]
    total = sum(share * np.exp(-d / (2 * 0.7**2)) for d, (_, _, share) in zip(distance, tops))
    return total / total.sum()


def highest(p: np.ndarray) -> np.ndarray:
    """(x, y) of the centre of the highest cell of a map (H, W)."""
    row, column = np.unravel_index(p.argmax(), p.shape)
    return np.array([column + 0.5, row + 0.5])


def mean(p: np.ndarray) -> np.ndarray:
    """(x, y) of the centre of gravity of the whole map."""
    rows, columns = np.indices(p.shape) + 0.5
    return np.array([(p * columns).sum(), (p * rows).sum()]) / p.sum()


def second(p: np.ndarray, apart: float, distance=np.hypot) -> np.ndarray:
    """(x, y) of the centre of the highest cell among those at least `apart` cells from the highest of all."""
    return highest(np.where(distance(*abs(_offsets(p))) >= apart, p, 0))


def _offsets(p: np.ndarray) -> np.ndarray:
    return np.indices(p.shape)[::-1] + 0.5 - highest(p)[:, None, None]


_ONE = ("one hill", hills((5.3, 2.6, 1.0)))
_TWO = ("two hills", hills((1.6, 5.4, 0.55), (6.5, 4.7, 0.45)))
_THREE = hills((1.5, 1.5, 0.4), (3.5, 3.5, 0.35), (6.5, 5.5, 0.25))
_COMMON = (
    (lambda right, *_: right[::-1], "x counts columns and y rows: return (x, y)."),
    (lambda right, *_: right[::-1] - 0.5, "x counts columns and y rows: return (x, y); and add half a cell, for the centre."),
    (lambda right, *_: right - 0.5, "the first cell's centre is 0.5: add half a cell."),
    (lambda right, *_: right + 0.5, "that is half a cell too far: the centre of the first cell is 0.5, not 1."),
    (lambda right, *_: right * 4, "these are pixels; give the place in cells."),
    (lambda right, p, *_: np.array([right[0], len(p) - right[1]]), "y counts from the top: row 0 is the uppermost."),
)


def _place(task: str, reference, cases: list[tuple], *wrong, **options) -> Exercise:
    return Exercise(task, reference, cases, *_COMMON, *wrong, tolerance=1e-5, **options)  # float32: sums of up to 64 products


check_mean = _place(
    "my_mean(p): (x, y) of the mean of all places of a map (H, W) that sums to 1, each weighted with its probability, in cells.",
    mean,
    [_ONE, _TWO],
    (lambda _, p: highest(p), "this is the highest cell; the mean takes all cells, each with its probability."),
    (lambda _, p: np.array(p.shape[::-1]) / 2, "this is the middle of the map: multiply each place by its probability first."),
    (lambda right, p: right / p.size, "np.mean divides by the number of cells; the probabilities sum to 1 already: use sum."),
    praise="With two hills, the mean lies on neither.",
    right=[
        lambda p: tuple((p * (np.indices(p.shape)[axis] + 0.5)).sum() for axis in (1, 0)),
        lambda p: [(p.sum(0) * (np.arange(p.shape[1]) + 0.5)).sum(), p.sum(1) @ (np.arange(p.shape[0]) + 0.5)],
        lambda p: torch.tensor([p.sum(0) @ np.arange(len(p)), p.sum(1) @ np.arange(len(p))], dtype=torch.float32) + 0.5,
    ],
)

check_peak = _place(
    "my_peak(p): (x, y) of the centre of the highest cell of a map (H, W), in cells.",
    highest,
    [_ONE, _TWO, ("one hill alone in its column, two in another", hills((1.5, 1.5, 0.4), (5.5, 4.5, 0.3), (5.5, 6.5, 0.3)))],
    (lambda _, p: mean(p), "this is the mean of the whole map; with two hills it lies between them."),
    (lambda _, p: np.array([p.sum(0).argmax(), p.sum(1).argmax()]) + 0.5, "the best column and the best row may miss every hill."),
    (lambda _, p: highest(-p), "this is the lowest cell; look for the highest."),
    praise="The peak of two hills is one of them.",
    right=[
        lambda p: [p.argmax() % p.shape[1] + 0.5, p.argmax() // p.shape[1] + 0.5],
        lambda p: np.argwhere(p == p.max())[0][::-1] + np.float32(0.5),
        lambda p: torch.tensor([divmod(int(torch.tensor(p).argmax()), 8)[::-1]]).squeeze(0) + 0.5,
    ],
)  # fmt: skip

check_second = _place(
    "my_second(p, apart): (x, y) of the highest cell among those at least `apart` cells from the highest.",
    second,
    [("a high hill and a low one", hills((1.6, 5.4, 0.8), (6.5, 4.7, 0.2)), 3.0),
     ("three hills", _THREE, 3.0), ("the same, nearer", _THREE, 2.5),
     ("exactly `apart` away", hills((1.5, 2.5, 0.6), (4.5, 2.5, 0.4)), 3.0)],
    (lambda _, p, apart: highest(p), "this is the highest cell itself; leave out what is nearer to it than `apart`."),
    (lambda _, p, apart: second(p, apart, np.add), "measure along the straight line, np.hypot(dx, dy), not along both axes."),
    (lambda _, p, apart: second(p, apart, np.maximum), "{0}: two right and two down is 2.83 cells: use np.hypot and `apart`."),
    (lambda _, p, apart: second(p, apart + 0.01), "a cell exactly `apart` away counts too: use >=, not >."),
    (lambda _, p, apart: second(p, 1.0), "a neighbour of the peak is still the same hill: keep the distance `apart`."),
    praise="Two answers, each of them a place where the joint may be.",
    right=[
        lambda p, apart: second(p, apart).tolist(),
        lambda p, apart: torch.from_numpy(second(p.astype(np.float32), apart)).float(),
        lambda p, apart: highest(p * ((_offsets(p) ** 2).sum(0) >= apart**2)),
    ],
)  # fmt: skip
