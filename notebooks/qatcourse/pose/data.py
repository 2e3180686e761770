"""Pose data from any source in one shape: square pictures, 14 joints each, and what of it counts.

>>> people = load("figures", "test", n=4, progress=False)
>>> to_codes(people.images).shape, str(to_codes(people.images).dtype)
((4, 12, 32, 32), 'int8')
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qatcourse.people import CENTRAL, STORED
from qatcourse.people.body import JOINTS

SIDES = (64, 128)  # of a picture, in pixels: 64 for drawn people, either for photographs
GRID = 32  # a picture enters the network folded to GRID x GRID: 12 channels of 64x64 pixels, 48 of 128x128
SIZES = {"train": 20_000, "test": 2_000}  # drawn people, where the caller names no number
_OTHER = {"r ": "l ", "l ": "r "}
TURN, ZOOM, SHIFT = 40, 1.25, 0.08  # of photographs in training, at most: degrees, factor, part of the side
MIRRORED = np.array([JOINTS.index(_OTHER.get(name[:2], name[:2]) + name[2:]) for name in JOINTS])  # each joint's mirror image


@dataclass(frozen=True)
class PoseSet:
    """N pictures with their joints; `poses[which]` selects some, by a slice, indices or a mask.

    Coordinates: x right, y down, in pixels of the picture, origin at its top left corner (the centre of pixel column c is
    c + 0.5). `labelled`: the label exists and lies in the picture, so it counts in loss and metrics; other joints may hold
    any number. `visible`: labelled and not hidden (photographs do not say: there it equals `labelled`). `crops`: photographs
    with more around the person, from which training takes its pictures; the central CENTRAL of STORED pixels are `images`.

    Raises TypeError or ValueError, naming the array, where a dtype, a shape or a labelled coordinate is wrong.
    """

    images: np.ndarray  # uint8 (N, S, S, 3), S = 64 or 128; red, green, blue
    joints: np.ndarray  # float32 (N, 14, 2), order qatcourse.people.body.JOINTS
    labelled: np.ndarray  # bool (N, 14)
    visible: np.ndarray  # bool (N, 14)
    name: str = "pose"
    crops: np.ndarray | None = None  # uint8 (N, STORED, STORED, 3)

    def __post_init__(self):
        check_images(self.images)
        shapes = {"joints": (np.float32, (14, 2)), "labelled": (np.bool_, (14,)), "visible": (np.bool_, (14,))}
        for name, (dtype, shape) in shapes.items():
            _check_array(name, getattr(self, name), dtype, (len(self.images), *shape))
        if self.crops is not None:
            _check_array("crops", self.crops, np.uint8, (len(self.images), STORED, STORED, 3))
        if not np.isfinite(self.joints).all():
            raise ValueError("joints holds NaN or infinity; write 0 where a joint is not labelled")
        inside = np.all((self.joints >= 0) & (self.joints <= self.side), axis=-1)
        if not inside[self.labelled].all():
            picture, joint = np.argwhere(self.labelled & ~inside)[0]
            raise ValueError(
                f"joint {joint} ({JOINTS[joint]}) of picture {picture} is labelled at {self.joints[picture, joint].tolist()}, "
                f"outside the {self.side}x{self.side} picture; set labelled = False there"
            )
        if (self.visible & ~self.labelled).any():
            raise ValueError("visible is True where labelled is False; use visible & labelled")

    @property
    def side(self) -> int:
        """Width and height of each picture, pixels."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which) -> "PoseSet":
        if isinstance(which, (int, np.integer)):
            which = [which]
        crops = None if self.crops is None else self.crops[which]
        return PoseSet(self.images[which], self.joints[which], self.labelled[which], self.visible[which], self.name, crops)

    def subset(self, n: int) -> "PoseSet":
        """The first n pictures (all, where there are fewer)."""
        return self[:n]


def _check_array(name: str, array, dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{name} must be a NumPy array of {np.dtype(dtype).name}, not {found}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}")


def check_images(images) -> None:
    """Raises TypeError or ValueError unless `images` is uint8 (N, 64, 64, 3) or (N, 128, 128, 3)."""
    shape = np.shape(images)
    side = shape[1] if len(shape) == 4 and shape[1] in SIDES else SIDES[0]
    _check_array("images", images, np.uint8, (shape[0] if shape else 0, side, side, 3))


def load(spec: str, split: str, n: int | None = None, seed: int = 0, progress: bool = True, side: int | None = None) -> PoseSet:
    """The pictures of `split` ("train" or "test") from `spec`: "figures" (drawn people) or "lsp:/path" (Leeds Sports Pose folder).

    `n`: how many (None: 20,000 and 2,000 drawn people; all photographs). `seed` chooses the drawn people; photographs are taken
    in file order and do not depend on it. `side` of the pictures: 64, or for photographs 128, too (None: the largest there is).
    Raises ValueError for an unknown spec, split, n or side, and as `lsp.read` does.
    """
    if split not in SIZES:
        raise ValueError(f"split {split!r} is unknown; choose 'train' or 'test'")
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1):
        raise ValueError(f"n = {n!r} pictures cannot be loaded; give a whole number of at least 1, or None for all")
    kind, _, path = str(spec).partition(":")
    if side is not None and (not isinstance(side, (int, np.integer)) or side not in SIDES[: 1 + (kind == "lsp")]):
        raise ValueError(f"side = {side!r}: drawn people have 64 pixels, photographs 64 or 128; choose one of these, or None")
    if spec == "figures":
        from qatcourse.people.crowd import cached

        return PoseSet(*cached(n or SIZES[split], seed, split, progress=progress), name="figures")
    if kind == "lsp" and path:
        from qatcourse.people.lsp import read

        side = side or SIDES[-1]
        crops, joints, labelled, visible = read(path, split, n, progress=progress)
        joints = (joints - STORED / 2) * np.float32(side / CENTRAL) + np.float32(side / 2)
        still = Moves(*np.zeros((2, len(crops))), np.zeros((len(crops), 2)), np.zeros(len(crops), bool))
        return PoseSet(moved(crops, side, still), joints, labelled, visible, "lsp", crops)
    raise ValueError(
        f"data {spec!r} is unknown; use 'figures' (drawn people) or 'lsp:/path' (photographs: a folder with images/ and joints.mat)"
    )


def to_codes(images: np.ndarray) -> np.ndarray:
    """The network's input as the chip takes it: int8 codes u8 - 128, (N, 64, 64, 3) -> (N, 12, 32, 32), 128x128 -> (N, 48, 32, 32).

    Channel order of `ai8x.fold`: for each row offset, for each column offset, the 3 colours.

    >>> to_codes(np.full((1, 64, 64, 3), 129, np.uint8)).max().item()
    1
    """
    check_images(images)
    fold = images.shape[1] // GRID
    parts = images.reshape(len(images), GRID, fold, GRID, fold, 3).transpose(0, 2, 4, 5, 1, 3)
    return (np.ascontiguousarray(parts) ^ np.uint8(128)).view(np.int8).reshape(len(images), 3 * fold * fold, GRID, GRID)


def to_input(images: np.ndarray):
    """The same input for PyTorch: a float32 tensor (N, 12 or 48, 32, 32), real values code / 128 in [-1, 127/128]."""
    import torch

    return torch.from_numpy(to_codes(images)).to(torch.float32) / 128


class Moves(NamedTuple):
    """What happens to each of N people on the way into a picture: mirrored, then turned and scaled, then moved."""

    angle: np.ndarray  # (N,) radians, clockwise
    zoom: np.ndarray  # (N,) logarithm of the factor
    shift: np.ndarray  # (N, 2) x, y, in sides of the picture
    mirrored: np.ndarray  # bool (N,)


def augment(poses: PoseSet, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New (images, joints, labelled) of all `poses` for one training step: brightness, contrast and colour vary.

    Photographs, of which there are few, are also mirrored (half of them), turned by up to 40 degrees, scaled by 0.8 to 1.25 and
    moved by up to 8 % of the side, all in one resampling; joints that leave the picture are no longer labelled. A mirrored
    person's left is right, so the joints change places. Drawn people stay: their kit is dark on the left.
    """
    images, joints, labelled = poses.images, poses.joints, poses.labelled
    if poses.crops is not None:
        n, side = len(poses), poses.side
        limits = np.radians(TURN), np.log(ZOOM), SHIFT, SHIFT
        angle, zoom, *shift = (rng.uniform(-limit, limit, n) for limit in limits)
        moves = Moves(angle, zoom, np.stack(shift, -1), rng.random(n) < 0.5)
        images, joints = moved(poses.crops, side, moves), moved_joints(joints, side, moves)
        labelled = np.where(moves.mirrored[:, None], labelled[:, MIRRORED], labelled)
        labelled = labelled & np.all((joints >= 0) & (joints < side), axis=-1)
    return _jitter(images, rng), joints, labelled


def moved(crops: np.ndarray, side: int, moves: Moves) -> np.ndarray:
    """Pictures (N, side, side, 3) uint8 of the people in `crops`, by one bilinear resampling; beyond the crop all is grey.

    Training and test pictures come from here, so that both are equally sharp. With 64 pixels a side, means of 2x2 of 128.
    """
    import torch
    from torch.nn import functional

    back = np.linalg.inv(_matrices(moves)) * (CENTRAL / STORED)  # where each new pixel comes from, in half sides
    affine = torch.from_numpy(np.concatenate([back, -2 * back @ moves.shift[:, :, None]], -1)).float()
    pictures = []
    for start in range(0, len(crops), 64):  # few at a time stay in the processor's cache
        pixels = torch.from_numpy(crops[start : start + 64]).permute(0, 3, 1, 2).float() - 128
        grid = functional.affine_grid(affine[start : start + 64], (len(pixels), 3, CENTRAL, CENTRAL), align_corners=False)
        pixels = functional.grid_sample(pixels, grid, padding_mode="zeros", align_corners=False)
        small = pixels if side == CENTRAL else functional.avg_pool2d(pixels, CENTRAL // side)
        pictures.append((small + 128).round().byte().permute(0, 2, 3, 1).numpy())
    return np.ascontiguousarray(np.concatenate(pictures))


def moved_joints(joints: np.ndarray, side: int, moves: Moves) -> np.ndarray:
    """Where `moved` puts joints (N, 14, 2), float32, in pixels of the picture."""
    around = ((joints - side / 2) @ _matrices(moves).transpose(0, 2, 1) + side * (0.5 + moves.shift[:, None])).astype(np.float32)
    return np.where(moves.mirrored[:, None, None], around[:, MIRRORED], around)


def _matrices(moves: Moves) -> np.ndarray:
    """(N, 2, 2): mirrored first, then turned and scaled, about the centre."""
    along, across = np.cos(moves.angle) * np.exp(moves.zoom), np.sin(moves.angle) * np.exp(moves.zoom)
    flip = np.where(moves.mirrored, -1, 1)
    return np.stack([along * flip, -across, across * flip, along], -1).reshape(-1, 2, 2)


def _jitter(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each picture with its own contrast, colour cast and brightness, by one look-up table per picture and colour."""
    n = len(images)
    gain = rng.uniform(0.85, 1.15, (n, 1, 1)) * rng.uniform(0.94, 1.06, (n, 3, 1))
    levels = (np.arange(256) - 128) * gain + rng.uniform(112, 144, (n, 1, 1))
    tables = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    start = np.arange(n * 3, dtype=np.int32).reshape(n, 1, 1, 3) * 256
    return tables.reshape(-1).take(images + start)
