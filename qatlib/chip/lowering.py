"""The one way from a network to operations: what the fit meter, `quantize_model` and every exporter see of it and refuse in it.

Refusals are collected, a sentence each with its remedy, so that the meter can list all of them and an export can say the same.
"""

from dataclasses import dataclass
from math import prod
from operator import index

from torch import nn

from qatlib.ai8x.eltwise import Add, Eltwise, Sub
from qatlib.ai8x.graph import Graph, Node, unwrap
from qatlib.ai8x.layer import QuantizationAwareModule, require_precise
from qatlib.ai8x.legality import let_through
from qatlib.chip.operations import WEIGHTED, faults
from qatlib.chip.shapes import shaped
from qatlib.wording import advice

KINDS = {nn.Conv2d: "conv2d", nn.Conv1d: "conv1d", nn.ConvTranspose2d: "conv_transpose2d", nn.Linear: "linear"}
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
    builder = _Builder(dict(root.named_modules()))
    for node in traced:
        builder.add(node)
    first = shape if not isinstance(shape[0], tuple) else shape[0]
    refusals = builder.of_the_whole(traced, type(root).__name__) + builder.refusals + list(faults(builder.ops, first))
    outputs = [builder.names[name] for name in traced.outputs if name in builder.names]
    return Lowered(type(root).__name__, first, builder.ops, outputs, refusals)


class _Builder:
    def __init__(self, modules: dict[str, nn.Module]):
        self.modules, self.ops, self.refusals = modules, [], []
        self.names: dict[str, str] = {}  # node -> the operation that holds its value
        self.shapes: dict[str, tuple[int, ...]] = {}

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
            return
        form = self._form(node, operands)
        if form is None:  # nothing happens to the codes: another name for the same operation
            self.names[node.name] = operands[0]
            return
        self.ops.append({"name": node.name, **form, "inputs": operands or ["input"], "shape": list(node.shape)})
        self.names[node.name], self.shapes[node.name] = node.name, node.shape

    def _form(self, node: Node, operands: list[str]) -> dict | None:
        module = self.modules.get(node.module)
        if node.kind == "layer":
            return self._layer(node, module)
        if isinstance(module, (Add, Sub)):
            return {"kind": "add" if isinstance(module, Add) else "sub"}
        if node.kind == "eltwise":
            return self._refused(node, f"{type(module).__name__} has no exact integer form in ai8x; use Add or Sub")
        if node.kind == "cat":
            if node.shape and node.axis in (1, -len(node.shape)):
                return {"kind": "concat"}
            return self._refused(
                node, f"concatenation along axis {node.axis}; the chip joins channels only: use torch.cat(..., dim=1)"
            )
        if (node.kind in ("flatten", "view") or node.target in ("squeeze", "unsqueeze", "unflatten")) and operands:
            return self._reshaped(node, self.shapes[operands[0]])
        if operands and (node.target in SAME or node.target == "getitem" and self._is_refused(operands[0])):
            return None
        what = "slicing" if node.target == "getitem" else node.target
        remedy = advice(node.target) or "use an ai8x layer for it, or do it outside the network"
        return self._refused(node, f"the chip cannot compute {what}; {remedy}")

    def _is_refused(self, name: str) -> bool:
        return any(op["kind"] == "other" for op in self.ops if op["name"] == name)

    def _refused(self, node: Node, *sentences: str) -> dict:
        self.refusals += [f"{node.name}: {sentence}" for sentence in sentences]
        return {"kind": "other"}

    def _reshaped(self, node: Node, shape: tuple[int, ...]) -> dict | None:
        if node.shape == shape:
            return None
        if node.shape == (prod(shape),):
            return {"kind": "flatten"}
        return self._refused(
            node, f"reshaping {shape} to {node.shape}; only flattening to one dimension exists: x.flatten(1)"
        )

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
