"""Plans for the model of the chip: checkpoints and descriptions of the small networks, and networks from recorded verdicts."""

import numpy as np
import yaml
from export_networks import Builder, codes

from qatlib.chip import Simulator
from qatlib.chip.meter import fit
from qatlib.chip.operations import WEIGHTED
from qatlib.chip.synthesis import network_yaml
from qatlib.integer.engine import Integer


def checkpoint(model):
    """The state_dict that the exporter stores, as arrays."""
    state = {}
    for op in (op for op in model.ops if op["kind"] in WEIGHTED):
        name, bits = op["layer"], op["weight_bits"]
        state[f"{name}.op.weight"] = model.weight(name).astype(np.float32)
        if model.bias(name) is not None:
            state[f"{name}.op.bias"] = model.bias(name).astype(np.float32) * 2 ** (bits - 1)
        state |= {f"{name}.weight_bits": np.array([bits]), f"{name}.output_shift": np.array([op["output_shift"]], np.float32)}
    return state


def with_state(model):
    """`model` with the numbers that `quantize_model` stores of each layer, so that it can be exported to the vendor's tool."""
    ops = {op["layer"]: op for op in model.ops if op["kind"] in WEIGHTED}
    model.graph["state"] = {
        name: {"output_shift": [[float(op["output_shift"])], "float32"], "activation_threshold": [0.0, "float32"],
               "final_scale": [0.0, "float32"], "weight_bits": [[op["weight_bits"]], "int64"]}
        for name, op in ops.items()
    }  # fmt: skip
    return model


def planned(model):
    """The layers that the exporter writes for a model."""
    return yaml.safe_load(network_yaml(fit(model, device=model.graph["device"]), "net"))


def same(network, model, pictures=3) -> bool:
    chip = Simulator(network, checkpoint(model), model.graph["input_shape"], model.graph["device"])
    last = len(chip.layers) - 1
    return all(
        np.array_equal(chip.run(x)[last].ravel(), Integer(model)(x).ravel()) for x in codes(model, max(pictures, 2))[-pictures:]
    )


def network_of(case, seed=0):
    """A recorded list of operations, with random weights."""
    b = Builder(case["input_shape"], seed)
    for layer in case["layers"]:
        dims = 1 if layer["kind"] == "conv1d" or len(case["input_shape"]) == 2 else 2
        inputs, more = layer["inputs"], {}
        if "pool_kind" in layer:
            size, stride = layer["pool"][:dims], layer.get("pool_stride", [1, 1])[:dims]
            more["pool"] = {"type": layer["pool_kind"], "size": size, "stride": stride, "dilation": [1] * dims, "round": False}
        if layer["kind"] == "linear" and len(b.shapes[inputs[0]]) > 1:
            inputs = [f"{layer['name']}_flat"]
            b.op(inputs[0], "flatten", *layer["inputs"])
        if layer["kind"] in WEIGHTED:
            names = {"activation": None, "wide": False, "bits": 8, "bias": False, "layer": layer["name"]}
            more |= {name: layer.get(name, default) for name, default in names.items()} | {"out": layer["c_out"]}
        if layer["kind"] in WEIGHTED and layer["kind"] != "linear":
            more |= {name: layer.get(name, default) for name, default in (("padding", 0), ("groups", 1), ("dilation", 1))}
            more["kernel"] = layer.get("kernel", [1, 1])[:dims]
        b.op(layer["name"], layer["kind"], *inputs, **more)
    model = b.build()
    model.graph["device"] = case["device"]
    return model
