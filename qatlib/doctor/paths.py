"""What the doctor reads from the graph: operations that are not ai8x's, who is called, who meets whom, and at which scales."""

import math
from dataclasses import dataclass, field

from torch import nn

from qatlib.ai8x.graph import Graph, foreign, trace
from qatlib.ai8x.scales import Relations
from qatlib.chip.lowering import lower, network, shape_of_input
from qatlib.integer.compact import CompactModel
from qatlib.integer.convert import convert
from qatlib.wording import SUMS, advice


@dataclass
class Paths:
    """Facts by names of layers and nodes; where the network cannot be traced, `unreadable` says why and the rest is empty."""

    unreadable: str = ""
    foreign: dict[str, str] = field(default_factory=dict)  # node -> sentence: operations that are not ai8x's, in front of a layer
    sums: dict[str, str] = field(default_factory=dict)  # node -> sentence: a + b, anywhere
    outside: list[str] = field(default_factory=list)  # operations behind the last layer that compute
    refused: list[str] = field(default_factory=list)  # sentences: what else an export refuses in it
    last_word: str = ""  # what an export refuses although its operations are fine
    compact: CompactModel | None = None  # the integers that an export writes, where none refuses
    unequal: dict[str, str] = field(default_factory=dict)  # where values of unequal scales meet -> which
    astray: dict[str, float] = field(default_factory=dict)  # layer at the end -> log2 of what its final_scale does not undo
    used: set[str] | None = None  # layers and sums that evaluation calls
    heads: set[str] = field(default_factory=set)  # layers whose values the network returns and nothing else reads
    groups: list[set[str]] = field(default_factory=list)  # layers that share one scale; inputs and plain operations as <name>


def paths(model: nn.Module, shape: tuple[int, ...] | None = None) -> Paths:
    """The facts of a network, for inputs of `shape` (without batch) or its own `input_shape`; without one, what needs none."""
    root = network(model)
    modules = dict(root.named_modules())
    try:
        graph = trace(root)
    except ValueError as problem:
        return Paths(str(problem))
    relations = Relations(graph, modules)
    found = Paths(used={node.module for node in graph if node.module})
    found.heads = relations.outputs - relations.feeding.union(*(members for _, members in relations.sums))
    found.groups = relations.groups()
    _plain(found, graph)
    _scales(found, graph, modules, relations)
    if shape is not None or getattr(root, "input_shape", None) is not None:
        _refusals(found, graph, root, shape)
    return found


def _live(graph: Graph) -> Graph:
    """Without what holds no tensor, such as x.size(0) * 2."""
    live: set[str] = set()
    for node in graph:
        if node.kind == "input" or live.intersection(node.inputs):
            live.add(node.name)
    return Graph([node for node in graph if node.name in live], graph.outputs)


def _ahead(graph: Graph) -> set[str]:
    """Nodes whose values reach an ai8x layer."""
    ahead: set[str] = set()
    for node in reversed(graph):
        if node.kind in ("layer", "eltwise") or node.name in ahead:
            ahead.update(node.inputs)
    return ahead


def _plain(found: Paths, graph: Graph) -> None:
    live = _live(graph)
    ahead = _ahead(live)
    found.foreign, names = foreign(graph), {node.name for node in live}
    for node in live:
        if node.target.rstrip("_") in SUMS and len(names.intersection(node.inputs)) > 1:
            found.foreign.pop(node.name, None)
            found.sums[node.name] = f"{node.name} is neither measured nor clamped, and no export takes it; {advice(node.target)}"
        elif node.kind == "other" and node.name not in ahead and advice(node.target):
            found.outside.append(node.name)


def _refusals(found: Paths, graph: Graph, root: nn.Module, shape) -> None:
    """What the exports refuse, unless it is known by another name or lies behind the last layer."""
    ahead, kinds = _ahead(graph), {node.name: node.kind for node in graph}
    try:
        refused = lower(root, shape).refusals
    except (ValueError, TypeError) as problem:
        refused = [str(problem)]
    for sentence in refused:
        name = sentence.partition(": ")[0]
        behind = kinds.get(name, "layer") not in ("input", "layer", "eltwise") and name not in ahead
        if not behind and name not in found.foreign and name not in found.sums:
            found.refused.append(sentence)
    try:
        found.compact, _ = convert(root, None, shape_of_input(root, shape))
    except (ValueError, TypeError) as problem:
        found.last_word = "" if refused else str(problem)


def _scales(found: Paths, graph: Graph, modules: dict, relations: Relations) -> None:
    """Follow log2 of what values are divided by: a layer adds its threshold, less its `final_scale`; all that meet need one."""
    scale: dict[str, float] = {}
    layers: dict[str, set[str]] = {}  # node -> the layers whose values it holds
    first: dict[str, tuple[str, float]] = {}  # layer -> its first operand, and the scale of that
    for node in graph:
        arriving, module = {name: scale[name] for name in node.inputs if name in scale}, modules.get(node.module)
        layers[node.name] = set().union(*(layers[name] for name in node.inputs))
        if f"<{node.name}>" in relations.fixed:
            scale[node.name] = 0.0
        elif node.kind == "layer" and module.op is not None and arriving:
            operand = next(iter(arriving.items()))
            _meet(found, node.module, dict([first.setdefault(node.module, operand), operand]))
            own = 0.0 if module.wide else module.activation_threshold.item()
            scale[node.name], layers[node.name] = operand[1] + own - module.final_scale.item(), {node.module}
        elif arriving:
            if node.kind in ("cat", "eltwise") or node.target.rstrip("_") in SUMS:
                _meet(found, node.name, arriving)
            scale[node.name] = max(arriving.values())
    for name in graph.outputs:
        if scale.get(name) and math.isfinite(scale[name]) and not layers[name] & relations.feeding:
            found.astray.update(dict.fromkeys(layers[name], scale[name]))


def _meet(found: Paths, where: str, scales: dict[str, float]) -> None:
    if len(set(scales.values())) > 1 and all(map(math.isfinite, scales.values())):
        found.unequal[where] = ", ".join(f"that of {name} by 2^{at:g}" for name, at in scales.items())
