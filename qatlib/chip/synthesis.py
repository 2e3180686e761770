"""The network description that the vendor's synthesis tool (ai8xize.py) reads, from what the fit meter planned.

Processor masks come from `placement`, data-memory offsets and pass-through layers from `schedule`. Source: ai8x-training README,
"YAML Quick Start" and "Network Loader Configuration Language".
"""

from qatlib.chip.meter import Fit
from qatlib.chip.schedule import Step

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


def network_yaml(report: Fit, arch: str) -> str:
    """The description of a network that fits, called `arch`: one entry a layer of the chip, with the meter's masks and offsets."""
    sequence = report.sequence
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
    entry = {"processors": mask(columns(layer.inputs[0], layer.c_in))}
    after = sequence[index + 1].layer if index + 1 < len(sequence) else None
    written = columns(layer.name, layer.c_out)
    if written != (columns(after.inputs[0], after.c_in) if after else range(len(written))):
        entry["output_processors"] = mask(written)
    if index == 0:
        entry["data_format"] = "HWC" if report.placement.spread["input"] == 1 else "CHW"
    producers = [next((i for i, s in enumerate(sequence) if s.writes == name), -1) for name in step.reads]
    if step.streams:
        entry["streaming"] = "true"
    if producers != [index - 1]:
        entry["in_sequences"] = producers[0] if len(producers) == 1 else f"[{', '.join(map(str, producers))}]"
    if index and (producers != [index - 1] or step.lanes > 1):
        entry["in_offset"] = f"0x{offset[step.source]:04x}"
    if layer.in_dim:
        entry["in_dim"] = f"[{layer.in_dim[0]}, {layer.in_dim[1]}]"
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
    if step.output and sum(other.output for other in sequence) > 1:
        entry["output"] = "true"
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
