"""The metrics against numbers worked out by hand."""

import numpy as np
import pytest

from qatcourse.people.body import JOINTS
from qatcourse.pose import metrics

R_HIP, L_HIP, R_SHOULDER, L_SHOULDER = (JOINTS.index(name) for name in ("r hip", "l hip", "r shoulder", "l shoulder"))
NECK, HEAD_TOP = JOINTS.index("neck"), JOINTS.index("head top")


@pytest.fixture
def two():
    """Two people with torso diagonals of 20 and 10 and heads of 8 and 5; everything else lies at (32, 32)."""
    joints = np.full((2, 14, 2), 32.0, np.float32)
    joints[0, L_SHOULDER], joints[0, R_HIP] = (10, 10), (22, 26)  # 12, 16 -> 20
    joints[1, L_SHOULDER], joints[1, R_HIP] = (10, 10), (16, 18)  # 6, 8 -> 10
    joints[0, NECK], joints[0, HEAD_TOP] = (20, 18), (20, 10)
    joints[1, NECK], joints[1, HEAD_TOP] = (20, 18), (23, 14)
    return joints, np.ones((2, 14), bool)


def test_yardsticks(two):
    joints, labelled = two
    assert metrics.torso_length(joints, labelled).tolist() == [20, 10]
    assert metrics.head_length(joints, labelled).tolist() == [8, 5]


def test_pck_counts_a_distance_on_the_limit_as_correct(two):
    joints, labelled = two
    pred = joints.copy()
    pred[0, 0] += (0, 4)  # 4 = 0.2 x 20: correct
    pred[1, 0] += (0, 4)  # 4 > 0.2 x 10: wrong
    pred[0, 1] += (3, 3)  # 4.24 > 4: wrong, though either axis alone is within
    assert metrics.pck(pred, joints, labelled) == 26 / 28
    assert metrics.pck(pred, joints, labelled, alpha=0.4) == 1
    assert metrics.pck(pred, joints, labelled, per_joint=True).tolist() == [0.5, 0.5] + [1] * 12


def test_pckh_uses_half_the_head(two):
    joints, labelled = two
    pred = joints + np.float32([4, 0])  # half of 8 is 4: correct; half of 5 is less: wrong
    assert metrics.pckh(pred, joints, labelled) == 0.5
    assert metrics.pckh(pred, joints, labelled, alpha=0.8) == 1


def test_pixel_error_is_euclidean_and_ignores_what_is_not_labelled(two):
    joints, labelled = two
    labelled[0, 1:] = False
    labelled[1, 2:] = False
    pred = joints.copy()
    pred[0, 0] += (3, 4)
    pred[1, 1] += (0, 1)
    pred[1, 13] = 1000
    assert metrics.pixel_error(pred, joints, labelled) == 2  # (5 + 0 + 1) / 3
    per_joint = metrics.pixel_error(pred, joints, labelled, per_joint=True)
    assert per_joint[:2].tolist() == [2.5, 1] and np.isnan(per_joint[2:]).all()


def test_the_other_diagonal_serves_where_one_end_is_missing(two):
    joints, labelled = two
    labelled[0, R_HIP] = False
    joints[0, R_SHOULDER], joints[0, L_HIP] = (10, 10), (10, 40)
    assert metrics.torso_length(joints, labelled).tolist() == [30, 10]


def test_a_picture_without_torso_is_left_out(two):
    joints, labelled = two
    labelled[1, [R_HIP, L_HIP]] = False
    pred = joints.copy()
    pred[1] += 30  # all wrong, but not measurable
    length = metrics.torso_length(joints, labelled)
    assert np.isnan(length).tolist() == [False, True]
    assert metrics.pck(pred, joints, labelled) == 1
    assert metrics.pixel_error(pred, joints, labelled) > 0


def test_a_torso_of_no_length_is_no_yardstick(two):
    joints, labelled = two
    joints[1, R_HIP] = joints[1, L_SHOULDER]
    assert np.isnan(metrics.torso_length(joints, labelled)).sum() == 1


def test_garbage_at_unlabelled_joints_does_not_matter(two):
    joints, labelled = two
    labelled[0, 5] = False
    joints[0, 5] = np.nan
    pred = np.where(np.isnan(joints), 32, joints)
    assert metrics.pck(pred, joints, labelled) == 1 and metrics.pixel_error(pred, joints, labelled) == 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda a: a.update(pred=a["pred"][:1]), ValueError, r"pred has shape \(1, 14, 2\); expected \(2, 14, 2\)"),
        (lambda a: a.update(pred=a["pred"].tolist()), TypeError, "pred must be a NumPy array"),
        (lambda a: a.update(labelled=a["labelled"].astype(int)), TypeError, "labelled must be a NumPy array of bool"),
        (lambda a: a.update(labelled=a["labelled"][:, :13]), ValueError, r"labelled has shape \(2, 13\)"),
        (lambda a: a["pred"].fill(np.nan), ValueError, "pred holds NaN"),
        (lambda a: a.update(alpha=0), ValueError, "alpha = 0"),
        (lambda a: a.update(alpha=float("nan")), ValueError, "alpha = nan"),
        (lambda a: a["labelled"].fill(False), ValueError, "none of the 2 pictures"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(two, change, error, says):
    arguments = {"pred": two[0].copy(), "joints": two[0], "labelled": two[1]}
    change(arguments)
    with pytest.raises(error, match=says):
        metrics.pck(**arguments)


def test_nothing_labelled_is_refused_by_pixel_error(two):
    with pytest.raises(ValueError, match="none of the 2 pictures has a labelled joint"):
        metrics.pixel_error(two[0], two[0], np.zeros((2, 14), bool))
