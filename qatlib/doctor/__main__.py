"""Examine a checkpoint: `python -m qatlib.doctor runs/final.pth [--network MODULE:CLASS] [--inputs FILE.npy]`.

Reads checkpoints (a dict with 'state_dict', as the vendor's training writes it, or a plain state dict) and compact files
(`model_8bit.pth`). Without --network it judges parameters only; with it, MODULE is imported, which runs it, and the network sees
the inputs. Exit code 0: healthy, 1: problems, 2: the file cannot be examined (one sentence on standard error).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qatlib.chip.operations import WEIGHTED
from qatlib.doctor import Diagnosis, diagnose
from qatlib.doctor.measure import Measured, from_state
from qatlib.doctor.rules import Finding, findings
from qatlib.export.network import add_options, hint, of_options
from qatlib.files import load
from qatlib.integer.checkpoint import layer_names, state_of, with_state
from qatlib.wording import Parser, command


def _epochs(content: dict) -> list[dict]:
    """The history of the epochs since QAT started, as train_pose_tiny writes it; empty for a checkpoint of other origin."""
    rows, config = content.get("history"), content.get("config")
    if not isinstance(config, dict) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return []
    numbers = [row.get(name) for row in rows for name in ("epoch", "loss")]
    start = config.get("start_epoch", 0)
    if not all(type(number) in (int, float) and not abs(number) > 1e300 for number in (*numbers, start)):
        return []
    return [row for row in rows if row["epoch"] >= start]


def from_tensors(state: dict[str, torch.Tensor], where: str) -> Diagnosis:
    """Judge parameters alone."""
    layers = layer_names(state, where)
    parts = {name: {key.removeprefix(f"{name}."): state[key] for key in state if key.startswith(f"{name}.")} for name in layers}
    rows = [from_state(name, part) for name, part in parts.items()]
    missing = [Finding("wrong checkpoint", name, f"{key} is missing: not written by QATv2 (an older ai8x?)",
                       remedy="give a checkpoint of the present ai8x, or train again", lesson="06")
               for name, part in parts.items() for key in ("weight_bits", "activation_threshold") if key not in part]  # fmt: skip
    return Diagnosis(rows, missing + findings(rows), False)


def from_compact(content: dict, path: Path) -> Diagnosis:
    """Judge a compact file: it is quantized by construction, its checksum is tested by reading it."""
    from qatlib.integer.compact import CompactModel

    model = CompactModel.from_file(content, path)
    calls = {op["layer"]: op for op in model.ops if op["kind"] in WEIGHTED}
    rows = [Measured(layer, "layer", op["weight_bits"], wide=bool(op.get("wide")), weight_codes=np.unique(model.weight(layer)).size)
            for layer, op in calls.items()]  # fmt: skip
    if not rows:
        raise ValueError(f"{path} holds no layer with weights; there is nothing to examine")
    found = [Finding("dead layer", row.name, "all its weights are one code", remedy="convert again from a sound checkpoint")
             for row in rows if row.weight_codes == 1]  # fmt: skip
    return Diagnosis(rows, found, False)


def examine(path: Path, network: nn.Module | None = None, x: torch.Tensor | None = None) -> Diagnosis:
    """Whatever the file is: its diagnosis; of a checkpoint's `network` with its inputs `x`, or those it says it is meant to get."""
    content = load(path)
    if isinstance(content.get("graph"), torch.Tensor):
        return from_compact(content, path)
    if network is None:
        return from_tensors(state_of(content, str(path)), str(path))
    model = with_state(network, content, str(path))
    if x is None and hasattr(model, "sample_inputs"):
        x = model.sample_inputs(32)
    return diagnose(model, x, _epochs(content))


def inputs(path: str) -> torch.Tensor:
    """A batch of inputs from a .npy file: real values as the network gets them, or int8 codes k, which stand for k / 128."""
    try:
        values = np.load(path, allow_pickle=False)
        values = values / np.float32(128) if values.dtype == np.int8 else values.astype(np.float32)
    except (ValueError, TypeError, EOFError, AttributeError) as problem:  # AttributeError: an archive of arrays
        raise ValueError(f"{path} is no array ({problem}); write it with numpy.save") from problem
    return torch.from_numpy(values)


@command("doctor")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m qatlib.doctor", description="Examine a checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="a .pth or .pth.tar file")
    add_options(parser)
    parser.add_argument("--inputs", metavar="FILE.npy", help="a batch of inputs for --network; default: its sample_inputs, or none")
    options = parser.parse_args(arguments)
    network = of_options(options, load(options.checkpoint))
    diagnosis = examine(options.checkpoint, network, options.inputs and inputs(options.inputs))
    print(diagnosis)
    if network is None and "graph" not in (content := load(options.checkpoint)):
        print(f"Parameters only; to see the network run, add {hint(content)} (importing a module runs it).")
    return 0 if diagnosis.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
