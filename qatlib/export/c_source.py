"""The generated part of the C project, `network.c` and `network.h`: weights, tables, the plan of the buffers, and the calls."""

import re
from collections.abc import Iterator
from itertools import accumulate
from math import prod

import numpy as np

from qatlib.chip.operations import WEIGHTED, first_fit, last_uses, pooled_shape
from qatlib.integer.compact import CompactModel

WIDEN = """static void widen(const int8_t *x, int32_t size, int32_t *y)
{
    int32_t i;

    for (i = 0; i < size; i++)
        y[i] = x[i];
}

"""


def homes(model: CompactModel) -> dict[str, str]:
    """Which operation computed the tensor that a name stands for: a flatten only renames its operand."""
    found = {"input": "input"}
    for op in model.ops:
        found[op["name"]] = found[op["inputs"][0]] if op["kind"] == "flatten" else op["name"]
    return found


def _last(model: CompactModel) -> dict[str, int]:
    return last_uses(model.ops, [output["op"] for output in model.graph["outputs"]])


def arena(model: CompactModel) -> tuple[dict[str, int], int]:
    """Offsets in bytes of all int8 tensors in one buffer, and its size: first fit among those alive at the same time.

    A pool fused in front of a layer gets a tensor of its own, "<operation>/pool". A flatten has none: see `homes`.
    """
    home, ends = homes(model), {}
    for name, end in _last(model).items():
        ends[home[name]] = max(end, ends.get(home[name], 0))
    alive, offsets, top = [], {}, 0
    for index, op in enumerate(model.ops):
        alive = [block for block in alive if block[2] >= index]
        for name, shape, end in _tensors(model, index, op, ends):
            size = prod(shape)
            offsets[name] = first_fit([block[:2] for block in alive], size)
            alive.append((offsets[name], offsets[name] + size, end))
            top = max(top, offsets[name] + size)
    return offsets, top


def _tensors(model: CompactModel, index: int, op: dict, ends: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Name, shape and last use of what an operation writes into the arena."""
    if op["name"] in ends and op["kind"] in WEIGHTED and op["pool"]:
        yield f"{op['name']}/pool", pooled_shape(op["pool"], model.shape(op["inputs"][0])), index
    if op["name"] in ends and not op.get("wide"):
        yield op["name"], op["shape"], ends[op["name"]]


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
    """Collects what network.c and network.h say of a model: see `values`."""

    def __init__(self, model: CompactModel):
        self.model, self.home, last = model, homes(model), _last(model)
        self.offsets, self.top = arena(model)
        self.ops = [op for op in model.ops if op["name"] in last]
        layers = dict.fromkeys(op["layer"] for op in self.ops if op["kind"] in WEIGHTED)
        self.layers = {layer: f"weight{i}" for i, layer in enumerate(layers)}
        names = [output["op"] for output in model.graph["outputs"]]
        *starts, self.output_size = accumulate((prod(model.shape(name)) for name in names), initial=0)
        self.outputs = list(zip(names, starts))
        self.first = {self.home[name]: start for name, start in reversed(self.outputs)}  # where a wide layer writes
        self.plane, self.kernel, self.tables, self.calls = 1, 1, [], []
        for index, op in enumerate(self.ops):
            self.calls.append(f"    /* {_plain(op['name'])}: {op['kind']} -> {' x '.join(map(str, op['shape']))} */")
            self._operation(index, op)
            self._collect(op)

    def _place(self, name: str) -> str:
        home = self.home.get(name, name)
        return "codes" if home == "input" else f"arena + {self.offsets[home]}"

    def _operation(self, index: int, op: dict) -> None:
        if op["kind"] in ("add", "sub"):
            operands = ", ".join(map(self._place, op["inputs"]))
            numbers = f"{len(op['inputs'])}, {1 if op['kind'] == 'add' else -1}, {prod(op['shape'])}"
            self.calls.append(f"    {{\n        const int8_t *const operands[] = {{{operands}}};")
            self.calls.append(f"        eltwise(operands, {numbers}, {self._place(op['name'])});\n    }}")
        elif op["kind"] == "concat":
            offset = self.offsets[op["name"]]
            for name in op["inputs"]:
                size = prod(self.model.shape(name))
                self.calls.append(f"    memcpy(arena + {offset}, {self._place(name)}, {size});")
                offset += size
        elif op["kind"] != "flatten":
            self._layer(index, op)

    def _layer(self, index: int, op: dict) -> None:
        name, weighted = op["name"], op["kind"] in WEIGHTED
        source, shape = self._place(op["inputs"][0]), self.model.shape(op["inputs"][0])
        if op["pool"]:
            pooled = self._place(f"{name}/pool" if weighted else name)
            self._pool(index, op["pool"], shape, source, pooled)
            source, shape = pooled, pooled_shape(op["pool"], shape)
        if weighted:
            self.tables.append(self._table(index, op, shape))
            function = ("linear" if op["kind"] == "linear" else "conv") + ("_wide" if op["wide"] else "")
            target = f"output + {self.first[name]}" if op["wide"] else self._place(name)
            self.calls.append(f"    {function}(&layer{index}, {source}, {target});")

    def _pool(self, index: int, how: dict, shape: tuple[int, ...], source: str, target: str) -> None:
        kind = "MAX" if how["type"] == "max" else "AVG_ROUND" if how["round"] else "AVG"
        windows = [value for key in ("size", "stride", "dilation") for value in _pair(how[key])]
        numbers = ", ".join(map(str, [*_map(shape), *_map(pooled_shape(how, shape))[1:], *windows]))
        self.tables.append(f"static const pool_t pool{index} = {{{kind}, {numbers}}};")
        self.calls.append(f"    pool(&pool{index}, {source}, {target});")

    def _table(self, index: int, op: dict, shape: tuple[int, ...]) -> str:
        form = {"kernel": [1], "stride": [1], "padding": [0], "dilation": [1], "groups": 1} | op
        kernel, stride, dilation = (_pair(form[key]) for key in ("kernel", "stride", "dilation"))
        padding, transposed = _pair(form["padding"], 0), op["kind"] == "conv_transpose2d"
        self.kernel = max(self.kernel, op["in_channels"] // form["groups"] * prod(kernel))
        if op["kind"] == "linear":
            sizes = [op["in_channels"], prod(shape[:-1]), 1, op["out_channels"], prod(shape[:-1]), 1]
        else:
            sizes = [*_map(shape), *_map(tuple(op["shape"]))]
            self.plane = max(self.plane, sizes[4] * sizes[5])
            if kernel == stride == [1, 1] and padding == [0, 0] and not transposed:
                sizes[1:3], sizes[4:6] = [1, sizes[1] * sizes[2]], [1, sizes[4] * sizes[5]]
        shift = op["weight_bits"] - 1 - op["output_shift"]
        numbers = [op["weight_bits"], int(transposed), form["groups"], *sizes, *kernel, *stride, *padding, *dilation, shift]
        weight, activation = self.layers[op["layer"]], {"relu": "RELU", "abs": "ABS"}.get(op["activation"], "NONE")
        bias = f"{weight}_bias" if self.model.bias(op["layer"]) is not None else "0"
        return f"static const layer_t layer{index} = {{{weight}, {bias}, {', '.join(map(str, numbers))}, {activation}}};"

    def _collect(self, op: dict) -> None:
        """Copy what is an output into the caller's array of int32; wide layers have written there already."""
        size, home = prod(op["shape"]), self.home[op["name"]]
        for start in (start for name, start in self.outputs if name == op["name"]):
            if home == "input" or home in self.offsets:
                self.calls.append(f"    widen({self._place(home)}, {size}, output + {start});")
            elif start != self.first[home]:
                self.calls.append(f"    memcpy(output + {start}, output + {self.first[home]}, {size} * sizeof *output);")

    def values(self) -> dict[str, str | int]:
        """What the templates network.c and network.h leave open."""
        graph, calls = self.model.graph, "\n".join(self.calls)
        constants = [*self._arrays(), *self.tables]
        names = re.findall(r"^static const \w+ (\w+)", "\n".join(constants), re.M)
        exponents = [f" * {_plain(o['op'])}: real value = integer * 2^{o['exponent']}\n" for o in graph["outputs"]]
        memory = "static int8_t arena[NETWORK_ARENA];\n\n" if "arena" in calls else ""
        return {
            "arch": _plain(graph["arch"]), "exponents": "".join(exponents), "input": prod(graph["input_shape"]),
            "output": self.output_size, "arena": max(self.top, 1), "plane": self.plane, "kernel": self.kernel,
            "includes": "#include <string.h>\n\n" if "memcpy" in calls else "",
            "constants": "".join(f"{text}\n" for text in constants),
            "flash": " + ".join(f"sizeof {name}" for name in names) or "0",
            "helpers": memory + (WIDEN if "widen" in calls else ""), "calls": calls,
        }  # fmt: skip

    def _arrays(self) -> Iterator[str]:
        for layer, name in self.layers.items():
            yield c_array(f"static const uint8_t {name}[]", self.model.tensors[f"{layer}.weight"].ravel().view(np.uint8))
            if (bias := self.model.bias(layer)) is not None:
                yield c_array(f"static const int8_t {name}_bias[]", bias)


def _pair(values: list[int], row: int = 1) -> list[int]:
    """(rows, columns) of a 1D or 2D setting; 1D has `row` for its rows."""
    return list(values) if len(values) == 2 else [row, *values]


def _plain(name: str) -> str:
    """A name that is harmless inside a C comment."""
    return re.sub(r"[^\w.@ -]", "_", name)
