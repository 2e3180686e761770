"""The pose data's interface: what it accepts, the chip's input codes, and mirroring."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from qatcourse.people.body import JOINTS
from qatcourse.pose.data import MIRRORED, PoseSet, augment, load, to_codes, to_input, warp
from qatlib import ai8x


def people(n: int = 6, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    labelled = rng.random((n, 14)) < 0.8
    return {
        "images": rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8),
        "joints": rng.uniform(0, 64, (n, 14, 2)).astype(np.float32),
        "labelled": labelled,
        "visible": labelled & (rng.random((n, 14)) < 0.8),
    }


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("QATLIB_CACHE", str(tmp_path))
    return load("figures", "train", n=20, progress=False)


def test_figures_come_as_a_pose_set_of_the_size_asked_for(figures):
    assert len(figures) == 20 and figures.name == "figures"
    again = load("figures", "train", n=20, progress=False)
    other = load("figures", "train", n=20, seed=1, progress=False)
    test = load("figures", "test", n=20, progress=False)
    assert np.array_equal(figures.images, again.images)
    assert not np.array_equal(figures.images, other.images) and not np.array_equal(figures.images, test.images)


def test_a_pose_set_is_selected_by_index_slice_and_mask():
    poses = PoseSet(**people())
    assert len(poses.subset(4)) == 4 and len(poses.subset(99)) == 6
    assert np.array_equal(poses[2].joints, poses.joints[2:3])
    assert np.array_equal(poses[poses.labelled[:, 0]].images, poses.images[poses.labelled[:, 0]])


def change(name, value):
    return lambda parts: parts.update({name: value(parts[name])})


def put(name, index, value):
    return lambda parts: parts[name].__setitem__(index, value)


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (change("images", lambda a: a.astype(np.float32)), TypeError, "images must be a NumPy array of uint8, not float32"),
        (change("images", lambda a: a[:, :32]), ValueError, r"images has shape \(6, 32, 64, 3\); expected \(6, 64, 64, 3\)"),
        (change("images", lambda a: a.tolist()), TypeError, "images must be a NumPy array of uint8, not list"),
        (change("joints", lambda a: a.astype(np.float64)), TypeError, "joints must be a NumPy array of float32, not float64"),
        (change("joints", lambda a: a[:5]), ValueError, r"joints has shape \(5, 14, 2\); expected \(6, 14, 2\)"),
        (change("labelled", lambda a: a.astype(int)), TypeError, "labelled must be a NumPy array of bool"),
        (change("visible", lambda a: a[:, :13]), ValueError, r"visible has shape \(6, 13\)"),
        (change("visible", lambda a: ~a), ValueError, "visible is True where labelled is False"),
        (put("joints", (0, 0, 0), np.nan), ValueError, "joints holds NaN"),
    ],
)
def test_a_malformed_pose_set_is_refused_in_a_sentence(damage, error, says):
    parts = people()
    damage(parts)
    with pytest.raises(error, match=says):
        PoseSet(**parts)


def test_a_labelled_joint_outside_the_picture_is_named():
    parts = people()
    parts["labelled"][2, 12], parts["joints"][2, 12] = True, (64.5, 3)
    with pytest.raises(ValueError, match=r"joint 12 \(neck\) of picture 2 is labelled at \[64.5, 3.0\]"):
        PoseSet(**parts)
    parts["labelled"][2, 12] = parts["visible"][2, 12] = False
    PoseSet(**parts)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("figure", "train"), "data 'figure' is unknown; use 'figures' .* or 'lsp:/path'"),
        (("lsp:", "train"), "data 'lsp:' is unknown"),
        ((None, "train"), "data None is unknown"),
        (("figures", "validation"), "split 'validation' is unknown; choose 'train' or 'test'"),
        (("figures", "train", 0), "n = 0 pictures"),
        (("figures", "train", 2.5), "n = 2.5 pictures"),
        (("figures", "train", True), "n = True pictures"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(arguments, says):
    with pytest.raises(ValueError, match=says):
        load(*arguments, progress=False)


def test_codes_are_the_folded_picture_minus_128():
    images = people()["images"]
    picture = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.int16) - 128
    assert np.array_equal(to_codes(images), ai8x.fold(4)(picture).numpy().astype(np.int8))
    assert to_codes(images)[3, (2 * 4 + 1) * 3 + 2, 5, 7] == int(images[3, 4 * 5 + 2, 4 * 7 + 1, 2]) - 128


def test_inputs_are_the_codes_over_128():
    images = people()["images"]
    x = to_input(images)
    assert x.dtype == torch.float32 and x.shape == (6, 48, 16, 16)
    assert torch.equal(x * 128, torch.from_numpy(to_codes(images)).float())
    with pytest.raises(TypeError, match="images must be a NumPy array of uint8, not float64"):
        to_input(images / 255)


def test_codes_need_no_torch():
    code = "import sys; from qatcourse.people import lsp; from qatcourse.pose import data, metrics; data.to_codes"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Fixed:
    """Stands in for a random generator: `random` gives the flags asked for, `uniform` the middle (1, 1, 128: no jitter)."""

    def __init__(self, mirror):
        self.mirror = mirror

    def random(self, n):
        return np.where(self.mirror, 0.0, 1.0)

    def uniform(self, low, high, size):
        return np.full(size, (low + high) / 2)


def test_mirroring_swaps_left_and_right_and_twice_is_nothing():
    parts = people()
    given = parts["images"], parts["joints"], parts["labelled"]
    before = [part.copy() for part in given]
    images, joints, labelled = augment(*given, Fixed(np.array([True, False] * 3)))
    assert all(np.array_equal(a, b) for a, b in zip(given, before))
    assert np.array_equal(images[1::2], given[0][1::2]) and np.array_equal(joints[1::2], given[1][1::2])
    assert np.array_equal(images[0], given[0][0, :, ::-1])
    right, left = JOINTS.index("r wrist"), JOINTS.index("l wrist")
    assert np.array_equal(joints[0, right], [64 - given[1][0, left, 0], given[1][0, left, 1]])
    assert np.array_equal(labelled[0, right], given[2][0, left])
    back = augment(images, joints, labelled, Fixed(np.array([True, False] * 3)))
    assert np.array_equal(back[0], given[0]) and np.array_equal(back[2], given[2])
    assert np.abs(back[1] - given[1]).max() <= 2**-18  # each 64 - x is off by half a float32 step, 2^-19 below 64
    assert sorted(MIRRORED) == list(range(14)) and [JOINTS[j][2:] for j in MIRRORED[:12]] == [name[2:] for name in JOINTS[:12]]


def test_augmented_people_are_still_a_pose_set_and_depend_on_the_generator_alone(figures):
    given = figures.images, figures.joints, figures.labelled
    first = augment(*given, np.random.default_rng(5))
    again = augment(*given, np.random.default_rng(5))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    PoseSet(*first, first[2])
    assert not np.array_equal(first[0], figures.images)
    darker = first[0].astype(int).mean(axis=(1, 2, 3)) - figures.images.astype(int).mean(axis=(1, 2, 3))
    assert np.abs(darker).max() < 16 + 128 * (1.15 * 1.06 - 1) + 1  # offset, gain at the ends of the range, rounding


def test_warp_moves_joints_with_their_pixels():
    rng = np.random.default_rng(0)
    images, joints = np.zeros((16, 64, 64, 3), np.uint8), np.zeros((16, 14, 2), np.float32)
    for image, joint, (x, y) in zip(images, joints, rng.integers(20, 44, (16, 2))):
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
        joint[:] = (x + 0.5, y + 0.5)
    warped, moved, labelled = warp(images, joints, np.ones((16, 14), bool), rng)
    centres = np.arange(64) + 0.5
    for image, joint in zip(warped[..., 0].astype(np.float64), moved):
        centre = np.array([(image.sum(0) * centres).sum(), (image.sum(1) * centres).sum()]) / image.sum()
        assert np.abs(centre - joint[0]).max() < 0.1  # bilinear interpolation moves the centre of a 3x3 dot by less than that
    assert labelled.all() and np.abs(moved - joints).max() > 2
