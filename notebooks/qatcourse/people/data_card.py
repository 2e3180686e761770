"""The numbers and the picture in the drawn people's data card: `python -m qatcourse.people.data_card --card`, `--contact-sheet`."""

import sys

import numpy as np
from PIL import Image, ImageDraw

from qatcourse.people.body import JOINTS
from qatcourse.people.crowd import cached, draw
from qatcourse.people.drawing import SIDE
from qatcourse.viz.base import PALETTE
from qatcourse.viz.people import BONES
from qatlib.files import write_atomic
from qatlib.wording import Parser, command

_COLOURS = {"right": PALETTE["orange"], "left": PALETTE["sky"], "middle": "white"}


def statistics(n: int = 2048, seed: int = 0) -> str:
    """Markdown tables about `n` training pictures of `seed`: how often each joint is in the picture and seen; sizes."""
    people = cached(n, seed, "train", progress=False)
    rows = [f"Measured on {n:,} training pictures of seed {seed}.", ""]
    rows += ["| joint | in the picture | of these visible |", "|---|---|---|"]
    for j, name in enumerate(JOINTS):
        inside = people.labelled[:, j]
        rows.append(f"| {name} | {inside.mean():.1%} | {people.visible[inside, j].mean():.1%} |")
    extent = np.max(np.ptp(people.joints, axis=1), axis=-1)
    torso = np.linalg.norm(people.joints[:, 9] - people.joints[:, 2], axis=-1)
    across = people.joints[:, 9, 0] - people.joints[:, 8, 0]
    rows += ["", "| quantity | 5 % | median | 95 % |", "|---|---|---|---|"]
    for name, values in (
        ("longer side of the joints' box, pixels", extent),
        ("torso (right hip to left shoulder), pixels", torso),
        ("grey level of a picture", people.images.mean(axis=(1, 2, 3))),
        ("contrast of a picture (standard deviation)", people.images.std(axis=(1, 2, 3))),
    ):
        rows.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in np.percentile(values, (5, 50, 95))) + " |")
    facing = f"In {np.mean(across > 0):.0%} of the pictures the left shoulder is right of the right one, as in a front view."
    return "\n".join([*rows, "", facing])


def contact_sheet(path: str, rows: int = 6, columns: int = 10, scale: int = 3, seed: int = 0) -> None:
    """Write a PNG of rows × columns training pictures, every second row with skeletons (white joints are hidden ones)."""
    people = cached(rows * columns, seed, "train", progress=False)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE))
    for i, image in enumerate(people.images):
        sheet.paste(Image.fromarray(image), (i % columns * SIDE, i // columns * SIDE))
    sheet = sheet.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    sheet = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
    for i in range(rows * columns):
        if i // columns % 2:
            corner = np.array([i % columns, i // columns]) * SIDE
            _skeleton(sheet, (people.joints[i] + corner) * scale, people.labelled[i], people.visible[i])
    small = sheet.quantize(256, dither=Image.Dither.NONE)  # fewer colours than 256: exact
    write_atomic(path, lambda temporary: small.save(temporary, format="PNG", optimize=True))


def _skeleton(sheet, joints: np.ndarray, labelled: np.ndarray, visible: np.ndarray) -> None:
    pen = ImageDraw.Draw(sheet)
    for start, end, side in BONES:
        if labelled[start] and labelled[end]:
            pen.line([*joints[start], *joints[end]], fill=_COLOURS[side], width=2)
    for (x, y), seen in zip(joints[labelled], visible[labelled]):
        pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill="black" if seen else "white", outline="black")


@command("figures")
def main(arguments: list[str] | None = None) -> int:
    """The command line of `python -m qatcourse.people.data_card`; 2 where it could not be done (one sentence says why)."""
    parser = Parser(prog="python -m qatcourse.people.data_card", description="Draw people for pose estimation.")
    parser.add_argument("--card", action="store_true", help="print the statistics of the data card")
    parser.add_argument("--contact-sheet", metavar="FILE.png", help="write 60 pictures as one PNG")
    parser.add_argument("--count", type=int, help="draw this many pictures and print the rate")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if chosen.card:
        print(statistics(seed=chosen.seed))
    if chosen.contact_sheet:
        contact_sheet(chosen.contact_sheet, seed=chosen.seed)
        print(f"wrote {chosen.contact_sheet}")
    if chosen.count is not None:
        draw(chosen.count, chosen.seed)
    if not (chosen.card or chosen.contact_sheet or chosen.count is not None):
        parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
