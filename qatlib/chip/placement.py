"""Where the weights go: processors for every tensor, and a place in kernel memory for every layer, as the vendor's tool finds it.

The tool takes the layers from first to last and gives each the first free words, from a multiple of 4 on, of all its processors.
Other versions of it begin with the layers on all 64 processors, and take the rest from last to first: recorded runs show both. So
masks are sought with which kernel memory suffices in each of these orders, or else in those from first to last.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from qatlib.chip.operations import first_fit
from qatlib.chip.picture import channel_first
from qatlib.chip.schedule import SUMS, interleaved
from qatlib.chip.spec import DEVICES, PROCESSORS, Device, LayerSpec, kernel_words, picture, processors

TRIALS = 1500  # masks that are tried for a network that does not fit at once
WORK = 50_000  # layers that are put into place for that
REMEDY = "give this or a neighbouring layer fewer channels (multiples of 64 use all processors) or 4-bit weights"


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


@dataclass
class Groups:
    """Tensors that must lie at fixed distances: `at[tensor]` is its group and its first processor within it.

    What a sum or a pool reads and writes sits on the same processors, the parts of a concatenation side by side (those of one
    with more than 64 channels on the same). `span[group]`: the processors it reaches over; `problem`: what cannot be.
    """

    at: dict[str, tuple[str, int]] = field(default_factory=lambda: {"input": ("input", 0)})
    span: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    def tie(self, tensor: str, other: str, distance: int) -> None:
        """`tensor` begins `distance` processors behind `other`."""
        group, place = self.at[other]
        old, was = self.at[tensor]
        moved = place + distance - was
        if old == group:
            if moved and not self.problem:
                self.problem = f"{tensor} is joined at two different places: give each concatenation and sum a layer of its own"
            return
        for name, (owner, at) in self.at.items():
            if owner == old:
                self.at[name] = group, at + moved


def groups(layers: list[LayerSpec], spread: int = 1) -> Groups:
    """Which tensors' processors depend on each other; `spread`: the distance of the input's processors."""
    result, channels = Groups(), {layer.name: layer.c_out for layer in (picture(layers), *layers)}
    for layer in layers:
        result.at[layer.name] = layer.name, 0
        behind = 0
        for source in layer.inputs if layer.kind in (*SUMS, "pool", "concat") else ():
            result.tie(source, layer.name, behind)
            behind += channels[source] if layer.kind == "concat" and not interleaved(layer) else 0
    for group in dict.fromkeys(group for group, _ in result.at.values()):
        members = [(name, place) for name, (owner, place) in result.at.items() if owner == group]
        low = min(place for _, place in members)
        result.at |= {name: (group, place - low) for name, place in members}
        reach = {name: spread * (processors(channels[name]) - 1) + 1 if name == "input" else processors(channels[name])
                 for name, _ in members}  # fmt: skip
        result.span[group] = max(place - low + reach[name] for name, place in members)
    return result


class _Kernels:
    """The layers with weights of a network, to be put into kernel memory with one mask or another."""

    def __init__(self, layers: list[LayerSpec], device: Device, room: Callable[[Placement], int] | None = None):
        self.layers, self.device, self.room = [layer for layer in layers if layer.has_weights], device, room
        self.spread = {"input": 4 if channel_first(layers, device) else 1}
        self.groups = groups(layers, self.spread["input"])
        everywhere = [layer for layer in self.layers if processors(layer.c_in) == PROCESSORS]
        rest = [layer for layer in self.layers if layer not in everywhere]
        self.orders = (everywhere + rest[::-1], everywhere + rest, self.layers)
        self.words = {layer.name: kernel_words(layer) for layer in self.layers}

    def placed(self, starts: dict[str, int], order: list[LayerSpec]) -> Placement:
        """Every layer in its turn at the first free words, its group beginning where `starts` says (0 by default)."""
        plan = Placement(spread=self.spread, problem=self.groups.problem)
        plan.first = {name: starts.get(group, 0) + place for name, (group, place) in self.groups.at.items()}
        taken: list[tuple[int, tuple[int, int]]] = []
        for layer in order:
            columns, words = plan.columns(layer.inputs[0], layer.c_in), self.words[layer.name]
            if columns[-1] >= PROCESSORS:  # its input begins where a concatenation wants it
                place = f"{layer.name} reads {len(columns)} processors from {columns.start} on, of {PROCESSORS}"
                plan.problem = plan.problem or f"{place}: {REMEDY}"
                continue
            bits = sum(1 << p for p in columns)
            offset = first_fit([block for mask, block in taken if mask & bits], words, align=4)
            full = [p for p in columns if offset + words > self.device.words[p]]
            if full:
                place = f"kernel memory exhausted at processor {full[0]}: offset {offset}, needed {words}"
                plan.problem = plan.problem or f"{place}, of {self.device.words[full[0]]} words ({layer.name}): {REMEDY}"
                continue
            taken.append((bits, (offset, offset + words)))
            for p in columns:
                plan.used[p] = max(plan.used[p], offset + words)
            plan.start[layer.name], plan.step[layer.name], plan.count[layer.name] = columns.start, columns.step, len(columns)
            plan.offset[layer.name], plan.words[layer.name] = offset, words
        return plan

    def missing(self, starts: dict[str, int], orders) -> int:
        """Words that found no room, summed over `orders`, and bytes of data that `room` misses: 0 for masks that will do."""
        plans = [self.placed(starts, order) for order in orders]
        data = self.room(plans[-1]) if self.room else 0
        return data + sum(self.words[layer.name] for plan in plans for layer in self.layers if layer.name not in plan.offset)

    def hopeless(self) -> bool:
        """Whether no masks can help: more words than there are, in all or on every processor."""
        total = sum(processors(layer.c_in) * self.words[layer.name] for layer in self.layers)
        return bool(self.groups.problem) or total > sum(self.device.words) or len(self.groups.span) < 2

    def balanced(self) -> dict[str, int]:
        """First processors that level the load: the widest and heaviest groups first, each where its processors are emptiest."""
        load, heavy = [0] * PROCESSORS, dict.fromkeys(self.groups.span, 0)
        for layer in self.layers:
            heavy[self.groups.at[layer.inputs[0]][0]] += self.words[layer.name]
        starts = {}
        for group in sorted(heavy, key=lambda g: (-self.groups.span[g], -heavy[g])):
            span = self.groups.span[group]
            starts[group] = min(self.choices(group), key=lambda s: max(load[s : s + span], default=0))
            for p in range(starts[group], min(starts[group] + span, PROCESSORS)):
                load[p] += heavy[group]
        return starts

    def alternating(self) -> dict[str, int]:
        """First processors at one end and the other in turn, so that what a layer reads and writes lies in different memories."""
        return {group: self.choices(group)[-(i % 2)] for i, group in enumerate(self.groups.span)}

    def choices(self, group: str) -> range:
        """Where a group may begin: at multiples of 4; the picture at processor 0, so that the first quadrant is in use."""
        return range(0, max(1, PROCESSORS - self.groups.span[group] + 1) if group != self.groups.at["input"][0] else 1, 4)

    def sought(self, orders) -> dict[str, int] | None:
        """Masks with which all layers find room in each of `orders`: the balanced ones, moved one by one as long as that helps."""
        chance, best = random.Random(0), min(self.balanced(), self.alternating(), key=lambda starts: self.missing(starts, orders))
        movable = [group for group in best if len(self.choices(group)) > 1]
        least = self.missing(best, orders)
        for _ in range(min(TRIALS, WORK // len(self.layers)) if movable else 0):
            if not least:
                return best
            trial = dict(best)
            for group in chance.sample(movable, min(len(movable), chance.choice((1, 1, 2, 3)))):
                trial[group] = chance.choice(self.choices(group))
            missing = self.missing(trial, orders)
            if missing <= least:
                best, least = trial, missing
        return None if least else best


def place(
    layers: list[LayerSpec], device: int = 85, balance: bool = True, room: Callable[[Placement], int] | None = None
) -> Placement:
    """Kernel memory for all layers: with every mask from processor 0, or else (`balance`) with masks moved until all fit.

    `room` tells how many bytes of data find no place with a placement; masks are moved until that is 0, too. The result shows
    the kernels in the tool's order, first to last; where there is no place for one, the order in which that was seen.
    """
    kernels = _Kernels(layers, DEVICES[device], room)
    starts: dict[str, int] | None = {}
    if kernels.missing({}, kernels.orders):
        possible = balance and not kernels.hopeless()
        starts = (kernels.sought(kernels.orders) or kernels.sought(kernels.orders[1:])) if possible else None
    if starts is not None:
        return kernels.placed(starts, kernels.layers)
    plans = [kernels.placed({}, order) for order in kernels.orders]
    return next((plan for plan in plans if plan.problem), plans[-1])
