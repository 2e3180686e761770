"""Float, float with clamp, QAT and simulate: what each mode computes, and what switching between them needs."""

import pytest
import torch

from qatlib import ai8x

QAT8 = {"weight_bits": 8, "bias_bits": 8, "quantize_activation": True}


def conv(**kwargs):
    layer = ai8x.Conv2d(4, 3, 3, padding=1, **kwargs)
    with torch.no_grad():
        layer.op.weight.mul_(20)
    return layer


def test_float_is_plain_torch_without_clamp():
    layer, x = conv(), torch.randn(2, 4, 6, 6)
    y = layer(x)
    assert torch.equal(y, layer.op(x)) and y.abs().max() > 1
    relu = ai8x.FusedConv2dBNReLU(4, 3, 3)
    assert torch.equal(relu.eval()(x), torch.relu(relu.bn(relu.op(x))))


def test_float_with_clamp():
    layer, x = conv(), torch.randn(2, 4, 6, 6)
    layer.init_module(None, None, False, True)
    assert torch.equal(layer(x), layer.op(x).clamp(-1, 127 / 128))
    wide = conv(wide=True)
    wide.init_module(None, None, False, True)
    assert torch.equal(wide(x * 1e5), wide.op(x * 1e5).clamp(-(2.0**15), 2.0**15))


def test_clamp_passes_the_gradient_at_its_ends_only_inside():
    add = ai8x.Add()
    add.set_clamp(True)
    a = torch.tensor([-1.0, -129 / 128, 127 / 128, 1.0, 0.5], requires_grad=True)
    add(a, torch.zeros(5)).sum().backward()
    assert a.grad.tolist() == [1, 0, 1, 0, 1]


def test_threshold_and_final_scale_cancel_before_qat():
    layer, x = conv(), torch.randn(2, 4, 6, 6)
    want = layer(x)
    layer.activation_threshold.data.fill_(3.0)
    layer.final_scale.data.fill_(3.0)
    layer.set_functions()
    assert torch.equal(layer(x), want)


def test_batch_norm_inside_qat_stays_between_convolution_and_shift():
    layer = ai8x.FusedConv2dBNReLU(4, 3, 3, **QAT8)
    x = torch.randint(-128, 128, (2, 4, 6, 6)) / 128
    weight, bias = layer.quantized_weight()
    layer.eval()
    layer.bn.running_mean.copy_(torch.randn(3))
    conv = torch.nn.functional.conv2d(x, weight / 128, bias / 128)
    y = layer.bn(conv) * torch.exp2(layer.effective_shift())
    assert torch.equal(layer(x), (torch.relu(y) * 128 + 0.5).floor().clamp(0, 127) / 128)


def test_replacing_a_parameter_is_seen_after_update_model():
    layer = conv(**QAT8)
    x = torch.randint(-128, 128, (2, 4, 6, 6)) / 128
    assert layer(x).abs().max() <= 1
    layer.final_scale.data = torch.tensor(4.0)
    layer.weight_bits.data = torch.tensor([2])
    layer.bias_bits.data = torch.tensor([2])
    ai8x.update_model(layer)
    y = layer(x)
    assert y.abs().max() > 1 and set(layer.quantized_weight()[0].unique().tolist()) <= {-2, -1, 0, 1}


def test_loading_a_checkpoint_is_seen_without_further_calls():
    source, target = conv(**QAT8), conv()
    source.activation_threshold.data.fill_(2.0)
    source.set_functions()
    x = torch.randint(-128, 128, (2, 4, 6, 6)) / 128
    target(x)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))


def test_the_shift_follows_the_weights():
    layer = conv(**QAT8)
    before = layer.weight_shift().item()
    with torch.no_grad():
        for parameter in layer.op.parameters():
            parameter.mul_(4)
    assert layer.weight_shift().item() == before + 2 and layer.output_shift.item() == 0


def test_master_weights_are_not_touched_by_the_forward_pass():
    layer = conv(**QAT8)
    before = [p.clone() for p in layer.parameters()]
    layer(torch.zeros(1, 4, 4, 4)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters()))


@pytest.mark.parametrize("rounding, want", [(False, [-1.0, 1.0, 0.0]), (True, [-2.0, 2.0, 0.0])])
def test_average_pools_round_also_without_flags_when_simulating(rounding, want):
    """A pool built without quantization arguments, as networks do, rounds on the chip all the same."""
    ai8x.set_device(85, True, rounding, verbose=False)
    x = torch.tensor([[[[-2.0, -1.0], [-2.0, -1.0]]], [[[2.0, 1.0], [2.0, 1.0]]], [[[1.0, 0.0], [1.0, 0.0]]]])
    assert ai8x.AvgPool2d(2)(x).flatten().tolist() == want
    pooled = ai8x.FusedAvgPoolConv2d(1, 1, 1, bias=False)
    pooled.op.weight.data.fill_(1.0)
    pooled.output_shift.data.fill_(7.0)
    pooled.set_functions()
    assert pooled(x).flatten().tolist() == want


def test_average_pool_gradient_is_that_of_the_average():
    pool = ai8x.AvgPool2d(2, **QAT8)
    x = (torch.randint(-128, 128, (1, 1, 4, 4)) / 128).requires_grad_(True)
    pool(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 0.25))


def test_eltwise_in_every_mode():
    a, b, c = torch.tensor([100.0, -100.0, 100.0]), torch.tensor([100.0, -100.0, 3.0]), torch.tensor([-100.0, 100.0, 1.0])
    add, sub = ai8x.Add(), ai8x.Sub()
    assert add(a, b).tolist() == [200, -200, 103], "no clamp before QAT"
    add.set_clamp(True)
    assert torch.equal(add(a / 128, b / 128) * 128, torch.tensor([127.0, -128.0, 103.0]))
    assert (add(a / 128, b / 128, c / 128) * 128).tolist() == [100, -100, 104], "one clamp at the end"
    assert add(a / 128).tolist() == (a / 128).tolist()
    ai8x.set_device(85, True, False, verbose=False)
    assert ai8x.Add()(a, b).tolist() == [127, -128, 103] and sub(a, b, c).tolist() == [100, -100, 96]
    with pytest.raises(TypeError, match="use Add, Sub"):
        ai8x.Eltwise()(a, b)


def test_bit_operations_read_half_ranges_as_bytes():
    a, b = torch.tensor([0b1100, 0b1111]) / 256 - 0.5, torch.tensor([0b1010, 0b1111]) / 256 - 0.5
    assert ((ai8x.BitwiseXor()(a, b) + 0.5) * 256).tolist() == [0b0110, 0]
    assert ((ai8x.BitwiseOr()(a, b) + 0.5) * 256).tolist() == [0b1110, 0b1111]


def test_one_model_in_both_modes():
    """`set_device` switches a built model at once; `update_model` also renews what was fixed when it was built."""
    layer = conv()
    layer.init_module(8, 8, True)
    x = torch.randint(-128, 128, (1, 4, 4, 4)).float()
    trained = layer(x / 128)
    assert layer.adjust_output_shift.item()
    weight, bias = layer.quantized_weight()
    shift = layer.effective_shift()
    ai8x.set_device(85, True, False, verbose=False)
    chip = ai8x.Conv2d(4, 3, 3, padding=1, **QAT8)
    assert not chip.adjust_output_shift.item(), "the chip's shift is stored"
    chip.op.weight.data, chip.op.bias.data, chip.output_shift.data = weight, bias * 128, shift
    ai8x.update_model(chip)
    assert torch.equal(chip(x) / 128, trained)


def test_printing_the_device():
    ai8x.set_device(87, True, True, verbose=False)
    assert str(ai8x.dev) == "Device 87 (MAX78002), simulate=True, round_avg=True"


def test_simulate_scales_the_bias_by_weight_bits_whatever_bias_bits_says():
    """Section 2 of the vendor's quantizers: with 4-bit weights a stored bias of 128 is 128 * 2^8 of the accumulator's units."""
    ai8x.set_device(85, True, verbose=False)
    layer = ai8x.Conv2d(3, 2, 1, weight_bits=4, bias_bits=8, quantize_activation=True)
    layer.op.weight.data.zero_()
    layer.op.bias.data.copy_(torch.tensor([128.0, 8.0]))
    assert layer(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [127.0, 16.0]
