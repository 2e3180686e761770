"""Pose data from any source in one shape: 64x64 pictures, 14 joints each, and what of it counts.

>>> people = load("figures", "test", n=4, progress=False)
>>> to_codes(people.images).shape, str(to_codes(people.images).dtype)
((4, 48, 16, 16), 'int8')
"""

from dataclasses import dataclass

import numpy as np

from qatcourse.people.body import JOINTS
from qatcourse.people.drawing import SIDE

FOLD = 4  # 64x64x3 enters the network as 48 channels of 16x16
SIZES = {"train": 20_000, "test": 2_000}  # drawn people, where the caller names no number
_OTHER = {"r ": "l ", "l ": "r "}
MIRRORED = np.array([JOINTS.index(_OTHER.get(name[:2], name[:2]) + name[2:]) for name in JOINTS])  # each joint's mirror image


@dataclass(frozen=True)
class PoseSet:
    """N pictures with their joints; `poses[which]` selects some, by a slice, indices or a mask.

    Coordinates: x right, y down, in pixels of the 64x64 picture, origin at its top left corner (the centre of pixel column c is
    c + 0.5). `labelled`: the label exists and lies in the picture, so it counts in loss and metrics; other joints may hold
    any number. `visible`: labelled and not hidden (photographs do not say: there it equals `labelled`).

    Raises TypeError or ValueError, naming the array, where a dtype, a shape or a labelled coordinate is wrong.
    """

    images: np.ndarray  # uint8 (N, 64, 64, 3), red, green, blue
    joints: np.ndarray  # float32 (N, 14, 2), order qatcourse.people.body.JOINTS
    labelled: np.ndarray  # bool (N, 14)
    visible: np.ndarray  # bool (N, 14)
    name: str = "pose"

    def __post_init__(self):
        check_images(self.images)
        shapes = {"joints": (np.float32, (14, 2)), "labelled": (np.bool_, (14,)), "visible": (np.bool_, (14,))}
        for name, (dtype, shape) in shapes.items():
            _check_array(name, getattr(self, name), dtype, (len(self.images), *shape))
        if not np.isfinite(self.joints).all():
            raise ValueError("joints holds NaN or infinity; write 0 where a joint is not labelled")
        inside = np.all((self.joints >= 0) & (self.joints <= SIDE), axis=-1)
        if not inside[self.labelled].all():
            picture, joint = np.argwhere(self.labelled & ~inside)[0]
            raise ValueError(
                f"joint {joint} ({JOINTS[joint]}) of picture {picture} is labelled at {self.joints[picture, joint].tolist()}, "
                f"outside the {SIDE}x{SIDE} picture; set labelled = False there"
            )
        if (self.visible & ~self.labelled).any():
            raise ValueError("visible is True where labelled is False; use visible & labelled")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which) -> "PoseSet":
        if isinstance(which, (int, np.integer)):
            which = [which]
        return PoseSet(self.images[which], self.joints[which], self.labelled[which], self.visible[which], self.name)

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
    """Raises TypeError or ValueError unless `images` is uint8 (N, 64, 64, 3)."""
    _check_array("images", images, np.uint8, (len(images) if np.ndim(images) else 0, SIDE, SIDE, 3))


def load(spec: str, split: str, n: int | None = None, seed: int = 0, progress: bool = True) -> PoseSet:
    """The pictures of `split` ("train" or "test") from `spec`: "figures" (drawn people) or "lsp:/path" (Leeds Sports Pose folder).

    `n`: how many (None: 20,000 and 2,000 drawn people; all photographs). `seed` chooses the drawn people; photographs are taken
    in file order and do not depend on it. Raises ValueError for an unknown spec, split or n, and as `lsp.read` does.
    """
    if split not in SIZES:
        raise ValueError(f"split {split!r} is unknown; choose 'train' or 'test'")
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1):
        raise ValueError(f"n = {n!r} pictures cannot be loaded; give a whole number of at least 1, or None for all")
    kind, _, path = str(spec).partition(":")
    if spec == "figures":
        from qatcourse.people.crowd import cached

        return PoseSet(*cached(n or SIZES[split], seed, split, progress=progress), name="figures")
    if kind == "lsp" and path:
        from qatcourse.people.lsp import read

        return PoseSet(*read(path, split, n, progress=progress), name="lsp")
    raise ValueError(
        f"data {spec!r} is unknown; use 'figures' (drawn people) or 'lsp:/path' (photographs: a folder with images/ and joints.mat)"
    )


def to_codes(images: np.ndarray) -> np.ndarray:
    """The network's input as the chip takes it: int8 codes u8 - 128, (N, 64, 64, 3) -> (N, 48, 16, 16).

    Channel order of `ai8x.fold`: for each row offset, for each column offset, the 3 colours.

    >>> to_codes(np.full((1, 64, 64, 3), 129, np.uint8)).max().item()
    1
    """
    check_images(images)
    cells = SIDE // FOLD
    parts = images.reshape(len(images), cells, FOLD, cells, FOLD, 3).transpose(0, 2, 4, 5, 1, 3)
    return (np.ascontiguousarray(parts) ^ np.uint8(128)).view(np.int8).reshape(len(images), 3 * FOLD * FOLD, cells, cells)


def to_input(images: np.ndarray):
    """The same input for PyTorch: a float32 tensor (N, 48, 16, 16), real values code / 128 in [-1, 127/128]."""
    import torch

    return torch.from_numpy(to_codes(images)).to(torch.float32) / 128


def augment(images: np.ndarray, joints: np.ndarray, labelled: np.ndarray, rng: np.random.Generator, mirrored: float = 0.5):
    """New (images, joints, labelled) for one training step: a share is mirrored; brightness, contrast and colour vary.

    A mirrored person's left is right, so the joints change places too. The inputs stay as they are. Drawn people must not be
    mirrored (`mirrored=0`): their kit is dark on the left.
    """
    n = len(images)
    mirror = rng.random(n) < mirrored
    images, joints, labelled = images.copy(), joints.copy(), labelled.copy()
    images[mirror] = images[mirror, :, ::-1]
    joints[mirror] = joints[mirror][:, MIRRORED] * np.float32([-1, 1]) + np.float32([SIDE, 0])
    labelled[mirror] = labelled[mirror][:, MIRRORED]
    return _jitter(images, rng), joints, labelled


def warp(images: np.ndarray, joints: np.ndarray, labelled: np.ndarray, rng: np.random.Generator):
    """New (images, joints, labelled), each picture turned by up to 25 degrees, scaled by 0.8 to 1.2 and moved by up to 5 pixels.

    For photographs, of which there are few. Joints that leave the picture are no longer labelled; edges are repeated.
    """
    import torch
    from torch.nn import functional

    n, half = len(images), SIDE / 2
    angle, scale = np.radians(rng.uniform(-25, 25, n)), rng.uniform(0.8, 1.2, n)
    shift = rng.uniform(-5, 5, (n, 2))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(n, 2, 2) * scale[:, None, None]
    back = np.linalg.inv(turn)  # where each new pixel comes from, in units of half a picture
    affine = np.concatenate([back, -back @ shift[:, :, None] / half], -1)
    grid = functional.affine_grid(torch.from_numpy(affine).float(), (n, 3, SIDE, SIDE), align_corners=False)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    moved = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    joints = ((joints - half) @ turn.transpose(0, 2, 1) + half + shift[:, None]).astype(np.float32)
    inside = np.all((joints >= 0) & (joints < SIDE), axis=-1)
    return moved.round().byte().permute(0, 2, 3, 1).numpy(), joints, labelled & inside


def _jitter(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each picture with its own contrast, colour cast and brightness, by one look-up table per picture and colour."""
    n = len(images)
    gain = rng.uniform(0.85, 1.15, (n, 1, 1)) * rng.uniform(0.94, 1.06, (n, 3, 1))
    levels = (np.arange(256) - 128) * gain + rng.uniform(112, 144, (n, 1, 1))
    tables = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    start = np.arange(n * 3, dtype=np.int32).reshape(n, 1, 1, 3) * 256
    return tables.reshape(-1).take(images + start)
