"""Inputs of the vendor's synthesis tool (ai8xize.py): integer checkpoint, network YAML, sample, known answer, and the commands.

Processor masks come from `qatlib.ai8x.placement`, data-memory offsets and pass-through layers from `qatlib.ai8x.steps`.
Source: ai8x-training README, "YAML Quick Start" and "Network Loader Configuration Language".
"""

import os
import re
from pathlib import Path

import numpy as np

from qatlib.ai8x.describe import describe
from qatlib.ai8x.meter import Fit, fit
from qatlib.ai8x.plan import DEVICES
from qatlib.ai8x.steps import Step, steps
from qatlib.compact import CompactModel
from qatlib.export.source import answer_rows, as_compact, check_accumulators, sample_codes, write_folder

OPERATIONS = {
    "conv2d": "Conv2d",
    "conv1d": "Conv1d",
    "conv_transpose2d": "ConvTranspose2d",
    "linear": "MLP",
    "pool": "passthrough",
    "copy": "passthrough",
    "add": "Add",
    "sub": "Sub",
}


def export_max78000(model, sample: np.ndarray | None, folder: str | os.PathLike, input_shape=None) -> Path:
    """Write everything `ai8xize.py` reads for `model` (anything `as_compact` takes) into `folder`, whole or not at all.

    Files: `<arch>.pth.tar`, `<arch>.yaml`, `sample_<arch>.npy` (int64, C x H x W), `expected_<arch>.npy` (the integers that the
    chip must give) and README.md with the commands. `sample` is one picture, int8 codes (C, H, W); None takes a random one.

    Raises ValueError, with every violated limit and its remedy, for a network that does not fit the chip of the model.
    """
    compact = as_compact(model, input_shape)
    check_accumulators(compact)
    report = fit(compact, device=compact.graph["device"])
    if not report.fits:
        raise ValueError(f"this network cannot run on the {DEVICES[report.device].name}:\n- " + "\n- ".join(report.violations))
    picture = sample_codes(compact, sample, 3)[-1 if sample is None else 0]
    arch = arch_name(compact)
    text = network_yaml(compact, report)
    state = checkpoint(compact)

    def fill(target: Path) -> None:
        import torch

        torch.save(state, target / f"{arch}.pth.tar")
        (target / f"{arch}.yaml").write_text(text)
        np.save(target / f"sample_{arch}.npy", picture.astype(np.int64).reshape(sample_shape(compact)))
        np.save(target / f"expected_{arch}.npy", answer_rows(compact, picture[None])[0].reshape(compact.ops[-1]["shape"]))
        (target / "README.md").write_text(_readme(compact, report, arch))

    return write_folder(folder, fill)


def sample_shape(model: CompactModel) -> tuple[int, ...]:
    """How the vendor's tool wants the picture: as the network does, a vector as (C, 1, 1)."""
    shape = tuple(model.graph["input_shape"])
    return shape if len(shape) > 1 else (*shape, 1, 1)


def arch_name(model: CompactModel) -> str:
    """The network's name as the vendor's files spell it: lower case letters and digits.

    The YAML and the checkpoint must carry the same.
    """
    return re.sub(r"[^a-z0-9]", "", model.graph["arch"].lower()) or "network"


def checkpoint(model: CompactModel) -> dict:
    """The dict that the vendor's quantize.py writes; layers in execution order, shifts within the chip's register."""
    from qatlib.export.checkpoint import compact_to_checkpoint

    state = compact_to_checkpoint(model, correct_shift=True)
    order = {op["layer"]: i for i, op in enumerate(model.ops) if "layer" in op}
    weighted = sorted(state, key=lambda key: order.get(re.sub(r"\.(op\.)?[^.]+$", "", key), len(order)))
    return {
        "epoch": 0,
        "arch": arch_name(model),
        "state_dict": {key: state[key] for key in weighted},
        "extras": {"clipping_method": "MAX_BIT_SHIFT"},
    }


def network_yaml(model: CompactModel, report: Fit) -> str:
    """The network description: one entry a layer of the chip, with masks and offsets from the plan."""
    sequence, arch = steps(describe(model), report.device), arch_name(model)
    lines = ["---", f"arch: {arch}", f"dataset: {arch}", "layers:"]
    for index, step in enumerate(sequence):
        lines.append(f"  # {index} {step.writes}")
        settings = _entry(sequence, index, step, report)
        for i, (key, value) in enumerate(settings.items()):
            lines.append(f"  {'-' if i == 0 else ' '} {key}: {value}")
    return "\n".join([*lines, ""])


def mask(columns: range) -> str:
    """The 64-bit mask of some processors.

    >>> mask(range(3)), mask(range(0, 12, 4))
    ('0x0000000000000007', '0x0000000000000111')
    """
    return f"0x{sum(1 << p for p in columns):016x}"


def _entry(sequence: list[Step], index: int, step: Step, report: Fit) -> dict:
    layer, columns, offset = step.layer, report.placement.columns, report.memory.offset
    reads = step.reads[0] if step.kind == "copy" else layer.inputs[0]
    entry = {"processors": mask(columns(reads, layer.c_in))}
    after = sequence[index + 1] if index + 1 < len(sequence) else None
    joined = step.block != step.writes and step.lanes == 1
    if after and step.writes not in after.reads or joined or step.kind == "copy":
        entry["output_processors"] = mask(columns(reads if step.kind == "copy" else layer.name, layer.c_out))
    if index == 0:
        entry["data_format"] = "HWC" if report.placement.spread["input"] == 1 else "CHW"
    producers = [next((i for i, s in enumerate(sequence) if s.writes == name), -1) for name in step.reads]
    if producers != [index - 1]:
        entry["in_sequences"] = producers[0] if len(producers) == 1 else f"[{', '.join(map(str, producers))}]"
    if index and (producers != [index - 1] or step.lanes > 1):
        entry["in_offset"] = f"0x{offset[step.source]:04x}"
    entry["operation"] = OPERATIONS[step.kind]
    if layer.kind in ("conv2d", "conv_transpose2d") and step.kind != "copy":
        entry |= {"kernel_size": f"{layer.kernel[0]}x{layer.kernel[1]}", "pad": layer.padding}
    elif layer.kind == "conv1d":
        entry |= {"kernel_size": layer.kernel[0], "pad": layer.padding}
    entry |= _weights(step) if layer.has_weights and step.kind != "copy" else {}
    entry |= _pool(step) if step.kind != "copy" else {}
    entry["out_offset"] = f"0x{offset[step.block] + 4 * step.lane:04x}"
    if step.lanes > 1:
        entry["write_gap"] = step.lanes - 1
    return entry


def _weights(step: Step) -> dict:
    layer, entry = step.layer, {}
    if layer.groups > 1:
        entry["groups"] = layer.groups
    if layer.dilation > 1:
        entry["dilation"] = layer.dilation
    if layer.activation:
        entry["activate"] = {"relu": "ReLU", "abs": "Abs"}[layer.activation]
    if step.eltwise:
        entry |= {"eltwise": step.eltwise, "operands": len(step.reads)}
    if layer.flatten > 1:
        entry["flatten"] = "true"
    if layer.wide:
        entry["output_width"] = 32
    return entry | {"quantization": layer.bits}


def _pool(step: Step) -> dict:
    """A pool by itself is two-dimensional for the vendor's tool, with width 1 for a signal; a Conv1d's own has one number."""
    layer = step.layer
    entry = {"operands": len(step.reads)} if step.eltwise and not layer.has_weights and len(step.reads) > 2 else {}
    if not layer.pool_kind:
        return entry
    one = layer.pool[0] == layer.pool[1] or layer.pool[1] == 1 and layer.kind == "conv1d"
    size = layer.pool[0] if one else f"[{layer.pool[0]}, {layer.pool[1]}]"
    if step.eltwise:
        entry["pool_first"] = "false"
    return entry | {f"{layer.pool_kind}_pool": size, "pool_stride": layer.pool_stride[0]}


def _readme(model: CompactModel, report: Fit, arch: str) -> str:
    chip, exponent = DEVICES[report.device].name, model.graph["outputs"][0]["exponent"]
    shape = " x ".join(map(str, sample_shape(model)))
    narrow = "" if model.ops[-1].get("wide") else NARROW
    return f"""# {model.graph["arch"]} for the {chip}

Inputs of the vendor's synthesis tool (github.com/analogdevicesinc/ai8x-synthesis, version with QATv2). Begin in this folder:

    HERE=$PWD
    cd /path/to/ai8x-synthesis
    python ai8xize.py --test-dir sdk/Examples/{chip}/CNN --prefix {arch} --device {chip} \\
        --checkpoint-file "$HERE/{arch}.pth.tar" --config-file "$HERE/{arch}.yaml" --sample-input "$HERE/sample_{arch}.npy" \\
        --timer 0 --display-checkpoint --verbose

`/path/to/ai8x-synthesis` is where you cloned the tool; run it in the Python environment that its README sets up. The
weights are integers already: do not run quantize.py on them. The tool writes `cnn.c`, `weights.h`, `sampledata.h` and, as known
answer, `sampleoutput.h`; on the chip the program compares itself with that.

| file | content |
|---|---|
| {arch}.pth.tar | integer weights, biases, shifts (epoch, arch, state_dict, extras) |
| {arch}.yaml | layers with processor masks and data-memory offsets |
| sample_{arch}.npy | one picture, int64 {shape}, codes -128..127 |
| expected_{arch}.npy | the integers that the last layer must give; real value = integer x 2^{exponent} |
{narrow}
## Fit

```
{report}
```
"""


NARROW = """
The last layer is 8 bits wide: the tool's unload function does not sign-extend shifted 8-bit outputs, compare the raw bytes.
"""
