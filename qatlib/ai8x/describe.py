"""Layer descriptions (`LayerSpec`) of a network, before or after training, or of a compact model's graph."""

from dataclasses import replace
from math import prod

from qatlib.ai8x.plan import LayerSpec

TRANSPARENT = ("Dropout", "Dropout1d", "Dropout2d", "Identity", "dropout", "contiguous", "alias", "getattr", "getitem")


class Layers(list):
    """The operations in execution order; `outputs` names those whose results the network returns."""

    def __init__(self, layers=(), outputs: tuple[str, ...] = ()):
        super().__init__(layers)
        self.outputs = outputs



def describe(model, input_shape: tuple[int, ...] | None = None) -> Layers:
    """The operations of `model` in execution order: a torch network of ai8x layers, a compact model, or such a list itself.

    Of a plain list the outputs are what no operation reads. Weight bits of 0 (before QAT) count as 8. Raises ValueError where
    the network cannot be traced or has no `input_shape`.
    """
    if isinstance(model, (list, tuple)):
        read = {name for layer in model for name in layer.inputs}
        return Layers(model, getattr(model, "outputs", None) or tuple(x.name for x in model if x.name not in read))
    if hasattr(model, "compact"):
        model = model.compact
    if isinstance(getattr(model, "graph", None), dict):
        outputs = tuple(output["op"] for output in model.graph["outputs"])
        return _from_operations(model.graph["ops"], tuple(model.graph["input_shape"]), outputs, model)
    return _from_network(model, getattr(model, "input_shape", None) if input_shape is None else input_shape)


def _from_network(model, input_shape) -> Layers:
    if not hasattr(model, "named_modules"):
        raise TypeError(f"the model is a {type(model).__name__}; give a torch network, a compact model or a list of LayerSpec")
    if input_shape is not None and not isinstance(input_shape, (tuple, list)):
        raise TypeError(f"input_shape is {input_shape!r}; give (C, H, W)")
    if input_shape is None:
        raise ValueError(f"{type(model).__name__} has no input_shape; give input_shape=(C, H, W)")
    from qatlib.ai8x.graph import trace, unwrap

    nodes, root = trace(model, tuple(input_shape)), unwrap(model)
    modules = dict(root.named_modules())
    modules.setdefault("0", root)
    operations = []
    for node in nodes:
        form = {"name": node.name, "inputs": list(node.inputs), "shape": list(node.shape)}
        if node.kind == "layer":
            form |= _layer_form(modules[node.module], node.module)
        elif node.kind == "eltwise":
            form["kind"] = {"Add": "add", "Sub": "sub", "BitwiseXor": "xor", "BitwiseOr": "or"}.get(node.target, "other")
        elif node.kind in ("flatten", "view"):
            form["kind"] = "flatten"
        else:
            form["kind"] = {"cat": "concat", "input": "input"}.get(node.kind, "same" if node.target in TRANSPARENT else "other")
        operations.append(form)
    return _from_operations([op for op in operations if op["kind"] != "input"], tuple(input_shape), nodes.outputs)


def _layer_form(module, name: str) -> dict:
    """The parts of a compact graph's operation that a description needs, from a torch layer."""
    pool = None
    if module.pool is not None:
        pool = {"type": module.pooling.lower(), "size": module.pool.kernel_size, "stride": module.pool.stride}
        pool |= {"dilation": getattr(module.pool, "dilation", 1), "round": module.pooling == "Avg" and module.round_avg}
    if module.op is None:
        return {"kind": "pool", "pool": pool, "layer": name}
    op, kind = module.op, type(module.op).__name__
    form = {"kind": {"Conv2d": "conv2d", "Conv1d": "conv1d", "ConvTranspose2d": "conv_transpose2d"}.get(kind, "linear")}
    form |= {"pool": pool, "layer": name, "activation": (module.activation or "").lower() or None, "wide": module.wide}
    form |= {"weight_bits": int(module.weight_bits.item()) or 8, "bias": op.bias is not None}
    if form["kind"] == "linear":
        return form | {"out_channels": op.out_features}
    return form | {
        "kernel": op.kernel_size, "stride": op.stride, "padding": op.padding, "groups": op.groups,
        "out_channels": op.out_channels, "dilation": op.dilation,
    }  # fmt: skip


def _plane(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width); a 1D signal has width 1."""
    return (*shape, *(1,) * (3 - len(shape)))


def _pair(value, fill: int = 1) -> tuple[int, int]:
    value = (value, value) if isinstance(value, int) else tuple(value)
    return value if len(value) == 2 else (*value, fill)


def _from_operations(operations: list[dict], input_shape: tuple[int, ...], outputs: tuple[str, ...], model=None) -> Layers:
    specs, shapes, same = [], {"input": input_shape}, {}
    for op in operations:
        inputs = tuple(same.get(name, name) for name in op["inputs"])
        shapes[op["name"]] = tuple(op["shape"])
        if op["kind"] in ("flatten", "same"):
            same[op["name"]] = inputs[0]
        elif op["kind"] == "linear" and len(given := shapes[op["inputs"][0]]) > 1:
            specs.append(replace(_spec(op, inputs, [(given[-1], 1, 1)], model), rows=prod(given[:-1])))
        else:
            specs.append(_spec(op, inputs, [_plane(shapes[name]) for name in inputs], model))
    return Layers(specs, tuple(same.get(name, name) for name in outputs))


def _spec(op: dict, inputs: tuple[str, ...], sources: list[tuple[int, int, int]], model) -> LayerSpec:
    c_out, h_out, w_out = _plane(tuple(op["shape"]))
    c_in, h_in, w_in = sources[0]
    if op["kind"] == "concat":
        c_in = sum(source[0] for source in sources)
    form = {"kind": op["kind"], "inputs": inputs, "h_in": h_in, "w_in": w_in, "h_out": h_out, "w_out": w_out}
    if pool := op.get("pool"):
        one_dimensional = len(op["shape"]) == 2
        size, stride = ((v, 1) if one_dimensional and isinstance(v, int) else _pair(v) for v in (pool["size"], pool["stride"]))
        form |= {"pool": size, "pool_stride": stride, "pool_kind": pool["type"]}
        form |= {"pool_dilation": max(_pair(pool["dilation"])), "pool_rounds": bool(pool["round"])}
    if "weight_bits" in op:
        bias = op["bias"] if model is None else model.bias(op["layer"]) is not None
        form |= {"bits": op["weight_bits"], "bias": bias, "wide": op["wide"], "activation": op["activation"]}
        form |= {"layer": op["layer"]}
    if op["kind"] == "linear":
        return LayerSpec(
            op["name"], c_in=c_in, c_out=op["out_channels"], **(form | {"flatten": h_in * w_in, "h_out": 1, "w_out": 1})
        )
    if "kernel" in op:
        form |= {"kernel": _pair(op["kernel"]), "stride": max(op["stride"]), "padding": max(op["padding"])}
        form |= {"groups": op["groups"], "dilation": max(op["dilation"])}
    return LayerSpec(op["name"], c_in=c_in, c_out=c_out, **form)
