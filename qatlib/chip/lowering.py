"""The one way from a network to operations: what the fit meter, `quantize_model` and every exporter see of it and refuse in it.

Refusals are collected, a sentence each with its remedy, so that the meter can list all of them and an export can say the same.
"""

from dataclasses import dataclass
from math import prod
from operator import index

import numpy as np
import torch
from torch import fx, nn

from qatlib.ai8x.eltwise import Add, Eltwise, Sub
from qatlib.ai8x.graph import Graph, Node, unwrap
from qatlib.ai8x.layer import QuantizationAwareModule, require_precise
from qatlib.ai8x.legality import let_through
from qatlib.chip.operations import REARRANGING, WEIGHTED, faults, last_uses, wide_ones
from qatlib.chip.shapes import shaped
from qatlib.wording import advice

KINDS = {nn.Conv2d: "conv2d", nn.Conv1d: "conv1d", nn.ConvTranspose2d: "conv_transpose2d", nn.Linear: "linear"}
RENAMING = {"squeeze", "unsqueeze", "unflatten", "Unflatten", "view_as", "reshape_as"}  # besides views and flattenings
PERMUTING = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "T", "mT"}
SAME = {"Dropout", "Dropout1d", "Dropout2d", "Identity", "dropout", "contiguous", "alias", "clone", "detach"}  # of the codes


@dataclass(frozen=True)
class Lowered:
    """A network as operations (see `operations`), in execution order, before or after training.

    `ops` hold what the layers say (`weight_bits` 0 before QAT, `bias` whether there is one); codes and shifts are added by
    `quantize_model`. `outputs` name the operations whose results the network returns. `refusals` are sentences, none for a
    network that can be computed in integers.
    """

    arch: str
    input_shape: tuple[int, ...]
    ops: list[dict]
    outputs: list[str]
    refusals: list[str]

    def require(self) -> None:
        """Raise ValueError with all refusals, if there is one."""
        if len(self.refusals) == 1:
            raise ValueError(self.refusals[0])
        if self.refusals:
            raise ValueError(f"{self.arch} cannot be computed in integers:\n- " + "\n- ".join(self.refusals))


def network(model: nn.Module) -> nn.Module:
    """`model` without the wrappers of parallel and compiled training; a single layer becomes a network. TypeError for others."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}; give a torch network of ai8x layers (a file: load_model(path))")
    root = unwrap(model)
    return nn.Sequential(root) if isinstance(root, (QuantizationAwareModule, Eltwise)) else root


def shape_of_input(root: nn.Module, input_shape=None) -> tuple:
    """(C, H, W) of one input, or a tuple of such: `input_shape`, else `root.input_shape`. Raises ValueError or TypeError."""
    shape = getattr(root, "input_shape", None) if input_shape is None else input_shape
    if shape is None:
        raise ValueError(f"{type(root).__name__} has no input_shape; give input_shape=(C, H, W)")
    try:
        nested = [tuple(map(index, one)) for one in (shape if isinstance(shape[0], (tuple, list)) else [shape])]
    except (TypeError, IndexError, KeyError) as problem:
        raise TypeError(f"input_shape is {shape!r}; give (C, H, W)") from problem
    return tuple(nested) if len(nested) > 1 else nested[0]


def lower(model: nn.Module, input_shape=None) -> Lowered:
    """The operations of a network of ai8x layers for inputs of `input_shape`, (C, H, W), by default its own `input_shape`.

    Raises TypeError for what is no torch network, ValueError for one that cannot be traced or does not accept such inputs.
    """
    root = network(model)
    for name, layer in root.named_modules():
        if isinstance(layer, QuantizationAwareModule) and layer.op is not None:
            require_precise(layer.op.weight, name)
    shape = shape_of_input(root, input_shape)
    traced = shaped(root, shape)
    builder = _Builder(dict(root.named_modules()), {name: call for call, name in traced.names.items()})
    for node in traced:
        builder.add(node)
    first = shape if not isinstance(shape[0], tuple) else shape[0]
    outputs = [builder.names[name] for name in traced.outputs if name in builder.names]
    ops = _needed(builder.ops, outputs)
    refusals = builder.of_the_whole(traced, type(root).__name__) + builder.refusals + list(faults(ops, first))
    return Lowered(type(root).__name__, first, ops, outputs, list(dict.fromkeys(refusals)))


def _needed(ops: list[dict], outputs: list[str]) -> list[dict]:
    """`ops` without rearrangements that nobody reads, such as those that a later one undoes."""
    moving = {op["name"] for op in ops if op["kind"] in REARRANGING or op.get("host")}
    used = last_uses(ops, [*outputs, *(op["name"] for op in ops if op["name"] not in moving)])
    return [op for op in ops if op["name"] in used]


def axes_of(call: fx.Node, rank: int) -> list[int] | None:
    """Which axis each axis of what `call` gives was before, batch included; None where that depends on values."""
    tensor = torch.empty(*range(1, rank + 1))  # told apart by their sizes
    args, kwargs = fx.map_arg((call.args, call.kwargs), lambda _: tensor)
    try:
        found = getattr(*args, **kwargs) if call.target is getattr else (
            call.target(*args, **kwargs) if callable(call.target) else getattr(tensor, call.target)(*args[1:], **kwargs)
        )
    except (TypeError, RuntimeError):
        return None
    return [size - 1 for size in found.shape]


class _Builder:
    def __init__(self, modules: dict[str, nn.Module], calls: dict[str, fx.Node]):
        self.modules, self.calls, self.ops, self.refusals = modules, calls, [], []
        self.names: dict[str, str] = {}  # node -> the operation that holds its value
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.views: dict[str, tuple[str, np.ndarray]] = {}  # rearrangement -> what computed its values, and their numbers there
        self.maps: dict[str, tuple[int, ...]] = {}  # operation -> its shape on the chip, which a sum of flat maps does not show

    def of_the_whole(self, traced: Graph, arch: str) -> list[str]:
        found = []
        if sum(node.kind == "input" for node in traced) != 1:
            found.append(f"{arch} has several inputs; a compact model has one: concatenate them outside the network")
        if not any(op["kind"] in WEIGHTED for op in self.ops):
            pools = any(op["kind"] == "pool" for op in self.ops)
            what = "pools alone, so there is nothing to quantize" if pools else "no ai8x layer"
            found.append(f"{arch} has {what}; build it from ai8x.Conv2d, ai8x.FusedConv2dReLU and the like")
        if not traced.outputs or any(name not in self.names for name in traced.outputs):
            found.append(f"{arch} returns something that is no tensor; return the outputs of layers, nothing else")
        return found

    def add(self, node: Node) -> None:
        operands = [self.names[name] for name in node.inputs]
        if node.kind == "input":
            self.names[node.name] = "input"
            self.shapes.setdefault("input", node.shape)
            self.maps.setdefault("input", node.shape)
            return
        form = self._form(node, operands)
        if isinstance(form, str):  # nothing happens to the codes: another name for the same operation
            self.names[node.name] = form
            return
        self.ops.append({"name": node.name, "inputs": operands or ["input"], **form, "shape": list(node.shape)})
        self.names[node.name], self.shapes[node.name] = node.name, node.shape
        places = self._map(operands[0])[1:] if form["kind"] in ("add", "sub", "concat") and len(node.shape) == 1 else ()
        self.maps[node.name] = (node.shape[0] // prod(places), *places) if places else node.shape

    def _map(self, name: str) -> tuple[int, ...]:
        return self.maps[self.views[name][0] if name in self.views else name]

    def _form(self, node: Node, operands: list[str]) -> dict | str:
        """The operation that `node` is, or the name of one that has its value already."""
        module = self.modules.get(node.module)
        if node.kind == "layer":
            return self._layer(node, module)
        if isinstance(module, (Add, Sub)):
            return {"kind": "add" if isinstance(module, Add) else "sub"}
        if node.kind == "eltwise":
            return self._refused(node, f"{type(module).__name__} has no exact integer form in ai8x; use Add or Sub")
        if node.kind == "cat":
            return self._joined(node, operands)
        if operands and (node.kind in ("flatten", "view") or node.target in RENAMING | PERMUTING):
            return self._rearranged(node, operands[0])
        if operands and (node.target in SAME or node.target == "getitem" and self._is_refused(operands[0])):
            return operands[0]
        what = "slicing" if node.target == "getitem" else node.target
        remedy = advice(node.target) or "use an ai8x layer for it, or do it outside the network"
        return self._refused(node, f"the chip cannot compute {what}; {remedy}")

    def _is_refused(self, name: str) -> bool:
        return any(op["kind"] == "other" for op in self.ops if op["name"] == name)

    def _refused(self, node: Node, *sentences: str) -> dict:
        self.refusals += [f"{node.name}: {sentence}" for sentence in sentences]
        return {"kind": "other"}

    def _is_host(self, name: str) -> bool:
        return any(op.get("host") for op in self.ops if op["name"] == name)

    def _joined(self, node: Node, operands: list[str]) -> dict | str:
        if not node.shape or not isinstance(node.axis, int) or not node.axis % (len(node.shape) + 1):
            return self._refused(
                node, f"concatenation along axis {node.axis}; the chip joins channels only: use torch.cat(..., dim=1)"
            )
        if len(operands) == 1:
            return operands[0]
        axis = node.axis % (len(node.shape) + 1) - 1
        apart = len(node.shape) == 1 and len({prod(self._map(name)[1:]) for name in operands}) > 1  # flat maps of several sizes
        if axis or apart or any(map(self._is_host, operands)) or set(operands).intersection(wide_ones(self.ops)):
            return {"kind": "concat", "axis": axis, "host": True}
        return {"kind": "concat"}

    def _rearranged(self, node: Node, operand: str) -> dict | str:
        """A view or permutation: what it does to the values' order tells whether the chip only has to call them otherwise."""
        shape, axes = self.shapes[operand], [*range(len(self.shapes[operand]) + 1)]
        if node.target in PERMUTING:
            axes = axes_of(self.calls[node.name], len(axes)) or [1]
        elif prod(node.shape) != prod(shape):
            axes = [1]
        if axes[0] != 0:
            remedy = "keep that first, as x.view(x.size(0), ...) and x.permute(0, ...) do"
            return self._refused(node, f"{node.target} moves the batch, or is told by tensors how to move; {remedy}")
        home, before = self.views.get(operand, (operand, np.arange(prod(shape)).reshape(shape)))
        order = before.transpose([axis - 1 for axis in axes[1:]]).reshape(node.shape)
        self.views[node.name], own = (home, order), self.shapes[home]
        kept = bool((np.diff(order.ravel()) > 0).all())
        if kept and node.shape == own:
            return home
        if node.shape == shape and np.array_equal(order, before):
            return operand
        if kept and not self._is_host(home):
            if node.shape == (prod(own),):
                return {"kind": "flatten", "inputs": [home]}
            same = node.shape[:1] == own[:1] == self.maps[home][:1] and len(node.shape) <= 3
            return {"kind": "reshape", "inputs": [home]} | ({} if same else {"host": True})
        if np.array_equal(order.ravel(), before.ravel()):
            return {"kind": "reshape", "host": True}
        return {"kind": "permute", "axes": [axis - 1 for axis in axes[1:]], "host": True}

    def _layer(self, node: Node, layer: QuantizationAwareModule) -> dict:
        pool = None if layer.pool is None else self._pooling(node, layer)
        if layer.op is None:
            return {"kind": "pool", "pool": pool, "layer": node.module}
        kind = next(kind for cls, kind in KINDS.items() if isinstance(layer.op, cls))  # parametrised weights make a subclass
        common = {
            "layer": node.module, "kind": kind, "pool": pool, "activation": layer.activation and layer.activation.lower(),
            "wide": bool(layer.wide), "weight_bits": int(layer.weight_bits.item()), "bias": layer.op.bias is not None,
        }  # fmt: skip
        if kind == "linear":
            return common | {"in_channels": layer.op.in_features, "out_channels": layer.op.out_features}
        return common | self._geometry(node, kind, layer.op)

    def _geometry(self, node: Node, kind: str, op: nn.Module) -> dict:
        shape = op.kernel_size, op.stride, op.dilation, op.groups, op.in_channels, op.out_channels
        self._refused(node, *(f"{rule}; {remedy}" for rule, remedy in let_through(kind, *shape)))
        return {
            "kernel": list(op.kernel_size), "stride": list(op.stride), "padding": list(op.padding),
            "output_padding": list(op.output_padding), "dilation": list(op.dilation), "groups": op.groups,
            "in_channels": op.in_channels, "out_channels": op.out_channels,
        }  # fmt: skip

    def _pooling(self, node: Node, layer: QuantizationAwareModule) -> dict:
        pool, average = layer.pool, layer.pooling == "Avg"
        dims = 1 if isinstance(pool, (nn.MaxPool1d, nn.AvgPool1d)) else 2

        def each(value):
            return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * dims

        if any(each(pool.padding)) or pool.ceil_mode:
            self._refused(
                node, "pooling with padding or ceil_mode; the chip has neither, build it with padding=0, ceil_mode=False"
            )
        return {
            "type": "avg" if average else "max", "size": each(pool.kernel_size), "stride": each(pool.stride),
            "dilation": each(getattr(pool, "dilation", 1)), "round": bool(average and layer.round_avg),
        }  # fmt: skip
