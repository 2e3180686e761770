"""What the drawn people are made of and wear: body parts as coloured capsules in painting order, and what they hide."""

import numpy as np

from qatcourse.people.body import JOINTS
from qatcourse.people.drawing import FIELDS, SIDE, Uniforms

# name: (end A, end B, radius at A, radius at B, nearer the viewer by; all in standing heights, what colours it)
PARTS = {
    "pelvis": ("r hip", "l hip", 0.058, 0.058, 0.0, "trousers"),
    "skirt": ("pelvis", "hem", 0.062, 0.105, 0.02, "skirt"),
    "belly": ("pelvis", "waist", 0.068, 0.066, 0.004, "shirt"),
    "trunk": ("waist", "breast", 0.066, 0.082, 0.005, "shirt"),
    "chest": ("r breast", "l breast", 0.058, 0.058, 0.006, "shirt"),
    "badge": ("badge top", "badge end", 0.034, 0.034, 0.0, "badge"),
    "tie": ("breast", "tie end", 0.012, 0.016, 0.045, "tie"),
    "bag": ("bag top", "bag end", 0.062, 0.07, 0.0, "bag"),
    "neck": ("neck", "face", 0.03, 0.03, 0.0, "skin"),
    "head": ("crown", "chin", 0.062, 0.05, 0.012, "skin"),
    "hair": ("hair", "nape", 0.066, 0.052, 0.014, "hair"),
    "tress": ("nape", "tress", 0.045, 0.04, 0.014, "tress"),
    "r eye": ("r eye", "r eye", 0.009, 0.009, 0.0, "eyes"),
    "l eye": ("l eye", "l eye", 0.009, 0.009, 0.0, "eyes"),
    "nose": ("face", "nose", 0.01, 0.013, 0.025, "nose"),
    "mouth": ("mouth", "mouth", 0.014, 0.014, 0.0, "mouth"),
} | {
    f"{side} {name}": (f"{side} {a}", f"{side} {b}", *rest)
    for side in ("r", "l")
    for name, a, b, *rest in (
        ("foot", "heel", "toe", 0.024, 0.019, 0.0, "shoes"),
        ("shin", "knee", "ankle", 0.036, 0.023, 0.0, "shin"),
        ("thigh", "hip", "knee", 0.053, 0.038, 0.008, "thigh"),
        ("upper arm", "shoulder", "elbow", 0.036, 0.027, 0.04, "upper sleeve"),
        ("forearm", "elbow", "wrist", 0.027, 0.019, 0.04, "lower sleeve"),
        ("hand", "wrist", "hand", 0.021, 0.018, 0.04, "skin"),
    )
}
NUMBER = {name: index + 1 for index, name in enumerate(PARTS)}
# A joint is seen where the topmost thing at its pixel is one of the first parts; the second ones count only where
# the joint is no deeper than they are (the far shoulder of a person seen from the side is hidden by the chest).
_SEEN_ON = {
    "ankle": (("shin", "foot"), ()), "knee": (("thigh", "shin"), ()), "hip": (("thigh",), ("pelvis", "belly", "skirt")),
    "wrist": (("forearm", "hand"), ()), "elbow": (("upper arm", "forearm"), ()),
    "shoulder": (("upper arm",), ("chest", "trunk", "neck")), "neck": (("neck", "chest", "trunk", "tie"), ("head",)),
    "head top": (("head", "hair"), ()),
}  # fmt: skip
_KIT = ("shoes", "shin", "thigh", "upper sleeve", "lower sleeve")
_KIT_TONES = {"r": 145.0, "l": 8.0}  # grey levels added to a third of the cloth's own colour
_SKINS = np.array([(244, 208, 178), (224, 172, 130), (190, 130, 90), (140, 90, 60), (90, 58, 42)], np.float64)
_HAIRS = np.array([(35, 26, 20), (70, 46, 28), (120, 78, 40), (200, 165, 95), (150, 150, 150)], np.float64)


def dress(points: dict, height: np.ndarray, uniforms: Uniforms, kit: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The bodies as capsules (count, K, F), far to near, and the part number of each (count, K) uint8.

    A share `kit` of the people wears two-tone sports kit: sleeve, trouser leg and shoe light on the right, dark on the left.
    """
    count, names = len(height), list(PARTS)
    capsules = np.zeros((count, len(names), len(FIELDS)))
    depth = np.empty((count, len(names)))
    girth = uniforms(count, low=0.85, high=1.3) * height
    wear = _wardrobe(uniforms, count)
    two_tone = (uniforms(count, 1) < kit).astype(np.float64)
    for k, (a, b, radius_a, radius_b, nearer, kind) in enumerate(PARTS.values()):
        capsules[:, k, 0:2], capsules[:, k, 2:4] = points[a][:, :2], points[b][:, :2]
        present = wear["present"].get(kind, 1.0)
        bulk = height if kind in ("skin", "hair", "tress", "eyes", "nose", "mouth") else girth
        capsules[:, k, 4], capsules[:, k, 5] = radius_a * bulk * present, radius_b * bulk * present
        capsules[:, k, 6:16] = wear[kind]
        if kind in _KIT:
            cloth = capsules[:, k, 6:9]
            capsules[:, k, 6:9] = cloth + two_tone * (_KIT_TONES[a[0]] - cloth * 0.65)
        depth[:, k] = (points[a][:, 2] + points[b][:, 2]) / 2 + nearer * height
    order = np.argsort(np.round(depth * 64), axis=1, kind="stable")
    numbers = (order + 1).astype(np.uint8)
    return np.take_along_axis(capsules, order[..., None], axis=1), numbers


def _wardrobe(uniforms: Uniforms, count: int) -> dict:
    """For each kind of part its ten colour fields (count, 10), and under "present" who wears the optional ones."""
    skin = _blend(_SKINS, uniforms, count)
    hair = _blend(_HAIRS, uniforms, count)
    shirt, trousers, shoes, extra = (uniforms(count, 3, low=12, high=high) for high in (245, 190, 240, 245))
    trousers = np.where(uniforms(count, 1) < 0.12, shirt, trousers)  # dresses and overalls
    sleeve, leg = uniforms(count), uniforms(count)  # how far the cloth reaches down the limb
    bands, lines = uniforms(count, low=1, high=5), uniforms(count, low=0.8, high=3)
    contrast = np.where(uniforms(count) < 0.3, uniforms(count, low=0.25, high=0.7), 0)
    banded = uniforms(count) < 0.6
    pattern = np.stack([bands * banded, lines * ~banded, contrast], axis=-1)

    def cloth(near, far, cut, stripes=0.0):
        cut = np.broadcast_to(np.asarray(cut, np.float64), (count,))[:, None]
        return np.concatenate([near, far, cut, pattern * np.ones((count, 1)) * stripes], axis=-1)

    worn = {"badge": 0.35, "tie": 0.25, "bag": 0.15, "tress": 0.3, "skirt": 0.12}
    return {
        "skin": cloth(skin, skin, 2), "hair": cloth(hair, hair, 2), "tress": cloth(hair, hair, 2),
        "eyes": cloth(skin * 0.2, skin * 0.2, 2), "nose": cloth(skin * 0.72, skin * 0.72, 2),
        "mouth": cloth(skin * [0.75, 0.4, 0.4], skin * [0.75, 0.4, 0.4], 2),
        "shirt": cloth(shirt, shirt, 2, 1.0), "badge": cloth(extra, extra, 2), "tie": cloth(extra, extra, 2),
        "bag": cloth(extra, extra, 2), "skirt": cloth(trousers, trousers, 2), "trousers": cloth(trousers, trousers, 2),
        "thigh": cloth(trousers, skin, np.where(leg < 0.25, 0.55 + leg, 9)),
        "shin": cloth(trousers, skin, np.where(leg < 0.35, -9.0, np.where(leg < 0.5, 0.5, 0.93))),
        "upper sleeve": cloth(shirt, skin, np.where(sleeve < 0.15, -9.0, np.where(sleeve < 0.5, 0.3 + sleeve, 9)), 1.0),
        "lower sleeve": cloth(shirt, skin, np.where(sleeve < 0.6, -9.0, np.where(sleeve < 0.7, 0.5, 0.95)), 1.0),
        "shoes": cloth(shoes, shoes, 2),
        "present": {kind: (uniforms(count) < share).astype(np.float64) for kind, share in worn.items()},
    }  # fmt: skip


def _blend(tones: np.ndarray, uniforms: Uniforms, count: int) -> np.ndarray:
    """Colours (count, 3) between neighbouring `tones`."""
    position = uniforms(count, high=len(tones) - 1)
    left = position.astype(np.int64)
    part = (position - left)[:, None]
    return tones[left] * (1 - part) + tones[left + 1] * part


def labels(points: dict, parts: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints (count, 14, 2) float32 in pixels; labelled (in the picture) and visible (and not hidden), bool."""
    joints = np.stack([points[name][:, :2] for name in JOINTS], axis=1)
    joints = (np.round(joints * 64) / 64).astype(np.float32)
    labelled = np.all((joints >= 0) & (joints < SIDE), axis=-1)
    visible = np.zeros_like(labelled)
    rows = np.arange(len(joints))
    for j, name in enumerate(JOINTS):
        at = points[name][:, :2]
        if name == "head top":  # the pixel at the very top is half background
            at = at + (points["face"][:, :2] - at) * 0.3
        column, row = np.clip(np.floor(at), 0, SIDE - 1).astype(np.int64).T
        visible[:, j] = labelled[:, j] & _seen(name, parts[rows, row, column], points, height)
    return joints, labelled, visible


def _seen(joint: str, topmost: np.ndarray, points: dict, height: np.ndarray) -> np.ndarray:
    """Whether `joint` shows, given the number of the topmost part at its pixel."""
    side = joint[:2] if joint[1] == " " else ""
    own, body = _SEEN_ON[joint.removeprefix(side)]
    seen = np.isin(topmost, [NUMBER[side + part if side + part in NUMBER else part] for part in own])
    for part in body:
        a, b = PARTS[part][:2]
        surface = (points[a][:, 2] + points[b][:, 2]) / 2
        seen |= (topmost == NUMBER[part]) & (points[joint][:, 2] >= surface - 0.09 * height)
    return seen
