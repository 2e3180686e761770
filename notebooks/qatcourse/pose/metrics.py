"""How far predicted joints are from the labelled ones, by the field's measures. NumPy only.

All take `pred` and `joints` (N, 14, 2), in the same unit, and `labelled` (N, 14); only labelled joints count, pooled over all
pictures. A picture without a usable yardstick (torso, head) is left out.

>>> people = np.zeros((1, 14, 2)); people[0, 9] = [30, 40]  # the torso, right hip to left shoulder, is 50 long
>>> seen = np.ones((1, 14), bool)
>>> guess = people.copy(); guess[0, 0] = [6, 8.5]  # one ankle is 10.4 off, more than 0.2 x 50
>>> round(pck(guess, people, seen), 4)
0.9286
"""

import numpy as np

from qatcourse.people.body import JOINTS

TORSO = (("r hip", "l shoulder"), ("l hip", "r shoulder"))  # the second where an end of the first is not labelled
HEAD = (("neck", "head top"),)


def pck(pred: np.ndarray, joints: np.ndarray, labelled: np.ndarray, alpha: float = 0.2, per_joint: bool = False):
    """PCK: the share (0..1) of labelled joints at most `alpha` torso diagonals from their place.

    Yang and Ramanan (PAMI 2013) proposed the percentage of correct keypoints with a share of the person's box as tolerance;
    the torso diagonal as yardstick is that of Sapp and Taskar (CVPR 2013), usual on Leeds Sports Pose. Here: right hip to left
    shoulder; where one of the two is not labelled, left hip to right shoulder.

    Returns a float; with `per_joint` an array (14,), NaN for a joint that is never labelled.
    Raises TypeError or ValueError for wrong shapes, values that are not finite, an alpha not above 0, or no usable picture.
    """
    return _correct(pred, joints, labelled, torso_length(joints, labelled), alpha, per_joint, "torso (hip, opposite shoulder)")


def pckh(pred: np.ndarray, joints: np.ndarray, labelled: np.ndarray, alpha: float = 0.5, per_joint: bool = False):
    """PCKh: as `pck` with `alpha` head lengths as tolerance (Andriluka et al., CVPR 2014).

    The head length there is 0.6 of an annotated head box's diagonal; Leeds Sports Pose has no head boxes, so here it is the
    distance from neck to head top. The numbers compare with each other, not with MPII's.
    """
    return _correct(pred, joints, labelled, head_length(joints, labelled), alpha, per_joint, "head (neck and head top)")


def pixel_error(pred: np.ndarray, joints: np.ndarray, labelled: np.ndarray, per_joint: bool = False):
    """Mean Euclidean distance over labelled joints, in the unit of the coordinates; returns and raises as `pck`."""
    distance = _distances(pred, joints, labelled)
    if not labelled.any():
        raise ValueError(f"none of the {len(labelled)} pictures has a labelled joint; there is nothing to measure")
    return _mean(distance, labelled, per_joint)


def torso_length(joints: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """The torso diagonal of each picture, (N,) float64; NaN where neither diagonal is labelled or its length is 0."""
    return _segment(joints, labelled, TORSO)


def head_length(joints: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Neck to head top of each picture, (N,) float64; NaN where one of them is not labelled or the length is 0."""
    return _segment(joints, labelled, HEAD)


def _segment(joints: np.ndarray, labelled: np.ndarray, choices: tuple) -> np.ndarray:
    _check("joints", joints, labelled)
    length = np.full(len(joints), np.nan)
    for names in choices:
        a, b = (JOINTS.index(name) for name in names)
        usable = np.isnan(length) & labelled[:, a] & labelled[:, b]
        length[usable] = np.linalg.norm(joints[usable, a].astype(np.float64) - joints[usable, b], axis=-1)
    return np.where(length > 0, length, np.nan)


def _correct(pred, joints, labelled, length, alpha, per_joint, yardstick):
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.number)) or not 0 < alpha < np.inf:
        raise ValueError(f"alpha = {alpha!r} is not a tolerance; give a finite share above 0, such as 0.2")
    distance = _distances(pred, joints, labelled)
    usable = ~np.isnan(length)
    if not usable.any():
        raise ValueError(f"none of the {len(labelled)} pictures has a labelled {yardstick}; use pixel_error instead")
    return _mean(distance[usable] <= alpha * length[usable, None], labelled[usable], per_joint)


def _mean(values: np.ndarray, counted: np.ndarray, per_joint: bool):
    if not per_joint:
        return float(values[counted].mean())
    total, count = np.where(counted, values, 0).sum(axis=0), counted.sum(axis=0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _distances(pred: np.ndarray, joints: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    _check("pred", pred, labelled)
    _check("joints", joints, labelled)
    return np.linalg.norm(np.asarray(pred, np.float64) - joints, axis=-1)


def _check(name: str, points: np.ndarray, labelled: np.ndarray) -> None:
    if not isinstance(labelled, np.ndarray) or labelled.dtype != np.bool_:
        raise TypeError(f"labelled must be a NumPy array of bool, not {getattr(labelled, 'dtype', type(labelled).__name__)}")
    if labelled.ndim != 2 or labelled.shape[1] != len(JOINTS):
        raise ValueError(f"labelled has shape {labelled.shape}; expected (N, {len(JOINTS)})")
    if not isinstance(points, np.ndarray) or not np.issubdtype(points.dtype, np.number):
        raise TypeError(f"{name} must be a NumPy array of numbers, not {getattr(points, 'dtype', type(points).__name__)}")
    if points.shape != (*labelled.shape, 2):
        raise ValueError(f"{name} has shape {points.shape}; expected {(*labelled.shape, 2)}")
    if not np.isfinite(points[labelled]).all():
        raise ValueError(f"{name} holds NaN or infinity at a labelled joint; predict a finite position for every joint")
