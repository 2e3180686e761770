"""Layer descriptions (`LayerSpec`) of a network, before or after training, or of a compact model's graph."""

from dataclasses import replace
from math import prod

from qatlib.chip.spec import LayerSpec


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


def _specs(operations: list[dict], input_shape: tuple[int, ...], outputs: list[str], refusals: tuple[str, ...] = ()) -> Layers:
    specs, shapes, same = [], {"input": input_shape}, {}
    for op in operations:
        inputs = tuple(same.get(name, name) for name in op["inputs"])
        given = [shapes[name] for name in op["inputs"]]
        shapes[op["name"]] = tuple(op["shape"])
        if op["kind"] == "flatten":
            same[op["name"]] = inputs[0]
        elif op["kind"] == "linear" and len(given[0]) > 1:
            specs.append(replace(_spec(op, inputs, [(given[0][-1], 1, 1)]), rows=prod(given[0][:-1])))
        else:
            specs.append(_spec(op, inputs, [_plane(shapes[name]) for name in inputs]))
    return Layers(specs, tuple(same.get(name, name) for name in outputs), refusals)


def _spec(op: dict, inputs: tuple[str, ...], sources: list[tuple[int, int, int]]) -> LayerSpec:
    c_out, h_out, w_out = _plane(tuple(op["shape"]))
    c_in, h_in, w_in = sources[0]
    if op["kind"] == "concat":
        c_in = sum(source[0] for source in sources)
    form = {"kind": op["kind"], "inputs": inputs, "h_in": h_in, "w_in": w_in, "h_out": h_out, "w_out": w_out}
    if pool := op.get("pool"):
        form |= {"pool": _pair(pool["size"]), "pool_stride": _pair(pool["stride"]), "pool_kind": pool["type"]}
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
