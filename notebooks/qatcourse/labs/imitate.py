"""Layers of lesson 10: one quantized in place of its float original, and what is measured at others."""

import copy

import torch
from torch import nn

from qatlib import ai8x, quantize_checkpoint


def student_layer(teacher, inputs, weight_bits: int, shift_quantile: float = 1.0):
    """A quantized copy of one ai8x convolution with ReLU (batch norm fused), calibrated on `inputs`.

    Its output is in the teacher's units: `final_scale`, a power of two, undoes the threshold of its activations.
    """
    op = teacher.op
    layer = ai8x.FusedConv2dReLU(op.in_channels, op.out_channels, op.kernel_size, padding=op.padding)
    layer.op.load_state_dict(op.state_dict())
    policy = {"weight_bits": weight_bits, "shift_quantile": shift_quantile}
    ai8x.start_qat(nn.Sequential(layer), [(inputs,)], policy, progress=False)
    return layer


def on_grid(y) -> float:
    """Share of values that are multiples of 1/128."""
    return (y * 128 == (y * 128).round()).float().mean().item()


def at_the_end(y) -> float:
    """Share of outputs at the end of their range, 127/128."""
    return (y >= 127 / 128).float().mean().item()


def arrived(layer, x, bias: float) -> float:
    """The gradient that arrives at a layer's bias from the sum of its outputs; all of them lie near `bias`."""
    layer = copy.deepcopy(layer)
    layer.op.weight.data *= 0.01
    layer.op.bias.data.fill_(bias)
    (layer(x) * 2**layer.activation_threshold).sum().backward()  # in QAT an output of 1 means 2^t
    return layer.op.bias.grad.sum().item()


def larger(layer, factor: float):
    """A copy of a layer, weights and biases times `factor`."""
    layer = copy.deepcopy(layer)
    for parameter in layer.op.parameters():
        parameter.data *= factor
    return layer


def error(layer, x, wanted, change: int) -> float:
    """Relative squared error of a layer's outputs, its shift greater by `change`."""
    layer = copy.deepcopy(layer)
    layer.activation_threshold.data -= change
    y = layer(x).detach() * 2**layer.activation_threshold
    return ((y - wanted).square().mean() / wanted.square().mean()).item()


def code(layer) -> float:
    """What one code of an 8-bit layer's weights is worth."""
    return 2 ** layer.weight_shift().item() / 128


def used(layer) -> float:
    """Share of the range that the largest weight or bias uses."""
    return max(p.abs().max().item() for p in layer.op.parameters()) / 2 ** layer.weight_shift().item()


def rounding_error(layer) -> float:
    """What rounding does to a layer's weights, relative to them."""
    rounded = layer.quantized_weight()[0] * 2 ** layer.weight_shift() / 128
    return ((rounded - layer.op.weight).norm() / layer.op.weight.norm()).item()


def simulated(network, x) -> tuple[torch.Tensor, list]:
    """conv1 and conv2 with the exported integers and simulate=True: (outputs, gradients at both weights). It is off afterwards."""
    chip, integers = copy.deepcopy(network), quantize_checkpoint(network.state_dict())
    ai8x.set_device(device=85, simulate=True, round_avg=False)
    try:
        chip.load_state_dict(integers)
        ai8x.update_model(chip)
        outputs = chip.conv2(chip.conv1(x * 128))
        outputs.sum().backward()
    finally:
        ai8x.set_device(device=85, simulate=False, round_avg=False)
    return outputs, [layer.op.weight.grad for layer in (chip.conv1, chip.conv2)]


def pooled(codes: list[int]) -> float:
    """Four codes, averaged by the pooling of a layer in QAT, as a code."""
    pool = ai8x.AvgPool2d(2)
    pool.init_module(8, 8, True)
    return pool(torch.tensor(codes).view(1, 1, 2, 2) / 128).item() * 128
