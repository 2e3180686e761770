"""Compact models for tests: one layer of any kind, and the recorded networks from their integer checkpoints."""

import json
from pathlib import Path

import numpy as np

from qatlib.chip.operations import output_shape, weight_shape
from qatlib.integer.compact import CompactModel, pack

GOLDEN = Path(__file__).parent / "golden"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]}


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / CASES[name]["file"]) as arrays:
        return dict(arrays)


def pooling(kind: str, size=2, stride=2, dims=2, dilation=1, round=False) -> dict:
    return {"type": kind, "size": [size] * dims, "stride": [stride] * dims, "dilation": [dilation] * dims, "round": round}


def convolution(name, inputs, cin, cout, k=3, kind="conv2d", padding=0, **changes) -> dict:
    dims = 1 if kind == "conv1d" else 2
    transposed = kind == "conv_transpose2d"
    return {
        "name": name, "layer": name, "kind": kind, "inputs": [inputs], "pool": None, "kernel": [k] * dims,
        "stride": [2 if transposed else 1] * dims, "padding": [padding] * dims, "output_padding": [int(transposed)] * dims,
        "dilation": [1] * dims, "groups": 1, "in_channels": cin, "out_channels": cout, "activation": None, "wide": False,
        "weight_bits": 8, "output_shift": 0, **changes,
    }  # fmt: skip


def linear(name, inputs, cin, cout, **changes) -> dict:
    return {"name": name, "layer": name, "kind": "linear", "inputs": [inputs], "pool": None, "in_channels": cin,
            "out_channels": cout, "activation": None, "wide": False, "weight_bits": 8, "output_shift": 0, **changes}  # fmt: skip


def graph(input_shape, ops, outputs=None) -> dict:
    """Fill in every operation's shape; the last operation is the output unless `outputs` names others."""
    shapes = {"input": tuple(input_shape)}
    for op in ops:
        shapes[op["name"]] = output_shape(op, [shapes[name] for name in op["inputs"]])
        op["shape"] = list(shapes[op["name"]])
    outputs = [{"op": name, "exponent": -7} for name in outputs or [ops[-1]["name"]]]
    return {"format": 1, "arch": "Test", "device": 85, "input_shape": list(input_shape), "input": "int8 codes k/128",
            "ops": ops, "outputs": outputs}  # fmt: skip


def random_tensors(ops, rng) -> dict[str, np.ndarray]:
    tensors = {}
    for op in ops:
        if "weight_bits" in op:
            half = 1 << op["weight_bits"] - 1
            tensors[f"{op['layer']}.weight"] = pack(rng.integers(-half, half, weight_shape(op)), op["weight_bits"])
            tensors[f"{op['layer']}.bias"] = rng.integers(-half, half, op["out_channels"]).astype(np.int8)
    return tensors


def integer_tensors(arrays, prefix, op) -> dict[str, np.ndarray]:
    """Tensors of one layer from the vendor's integer checkpoint; sets bits and shift in `op`."""
    op["weight_bits"] = bits = int(arrays[f"{prefix}weight_bits"][0])
    op["output_shift"] = int(arrays[f"{prefix}output_shift"][0])
    tensors = {f"{op['layer']}.weight": pack(arrays[f"{prefix}op.weight"].astype(np.int64), bits)}
    if f"{prefix}op.bias" in arrays:
        tensors[f"{op['layer']}.bias"] = (arrays[f"{prefix}op.bias"] / 2 ** (bits - 1)).astype(np.int8)
    return tensors


def recorded_network(name: str) -> CompactModel:
    """The two recorded networks: residual add with 8 bits, and concat, shared layer, rounding average pool, mixed bits."""
    relu, halve = {"activation": "relu"}, {"pool": pooling("max")}
    if name == "pipeline_add_w8":
        ops = [
            convolution("conv1", "input", 3, 8, padding=1, **relu),
            convolution("conv2", "conv1", 8, 16, padding=1, **relu, **halve),
            convolution("conv3", "conv2", 16, 16, padding=1, **relu),
            convolution("conv4", "conv3", 16, 16, k=1),
            {"name": "add", "kind": "add", "inputs": ["conv4", "conv2"]},
            convolution("conv5", "add", 16, 24, padding=1, **relu, **halve),
            {"name": "flat", "kind": "flatten", "inputs": ["conv5"]},
            linear("fc", "flat", 384, 10, wide=True),
        ]
    else:
        ops = [
            convolution("conv1", "input", 3, 8, padding=1, **relu),
            convolution("branch_a", "conv1", 8, 12, padding=1, **relu),
            convolution("branch_b", "conv1", 8, 4, k=1, **relu),
            {"name": "cat", "kind": "concat", "inputs": ["branch_a", "branch_b"]},
            convolution("shared", "cat", 16, 16, padding=1, **relu),
            convolution("shared_1", "shared", 16, 16, padding=1, **relu, layer="shared"),
            convolution("conv4", "shared_1", 16, 16, padding=1, **relu, pool=pooling("avg", round=True)),
            convolution("head", "conv4", 16, 5, k=1, pool=pooling("max")),
        ]
    arrays, tensors = golden(name), {}
    for op in ops:
        if "weight_bits" in op:
            tensors |= integer_tensors(arrays, f"s6_quantized/{op['layer']}.", op)
    return CompactModel(graph((3, 16, 16), ops), tensors)
