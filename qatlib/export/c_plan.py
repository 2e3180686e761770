"""Where the C project keeps its tensors: one buffer for all, a place is free again after its last reader."""

from dataclasses import dataclass
from math import prod
from random import Random

from qatlib.chip.operations import WEIGHTED, first_fit, last_uses, pooled_shape
from qatlib.integer.compact import CompactModel

TRIES = 100
PIXELS = "input/pixels"


@dataclass(frozen=True)
class Block:
    """Bytes that an operation writes, alive from time `begin` to `end`, both included; `over`: a tensor that it may replace."""

    name: str
    size: int
    begin: int
    end: int
    over: tuple[str, ...] = ()


def places(shape: tuple[int, ...]) -> int:
    """Pixels of a tensor: rows times columns, 1 for a vector."""
    return prod(shape[1:])


def is_flat(shape: tuple[int, ...]) -> bool:
    """Whether (C, H, W) and (H, W, C) are the same order of bytes."""
    return shape[0] == 1 or places(shape) == 1


def homes(model: CompactModel) -> dict[str, str]:
    """Which operation computed the bytes that a name stands for: a flatten that leaves their order alone only renames."""
    found, planar = {"input": "input"}, {"input"} | {op["name"] for op in model.ops if op.get("wide")}
    for op in model.ops:
        found[op["name"]] = op["name"]
        if op["kind"] == "flatten" and (found[op["inputs"][0]] in planar or is_flat(model.shape(op["inputs"][0]))):
            found[op["name"]] = found[op["inputs"][0]]
    return found


def operands(model: CompactModel, op: dict, home: dict[str, str]) -> list[str]:
    """Names of the blocks that `op` reads, with the `homes` of the model.

    The input is (C, H, W), which a layer can read; others read its pixels from PIXELS.
    """
    pixels = not is_flat(model.shape("input")) and (op["kind"] not in (*WEIGHTED, "flatten") or op.get("pool"))
    return [PIXELS if pixels and name == "input" else home[name] for name in op["inputs"]]


def blocks(model: CompactModel) -> list[Block]:
    """What is written into the buffer, in the order of time: operation i pools at time 2i and writes its result at 2i + 1.

    A pool fused in front of a layer is "<operation>/pool".
    """
    home, ends = homes(model), {}
    outputs = [output["op"] for output in model.graph["outputs"]]
    used = last_uses(model.ops, outputs)
    for index, op in enumerate(model.ops):
        if op["name"] in used:
            ends |= dict.fromkeys(operands(model, op, home), 2 * index + (not (op["kind"] in WEIGHTED and op["pool"])))
    ends |= {home[name]: 2 * len(model.ops) + 1 for name in outputs}
    made = [Block(PIXELS, prod(model.shape("input")), 0, ends[PIXELS])] if PIXELS in ends else []
    for index, op in enumerate(model.ops):
        name, time = op["name"], 2 * index
        if name not in used or home[name] != name:
            continue
        over = tuple(operands(model, op, home))
        if op["kind"] in WEIGHTED and op["pool"]:
            shape = pooled_shape(op["pool"], model.shape(op["inputs"][0]))
            made.append(Block(f"{name}/pool", prod(shape), time, time + 1, over))
        if not op.get("wide"):
            over = over if op["kind"] in ("pool", "add", "sub") else ()
            made.append(Block(name, prod(op["shape"]), time + 1, ends[name], over))
    return made


def arena(model: CompactModel) -> tuple[dict[str, int], int]:
    """Offsets in bytes of all int8 tensors in one buffer, and its size.

    Tensors are placed one after the other among those alive, from below or from above; of some patterns drawn from a fixed seed,
    the one that needs least is taken. Sums and pools may be written over an operand that nobody reads later.
    """
    todo, draw = blocks(model), Random(0)
    *best, least = _placed(todo, [False] * len(todo), 0)
    for _ in range(TRIES):
        *plan, _ = _placed(todo, [draw.random() < 0.5 for _ in todo], least)
        best = min(best, plan, key=lambda one: one[1])
    return best[0], best[1]


def _placed(todo: list[Block], from_above: list[bool], limit: int) -> tuple[dict[str, int], int, int]:
    """Offsets, the size of the buffer, and the most bytes alive; blocks `from_above` hang from `limit`, if there is room."""
    offsets, alive, top, most = {}, [], 0, 0
    for block, above in zip(todo, from_above):
        over = [b for b in alive if b.name in block.over and b.end == block.begin and b.size >= block.size]
        alive = [b for b in alive if b.end >= block.begin and b not in over[:1]]
        taken = [(offsets[b.name], offsets[b.name] + b.size) for b in alive]
        hung = limit - block.size - first_fit([(limit - end, limit - start) for start, end in taken], block.size)
        if over:
            offsets[block.name] = offsets[over[0].name]
        else:
            offsets[block.name] = hung if above and hung >= 0 else first_fit(taken, block.size)
        alive.append(block)
        top, most = max(top, offsets[block.name] + block.size), max(most, sum(b.size for b in alive))
    return offsets, top, most
