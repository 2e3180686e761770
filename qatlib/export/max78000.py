"""Inputs of the vendor's synthesis tool (ai8xize.py): integer checkpoint, network YAML, sample, known answer, and commands."""

import os
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from qatlib.chip.meter import Fit, fit
from qatlib.chip.schedule import Step, outputs
from qatlib.chip.spec import DEVICES
from qatlib.chip.synthesis import network_yaml
from qatlib.export.vendor import compact_to_checkpoint
from qatlib.files import write_folder
from qatlib.integer.compact import CompactModel
from qatlib.integer.engine import engine_of
from qatlib.integer.source import as_compact, check_accumulators, exponents, sample_codes


def export_max78000(model, sample: np.ndarray | None, folder: str | os.PathLike, input_shape=None) -> Path:
    """Write everything `ai8xize.py` reads for `model` (anything `as_compact` takes) into `folder`, whole or not at all.

    Files: `<arch>.pth.tar`, `<arch>.yaml`, `sample_<arch>.npy` (int64, C x H x W), `expected_<arch>.npy` (the integers that the
    chip must give, of several outputs one after the other in the chip's order) and README.md with the commands. `sample` is one
    picture, int8 codes (C, H, W); None takes a random one.

    Raises ValueError, with every violated limit and its remedy, for a network that does not fit the chip of the model.
    """
    compact = as_compact(model, input_shape)
    check_accumulators(compact)
    report = fit(compact, device=compact.graph["device"])
    if not report.fits:
        raise ValueError(f"this network cannot run on the {DEVICES[report.device].name}:\n- " + "\n- ".join(report.violations))
    picture = sample_codes(compact, sample, 3)[-1 if sample is None else 0]
    arch, state, names = arch_name(compact), checkpoint(compact), [step.layer.name for step in outputs(report.sequence)]
    text, answer = network_yaml(report, arch), known_answer(compact, names, picture[None])[0]

    def fill(target: Path) -> None:
        torch.save(state, target / f"{arch}.pth.tar")
        (target / f"{arch}.yaml").write_text(text)
        np.save(target / f"sample_{arch}.npy", picture.astype(np.int64).reshape(sample_shape(compact)))
        np.save(target / f"expected_{arch}.npy", answer)
        (target / "README.md").write_text(_readme(compact, report, arch))

    return write_folder(folder, fill)


def sample_shape(model: CompactModel) -> tuple[int, ...]:
    """How the vendor's tool wants the picture: as the network does, a vector as (C, 1, 1)."""
    shape = tuple(model.graph["input_shape"])
    return shape if len(shape) > 1 else (*shape, 1, 1)


def arch_name(model: CompactModel) -> str:
    """The network's name as the vendor's files spell it, lower case letters and digits; YAML and checkpoint carry the same."""
    return re.sub(r"[^a-z0-9]", "", model.graph["arch"].lower()) or "network"


def checkpoint(model: CompactModel) -> dict:
    """The dict that the vendor's quantize.py writes; layers in execution order, shifts within the chip's register."""
    state = compact_to_checkpoint(model, correct_shift=True)
    order = {op["layer"]: i for i, op in enumerate(model.ops) if "layer" in op}
    keys = sorted(state, key=lambda key: order.get(key.rpartition(".")[0].removesuffix(".op"), len(order)))
    state = {key: state[key] for key in keys}
    return {"epoch": 0, "arch": arch_name(model), "state_dict": state, "extras": {"clipping_method": "MAX_BIT_SHIFT"}}


def known_answer(model: CompactModel, names: list[str], pictures: np.ndarray) -> np.ndarray:
    """What the chip must unload for each picture (N, ...): the map of its one output, or all of `names` flat, in this order."""
    maps = [value.astype(np.int32) for value in engine_of(model)(pictures, keep=names).values()]
    return maps[0] if len(maps) == 1 else np.concatenate([value.reshape(len(pictures), -1) for value in maps], axis=1)


NARROW = """
The last layer is 8 bits wide: the tool's unload function does not sign-extend shifted 8-bit outputs, compare the raw bytes.
"""
SEVERAL = """
The network has {count} outputs: `expected_{arch}.npy` and `cnn_unload()` give them one after the other, in this order: {names}.
"""
UNSCALED = """
The network ends in an operation without weights, for which the tool knows no scale and would stop with a KeyError: so
`--no-scale-output`.
"""
STREAMS = """
The picture is too large for data memory: the first {count} layers stream it, so the program feeds it through a FIFO (`--fifo`).
"""


def _readme(model: CompactModel, report: Fit, arch: str) -> str:
    written, flowing = outputs(report.sequence), sum(step.streams for step in report.sequence)
    scaled = all(step.layer.has_weights for step in written)
    notes = [
        NARROW if not all(step.layer.wide for step in written) else "",
        SEVERAL.format(count=len(written), arch=arch, names=", ".join(step.layer.name for step in written)) if written[1:] else "",
        "" if scaled else UNSCALED,
        STREAMS.format(count=flowing) if flowing else "",
    ]
    return files("qatlib.export").joinpath("max78000.md").read_text().format(
        name=model.graph["arch"], chip=DEVICES[report.device].name, arch=arch, shape=" x ".join(map(str, sample_shape(model))),
        flags=("" if scaled else " --no-scale-output") + (" --fifo" if flowing else ""), notes="".join(notes),
        scales=_scales(model, written, scaled), report=report,
    )  # fmt: skip


def _scales(model: CompactModel, written: list[Step], scaled: bool) -> str:
    """What the integers of each output stand for: those in the file, and those that `cnn_unload` has shifted by `final_scale`."""
    known, lines = exponents(model), []
    for step in written:
        exponent, layer = known[step.layer.name], step.layer
        own = -(layer.bits + 6) if layer.wide else -7
        unloaded = f"2^{own} after cnn_unload() (which multiplies by 2^{exponent - own}, the layer's final_scale)"
        ways = f"2^{exponent} in the file, " + (unloaded if scaled else f"2^{exponent} after cnn_unload() (--no-scale-output)")
        lines.append(f"- {layer.name}: real value = integer x {ways}")
    return "\n".join(lines)
