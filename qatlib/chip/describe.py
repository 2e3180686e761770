"""Layer descriptions (`LayerSpec`) of a network, before or after training, or of a compact model's graph."""

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from qatlib.chip.operations import REARRANGING
from qatlib.chip.spec import LayerSpec

JOINING = ("add", "sub", "concat")


class Layers(list):
    """The operations in execution order; `outputs` names those whose results the network returns, `refusals`: see `lowering`."""

    def __init__(self, layers=(), outputs: tuple[str, ...] = (), refusals: tuple[str, ...] = ()):
        super().__init__(layers)
        self.outputs, self.refusals = outputs, refusals


def describe(model, input_shape: tuple[int, ...] | None = None) -> Layers:
    """The operations of `model` in execution order: a torch network of ai8x layers, a compact model, or such a list itself.

    Of a plain list the outputs are what no operation reads. Weight bits of 0 (before QAT) count as 8. Raises ValueError where
    the network cannot be traced or has no `input_shape`.
    """
    if isinstance(model, Layers):
        return model
    if isinstance(model, (list, tuple)):
        read = {name for layer in model for name in layer.inputs}
        return Layers(model, tuple(x.name for x in model if x.name not in read))
    model = getattr(model, "compact", model)
    if isinstance(getattr(model, "graph", None), dict):
        ops = [{**op, "bias": model.bias(op["layer"]) is not None} if "weight_bits" in op else op for op in model.ops]
        return _specs(ops, tuple(model.graph["input_shape"]), [output["op"] for output in model.graph["outputs"]])
    from qatlib.chip.lowering import lower

    net = lower(model, input_shape)
    return _specs(net.ops, net.input_shape, net.outputs, tuple(net.refusals))


def _plane(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width); a 1D signal has width 1."""
    return (*shape[:3], *(1,) * (3 - len(shape)))


def _pair(value, fill: int = 1) -> tuple[int, int]:
    return tuple(value) if len(value) == 2 else (*value, fill)


def _one_stride(sizes: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """The stride of both directions, where one of them has a single window, so that its own does not matter."""
    counts = [(n - k) // s + 1 for n, k, s in zip(sizes, window, stride)]
    single = [count == 1 for count in counts]
    if stride[0] == stride[1] or sizes[1] == 1 or not any(single):
        return stride
    return (1, 1) if all(single) else (stride[single.index(False)],) * 2


def _specs(operations: list[dict], input_shape: tuple[int, ...], outputs: list[str], refusals: tuple[str, ...] = ()) -> Layers:
    specs, shapes, homes = [], {"input": input_shape}, {"input": ("input",)}  # homes: the chip's operations that computed it
    planes, written = {"input": _plane(input_shape)}, {}  # as who reads it sees it; of what is joined, as the parts are written
    for op in operations:
        name, inputs = op["name"], [home for operand in op["inputs"] for home in homes[operand]]
        given, sources = [shapes[operand] for operand in op["inputs"]], [planes[operand] for operand in op["inputs"]]
        shapes[name], planes[name] = tuple(op["shape"]), _plane(tuple(op["shape"]))
        if op["kind"] in REARRANGING or op.get("host"):
            homes[name] = tuple(dict.fromkeys(inputs))
            planes[name] = sources[0] if op["kind"] == "flatten" else planes[name]
            continue
        homes[name] = (name,)
        if op["kind"] in JOINING:  # perhaps flat maps
            channels = sum(source[0] for source in sources) if op["kind"] == "concat" else sources[0][0]
            planes[name] = channels, *sources[0][1:]
            sizes = dict.fromkeys(written.get(home, planes[home][1:]) for home in inputs)
            written[name] = next(iter(sizes)) if op["kind"] == "concat" else planes[name][1:]
            refusals += (_unequal(name, sizes),) if len(sizes) > 1 else ()
        if op["kind"] == "linear" and len(given[0]) > 1:
            specs.append(replace(_spec(op, inputs, [(given[0][-1], 1, 1)], planes[name]), rows=prod(given[0][:-1])))
        else:
            passed = {spec.name for spec in specs if spec.in_dim and spec.kind in JOINING}  # to who reads it, perhaps in one layer
            renamed = any(source[1:] != planes[home][1:] or home in passed for source, home in zip(sources, inputs))
            spec = _spec(op, inputs, sources, planes[name])
            specs.append(replace(spec, in_dim=(spec.h_in, spec.w_in) if renamed else None))
    return Layers(specs, tuple(dict.fromkeys(home for name in outputs for home in homes[name])), refusals)


def _unequal(name: str, sizes: Iterable[tuple[int, int]]) -> str:
    found = " and ".join(f"{rows}x{columns}" for rows, columns in sizes)
    rule = f"joins maps written as {found} and renamed to one size, which the vendor's tool refuses"
    return f"{name}: {rule}: put a layer behind the renaming"


def _spec(op: dict, inputs: list[str], sources: list[tuple[int, int, int]], result: tuple[int, int, int]) -> LayerSpec:
    c_out, h_out, w_out = result
    c_in, h_in, w_in = sources[0]
    if op["kind"] == "concat":
        c_in = sum(source[0] for source in sources)
    form = {"kind": op["kind"], "inputs": tuple(inputs), "h_in": h_in, "w_in": w_in, "h_out": h_out, "w_out": w_out}
    if pool := op.get("pool"):
        size, stride = _pair(pool["size"]), _pair(pool["stride"])
        form |= {"pool": size, "pool_stride": _one_stride((h_in, w_in), size, stride), "pool_kind": pool["type"]}
        form |= {"pool_dilation": max(pool["dilation"]), "pool_rounds": bool(pool["round"])}
    if "weight_bits" in op:
        form |= {"bits": op["weight_bits"] or 8, "bias": op["bias"], "wide": op["wide"], "activation": op["activation"]}
        form |= {"layer": op["layer"]}
    if op["kind"] == "linear":
        form |= {"flatten": h_in * w_in, "h_out": 1, "w_out": 1}
        c_out = op["out_channels"]
    if "kernel" in op:
        form |= {"kernel": _pair(op["kernel"]), "stride": max(op["stride"]), "padding": max(op["padding"])}
        form |= {"groups": op["groups"], "dilation": max(op["dilation"])}
    return LayerSpec(op["name"], c_in=c_in, c_out=c_out, **form)
