"""The fair comparison: one float network, then FP32 trained on, naive rounding, calibrated PTQ, and QAT, at the same bits."""

import dataclasses
import io
import json
from pathlib import Path

import torch

from qatlib.files import write_atomic
from qatlib.pose.data import PoseSet, load
from qatlib.pose.evaluate import calibrated_ptq, calibration_batches, evaluate, naive_rounding
from qatlib.train_pose_tiny import Config, load_model, read_checkpoint, save, train

COLUMNS = ("version", "weight_bits", "pck", "pckh", "pixel_error", "bytes")


@dataclasses.dataclass(frozen=True)
class Row:
    """One version of the network: PCK@0.2 (torso), PCKh@0.5, mean pixel error of the 64x64 picture, bytes of its weights' file."""

    version: str
    weight_bits: int
    pck: float
    pckh: float
    pixel_error: float
    bytes: int


def file_bytes(state_dict: dict) -> int:
    """Bytes that torch.save writes for `state_dict`."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    return buffer.tell()


def integer_bytes(model) -> int:
    """Bytes of the compact integer file of a calibrated or QAT network."""
    from qatlib.export import quantize_model

    return file_bytes(quantize_model(model).state_dict())


def compare(
    folder: str | Path, train_poses: PoseSet | None = None, test_poses: PoseSet | None = None, progress: bool = True
) -> list[Row]:
    """Rows for the run in `folder` (written by `train`); also stored there as comparison.json.

    The float network is trained on for as many epochs as QAT had, so that QAT does not win by training longer.
    """
    folder = Path(folder)
    saved = read_checkpoint(folder / "float.pth")
    config = Config(**saved["config"])
    train_poses = train_poses or load(config.data, "train", config.n_train, config.seed, progress=progress)
    test_poses = test_poses or load(config.data, "test", config.n_test, progress=progress)
    float_model, qat = load_model(folder / "float.pth"), load_model(folder / "final.pth")
    fair = dataclasses.replace(config, weight_bits=None, overrides={})
    longer = train(fair, init=saved["state_dict"], train_poses=train_poses, test_poses=test_poses, progress=progress).model
    save(folder / "float_longer.pth", longer, fair, fair.epochs, [])
    batches, bits = calibration_batches(train_poses), config.weight_bits
    naive = naive_rounding(longer, bits, config.overrides)
    ptq = calibrated_ptq(longer, batches, bits, config.overrides, shift_quantile=config.recipe()[1])
    size, small = file_bytes(longer.state_dict()), integer_bytes(qat)
    versions = [
        ("FP32, before QAT starts", 32, float_model, size),
        ("FP32, trained on equally", 32, longer, size),
        ("naive rounding, no calibration", bits, naive, small),
        ("PTQ, calibrated", bits, ptq, integer_bytes(ptq)),
        ("QAT", bits, qat, small),
    ]
    rows = [Row(name, width, **evaluate(model, test_poses), bytes=size) for name, width, model, size in versions]
    write_atomic(folder / "comparison.json", json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    return rows


def read(folder: str | Path) -> list[Row]:
    """The rows stored by `compare`. Raises FileNotFoundError or ValueError, naming the file, where there are none."""
    path = Path(folder) / "comparison.json"
    if not path.is_file():
        raise FileNotFoundError(f"no comparison.json in {folder}; compare(folder) writes it")
    try:
        return [Row(**row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{path} is damaged ({problem}); compare again") from problem


def table(rows: list[Row]) -> str:
    """The comparison as text."""
    head = f"{'version':32}{'bits':>5}{'PCK@0.2':>9}{'PCKh@0.5':>10}{'error/px':>10}{'bytes':>11}"
    lines = [
        f"{row.version:32}{row.weight_bits:>5}{row.pck:>9.3f}{row.pckh:>10.3f}{row.pixel_error:>10.2f}{row.bytes:>11,}"
        for row in rows
    ]
    return "\n".join([head, *lines])
