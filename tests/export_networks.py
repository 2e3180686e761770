"""Small random networks in compact form, for the tests of every engine: all layer kinds, bit widths, wide and narrow outputs."""

import numpy as np

from qatlib.chip.operations import WEIGHTED, output_shape, weight_shape
from qatlib.integer.compact import CompactModel, pack

FORM = ("kernel", "stride", "padding", "output_padding", "dilation")


class Builder:
    """Builds a compact model one operation at a time; weights are random, or all at one end of the range (`extreme`)."""

    def __init__(self, input_shape, seed=0, extreme=None):
        self.shapes, self.ops, self.tensors = {"input": tuple(input_shape)}, [], {}
        self.rng, self.extreme = np.random.default_rng(seed), extreme

    def op(self, name, kind, *inputs, out=None, bits=8, shift=None, bias=True, layer=None, **more):
        inputs = list(inputs) or [self.ops[-1]["name"] if self.ops else "input"]
        op = {"name": name, "kind": kind, "inputs": inputs}
        op |= {key: more[key] for key in ("axes", "axis", "host", "shifts", "shape") if key in more}
        if kind == "pool":
            op["pool"] = more["pool"]
        if kind in WEIGHTED:
            op |= self._layer(kind, inputs, out, bits, shift, layer or name, more)
        op["shape"] = list(output_shape(op, [self.shapes[i] for i in inputs]))
        self.shapes[name] = tuple(op["shape"])
        self.ops.append(op)
        if kind in WEIGHTED and f"{op['layer']}.weight" not in self.tensors:
            self._weights(op, bias)
        return self

    def _layer(self, kind, inputs, out, bits, shift, layer, more):
        dims = 1 if kind == "conv1d" else 2
        kernel = more.get("kernel", 3)
        transposed = kind == "conv_transpose2d"
        channels = self.shapes[inputs[0]][-1 if kind == "linear" else 0]
        # 1-bit weights are 0 or -1: after a ReLU everything behind them would be zero.
        op = {"layer": layer, "pool": more.get("pool"), "activation": more.get("activation") if bits > 1 else None,
              "wide": more.get("wide", False),
              "weight_bits": bits, "in_channels": channels, "out_channels": out, "output_shift": 0}  # fmt: skip
        if kind != "linear":
            form = {"kernel": kernel, "stride": 2 if transposed else 1, "padding": np.array(kernel) // 2,
                    "output_padding": int(transposed), "dilation": 1} | more  # fmt: skip
            op |= {key: np.broadcast_to(form[key], dims).tolist() for key in FORM}
            op["groups"] = more.get("groups", 1)
            channels //= op["groups"]
        fan_in = max(channels * (1 if kind == "linear" else np.prod(op["kernel"])), 1)
        # Random sums of fan_in products have a deviation near 74·2^(b-1)·0.58·sqrt(fan_in): bring that to about 60 codes.
        # Those of 1-bit weights (0 and -1) have a mean, which grows with fan_in itself.
        usual = -round(np.log2(fan_in) / 2 - 0.5) if bits > 1 else -round(np.log2(fan_in) - 2)
        op["output_shift"] = shift if shift is not None else usual
        return op

    def _weights(self, op, bias):
        bits = op["weight_bits"]
        low, high = -(1 << bits - 1), 1 << bits - 1
        draw = (
            self.rng.integers(low + (bits > 1), high, weight_shape(op))
            if self.extreme is None
            else np.full(weight_shape(op), self.extreme)
        )
        self.tensors[f"{op['layer']}.weight"] = pack(draw.astype(np.int8), bits)
        if bias:
            self.tensors[f"{op['layer']}.bias"] = self.rng.integers(low, high, op["out_channels"]).astype(np.int8)

    def build(self, *outputs, arch="TestNet"):
        wide = {op["name"]: op.get("wide", False) for op in self.ops}
        names = outputs or (self.ops[-1]["name"],)
        graph = {"format": 1, "arch": arch, "device": 85, "input_shape": list(self.shapes["input"]), "input": "int8 codes k/128",
                 "ops": self.ops,
                 "outputs": [{"op": name, "exponent": -14 if wide.get(name) else -7} for name in names]}  # fmt: skip
        return CompactModel(graph, self.tensors)


def max_pool(size=2, stride=None):
    return {"type": "max", "size": [size, size], "stride": [stride or size] * 2, "dilation": [1, 1], "round": False}


def avg_pool(size=2, stride=None, rounded=False):
    return {"type": "avg", "size": [size, size], "stride": [stride or size] * 2, "dilation": [1, 1], "round": rounded}


def pose_like(bits=(8,) * 6, seed=0):
    """48x16x16 with fused pools, transposed layers and a wide 1x1 head: the shape of the pose network, thinner."""
    b = Builder((12, 16, 16), seed)
    b.op("conv1", "conv2d", out=16, bits=bits[0], activation="relu")
    b.op("conv2", "conv2d", out=20, bits=bits[1], activation="relu", pool=max_pool())
    b.op("conv3", "conv2d", out=24, bits=bits[2], activation="relu", pool=max_pool())
    b.op("up1", "conv_transpose2d", out=16, bits=bits[3], padding=1, activation="relu")
    b.op("up2", "conv_transpose2d", out=12, bits=bits[4], padding=1, activation="relu")
    return b.op("head", "conv2d", out=14, kernel=1, bits=bits[5], wide=True).build(arch="PoseLike")


def residual(bits=8, seed=1):
    """Two residual adds (one after a pool), average pooling truncated, a flatten and a narrow linear output."""
    b = Builder((3, 12, 12), seed)
    b.op("conv1", "conv2d", out=10, bits=bits, activation="relu")
    b.op("conv2", "conv2d", out=14, bits=bits, activation="relu", pool=max_pool())
    b.op("conv3", "conv2d", out=14, bits=bits)
    b.op("sum1", "add", "conv2", "conv3")
    b.op("conv4", "conv2d", out=8, bits=bits, activation="relu", pool=avg_pool())
    b.op("flat", "flatten")
    return b.op("fc", "linear", out=5, bits=bits).build(arch="Residual")


def assortment(seed=2):
    """What is rare: 3x3 and rounded average pools, abs, sub, concat, a shared layer, no bias, left shift, two outputs."""
    b = Builder((5, 15, 13), seed)
    b.op("conv1", "conv2d", out=8, bits=4, activation="abs", bias=False)
    b.op("mean", "pool", pool=avg_pool(3, 2))
    b.op("left", "conv2d", "mean", out=8, kernel=1, bits=2, shift=3)
    b.op("right", "conv2d", "mean", out=8, layer="shared", activation="relu")
    b.op("again", "conv2d", "right", out=8, layer="shared", activation="relu")
    b.op("less", "sub", "left", "again", "mean")
    b.op("cat", "concat", "less", "right", "left")
    b.op("peak", "pool", "cat", pool=max_pool(3, 1))
    b.op("abs2", "conv2d", "peak", out=6, bits=1, kernel=1, activation="abs", pool=avg_pool(2, rounded=True), shift=-3)
    b.op("flat", "flatten")
    return b.op("fc", "linear", out=7, bits=8, wide=True).build("fc", "again", arch="Assortment")


def conv1d(seed=3):
    b = Builder((4, 40), seed)
    pool = {"type": "max", "size": [3], "stride": [2], "dilation": [1], "round": False}
    b.op("conv1", "conv1d", out=6, kernel=5, activation="relu")
    b.op("conv2", "conv1d", out=6, kernel=3, bits=4, pool=pool)
    return b.op("head", "conv1d", out=3, kernel=1, pool={**pool, "type": "avg"}, wide=True).build(arch="Conv1d")


def depthwise(seed=4):
    """As device 87 has them: depthwise, ordinary and transposed, at all bits, the first on the input itself; groups of channels."""
    b = Builder((6, 9, 11), seed)
    b.op("first", "conv2d", out=6, groups=6, activation="relu")
    b.op("point", "conv2d", out=10, kernel=1, bits=4)
    b.op("deep4", "conv2d", out=10, groups=10, bits=4, pool=max_pool())
    b.op("up", "conv_transpose2d", out=10, groups=10, bits=2, padding=1, activation="abs")
    b.op("pairs", "conv2d", out=15, groups=5, bits=2)
    b.op("deep1", "conv2d", out=15, groups=15, bits=1, stride=2, dilation=2, padding=2)
    return b.op("wide", "conv_transpose2d", out=15, groups=15, bits=8, wide=True).build("wide", "pairs", arch="Depthwise")


def rows(seed=5):
    """Linear layers on sequences and on maps, whose channels are the last axis, and on a flattened map; one on the input itself."""
    b = Builder((5, 7), seed)
    b.op("each", "linear", out=6, bits=4, activation="relu")
    b.op("sum", "linear", "each", out=9)
    b.op("conv", "conv1d", out=4, kernel=3)
    b.op("flat", "flatten")
    b.op("fc", "linear", out=3, bits=2)
    return b.op("raw", "linear", "input", out=4, wide=True).build("fc", "raw", "sum", arch="Rows")


def from_pixels(seed=6):
    """Everything that reads the input without a layer: a pool, a sum, a concatenation, a flatten, an output."""
    b = Builder((3, 8, 6), seed)
    b.op("small", "pool", pool=avg_pool())
    b.op("more", "conv2d", "input", out=3)
    b.op("less", "sub", "input", "more")
    b.op("all", "concat", "less", "input", "more")
    b.op("deep", "conv2d", "all", out=5, pool=max_pool(3, 1), kernel=1)
    b.op("flat", "flatten", "input")
    b.op("fc", "linear", "flat", out=7)
    return b.op("wide", "conv2d", "small", out=3, wide=True).build("fc", "wide", "deep", "input", "flat", arch="FromPixels")


def no_taps(seed=7):
    """A transposed layer whose only output lies between all places of its kernel: it gives its bias, whatever the input."""
    b = Builder((3, 9, 9), seed)
    b.op("point", "conv2d", out=3, kernel=9, padding=0)
    b.op("gap", "conv_transpose2d", out=5, kernel=2, dilation=2, padding=1, output_padding=0, bits=4, wide=True)
    return b.build("gap", "point", arch="NoTaps")


def codes(model, n=6, seed=9):
    """n random pictures, int8, the first at -128, the second at 127 throughout."""
    x = np.random.default_rng(seed).integers(-128, 128, (n, *model.graph["input_shape"])).astype(np.int8)
    x[0], x[1] = -128, 127
    return x


NETWORKS = {
    **{f"pose{b}": lambda b=b: pose_like((b,) * 6) for b in (8, 4, 2, 1)},
    "pose_mixed": lambda: pose_like((8, 4, 2, 1, 4, 8)),
    **{f"residual{b}": lambda b=b: residual(b) for b in (8, 4, 2, 1)},
    "assortment": assortment,
    "conv1d": conv1d,
    "depthwise": depthwise,
    "rows": rows,
    "from_pixels": from_pixels,
}
# What is exported as C: one more, whose output is the same for all inputs.
IN_C = NETWORKS | {"no_taps": no_taps}
