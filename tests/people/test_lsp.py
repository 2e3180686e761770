"""The photograph loader, on tiny folders in the published layouts; and on the real set where a copy is at hand."""

import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from qatcourse.people import lsp
from qatcourse.pose.data import load

REAL = Path(os.environ.get("QATLIB_LSPET", Path(__file__).resolve().parents[3] / "shared/data/lspet"))
COUNT, HEIGHT, WIDTH = 20, 150, 120


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QATLIB_CACHE", str(tmp_path / "cache"))


def truth() -> np.ndarray:
    """Where the joints are, (COUNT, 14, 2), origin top left: middles of pixels of the photograph, each person elsewhere."""
    rng = np.random.default_rng(0)
    return np.floor(rng.uniform(20, 80, (COUNT, 14, 2)) + rng.uniform(0, 20, (COUNT, 1, 2))) + 0.5


def make(folder: Path, digits: int, order=(1, 2, 0), flags: np.ndarray | None = None, numbers=range(1, COUNT + 1)) -> Path:
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
    savemat(folder / "joints.mat", {"joints": table.transpose(order)})
    return folder


def check_places(people) -> None:
    """Joint 0 lies where the white square does; a quarter of a photograph's pixel for resampling and JPEG."""
    for image, joint in zip(people.images, people.joints[:, 0]):
        weight = np.maximum(image[..., 0].astype(float) - 100, 0)
        rows, columns = np.indices(weight.shape) + 0.5
        centre = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
        assert np.abs(centre - joint).max() < 0.25 * people.side / 64


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("digits", [4, 5])
def test_joints_land_on_what_they_mark(tmp_path, digits, side):
    flags = np.zeros((COUNT, 14)) if digits == 4 else np.ones((COUNT, 14))
    people = load(f"lsp:{make(tmp_path / 'set', digits, flags=flags)}", "train", progress=False, side=side)
    assert len(people) == (COUNT if digits == 4 else COUNT * 9 // 10)
    assert people.side == side and people.labelled.all() and people.visible.all()
    check_places(people)
    assert people.joints.min() > 5 / 64 * side and people.joints.max() < 59 / 64 * side  # the margin on every side
    assert np.array_equal(people.images, load(f"lsp:{tmp_path / 'set'}", "train", progress=False, side=side).images)


def test_pictures_may_be_missing_and_have_other_endings(tmp_path):
    folder = make(tmp_path / "set", 5, numbers=[2, 3, 5, 7, 8, 13, 14, 15, 19, 20])
    for number, ending in ((3, ".JPG"), (7, ".jpeg"), (13, ".Jpeg")):
        (folder / f"images/im{number:05d}.jpg").rename(folder / f"images/im{number:05d}{ending}")
    (folder / "images" / "notes.txt").write_text("no picture")
    people = load(f"lsp:{folder}", "train", progress=False)
    assert len(people) == 9 and people.side == 128
    check_places(people)


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0), (0, 1, 2), (0, 2, 1)], ids=["14 3 N", "3 14 N", "N 14 3", "N 3 14"])
def test_joints_are_read_in_any_order_of_axes(tmp_path, order):
    flags = (np.random.default_rng(1).random((COUNT, 14)) < 0.5).astype(float)
    joints, found = lsp.read_joints(make(tmp_path / "set", 5, order, flags) / "joints.mat")
    assert np.array_equal(joints, truth()) and np.array_equal(found, flags == 1)


def as_matlab_73(folder: Path, name: str = "joints") -> Path:
    """The joints.mat of `folder` as MATLAB 7.3 writes it: HDF5 with the axes reversed, behind 512 bytes of MATLAB's own."""
    table = loadmat(folder / "joints.mat")["joints"]
    with h5py.File(folder / "joints.mat", "w", userblock_size=512) as file:
        file[name] = table.T
    with open(folder / "joints.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    return folder / "joints.mat"


def test_a_file_of_matlab_73_is_read_where_h5py_is_installed(tmp_path, monkeypatch):
    path = as_matlab_73(make(tmp_path / "set", 5))
    assert np.array_equal(lsp.read_joints(path)[0], truth())
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "h5py", None)
        with pytest.raises(ImportError, match=r"joints.mat is of MATLAB 7.3 \(HDF5\); .*: pip install h5py"):
            lsp.read_joints(path)
    with pytest.raises(ValueError, match=r"joints.mat holds no array `joints`, only \['names'\]"):
        lsp.read_joints(as_matlab_73(make(tmp_path / "other", 5), "names"))
    truncate(path)
    with pytest.raises(ValueError, match="joints.mat is damaged"):
        lsp.read_joints(path)


def test_a_file_of_hdf5_without_matlab_s_header_is_read_too(tmp_path):
    folder = make(tmp_path / "set", 5)
    table = loadmat(folder / "joints.mat")["joints"]
    with h5py.File(folder / "joints.mat", "w") as file:
        file["joints"] = table
    assert np.array_equal(lsp.read_joints(folder / "joints.mat")[0], truth())


def in_capitals(folder: Path) -> None:
    for path in (*(folder / "images").iterdir(), folder / "images", folder / "joints.mat"):
        path.rename(path.with_name(path.name.upper()))


def other_habits(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    for name in (".DS_Store", "._im00001.png", "im00001 (1).jpg", "Thumbs.db"):
        (folder / "images" / name).write_bytes(b"no picture")
    savemat(folder / "joints.mat", {"Joints": loadmat(folder / "joints.mat")["joints"], "N": 20}, do_compression=True)


@pytest.mark.parametrize("change", [in_capitals, other_habits])
def test_names_in_capitals_and_other_habits_are_read(change, tmp_path):
    folder = make(tmp_path / "my own set", 5)
    change(folder)
    people = load(f"lsp:{folder}/", "train", progress=False)
    assert len(people) == 18
    check_places(people)


def test_beyond_the_photograph_all_is_grey():
    pixels = np.random.default_rng(0).integers(129, 256, (100, 110, 3), dtype=np.uint8)
    extent = np.array([[5.0, 10.0], [105.0, 90.0]])  # 100 pixels wide: the square is 192, one pixel for each of the crop
    found, joints = lsp.crop(Image.fromarray(pixels), extent, np.ones(2, bool))
    expected = np.full((192, 192, 3), 128, np.uint8)
    expected[46:146, 41:151] = pixels
    assert np.array_equal(found, expected) and np.allclose(joints, extent + (41, 46))


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
    assert not people.visible[3, 5] and np.isfinite(people.joints).all()


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
        (lambda f: savemat(f / "joints.mat", {"other": np.zeros(3)}), ValueError, r"no array `joints`, only \['other'\]; save"),
        (lambda f: savemat(f / "joints.mat", {"joints": {"x": np.zeros(3)}}), ValueError, r"`joints` of shape \(1, 1\); save"),
        (lambda f: savemat(f / "joints.mat", {"joints": np.ones((3, 14, 20)) * 1j}), ValueError, "not finite numbers; copy"),
        (lambda f: (f / "joints.mat").write_bytes(b""), ValueError, "joints.mat is damaged or no file of MATLAB's"),
        (lambda f: (f / "joints.mat").rename(f / "joints.csv"), FileNotFoundError, "joints.mat is missing"),
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
        (lambda f: (f / "images/im00001.JPG").write_bytes(b""), ValueError, "picture 00001 under two names .*; remove one of them"),
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
