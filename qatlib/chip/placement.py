"""Where the weights go: a place in kernel memory for every layer, as the vendor's tool finds it, or better masks."""

from dataclasses import dataclass, field

from qatlib.chip.operations import first_fit
from qatlib.chip.spec import DEVICES, PROCESSORS, Device, LayerSpec, channel_first, kernel_words, processors


@dataclass
class Placement:
    """Result of `place`, by layer: first processor, processors, first word, words, and `step` from one processor to the next.

    `used[p]`: words in use on processor p.

    `first[name]` is the first processor of every tensor, `spread[name]` the distance to its next one (4 for a picture in CHW);
    `problem` is "" when everything fits.
    """

    start: dict[str, int] = field(default_factory=dict)
    step: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    offset: dict[str, int] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    used: list[int] = field(default_factory=lambda: [0] * PROCESSORS)
    first: dict[str, int] = field(default_factory=dict)
    spread: dict[str, int] = field(default_factory=dict)
    problem: str = ""


    def columns(self, tensor: str, channels: int) -> range:
        """The processors that hold `channels` channels of `tensor`."""
        first, spread = self.first.get(tensor, 0), self.spread.get(tensor, 1)
        return range(first, first + spread * processors(channels), spread)

    def columns_of(self, layer: str) -> range:
        """The processors in whose kernel memory the weights of `layer` lie."""
        start, step = self.start[layer], self.step[layer]
        return range(start, start + step * self.count[layer], step)


def masks(layers: list[LayerSpec]) -> dict[str, str]:
    """For every tensor the name that owns its processors: what an add reads and writes (a pool too) sits on the same ones."""
    owner: dict[str, str] = {"input": "input"}

    def root(name: str) -> str:
        while owner[name] != name:
            name = owner[name]
        return name

    for layer in layers:
        owner[layer.name] = layer.name
        if not layer.has_weights and layer.kind != "concat":
            for source in layer.inputs:
                owner[root(source)] = root(layer.name)
    return {name: root(name) for name in owner}


def _try_place(layers: list[LayerSpec], starts: dict[str, int], device: Device) -> Placement:
    """Place every layer with its mask beginning where `starts` says (by owner; 0 by default)."""
    plan, owner = Placement(), masks(layers)
    plan.first = {name: starts.get(group, 0) for name, group in owner.items()}
    plan.spread = {"input": 4 if channel_first(layers, device) else 1}
    taken: list[list[tuple[int, int]]] = [[] for _ in range(PROCESSORS)]
    weighted = [layer for layer in layers if layer.has_weights]
    everywhere = [layer for layer in weighted if processors(layer.c_in) == PROCESSORS]
    for layer in everywhere + [layer for layer in reversed(weighted) if layer not in everywhere]:
        columns, words = plan.columns(layer.inputs[0], layer.c_in), kernel_words(layer)
        if columns[-1] >= PROCESSORS:  # its input begins where a concatenation wants it
            place = f"{layer.name} reads {len(columns)} processors from {columns.start} on, of {PROCESSORS}"
            plan.problem = plan.problem or place
            continue
        offset = first_fit(list({block for p in columns for block in taken[p]}), words, align=4)
        full = [p for p in columns if offset + words > device.words[p]]
        if full:
            place = f"kernel memory exhausted at processor {full[0]}: offset {offset}, needed {words}"
            plan.problem = plan.problem or f"{place}, of {device.words[full[0]]} words ({layer.name})"
            continue
        for p in columns:
            taken[p].append((offset, offset + words))
            plan.used[p] = max(plan.used[p], offset + words)
        plan.start[layer.name], plan.step[layer.name], plan.count[layer.name] = columns.start, columns.step, len(columns)
        plan.offset[layer.name], plan.words[layer.name] = offset, words
    return plan


def _joined(layers: list[LayerSpec]) -> dict[str, int]:
    """First processors that concatenations demand: each operand beside the one before it."""
    owner, starts = masks(layers), {}
    for layer in (layer for layer in layers if layer.kind == "concat"):
        channels = {other.name: other.c_out for other in layers}
        start = 0
        for source in layer.inputs:
            starts[owner[source]] = start
            start += channels.get(source, 0)
    return starts


def _balanced(layers: list[LayerSpec], pinned: dict[str, int], device: Device) -> dict[str, int]:
    """First processors that level the load: the widest and heaviest groups first, each where its processors are emptiest."""
    owner, load, heavy, width = masks(layers), [0] * PROCESSORS, {}, {}
    for layer in (layer for layer in layers if layer.has_weights):
        group = owner[layer.inputs[0]]
        heavy[group] = heavy.get(group, 0) + kernel_words(layer)
        spread = 4 if layer is layers[0] and channel_first(layers, device) else 1
        width[group] = max(width.get(group, 0), spread * processors(layer.c_in))
    joined = {owner[layer.name] for layer in layers if layer.kind == "concat"}
    starts = {}
    for group in sorted(heavy, key=lambda g: (-width[g], -heavy[g])):
        choices = [pinned.get(group, 0)] if group in pinned or group in joined else range(0, PROCESSORS - width[group] + 1, 4)
        starts[group] = min(choices, key=lambda s: max(load[s : s + width[group]], default=0))
        for p in range(starts[group], min(starts[group] + width[group], PROCESSORS)):
            load[p] += heavy[group]
    return starts | pinned


def place(layers: list[LayerSpec], device: int = 85, balance: bool = True) -> Placement:
    """Kernel memory for all layers: with every mask from processor 0, or else (`balance`) with masks moved to level the load.

    The order is the vendor's: layers on all 64 processors first, then the others from last to first, each at the first free
    words from a multiple of 4 on.
    """
    chip, pinned = DEVICES[device], _joined(layers)
    plan = _try_place(layers, pinned, chip)
    if plan.problem and balance:
        moved = _try_place(layers, _balanced(layers, pinned, chip), chip)
        return moved if not moved.problem else plan
    return plan
