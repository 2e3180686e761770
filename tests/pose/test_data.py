"""The pose data's interface: what it accepts, the chip's input codes, and how photographs are moved in training."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from qatcourse.people import CENTRAL, STORED
from qatcourse.people.body import JOINTS
from qatcourse.pose.data import MIRRORED, SHIFT, TURN, ZOOM, Moves, PoseSet, augment, load, moved, moved_joints, to_codes, to_input
from qatlib import ai8x


def people(n: int = 6, seed: int = 0, side: int = 64) -> dict:
    rng = np.random.default_rng(seed)
    labelled = rng.random((n, 14)) < 0.8
    return {
        "images": rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
        "joints": rng.uniform(0, side, (n, 14, 2)).astype(np.float32),
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
        (change("crops", lambda a: a[:5]), ValueError, r"crops has shape \(5, 192, 192, 3\); expected \(6, 192, 192, 3\)"),
    ],
)
def test_a_malformed_pose_set_is_refused_in_a_sentence(damage, error, says):
    parts = people() | {"crops": np.zeros((6, STORED, STORED, 3), np.uint8)}
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


@pytest.mark.parametrize(("spec", "side"), [("figures", 128), ("figures", 0), ("lsp:/x", 192), ("lsp:/x", 64.0), ("lsp:/x", "128")])
def test_sides_that_there_are_not_are_refused(spec, side):
    with pytest.raises(ValueError, match=f"side = {side!r}: drawn people have 64 pixels, photographs 64 or 128; choose one"):
        load(spec, "train", 4, side=side, progress=False)


@pytest.mark.parametrize("side", [64, 128])
def test_codes_are_the_folded_picture_minus_128(side):
    images, fold = people(side=side)["images"], side // 32
    picture = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.int16) - 128
    assert np.array_equal(to_codes(images), ai8x.fold(fold)(picture).numpy().astype(np.int8))
    assert to_codes(images)[3, fold * 3 + 3 + 2, 5, 7] == int(images[3, fold * 5 + 1, fold * 7 + 1, 2]) - 128


def test_inputs_are_the_codes_over_128():
    images = people()["images"]
    x = to_input(images)
    assert x.dtype == torch.float32 and x.shape == (6, 12, 32, 32)
    assert torch.equal(x * 128, torch.from_numpy(to_codes(images)).float())
    with pytest.raises(TypeError, match="images must be a NumPy array of uint8, not float64"):
        to_input(images / 255)


def test_codes_need_no_torch():
    code = "import sys; from qatcourse.people import lsp; from qatcourse.pose import data, metrics; data.to_codes"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


RIGHT, LEFT = JOINTS.index("r wrist"), JOINTS.index("l wrist")


def still(n: int, **changes) -> Moves:
    return Moves(np.zeros(n), np.zeros(n), np.zeros((n, 2)), np.zeros(n, bool))._replace(**changes)


def any_moves(n: int, rng) -> Moves:
    angle, zoom = (rng.uniform(-limit, limit, n) for limit in (np.radians(TURN), np.log(ZOOM)))
    return Moves(angle, zoom, rng.uniform(-SHIFT, SHIFT, (n, 2)), rng.random(n) < 0.5)


def marked(n: int, side: int, rng) -> PoseSet:
    """Grey photographs in which a red square is the left wrist and a blue one the right; both, and nothing else, are labelled."""
    crops, joints = np.full((n, STORED, STORED, 3), 128, np.uint8), np.zeros((n, 14, 2), np.float32)
    for crop, joint in zip(crops, joints):
        for which, colour in ((LEFT, 0), (RIGHT, 2)):
            x, y = rng.integers(70, 90) + (30 if which == LEFT else 0), rng.integers(76, 116)
            crop[y - 4 : y + 5, x - 4 : x + 5, colour] = 255
            joint[which] = (np.array([x, y]) + 0.5 - STORED / 2) * side / CENTRAL + side / 2
    labelled = np.isin(np.arange(14), (LEFT, RIGHT)) & np.ones((n, 1), bool)
    return PoseSet(moved(crops, side, still(n)), joints, labelled, labelled, "lsp", crops)


def centre(image: np.ndarray, colour: int) -> np.ndarray:
    weight = np.abs(image[..., colour].astype(float) - image[0, 0, colour])
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def test_without_a_move_a_picture_is_the_middle_of_its_crop():
    crops = np.random.default_rng(0).integers(0, 256, (70, STORED, STORED, 3), dtype=np.uint8)  # more than one part of 64
    middle = crops[:, 32:160, 32:160]
    assert np.array_equal(moved(crops, 128, still(70)), middle)
    means = middle.reshape(70, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(moved(crops, 64, still(70)) - means).max() <= 0.5 + 1e-3  # halves go either way


def test_what_lies_around_the_middle_comes_in_and_beyond_the_crop_all_is_grey():
    crops = np.full((1, STORED, STORED, 3), 200, np.uint8)
    half = moved(crops, 128, still(1, zoom=np.log([0.5])))[0, :, :, 0]  # the crop's 192 pixels in the middle 96
    assert (half[17:111, 17:111] == 200).all() and (half[:15] == 128).all() and (half[:, 113:] == 128).all()
    extremes = Moves(np.radians([45.0]), np.zeros(1), np.zeros((1, 2)), np.zeros(1, bool))
    assert (moved(crops, 64, extremes) == 200).all()  # 128 times the root of 2 is below 192


@pytest.mark.parametrize("side", [64, 128])
def test_joints_move_with_their_pixels(side):
    rng = np.random.default_rng(side)
    poses, moves = marked(40, side, rng), any_moves(40, rng)
    images, joints = moved(poses.crops, side, moves), moved_joints(poses.joints, side, moves)
    assert joints.dtype == np.float32 and images.shape == poses.images.shape
    for image, joint, mirrored in zip(images, joints, moves.mirrored):
        red, blue = (RIGHT, LEFT) if mirrored else (LEFT, RIGHT)
        assert np.abs(centre(image, 0) - joint[red]).max() < 0.1 and np.abs(centre(image, 2) - joint[blue]).max() < 0.1
    assert 5 < moves.mirrored.sum() < 35 and np.abs(joints - poses.joints)[:, [LEFT, RIGHT]].max() > side / 16


def test_each_move_is_what_its_name_says():
    corner = np.full((1, 14, 2), [48.0, 32.0], np.float32)  # right of the middle of a picture of 64 pixels

    def goes(**change):
        return moved_joints(corner, 64, still(1, **change))[0, 0].tolist()

    assert goes() == [48, 32] and goes(mirrored=np.array([True])) == [16, 32]
    assert goes(angle=np.radians([90.0])) == pytest.approx([32, 48])  # clockwise: to the bottom
    assert goes(zoom=np.log([1.5])) == pytest.approx([56, 32]) and goes(shift=np.array([[0.25, -0.5]])) == [64, 0]
    both = goes(angle=np.radians([90.0]), mirrored=np.array([True]))
    assert both == pytest.approx([32, 16])  # mirrored first
    assert sorted(MIRRORED) == list(range(14)) and [JOINTS[j][2:] for j in MIRRORED[:12]] == [name[2:] for name in JOINTS[:12]]


@pytest.mark.parametrize("side", [64, 128])
def test_augmented_photographs_know_left_from_right(side):
    poses = marked(60, side, np.random.default_rng(1))
    poses.labelled[:, RIGHT] = False
    given = [part.copy() for part in (poses.images, poses.joints, poses.labelled, poses.crops)]
    images, joints, labelled = augment(poses, np.random.default_rng(2))
    assert all(np.array_equal(a, b) for a, b in zip(given, (poses.images, poses.joints, poses.labelled, poses.crops)))
    assert (labelled.sum(axis=1) == 1).all() and 15 < labelled[:, RIGHT].sum() < 45 and labelled[:, [LEFT, RIGHT]].any(axis=1).all()
    for image, joint in zip(images, joints[labelled]):
        assert np.abs(centre(image, 0) - joint).max() < 0.2  # colours vary, too, and are rounded
    assert PoseSet(images, joints, labelled, labelled).side == side
    again = augment(poses, np.random.default_rng(2))
    assert all(np.array_equal(a, b) for a, b in zip((images, joints, labelled), again))
    assert not np.array_equal(images, augment(poses, np.random.default_rng(3))[0])


def test_joints_that_leave_the_picture_are_not_labelled():
    poses = marked(60, 64, np.random.default_rng(1))
    poses.joints[:, LEFT] = 63
    _, joints, labelled = augment(poses, np.random.default_rng(2))
    inside = ((joints >= 0) & (joints < 64)).all(axis=2)
    assert (labelled[:, [LEFT, RIGHT]] == inside[:, [LEFT, RIGHT]]).all() and 20 < labelled.sum() < 110
    assert labelled.sum() == labelled[:, [LEFT, RIGHT]].sum()


def test_augmented_drawn_people_keep_their_places_and_depend_on_the_generator_alone(figures):
    images, joints, labelled = augment(figures, np.random.default_rng(5))
    assert np.array_equal(images, augment(figures, np.random.default_rng(5))[0])
    assert np.array_equal(joints, figures.joints) and np.array_equal(labelled, figures.labelled)
    assert not np.array_equal(images, figures.images)
    darker = images.astype(int).mean(axis=(1, 2, 3)) - figures.images.astype(int).mean(axis=(1, 2, 3))
    assert np.abs(darker).max() < 16 + 128 * (1.15 * 1.06 - 1) + 1  # offset, gain at the ends of the range, rounding


def test_selected_photographs_bring_their_crops():
    poses = marked(6, 64, np.random.default_rng(0))
    assert np.array_equal(poses[[4, 1]].crops, poses.crops[[4, 1]]) and poses[2].crops.shape == (1, STORED, STORED, 3)
    assert poses.subset(4).crops.shape[0] == 4 and PoseSet(**people())[:2].crops is None
