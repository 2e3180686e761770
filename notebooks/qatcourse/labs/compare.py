"""The fair comparison, for lesson 05: FP32 trained on, naive rounding, calibrated PTQ and QAT, from one float network."""

import dataclasses
import io
import json
from pathlib import Path

import torch

from qatcourse.pose.data import PoseSet
from qatcourse.pose.evaluate import calibration_batches, evaluate, untrained
from qatcourse.pose.train import Config, configure, load_model, pictures, read_checkpoint, save, taught, train
from qatlib.files import write_atomic
from qatlib.integer import quantize_model
from qatlib.wording import columns


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of the network: PCK@0.2 (torso), PCKh@0.5, mean error in pixels of the picture, bytes of its weights' file."""

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
    return file_bytes(quantize_model(model).state_dict())


def further(init: dict, train_poses: PoseSet, test_poses: PoseSet, progress: bool = True, teacher=None):
    """Config -> network: trains the float network with the state dict `init` on, from `teacher`, too, where there is one."""
    poses = {"train_poses": train_poses, "test_poses": test_poses, "progress": progress}
    return lambda goal: train(goal, init=init, teacher=teacher, **poses).model


def briefly(model, train_poses: PoseSet, test_poses: PoseSet, bits: int | None, rate: float):
    """A float network trained on for one epoch, in float or with QAT of `bits`, from one learning rate: a Result."""
    sizes = {"epochs": 1, "start_epoch": 0, "n_train": len(train_poses), "n_test": 100}
    goal = configure("smoke", weight_bits=bits, learning_rate=rate, qat_learning_rate=rate, **sizes)
    return train(goal, init=model.state_dict(), train_poses=train_poses, test_poses=test_poses, progress=False)


def teacher_of(folder: Path, config: Config, *poses):
    """The teacher that the run in `folder` had, None where it had none."""
    return taught(config, folder / "teacher.pth", True, *poses) if config.teacher_epochs else None


def fair(config: Config, train_on, batches, longer=None, qat=None) -> dict:
    """{"float": trained on, "naive": ..., "ptq": ..., "qat": ...}, all at the bits of `config` and from one float network.

    `train_on(config)` trains that network on and returns it. Naive rounding and PTQ are made from the one that was trained in
    float for as many epochs as QAT has, so that QAT does not win by training longer. `longer`, `qat`: where they exist already.
    """
    longer = longer or train_on(dataclasses.replace(config, weight_bits=None, overrides={}))
    return {"float": longer, **untrained(longer, batches, config), "qat": qat or train_on(config)}


def compare(
    folder: str | Path, train_poses: PoseSet | None = None, test_poses: PoseSet | None = None, progress: bool = True
) -> list[Version]:
    """Rows for the run in `folder` (written by `train`), by `fair`; also stored there as comparison.json."""
    folder = Path(folder)
    saved = read_checkpoint(folder / "float.pth")
    config = Config(**saved["config"])
    train_poses = train_poses or pictures(config, "train", progress)
    test_poses = test_poses or pictures(config, "test", progress)
    teacher = teacher_of(folder, config, train_poses, test_poses)
    train_on, batches = further(saved["state_dict"], train_poses, test_poses, progress, teacher), calibration_batches(train_poses)
    found = fair(config, train_on, batches, qat=load_model(folder / "final.pth"))
    in_float = dataclasses.replace(config, weight_bits=None, overrides={})
    save(folder / "float_longer.pth", found["float"], in_float, config.epochs, [])
    bits, size, small = config.weight_bits, file_bytes(found["float"].state_dict()), integer_bytes(found["qat"])
    versions = [
        ("FP32, before QAT starts", 32, load_model(folder / "float.pth"), size),
        ("FP32, trained on equally", 32, found["float"], size),
        ("naive rounding, no calibration", bits, found["naive"], small),
        ("PTQ, calibrated", bits, found["ptq"], integer_bytes(found["ptq"])),
        ("QAT", bits, found["qat"], small),
    ]
    rows = [Version(name, width, **evaluate(model, test_poses), bytes=size) for name, width, model, size in versions]
    write_atomic(folder / "comparison.json", json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    return rows


def read(folder: str | Path) -> list[Version]:
    """The rows stored by `compare`. Raises FileNotFoundError or ValueError, naming the file, where there are none."""
    path = Path(folder) / "comparison.json"
    if not path.is_file():
        raise FileNotFoundError(f"no comparison.json in {folder}; compare(folder) writes it")
    try:
        return [Version(**row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{path} is damaged ({problem}); compare again") from problem


def table(rows: list[Version]) -> str:
    """The comparison as text."""
    names = ("version", "bits", "PCK@0.2", "PCKh@0.5", "error/px", "bytes")
    forms = ("", "", ".3f", ".3f", ".2f", ",")
    cells = [[format(cell, form) for form, cell in zip(forms, dataclasses.astuple(row))] for row in rows]
    return columns([names, *cells], right=range(1, len(names)))
