"""The drawn people: the same bytes everywhere, honest labels, bodies within their limits, a cache that heals itself."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qatcourse.people import body, clothes, drawing
from qatcourse.people import crowd as figures
from qatcourse.people.body import JOINTS, LIMITS, Difficulty
from qatcourse.people.data_card import contact_sheet, statistics

ROOT = Path(__file__).resolve().parents[2]
PINNED = "53ef66e3cd32455c1ed7029fc501e98831ed43edd521912bd20b53e9ff4dc346"


@pytest.fixture(scope="module")
def people():
    return figures.draw(2 * figures.CHUNK, seed=11, workers=1, progress=False)


def digest(people) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in people)).hexdigest()


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_same_bytes_as_ever():
    assert digest(figures.draw(40, seed=7, workers=1, progress=False)) == PINNED


def test_workers_and_length_do_not_matter(people):
    more = figures.draw(2 * figures.CHUNK + 5, seed=11, workers=2, progress=False)
    assert same(people, [part[: len(people.images)] for part in more])
    assert same([part[:3] for part in people], figures.draw(3, seed=11, workers=2, progress=False))


def test_another_seed_gives_other_pictures(people):
    other = figures.draw(8, seed=12, workers=1, progress=False)
    assert not any(np.array_equal(a, b) for a in other.images for b in people.images)


def test_script_without_main_guard_beside_torch_threads(tmp_path):
    """Forked workers must not wait for locks that torch's threads held, nor need the guard that spawned ones need."""
    script = tmp_path / "plain.py"
    script.write_text(
        "import torch\n"
        "torch.set_num_threads(2)\n"
        "(torch.rand(300, 300) @ torch.rand(300, 300)).sum()\n"
        "from qatcourse.people.crowd import draw\n"
        "print(draw(600, 0, workers=2, progress=False).images.shape)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.strip() == "(600, 64, 64, 3)", done.stderr


def test_shapes_types_and_labels(people):
    n = 2 * figures.CHUNK
    assert [(p.shape, p.dtype.name) for p in people] == [
        ((n, 64, 64, 3), "uint8"), ((n, 14, 2), "float32"), ((n, 14), "bool"), ((n, 14), "bool"),
    ]  # fmt: skip
    inside = np.all((people.joints >= 0) & (people.joints < 64), axis=-1)
    assert np.array_equal(people.labelled, inside)
    assert not np.any(people.visible & ~people.labelled)
    assert np.array_equal(people.joints * 64, np.round(people.joints * 64))  # the grid of 1/64 pixel
    assert np.all(people.images.std(axis=(1, 2, 3)) > 5)  # no empty picture


def test_angles_stay_within_the_joint_limits_and_use_them():
    angles = body.pose_angles(drawing.Uniforms(5, 0), 20_000)
    assert len(angles) == 5 + 2 * 7
    for name, values in angles.items():
        low, high = LIMITS[name.removesuffix(" r").removesuffix(" l")]
        assert low <= values.min() and values.max() <= high, name
        assert values.max() - values.min() > (high - low) / 3, f"{name} hardly moves"


def test_skeleton_has_the_bones_and_bends_that_were_asked_for():
    uniforms, n = drawing.Uniforms(5, 1), 500
    angles = body.pose_angles(uniforms, n)
    points = body.skeleton(angles, uniforms, uniforms(n, low=-180, high=180), uniforms(n, low=-30, high=30))
    for side in ("r", "l"):
        thigh = points[f"{side} knee"] - points[f"{side} hip"]
        shin = points[f"{side} ankle"] - points[f"{side} knee"]
        upper = points[f"{side} elbow"] - points[f"{side} shoulder"]
        fore = points[f"{side} wrist"] - points[f"{side} elbow"]
        for bone, length in ((thigh, 0.245), (shin, 0.245), (upper, 0.17), (fore, 0.145)):
            share = np.linalg.norm(bone, axis=1) / length
            assert share.min() > 0.9 - 1e-6 and share.max() < 1.1 + 1e-6  # bones vary by 10 % at most
        for a, b, name in ((thigh, shin, "knee"), (upper, fore, "elbow")):
            cosine = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            wanted = np.cos(np.radians(angles[f"{name} {side}"]))
            assert np.max(np.abs(cosine - wanted)) < 1e-6  # the sine's polynomial is good to 1e-9, and a turn adds a few
        toe = points[f"{side} toe"] - points[f"{side} ankle"]
        straight = points[f"{side} knee"] + thigh
        bent = angles[f"knee {side}"] > 20
        backwards = np.sum((points[f"{side} ankle"] - straight) * toe, axis=1)[bent]
        assert np.all(backwards < 0)  # a knee takes the foot to the heel's side, never to the toes'


@pytest.mark.parametrize(("yaw", "axis", "sign"), [(0, 0, 1), (180, 0, -1), (90, 2, -1), (-90, 2, 1)])
def test_right_and_left_are_the_persons_own(yaw, axis, sign):
    """Facing the viewer the left is on the picture's right, from behind on its left; facing right the right side is near."""
    upright = {name: np.zeros(1) for name in body.pose_angles(drawing.Uniforms(0, 0), 1)}
    points = body.skeleton(upright, drawing.Uniforms(0, 1), np.full(1, float(yaw)), np.zeros(1))
    for joint in ("shoulder", "hip", "ankle"):
        assert sign * (points[f"l {joint}"] - points[f"r {joint}"])[0, axis] > 0.05


def test_pictures_tell_front_from_back():
    """The same people (same stream) from in front and from behind: a face against hair, found by a linear rule."""
    views = [
        figures._draw_chunk(3, 0, Difficulty(back=back, side=0.0, occluded=0.0, cropped=0.0, clutter=0)) for back in (0, 1)
    ]
    patches = []
    for view in views:
        middle = np.floor(view.joints[:, 13] * 0.6 + view.joints[:, 12] * 0.4).astype(int)
        rows, columns = (np.clip(middle[:, [axis]], 2, 61)[..., None] for axis in (1, 0))
        steps = np.arange(-2, 3)
        patches.append(view.images[np.arange(len(middle))[:, None, None], rows + steps[:, None], columns + steps])
    data = np.concatenate(patches).reshape(2 * figures.CHUNK, -1) / 255.0
    data = np.concatenate([data, np.ones((len(data), 1))], axis=1)
    target = np.repeat([1.0, -1.0], figures.CHUNK)
    fit = np.arange(len(data)) % 2 == 0
    weights = np.linalg.solve(data[fit].T @ data[fit] + np.eye(data.shape[1]), data[fit].T @ target[fit])
    right = np.mean(np.sign(data[~fit] @ weights) == target[~fit])
    assert right > 0.7  # chance is 0.5 with a standard deviation of 0.03 on 256 pictures


def test_both_sides_are_alike(people):
    """No side is favoured: swap right and left and the shares stay, within 5 standard deviations of a difference."""
    for name in ("ankle", "knee", "hip", "wrist", "elbow", "shoulder"):
        right, left = (people.visible[:, JOINTS.index(f"{side} {name}")] for side in "rl")
        assert abs(right.mean() - left.mean()) < 5 * np.sqrt(2 * 0.25 / len(right))


def test_hidden_joints_are_rare_and_have_reasons(people):
    hidden = 1 - people.visible[people.labelled].mean()
    assert 0.04 < hidden < 0.2  # bodies hide their far side in side views, a tenth of all; things in front hide about 1 % more
    bare = figures._draw_chunk(11, 0, Difficulty(occluded=0.0))
    covered = figures._draw_chunk(11, 0, Difficulty(occluded=1.0))
    assert np.array_equal(bare.joints, covered.joints)
    assert not np.any(covered.visible & ~bare.visible)  # a thing in front never uncovers a joint
    assert covered.visible.mean() < bare.visible.mean() - 0.02


def test_far_shoulder_of_a_side_view_is_hidden():
    n = 64
    upright = {name: np.zeros(n) for name in body.pose_angles(drawing.Uniforms(0, 0), 1)}
    uniforms = drawing.Uniforms(0, 2)
    points = body.skeleton(upright, uniforms, np.full(n, 90.0), np.zeros(n))
    points, height = body.place(points, uniforms, Difficulty(cropped=0.0))
    parts = np.zeros((n, 64, 64), np.uint8)
    drawing.paint(np.zeros((3, n, 64, 64), np.float32), parts, *clothes.dress(points, height, uniforms), np.zeros((n, 2)))
    _, _, visible = clothes.labels(points, parts, height)
    seen = dict(zip(JOINTS, visible.mean(axis=0), strict=True))
    assert seen["r shoulder"] == 1 and seen["l shoulder"] == 0
    assert seen["r knee"] > 0.85 and seen["l knee"] == 0  # some wear a skirt over both


def test_a_capsule_covers_what_geometry_says():
    canvas, parts = np.zeros((3, 1, 64, 64), np.float32), np.zeros((1, 64, 64), np.uint8)
    capsule = np.zeros((1, 1, len(drawing.FIELDS)))
    capsule[0, 0, :7] = (20, 30, 40, 30, 4, 4, 200)
    capsule[0, 0, 12] = 2
    drawing.paint(canvas, parts, capsule, np.full((1, 1), 9, np.uint8), np.zeros((1, 2)))
    y, x = np.mgrid[:64, :64] + 0.5
    distance = np.hypot(x - np.clip(x, 20, 40), y - 30)
    assert np.array_equal(parts[0] == 9, distance <= 4)
    assert np.array_equal(canvas[0, 0] > 0, distance < 4.5) and canvas[1].max() == 0


def test_sine_and_bytes():
    angles = np.linspace(-720, 720, 4321)
    assert np.max(np.abs(drawing.sine(angles) - np.sin(np.radians(angles)))) < 1e-9
    assert np.max(np.abs(drawing.cosine(angles) - np.cos(np.radians(angles)))) < 1e-9
    counts = np.bincount(drawing.Uniforms(1, 1).bytes(256_000), minlength=256)
    assert np.all(np.abs(counts - 1000) < 6 * np.sqrt(1000))


def test_cache_keeps_and_heals(tmp_path, capsys):
    first = figures.cached(5, 1, "train", folder=tmp_path, workers=1, progress=False)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    assert same(first, figures.cached(5, 1, "train", folder=tmp_path, progress=False))
    assert path.stat().st_mtime_ns == written
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], b"", whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]):
        path.write_bytes(damaged)
        assert same(first, figures.cached(5, 1, "train", folder=tmp_path, workers=1, progress=False))
        assert "damaged" in capsys.readouterr().out
        assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == 1


def test_outdated_pictures_are_drawn_again_and_removed(tmp_path, monkeypatch):
    figures.cached(2, 1, "train", folder=tmp_path, workers=1, progress=False)
    (tmp_path / "figures-train-seed1-n20-other.npz").write_bytes(b"another number of pictures")
    monkeypatch.setattr(figures, "_recipe", lambda: "changed")
    figures.cached(2, 1, "train", folder=tmp_path, workers=1, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "figures-train-seed1-n2-changed.npz", "figures-train-seed1-n20-other.npz",
    }  # fmt: skip


def test_splits_share_no_picture(tmp_path):
    for seed in (0, 1):
        train, test = (figures.cached(4, seed, split, tmp_path, 1, progress=False) for split in figures.SPLITS)
        assert not any(np.array_equal(a, b) for a in train.images for b in test.images)
    assert len(list(tmp_path.iterdir())) == 4


def test_cache_folder_choices(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QATLIB_CACHE", str(tmp_path / "mine"))
    figures.cached(2, 0, "test", workers=1, progress=False)
    assert len(list((tmp_path / "mine").iterdir())) == 1
    (tmp_path / "file").write_text("not a folder")
    drawn = figures.cached(2, 0, "test", folder=tmp_path / "file" / "below", workers=1, progress=False)
    assert len(drawn.images) == 2 and "not kept" in capsys.readouterr().out
    monkeypatch.delenv("QATLIB_CACHE")
    assert figures.cache_folder() == ROOT / "data" / "cache"


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: figures.draw(0, 0), ValueError, "n = 0"),
        (lambda: figures.draw(3, -1), ValueError, "seed = -1"),
        (lambda: figures.draw(3, 2**31), ValueError, "seed = 2147483648"),
        (lambda: figures.draw(3, 0, workers=0), ValueError, "workers = 0"),
        (lambda: figures.draw(2.5, 0), TypeError, "n must be an integer, not 2.5"),
        (lambda: figures.draw(3, "0"), TypeError, "seed must be an integer"),
        (lambda: figures.cached(3, 0, "validation"), ValueError, "choose one of train, test"),
        (lambda: figures.cached(3, 2**30, "train"), ValueError, "seed = 1073741824"),
        (lambda: figures.cached(-3, 0, "train"), ValueError, "n = -3"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_progress_and_rate_are_shown(capsys):
    figures.draw(3, 0, workers=1)
    shown = capsys.readouterr()
    assert "drew 3 pictures in" in shown.out and "a second on 1 worker" in shown.out and "3/3" in shown.err


def test_data_card_quotes_what_is_measured():
    """After a change to the drawing: `python -m qatcourse.people.data_card --card` prints the new text for data/README.md."""
    assert statistics() in (ROOT / "data" / "README.md").read_text()


def test_contact_sheet_is_small(tmp_path):
    contact_sheet(tmp_path / "sheet.png")
    assert 20_000 < (tmp_path / "sheet.png").stat().st_size < 300_000
    assert (ROOT / "data" / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"
