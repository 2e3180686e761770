"""The photograph loader, on tiny folders in the published layouts; and on the real set where a copy is at hand."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from qatcourse.people import lsp
from qatcourse.pose.data import load

REAL = Path(os.environ.get("QATLIB_LSPET", Path(__file__).resolve().parents[3] / "shared/data/lspet"))
COUNT, HEIGHT, WIDTH = 20, 150, 120


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QATLIB_CACHE", str(tmp_path / "cache"))


def truth() -> np.ndarray:
    """Where the joints are, (COUNT, 14, 2), origin top left: inside the photograph, each person elsewhere."""
    rng = np.random.default_rng(0)
    return rng.uniform(20, 80, (COUNT, 14, 2)) + rng.uniform(0, 20, (COUNT, 1, 2))


def make(folder: Path, digits: int, first_axis: int = 14, flags: np.ndarray | None = None, numbers=range(1, COUNT + 1)) -> Path:
    """A folder with grey photographs in which a white square of 5x5 pixels marks joint 0, and matching labels."""
    points = truth()
    flags = np.ones((COUNT, 14)) if flags is None else flags
    (folder / "images").mkdir(parents=True)
    for number in numbers:
        pixels = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
        x, y = np.floor(points[number - 1, 0]).astype(int)
        pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
        Image.fromarray(pixels).save(folder / "images" / f"im{number:0{digits}d}.jpg", quality=95)
    table = np.concatenate([points + 0.5, flags[..., None]], axis=2)  # MATLAB's pixel centres are whole numbers from 1
    savemat(folder / "joints.mat", {"joints": table.transpose((1, 2, 0) if first_axis == 14 else (2, 1, 0))})
    return folder


@pytest.mark.parametrize("first_axis", [3, 14])
@pytest.mark.parametrize("digits", [4, 5])
def test_joints_land_on_what_they_mark(tmp_path, digits, first_axis):
    flags = np.zeros((COUNT, 14)) if digits == 4 else np.ones((COUNT, 14))
    people = load(f"lsp:{make(tmp_path / 'set', digits, first_axis, flags)}", "train", progress=False)
    assert len(people) == (COUNT if digits == 4 else COUNT * 9 // 10)
    assert people.labelled.all() and people.visible.all()
    for image, joint in zip(people.images, people.joints[:, 0]):
        weight = np.maximum(image[..., 0].astype(float) - 100, 0)
        rows, columns = np.indices(weight.shape) + 0.5
        centre = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
        # the square's middle is at most half a photograph pixel (< 0.5 here) from the joint; 0.25 for resampling and JPEG
        assert np.abs(centre - joint).max() < 0.75
    assert people.joints.min() > 5 and people.joints.max() < 59  # the margin on every side


def test_flags_mean_hidden_in_lsp_and_labelled_in_the_extended_set(tmp_path):
    flags = (np.random.default_rng(1).random((COUNT, 14)) < 0.5).astype(float)
    original = load(f"lsp:{make(tmp_path / 'lsp', 4, flags=flags)}", "train", progress=False)
    assert original.labelled.all()
    assert np.array_equal(original.visible, flags == 0)
    extended = load(f"lsp:{make(tmp_path / 'lspet', 5, flags=flags)}", "train", progress=False)
    assert np.array_equal(extended.labelled, flags[:18] == 1)
    assert np.array_equal(extended.visible, extended.labelled)


def test_a_joint_outside_the_photograph_is_not_labelled(tmp_path, monkeypatch):
    points = truth()
    points[3, 5] = (-400, 1e7)
    monkeypatch.setitem(globals(), "truth", lambda: points)
    people = load(f"lsp:{make(tmp_path / 'set', 5)}", "train", progress=False)
    assert np.argwhere(~people.labelled).tolist() == [[3, 5]]
    assert people.joints[3, 5].tolist() == [0, 0]


def test_splits_share_no_picture_and_part_of_a_set_is_enough(tmp_path):
    folder = make(tmp_path / "set", 5, numbers=[2, 3, 5, 7, 8, 11, 13, 17, 19, 20])
    train, test = (lsp.read(folder, split, progress=False)[0] for split in ("train", "test"))
    assert len(train) == 9 and len(test) == 1
    every = np.concatenate([train, test]).reshape(10, -1)
    assert len(np.unique(every, axis=0)) == 10


def test_lsp_is_split_as_published(tmp_path):
    folder = make(tmp_path / "set", 4)
    names = {number: folder / "images" / f"im{number:04d}.jpg" for number in (1000, 1001, 2000)}
    for path in names.values():
        path.write_bytes((folder / "images" / "im0001.jpg").read_bytes())
    savemat(folder / "joints.mat", {"joints": np.random.default_rng(0).uniform(20, 90, (3, 14, 2000))})
    assert len(lsp.read(folder, "train", progress=False)[0]) == COUNT + 1
    assert len(lsp.read(folder, "test", progress=False)[0]) == 2


def test_people_without_a_label_are_left_out(tmp_path):
    flags = np.ones((COUNT, 14))
    flags[[0, 4]] = 0
    folder = make(tmp_path / "set", 5, flags=flags)
    assert len(load(f"lsp:{folder}", "train", progress=False)) == 16
    assert len(load(f"lsp:{folder}", "train", n=3, progress=False)) == 3


def test_crops_are_read_back_from_the_cache_until_a_file_changes(tmp_path, monkeypatch):
    folder = make(tmp_path / "set", 5)
    first = lsp.read(folder, "test", progress=False)
    opened = []
    monkeypatch.setattr(lsp, "_open", lambda path, _open=lsp._open: opened.append(path.name) or _open(path))
    second = lsp.read(folder, "test", progress=False)
    assert not opened and all(np.array_equal(a, b) for a, b in zip(first, second))
    Image.new("RGB", (WIDTH, HEIGHT), (200, 0, 0)).save(folder / "images" / "im00020.jpg")
    assert not np.array_equal(lsp.read(folder, "test", progress=False)[0], first[0])
    assert opened == ["im00019.jpg", "im00020.jpg"]


def overwrite(raw: bytes) -> bytes:
    return raw[:2000] + bytes(byte ^ 255 for byte in raw[2000:2010]) + raw[2010:]


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", overwrite])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    folder = make(tmp_path / "set", 5)
    first = lsp.read(folder, "test", progress=False)
    (cache,) = (tmp_path / "cache").glob("lsp-*.npz")
    cache.write_bytes(damage(cache.read_bytes()))
    assert all(np.array_equal(a, b) for a, b in zip(first, lsp.read(folder, "test", progress=False)))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda f: (f / "joints.mat").unlink(), FileNotFoundError, "joints.mat is missing"),
        (lambda f: truncate(f / "joints.mat"), ValueError, "joints.mat is damaged"),
        (lambda f: (f / "joints.mat").write_bytes(b"no MATLAB here"), ValueError, "joints.mat is damaged"),
        (lambda f: savemat(f / "joints.mat", {"other": np.zeros(3)}), ValueError, "joints.mat holds no array `joints`"),
        (lambda f: savemat(f / "joints.mat", {"joints": np.zeros((4, 14, 20))}), ValueError, r"shape \(4, 14, 20\)"),
        (lambda f: savemat(f / "joints.mat", {"joints": np.full((3, 14, 20), np.nan)}), ValueError, "not finite"),
        (lambda f: savemat(f / "joints.mat", {"joints": np.ones((3, 14, 12))}), ValueError, "pictures 1 to 12, but im00020.jpg"),
        (lambda f: (f / "images/im00001.jpg").rename(f / "images/im00000.jpg"), ValueError, "but im00000.jpg is there"),
        (lambda f: savemat(f / "joints.mat", {"joints": np.full((3, 14, 20), 900.0)}), ValueError, "no labelled joint inside"),
        (lambda f: savemat(f / "joints.mat", {"joints": np.zeros((3, 14, 20))}), ValueError, "no labelled picture for test"),
        (lambda f: truncate(f / "images/im00020.jpg"), ValueError, "im00020.jpg is not a readable picture"),
        (lambda f: (f / "images/im00020.jpg").write_bytes(b"GIF"), ValueError, "im00020.jpg is not a readable picture"),
        (lambda f: [p.unlink() for p in (f / "images").iterdir()], FileNotFoundError, "images holds no picture"),
        (lambda f: (f / "images").rename(f / "pictures"), FileNotFoundError, "there is no folder .*images"),
        (lambda f: (f / "images/im00001.jpg").rename(f / "images/im0001.jpg"), ValueError, "mixes names"),
        (lambda f: f.rename(f.with_name("elsewhere")), FileNotFoundError, "there is no folder .*set"),
    ],
)
def test_what_is_missing_or_damaged_is_named(tmp_path, damage, error, says):
    folder = make(tmp_path / "set", 5)
    damage(folder)
    with pytest.raises(error, match=says):
        load(f"lsp:{folder}", "test", progress=False)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no photographs at {REAL}; set QATLIB_LSPET to a Leeds Sports Pose Extended folder")
def test_the_real_photographs():
    people = load(f"lsp:{REAL}", "test", n=100, progress=False)
    assert len(people) == 100 and people.images.std() > 30
    assert 0.7 < people.labelled.mean() < 1
    ankles, head = people.joints[:, [0, 5], 1], people.joints[:, 13, 1]
    both = people.labelled[:, [0, 5, 13]].all(axis=1)
    assert (ankles[both].mean(axis=1) > head[both]).mean() > 0.6  # most people stand: y points down
