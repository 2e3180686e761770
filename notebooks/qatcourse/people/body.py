"""Bodies for the drawn people: poses within joint limits, a 3-D skeleton, and where it stands in the picture.

Frames: x to the right of the picture, y down, z towards the viewer; lengths in standing heights until `place`. An upright
person whose yaw is 0 faces the viewer, so that the person's left is on the picture's right.
"""

from dataclasses import dataclass

import numpy as np

from qatcourse.people.drawing import FIELDS, SIDE, Uniforms, cosine, sine

JOINTS = (
    "r ankle", "r knee", "r hip", "l hip", "l knee", "l ankle",
    "r wrist", "r elbow", "r shoulder", "l shoulder", "l elbow", "l wrist", "neck", "head top",
)  # fmt: skip
# Degrees. Forward, outward and bending are positive; `twist` turns the upper arm inwards about its own axis.
LIMITS = {
    "pitch": (-25, 75), "lean": (-30, 30), "spine": (-15, 45), "nod": (-30, 40), "look": (-60, 60),
    "hip": (-25, 120), "hip_out": (-12, 55), "knee": (0, 140),
    "shoulder": (-45, 175), "shoulder_out": (0, 170), "twist": (-90, 70), "elbow": (0, 145),
}  # fmt: skip
_TRUNK = ("pitch", "lean", "spine", "nod", "look")
_LIMB = ("hip", "hip_out", "knee", "shoulder", "shoulder_out", "twist", "elbow")
ANGLES = _TRUNK + tuple(f"{name} {side}" for side in ("a", "b") for name in _LIMB)
_REST = {
    "pitch": (-4, 8), "lean": (-6, 6), "spine": (-5, 10), "nod": (-15, 22), "look": (-35, 35),
    "hip": (-5, 10), "hip_out": (0, 12), "knee": (0, 12),
    "shoulder": (-15, 20), "shoulder_out": (4, 28), "twist": (-20, 50), "elbow": (2, 60),
}  # fmt: skip
# name: (share of the pictures, ranges that differ from _REST; " a" and " b" are the two sides, swapped at random)
POSES = {
    "standing": (0.24, {"elbow a": (0, 110), "twist a": (-10, 60)}),
    "walking": (0.24, {
        "hip a": (8, 45), "knee a": (0, 45), "hip b": (-25, 0), "knee b": (0, 70), "spine": (0, 12),
        "shoulder a": (-45, -5), "shoulder b": (5, 60), "elbow a": (5, 100), "elbow b": (5, 100),
    }),
    "arms up": (0.18, {
        "shoulder_out a": (50, 165), "shoulder_out b": (20, 165), "twist": (-90, 0), "elbow": (0, 95), "hip_out": (0, 22),
    }),
    "reaching": (0.12, {"shoulder a": (40, 160), "shoulder b": (-20, 120), "elbow": (0, 80), "hip a": (-5, 30)}),
    "bending": (0.11, {
        "pitch": (12, 55), "spine": (5, 35), "hip": (0, 75), "knee": (5, 100), "shoulder": (10, 90), "elbow": (5, 110),
        "hip_out": (0, 30), "nod": (-25, 15),
    }),
    "athletic": (0.11, {
        "pitch": (-15, 30), "lean": (-20, 20), "hip a": (10, 95), "knee a": (0, 100), "hip b": (-25, 25), "knee b": (0, 100),
        "hip_out": (0, 45), "shoulder": (-30, 120), "shoulder_out": (10, 130), "twist": (-80, 50), "elbow": (0, 120),
    }),
}  # fmt: skip


@dataclass(frozen=True)
class Difficulty:
    """How hard the pictures are; every number that decides it, in one place."""

    extent: tuple[float, float] = (50.0, 62.0)  # pixels that the longer side of the skeleton's box takes
    roll: float = 12.0  # degrees of rotation in the picture plane, either way, in most pictures
    back: float = 0.1  # share of people seen from behind
    side: float = 0.1  # share of people seen from the side
    cropped: float = 0.05  # share of people moved partly out of the picture
    occluded: float = 0.1  # share of pictures with something in front of the person
    clutter: int = 4  # most bars, poles and limb-like things behind the person
    kit: float = 0.95  # share of people in two-tone kit, light on the right and dark on the left
    blur: float = 1.0  # strongest blur, 0 to 1
    noise: float = 8.0  # strongest sensor noise: standard deviation in grey levels


def pose_angles(uniforms: Uniforms, count: int) -> dict[str, np.ndarray]:
    """Joint angles in degrees, each (count,), within LIMITS and named as there; names of limbs end in " r" or " l"."""
    low, high = (
        np.array([[_range(changes, name)[end] for name in ANGLES] for _, changes in POSES.values()]) for end in (0, 1)
    )
    shares = np.cumsum([share for share, _ in POSES.values()])
    pose = np.minimum(np.searchsorted(shares, uniforms(count), side="right"), len(shares) - 1)
    values = uniforms(count, len(ANGLES), low=low[pose], high=high[pose]).T
    raw = dict(zip(ANGLES, values))
    swap = uniforms(count) < 0.5
    angles = {name: raw[name] for name in _TRUNK}
    for name in _LIMB:
        angles[name + " r"] = np.where(swap, raw[name + " b"], raw[name + " a"])
        angles[name + " l"] = np.where(swap, raw[name + " a"], raw[name + " b"])
    for side in "rl":  # a bowed trunk turns the pelvis; the legs stay where they were
        angles[f"hip {side}"] = angles[f"hip {side}"] + np.maximum(angles["pitch"], 0)
    return {name: np.clip(value, *LIMITS[name.removesuffix(" r").removesuffix(" l")]) for name, value in angles.items()}


def _range(changes: dict, name: str) -> tuple:
    plain = name.removesuffix(" a").removesuffix(" b")
    return changes.get(name) or changes.get(plain) or _REST[plain]


def turn(vectors: np.ndarray, source: int, target: int, degrees: np.ndarray) -> np.ndarray:
    """Rotate `vectors` (..., 3) so that axis `source` moves towards axis `target` by `degrees` (...)."""
    cos, sin = cosine(degrees), sine(degrees)
    out = vectors.copy()
    out[..., source] = vectors[..., source] * cos - vectors[..., target] * sin
    out[..., target] = vectors[..., source] * sin + vectors[..., target] * cos
    return out


X, Y, Z = 0, 1, 2


def view_yaw(uniforms: Uniforms, count: int, difficulty: Difficulty) -> np.ndarray:
    """Where people face, in degrees (count,): 0 towards the viewer, 90 to the picture's right, 180 away."""
    kind, spread = uniforms(count), uniforms(count, low=-1)
    side = np.where(uniforms(count) < 0.5, 90.0, -90.0)
    yaw = np.where(kind < difficulty.back, 180 + 50 * spread, 50 * spread)
    return np.where(kind > 1 - difficulty.side, side + 40 * spread, yaw)


def skeleton(angles: dict, uniforms: Uniforms, yaw: np.ndarray, roll: np.ndarray) -> dict[str, np.ndarray]:
    """Named points (count, 3) of each body in standing heights, seen by the camera; the pelvis is the origin."""
    count = len(yaw)
    vary = uniforms(count, 10, low=0.9, high=1.1)
    child = np.where(uniforms(count) < 0.15, 1.3, 1.0)

    def along(x, y, z, k=None):
        scale = np.ones(count) if k is None else vary[:, k]
        return np.stack([np.broadcast_to(np.asarray(v, np.float64), (count,)) * scale for v in (x, y, z)], axis=-1)

    def upper(v):
        return turn(v, Y, Z, -angles["spine"])

    def head(v):
        return upper(turn(turn(v, Y, Z, -angles["nod"]), Z, X, angles["look"]))

    p = {"pelvis": along(0, 0, 0), "neck": upper(along(0, -0.29, 0, 0))}
    skull = 0.13 * child * vary[:, 1]
    p["face"] = p["neck"] + head(along(0, -0.05 - skull / 2, 0.012))
    p["head top"] = p["neck"] + head(along(0, -0.05 - skull, 0.005))
    for name, (x, y, z) in _ON_HEAD.items():
        p[name] = p["face"] + head(along(x * skull, y * skull, z * skull))
    for name, (x, y, z) in _ON_CHEST.items():
        p[name] = p["neck"] + upper(along(x, y, z, 0))
    for side, sign in (("r", -1.0), ("l", 1.0)):
        _limbs(p, angles, along, upper, side, sign)
    p["hem"] = p["pelvis"] + (p["r knee"] + p["l knee"] - 2 * p["pelvis"]) * 0.4
    v = turn(turn(np.stack(list(p.values())), Y, Z, -angles["pitch"]), X, Y, angles["lean"])
    return dict(zip(p, turn(turn(v, Z, X, yaw), X, Y, roll)))


_ON_HEAD = {
    "crown": (0, -0.07, 0.0), "chin": (0, 0.1, 0.03), "r eye": (-0.19, -0.05, 0.4), "l eye": (0.19, -0.05, 0.4),
    "nose": (0, 0.1, 0.47), "mouth": (0, 0.25, 0.4), "hair": (0, -0.2, -0.12), "nape": (0, 0.12, -0.24),
}  # fmt: skip
_ON_CHEST = {
    "waist": (0, 0.2, 0.0), "breast": (0, 0.07, 0.01), "badge top": (0, 0.05, 0.09), "badge end": (0, 0.13, 0.09),
    "tie end": (0, 0.24, 0.09), "bag top": (0, 0.05, -0.1), "bag end": (0, 0.17, -0.1), "tress": (0, 0.1, -0.06),
    "r breast": (-0.085, 0.05, 0), "l breast": (0.085, 0.05, 0),
}  # fmt: skip


def _limbs(p: dict, angles: dict, along, upper, side: str, sign: float) -> None:
    """Arm and leg of one side; `sign` is +1 on the person's left. Adds the points to `p`."""

    def leg(v):
        return turn(turn(v, Y, Z, angles[f"hip {side}"]), Y, X, sign * angles[f"hip_out {side}"])

    def shank(v):
        return leg(turn(v, Y, Z, -angles[f"knee {side}"]))

    def arm(v):
        v = turn(turn(v, Z, X, -sign * angles[f"twist {side}"]), Y, Z, angles[f"shoulder {side}"])
        return upper(turn(v, Y, X, sign * angles[f"shoulder_out {side}"]))

    def forearm(v):
        return arm(turn(v, Y, Z, angles[f"elbow {side}"]))

    p[f"{side} hip"] = along(sign * 0.055, 0, 0, 2)
    p[f"{side} knee"] = p[f"{side} hip"] + leg(along(0, 0.245, 0, 3))
    p[f"{side} ankle"] = p[f"{side} knee"] + shank(along(0, 0.245, 0, 4))
    p[f"{side} heel"] = p[f"{side} ankle"] + shank(along(0, 0.022, -0.01))
    p[f"{side} toe"] = p[f"{side} ankle"] + shank(along(sign * 0.015, 0.03, 0.1))
    p[f"{side} shoulder"] = p["neck"] + upper(along(sign * 0.115, 0.025, 0, 5))
    p[f"{side} elbow"] = p[f"{side} shoulder"] + arm(along(0, 0.17, 0, 6))
    p[f"{side} wrist"] = p[f"{side} elbow"] + forearm(along(0, 0.145, 0, 7))
    p[f"{side} hand"] = p[f"{side} wrist"] + forearm(along(0, 0.045, 0))


def place(points: dict, uniforms: Uniforms, difficulty: Difficulty) -> tuple[dict, np.ndarray]:
    """Scale and move the bodies into the picture: the points in pixels and the standing heights (count,) in pixels."""
    joints = np.stack([points[name][:, :2] for name in JOINTS], axis=1)
    low, high = joints.min(axis=1), joints.max(axis=1)
    box = np.max(high - low, axis=-1)
    count = len(box)
    height = np.minimum(uniforms(count, low=difficulty.extent[0], high=difficulty.extent[1]) / box, 1.25 * SIDE)
    room = np.maximum(SIDE - 4 - (high - low) * height[:, None], 6) / 2
    away = np.where(uniforms(count, 1) < difficulty.cropped, 12.0, 0.0) * uniforms(count, 2, low=-1)
    centre = SIDE / 2 + uniforms(count, 2, low=-0.8, high=0.8) * room + away
    shift = np.zeros((count, 3))
    shift[:, :2] = centre - (low + high) / 2 * height[:, None]
    return {name: v * height[:, None] + shift for name, v in points.items()}, height


def occluders(uniforms: Uniforms, count: int, share: float) -> np.ndarray:
    """Up to two posts, branches or boxes in front of the person: capsules (count, 2, F)."""
    capsules = np.zeros((count, 2, len(FIELDS)))
    capsules[..., 0:2] = uniforms(count, 2, 2, low=2, high=62)
    length, angle = uniforms(count, 2, low=0, high=44), uniforms(count, 2, high=360)
    capsules[..., 2] = capsules[..., 0] + length * cosine(angle)
    capsules[..., 3] = capsules[..., 1] + length * sine(angle)
    present = uniforms(count, 2) < share * np.array([0.75, 0.35])
    capsules[..., 4] = uniforms(count, 2, low=1.5, high=6) * present
    capsules[..., 5] = capsules[..., 4]
    capsules[..., 6:9] = capsules[..., 9:12] = uniforms(count, 2, 3, low=10, high=235)
    capsules[..., 12] = 2
    capsules[..., 13] = uniforms(count, 2, high=8)
    capsules[..., 15] = np.where(uniforms(count, 2) < 0.3, 0.3, 0)
    return capsules
