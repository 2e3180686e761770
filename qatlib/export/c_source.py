"""The generated part of the C project, `network.c` and `network.h`: weights, tables, the plan of the buffers, and the calls."""

import re
from math import prod

import numpy as np

from qatlib.compact import CompactModel
from qatlib.compact_graph import WEIGHTED, pooled_shape
from qatlib.export.source import last_uses

WIDEN = """static void widen(const int8_t *x, int32_t size, int32_t *y)
{
    int32_t i;

    for (i = 0; i < size; i++)
        y[i] = x[i];
}
"""


def arena(model: CompactModel) -> tuple[dict[str, int], int]:
    """Offsets in bytes of all int8 tensors in one buffer, and its size: first fit among those alive at the same time.

    A pool fused in front of a layer gets a tensor of its own, "<operation>/pool". A flatten shares its operand's place.
    """
    last, alive, offsets, top = last_uses(model), [], {}, 0
    for index, op in enumerate(model.ops):
        if op["name"] not in last or op.get("wide"):
            wanted = []
        elif op["kind"] == "flatten":
            source = op["inputs"][0]
            if source in offsets:
                offsets[op["name"]] = offsets[source]
                alive = [(*block[:2], max(block[2], last[op["name"]])) if block[0] == offsets[source] else block for block in alive]
            continue
        else:
            wanted = [(op["name"], prod(op["shape"]), last[op["name"]])]
        if op["name"] in last and op.get("pool") and op["kind"] in WEIGHTED:
            wanted.insert(0, (f"{op['name']}/pool", prod(pooled_shape(op["pool"], _shape(model, op["inputs"][0]))), index))
        alive = [block for block in alive if block[2] >= index]
        for name, size, end in wanted:
            offset = 0
            for low, high, _ in sorted(alive):
                offset = high if low < offset + size and high > offset else offset
            alive.append((offset, offset + size, end))
            offsets[name], top = offset, max(top, offset + size)
    return offsets, top


def _shape(model: CompactModel, name: str) -> tuple[int, ...]:
    return tuple({"input": model.graph["input_shape"], **{op["name"]: op["shape"] for op in model.ops}}[name])


def c_array(declaration: str, values: np.ndarray) -> str:
    """C text of a constant array, one or two dimensions."""

    def rows(flat: np.ndarray) -> str:
        return ",\n".join(",".join(map(str, flat[i : i + 32].tolist())) for i in range(0, len(flat), 32))

    inner = rows(values) if values.ndim == 1 else ",\n".join(f"{{{rows(row)}}}" for row in values)
    return f"{declaration} = {{\n{inner}\n}};\n"


def _map(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, rows, columns); a 1D signal has one row, a vector one column too."""
    return (shape[0], 1, *shape[1:]) if len(shape) == 2 else (*shape, *(1,) * (3 - len(shape)))


class Writer:
    """Builds the text of network.c and network.h."""

    def __init__(self, model: CompactModel):
        self.model, self.last = model, last_uses(model)
        self.offsets, self.top = arena(model)
        self.ops = [op for op in model.ops if op["name"] in self.last]
        layers = dict.fromkeys(op["layer"] for op in self.ops if op["kind"] in WEIGHTED)
        self.layers = {layer: f"weight{i}" for i, layer in enumerate(layers)}
        self.outputs, start = {}, 0
        for name in (output["op"] for output in model.graph["outputs"]):
            self.outputs.setdefault(name, []).append(start)
            start += prod(_shape(model, name))
        self.output_size, self.plane, self.kernel = start, 1, 1
        self.tables, self.calls = [], []
        for index, op in enumerate(self.ops):
            self._operation(index, op)

    def _place(self, name: str) -> str:
        op = next((op for op in self.model.ops if op["name"] == name), None)
        if op and op["kind"] == "flatten":
            return self._place(op["inputs"][0])
        return "codes" if name == "input" else f"arena + {self.offsets[name]}"

    def _operation(self, index: int, op: dict) -> None:
        kind, sources = op["kind"], [self._place(name) for name in op["inputs"]]
        self.calls.append(f"    /* {_plain(op['name'])}: {kind} -> {' x '.join(map(str, op['shape']))} */")
        if kind in ("add", "sub"):
            self.calls.append(f"    {{\n        const int8_t *const operands[] = {{{', '.join(sources)}}};")
            numbers = f"{len(sources)}, {1 if kind == 'add' else -1}, {prod(op['shape'])}"
            self.calls.append(f"        eltwise(operands, {numbers}, {self._place(op['name'])});\n    }}")
        elif kind == "concat":
            offset = self.offsets[op["name"]]
            for name, source in zip(op["inputs"], sources):
                self.calls.append(f"    memcpy(arena + {offset}, {source}, {prod(_shape(self.model, name))});")
                offset += prod(_shape(self.model, name))
        elif kind != "flatten":
            self._layer(index, op, sources[0])
        self._collect(op)

    def _layer(self, index: int, op: dict, source: str) -> None:
        shape = _shape(self.model, op["inputs"][0])
        if op["pool"]:
            pooled = f"{op['name']}/pool" if op["kind"] in WEIGHTED else op["name"]
            source = self._pool(index, op["pool"], shape, source, self._place(pooled))
            shape = pooled_shape(op["pool"], shape)
        if op["kind"] not in WEIGHTED:
            return
        self.tables.append(self._table(index, op, shape))
        function = ("linear" if op["kind"] == "linear" else "conv") + ("_wide" if op["wide"] else "")
        target = f"output + {self._wide_output(op['name'])}" if op["wide"] else self._place(op["name"])
        self.calls.append(f"    {function}(&layer{index}, {source}, {target});")

    def _pool(self, index: int, how: dict, shape: tuple[int, ...], source: str, target: str) -> str:
        (channels, rows, columns), (_, out_rows, out_columns) = _map(shape), _map(pooled_shape(how, shape))
        kind = "MAX" if how["type"] == "max" else "AVG_ROUND" if how["round"] else "AVG"
        pairs = [value for key in ("size", "stride", "dilation") for value in _pair(how[key])]
        numbers = ", ".join(map(str, [channels, rows, columns, out_rows, out_columns, *pairs]))
        self.tables.append(f"static const pool_t pool{index} = {{{kind}, {numbers}}};")
        self.calls.append(f"    pool(&pool{index}, {source}, {target});")
        return target

    def _table(self, index: int, op: dict, shape: tuple[int, ...]) -> str:
        weight = self.layers[op["layer"]]
        bias = f"{weight}_bias" if self.model.bias(op["layer"]) is not None else "0"
        form = {key: [1, 1] for key in ("kernel", "stride", "dilation")} | {"padding": [0, 0], "groups": 1}
        if op["kind"] == "linear":
            sizes = [op["in_channels"], prod(shape[:-1]), 1, op["out_channels"], prod(shape[:-1]), 1]
            self.kernel = max(self.kernel, op["in_channels"])
        else:
            form |= {key: _pair(op[key], key == "padding") for key in ("kernel", "stride", "padding", "dilation")}
            form["groups"] = op["groups"]
            sizes = [*_map(shape), *_map(tuple(op["shape"]))]
            self.plane = max(self.plane, sizes[4] * sizes[5])
            self.kernel = max(self.kernel, op["in_channels"] // op["groups"] * prod(form["kernel"]))
            if op["kind"] == "conv2d" and form["kernel"] == form["stride"] == [1, 1] and form["padding"] == [0, 0]:
                sizes[1:3], sizes[4:6] = [1, sizes[1] * sizes[2]], [1, sizes[4] * sizes[5]]
        numbers = [
            op["weight_bits"],
            int(op["kind"] == "conv_transpose2d"),
            form["groups"],
            *sizes,
            *form["kernel"],
            *form["stride"],
        ]
        numbers += [*form["padding"], *form["dilation"], op["weight_bits"] - 1 - op["output_shift"]]
        activation = {"relu": "RELU", "abs": "ABS"}.get(op["activation"], "NONE")
        return f"static const layer_t layer{index} = {{{weight}, {bias}, {', '.join(map(str, numbers))}, {activation}}};"

    def _wide_output(self, name: str) -> int:
        """Where a wide layer writes: into its own output, or into that of the flatten that reads it."""
        if name in self.outputs:
            return self.outputs[name][0]
        return self._wide_output(next(op["name"] for op in self.ops if name in op["inputs"]))

    def _collect(self, op: dict) -> None:
        """Copy what is an output into the caller's array of int32; wide layers have written there already."""
        size, source = prod(op["shape"]), op
        while source["kind"] == "flatten" and source["inputs"][0] != "input":
            source = next(o for o in self.ops if o["name"] == source["inputs"][0])
        for start in self.outputs.get(op["name"], []):
            if not source.get("wide"):
                self.calls.append(f"    widen({self._place(op['name'])}, {size}, output + {start});")
            elif start != self._wide_output(source["name"]):
                written = self._wide_output(source["name"])
                self.calls.append(f"    memcpy(output + {start}, output + {written}, {size} * sizeof *output);")

    def header(self) -> str:
        exponents = [f" * {_plain(o['op'])}: real value = integer * 2^{o['exponent']}" for o in self.model.graph["outputs"]]
        return "\n".join([
            f"/* {_plain(self.model.graph['arch'])}: int8 codes (C, H, W) in, int32 integers out, the outputs one after the other.",
            *exponents, " */", "#ifndef NETWORK_H", "#define NETWORK_H", "", "#include <stdint.h>", "",
            f"#define NETWORK_INPUT {prod(self.model.graph['input_shape'])}", f"#define NETWORK_OUTPUT {self.output_size}",
            f"#define NETWORK_ARENA {max(self.top, 1)}   /* bytes for activations */",
            f"#define NETWORK_PLANE {self.plane}   /* sums of one output channel, 4 bytes each */",
            f"#define NETWORK_KERNEL {self.kernel}   /* unpacked weights of one output channel, bytes */",
            "#define NETWORK_RAM (NETWORK_ARENA + 4 * NETWORK_PLANE + NETWORK_KERNEL + NETWORK_INPUT + 4 * NETWORK_OUTPUT)", "",
            "extern const uint32_t network_flash; /* bytes of weights, biases and tables */",
            "void network(const int8_t *codes, int32_t *output);", "", "#endif", "",
        ])  # fmt: skip

    def source(self) -> str:
        arrays, names = [], []
        for layer, name in self.layers.items():
            arrays.append(c_array(f"static const uint8_t {name}[]", self.model.tensors[f"{layer}.weight"].ravel().view(np.uint8)))
            names.append(name)
            if self.model.bias(layer) is not None:
                arrays.append(c_array(f"static const int8_t {name}_bias[]", self.model.bias(layer)))
                names.append(f"{name}_bias")
        names += re.findall(r"\b(?:layer|pool)\d+\b", "\n".join(self.tables))
        calls = "\n".join(self.calls)
        return "\n".join([
            f"/* {_plain(self.model.graph['arch'])}: weights, tables and the order of operations. Generated. */",
            '#include "network.h"', "", *(["#include <string.h>", ""] if "memcpy" in calls else []), '#include "engine.h"', "",
            *arrays, *self.tables, "",
            f"const uint32_t network_flash = {' + '.join(f'sizeof {name}' for name in names) or '0'};", "",
            *(["static int8_t arena[NETWORK_ARENA];", ""] if "arena" in calls else []),
            *([WIDEN] if "widen" in calls else []),
            "void network(const int8_t *codes, int32_t *output)", "{", calls, "}", "",
        ])  # fmt: skip


def _pair(values: list[int], padding: bool = False) -> list[int]:
    """(rows, columns) of a 1D or 2D setting."""
    return list(values) if len(values) == 2 else [0 if padding else 1, *values]


def _plain(name: str) -> str:
    """A name that is harmless inside a C comment."""
    return re.sub(r"[^\w.@ -]", "_", name)
