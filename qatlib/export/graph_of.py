"""From an ai8x network to the graph of a compact model: one operation per call, in execution order, or a refusal by name."""

from dataclasses import dataclass
from math import prod

import numpy as np
from torch import nn

from qatlib.ai8x import device as target
from qatlib.ai8x.eltwise import Add, Sub
from qatlib.ai8x.legality import let_through
from qatlib.ai8x.scales import Graph, Node

CODES = -7  # exponent of int8 codes: a code k stands for k / 2^7
_KINDS = {nn.Conv2d: "conv2d", nn.Conv1d: "conv1d", nn.ConvTranspose2d: "conv_transpose2d", nn.Linear: "linear"}
_TRANSPARENT = {"Dropout", "Dropout1d", "Dropout2d", "Identity", "dropout", "contiguous", "alias"}


@dataclass(frozen=True)
class LayerCodes:
    """One layer's integers: weight int8 (codes of `bits`), bias int8 or None, `shift` between accumulator and output, log2."""

    weight: np.ndarray
    bias: np.ndarray | None
    bits: int
    shift: int
    final_scale: int


def build(traced: Graph, modules: dict[str, nn.Module], codes: dict[str, LayerCodes], input_shape, arch: str) -> dict:
    """The compact model's graph, without its `state`. Raises ValueError naming what the chip or the format cannot hold."""
    return _Builder(modules, codes).build(traced, tuple(input_shape), arch)


class _Builder:
    def __init__(self, modules, codes):
        self.modules, self.codes = modules, codes
        self.ops: list[dict] = []
        self.names: dict[str, str] = {}  # node -> operation that holds its value
        self.exponents: dict[str, int] = {}  # operation -> log2 of one code's real value
        self.shapes: dict[str, tuple] = {}  # operation -> shape without the batch

    def build(self, traced: Graph, input_shape: tuple, arch: str) -> dict:
        if sum(node.kind == "input" for node in traced) != 1:
            raise ValueError(f"{arch} has several inputs; a compact model has one: concatenate them outside the network")
        for node in traced:
            self._add(node)
        outputs = [self.names[name] for name in traced.outputs]
        return {
            "format": 1, "arch": arch, "device": target.dev.device, "input_shape": list(input_shape),
            "input": "int8 codes k/128", "ops": self.ops,
            "outputs": [{"op": name, "exponent": self.exponents[name]} for name in outputs],
        }  # fmt: skip

    def _add(self, node: Node) -> None:
        operands = [self.names[name] for name in node.inputs]
        shape, made = tuple(node.shape), {}
        if node.kind == "input":
            self._remember(node, "input", CODES, shape)
            return
        if node.kind == "layer":
            made = self._layer(node, self.modules[node.module])
        elif node.kind == "eltwise":
            made = self._eltwise(node)
        elif node.kind == "cat":
            made = self._concat(node)
        elif node.kind in ("flatten", "view") and shape != self.shapes[operands[0]]:
            made = self._flatten(node, operands[0])
        elif node.kind not in ("flatten", "view") and node.target not in _TRANSPARENT:
            raise ValueError(
                f"{node.name}: the chip cannot compute {node.target}; use an ai8x layer for it (a Fused... layer for ReLU and "
                "pooling, ai8x.Add for +), or do it outside the network"
            )
        if not made:  # nothing happens to the codes: another name for the same operation
            self.names[node.name] = operands[0]
            return
        self.ops.append({"name": node.name, **made, "inputs": operands, "shape": list(shape)})
        self._remember(node, node.name, self._exponent(node, made, operands), shape)

    def _remember(self, node: Node, name: str, exponent: int, shape: tuple) -> None:
        self.names[node.name], self.exponents[name], self.shapes[name] = name, exponent, shape

    def _exponent(self, node: Node, made: dict, operands: list[str]) -> int:
        found = {self.exponents[name] for name in operands}
        if made["kind"] in ("concat", "flatten") and len(found) == 1 or made["kind"] == "pool" and made["pool"]["type"] == "max":
            return found.pop()
        for name in operands:
            if self.exponents[name] != CODES:
                raise ValueError(
                    f"{name}: its final_scale is not 0 (or it is wide), but {node.name} reads it, at another scale; end the "
                    "network with a layer, or define layers in execution order and start from the float checkpoint again"
                )
        if made["kind"] not in _KINDS.values():
            return CODES
        layer = self.codes[node.module]
        return layer.final_scale - (layer.bits + 6 if made["wide"] else 7)

    def _layer(self, node: Node, layer) -> dict:
        pool = None if layer.pool is None else _pooling(node.name, layer)
        if layer.op is None:
            return {"kind": "pool", "pool": pool}
        kind, codes = _KINDS[type(layer.op)], self.codes[node.module]
        common = {
            "layer": node.module, "kind": kind, "pool": pool, "activation": layer.activation and layer.activation.lower(),
            "wide": bool(layer.wide), "weight_bits": codes.bits, "output_shift": codes.shift,
        }  # fmt: skip
        if kind == "linear":
            return common | {"in_channels": layer.op.in_features, "out_channels": layer.op.out_features}
        return common | _geometry(node.name, kind, layer.op)

    def _eltwise(self, node: Node) -> dict:
        module = self.modules[node.module]
        if not isinstance(module, (Add, Sub)):
            raise ValueError(f"{node.name}: {type(module).__name__} has no exact integer form in ai8x; use Add or Sub")
        return {"kind": "add" if isinstance(module, Add) else "sub"}

    def _concat(self, node: Node) -> dict:
        if node.axis not in (1, -len(node.shape)):
            raise ValueError(
                f"{node.name}: concatenation along axis {node.axis}; the chip joins channels only: use torch.cat(..., dim=1)"
            )
        return {"kind": "concat"}

    def _flatten(self, node: Node, operand: str) -> dict:
        shape = self.shapes[operand]
        if tuple(node.shape) != (prod(shape),):
            raise ValueError(
                f"{node.name}: reshaping {shape} to {tuple(node.shape)}; only flattening to one dimension exists: x.flatten(1)"
            )
        return {"kind": "flatten"}


def _geometry(name: str, kind: str, op: nn.Module) -> dict:
    shape = op.kernel_size, op.stride, op.dilation, op.groups, op.in_channels, op.out_channels
    for rule, remedy in let_through(kind, *shape):
        raise ValueError(f"{name}: {rule}; {remedy}")
    return {
        "kernel": list(op.kernel_size), "stride": list(op.stride), "padding": list(op.padding),
        "output_padding": list(op.output_padding), "dilation": list(op.dilation), "groups": op.groups,
        "in_channels": op.in_channels, "out_channels": op.out_channels,
    }  # fmt: skip


def _pooling(name: str, layer) -> dict:
    pool = layer.pool
    dims = 1 if isinstance(pool, (nn.MaxPool1d, nn.AvgPool1d)) else 2

    def each(value):
        return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * dims

    if any(each(pool.padding)) or pool.ceil_mode:
        raise ValueError(
            f"{name}: pooling with padding or ceil_mode; the chip has neither, build it with padding=0, ceil_mode=False"
        )
    average = layer.pooling == "Avg"
    return {
        "type": "avg" if average else "max", "size": each(pool.kernel_size), "stride": each(pool.stride),
        "dilation": each(getattr(pool, "dilation", 1)), "round": bool(average and layer.round_avg),
    }  # fmt: skip
