"""A model of the MAX78000 and MAX78002, which executes the files that the vendor's synthesis tool (ai8xize.py) reads.

It knows the network description and the integer checkpoint, nothing else: what the tool derives from them, what it refuses
(`refusals`), and what the chip then computes on its data memories. It is our model, not the chip; what it does where both can be
compared was measured with the vendor's tool.
"""

from collections.abc import Mapping
from math import prod

import numpy as np

from qatlib.chip.refusals import FORWARD, check_layer, check_network, kernel_offsets, kernel_words
from qatlib.chip.spec import DEVICES
from qatlib.chip.tool import Layer, derive, places, refuse


class Simulator:
    """A network on the chip, from `network` (YAML text, or what it holds) and the `state_dict` of its integer checkpoint.

    `input_shape`: (C, H, W), (C, L) or (C,). `orders`: in which the kernels must fit, some of `ORDERS`, because the tool's versions
    differ; by default each from first to last. Attributes: `layers` (print them), `words` of kernel memory by layer, `offsets` of
    these by order.
    Raises ValueError, naming the layer, for what the tool refuses.

    >>> state = {"fc.op.weight": np.array([[2, -1]]), "fc.op.bias": np.array([128]), "fc.output_shift": np.array([1])}
    >>> entry = {"processors": 3, "operation": "MLP", "out_offset": 8192}
    >>> chip = Simulator({"layers": [entry]}, state, (2,))
    >>> print(*chip.layers)
     0 MLP             picture: 2x1x1 -> 1x1x1, 8 bit; in 0x0000 on 0000000000000003, out 0x2000
    >>> chip.run(np.array([100, 30]))[0].ravel()
    array([5])
    """

    def __init__(self, network: Mapping | str, state_dict: Mapping, input_shape: tuple, device: int = 85, orders=FORWARD):
        self.shape, self.device = tuple(input_shape), device
        self.layers: list[Layer] = []
        for layer in derive(network, state_dict, self.shape):
            check_layer(layer, self.layers, device)
            self.layers.append(layer)
        check_network(self.layers, device)
        self.words = [kernel_words(layer) for layer in self.layers]
        self.offsets = {order: kernel_offsets(self.layers, device, order) for order in orders}

    def run(self, picture: np.ndarray, strict: bool = True) -> dict[int, np.ndarray]:
        """The integers (C, H, W) of each output, by layer: of the last one, and of those with `output: true`.

        `picture`: integers in [-128, 127] of the input's shape. Every layer reads what lies in the data memories, where nothing
        but noise has been before; what streams is handed on. The tool's known answer follows `in_sequences` instead; where a layer
        reads something else, ValueError is raised, unless not `strict`.
        """
        picture = np.asarray(picture)
        if picture.shape != self.shape or picture.min() < -128 or picture.max() > 127:
            raise ValueError(f"the picture is {picture.shape} from {picture.min()} to {picture.max()}, not int8 {self.shape}")
        first, values = self.layers[0], {-1: picture.reshape((*self.shape, 1, 1)[:3]).astype(np.int64)}
        memory = np.random.default_rng(0).integers(-(2**31), 2**31, (16, DEVICES[self.device].data_bytes // 4), np.int32)
        if not first.streaming:
            _store(memory, places(first.processors, len(picture), prod(self.shape[1:]), first.in_offset, chw=first.chw), values[-1])
        for layer, after in zip(self.layers, [*self.layers[1:], None]):
            named = np.concatenate([values[i] for i in layer.sources])
            named = named.reshape(layer.operands, layer.channels, prod(layer.in_dim))
            operands = named if layer.streaming else [_load(memory, layer.reads(i)) for i in range(layer.operands)]
            if strict and not np.array_equal(operands, named):
                wrong = int((np.array(operands) != named).sum())
                what = f"{wrong} of {named.size} values that it finds in data memory are not those of `in_sequences`"
                refuse(layer.number, f"{what} {list(layer.sources)}")
            values[layer.number] = compute(layer, operands)
            if not (after and after.streaming):
                _store(memory, layer.writes(), values[layer.number], layer.wide)
        wanted = [layer for layer in self.layers if layer.output or layer is self.layers[-1]]
        return {x.number: _load(memory, x.writes(), x.wide).reshape(x.out_channels, *x.out_dim) for x in wanted}


def _load(memory: np.ndarray, where: tuple, wide: bool = False) -> np.ndarray:
    """(channels, pixels) of integers from `places`."""
    return (memory[where[:2]] if wide else memory.view(np.int8).reshape(*memory.shape, 4)[where]).astype(np.int64)


def _store(memory: np.ndarray, where: tuple, values: np.ndarray, wide: bool = False) -> None:
    """A word is written as a whole: what other processors had in it is gone."""
    flat = values.reshape(where[0].shape)
    if wide:
        memory[where[:2]] = flat
    else:
        memory[where[:2]] ^= 0x55555555
        memory.view(np.int8).reshape(*memory.shape, 4)[where] = flat


def compute(layer: Layer, operands: list[np.ndarray]) -> np.ndarray:
    """What one layer makes of its operands, integers (channels, pixels): (out, height, width)."""
    x = [operand.reshape(layer.channels, *layer.in_dim) for operand in operands]
    if layer.pool_first:
        x = [pooled(layer, operand) for operand in x]
    total = x[0]
    for operand in x[1:]:
        total = {"add": np.add, "sub": np.subtract, "xor": np.bitwise_xor, "or": np.bitwise_or}[layer.eltwise](total, operand)
    total = np.clip(total, -128, 127)
    if not layer.pool_first:
        total = pooled(layer, total)
    if layer.weight is None:
        return total
    total = total.reshape(-1, 1, 1) if layer.flatten else total
    bias = 0 if layer.bias is None else 128 * layer.bias.reshape(-1, 1, 1)
    accumulator = convolved(layer, total) + bias
    return accumulator if layer.wide else narrowed(layer, accumulator)


def pooled(layer: Layer, x: np.ndarray) -> np.ndarray:
    """Largest or mean value of each window of x (C, H, W); the mean is truncated toward zero."""
    (height, width), (down, right), (rows, columns) = layer.pool, layer.pool_stride, layer.pooled
    taps = [x[:, i:, j:][:, ::down, ::right][:, :rows, :columns] for i in range(height) for j in range(width)]
    if not layer.average:
        return np.max(taps, axis=0)
    total = np.sum(taps, axis=0)
    return np.sign(total) * (np.abs(total) // len(taps))


def convolved(layer: Layer, x: np.ndarray) -> np.ndarray:
    """Accumulators of x (C, H, W) without bias. Products of floats, which are exact up to 2^53, because these are fast."""
    (height, width), (up, left) = layer.kernel, layer.pad
    if layer.operation == "ConvTranspose2d":
        spread = np.zeros((len(x), 2 * x.shape[1], 2 * x.shape[2]), x.dtype)
        spread[:, ::2, ::2] = x
        x, up, left = spread, height - 1 - up, width - 1 - left
    step = layer.dilation
    x = np.pad(x.astype(float), ((0, 0), (up, up), (left, left)))
    rows, columns = (1, 1) if layer.flatten else layer.out_dim
    split, total = len(layer.weight) // layer.groups, np.zeros((layer.groups, len(layer.weight) // layer.groups, rows * columns))
    for i in range(height):
        for j in range(width):
            seen = x[:, i * step : i * step + rows, j * step : j * step + columns].reshape(layer.groups, -1, rows * columns)
            total += layer.weight[:, :, i, j].astype(float).reshape(layer.groups, split, -1) @ seen
    return total.reshape(-1, rows, columns).astype(np.int64)


def narrowed(layer: Layer, accumulator: np.ndarray) -> np.ndarray:
    """8-bit codes: shift, round half up, saturate; then the activation, so that Abs is that of the rounded value."""
    bits = 7 - layer.shift
    rounded = (accumulator + (1 << bits - 1)) >> bits if bits > 0 else accumulator << -bits
    code = np.clip(rounded, -128, 127)
    if layer.activation == "relu":
        return np.maximum(code, 0)
    return np.minimum(np.abs(code), 127) if layer.activation == "abs" else code
