"""Every recorded layer of the vendor's own code, bit for bit: outputs, gradients, shifts and fake-quantized weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qatlib import ai8x

GOLDEN = Path(__file__).parent / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())["cases"]
LAYER_CASES = [case for case in MANIFEST if case["kind"] == "layer"]


def arrays_of(case):
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / case["file"]).items()}


def with_prefix(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def build(case, arrays):
    """The layer in the recorded state; fusing its batch norm ourselves where the case was recorded after fusing."""
    ai8x.set_device(case["device"], case["simulate"], case["round_avg"], verbose=False)
    layer = getattr(ai8x, case["layer"])(*case["args"], **case["kwargs"])
    prefuse = with_prefix(arrays, "prefuse.")
    if prefuse:
        layer.load_state_dict(prefuse)
        ai8x.fuse_bn_layers(layer)
        assert layer.bn is None
        # the recorded weights are rounded products of rsqrt: one unit in the last place may depend on the machine
        for key, value in with_prefix(arrays, "state.op.").items():
            assert torch.allclose(layer.state_dict()[f"op.{key}"], value, rtol=2**-22, atol=0)
    if isinstance(layer, ai8x.Eltwise):
        layer.set_clamp(case["mode"] in ("qat_train", "qat_eval"))
    state = with_prefix(arrays, "state.")
    assert list(layer.state_dict()) == list(state), "state-dict keys and their order are part of the checkpoint format"
    layer.load_state_dict(state)
    if not isinstance(layer, ai8x.Eltwise):
        layer.set_functions()
    return layer.train(case["mode"] == "qat_train")


def assert_same(case, arrays, name, got, want):
    assert got.shape == want.shape, name
    if case["exact_order_independent"].get(name, True):
        assert torch.equal(got.to(want.dtype), want), f"{name}: {(got != want).sum()} of {want.numel()} values differ"
    else:
        # another order of summation moves a sum by at most one rounding (2^-24) of the partial sums, themselves at most
        # the sum of all absolute terms; a gradient that cancels to nearly 0 (bias in front of batch norm) needs this form
        terms = arrays["gy"].abs().sum() if "gy" in arrays else want.abs().max()
        assert (got - want).abs().max() <= 2**-23 * terms.clamp(min=1), name


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case["name"])
def test_layer_equals_recording(case):
    arrays = arrays_of(case)
    layer = build(case, arrays)
    inputs = [arrays[key].clone() for key in ("x", "x0", "x1", "x2", "x3") if key in arrays]
    trains = "gy" in arrays
    if trains:
        for x in inputs:
            x.requires_grad_(True)
    y = layer(*inputs)
    assert_same(case, arrays, "y", y.detach(), arrays["y"])
    if trains:
        (y * arrays["gy"]).sum().backward()
        for i, x in enumerate(inputs):
            name = "grad_x" if "x" in arrays else f"grad_x{i}"
            assert_same(case, arrays, name, x.grad, arrays[name])
        named = dict(layer.named_parameters())
        recorded = with_prefix(arrays, "grad.")
        for name, want in recorded.items():
            assert_same(case, arrays, f"grad.{name}", named[name].grad, want)
        trained = {name for name, parameter in named.items() if parameter.grad is not None}
        assert trained == set(recorded), "exactly the recorded parameters receive a gradient"


@pytest.mark.parametrize("case", [c for c in LAYER_CASES if "calc.output_shift_weights" in c["arrays"]], ids=lambda c: c["name"])
def test_shift_and_quantized_weight_equal_recording(case):
    arrays = arrays_of(case)
    layer = build(case, arrays)
    assert torch.equal(layer.weight_shift(), arrays["calc.output_shift_weights"])
    assert torch.equal(layer.effective_shift(), arrays["calc.output_shift_effective"])
    if case["mode"].startswith("qat"):
        weight, bias = layer.quantized_weight()
        half = 1 << (case["weight_bits"] - 1)
        assert torch.equal(weight / half, arrays["calc.weight_q"])
        assert bias is None or torch.equal(bias / half, arrays["calc.bias_q"])


def test_output_shift_table():
    case = next(case for case in MANIFEST if case["kind"] == "output_shift")
    arrays = arrays_of(case)
    for i, (want, quantile) in enumerate(zip(arrays["table"][:, 0], arrays["shift_quantile"])):
        got = ai8x.calc_weight_shift(arrays[f"w{i}"], float(quantile))
        assert got.shape == (1,) and got.item() == want, f"w{i}: {got.item()} instead of {want}"
