"""A compact model as an ONNX graph of integer operators that gives the chip's integers, bit for bit.

Two traps decide its shape.

- Rounding. ONNX's own quantized operators round half to even, the chip computes floor(v + 1/2). Here a shift by n is
  written in integers: (clip(acc) + 2^(n-1) + 129·2^n) div 2^n - 129. The sum is never negative, so that the truncating
  `Div` of integers is a floor, and the clip keeps it below 2^31. No float means that no optimisation can change a bit.
- Products. On x86 without VNNI, ONNX Runtime multiplies uint8 by int8 in pairs that saturate at 16 bits. uint8 by uint8
  does not saturate anywhere, and is the faster kernel too. So codes travel as code + 128 with zero point 128.

The graph reads `codes`, int8 (N, C, H, W) with any N, and gives int8 codes, or int32 accumulators of a wide layer.
"""

import os
from math import prod
from pathlib import Path

import numpy as np

from qatlib.chip.operations import REARRANGING, WEIGHTED, pooled_shape, wide_ones
from qatlib.files import write_atomic
from qatlib.integer.compact import CompactModel
from qatlib.integer.source import as_compact, check_accumulators
from qatlib.wording import need

OPSET = 17
ZERO = 128  # the zero point of every uint8 tensor


class Nodes:
    """Collects nodes and constants. `add` returns the name of the node's result, so that calls can be nested."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def add(self, kind: str, *inputs: str, **attributes) -> str:
        from onnx import helper

        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value, dtype=np.int32) -> str:
        from onnx import numpy_helper

        array = np.ascontiguousarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return self.constants[key].name

    def cast(self, x: str, dtype: str) -> str:
        from onnx import TensorProto

        return self.add("Cast", x, to=getattr(TensorProto, dtype))

    def clip(self, x: str, low: int, high: int) -> str:
        return self.add("Clip", x, self.constant(low), self.constant(high))

    def plus(self, x: str, value: int) -> str:
        return self.add("Add", x, self.constant(value)) if value else x

    def signed(self, x: str) -> str:
        """int32 codes of uint8 ones with the zero point."""
        return self.plus(self.cast(x, "INT32"), -ZERO)

    def floor_shift(self, x: str, n: int, largest: int) -> str:
        """floor(x / 2^n) for int32 x with |x| <= largest·2^n, in operators that all exist for int32."""
        raised = self.plus(x, largest << n)
        return self.plus(self.add("Div", raised, self.constant(1 << n)) if n else raised, -largest)


def export_onnx(model, path: str | os.PathLike, input_shape: tuple[int, ...] | None = None) -> Path:
    """Write `model` (anything `as_compact` takes) as ONNX, checked, and return the path.

    Input `codes`: int8 (N, *input_shape). One output an output of the model, called as its operation: int8 codes, or
    int32 for a wide layer. The file's metadata hold each output's exponent: real value = integer · 2^exponent.
    Raises OverflowError where a sum may exceed 32 bits, ImportError without the package onnx.
    """
    try:
        import onnx
    except ModuleNotFoundError as problem:
        raise need("onnx", "export") from problem

    compact = as_compact(model, input_shape)
    check_accumulators(compact)
    proto = build(compact)
    onnx.checker.check_model(proto, full_check=True)
    return write_atomic(path, proto.SerializeToString())


def build(model: CompactModel):
    """The ONNX `ModelProto` of a compact model."""
    from onnx import TensorProto, helper

    graph, shape = Nodes(), model.graph["input_shape"]
    values = {"input": graph.cast(graph.plus(graph.cast("codes", "INT32"), ZERO), "UINT8")}
    wide = set(wide_ones(model.ops))
    for op in model.ops:
        operands = [values[name] for name in op["inputs"]]
        if op["name"] in wide and op["kind"] == "concat":
            shifts = op.get("shifts", [0] * len(operands))
            signed = [x if name in wide else graph.signed(x) for name, x in zip(op["inputs"], operands)]
            operands = [graph.add("Mul", x, graph.constant(1 << n)) if n else x for x, n in zip(signed, shifts)]
        values[op["name"]] = _operation(graph, model, op, operands)
    outputs = []
    for name in dict.fromkeys(output["op"] for output in model.graph["outputs"]):
        result = values[name] if name in wide else graph.cast(graph.signed(values[name]), "INT8")
        graph.nodes.append(helper.make_node("Identity", [result], [name]))
        dtype = TensorProto.INT32 if name in wide else TensorProto.INT8
        outputs.append(helper.make_tensor_value_info(name, dtype, ["N", *model.shape(name)]))
    codes = helper.make_tensor_value_info("codes", TensorProto.INT8, ["N", *shape])
    network = helper.make_graph(graph.nodes, model.graph["arch"], [codes], outputs, list(graph.constants.values()))
    proto = helper.make_model(network, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="qatlib")
    helper.set_model_props(proto, {f"exponent.{output['op']}": str(output["exponent"]) for output in model.graph["outputs"]})
    return proto


def _operation(graph: Nodes, model: CompactModel, op: dict, operands: list[str]) -> str:
    kind, x = op["kind"], operands[0]
    if kind == "concat":
        return graph.add("Concat", *operands, axis=1 + op.get("axis", 0))
    if kind == "permute":
        return graph.add("Transpose", x, perm=[0, *(1 + axis for axis in op["axes"])])
    if kind in REARRANGING:
        return graph.add("Reshape", x, graph.constant([0, *op["shape"]], np.int64))
    if kind in ("add", "sub"):
        return _elementwise(graph, kind, operands)
    shape = model.shape(op["inputs"][0])
    if op["pool"]:
        x = _pool(graph, op["pool"], x, shape[0])
    if kind not in WEIGHTED:
        return x
    acc = _accumulate(graph, model, op, x, pooled_shape(op["pool"], shape))
    return acc if op["wide"] else _narrow(graph, op, acc)


def _elementwise(graph: Nodes, kind: str, operands: list[str]) -> str:
    """Codes add up with their zero points; one zero point must remain, and one saturation at the end."""
    total = graph.cast(operands[0], "INT32")
    for operand in operands[1:]:
        total = graph.add("Add" if kind == "add" else "Sub", total, graph.cast(operand, "INT32"))
    surplus = ZERO * (len(operands) - 1)
    total = graph.plus(total, -surplus if kind == "add" else surplus)
    return graph.cast(graph.clip(total, 0, 255), "UINT8")


def _pool(graph: Nodes, how: dict, x: str, channels: int) -> str:
    if how["type"] == "max":
        return graph.add("MaxPool", x, kernel_shape=how["size"], strides=how["stride"], dilations=how["dilation"])
    ones = graph.constant(np.ones((channels, 1, *how["size"])), np.float32)
    signed = graph.cast(graph.signed(x), "FLOAT")
    total = graph.add("Conv", signed, ones, strides=how["stride"], dilations=how["dilation"], group=channels)  # exact: below 2^24
    count = prod(how["size"])
    if how["round"]:
        exact = graph.add("Div", graph.cast(total, "DOUBLE"), graph.constant(count, np.float64))
        mean = graph.cast(graph.add("Round", exact), "INT32")
    else:
        mean = graph.add("Div", graph.cast(total, "INT32"), graph.constant(count))
    return graph.cast(graph.plus(mean, ZERO), "UINT8")


def _accumulate(graph: Nodes, model: CompactModel, op: dict, x: str, shape: tuple[int, ...]) -> str:
    """int32 accumulators: products of uint8 with zero points 128, and the bias on the accumulator's grid."""
    weight, bias, zero = model.weight(op["layer"]).astype(np.int32) + ZERO, model.bias(op["layer"]), graph.constant(ZERO, np.uint8)
    if op["kind"] == "linear":
        acc = graph.add("MatMulInteger", x, graph.constant(weight.T, np.uint8), zero, zero)
        axes = [-1]
    else:
        form = {"pads": op["padding"] * 2, "strides": op["stride"]}
        if op["kind"] == "conv_transpose2d":
            x, weight, pads = _spread(graph, op, x, shape, weight)
            form = {"pads": pads, "strides": [1, 1]}
        form |= {"dilations": op["dilation"], "group": op["groups"], "kernel_shape": op["kernel"]}
        acc = graph.add("ConvInteger", x, graph.constant(weight, np.uint8), zero, zero, **form)
        axes = [1, -1, *[1] * len(op["kernel"])]
    return acc if bias is None else graph.add("Add", acc, graph.constant((bias.astype(np.int32) * 128).reshape(axes)))


def _spread(graph: Nodes, op: dict, x: str, shape: tuple[int, ...], weight: np.ndarray) -> tuple[str, np.ndarray, list[int]]:
    """A transposed convolution as an ordinary one: zeros between the pixels, kernels mirrored, in and out swapped."""
    (sy, sx), groups = op["stride"], op["groups"]
    before = [d * (k - 1) - p for d, k, p in zip(op["dilation"], op["kernel"], op["padding"])]
    after = [b + extra - (s - 1) for b, extra, s in zip(before, op["output_padding"], op["stride"])]
    if min(after) < 0:
        form = f"stride {op['stride']} with output_padding {op['output_padding']}"
        raise ValueError(f"{op['name']}: {form}; the chip's transposed layer has 2 and 1")
    apart = graph.add("Unsqueeze", x, graph.constant([3, 5], np.int64))
    widths = graph.constant([0] * 9 + [sy - 1, 0, sx - 1], np.int64)
    padded = graph.add("Pad", apart, widths, graph.constant(ZERO, np.uint8))
    flat = graph.add("Reshape", padded, graph.constant([0, shape[0], shape[1] * sy, shape[2] * sx], np.int64))
    mirrored = weight[:, :, ::-1, ::-1].reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    return flat, mirrored.reshape(-1, *mirrored.shape[2:]), [*before, *after]


def _narrow(graph: Nodes, op: dict, acc: str) -> str:
    """int32 accumulators to uint8 (code + 128): output shift, round half up, activation, saturation."""
    n = op["weight_bits"] - 1 - op["output_shift"]
    if n > 0:
        rounded = graph.plus(graph.clip(acc, -129 << n, 129 << n), 1 << n - 1)
        code = graph.floor_shift(rounded, n, 130)
    else:
        code = graph.add("Mul", graph.clip(acc, -128, 128), graph.constant(1 << -n))
    if op["activation"] == "abs":
        code = graph.add("Abs", code)
    code = graph.clip(code, 0 if op["activation"] == "relu" else -128, 127)
    return graph.cast(graph.plus(code, ZERO), "UINT8")
