"""Examine a checkpoint:  python -m qatlib.doctor runs/train_pose_tiny/final.pth

Reads checkpoints of `qatlib.train_pose_tiny` (the network then sees a few drawn people), checkpoints of the vendor's training
(a dict with 'state_dict'; parameters only), plain state dicts, and compact files (`model_8bit.pth`). Exit code 0: healthy,
1: problems, 2: the file cannot be examined (one sentence on standard error).
"""

import argparse
import sys
import zipfile
from pathlib import Path

import torch

from qatlib.command_line import interruptible, sentence
from qatlib.doctor import Diagnosis, diagnose
from qatlib.doctor.measure import Layer, from_state
from qatlib.doctor.rules import Case, Finding, findings
from qatlib.files import check_archive
from qatlib.messages import short
from qatlib.pose.checkpoint import check_state, model_from

WEIGHT = ".op.weight"


def read(path: Path) -> dict:
    """The content of the file. Raises FileNotFoundError or ValueError with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give the path of a checkpoint (.pth or .pth.tar)")
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise ValueError(
            f"{path} is no checkpoint that can be read safely (truncated, of another kind, or with Python objects in it: "
            "save its state_dict alone)"
        ) from problem
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; give a checkpoint with a 'state_dict'")
    return content


def tensors(content: dict, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in `content`, names without the prefixes that parallel and compiled training add."""
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ValueError(f"the 'state_dict' of {path} is a {type(state).__name__}; give a checkpoint of tensors")
    if odd := [key for key in state if not isinstance(key, str)]:
        raise ValueError(f"the 'state_dict' of {path} has the key {short(odd[0])}, which is no text; save model.state_dict()")
    names = {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state.items()}
    found = {key: value for key, value in names.items() if isinstance(value, torch.Tensor)}
    check_state(found, str(path))
    if not any(key.endswith(WEIGHT) for key in found):
        raise ValueError(f"{path} holds no ai8x layer (no name ends in {WEIGHT}); give a checkpoint of a network of ai8x layers")
    return found


def _epochs(content: dict, path: Path) -> list[dict]:
    """The history of the epochs since QAT started, as train_pose_tiny writes it; empty where the checkpoint has none."""
    history, config = ([] if content.get(name) is None else content[name] for name in ("history", "config"))
    config = config or {} if isinstance(config, (dict, list)) else config
    if not isinstance(config, dict) or not isinstance(history, list) or not all(
        isinstance(row, dict) and all(type(row.get(name)) in (int, float) for name in ("epoch", "loss")) for row in history
    ):
        raise ValueError(f"the 'history' or 'config' of {path} is not as train_pose_tiny writes it; save the 'state_dict' alone")
    start = config.get("start_epoch", 0)
    return [row for row in history if type(start) is not int or row["epoch"] >= start]


def from_tensors(state: dict[str, torch.Tensor]) -> Diagnosis:
    """Judge parameters alone."""
    rows = []
    for key in (key for key in state if key.endswith(WEIGHT)):
        name = key.removesuffix(WEIGHT)
        rows.append(from_state(name, {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}))
    missing = [Finding("wrong checkpoint", row.name, f"{key} is missing: not written by QATv2 (an older ai8x?)",
                       "give a checkpoint of the present ai8x, or train again", "06")
               for row in rows for key in ("weight_bits", "activation_threshold") if f"{row.name}.{key}" not in state]  # fmt: skip
    return Diagnosis(rows, missing + findings(Case(rows)), False)


def from_compact(path: Path) -> Diagnosis:
    """Judge a compact file: it is quantized by construction, its checksum is tested by reading it."""
    from qatlib.compact import CompactModel

    model, rows = CompactModel.load(path), []
    for op in model.ops:
        if "weight_bits" in op and op.get("layer") and op["layer"] not in {row.name for row in rows}:
            codes = model.weight(op["layer"])
            row = Layer(op["layer"], "layer", bits=op["weight_bits"], wide=bool(op.get("wide")))
            row.weight_codes = len(set(codes.ravel().tolist()))
            row.channels, row.dead = op["shape"][0], None
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no layer with weights; there is nothing to examine")
    found = [Finding("dead layer", row.name, "all its weights are one code", "convert again from a sound checkpoint", "06")
             for row in rows if row.weight_codes == 1]  # fmt: skip
    return Diagnosis(rows, found, False)


def examine(path: Path, pictures: int = 32) -> Diagnosis:
    """Whatever the file is: its diagnosis."""
    content = read(path)
    if isinstance(content.get("graph"), torch.Tensor):
        return from_compact(path)
    state, epochs = tensors(content, path), _epochs(content, path)
    try:
        model = model_from(state)
    except ValueError:  # another network
        return from_tensors(state)
    from qatlib.pose.data import load, to_input

    people = load("figures", "test", pictures, progress=False)
    return diagnose(model, to_input(people.images), epochs)


@interruptible("doctor")
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qatlib.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a .pth or .pth.tar file")
    try:
        diagnosis = examine(parser.parse_args(arguments).checkpoint)
    except (ValueError, TypeError, OSError) as problem:
        print(f"doctor: {sentence(problem)}", file=sys.stderr)
        return 2
    print(diagnosis)
    return 0 if diagnosis.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
