"""Where the C project keeps its tensors: one buffer for all, a place is free again after its last reader."""

from dataclasses import dataclass
from math import prod
from random import Random

import numpy as np

from qatlib.chip.operations import WEIGHTED, first_fit, last_uses, pooled_shape, wide_ones
from qatlib.integer.compact import CompactModel
from qatlib.integer.engine import arrange

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
    """Which operation computed the bytes that a name stands for: reshapes, and flattenings that keep their order, only rename."""
    found, planar = {"input": "input"}, {"input", *wide_ones(model.ops)}
    for op in model.ops:
        found[op["name"]], source = op["name"], op["inputs"][0]
        same = op["kind"] == "reshape" or op["kind"] == "flatten" and (found[source] in planar or is_flat(model.shape(source)))
        if same and not op.get("host"):
            found[op["name"]] = found[source]
    return found


def origins(model: CompactModel, home: dict[str, str]) -> list[tuple[str, int, int, np.ndarray]]:
    """Which values the outputs hold, one after the other: of an operation, times 2^shift, from place `start` of all outputs.

    An array (2, n), in the order of its second row: numbers of values in that operation's (C, H, W), and places after `start`.
    """
    known = {}

    def values(name: str) -> np.ndarray:
        """(3, *shape): number of the operation, number of the value there, shift."""
        if name not in known and (op := ops.get(name)) and op.get("host"):
            shifts, read = op.get("shifts", [0] * len(op["inputs"])), [values(source) for source in op["inputs"]]
            known[name] = arrange(op, [x + np.reshape([0, 0, n], (3, *[1] * (x.ndim - 1))) for x, n in zip(read, shifts)])
        elif name not in known:
            shape = model.shape(name)
            number = np.arange(prod(shape)).reshape(shape)
            known[name] = np.stack([np.full(shape, names.index(home[name])), number, np.zeros(shape, int)])
        return known[name]

    ops, start, found = {op["name"]: op for op in model.ops}, 0, []
    names = ["input", *ops]
    for output in model.graph["outputs"]:
        owner, number, shift = values(output["op"]).reshape(3, -1)
        for index, factor in dict.fromkeys(zip(owner.tolist(), shift.tolist())):
            places = np.flatnonzero((owner == index) & (shift == factor))
            found.append((names[index], factor, start, np.stack([number[places], places])))
        start += len(owner)
    return found


def loops(steps: np.ndarray) -> list[tuple[int, ...]] | None:
    """Nested loops, (count, steps of each row), the innermost last, that go through `steps`, (rows, n); None where none do.

    >>> loops(np.array([[0, 3, 1, 4, 2, 5], [0, 1, 2, 3, 4, 5]]))
    [(3, 1, 2), (2, 3, 1)]
    """
    found: list[tuple[int, ...]] = []
    while steps.shape[1] > 1 or not found:
        apart = np.diff(steps, axis=1)
        same = (apart == apart[:, :1]).all(axis=0)
        count = 1 + (len(same) if same.all() else int(same.argmin()))
        step = apart[:, :1] if len(same) else np.zeros((len(steps), 1), int)
        if steps.shape[1] % count:
            return None
        rows = steps.reshape(len(steps), -1, count)
        if not np.array_equal(rows, rows[:, :, :1] + step[:, None] * np.arange(count)):
            return None
        found.insert(0, (count, *step.ravel().tolist()))
        steps = rows[:, :, 0]
    return found


def operands(model: CompactModel, op: dict, home: dict[str, str]) -> list[str]:
    """Names of the blocks that `op` reads, with the `homes` of the model.

    The input is (C, H, W), which a layer can read; others read its pixels from PIXELS.
    """
    pixels = not is_flat(model.shape("input")) and (op["kind"] not in (*WEIGHTED, "flatten") or op.get("pool"))
    maps = {name for name in op["inputs"] if home[name] == "input" and len(model.shape(name)) > 1}
    return [PIXELS if pixels and name in maps else home[name] for name in op["inputs"]]


def blocks(model: CompactModel) -> list[Block]:
    """What is written into the buffer, in the order of time: operation i pools at time 2i and writes its result at 2i + 1.

    A pool fused in front of a layer is "<operation>/pool".
    """
    home, ends = homes(model), {}
    outputs = [output["op"] for output in model.graph["outputs"]]
    used = last_uses(model.ops, outputs)
    for index, op in enumerate(model.ops):
        if op["name"] in used and not op.get("host"):
            ends |= dict.fromkeys(operands(model, op, home), 2 * index + (not (op["kind"] in WEIGHTED and op["pool"])))
    ends |= {name: 2 * len(model.ops) + 1 for name, *_ in origins(model, home)}
    made = [Block(PIXELS, prod(model.shape("input")), 0, ends[PIXELS])] if PIXELS in ends else []
    for index, op in enumerate(model.ops):
        name, time = op["name"], 2 * index
        if name not in used or home[name] != name or op.get("host"):
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
