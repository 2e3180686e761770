"""The integer-only reference: a compact model computed with NumPy integers, as the chip does it. No torch, no float.

Codes are int8 (activations, weights, bias), sums are int32, and the only arithmetic is multiply, add, shift and
saturate:

    accumulator = Σ x·w + 128·bias        narrow:  y = clamp((accumulator + 2^(n-1)) >> n, -128, 127)
    n = (weight_bits - 1) - output_shift   wide:    y = accumulator

ReLU makes negative y 0; Abs, as the chip has it, gives min(|y|, 127), which is not what training computes (see `narrow`).
A code y stands for the real value y·2^exponent; between layers the exponent is -7. Rounding is floor(v + 1/2), which is
why half a step is added before the shift. Every other engine of this project is tested against this one.
"""

import os
from collections.abc import Iterable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qatlib.chip.operations import REARRANGING, WEIGHTED, last_uses
from qatlib.integer.compact import CompactModel

INT32_MAX = 2**31 - 1
BLOCK = 16  # pictures computed together: more would only make the window matrices leave the cache


def windows(x: np.ndarray, size: list[int], stride: list[int], dilation: list[int]) -> np.ndarray:
    """Views of all windows of x (N, C, *places): shape (N, C, *output places, *size). Nothing is copied.

    >>> windows(np.arange(5)[None, None], [2], [2], [1])[0, 0].tolist()
    [[0, 1], [2, 3]]
    """
    axes = tuple(range(2, x.ndim))
    reach = [d * (k - 1) + 1 for k, d in zip(size, dilation)]
    view = sliding_window_view(x, reach, axis=axes)
    return view[(slice(None), slice(None), *(slice(None, None, step) for step in (*stride, *dilation)))]


def pool(x: np.ndarray, how: dict) -> np.ndarray:
    """Max or average pooling of codes x (N, C, *places); the mean is truncated toward zero, or rounded half to even."""
    view = windows(x, how["size"], how["stride"], how["dilation"])
    inner = tuple(range(x.ndim, view.ndim))
    if how["type"] == "max":
        return view.max(axis=inner)
    total, count = view.sum(axis=inner, dtype=np.int32), int(np.prod(how["size"]))
    if not how["round"]:
        return np.sign(total) * (np.abs(total) // count)
    mean, rest = np.divmod(total, count)
    return mean + ((2 * rest > count) | ((2 * rest == count) & (mean % 2 == 1)))


def multiply_accumulate(x: np.ndarray, weight: np.ndarray, op: dict) -> np.ndarray:
    """Σ x·w of a convolution: x (N, C, *places), weight (out, C/groups, *kernel), both of one integer dtype.

    The windows are copied into a matrix whose rows run along memory, because there `einsum` on integers is fastest:
    NumPy's own integer matrix product (`@`) takes twice as long, and the fast one (BLAS) exists for floats only.
    """
    view = windows(x, op["kernel"], op["stride"], op["dilation"])
    count, channels, places = len(view), view.shape[1], view.shape[2 : x.ndim]
    groups = op["groups"]
    split = view.reshape(count, groups, channels // groups, *view.shape[2:])
    order = (1, 0, *range(3, 1 + x.ndim), 2, *range(1 + x.ndim, split.ndim))
    rows = np.ascontiguousarray(split.transpose(order)).reshape(groups, count * int(np.prod(places)), -1)
    sums = np.einsum("gpk,gok->gop", rows, weight.reshape(groups, len(weight) // groups, -1))
    return sums.reshape(len(weight), count, *places).swapaxes(0, 1)


def spread(x: np.ndarray, weight: np.ndarray, op: dict) -> tuple[np.ndarray, np.ndarray]:
    """A transposed convolution as an ordinary one: zeros between the pixels, kernels mirrored, in and out swapped."""
    (sy, sx), groups = op["stride"], op["groups"]
    stretched = np.zeros((*x.shape[:2], (x.shape[2] - 1) * sy + 1, (x.shape[3] - 1) * sx + 1), x.dtype)
    stretched[:, :, ::sy, ::sx] = x
    edges = [(d * (k - 1) - p, d * (k - 1) - p + extra) for d, k, p, extra in
             zip(op["dilation"], op["kernel"], op["padding"], op["output_padding"])]  # fmt: skip
    mirrored = weight[:, :, ::-1, ::-1].reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    return np.pad(stretched, [(0, 0), (0, 0), *edges]), mirrored.reshape(-1, *mirrored.shape[2:])


def arrange(op: dict, operands: list[np.ndarray]) -> np.ndarray:
    """What an operation that only moves integers, a concatenation or one of REARRANGING, makes of `operands`, (N, *shape) each.

    >>> arrange({"kind": "permute", "axes": [1, 0], "shape": [3, 2]}, [np.arange(6).reshape(1, 2, 3)])[0].tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    if op["kind"] == "concat":
        return np.concatenate(operands, axis=1 + op.get("axis", 0))
    if op["kind"] == "permute":
        return operands[0].transpose(0, *(1 + axis for axis in op["axes"]))
    return operands[0].reshape(len(operands[0]), *op["shape"])


def round_shift(value: np.ndarray, n: int) -> np.ndarray:
    """floor(value / 2^n + 1/2) in integers; n < 0 shifts left (saturating first: what leaves 8 bits is clamped anyway).

    >>> round_shift(np.array([-3, -1, 1, 3]), 1).tolist()
    [-1, 0, 1, 2]
    """
    if n > 0:
        return (value + (1 << n - 1)) >> n
    return np.clip(value, -128, 127) << -n


def narrow(acc: np.ndarray, op: dict, abs_first: bool = False) -> np.ndarray:
    """Accumulators to int8 codes: output shift, rounding, activation, saturation.

    With 'abs' the chip rounds v = accumulator / 2^n, clamps, and takes the absolute value last; training (`abs_first`) rounds |v|.
    Halves round up, so that both differ exactly where v is negative and in the middle between two codes: -(k - 1/2), k from 1 to
    127, is k - 1 on the chip and k in training. Such sums exist where n > 0, one in 2^n of the negative ones if all rests are as
    frequent: for 4-bit weights more of them than for 8. One layer's outputs differ by 1 at most; the next layer multiplies that by
    its weights, so that what follows may differ by more. Sources: ai8x-synthesis, izer/simulate.py; ai8x-training, ai8x.py. (The
    vendor's layers with simulate=True do neither: they floor v to 1/128 of a code, then round the absolute value, which gives k
    for -v from k - 1/2 - 1/128, excluded, to k - 1/2.)

    >>> op = {"weight_bits": 8, "output_shift": 0, "activation": "abs"}
    >>> narrow(np.array([-193, -192, 192]), op).tolist(), narrow(np.array([-193, -192, 192]), op, abs_first=True).tolist()
    ([2, 1, 2], [2, 2, 2])
    """
    absolute = np.abs if op["activation"] == "abs" else np.asarray
    code = absolute(round_shift(absolute(acc) if abs_first else acc, op["weight_bits"] - 1 - op["output_shift"]))
    return np.clip(code, 0 if op["activation"] == "relu" else -128, 127).astype(np.int8)


class Integer:
    """A compact model ready to compute: `Integer(path_or_model)(codes)`.

    `codes`: integers in [-128, 127], (N, *input_shape) or one picture (*input_shape). The result has int8 codes, or
    int32 accumulators from a wide layer; several outputs come as a tuple. With `keep`, True or names of operations (or
    "input"), it is a dict of these operations' codes instead. `abs_first`: Abs as in training, not as on the chip (see `narrow`);
    these are the integers of the fake-quantized network.

    Raises TypeError for codes that are no integers, ValueError for a wrong shape or range, OverflowError naming the
    layer where an accumulator leaves 32 bits.
    """

    def __init__(self, model: CompactModel | str | os.PathLike, abs_first: bool = False):
        self.abs_first = abs_first
        self.model = model if isinstance(model, CompactModel) else CompactModel.load(model)
        layers = {op["layer"] for op in self.model.ops if op["kind"] in WEIGHTED}
        self.weights = {layer: self.model.weight(layer).astype(np.int32) for layer in layers}
        self.largest = {op["name"]: self.model.largest_sum(op) for op in self.model.ops if op["kind"] in WEIGHTED}
        self.largest |= _largest_joined(self.model.ops, self.largest)
        self.shape = tuple(self.model.graph["input_shape"])

    def __call__(self, codes: np.ndarray, keep: bool | Iterable[str] | None = None):
        codes, outputs = np.asarray(codes), [output["op"] for output in self.model.graph["outputs"]]
        self._check_input(codes)
        single = codes.shape == self.shape
        batch = codes[None] if single else codes
        wanted = self._wanted(keep) if keep else outputs
        blocks = [self._block(batch[i : i + BLOCK], set(wanted)) for i in range(0, len(batch), BLOCK)]
        kept = {name: np.concatenate([block[name] for block in blocks]) for name in wanted}
        if single:
            kept = {name: value[0] for name, value in kept.items()}
        if keep:
            return kept
        return kept[outputs[0]] if len(outputs) == 1 else tuple(kept[name] for name in outputs)

    def _check_input(self, codes: np.ndarray) -> None:
        if not np.issubdtype(codes.dtype, np.integer):
            raise TypeError(f"the input is {codes.dtype}; give int8 codes, round(128·x) for real x on the 1/128 grid")
        if self.shape not in (codes.shape, codes.shape[1:]) or not codes.size:
            raise ValueError(f"the input has shape {codes.shape}; this model reads (N, *{self.shape}) or {self.shape}")
        if codes.min() < -128 or codes.max() > 127:
            raise ValueError(f"input codes from {codes.min()} to {codes.max()}; they must lie in [-128, 127]")

    def _wanted(self, keep: bool | Iterable[str]) -> list[str]:
        names = ["input", *(op["name"] for op in self.model.ops)]
        wanted = names if keep is True else list(keep)
        if unknown := [name for name in wanted if name not in names]:
            raise ValueError(f"no operation is called {unknown[0]!r}; this model has {', '.join(names)}")
        return wanted

    def _block(self, codes: np.ndarray, wanted: set[str]) -> dict[str, np.ndarray]:
        last, values = last_uses(self.model.ops, wanted), {"input": codes.astype(np.int8)}
        for i, op in enumerate(self.model.ops):
            if op["name"] in last:
                values[op["name"]] = self._operation(op, [values[name] for name in op["inputs"]])
                values = {name: value for name, value in values.items() if last.get(name, -1) > i}
        return values

    def _operation(self, op: dict, operands: list[np.ndarray]) -> np.ndarray:
        kind, x = op["kind"], operands[0]
        if "shifts" in op:
            scaled = [x.astype(np.int64) << shift for x, shift in zip(operands, op["shifts"])]
            return _checked(arrange(op, scaled), op["name"]).astype(np.int32)
        if kind == "concat" or kind in REARRANGING:
            return arrange(op, operands)
        if kind in ("add", "sub"):
            sign = 1 if kind == "add" else -1
            total = x.astype(np.int32) + sign * sum(other.astype(np.int32) for other in operands[1:])
            return np.clip(total, -128, 127).astype(np.int8)
        if op["pool"]:
            x = pool(x, op["pool"]).astype(np.int8)
        if kind == "pool":
            return x
        acc = self._accumulate(op, x)
        return acc if op["wide"] else narrow(acc, op, self.abs_first)

    def _accumulate(self, op: dict, x: np.ndarray) -> np.ndarray:
        """Accumulators of one layer: int32, unless its weights could exceed that; then int64, checked."""
        weight, bias = self.weights[op["layer"]], self.model.bias(op["layer"])
        dtype = np.int32 if self.largest[op["name"]] <= INT32_MAX else np.int64
        x, weight = x.astype(dtype), weight.astype(dtype, copy=False)
        if op["kind"] == "linear":
            acc = np.einsum("...i,oi->...o", x, weight)
            acc += 0 if bias is None else bias.astype(dtype) * 128
        else:
            if op["kind"] == "conv_transpose2d":
                x, weight = spread(x, weight, op)
                op = {**op, "stride": [1] * len(op["stride"])}
            else:
                x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in op["padding"])])
            acc = multiply_accumulate(x, weight, op)
            acc += 0 if bias is None else (bias.astype(dtype) * 128).reshape(-1, *[1] * len(op["kernel"]))
        return _checked(acc, op["name"])


def _largest_joined(ops: list[dict], largest: dict[str, int]) -> dict[str, int]:
    """No input drives a concatenation of several scales beyond this, by name; `largest` is that of layers' sums."""
    reach, found = {"input": 128}, {}
    for op in ops:
        joined = max(reach[name] << shift for name, shift in zip(op["inputs"], op.get("shifts", [0] * len(op["inputs"]))))
        moved = op["kind"] in ("concat", *REARRANGING)
        reach[op["name"]] = largest[op["name"]] if op.get("wide") else joined if moved else 128
        found |= {op["name"]: joined} if "shifts" in op else {}
    return found


def _checked(acc: np.ndarray, name: str) -> np.ndarray:
    if acc.dtype == np.int64 and acc.size and (acc.max() > INT32_MAX or acc.min() < ~INT32_MAX):
        worst = max(int(acc.max()), int(acc.min()), key=abs)
        raise OverflowError(
            f"{name}: an accumulator reaches {worst}, beyond the 32 bits of the chip's; give the layer fewer inputs or "
            "smaller weights"
        )
    return acc


def run(model: CompactModel, codes: np.ndarray, keep: bool | Iterable[str] | None = None):
    """Compute `model` once; see `Integer`."""
    return Integer(model)(codes, keep)


def engine_of(model: CompactModel, abs_first: bool = False) -> Integer:
    """The engine of a model that no longer changes, made once and kept with it."""
    name = "_engine_of_training" if abs_first and has_abs(model) else "_engine"
    if not hasattr(model, name):
        setattr(model, name, Integer(model, name != "_engine"))
    return getattr(model, name)


def has_abs(model: CompactModel) -> bool:
    """Whether a layer has Abs: only then the chip's integers differ from training's."""
    return any(op.get("activation") == "abs" for op in model.ops)


def real_values(model: CompactModel, outputs):
    """Real values, float32, of the integer outputs of `model`: y·2^exponent, exact while |y| < 2^24."""
    if not isinstance(outputs, tuple):
        return real_values(model, (outputs,))[0]
    exponents = [output["exponent"] for output in model.graph["outputs"]]
    return tuple(np.ldexp(y.astype(np.float32), exponent) for y, exponent in zip(outputs, exponents, strict=True))
