"""Every recorded layer of the vendor's own code, bit for bit: outputs, gradients, shifts and fake-quantized weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from float_sums import U, allowed, sum_error

from qatlib import ai8x

GOLDEN = Path(__file__).parents[1] / "golden"
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


def allowed_difference(case, arrays, layer):
    """For what the manifest calls dependent on the order of sums: how far two orders may lie apart.

    Gradients add upstream values of mean zero, times factors of about 1 at most; sums of such terms lose sqrt(n) in the bound
    (Higham and Mary, SIAM J. Sci. Comput. 42, 2020). A float layer's output is the convolution's sum, times batch norm's factor.
    """
    if "gy" in arrays:
        return allowed(U * arrays["gy"].abs().sum(dim=(0, 2, 3)).max())
    x = arrays["x"].abs() if layer.pool is None else layer.pool(arrays["x"].abs())
    factor = layer.bn.weight.abs() * torch.rsqrt(layer.bn.running_var + layer.bn.eps)
    magnitude = layer._apply_op(x, layer.op.weight.abs(), layer.op.bias.abs())
    shifted = magnitude + layer.bn.running_mean.abs().view(-1, 1, 1)
    return allowed(sum_error(layer.op.weight[0].numel() + 4, shifted * factor.view(-1, 1, 1) + layer.bn.bias.abs().view(-1, 1, 1)))


def assert_same(case, arrays, layer, name, got, want):
    assert got.shape == want.shape, name
    if case["exact_order_independent"].get(name, True):
        assert torch.equal(got.to(want.dtype), want), f"{name}: {(got != want).sum()} of {want.numel()} values differ"
    else:
        assert ((got - want).abs() <= allowed_difference(case, arrays, layer)).all(), name


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
    assert_same(case, arrays, layer, "y", y.detach(), arrays["y"])
    if trains:
        (y * arrays["gy"]).sum().backward()
        for i, x in enumerate(inputs):
            name = "grad_x" if "x" in arrays else f"grad_x{i}"
            assert_same(case, arrays, layer, name, x.grad, arrays[name])
        named = dict(layer.named_parameters())
        recorded = with_prefix(arrays, "grad.")
        for name, want in recorded.items():
            assert_same(case, arrays, layer, f"grad.{name}", named[name].grad, want)
        trained = {name for name, parameter in named.items() if parameter.grad is not None}
        assert trained == set(recorded), "exactly the recorded parameters receive a gradient"


BEHIND_BATCH_NORM = [c for c in LAYER_CASES if "state.bn.weight" in c["arrays"] and c["mode"].startswith("qat")]


@pytest.mark.parametrize("case", BEHIND_BATCH_NORM, ids=lambda case: case["name"])
def test_recorded_codes_behind_batch_norm_lie_away_from_the_edge_of_two_codes(case):
    """So they are the same on every processor, however it rounds batch norm's difference, factors, and sum."""
    arrays = arrays_of(case)
    layer = build(case, arrays).double()
    weight, bias = (t.double() / (1 << (case["weight_bits"] - 1)) for t in layer.quantized_weight())
    with torch.no_grad():
        codes = 128 * layer.bn(layer._apply_op(arrays["x"].double(), weight, bias)) * torch.exp2(layer.effective_shift())
    codes = codes[(codes > -1) & (codes < 128)]
    assert (codes - torch.floor(codes) - 0.5).abs().min() > 8 * U * 128


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
