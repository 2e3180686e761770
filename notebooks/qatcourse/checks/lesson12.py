"""Checks of lesson 12: where a heat map's peak lies, to a part of a cell, and where its second peak lies."""

import numpy as np

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


def refined(p: np.ndarray) -> np.ndarray:
    """(x, y) of the centre of gravity of the 3x3 cells around the highest one."""
    column, row = (highest(p) - 0.5).astype(int)
    corner = np.array([column - 1, row - 1])
    return corner + mean(np.pad(p, 1)[row : row + 3, column : column + 3])


def second(p: np.ndarray, apart: float) -> np.ndarray:
    """(x, y) of the centre of the highest cell among those at least `apart` cells from the highest of all."""
    rows, columns = np.indices(p.shape) + 0.5
    x, y = highest(p)
    return highest(np.where(np.hypot(columns - x, rows - y) >= apart, p, 0))


_ONE = ("one hill", hills((5.3, 2.6, 1.0)))
_TWO = ("two hills", hills((1.6, 5.4, 0.55), (6.5, 4.7, 0.45)))
_SWAPPED = "x counts columns and y rows: return (x, y)."
_CENTRE = "the first cell's centre is 0.5: add half a cell."

check_peak = Exercise(
    "my_peak(p): (x, y) of the centre of the highest cell of a map (H, W), in cells.",
    highest,
    [_ONE, _TWO],
    (lambda right, p: right[::-1], _SWAPPED),
    (lambda right, p: right - 0.5, _CENTRE),
    (lambda _, p: mean(p), "this is the mean of the whole map; with two hills it lies between them."),
    praise="The peak of two hills is one of them.",
)

check_refined = Exercise(
    "my_refined(p): (x, y) of the centre of gravity of the 3x3 cells around the highest cell.",
    refined,
    [_ONE, _TWO, ("at the edge", hills((0.2, 7.6, 1.0)))],
    (lambda right, p: right[::-1], _SWAPPED),
    (lambda right, p: right - 0.5, _CENTRE),
    (lambda _, p: highest(p), "this is the centre of the highest cell; its neighbours say where in the cell the hill's top is."),
    (lambda _, p: mean(p), "take the mean over the 3x3 cells around the peak, not over the whole map."),
    (lambda right, p: right * 0.9, "divide by the sum of the nine cells: they do not add up to 1.",
     lambda got, want, *_: (np.abs(got) < np.abs(want)).all()),
    tolerance=1e-9,  # float64: nine products and a quotient
    praise="Better than a cell: this is how the course decodes, after a slight blur.",
)  # fmt: skip

check_second = Exercise(
    "my_second(p, apart): (x, y) of the highest cell among those at least `apart` cells from the highest.",
    second,
    [(*_TWO, 3.0), ("three hills", hills((1.5, 1.5, 0.4), (2.6, 2.6, 0.3), (6.5, 5.5, 0.3)), 3.0)],
    (lambda _, p, apart: highest(p), "this is the highest cell itself; leave out what is nearer to it than `apart`."),
    (lambda right, p, apart: right[::-1], _SWAPPED),
    (lambda right, p, apart: right - 0.5, _CENTRE),
    (lambda _, p, apart: second(p, 1.0), "a neighbour of the peak is still the same hill: keep the distance `apart`."),
    praise="Two answers, each of them a place where the joint may be.",
)
