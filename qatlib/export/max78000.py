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
from qatlib.ai8x.plan import DEVICES, processors
from qatlib.ai8x.steps import Step, steps
from qatlib.compact import CompactModel
from qatlib.compact_graph import WEIGHTED
from qatlib.export.source import answer_rows, as_compact, check_accumulators, last_uses, sample_codes, write_folder

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
    _check(compact, report)
    picture = sample_codes(compact, sample, 3)[-1 if sample is None else 0]
    arch = arch_name(compact)
    text = network_yaml(compact, report)
    state = checkpoint(compact)

    def fill(target: Path) -> None:
        import torch

        torch.save(state, target / f"{arch}.pth.tar")
        (target / f"{arch}.yaml").write_text(text)
        np.save(target / f"sample_{arch}.npy", picture.astype(np.int64))
        np.save(target / f"expected_{arch}.npy", answer_rows(compact, picture[None])[0].reshape(compact.ops[-1]["shape"]))
        (target / "README.md").write_text(_readme(compact, report, arch))

    return write_folder(folder, fill)


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


def _check(model: CompactModel, report: Fit) -> None:
    """What the chip could not run, or the vendor's tool could not load."""
    problems, ops = list(report.violations), model.ops
    owners = [op["layer"] for op in ops if op["kind"] in WEIGHTED]
    needed = last_uses(model)
    problems += [
        f"{name}: its weights are used twice: give each call a layer of its own"
        for name in {o for o in owners if owners.count(o) > 1}
    ]
    problems += [f"{op['name']}: nothing reads it: drop it" for op in ops if op["name"] not in needed]
    problems += [
        f"{op['name']}: average pooling with rounding differs on the chip (half away from zero): use round_avg=False"
        for op in ops
        if (op.get("pool") or {}).get("round")
    ]
    problems += [
        f"{op['name']}: {op['shape'][0]} joined channels; up to 64 are planned, each part but the last a multiple of 4: add instead"
        for op in ops
        if op["kind"] == "concat" and (op["shape"][0] > 64 or any(_channels(model, name) % 4 for name in op["inputs"][:-1]))
    ]
    problems += [
        f"{op['name']}: pooling with dilation is not planned: use dilation 1"
        for op in ops
        if max((op.get("pool") or {"dilation": [1]})["dilation"]) > 1
    ]
    outputs = [output["op"] for output in model.graph["outputs"]]
    if outputs != [ops[-1]["name"]] or ops[-1]["kind"] in ("flatten", "concat"):
        problems.append(f"the outputs are {', '.join(outputs)}: the chip unloads one, which must be the last layer")
    if problems:
        raise ValueError(f"this network cannot run on the {DEVICES[report.device].name}:\n- " + "\n- ".join(problems))


def _channels(model: CompactModel, name: str) -> int:
    return next((op["shape"][0] for op in model.ops if op["name"] == name), model.graph["input_shape"][0])


def network_yaml(model: CompactModel, report: Fit) -> str:
    """The network description: one entry a layer of the chip, with masks and offsets from the plan."""
    sequence, arch = steps(describe(model)), arch_name(model)
    lines = ["---", f"arch: {arch}", f"dataset: {arch}", "layers:"]
    for index, step in enumerate(sequence):
        lines.append(f"  # {index} {step.writes}")
        settings = _entry(sequence, index, step, report)
        for i, (key, value) in enumerate(settings.items()):
            lines.append(f"  {'-' if i == 0 else ' '} {key}: {value}")
    return "\n".join([*lines, ""])


def mask(first: int, channels: int) -> str:
    """The 64-bit mask of the processors that hold `channels` channels, from processor `first` on.

    >>> mask(0, 3), mask(16, 96)
    ('0x0000000000000007', '0xffffffffffff0000')
    """
    return f"0x{(1 << processors(channels)) - 1 << first:016x}"


def _entry(sequence: list[Step], index: int, step: Step, report: Fit) -> dict:
    layer, first, offset = step.layer, report.placement.first, report.memory.offset
    reads = step.reads[0] if step.kind == "copy" else layer.inputs[0]
    entry = {"processors": mask(first[reads], layer.c_in)}
    after = sequence[index + 1] if index + 1 < len(sequence) else None
    joined = step.block != step.writes and step.lanes == 1
    if after and step.writes not in after.reads or joined or step.kind == "copy":
        entry["output_processors"] = mask(first[reads if step.kind == "copy" else layer.name], layer.c_out)
    if index == 0:
        entry["data_format"] = "HWC"
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
    layer = step.layer
    entry = {"operands": len(step.reads)} if step.eltwise and not layer.has_weights and len(step.reads) > 2 else {}
    if not layer.pool_kind:
        return entry
    one = layer.pool[0] == layer.pool[1] or layer.pool[1] == 1
    size = layer.pool[0] if one else f"[{layer.pool[0]}, {layer.pool[1]}]"
    if step.eltwise:
        entry["pool_first"] = "false"
    return entry | {f"{layer.pool_kind}_pool": size, "pool_stride": layer.pool_stride[0]}


def _readme(model: CompactModel, report: Fit, arch: str) -> str:
    chip, exponent = DEVICES[report.device].name, model.graph["outputs"][0]["exponent"]
    channels, *places = model.graph["input_shape"]
    narrow = "" if model.ops[-1].get("wide") else NARROW
    return f"""# {model.graph["arch"]} for the {chip}

Inputs of the vendor's synthesis tool (github.com/analogdevicesinc/ai8x-synthesis, version with QATv2). In its folder:

    python ai8xize.py --test-dir sdk/Examples/{chip}/CNN --prefix {arch} --checkpoint-file {arch}.pth.tar \\
        --config-file {arch}.yaml --sample-input sample_{arch}.npy --device {chip} --timer 0 --display-checkpoint --verbose

The weights are integers already: do not run quantize.py on them. The tool writes `cnn.c`, `weights.h`, `sampledata.h` and, as
known answer, `sampleoutput.h`; on the chip the program compares itself with that.

| file | content |
|---|---|
| {arch}.pth.tar | integer weights, biases, shifts (epoch, arch, state_dict, extras) |
| {arch}.yaml | layers with processor masks and data-memory offsets |
| sample_{arch}.npy | one picture, int64 {channels} x {" x ".join(map(str, places))}, codes -128..127 |
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
