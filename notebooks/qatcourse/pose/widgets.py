"""The trained pose network at every bit width: PTQ beside QAT, measured once, then looked at with a slider."""

import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from qatcourse import viz
from qatcourse.labs.compare import fair, further, integer_bytes, teacher_of
from qatcourse.people.body import JOINTS
from qatcourse.pose import metrics
from qatcourse.pose.data import PoseSet
from qatcourse.pose.evaluate import calibration_batches, predict, score
from qatcourse.pose.train import Config, load_model, read_checkpoint
from qatcourse.viz import widgets
from qatlib.files import write_atomic

SHOWN = 6  # people in the slider's picture


@dataclasses.dataclass(frozen=True)
class Width:
    """One position of the slider: predictions (N, 14, 2) in pixels, PCK@0.2, bytes of the file, epochs that QAT had."""

    bits: int
    ptq: np.ndarray
    qat: np.ndarray
    ptq_pck: float
    qat_pck: float
    bytes: int
    epochs: int


def bit_widths(
    folder: str | Path, train_poses: PoseSet, test_poses: PoseSet, bits: tuple = (1, 2, 4, 8), progress: bool = True
) -> list[Width]:
    """Measure the run in `folder` (after `compare`) at each bit width; also stored there as bit_widths.json.

    PTQ quantizes the float network that was trained as long as QAT. QAT at the run's own bits is the trained network; at other
    bits it starts from the same float network and gets one epoch, so that a lesson stays short. Both use the recipe of their bits.
    """
    folder = Path(folder)
    saved = read_checkpoint(folder / "float.pth")
    config = Config(**saved["config"])
    longer = load_model(folder / "float_longer.pth")
    teacher = teacher_of(folder, config, train_poses, test_poses)
    train_on, batches = further(saved["state_dict"], train_poses, test_poses, progress, teacher), calibration_batches(train_poses)
    widths = []
    for b in bits:
        own = b == config.weight_bits
        epochs = config.epochs - config.start_epoch if own else 1
        short = dataclasses.replace(config, weight_bits=b, overrides={}, epochs=config.start_epoch + 1)
        found = fair(short, train_on, batches, longer, load_model(folder / "final.pth") if own else None)
        places = [predict(found[version], test_poses.images) for version in ("ptq", "qat")]
        pcks = [score(place, test_poses)["pck"] for place in places]
        widths.append(Width(b, *places, *pcks, integer_bytes(found["qat"]), epochs))
    numbers = [{key: value for key, value in vars(width).items() if key not in ("ptq", "qat")} for width in widths]
    write_atomic(folder / "bit_widths.json", json.dumps(numbers, indent=1))
    return widths


def bit_width_slider(widths: list[Width], images: np.ndarray, start: int = 8):
    """A slider over `widths`: skeletons of PTQ above QAT, with PCK and bytes in its sentence. Every picture is drawn beforehand.

    Its output keeps what it draws: training takes minutes, and a page without a kernel shows the same people.
    """
    shown, strip = min(len(images), SHOWN), io.BytesIO()
    Image.fromarray(np.concatenate(images[:shown])).save(strip, format="png")
    measured = []
    for width in widths:
        places = {name: viz.base.array(getattr(width, name)[:shown]).round(2).tolist() for name in ("ptq", "qat")}
        measured.append(vars(width) | places)
    kept = {"start": start, "widths": measured, "images": base64.b64encode(strip.getvalue()).decode()}
    return drawn_again(json.dumps(kept, separators=(",", ":")))


def drawn_again(stored: str):
    """The slider of an output that kept `stored`: JSON of `start`, `widths` and `images` (a PNG of squares one below the other)."""
    kept = json.loads(stored)
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(kept["images"]))))
    images = strip.reshape(-1, strip.shape[1], *strip.shape[1:])
    known = {each["bits"]: Width(**each | {name: np.array(each[name]) for name in ("ptq", "qat")}) for each in kept["widths"]}

    def draw(bits):
        return viz.bit_width_panel(images, known[bits], SHOWN)

    figure = widgets.slider_figure(draw, bits=sorted(known), start={"bits": kept["start"]}, height=290, prerender=True)
    figure.stored = stored
    return figure


def closer(places: dict[str, np.ndarray], poses: PoseSet) -> dict[str, tuple]:
    """Which people, which joints, which threshold: name -> (figure, sentence). `places`: version -> predictions (N, 14, 2), pixels.

    The people are those that the last version reads best, in the middle, and worst, by the mean error in torso lengths.
    """
    last, truth, torso = [*places][-1], (poses.joints, poses.labelled), metrics.torso_length(poses.joints, poses.labelled)
    usable = np.flatnonzero(~np.isnan(torso))  # the others have no yardstick
    far = np.where(poses.labelled, np.linalg.norm(places[last] - poses.joints, axis=-1), np.nan)
    error = np.nanmean(far[usable], axis=1) / torso[usable]
    order, middle, names = usable[np.argsort(error)], len(usable) // 2, ("best", "median", "worst")
    chosen = np.stack([order[:6], order[middle - 3 : middle + 3], order[-6:]])
    cases, _ = viz.skeletons(poses.images[chosen], places[last][chosen], list(names))
    said = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, np.quantile(error, (0, 0.5, 1))))
    kinds = ["ankle", "knee", "hip", "wrist", "elbow", "shoulder", "neck", "head top"]
    by_kind = dict.fromkeys(([*places][0], last))  # two bars of a group leave room for their numbers
    for name in by_kind:
        pcks = metrics.pck(places[name], *truth, per_joint=True)
        by_kind[name] = [np.nanmean([pck for pck, joint in zip(pcks, JOINTS) if joint.endswith(kind)]) for kind in kinds]
    alphas = [k / 20 for k in range(1, 11)]
    lines = {name: (alphas, [metrics.pck(place, *truth, alpha) for alpha in alphas]) for name, place in places.items()}
    return {
        "cases": (cases, f"{last} on {len(usable):,} pictures, mean error in torso lengths: {said}. Six of each."),
        "joints": viz.bars(by_kind, "PCK@0.2", "Joint by joint, left and right together", kinds, decimals=2),
        "thresholds": viz.curves(lines, "threshold in torso lengths", "PCK", "PCK against threshold"),
    }
