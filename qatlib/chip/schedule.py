"""The chip's own sequence of layers, and where each tensor lies in data memory.

An addition is no layer of its own where the next convolution can read its operands: these are interleaved in memory (`write_gap`),
and an operand that is needed elsewhere too is first copied beside the other one by a pass-through layer.
"""

from dataclasses import dataclass, field
from math import ceil

from qatlib.chip.operations import first_fit
from qatlib.chip.spec import DEVICES, LayerSpec, channel_first, passes

SUMS = ("add", "sub", "xor", "or")
ALIGN = 0x100


@dataclass
class Step:
    """One layer of the chip: it reads tensors `reads` from memory block `source`, combined by `eltwise`, and writes tensor `writes`
    into lane `lane` of `lanes` interleaved ones of `block`, which holds `channels`. `kind` is the layer's, or "copy"."""

    layer: LayerSpec
    kind: str
    reads: tuple[str, ...]
    writes: str
    source: str
    eltwise: str | None = None
    block: str = ""
    lane: int = 0
    lanes: int = 1
    channels: int = 0


@dataclass
class Memory:
    """Byte offsets in each data memory: of blocks, and their sizes; `problem` is "" when everything fits."""

    offset: dict[str, int] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    problem: str = ""


def steps(layers: list[LayerSpec], device: int = 85) -> list[Step]:
    """The chip's layers for `layers`, in order.

    Raises ValueError where two concatenations want one tensor in two places, or a sum reads a concatenation.
    """
    readers: dict[str, list[LayerSpec]] = {}
    for layer in layers:
        for source in layer.inputs:
            readers.setdefault(source, []).append(layer)
    by_name = {layer.name: layer for layer in layers}
    fused = {layer.name: layer for layer in layers if _fuses(layer, readers.get(layer.name, []), device)}
    homes: dict[str, tuple[str, int, int]] = {}  # tensor -> block, lane, lanes
    copies: dict[str, list[tuple[str, str, int, int]]] = {}  # tensor -> copies (name, block, lane, lanes) to make of it
    for layer in layers:
        if layer.kind in SUMS:
            for lane, source in enumerate(layer.inputs):
                if source in by_name and by_name[source].kind == "concat":
                    raise ValueError(f"{layer.name}: a sum of the concatenation {source} is not planned; put a layer in between")
                alone = len(readers[source]) == 1 and source in by_name
                block, lanes = operands(layer.name), len(layer.inputs)
                if alone and source not in fused:
                    homes[source] = (block, lane, lanes)
                else:
                    copies.setdefault(source, []).append((f"{source}>{layer.name}.{lane}", block, lane, lanes))
        elif layer.kind == "concat":
            for source in layer.inputs:
                if source in homes or source not in by_name or by_name[source].kind in (*SUMS, "concat"):
                    raise ValueError(f"{layer.name}: {source} cannot be both joined here and elsewhere; give it a layer of its own")
                homes[source] = (layer.name, 0, 1)
    return _sequence(layers, fused, homes, copies)


def operands(name: str) -> str:
    """The block in which the operands of the sum `name` lie; never the one that the sum is written to."""
    return f"{name}<"


def _fuses(total: LayerSpec, readers: list[LayerSpec], device: int) -> bool:
    """A sum is computed on the way into its reader, where that is one convolution (or linear layer that flattens nothing).

    The vendor's tool refuses sums in front of a Conv1d, and on the MAX78000 those whose operands and passes differ from 2 and 2
    where both are above 1.
    """
    several, runs = len(total.inputs), passes(total.c_out)
    alone = device == 85 and runs > 1 and several * runs != several + runs
    one = len(readers) == 1 and readers[0].kind in ("conv2d", "linear") and readers[0].flatten == 1
    return total.kind in SUMS and one and not alone


def _sequence(layers, fused, homes, copies) -> list[Step]:
    result = []
    joined = {layer.name: layer for layer in layers if layer.kind == "concat"}

    def copy(tensor: str, channels: int, height: int, width: int) -> None:
        like = LayerSpec(tensor, "copy", channels, channels, height, width, height, width)
        for name, block, lane, lanes in copies.get(tensor, []):
            result.append(Step(like, "copy", (tensor,), name, homes.get(tensor, (tensor,))[0], None, block, lane, lanes, channels))

    copy("input", layers[0].c_in, layers[0].h_in, layers[0].w_in)
    for layer in layers:
        if layer.name in fused or layer.kind == "concat":
            continue
        total = fused.get(layer.inputs[0]) or (layer if layer.kind in SUMS else None)
        if total:
            source = operands(total.name)
            reads = tuple(
                next((name for name, block, lane, _ in copies.get(tensor, []) if (block, lane) == (source, i)), tensor)
                for i, tensor in enumerate(total.inputs)
            )
        else:
            reads = joined[layer.inputs[0]].inputs if layer.inputs[0] in joined else layer.inputs
            source = homes.get(reads[0], (reads[0],))[0]
        block, lane, lanes = homes.get(layer.name, (layer.name, 0, 1))
        channels = joined[block].c_out if block in joined else layer.c_out
        result.append(Step(layer, layer.kind, reads, layer.name, source, total and total.kind, block, lane, lanes, channels))
        copy(layer.name, layer.c_out, layer.h_out, layer.w_out)
    return result


def tensor_bytes(channels: int, height: int, width: int, wide: bool = False) -> int:
    """Bytes of one tensor in each data memory it uses: a 32-bit word holds a pixel of 4 channels (one of a wide tensor's)."""
    return passes(channels) * height * width * (16 if wide else 4)


def data_memory(sequence: list[Step], device: int = 85) -> Memory:
    """A place for every block while it is needed: the first free one, so that no two overlap that live at the same time."""
    limit, memory, last, alive = DEVICES[device].data_bytes, Memory(), {}, []
    for index, step in enumerate(sequence):
        last[step.source] = index
        last.setdefault(step.block, len(sequence))
    first = sequence[0].layer
    chw = channel_first([step.layer for step in sequence], DEVICES[device])
    size = 4 * ceil(first.h_in * first.w_in / 4) if chw else tensor_bytes(first.c_in, first.h_in, first.w_in)
    pending = [(-1, "input", size)]
    for index, step in enumerate(sequence):
        layer = step.layer
        pending.append((index, step.block, step.lanes * tensor_bytes(step.channels, layer.h_out, layer.w_out, layer.wide)))
    for index, block, size in pending:
        memory.size[block] = max(size, memory.size.get(block, 0))
        if block in memory.offset:
            continue
        alive = [entry for entry in alive if entry[2] >= index]
        offset = first_fit([entry[:2] for entry in alive], size, ALIGN)
        if offset + size > limit and not memory.problem:
            name = "the input" if block == "input" else f"the operands of {block[:-1]}" if block.endswith("<") else block
            memory.problem = f"data memory exhausted: {name} needs {size} bytes in each memory at {offset}, of {limit}"
        memory.offset[block] = offset
        alive.append((offset, offset + size, last.get(block, len(sequence))))
    return memory
