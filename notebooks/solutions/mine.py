"""Quantization-aware training by hand: the pieces written in lessons 01 to 07, each used by those after it."""

import copy

import torch
from torch import nn
from torch.func import functional_call


def my_quantize(x, scale, bit_width):
    half = 2 ** (bit_width - 1)
    return torch.floor(x / scale + 0.5).clamp(-half, half - 1)


def my_dequantize(q, scale):
    return scale * q


def my_shift(weights):
    return weights.abs().max().log2().ceil().clamp(-15, 15)


def my_straight_through(x, rounded):
    return rounded.detach() + (x - x.detach())


def my_fake_quantize(x, scale, q_min, q_max):
    codes = my_straight_through(x / scale, torch.floor(x / scale + 0.5))
    return my_dequantize(codes.clamp(q_min, q_max), scale)


def my_fuse(weight, bias, mean, var, gamma, beta, eps):
    r = torch.rsqrt(var + eps)
    return weight * (gamma * r).view(-1, 1, 1, 1), (bias - mean) * r * gamma + beta


def my_threshold(y):
    y = y[(y - y.mean()).abs() <= 8 * y.std()]
    most = int(y.abs().max().log2().ceil())
    errors = {}
    for t in range(most, most - 5, -1):
        scale = 2.0**t / 128
        errors[t] = (my_dequantize(my_quantize(y, scale, 8), scale) - y).square().mean()
    return min(errors, key=errors.get)


def my_weight_shift(weight, bias):
    return my_shift(torch.cat([weight.detach().flatten(), bias.detach().flatten()]))


class MyLayer(nn.Module):
    def __init__(self, op, relu=True, wide=False):
        super().__init__()
        self.op, self.relu, self.wide = op, relu, wide
        self.bit_width, self.t = None, 0  # None: float

    def forward(self, x):
        weight, bias = self.op.weight, self.op.bias
        if self.bit_width:
            half = 2 ** (self.bit_width - 1)
            scale = 2.0 ** my_weight_shift(weight, bias) / half
            weight = my_fake_quantize(weight, scale, -half, half - 1)
            bias = my_fake_quantize(bias, scale, -half, half - 1)
        y = functional_call(self.op, {"weight": weight, "bias": bias}, x) / 2.0**self.t
        y = y.relu() if self.relu else y
        return my_fake_quantize(y, 1 / 128, -128, 127) if self.bit_width and not self.wide else y


def my_output_code(accumulator, shift):
    shifted = torch.floor(accumulator * 2.0**shift)
    return torch.floor(shifted.clamp(min=0) / 128 + 0.5).clamp(max=127)


def my_network(net):
    net = copy.deepcopy(net)
    for name, layer in net.named_children():
        if not hasattr(layer, "op"):
            continue  # a sum
        op, bn = layer.op, layer.bn
        if bn is not None:
            out = 1 if isinstance(op, nn.ConvTranspose2d) else 0  # where the output channels are
            batch_norm = bn.running_mean, bn.running_var, bn.weight.data, bn.bias.data, bn.eps
            weight, op.bias.data = my_fuse(op.weight.data.transpose(0, out), op.bias.data, *batch_norm)
            op.weight.data = weight.transpose(0, out)
        made = MyLayer(op, relu=layer.activation == "ReLU", wide=layer.wide)
        setattr(net, name, nn.Sequential(layer.pool, made) if layer.pool else made)
    return net


def my_calibrate(net, x):
    thresholds, hooks = {}, []
    for name, layer in net.named_children():

        def measure(layer, inputs, y, name=name):
            thresholds[name] = my_threshold(y)

        hooks.append(layer.register_forward_hook(measure))
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return thresholds


def my_ptq(net, thresholds, source, bit_width):
    for name, before in source.items():
        layer = getattr(net, name)
        layer = layer[-1] if isinstance(layer, nn.Sequential) else layer
        layer.op.bias.data /= 2.0 ** thresholds[before]
        layer.t = thresholds[name] - thresholds[before]
        layer.bit_width = bit_width


def my_train(net, loss_function, optimizer, batches):
    losses = []
    for rate, x, *labels in batches:
        optimizer.param_groups[0]["lr"] = rate
        loss = loss_function(net(x), *labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def my_integer_layer(x, weight, bias, e):
    x, weight, bias = x.double(), weight.double(), 128 * bias.double()
    return my_output_code(torch.nn.functional.conv2d(x, weight, bias, padding=1), e)
