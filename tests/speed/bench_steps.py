"""What QAT costs: training steps of the same network quantized, plain, and with torch's own fake quantization.

The machine's other work moves all variants alike, because they take turns: every round runs one step of each, in an order that
rotates.
"""

import copy
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from qatcourse.viz import table
from qatlib import ai8x
from qatlib.ai8x.qat import layers

QAT, QAT_QUANTILE, BN, NO_BN, TORCH_FAKE = (
    "qatlib QAT", "qatlib QAT, shift_quantile 0.995", "torch conv+BN+ReLU", "torch conv+ReLU", "torch fake_quantize",
)  # fmt: skip


class Nine(nn.Module):
    """Nine 3x3 convolutions, five max-pools and a linear layer: (N, 3, 64, 64) -> (N, 10); 395,306 parameters."""

    input_shape = (3, 64, 64)
    channels = (3, 16, 32, 64, 64, 64, 128, 64, 128, 64)
    pooled = (1, 2, 4, 6, 8)

    def __init__(self, width: float = 1.0):
        super().__init__()
        channels = [3, *(int(width * c) for c in self.channels[1:])]
        self.body = nn.Sequential()
        for i, (c_in, c_out) in enumerate(zip(channels, channels[1:])):
            layer = ai8x.FusedMaxPoolConv2dBNReLU if i in self.pooled else ai8x.FusedConv2dBNReLU
            self.body.append(layer(c_in, c_out, 3, padding=1))
        self.head = ai8x.Linear(4 * channels[-1], 10, bias=True, wide=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1))


class TorchFakeQuantize(nn.Module):
    """A convolution or product with torch's own 8-bit fake quantization of its weights and outputs."""

    def __init__(self, op: nn.Module, relu: bool):
        super().__init__()
        self.op, self.relu = op, relu
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.op.weight
        weight = torch.fake_quantize_per_tensor_affine(w, w.detach().abs().max() / 127, self.zero_point, -128, 127)
        if isinstance(self.op, nn.Linear):
            y = F.linear(x, weight, self.op.bias)
        elif isinstance(self.op, nn.ConvTranspose2d):
            y = F.conv_transpose2d(x, weight, self.op.bias, self.op.stride, self.op.padding, self.op.output_padding)
        else:
            y = F.conv2d(x, weight, self.op.bias, self.op.stride, self.op.padding)
        y = F.relu(y) if self.relu else y
        return torch.fake_quantize_per_tensor_affine(y, 1 / 128, 0, -128, 127)


def twin(model: nn.Module, variant: str) -> nn.Module:
    """A copy of a float ai8x network in which each layer is torch's own pooling, operator and activation; sums stay."""
    model = copy.deepcopy(model)
    for name, layer in layers(model).items():
        relu, op = layer.activation == "ReLU", layer.op
        parts = [layer.pool] if layer.pool is not None else []
        if variant == TORCH_FAKE:
            parts.append(TorchFakeQuantize(op, relu))
        else:
            parts += [op, *([layer.bn] if variant == BN and layer.bn is not None else []), *([nn.ReLU()] if relu else [])]
        model.set_submodule(name, nn.Sequential(*parts))
    return model


def build(network, variant: str) -> nn.Module:
    """`network()` in training mode, quantized to 8 bits or as its plain torch twin."""
    torch.manual_seed(0)
    ai8x.set_device(85, verbose=False)
    model = network()
    if variant not in (QAT, QAT_QUANTILE):
        return twin(model, variant).train()
    ai8x.fuse_bn_layers(model)
    share = 0.995 if variant == QAT_QUANTILE else 1.0
    ai8x.initiate_qat(model, {"start_epoch": 1, "weight_bits": 8, "shift_quantile": share})
    return model.train()


def stepper(model: nn.Module, batch: int, input_shape: tuple[int, ...]):
    """A function that runs one training step: forward, backward, SGD with momentum."""
    x = (torch.rand(batch, *input_shape) * 256).floor().sub(128).div(128)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3, momentum=0.9)
    target = torch.zeros_like(model(x))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(model(x), target).backward()
        optimizer.step()

    return step


def interleaved(steps: dict, rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of every step function in every round; the order rotates from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for i in range(-warmup, rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            steps[name]()
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def training_steps(network: type[nn.Module], rounds: int, batch: int = 32) -> dict[str, dict[str, float]]:
    """By variant: median milliseconds of a training step, and the medians over the rounds of its ratio to the two plain ones.

    A ratio is taken within a round, between steps that ran within the same second.
    """
    variants = (QAT, QAT_QUANTILE, BN, NO_BN, TORCH_FAKE)
    times = interleaved({name: stepper(build(network, name), batch, network.input_shape) for name in variants}, rounds)
    return {
        name: {"ms": 1e3 * statistics.median(times[name])}
        | {plain: statistics.median(a / b for a, b in zip(times[name], times[plain])) for plain in (BN, NO_BN)}
        for name in variants
    }


def print_steps(name: str, steps: dict[str, dict[str, float]]) -> None:
    columns = {"ms": ("ms a step", ".1f"), BN: ("/ with BN", ".2f"), NO_BN: ("/ without BN", ".2f")}
    cells = {variant: {head: format(row[key], form) for key, (head, form) in columns.items()} for variant, row in steps.items()}
    print(f"\n{table([{name: variant} | row for variant, row in cells.items()])}")
