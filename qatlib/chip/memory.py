"""Data memory: where each tensor lies, from when it is written until it was read for the last time."""

from dataclasses import dataclass, field
from math import ceil

from qatlib.chip.operations import first_fit
from qatlib.chip.picture import buffers, channel_first
from qatlib.chip.placement import Placement, place
from qatlib.chip.schedule import Step
from qatlib.chip.spec import DEVICES, LayerSpec, folds, passes

ALIGN = 0x100
SHARED = 4  # processors that share a data memory


@dataclass
class Memory:
    """Byte offsets in each data memory: of blocks, and their sizes; `problem` is "" when everything fits, else `missing` bytes."""

    offset: dict[str, int] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    missing: int = 0


def tensor_bytes(channels: int, height: int, width: int, wide: bool = False) -> int:
    """Bytes of one tensor in each data memory it uses: a 32-bit word holds a pixel of 4 channels (one of a wide tensor's)."""
    return passes(channels) * height * width * (16 if wide else 4)


def lead(layer: LayerSpec) -> int:
    """Bytes in front of its output that a far dilated Conv1d with 3 taps overwrites: the first rows of its 3x3 form."""
    return 4 * layer.dilation * passes(layer.c_out) if folds(layer) and layer.kernel[0] == 3 else 0


def written_bytes(step: Step) -> int:
    """Bytes that a step's block needs in each memory from its offset on."""
    layer = step.layer
    pixels = ceil(layer.h_in / layer.dilation) * layer.dilation if folds(layer) else layer.h_out
    return step.lanes * tensor_bytes(step.channels, pixels, layer.w_out, layer.wide and step.kind != "copy")


def _memories(sequence: list[Step], plan: Placement | None) -> dict[str, int]:
    """The data memories that hold a block, a bit each; without `plan` all of them."""
    if plan is None:
        return dict.fromkeys(("input", *(step.block for step in sequence)), 1)
    found = {"input": _bits(plan.columns("input", sequence[0].layer.c_in))}
    for step in sequence:
        found[step.block] = found.get(step.block, 0) | _bits(plan.columns(step.layer.name, step.layer.c_out))
    return found


def _bits(columns: range) -> int:
    return sum(1 << memory for memory in {p // SHARED for p in columns})


def data_memory(sequence: list[Step], device: int = 85, plan: Placement | None = None) -> Memory:
    """A place for every block while it is needed: the first free one, so that no two overlap that live at the same time.

    With `plan`, only those meet whose processors share a data memory.
    """
    limit, memory, last, alive = DEVICES[device].data_bytes, Memory(), {}, []
    where = _memories(sequence, plan)
    for index, step in enumerate(sequence):
        last[step.source] = index
        last.setdefault(step.block, index)
    last |= {step.block: len(sequence) for step in sequence if step.output} | {sequence[-1].block: len(sequence)}
    layers = [step.layer for step in sequence]
    first, flowing = layers[0], sum(step.streams for step in sequence)
    chw = channel_first(layers, DEVICES[device])
    size = 4 * ceil(first.h_in * first.w_in / 4) if chw else tensor_bytes(first.c_in, first.h_in, first.w_in)
    pending = [(-1, "input", size, 0)] + [(i, s.block, written_bytes(s), lead(s.layer)) for i, s in enumerate(sequence)]
    for i, size in enumerate(buffers(layers, flowing)):
        pending[i] = (*pending[i][:2], size, 0)
        last[pending[i][1]] = flowing - 1
    for index, block, size, before in pending:
        memory.size[block] = max(size, memory.size.get(block, 0))
        if block in memory.offset:
            continue
        alive = [entry for entry in alive if entry[2] >= index]
        taken = [entry[:2] for entry in alive if entry[3] & where[block]]
        offset = first_fit(taken, before + size, ALIGN) + before
        memory.missing += max(0, offset + size - limit)
        if memory.missing and not memory.problem:
            name = "the input" if block == "input" else f"the operands of {block[:-1]}" if block.endswith("<") else block
            memory.problem = f"data memory exhausted: {name} needs {size} bytes in each memory at {offset}, of {limit}"
        memory.offset[block] = offset
        alive.append((offset - before, offset + size, last.get(block, len(sequence)), where[block]))
    return memory


def planned(layers: list[LayerSpec], sequence: list[Step], device: int = 85) -> tuple[Placement, Memory]:
    """Processors and data memory of a network: where tensors that meet are too large for one memory, on other processors each."""
    plan = place(layers, device)
    memory = data_memory(sequence, device)
    if not memory.problem or plan.problem or max(memory.size.values()) > DEVICES[device].data_bytes:
        return plan, memory
    moved = place(layers, device, room=lambda trial: data_memory(sequence, device, trial).missing)
    apart = data_memory(sequence, device, moved)
    return (plan, memory) if apart.problem or moved.problem else (moved, apart)
