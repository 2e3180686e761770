"""The generated part of the C project, `network.c` and `network.h`: weights in the engine's order, tables, and the calls."""

import re
from collections.abc import Iterator
from itertools import accumulate, product
from math import prod

import numpy as np

from qatlib.chip.operations import WEIGHTED, last_uses, pooled_shape
from qatlib.export.c_plan import PIXELS, arena, homes, loops, operands, origins, places
from qatlib.integer.compact import CompactModel
from qatlib.integer.engine import INT32_MAX, engine_of

UNIT = 16  # as in engine.c
LAYER_BYTES = 84  # of a layer_t where pointers have 32 bits


def c_array(declaration: str, values: np.ndarray) -> str:
    """C text of a constant array, one or two dimensions; uint32 in hexadecimal."""
    word = "0x{:x}".format if values.dtype == np.uint32 else str

    def rows(flat: np.ndarray) -> str:
        return ",\n".join(",".join(map(word, flat[i : i + 32].tolist())) for i in range(0, len(flat), 32))

    inner = rows(values) if values.ndim == 1 else ",\n".join(f"{{{rows(row)}}}" for row in values)
    return f"{declaration} = {{\n{inner}\n}};\n"


def lanes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Weight codes (groups, out, inputs) as the words, uint32, that "Weights" in engine.c describes.

    >>> [hex(word) for word in lanes(np.array([[[1, 2], [3, 4]]]), 8)[:2]]
    ['0x4020301', '0x0']
    """
    groups, outs, inputs = codes.shape
    padded = np.zeros((groups, outs + outs % 2, -(-inputs // UNIT) * UNIT), np.uint32)
    padded[:, :outs, :inputs] = codes.astype(np.uint8) & ((1 << bits) - 1)
    # group, pair of channels, channel of it, unit, code of a byte, word, input of a pair
    fields = padded.reshape(groups, -1, 2, padded.shape[-1] // UNIT, 8 // bits, bits, 2)
    below = 8 - bits * (1 + np.arange(8 // bits))
    shifts = 8 * np.arange(2)[:, None, None, None, None] + below[:, None, None] + 16 * np.arange(2)
    return np.bitwise_or.reduce(fields << shifts.astype(np.uint32), axis=(2, 4, 6)).ravel()


def one_phase(r: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[list[int], int, int]:
    """Of a transposed convolution, for outputs r, r + stride, ...: the kernel places that reach them, in the order of the input;
    the first one's input for output r; and the distance of their inputs.

    >>> one_phase(0, 3, 2, 1, 1), one_phase(1, 3, 2, 1, 1)
    (([1], 0, 1), ([2, 0], 0, 1))
    """
    found = sorted(((r + padding - k * dilation) // stride, k) for k in range(kernel) if (r + padding - k * dilation) % stride == 0)
    inputs = [place for place, _ in found]
    return [k for _, k in found], min(inputs, default=0), inputs[1] - inputs[0] if len(inputs) > 1 else 1


def phases(op: dict, size: list[int], steps: list[int]) -> Iterator[tuple]:
    """The ordinary convolutions that make up a layer: itself, or one for each phase of a transposed layer's stride.

    `size`, `steps`: rows and columns of its result, and the steps of (row, column, channel) in memory. Each is: suffix of its
    name; kernel places (rows, columns); stride, dilation and first input place, for rows and columns; size and steps of its own
    results; where they begin.
    """
    form = {"kernel": [1], "stride": [1], "padding": [0], "dilation": [1]} | op
    kernel, stride, dilation = (_pair(form[key]) for key in ("kernel", "stride", "dilation"))
    padding = _pair(form["padding"], 0)
    if op["kind"] != "conv_transpose2d":
        yield "", [range(k) for k in kernel], [*stride, *dilation, *(-p for p in padding)], (size, steps), 0
        return
    for r in product(*map(range, stride)):
        own = [-(-(outputs - begin) // s) for outputs, begin, s in zip(size, r, stride)]
        taps, first, apart = zip(*(one_phase(*numbers) for numbers in zip(r, kernel, stride, padding, dilation)))
        wider = [steps[0] * stride[0], steps[1] * stride[1], steps[2]]
        if min(own) > 0:
            yield f"_{r[0]}{r[1]}", taps, [1, 1, *apart, *first], (own, wider), r[0] * steps[0] + r[1] * steps[1]


def _deep(op: dict) -> bool:
    """Whether each channel has a group of its own."""
    return 1 < op.get("groups", 1) == op["in_channels"] == op["out_channels"]


def _map(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, rows, columns); a 1D signal has one row, a vector one column too."""
    return (shape[0], 1, *shape[1:]) if len(shape) == 2 else (*shape, *(1,) * (3 - len(shape)))


def _view(shape: tuple[int, ...], planar: bool, linear: bool) -> tuple[list[int], list[int]]:
    """(rows, columns) that a layer goes through, and the steps in memory of (row, column, channel).

    A tensor lies as (C, H, W) if `planar`, else as (H, W, C). A linear layer's channels are the last axis, its pixels the others.
    """
    c, h, w = _map(shape)
    step_c, step_h, step_w = (h * w, w, 1) if planar else (1, w * c, c)
    return ([h, c], [step_h, step_c, step_w]) if linear and len(shape) > 1 else ([h, w], [step_h, step_w, step_c])


def _pair(values: list[int], row: int = 1) -> list[int]:
    """(rows, columns) of a 1D or 2D setting; 1D has `row` for its rows."""
    return list(values) if len(values) == 2 else [row, *values]


def _plain(name: str) -> str:
    """A name that is harmless inside a C comment."""
    return re.sub(r"[^\w.@ -]", "_", name)


class Writer:
    """Collects what network.c and network.h say of a model: see `values`. OverflowError for sums beyond 32 bits."""

    def __init__(self, model: CompactModel):
        self.model, self.home = model, homes(model)
        names = [output["op"] for output in model.graph["outputs"]]
        last = last_uses(model.ops, names)
        self.offsets, self.top = arena(model)
        self.ops = [op for op in model.ops if op["name"] in last and self.home[op["name"]] == op["name"] and not op.get("host")]
        *starts, self.output_size = accumulate((prod(model.shape(name)) for name in names), initial=0)
        self.wide = {self.home[name]: f"output + {start}" for name, start in [*zip(names, starts)][::-1]}  # where layers write
        self.sums = 0
        self.patch, self.bits, self.single, self.arrays, self.tables, self.calls = UNIT, 0, 0, {}, [], []
        if PIXELS in self.offsets:
            channels, size = model.shape("input")[0], places(model.shape("input"))
            self.calls.append(f"    transpose(codes, {channels}, {size}, {self._at(PIXELS)});")
        for index, op in enumerate(self.ops):
            self.calls.append(f"    /* {_plain(op['name'])}: {op['kind']} -> {' x '.join(map(str, op['shape']))} */")
            self._operation(index, op)
            self.calls.append(f"    WATCH({index});")
        for origin in origins(model, self.home):
            self._collect(*origin)

    def _at(self, block: str) -> str:
        return "codes" if block == "input" else f"arena + {self.offsets[block]}"

    def _operation(self, index: int, op: dict) -> None:
        at = [self._at(block) if block == "input" or block in self.offsets else "" for block in operands(self.model, op, self.home)]
        if op["kind"] in ("add", "sub"):
            numbers = f"{len(at)}, {1 if op['kind'] == 'add' else -1}, {prod(op['shape'])}"
            self.calls.append(f"    {{\n        const int8_t *const operands[] = {{{', '.join(at)}}};")
            self.calls.append(f"        eltwise(operands, {numbers}, {self._at(op['name'])});\n    }}")
        elif op["kind"] == "concat":
            offset = self.offsets[op["name"]]
            for place, name in zip(at, op["inputs"]):
                channels = self.model.shape(name)[0]
                self.calls.append(f"    join({place}, {places(op['shape'])}, {channels}, {op['shape'][0]}, arena + {offset});")
                offset += channels
        elif op["kind"] == "flatten":
            shape = self.model.shape(op["inputs"][0])
            self.calls.append(f"    transpose({at[0]}, {places(shape)}, {shape[0]}, {self._at(op['name'])});")
        else:
            self._layer(index, op, at[0])

    def _layer(self, index: int, op: dict, source: str) -> None:
        name, weighted = op["name"], op["kind"] in WEIGHTED
        shape, planar = self.model.shape(op["inputs"][0]), source == "codes"
        if op["pool"]:
            pooled = self._at(f"{name}/pool" if weighted else name)
            self._pool(index, op["pool"], shape, source, pooled)
            source, shape, planar = pooled, pooled_shape(op["pool"], shape), False
        if weighted:
            target = self._sums(name) if op["wide"] else self._at(name)
            self._weighted(index, op, _view(shape, planar, op["kind"] == "linear"), source, target)

    def _pool(self, index: int, how: dict, shape: tuple[int, ...], source: str, target: str) -> None:
        kind = "MAX" if how["type"] == "max" else "AVG_ROUND" if how["round"] else "AVG"
        windows = [value for key in ("size", "stride", "dilation") for value in _pair(how[key])]
        channels, _, columns = _map(shape)
        numbers = ", ".join(map(str, [channels, columns, *_map(pooled_shape(how, shape))[1:], *windows]))
        self.tables.append(f"static const pool_t pool{index} = {{{kind}, {numbers}}};")
        self.calls.append(f"    pool(&pool{index}, {source}, {target});")

    def _weighted(self, index: int, op: dict, view: tuple[list[int], list[int]], source: str, target: str) -> None:
        call = ("depthwise" if _deep(op) else "conv") + "(&{}, " + source + (", 0, {});" if op["wide"] else ", {}, 0);")
        for suffix, taps, geometry, result, offset in phases(op, *_view(tuple(op["shape"]), op["wide"], op["kind"] == "linear")):
            table = self._table(f"layer{index}{suffix}", op, taps, geometry, view, result)
            self.calls.append("    " + call.format(table, f"{target} + {offset}" if offset else target))

    def _table(self, name: str, op: dict, taps, geometry: list[int], view, result) -> str:
        weight, bits, groups = self._weights(op, taps), 8 if _deep(op) else op["weight_bits"], op.get("groups", 1)
        shift = op["weight_bits"] - 1 - op["output_shift"] + 8 - bits
        bias = "0"
        if (codes := self.model.bias(op["layer"])) is not None:
            bias = self._array("static const int8_t {}[]", codes, (op["layer"], "bias"))
        if not _deep(op):  # also for a phase without kernel places, which begins with the bias and ends there
            self.bits, self.single = self.bits | bits, self.single | int(result[0] == [1, 1])
        channels = [op["in_channels"] // groups, op["out_channels"] // groups, groups]
        numbers = [*view[0], *view[1], *result[0], *result[1], *channels, bits, *map(len, taps), *geometry[:4], shift]
        activation = {"relu": "RELU", "abs": "ABS"}.get(op["activation"], "NONE")
        self.tables.append(
            f"static const layer_t {name} = {{{weight}, {bias}, {', '.join(map(str, numbers))}, {activation}, "
            f"{geometry[4]}, {geometry[5]}}};"
        )
        return name

    def _weights(self, op: dict, taps) -> str:
        """Name of the array with a layer's weights at the kernel places `taps` (rows, columns), in the engine's order."""
        if not all(taps):
            return "0"
        key, groups = (op["layer"], *map(tuple, taps)), op.get("groups", 1)
        weight = self.model.weight(op["layer"])
        weight = weight.reshape(groups, len(weight) // groups, weight.shape[1], *_pair(op.get("kernel", [1])))
        order = (0, 2, 3, 4, 1) if op["kind"] == "conv_transpose2d" else (0, 1, 3, 4, 2)  # group, out, place in the kernel, in
        inputs = weight[:, :, :, list(taps[0])][..., list(taps[1])].transpose(order)
        inputs = inputs.reshape(*inputs.shape[:2], -1)
        if _deep(op):
            return self._array("static const int8_t {}[]", inputs.reshape(groups, -1).T.ravel(), key)
        bits = op["weight_bits"]
        if engine_of(self.model).largest[op["name"]] << (8 - bits) > INT32_MAX:
            raise OverflowError(f"{op['name']}: its sums, times {1 << 8 - bits}, may exceed 32 bits; give the layer fewer inputs")
        self.patch = max(self.patch, -(-inputs.shape[-1] // UNIT) * UNIT)
        return self._array("static const uint32_t {}[]", lanes(inputs, bits), key)

    def _array(self, declaration: str, values: np.ndarray, key: tuple) -> str:
        """Name of the array for `key`, (layer, ...), written once."""
        if key not in self.arrays:
            self.arrays[key] = f"data{len(self.arrays)}", declaration, values
        return self.arrays[key][0]

    def data_bytes(self) -> int:
        """Bytes of constants: weights, biases, and the tables, of which those of layers are the larger ones."""
        return sum(values.nbytes for *_, values in self.arrays.values()) + LAYER_BYTES * len(self.tables)

    def _sums(self, name: str) -> str:
        """Where a wide layer writes: into the caller's array, if that holds all of it somewhere, as it is."""
        if name not in self.wide:
            self.wide[name] = f"sums + {self.sums}"
            self.sums += prod(self.model.shape(name))
        return self.wide[name]

    def _collect(self, home: str, shift: int, start: int, values: np.ndarray) -> None:
        """Copy what an output holds of an operation into the caller's array of int32, unless a wide layer has written it there."""
        shape, (number, place) = self.model.shape(home), values
        if home in self.offsets:  # as (H, W, C)
            number = number % places(shape) * shape[0] + number // places(shape)
        wide = home not in self.offsets and home != "input"
        source = self._sums(home) if wide else self._at(home)
        if source == f"output + {start}" and np.array_equal(number, place):
            return
        if (nest := loops(np.stack([number, place]))) is None:  # where several outputs' parts of odd sizes are mixed
            for half in np.array_split(values, 2, axis=1):
                self._collect(home, shift, start, half)
            return
        rows, name = ", ".join(f"{{{count}, {read}, {write}}}" for count, read, write in nest), f"loops{len(self.tables)}"
        self.tables.append(f"static const loop_t {name}[] = {{{rows}}};")
        source += f" + {number[0]}" if number[0] else ""
        both = f"0, {source}" if wide else f"{source}, 0"
        self.calls.append(f"    collect({name}, {len(nest)}, {both}, output + {start + place[0]}, {shift});")

    def values(self) -> dict[str, str | int]:
        """What the templates network.c and network.h leave open."""
        graph, calls = self.model.graph, "\n".join(self.calls)
        arrays = [f"/* {_plain(key[0])} */\n{c_array(text.format(name), data)}" for key, (name, text, data) in self.arrays.items()]
        constants = [*arrays, *self.tables]
        names = re.findall(r"^static const \w+ (\w+)", "\n".join(constants), re.M)
        memory = "static int8_t arena[NETWORK_ARENA];\n" if "arena" in calls else ""
        memory += f"static int32_t sums[{self.sums}];\n" if self.sums else ""
        exponents = [f" * {_plain(o['op'])}: real value = integer * 2^{o['exponent']}\n" for o in graph["outputs"]]
        return {
            "arch": _plain(graph["arch"]), "exponents": "".join(exponents), "input": prod(graph["input_shape"]),
            "output": self.output_size, "arena": max(self.top, 1), "patch": self.patch, "bits": self.bits, "single": self.single,
            "constants": "".join(f"{text}\n" for text in constants),
            "flash": " + ".join(f"sizeof {name}" for name in names) or "0",
            "memory": memory and f"{memory}\n", "calls": calls,
        }  # fmt: skip
