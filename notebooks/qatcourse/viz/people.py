"""People: joints drawn over their pictures."""

import numpy as np

from qatcourse.viz.base import PALETTE, drawing, figure

__all__ = ["BONES", "skeletons"]

# (joint, joint, side) in the order of Leeds Sports Pose
BONES = (
    (0, 1, "right"), (1, 2, "right"), (6, 7, "right"), (7, 8, "right"), (2, 8, "right"), (8, 12, "right"),
    (5, 4, "left"), (4, 3, "left"), (11, 10, "left"), (10, 9, "left"), (3, 9, "left"), (9, 12, "left"),
    (2, 3, "middle"), (12, 13, "middle"),
)  # fmt: skip
_LOOK = {"right": ("orange", "-"), "left": ("sky", "--"), "middle": ("black", "-")}


@drawing
def skeletons(images: np.ndarray, joints_list: list, labels: list[str] | None = None, columns: int = 6):
    """Pictures (N, H, W, 3) uint8 with their joints: one row of pictures for each (N, 14, 2) array in `joints_list`.

    (R, N, H, W, 3) has other pictures in each row. Coordinates in pixels, origin at the top left corner. The person's right limbs
    are orange and solid, left ones sky blue and dashed. Returns (figure, sentence).
    """
    joints_list = [np.asarray(joints) for joints in joints_list]
    shared = np.ndim(images) == 4
    pictures = [images] * len(joints_list) if shared else images
    n = min(len(pictures[0]), columns)
    labels = labels or ["joints"] * len(joints_list)
    if len(labels) != len(joints_list) or not joints_list or any(joints.shape[1:] != (14, 2) for joints in joints_list):
        raise ValueError("skeletons() needs arrays of shape (N, 14, 2) and one label for each of them")
    fig, axes = figure(len(joints_list), n, width=1.25 * n, height=1.4 * len(joints_list), squeeze=False)
    for row, shown, joints, label in zip(axes, pictures, joints_list, labels):
        for axis, *person in zip(row, shown, joints):
            _person(axis, *person)
        row[0].set_ylabel(label)
    versus = ""
    if shared and len(joints_list) > 1:
        far = [float(np.linalg.norm(joints[:n] - joints_list[0][:n], axis=-1).mean()) for joints in joints_list[1:]]
        apart = [f"'{label}' lies {d:.1f} pixels from '{labels[0]}'" for label, d in zip(labels[1:], far)]
        versus = f"; on average {', '.join(apart)}"
    rows = " and ".join(f"'{label}'" for label in labels)
    return fig, f"{n} pictures with skeletons from {rows} (right limbs orange and solid, left ones blue and dashed){versus}."


def _person(axis, image, joints):
    axis.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="nearest")
    for a, b, side in BONES:
        colour, line = _LOOK[side]
        x, y = joints[[a, b]].T
        axis.plot(x, y, "-", color="white", linewidth=3.2, solid_capstyle="round")
        axis.plot(x, y, line, color=PALETTE[colour], linewidth=1.8)
    axis.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0), xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
