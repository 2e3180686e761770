"""Which operations exist, what shape each one gives, and what makes a graph of them unusable.

An operation is a plain dict, as it stands in a compact model's JSON. Shapes never include the batch: (C, H, W), (C, L) or
(features,). `lowering` makes such a graph of a network; what cannot be an operation there is of kind "other".

Those of REARRANGING, and a concatenation, move integers and change none, wide ones neither. With the key "host" the chip does not
do it: it stands between the last layer and the network's output, and whoever reads the chip's results does it. Without, a reshape
keeps the channels and only renames their places. "axes" of a permute, and "axis" of a concatenation (0, the channels, where it is
absent), do not count the batch; "shifts" are powers of two that bring what a concatenation joins to one scale.
"""

from collections.abc import Iterator
from math import prod

CONVOLUTIONS = ("conv2d", "conv_transpose2d", "conv1d")
WEIGHTED = (*CONVOLUTIONS, "linear")
REARRANGING = ("flatten", "reshape", "permute")
KINDS = (*WEIGHTED, "pool", "add", "sub", "concat", *REARRANGING)
BITS = (1, 2, 4, 8)
ACTIVATIONS = (None, "relu", "abs")


def shift_limits(weight_bits: int) -> tuple[int, int]:
    """Smallest and largest `output_shift` the chip's register holds (ai8x-training README, "output_shift").

    >>> shift_limits(8), shift_limits(2)
    ((-15, 15), (-21, 9))
    """
    return weight_bits - 23, weight_bits + 7


def weight_shape(op: dict) -> tuple[int, ...]:
    """Shape of the weights: (out, in/groups, *kernel); transposed (in, out/groups, *kernel); linear (out, in)."""
    if op["kind"] == "linear":
        return op["out_channels"], op["in_channels"]
    first, second = op["out_channels"], op["in_channels"]
    if op["kind"] == "conv_transpose2d":
        first, second = second, first
    return first, second // op["groups"], *op["kernel"]


def pooled_shape(pool: dict | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape after pooling; incomplete windows at the far edge are dropped."""
    if pool is None:
        return shape
    windows = zip(shape[1:], pool["size"], pool["stride"], pool["dilation"], strict=True)
    return shape[0], *((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in windows)


def output_shape(op: dict, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape that `op` gives for operands of `shapes`; a size of zero or less means that the operands are too small."""
    kind = op["kind"]
    if kind == "concat":
        axis = op.get("axis", 0)
        return *shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :]
    if kind == "flatten":
        return (prod(shapes[0]),)
    if kind == "permute":
        return tuple(shapes[0][axis] for axis in op["axes"])
    if kind == "reshape":
        return tuple(op["shape"])
    if kind in ("add", "sub"):
        return shapes[0]
    shape = pooled_shape(op["pool"], shapes[0])
    if kind == "pool":
        return shape
    if kind == "linear":
        return *shape[:-1], op["out_channels"]
    places = list(zip(shape[1:], op["kernel"], op["stride"], op["padding"], op["dilation"], strict=True))
    if kind == "conv_transpose2d":
        sizes = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in places]
        return op["out_channels"], *(n + extra for n, extra in zip(sizes, op["output_padding"], strict=True))
    return op["out_channels"], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in places)


def check(graph: dict) -> None:
    """Raise a `ValueError` that names the operation and the remedy unless `graph` can be run."""
    if graph.get("format") != 1:
        raise ValueError(
            f"the graph has format {graph.get('format')!r}, this library reads format 1; export the model again"
        )
    for op in graph["ops"]:
        if op["kind"] not in KINDS:
            raise ValueError(f"{op['name']}: unknown kind {op['kind']!r}; the kinds are {', '.join(KINDS)}")
    for problem in faults(graph["ops"], tuple(graph["input_shape"])):
        raise ValueError(problem)
    for op in (op for op in graph["ops"] if op["kind"] in WEIGHTED):
        _check_codes(op)
    names = {"input", *(op["name"] for op in graph["ops"])}
    for output in graph["outputs"]:
        if output["op"] not in names or not isinstance(output["exponent"], int):
            raise ValueError(
                f"the graph's output {output!r} names no operation or has no whole exponent; export the model again"
            )
    if not graph["outputs"]:
        raise ValueError("the graph has no output; export a model whose forward returns a tensor")


def faults(ops: list[dict], input_shape: tuple[int, ...]) -> Iterator[str]:
    """What is wrong with operations that read each other, a sentence each; those of kind "other" are taken as they are."""
    shapes, wide, host = {"input": input_shape}, set(wide_ones(ops)), {}
    for op in ops:
        name, missing = op["name"], [operand for operand in op["inputs"] if operand not in shapes]
        if name in shapes:
            yield f"two operations of the graph are called {name!r}; export the model again"
        if missing:
            yield f"{name}: its operand {missing[0]!r} is not computed before it; export the model again"
        elif op["kind"] != "other":
            read = () if op["kind"] in REARRANGING or op.get("host") else op["inputs"]
            for operand in wide.intersection(read):
                yield (f"{name}: its operand {operand!r} is a wide (32-bit) output, which no layer can read; build that "
                       "layer with wide=False")  # fmt: skip
            yield from (host.pop(operand) for operand in read if operand in host and operand not in wide)
            given = [shapes[operand] for operand in op["inputs"]]
            yield from _faults(op, given)
            if op.get("host"):
                host[name] = next((host[operand] for operand in op["inputs"] if operand in host), _moves(op, given))
        shapes[name] = tuple(op["shape"])


def wide_ones(ops: list[dict]) -> Iterator[str]:
    """Names of the operations that give 32-bit integers: wide layers, and what rearranges such or brings codes to one scale."""
    found = set()
    for op in ops:
        if op.get("wide") or "shifts" in op or found.intersection(op["inputs"]):
            found.add(op["name"])
            yield op["name"]


def _moves(op: dict, shapes: list[tuple[int, ...]]) -> str:
    """What is told where a layer reads `op`, which only the host can do."""
    behind = "behind the last layer, where the host does it"
    if op["kind"] == "concat":
        what = f"concatenation along axis {op['axis'] + 1}" if op.get("axis") else "concatenation of flat maps of several sizes"
        return f"{op['name']}: {what}; the chip joins channels only: use torch.cat(..., dim=1) of equal maps, or {behind}"
    verb = "permuting" if op["kind"] == "permute" else "reshaping"
    return (f"{op['name']}: {verb} {shapes[0]} to {tuple(op['shape'])} moves values between channels or places; the chip cannot: "
            f"keep the channels, as x.view(x.size(0), x.size(1), ...) and x.flatten(1) do, or do it {behind}")  # fmt: skip


def _faults(op: dict, shapes: list[tuple[int, ...]]) -> Iterator[str]:
    """Of one operation on operands of `shapes`; the first fault may cause the next, so there is at most one."""
    kind = op["kind"]
    axis, most = op.get("axis", 0), len(shapes) if op.get("host") else 16
    wanted = range(2, most + 1) if kind in ("add", "sub", "concat") else (1,)
    same = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes} if kind == "concat" else set(shapes)
    if len(shapes) not in wanted:
        yield f"{op['name']}: {kind} with {len(shapes)} operands; it takes {'2 to 16' if len(wanted) > 1 else 'one'}"
    elif len(same) != 1:
        yield f"{op['name']}: operands of shapes {shapes} do not fit together; make them equal before {kind}"
    else:
        yield from filter(None, [(kind in WEIGHTED and _weight_fault(op, shapes[0])) or _shape_fault(op, shapes)])


def _weight_fault(op: dict, shape: tuple[int, ...]) -> str:
    if op["activation"] not in ACTIVATIONS or (op["wide"] and op["activation"]):
        return (
            f"{op['name']}: activation {op['activation']!r} with wide={op['wide']!r}; use None, 'relu' or 'abs', and none "
            "with a wide output"
        )
    if op["kind"] in CONVOLUTIONS and (op["in_channels"] % op["groups"] or op["out_channels"] % op["groups"]):
        return f"{op['name']}: {op['groups']} groups do not divide {op['in_channels']} and {op['out_channels']} channels"
    channels = shape[-1] if op["kind"] == "linear" else shape[0]
    if channels != op["in_channels"]:
        return (
            f"{op['name']}: it expects {op['in_channels']} channels and is given {channels}; check input_shape and the "
            "layers before it"
        )
    places = zip(op["padding"], op["dilation"], op["kernel"]) if op["kind"] == "conv_transpose2d" else ()
    if any(not 0 <= p <= d * (k - 1) for p, d, k in places):
        return f"{op['name']}: padding {op['padding']} of kernel {op['kernel']}; a transposed one has 0 to kernel - 1"
    return ""


def _shape_fault(op: dict, shapes: list[tuple[int, ...]]) -> str:
    name, kind, pool, axis = op["name"], op["kind"], op.get("pool"), op.get("axis", 0)
    if kind == "pool" and not pool or pool and pool["type"] not in ("max", "avg"):
        return f"{name}: pooling {pool!r} is neither 'max' nor 'avg'; export the model again"
    try:
        shape = output_shape(op, shapes)
        whole = prod(shape) == prod(shapes[0]) and sorted(op.get("axes", ())) == [*range(len(op.get("axes", ())))]
        shifts = op.get("shifts", [0] * len(shapes))
        scaled = len(shifts) == len(shapes) and all(shift in range(32) for shift in shifts)
        if kind in REARRANGING and not whole or axis not in range(len(shape)) and axis or not scaled:
            raise ValueError
    except (ValueError, IndexError):
        return f"{name}: {op['kind']} cannot read an operand of shape {shapes[0]}; check input_shape"
    if min(shape, default=1) < 1:
        return (
            f"{name}: its operand {shapes[0]} is too small for the kernel or the pooling; use a larger input or "
            "fewer pools"
        )
    if shape != tuple(op["shape"]):
        return f"{name}: the graph says shape {op['shape']}, the operation gives {list(shape)}; export the model again"
    if not op.get("host") and (kind == "permute" or axis or kind == "reshape" and shape[0] != shapes[0][0]):
        return f"{name}: a {kind} that moves values between channels, and is not the host's; export the model again"
    return ""


def _check_codes(op: dict) -> None:
    """Raise ValueError unless bits and shift of a layer's weights are what the chip can hold."""
    name, bits, shift = op["name"], op["weight_bits"], op["output_shift"]
    if bits not in BITS:
        raise ValueError(f"{name}: weight_bits is {bits!r}; the chip has 1, 2, 4 and 8")
    low, high = shift_limits(bits)
    if not isinstance(shift, int) or not low <= shift <= high:
        raise ValueError(
            f"{name}: output_shift {shift!r} is outside [{low}, {high}] of {bits}-bit weights; use more weight bits, "
            "or train on, so that weights and activations come nearer to 1"
        )


def last_uses(ops: list[dict], outputs: list[str]) -> dict[str, int]:
    """For each tensor that an output needs: the index of the last operation that reads it, len(ops) for the outputs."""
    last = dict.fromkeys(outputs, len(ops))
    for index in reversed(range(len(ops))):
        if ops[index]["name"] in last:
            for name in ops[index]["inputs"]:
                last.setdefault(name, index)
    return last


def first_fit(taken: list[tuple[int, int]], size: int, align: int = 1) -> int:
    """The lowest multiple of `align` from which `size` places are free; `taken` are (first, end) of those in use.

    >>> first_fit([(0, 3), (8, 9)], 4), first_fit([(0, 3), (8, 9)], 4, align=4), first_fit([(0, 3), (6, 9)], 4)
    (3, 4, 9)
    """
    offset = 0
    for low, high in sorted(taken):
        if low < offset + size and high > offset:
            offset = -(-high // align) * align
    return offset
