"""Random layers: training arithmetic equals the chip's integers, gradients equal the written-out estimator, bit for bit.

HYPOTHESIS_PROFILE=full runs ten times as many examples.
"""

import math
import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib import ai8x
from qatlib.ai8x.shift import calc_weight_shift
from qatlib.export import quantize_checkpoint
from qatlib.quantizers import FusedQuantize, FusedWeightQuantize, round_half_up, straight_through

FACTOR = 10 if os.environ.get("HYPOTHESIS_PROFILE") == "full" else 1
MANY = settings(max_examples=500 * FACTOR, deadline=None, derandomize=True, database=None)
SOME = settings(max_examples=100 * FACTOR, deadline=None, derandomize=True, database=None)
BITS = st.sampled_from([1, 2, 4, 8])
SHARES = st.one_of(st.just(1.0), st.sampled_from([0.995, 0.985, 0.9, 0.6]), st.floats(0.6, 1.0))


@st.composite
def recipes(draw, activations=(None, "ReLU")):
    """Class name, constructor arguments, quantization, and what else a random layer and its input need."""
    kinds = ["Conv2d", "ConvTranspose2d", "Conv1d", "Linear"]
    kinds += ["DepthwiseConv2d", "DepthwiseConvTranspose2d"] if None in activations else []  # there is no depthwise Abs
    kind = draw(st.sampled_from(kinds))
    depthwise, transposed = kind.startswith("Depthwise"), kind.endswith("Transpose2d")
    pool = draw(st.sampled_from(["", "MaxPool", "AvgPool"])) if kind != "Linear" else ""
    activation = draw(st.sampled_from([a for a in activations if not (depthwise and a == "Abs")]))
    wide = activation is None and draw(st.booleans())
    kwargs = {"bias": draw(st.booleans()), "wide": wide}
    size = draw(st.integers(5, 9)) + 3 * bool(pool)
    if kind == "Conv1d":
        kernel = draw(st.integers(1, 5))
        kwargs["padding"] = draw(st.integers(0, 2))
        kwargs["dilation"] = draw(st.integers(1, 4)) if kernel <= 3 else 1
        size += 16
    elif kind != "Linear":
        kernel = 3 if transposed else draw(st.sampled_from([1, 3]))
        kwargs["padding"] = draw(st.integers(0, 2)) if kernel == 3 else 0
        kwargs |= {"stride": 2} if transposed else {}
    if pool:
        kwargs |= {"pool_size": draw(st.integers(1, 3)), "pool_stride": draw(st.integers(1, 2))}
    c_in = draw(st.integers(1, 8))
    channels = c_in, c_in if depthwise else draw(st.integers(1, 6))
    name = f"Fused{pool}{kind}{activation or ''}" if pool or activation else kind
    return {
        "name": name, "args": channels if kind == "Linear" else (*channels, kernel), "kwargs": kwargs,
        "shape": {"Linear": (), "Conv1d": (size,)}.get(kind, (size, size)), "bits": draw(BITS), "share": draw(SHARES),
        "threshold": draw(st.integers(-3, 4)), "final": draw(st.integers(-2, 3)), "magnitude": 2.0 ** draw(st.integers(-4, 3)),
        "round_avg": draw(st.booleans()), "seed": draw(st.integers(0, 2**31)),
        "device": 87 if depthwise else draw(st.sampled_from([85, 87])),
    }  # fmt: skip


def qat_layer(recipe):
    """The layer in QAT and a batch of inputs on the grid, one in eight at the ends of the range."""
    ai8x.set_device(recipe["device"], False, recipe["round_avg"], verbose=False)
    torch.manual_seed(recipe["seed"])
    layer = getattr(ai8x, recipe["name"])(*recipe["args"], **recipe["kwargs"])
    with torch.no_grad():
        for parameter in layer.op.parameters():
            parameter.copy_(torch.randn(parameter.shape) * recipe["magnitude"])
        layer.activation_threshold.fill_(recipe["threshold"])
        layer.final_scale.fill_(recipe["final"])
    layer.init_module(recipe["bits"], recipe["bits"], True, False, recipe["share"])
    codes = torch.randint(-128, 128, (2, recipe["args"][0], *recipe["shape"])).float()
    ends = torch.rand(codes.shape)
    return layer, codes.where(ends > 1 / 16, -128.0).where(ends < 15 / 16, 127.0)


def simulated(layer, recipe, codes):
    """The chip's integers for the same layer: its checkpoint quantized, loaded into a simulating layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # below 8 bits the corrected shift differs from the vendor's, which is announced
        state = quantize_checkpoint({f"0.{key}": value for key, value in layer.state_dict().items()}, correct_shift=True)
    ai8x.set_device(recipe["device"], True, recipe["round_avg"], verbose=False)
    chip = getattr(ai8x, recipe["name"])(*recipe["args"], weight_bits=8, bias_bits=8, quantize_activation=True, **recipe["kwargs"])
    chip.load_state_dict({key.removeprefix("0."): value for key, value in state.items()})
    ai8x.update_model(chip)
    with torch.no_grad():
        y = chip(codes)
    ai8x.set_device(recipe["device"], False, recipe["round_avg"], verbose=False)
    return y


def unit(layer, recipe) -> float:
    """Codes of an output of 1.0."""
    return 2.0 ** (6 + recipe["bits"]) if layer.wide else 128.0


@MANY
@given(recipes())
def test_training_equals_the_chip(recipe):
    layer, codes = qat_layer(recipe)
    with torch.no_grad():
        y, evaluated = layer(codes / 128), layer.eval()(codes / 128)
    got, final = y.double() * unit(layer, recipe), 2.0 ** recipe["final"]
    assert torch.equal(y, evaluated), "training and evaluation mode compute the same"
    assert torch.equal(got, simulated(layer, recipe, codes).double())
    assert torch.equal(got / final, (got / final).round()), "values lie on the grid"
    if not layer.wide:
        assert got.min() >= (0 if layer.activation else -128) * final and got.max() <= 127 * final


@SOME
@given(st.sampled_from(["Add", "Sub"]), st.integers(1, 5), st.integers(0, 2**31))
def test_sums_equal_the_chip_and_mask_where_they_saturate(name, operands, seed):
    torch.manual_seed(seed)
    codes = [torch.randint(-128, 128, (2, 3, 4)).float() for _ in range(operands)]
    total = codes[0] + (1 if name == "Add" else -1) * sum(codes[1:], torch.zeros(()))
    layer, inputs = getattr(ai8x, name)(), [(c / 128).requires_grad_() for c in codes]
    layer.set_clamp(True)
    y = layer(*inputs)
    y.sum().backward()
    assert torch.equal(y.detach() * 128, total.clamp(-128, 127))
    inside = ((total >= -128) & (total <= 127)).float()
    for i, x in enumerate(inputs):
        assert torch.equal(x.grad, inside if i == 0 or name == "Add" else -inside)
    ai8x.set_device(85, True, verbose=False)
    assert torch.equal(layer(*codes), y.detach() * 128)
    ai8x.set_device(85, verbose=False)


def written_out(layer, x):
    """The forward pass of section 3 as it reads, every rounding a straight-through step, every clamp torch's own."""
    x = layer.pool(x) if layer.pool is not None else x
    if layer.pooling == "Avg":
        x = straight_through(x, (torch.round if layer.round_avg else torch.trunc)(x * 128) / 128).clamp(-1, 127 / 128)
    parameters = torch.cat([p.detach().flatten() for p in layer.op.parameters()]).abs()
    limit = torch.quantile(parameters, layer.shift_quantile.item())
    shift = -torch.clamp(torch.floor(torch.log2(1 / limit)), -15, 15)
    half = 1 << (layer.weight_bits.item() - 1)

    def quantized(w):
        w = w * torch.exp2(-shift)
        return straight_through(w, round_half_up(w * half) / half).clamp(-1, 1 - 1 / half)

    op, bias = layer.op, None if layer.op.bias is None else quantized(layer.op.bias)
    if isinstance(op, torch.nn.Linear):
        y = F.linear(x, quantized(op.weight), bias)
    elif isinstance(op, torch.nn.ConvTranspose2d):
        y = F.conv_transpose2d(x, quantized(op.weight), bias, op.stride, op.padding, op.output_padding, op.groups)
    else:
        conv = F.conv1d if isinstance(op, torch.nn.Conv1d) else F.conv2d
        y = conv(x, quantized(op.weight), bias, op.stride, op.padding, op.dilation, op.groups)
    if not layer.wide:
        y = y * torch.exp2(torch.clamp(shift - layer.activation_threshold, -15, 15))
    y = {"ReLU": torch.relu, "Abs": torch.abs, None: lambda v: v}[layer.activation](y)
    factor, low, high = (2**14, -(2.0**15), 2.0**15) if layer.wide else (128, -1, 127 / 128)
    y = straight_through(y, round_half_up(y * factor) / factor).clamp(low, high)
    return y * torch.exp2(layer.final_scale)


@MANY
@given(recipes(activations=(None, "ReLU", "Abs")))
def test_gradients_equal_the_written_out_estimator(recipe):
    layer, codes = qat_layer(recipe)
    upstream, results = None, []
    for forward in (layer, lambda x: written_out(layer, x)):
        layer.zero_grad(set_to_none=True)
        x = (codes / 128).requires_grad_(True)
        y = forward(x)
        # upstream gradients of few bits, so that every sum is exact in whatever order it is taken
        upstream = torch.randint(-4, 5, y.shape).float() if upstream is None else upstream
        y.backward(upstream)
        results.append([y.detach(), x.grad, *(p.grad for p in layer.op.parameters())])
    for got, want in zip(*results):
        assert torch.equal(got, want)
    assert all(getattr(layer, n).grad is None for n in ("output_shift", "activation_threshold", "final_scale"))


@SOME
@given(recipes(activations=("Abs",)))
def test_abs_in_simulate_differs_by_one_code_and_only_where_stated(recipe):
    """The vendor's simulation floors before the absolute value. A negative accumulator v (in codes) gives R(|v|) in training, but
    R(|floor(128 v) / 128|) in simulate: one code more exactly where |v| lies below a tie and its floor reaches it."""
    layer, codes = qat_layer(recipe)
    with torch.no_grad():
        trained = layer(codes / 128) * 128 / 2.0 ** recipe["final"]
        simulate = simulated(layer, recipe, codes) / 2.0 ** recipe["final"]
        layer.activation = None
        layer.init_module(recipe["bits"], recipe["bits"], True, False, recipe["share"])
        weight, bias = (None if t is None else t / 2.0 ** (recipe["bits"] - 1) for t in layer.quantized_weight())
        acc = layer._apply_op(layer._pool(codes / 128) if layer.pool is not None else codes / 128, weight, bias)
    v = acc.double() * 128 * torch.exp2(layer.effective_shift()).double()
    predicted = round_half_up((torch.floor(v * 128) / 128).abs()).clamp(max=127)
    assert torch.equal(trained.double(), round_half_up(v.abs()).clamp(max=127))
    assert torch.equal(simulate.double(), predicted)
    differs = simulate != trained
    assert ((simulate - trained)[differs] == 1).all() and (v[differs] < 0).all()


def test_abs_has_such_a_case():
    """Found by trying all inputs: |v| is below 1/2, so training rounds to 0; simulate's floor reaches 1/2 and gives 1."""
    layer = ai8x.FusedConv2dAbs(1, 1, 1, bias=True, weight_bits=8, bias_bits=8, quantize_activation=True)
    with torch.no_grad():
        layer.op.weight.fill_(127 / 128)
        layer.op.bias.fill_(0)
        layer.activation_threshold.fill_(8)
    recipe = {"name": "FusedConv2dAbs", "args": (1, 1, 1), "kwargs": {}, "device": 85, "round_avg": False}
    for code in range(-128, 0):
        codes = torch.full((1, 1, 1, 1), float(code))
        v = code * 127 / 128 * 2.0**-8
        want = math.floor(abs(math.floor(v * 128) / 128) + 0.5)
        assert simulated(layer, recipe, codes).item() == want
        if want != (layer(codes / 128) * 128).item():
            assert want == 1 and math.floor(abs(v) + 0.5) == 0
            return
    pytest.fail("no input showed the difference")


@SOME
@given(st.integers(1, 300), SHARES, st.integers(-12, 12), st.integers(0, 2**31))
def test_the_shift_is_the_smallest_power_of_two(n, share, exponent, seed):
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    shift = calc_weight_shift(values, share)
    limit = torch.quantile(values.abs(), share).item()
    assert shift.shape == (1,) and -15 <= shift.item() <= 15
    assert limit <= 2.0 ** shift.item() or shift.item() == 15
    assert limit > 2.0 ** (shift.item() - 1) or shift.item() == -15


@SOME
@given(BITS, st.integers(-6, 6), st.integers(0, 2**31))
def test_quantizing_twice_changes_nothing(bits, exponent, seed):
    w = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    scale, one = torch.exp2(-calc_weight_shift(w)), torch.ones(1)
    once = FusedWeightQuantize.apply(scale, one, bits, w)[0] / scale
    assert torch.equal(FusedWeightQuantize.apply(scale, one, bits, once)[0] / scale, once)
    y = FusedQuantize.apply(w, 128.0, -128.0, 127.0, False, 1.0)
    assert torch.equal(FusedQuantize.apply(y, 128.0, -128.0, 127.0, False, 1.0), y)


# --- sums beyond float32 ------------------------------------------------------------------------------------------


def worst_layer(wide, bits=8):
    """The largest legal fan-in, 1024 channels x 3 x 3, with weights and data of one sign: sums far above 2^24."""
    ai8x.set_device(85, True, False, verbose=False)
    layer = ai8x.Conv2d(1024, 2, 3, wide=wide, bias=True, weight_bits=8, bias_bits=8, quantize_activation=True)
    half = 1 << (bits - 1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-half, max(-half // 2, -half + 1), layer.op.weight.shape, generator=generator)
    bias = torch.tensor([-half, half - 1]) * half
    codes = torch.randint(-128, -64, (1, 1024, 3, 3), generator=generator)
    layer.op.weight.data, layer.op.bias.data = weight.float(), bias.float()
    layer.weight_bits.data.fill_(bits)
    layer.bias_bits.data.fill_(bits)
    layer.output_shift.data.fill_(-15.0 + 8 - bits)
    layer.set_functions()
    products = [sum(a * b for a, b in zip(w, codes.flatten().tolist())) for w in weight.flatten(1).tolist()]
    return layer, codes.float(), [p + b * 128 // half for p, b in zip(products, bias.tolist())]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_simulate_is_exact_for_the_worst_legal_layer(bits):
    layer, codes, want = worst_layer(True, bits)
    y = layer(codes)
    assert y.dtype == torch.float64 and y.flatten().tolist() == want
    assert bits < 8 or min(want) > 2**24
    layer, codes, want = worst_layer(False, bits)
    shift = (bits - 1) - int(layer.output_shift.item())  # of the sum of products, to the right
    y = layer(codes)
    assert y.dtype == torch.float32
    assert y.flatten().tolist() == [min(127, (w + (1 << (shift - 1))) >> shift) for w in want]


def test_the_vendors_float32_accumulator_is_inexact_there():
    layer, codes, want = worst_layer(True)
    ai8x.set_device(85, simulate=True, verbose=False, accumulator=torch.float32)
    y = layer(codes)
    assert y.dtype == torch.float32 and y.flatten().tolist() != want
    assert max(abs(a - b) for a, b in zip(y.flatten().tolist(), want)) < 2**-10 * max(want)
