"""Photographs of people: a folder in the official layout of Leeds Sports Pose (LSP) or LSP-extended.

    folder/joints.mat                  `joints`, numbers (3, 14, N) or (14, 3, N): x, y, flag (MATLAB 5; 7.3 with h5py)
    folder/images/im0001.jpg ...       LSP, 2,000 pictures;  im00001.jpg ... LSP-extended, 10,000; .jpeg and .png, too

Names may be written in capitals.

Johnson and Everingham, "Clustered pose and nonlinear appearance models for human pose estimation" (BMVC 2010) and "Learning
effective human pose estimation from inaccurate annotation" (CVPR 2011). The two sets write the flag differently: in LSP every
joint is labelled and the flag says whether it is *hidden*; in LSP-extended it says whether it is *labelled* (the coordinates of
the others are garbage). The width of the number in the file names tells the sets apart. Some of a set's pictures are enough.

Each person is stored as a square of STORED pixels. Its central CENTRAL pixels are the person: a square around the labelled
joints, `MARGIN` wider, so that head and feet stay in. What lies around is there for the turns and shifts of training, so that
these bring in more of the photograph and no invented border; only beyond the photograph itself everything is grey (code 0). The
labels thus say where the person is, in the test set too: this measures pose, not finding people.
"""

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from tqdm.auto import tqdm

from qatcourse.people import CENTRAL, STORED
from qatcourse.people.body import JOINTS
from qatcourse.people.cache import cache_folder, kept

MARGIN = 0.28  # the square's side is (1 + MARGIN) times the larger extent of the labelled joints
LEAST_SIDE = 32.0  # pixels of the photograph: one labelled joint must not become a blur
LSP_TRAIN = 1000  # LSP: 1-1000 train, 1001-2000 test, as published; LSP-extended: the last tenth of the present files is test
_RECIPE = 2  # part of the cache's name; raised when a crop changes


def read(folder: str | os.PathLike, split: str, n: int | None = None, progress: bool = True) -> tuple[np.ndarray, ...]:
    """The first `n` people of `split` (None: all): crops (n, STORED, STORED, 3) uint8, joints in their pixels (n, 14, 2),
    labelled and visible (n, 14).

    LSP-extended has no official split: the last tenth of the pictures that are present is the test set. Decoded crops are kept
    in the cache folder. Raises FileNotFoundError or ValueError, naming the file and the remedy, where the folder, joints.mat
    or all pictures are missing, or where one of them is damaged, and OSError where one cannot be read.
    """
    folder = Path(os.path.expanduser(folder))
    with _readable():
        joints, labelled, visible, paths = _select(folder, split, n)
        name = _cache_name(folder, split, paths)
    names = [f"arr_{i}" for i in range(4)]
    return kept(name, len(paths), names, STORED, lambda: _cropped(joints, labelled, visible, paths, split, progress))


def _cropped(joints, labelled, visible, paths: list[Path], split: str, progress: bool) -> tuple[np.ndarray, ...]:
    begin = time.perf_counter()
    images = np.empty((len(paths), STORED, STORED, 3), np.uint8)
    for i, path in enumerate(tqdm(paths, desc="cropping photographs", unit="picture", disable=not progress)):
        photograph = _open(path)
        labelled[i] &= np.all((joints[i] >= 0) & (joints[i] <= photograph.size), axis=-1)
        if not labelled[i].any():
            raise ValueError(f"{path} has no labelled joint inside it; joints.mat is another set's, or remove this picture")
        images[i], joints[i] = crop(photograph, joints[i], labelled[i])
    if progress:
        seconds = time.perf_counter() - begin
        print(f"cropped {len(paths):,} photographs ({split}) in {seconds:.1f} s; {labelled.mean():.0%} of joints labelled")
    return images, np.where(labelled[..., None], joints, 0).astype(np.float32), labelled, visible & labelled


def crop(image: Image.Image, joints: np.ndarray, labelled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The crop (STORED, STORED, 3) uint8 around the labelled joints of `image`, and all 14 joints (14, 2) in its pixels.

    Pillow's filter averages over what one pixel covers (no aliasing). Coordinates count from the top left corner: the centre of
    pixel column c is c + 0.5.
    """
    low, high = joints[labelled].min(axis=0), joints[labelled].max(axis=0)
    side = max((1 + MARGIN) * (high - low).max(), LEAST_SIDE) * (STORED / CENTRAL)
    start = (low + high) / 2 - side / 2
    left, top = (int(pad) for pad in np.ceil(np.maximum(-start, 0)))
    right, bottom = (int(pad) for pad in np.ceil(np.maximum(start + side - image.size, 0)))
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), constant_values=128)
    x, y = start + (left, top)
    square = Image.fromarray(pixels).resize((STORED, STORED), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    return np.asarray(square), (joints - start) * (STORED / side)


@contextlib.contextmanager
def _readable():
    """What the operating system refuses names the file and the remedy."""
    try:
        yield
    except OSError as problem:
        if problem.filename is None:  # ours: says all this already
            raise
        text = f"cannot read {problem.filename}: {problem.strerror}; copy it again, or correct its permissions"
        raise OSError(problem.errno, text) from problem


def _select(folder: Path, split: str, n: int | None):
    """Joints (source pixels), labelled, visible and paths of the people of `split`; people without a label are left out."""
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is unknown; choose 'train' or 'test'")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder that holds joints.mat and images/")
    table, flags = read_joints(_named(folder, "joints.mat"))
    numbers, paths, extended = _pictures(_named(folder, "images"))
    if numbers[-1] > len(table) or numbers[0] < 1:
        odd = paths[0 if numbers[0] < 1 else -1].name
        raise ValueError(f"{folder / 'joints.mat'} describes pictures 1 to {len(table)}, but {odd} is there; copy the set again")
    first_test = -(-len(numbers) * 9 // 10) if extended else int(np.searchsorted(numbers, LSP_TRAIN, side="right"))
    chosen = slice(0, first_test) if split == "train" else slice(first_test, None)
    rows, paths = np.array(numbers[chosen], int) - 1, paths[chosen]
    labelled = flags[rows] if extended else np.ones((len(rows), len(JOINTS)), bool)
    usable = np.flatnonzero(labelled.any(axis=1))[:n]
    if not len(usable):
        raise ValueError(f"{folder / 'images'} holds no labelled picture for {split}; copy more of the set there")
    visible = labelled if extended else ~flags[rows]
    return table[rows][usable], labelled[usable], visible[usable], [paths[i] for i in usable]


def _named(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`, where it may be written in capitals."""
    path = folder / name
    return path if path.exists() else next((other for other in folder.iterdir() if other.name.lower() == name), path)


def read_joints(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (N, 14, 2), source pixels from the top left corner, and flags (N, 14) of a joints.mat in any axis order.

    MATLAB counts pixel centres from 1, so its x is 0.5 more than ours. Raises FileNotFoundError or ValueError, naming the file,
    OSError where it cannot be opened, and ImportError for a file of MATLAB 7.3 where h5py is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it comes with the pictures of Leeds Sports Pose, copy it there")
    with _readable(), open(path, "rb") as file:
        start = file.read(9)
        try:
            arrays = _hdf5(path) if start.startswith((b"MATLAB 7.", b"\x89HDF")) else loadmat(file)
        except ImportError:
            raise
        except Exception as problem:  # SciPy and h5py raise many kinds on damaged bytes
            raise ValueError(f"{path} is damaged or no file of MATLAB's ({problem}); copy it again") from problem
    arrays = {name: array for name, array in arrays.items() if not name.startswith("__")}
    joints = next((array for name, array in arrays.items() if name.lower() == "joints"), None)
    axes = _axes(joints)
    if axes is None:
        found = f"no array `joints`, only {list(arrays)}" if joints is None else f"`joints` of shape {np.shape(joints)}"
        raise ValueError(f"{path} holds {found}; save there what is (3, 14, N) or (14, 3, N) under the name `joints`")
    if joints.dtype.kind not in "iuf" or not np.isfinite(joints).all():
        raise ValueError(f"{path} holds `joints` with values that are not finite numbers; copy it again")
    joints = joints.astype(np.float64).transpose(axes)
    return joints[..., :2] - 0.5, joints[..., 2] > 0.5


def _hdf5(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that MATLAB 7.3 wrote, in MATLAB's order of axes (HDF5 has them reversed)."""
    try:
        import h5py
    except ImportError as problem:
        raise ImportError(f"{path} is of MATLAB 7.3 (HDF5); install what reads it with: pip install h5py") from problem
    with h5py.File(path) as file:
        return {name: array[()].T for name, array in file.items() if isinstance(array, h5py.Dataset)}


def _axes(joints: np.ndarray | None) -> tuple[int, int, int] | None:
    """The axes of (people, joints, x y flag): people last, as published, or first; None where the shape is none of these."""
    if joints is None or joints.ndim != 3 or 0 in joints.shape:
        return None
    orders = ((2, 0, 1), (2, 1, 0), (0, 1, 2), (0, 2, 1))
    return next((order for order in orders if tuple(joints.shape[axis] for axis in order[1:]) == (len(JOINTS), 3)), None)


def _pictures(folder: Path) -> tuple[list[int], list[Path], bool]:
    """Numbers (ascending) and paths of the pictures, and whether the names are those of LSP-extended."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; it holds im0001.jpg ... (LSP) or im00001.jpg ... (LSP-extended)")
    pattern = re.compile(r"im(\d{4,5})\.(jpe?g|png)", re.IGNORECASE)
    found = sorted((m[1], path) for path in folder.iterdir() if (m := pattern.fullmatch(path.name)))
    if not found:
        raise FileNotFoundError(f"{folder} holds no picture; expected im0001.jpg ... (LSP) or im00001.jpg ... (LSP-extended)")
    twice = next((a for (a, _), (b, _) in zip(found, found[1:]) if a == b), None)
    if twice:
        raise ValueError(f"{folder} holds picture {twice} under two names (.jpg, .JPG, .png); remove one of them")
    widths = {len(number) for number, _ in found}
    if len(widths) > 1:
        raise ValueError(f"{folder} mixes names of LSP (im0001.jpg) and LSP-extended (im00001.jpg); give each its own folder")
    return [int(number) for number, _ in found], [path for _, path in found], widths == {5}


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"{path} is not a readable picture ({problem}); copy it again, or remove it") from problem


def _cache_name(folder: Path, split: str, paths: list[Path]) -> Path:
    """A name that changes with every file read (path, size, time of change) and with the way of cropping."""
    stats = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in [_named(folder, "joints.mat"), *paths]]
    how = (str(folder.resolve()), MARGIN, LEAST_SIDE, STORED, CENTRAL, _RECIPE)
    key = hashlib.sha256(repr((how, stats)).encode()).hexdigest()[:12]
    return cache_folder() / f"lsp-{split}-n{len(paths)}-{key}.npz"
