"""One scale where branches meet: what QATv2 does with every layer's threshold before quantization starts.

A layer with threshold t holds its output divided by 2^t. What is added or concatenated, or read by one layer, must share one
threshold; the next layer's bias and threshold undo the division, and the network's outputs are restored by `final_scale`.
"""

import warnings

import torch
from torch import nn

from qatlib.ai8x.eltwise import Add, Sub
from qatlib.ai8x.graph import Graph, Node, foreign, trace, unwrap
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.wording import OPS, SOFTWARE

_PLAIN_OPS = {*OPS, *OPS.values(), *SOFTWARE, "conv3d", "Conv3d"}


class Relations:
    """Who meets whom, by qualified layer name. `fixed` are those that no threshold can scale: input, plain ops, wide layers."""

    def __init__(self, graph: Graph, modules: dict[str, nn.Module]):
        self.prevs: dict[str, set[str]] = {}  # layer -> the nearest operations upstream of it
        self.concats: list[set[str]] = []  # operations that meet in one concatenation
        self.sums: list[tuple[str, set[str]]] = []  # (element-wise module, operations that meet in it)
        self.fixed: set[str] = set()
        reach: dict[str, set[str]] = {}  # node -> nearest operations at or upstream of it
        for node in graph:
            upstream = set().union(*(reach[i] for i in node.inputs))
            reach[node.name] = self._visit(node, modules.get(node.module), upstream)
        self.outputs: set[str] = set().union(*(reach[name] for name in graph.outputs))
        self.feeding = set().union(*self.prevs.values())

    def groups(self) -> list[set[str]]:
        """Who must share a scale, directly or through others."""
        groups: list[set[str]] = []
        for together in [*self.prevs.values(), *self.concats, *(members for _, members in self.sums)]:
            joined = set(together).union(*(g for g in groups if g & together))
            groups = [g for g in groups if not g & together] + [joined]
        return groups

    def _visit(self, node: Node, module, upstream: set[str]) -> set[str]:
        if node.kind == "layer" and module.op is not None:
            self.prevs.setdefault(node.module, set()).update(upstream)
            if module.wide:
                self.fixed.add(node.module)
            return {node.module}
        if node.kind == "input" or node.target in _PLAIN_OPS:
            self.fixed.add(f"<{node.name}>")
            return {f"<{node.name}>"}
        if node.kind == "cat":
            self.concats.append(upstream)
        elif isinstance(module, (Add, Sub)):
            self.sums.append((node.module, upstream))
        return upstream


def apply_scales(model: nn.Module, vendor_exact: bool = False) -> None:
    """Give branches that meet one threshold, and let bias, threshold and `final_scale` undo the scaling. In place.

    The float function stays the same to the last bit. Deviations from the vendor (whose behaviour `vendor_exact` keeps):
    thresholds are equalised until nothing changes, not in one sweep; execution order counts, not the order of definition;
    a network of one layer restores its output too; what meets the network's input stays unscaled, as the input is.
    """
    root = unwrap(model)
    if isinstance(root, QuantizationAwareModule):
        root = nn.Sequential(root)
    modules = dict(root.named_modules())
    relations = Relations(graph := trace(root), modules)
    equalise, rescale = (_equalise_vendor, _rescale_vendor) if vendor_exact else (_equalise, _rescale)
    thresholds = {name: modules[name].activation_threshold.item() for name in relations.prevs}
    for eltwise, members in relations.sums:  # the last sum wins
        thresholds.update(dict.fromkeys(members & thresholds.keys(), modules[eltwise].activation_threshold.item()))
    equalise(relations, thresholds, modules)
    rescale(relations, thresholds, modules)
    if not vendor_exact:
        _warn_about_outputs(relations, thresholds)
        for found in foreign(graph).values():
            warnings.warn(found, stacklevel=2)
    for name in relations.prevs:
        modules[name].set_functions()


def _equalise(relations: Relations, thresholds: dict, modules: dict) -> None:
    """Everything that must share a scale, directly or through others, gets the largest threshold among it (0 beside the input)."""
    for group in relations.groups():
        largest = max((thresholds[name] for name in group - relations.fixed), default=0.0)
        if group & relations.fixed and largest > 0:
            clipped = ", ".join(sorted(group - relations.fixed))
            warnings.warn(
                f"{clipped} meets the network's input or a plain torch operation, so its outputs stay unscaled and are clipped "
                f"at 1, though they reach {2**largest:g}; put an ai8x layer in between",
                stacklevel=3,
            )
        for name in group & thresholds.keys():
            if name not in relations.fixed:
                thresholds[name] = 0.0 if group & relations.fixed else largest


def _rescale(relations: Relations, thresholds: dict, modules: dict) -> None:
    """A layer's input is divided by 2^arriving: divide its bias alike, and let the layer divide by the rest of its threshold."""
    for name, upstream in relations.prevs.items():
        arriving = max((thresholds[p] for p in upstream - relations.fixed), default=0.0)  # all the same
        own = arriving if modules[name].wide else thresholds[name]
        restored = name in relations.fixed or name not in relations.feeding
        _set(modules[name], arriving, thresholds[name], own if restored else 0.0)


def _set(layer: QuantizationAwareModule, arriving: float, own: float, final_scale: float) -> None:
    with torch.no_grad():
        if layer.op.bias is not None:
            layer.op.bias.div_(2.0**arriving)
        layer.activation_threshold.fill_(own - arriving)
        layer.final_scale.fill_(final_scale)


def _equalise_vendor(relations: Relations, thresholds: dict, modules: dict) -> None:
    concat_of = {name: members for members in relations.concats for name in members if name in thresholds}
    for members in relations.concats:
        same = [name for name in members if concat_of.get(name) is members]
        thresholds.update(dict.fromkeys(same, max((thresholds[name] for name in same), default=0.0)))
    for name in modules:
        upstream = relations.prevs.get(name, set()) & thresholds.keys()
        thresholds.update(dict.fromkeys(upstream, max((thresholds[p] for p in upstream), default=0.0)))


def _rescale_vendor(relations: Relations, thresholds: dict, modules: dict) -> None:
    order = [name for name in modules if name in relations.prevs]
    for name in order:
        upstream = [p for p in order if p in relations.prevs[name]]
        if upstream:
            arriving = thresholds[upstream[0]]
            _set(modules[name], arriving, thresholds[name], arriving if modules[name].wide else thresholds[name])
            for p in upstream:
                modules[p].final_scale.data.fill_(0.0)
        else:
            modules[name].activation_threshold.data.fill_(thresholds[name])


def _warn_about_outputs(relations: Relations, thresholds: dict) -> None:
    for name in sorted(relations.outputs & relations.feeding & thresholds.keys() - relations.fixed):
        if thresholds[name]:
            warnings.warn(
                f"{name} is an output of the network and feeds another layer, so its output stays divided by "
                f"2^{thresholds[name]:g}; multiply it outside, or return the output of a layer of its own",
                stacklevel=3,
            )
    for eltwise, members in relations.sums:
        last = [name for name in members & relations.outputs & thresholds.keys() - relations.feeding if thresholds[name] > 0]
        if last:
            warnings.warn(
                f"{eltwise} is the last operation: in QAT it clips at 1, though its inputs are restored to their full range of "
                f"{2 ** thresholds[last[0]]:g}; put a layer behind it",
                stacklevel=3,
            )
