"""One pixel on its way through the integer network, for lesson 07: products, sum, shift, rounding, saturation. NumPy only."""

from dataclasses import dataclass

import numpy as np

from qatlib.integer.compact import CompactModel
from qatlib.integer.engine import Integer, pool, round_shift, spread


@dataclass(frozen=True)
class Stage:
    """How one output code of one layer is computed.

    `products`: weight code x input code of every tap, int32; `bias`: its contribution, 128 x code; `accumulator`: their sum;
    `shift`: n of floor(accumulator / 2^n + 1/2), None for a wide layer; `rounded`: after the shift; `code`: after saturation.
    """

    layer: str
    channel: int
    row: int
    column: int
    products: np.ndarray
    bias: int
    accumulator: int
    shift: int | None
    rounded: int
    code: int

    @property
    def exact(self) -> float:
        """The quotient before rounding."""
        return self.accumulator / 2.0 ** (self.shift or 0)


def taps(model: CompactModel, op: dict, x: np.ndarray, channel: int, row: int, column: int) -> np.ndarray:
    """The products, int32, whose sum is the accumulator of one output of a 2-D layer; x: its input codes (C, H, W)."""
    if op["kind"] not in ("conv2d", "conv_transpose2d") or op["groups"] != 1 or set(op["dilation"]) != {1}:
        raise ValueError(f"{op['name']}: only 2-D convolutions without groups and dilation are followed")
    weight = model.weight(op["layer"]).astype(np.int32)
    if op["pool"]:
        x = pool(x[None], op["pool"])[0]
    if op["kind"] == "conv_transpose2d":
        spaced, weight = spread(x[None], weight, op)
        x = spaced[0]
    else:
        x = np.pad(x, [(0, 0), *((p, p) for p in op["padding"])])
    height, width = op["kernel"]
    return (x[:, row : row + height, column : column + width].astype(np.int32) * weight[channel]).ravel()


def one_code(model: CompactModel, op: dict, x: np.ndarray, channel: int, row: int, column: int) -> Stage:
    """How `op` computes the code at (channel, row, column) from its input codes x (C, H, W)."""
    products, stored = taps(model, op, x, channel, row, column), model.bias(op["layer"])
    bias = 0 if stored is None else 128 * int(stored[channel])
    accumulator = int(products.sum()) + bias
    if op["wide"]:
        return Stage(op["name"], channel, row, column, products, bias, accumulator, None, accumulator, accumulator)
    shift = op["weight_bits"] - 1 - op["output_shift"]
    rounded = int(round_shift(np.array(accumulator), shift))
    code = int(np.clip(rounded, 0 if op["activation"] == "relu" else -128, 127))
    return Stage(op["name"], channel, row, column, products, bias, accumulator, shift, rounded, code)


def follow(model: CompactModel, codes: np.ndarray, row: int, column: int, last_channel: int) -> list[Stage]:
    """How the code at (`last_channel`, `row`, `column`) of the last layer came about: one output of every layer, in order.

    `codes`: one input (C, H, W). A layer is read where it covers that place, at its own resolution, in its strongest channel there;
    so each stage lies in what the next ones see. Sums of two layers' codes have no weights and are left out.
    """
    kept = Integer(model)(codes, keep=True)
    last, steps = kept[model.ops[-1]["name"]].shape, []
    for op in model.ops:
        if op["kind"] == "add":
            continue
        shape = kept[op["name"]].shape
        place = row * shape[1] // last[1], column * shape[2] // last[2]
        strongest = last_channel if op is model.ops[-1] else int(kept[op["name"]][:, *place].argmax())
        steps.append(one_code(model, op, kept[op["inputs"][0]], strongest, *place))
    return steps


def first_difference(expected: dict, got: dict) -> str | None:
    """The first name, in order, whose arrays differ (None: all equal). Both as `Integer(model)(codes, keep=True)` gives them."""
    return next((name for name in expected if not np.array_equal(expected[name], got[name])), None)
