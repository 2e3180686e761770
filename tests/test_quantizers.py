"""Quantizers: integer ranges, exactness, gradients; the fused functions against the two-line estimator, bit for bit."""

import numpy as np
import pytest
import torch

from qatlib.ai8x.shift import calc_weight_shift, quantile
from qatlib.quantizers import (
    FusedQuantize,
    FusedWeightQuantize,
    IntRange,
    affine_params,
    dequantize,
    fake_quantize,
    quantize,
    round_half_up,
    straight_through,
    symmetric_scale,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("bits", range(1, 33))
def test_range_of_codes(bits):
    signed, unsigned = IntRange(bits), IntRange(bits, signed=False)
    assert (signed.q_min, signed.q_max, signed.levels) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2**bits)
    assert (unsigned.q_min, unsigned.q_max) == (0, 2**bits - 1)


@pytest.mark.parametrize("bits", [0, 33, -1, 8.0, True, "8", None])
def test_impossible_bit_width_is_refused(bits):
    with pytest.raises(ValueError, match="choose a whole number from 1 to 32"):
        IntRange(bits)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 24, 25, 31, 32])
@pytest.mark.parametrize("signed", [True, False])
def test_codes_never_leave_their_range(bits, signed):
    codes = IntRange(bits, signed)
    q = quantize(torch.tensor([-3e38, 0.0, 3e38]), 1.0, bit_width=bits, signed=signed)
    assert q.tolist() == [codes.q_min, 0, codes.q_max]


@pytest.mark.parametrize("signed", [True, False])
def test_quantizing_dequantized_codes_gives_them_back(signed):
    codes = IntRange(8, signed)
    q = torch.arange(codes.q_min, codes.q_max + 1, dtype=torch.int32)
    for scale in (0.5, 2.0**-7, 0.0137, 3.3):
        for zero_point in (0, 5, -3):
            assert torch.equal(quantize(dequantize(q, scale, zero_point), scale, zero_point, signed=signed), q)


def test_error_is_at_most_half_a_step_inside_the_range():
    x = torch.linspace(-1, 127 / 128, 4001)
    assert ((fake_quantize(x, 1 / 128) - x).abs() <= 0.5 / 128).all()


def test_a_scale_for_each_channel():
    w = torch.randn(4, 3, 3, 3) * torch.tensor([0.01, 1.0, 5.0, 100.0]).view(4, 1, 1, 1)
    scale = symmetric_scale(w, dim=0)
    assert scale.shape == (4, 1, 1, 1)
    together = quantize(w, scale)
    for c in range(4):
        assert torch.equal(together[c], quantize(w[c], symmetric_scale(w[c])))
        assert together[c].abs().max() == 127


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("limits", [(-1.0, 3.0), (0.5, 3.0), (-4.0, -1.0), (-0.001, 90.0)])
def test_affine_zero_is_exact(bits, signed, limits):
    scale, zero_point = affine_params(*limits, bit_width=bits, signed=signed)
    codes = IntRange(bits, signed)
    assert codes.q_min <= zero_point <= codes.q_max
    q = quantize(torch.zeros(3), scale, zero_point, bits, signed)
    assert torch.equal(q, zero_point.expand(3)) and torch.equal(dequantize(q, scale, zero_point), torch.zeros(3))
    ends = fake_quantize(torch.tensor(limits), scale, zero_point, bits, signed)
    assert (ends - torch.tensor(limits)).abs().max() <= scale, "the range is covered to one step"


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scale_is_refused(scale):
    for call in (quantize, dequantize, fake_quantize):
        with pytest.raises(ValueError, match="every scale must be finite and above 0"):
            call(torch.ones(2), scale)


def test_nan_and_swapped_ranges_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(torch.tensor([1.0, float("nan")]), 0.1)
    with pytest.raises(ValueError, match="swap them"):
        affine_params(2.0, 1.0)
    with pytest.raises(ValueError, match="all zero"):
        quantize(torch.zeros(3), symmetric_scale(torch.zeros(3)))


def test_straight_through_is_exact_where_the_popular_form_is_not():
    x, rounded = torch.tensor([2.0**24], requires_grad=True), torch.tensor([1.0])
    assert torch.equal(straight_through(x, rounded), rounded)
    tiny = torch.tensor([1e-8])
    assert torch.equal(straight_through(torch.tensor([3.0]), tiny), tiny)
    assert not torch.equal(torch.tensor([3.0]) + (tiny - torch.tensor([3.0])), tiny)


def test_ties_go_up_and_differ_from_torch_round():
    halves = torch.arange(-4, 5) + 0.5
    assert round_half_up(halves).tolist() == [-3, -2, -1, 0, 1, 2, 3, 4, 5]
    assert not torch.equal(round_half_up(halves), torch.round(halves))


def test_powers_of_two_are_exact():
    n = torch.arange(-126, 128, dtype=torch.float32)
    want = torch.from_numpy(np.ldexp(np.float32(1), n.int().numpy()).astype(np.float32))
    assert torch.equal(torch.exp2(n), want)
    assert torch.equal(torch.stack([torch.exp2(v.reshape(1)) for v in n]).flatten(), want), "vectorised or not"


# --- the fused functions ------------------------------------------------------------------------------------------


def near_everything(factor, limit, n=4096):
    """Values inside, outside and at the ends of the range, at ties, and one float32 beside each of those."""
    random = torch.randn(n) * limit / factor
    ties = (torch.arange(-300.0, 300.0) + 0.5) / factor
    ends = torch.tensor([-limit - 1, -limit - 0.5, -limit, limit - 1, limit - 0.5, limit, 0.5, 0.0, -0.5]) / factor
    exact = torch.cat([ties, ends, ends * (1 + 2**-20)])
    infinity = torch.tensor(torch.inf)
    return torch.cat([random, exact, torch.nextafter(exact, infinity), torch.nextafter(exact, -infinity)])


def two_lines(x, factor, q_min, q_max):
    return straight_through(x, round_half_up(x * factor) / factor).clamp(q_min / factor, q_max / factor)


@pytest.mark.parametrize("final", [1.0, 0.25, 8.0])
@pytest.mark.parametrize("activation", [None, "ReLU", "Abs"])
@pytest.mark.parametrize("factor, q_min, q_max", [(128.0, -128.0, 127.0), (2.0**14, -(2.0**29), 2.0**29)], ids=["narrow", "wide"])
def test_fused_activation_equals_two_lines(factor, q_min, q_max, activation, final):
    limit = min(-q_min, 2.0**22)
    values, upstream = near_everything(factor, limit), None
    grads = []
    for fused in (True, False):
        x = values.clone().requires_grad_(True)
        a = x.abs() if activation == "Abs" else x
        if fused:
            y = FusedQuantize.apply(a, factor, q_min, q_max, activation == "ReLU", final)
        else:
            a = a.relu() if activation == "ReLU" else a
            y = two_lines(a, factor, q_min, q_max) * final
        upstream = torch.randn_like(y) if upstream is None else upstream
        y.backward(upstream)
        grads.append((y.detach(), x.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])
    assert (grads[0][1] != 0).any() and (activation != "ReLU" or (grads[0][1] == 0).any())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [1.0, 0.995, 0.9, 0.6])
@pytest.mark.parametrize("gain", [1.0, 2.0**-5, 2.0**9])
def test_fused_weight_equals_two_lines(bits, share, gain):
    half = 1 << (bits - 1)
    values = torch.cat([near_everything(half, half), torch.randn(500)])
    scale = torch.exp2(-calc_weight_shift(values, share))
    values = torch.cat([values, near_everything(half, half) / scale])
    upstream, got = torch.randn_like(values), []
    for fused in (True, False):
        w = values.clone().requires_grad_(True)
        if fused:
            (y,) = FusedWeightQuantize.apply(scale, torch.tensor([gain]), bits, w)
        else:
            y = two_lines(w * scale, half, -half, half - 1) * gain
        y.backward(upstream)
        got.append((y.detach(), w.grad))
    assert torch.equal(got[0][0], got[1][0]) and torch.equal(got[0][1], got[1][1])
    assert (got[0][1] == 0).any() and (got[0][1] != 0).any()


@pytest.mark.parametrize("kind", ["random", "ties", "sorted", "constant"])
def test_quantile_equals_torch(kind):
    sizes = [1, 2, 3, 4, 5, 7, 10, 63, 64, 65, 100, 333, 1000, 1001, 4999, 5000]
    for n in sizes:
        x = torch.rand(n)
        x = {"random": x, "ties": (x * 5).floor(), "sorted": x.sort().values, "constant": torch.full((n,), 0.3)}[kind]
        for q in (0.001, 0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 0.985, 0.99, 0.995, 0.9999, 1.0):
            q = float(np.float32(q))
            assert torch.equal(quantile(x, q), torch.quantile(x, q).reshape(1)), (n, q)


@pytest.mark.parametrize("share", [0.6, 0.985, 0.995, 1.0])
def test_quantile_of_a_large_layer_and_input_unchanged(share):
    x = torch.randn(147_584).abs()
    before = x.clone()
    assert torch.equal(quantile(x, share), torch.quantile(x, share).reshape(1))
    assert torch.equal(x, before), "selecting reorders a copy"
