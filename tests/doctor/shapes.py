"""Eight small networks of ai8x layers, each trained for half a second on an easy task, and quantized to any bits: all healthy."""

import copy
import functools
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from qatlib import ai8x

CLASSES = 4


def pictures(shape=(3, 12, 12), n=96, seed=0):
    """(x, y): noise with one of four blurred patterns in it, on the 1/128 grid; y (n,) is which."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.randn((CLASSES, *shape), generator=torch.Generator().manual_seed(99))
    if len(shape) == 3:
        patterns = F.avg_pool2d(patterns, 3, 1, 1) * 2
    y = torch.randint(0, CLASSES, (n,), generator=random)
    x = 0.15 * torch.randn((n, *shape), generator=random) + 0.4 * patterns[y]
    return (x * 128).round().clamp(-128, 127) / 128, y


def conv(c_in, c_out, kind="Conv2dBNReLU", size=3, **options):
    return getattr(ai8x, f"Fused{kind}")(c_in, c_out, size, padding=size // 2, **options)


class Plain(nn.Module):
    """Convolutions one after another, a wide linear head."""

    input_shape = (3, 12, 12)

    def __init__(self):
        super().__init__()
        self.first = conv(3, 8)
        self.second = conv(8, 12, "MaxPoolConv2dBNReLU")
        self.third = conv(12, 12, "AvgPoolConv2dBNReLU")
        self.head = ai8x.Linear(108, CLASSES, bias=True, wide=True)

    def forward(self, x):
        return self.head(self.third(self.second(self.first(x))).flatten(1))


class Residual(nn.Module):
    """A sum around one convolution, a sum of two branches without ReLU, a difference."""

    input_shape = (3, 12, 12)

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.body = conv(8, 8)
        self.add = ai8x.Add()
        self.left, self.right = ai8x.FusedMaxPoolConv2dBN(8, 8, 3, padding=1), ai8x.FusedMaxPoolConv2dBN(8, 8, 1)
        self.sub = ai8x.Sub()
        self.tail = conv(8, 8)
        self.head = ai8x.Linear(288, CLASSES, bias=True, wide=True)

    def forward(self, x):
        x = self.stem(x)
        x = self.add(x, self.body(x))
        return self.head(self.tail(self.sub(self.left(x), self.right(x))).flatten(1))


class UNet(nn.Module):
    """Down and up again, with a concatenation; which of the patterns, in every pixel."""

    input_shape, more = (3, 12, 12), 60

    def __init__(self):
        super().__init__()
        self.down = conv(3, 8)
        self.bottom = conv(8, 12, "MaxPoolConv2dBNReLU")
        self.up = ai8x.FusedConvTranspose2dBNReLU(12, 8, 3, stride=2, padding=1)
        self.join = conv(16, 8)
        self.head = ai8x.Conv2d(8, CLASSES, 1, wide=True)

    def forward(self, x):
        x = self.down(x)
        return self.head(self.join(torch.cat((x, self.up(self.bottom(x))), dim=1)))

    def loss(self, output, x, y):
        return F.cross_entropy(output, y.view(-1, 1, 1).expand(-1, 12, 12))

    def score(self, output, x, y):
        return (output.argmax(1) == y.view(-1, 1, 1)).float().mean().item()


class Keywords(nn.Module):
    """One dimension, dropout, an average alone."""

    input_shape = (6, 32)

    def __init__(self):
        super().__init__()
        self.one = conv(6, 12, "Conv1dBNReLU")
        self.two = conv(12, 12, "MaxPoolConv1dBNReLU", 5)
        self.drop = nn.Dropout(0.2)
        self.pool = ai8x.AvgPool1d(4)
        self.head = ai8x.Linear(48, CLASSES, wide=True)

    def forward(self, x):
        return self.head(self.pool(self.drop(self.two(self.one(x)))).flatten(1))


class Autoencoder(nn.Module):
    """Its own picture again, from an 8-bit head."""

    input_shape, steps, more = (3, 12, 12), 100, 60

    def __init__(self):
        super().__init__()
        self.down = conv(3, 12)
        self.small = conv(12, 12, "MaxPoolConv2dBNReLU")
        self.up = ai8x.FusedConvTranspose2dBNReLU(12, 12, 3, stride=2, padding=1)
        self.out = ai8x.Conv2d(12, 3, 3, padding=1)

    def forward(self, x):
        return self.out(self.up(self.small(self.down(x))))

    def loss(self, output, x, y):
        return F.mse_loss(output, x)

    def score(self, output, x, y):
        return 1 - (F.mse_loss(output, x) / x.square().mean()).item()


class Shared(nn.Module):
    """A block that is called three times, and one sum for two numbers of channels."""

    input_shape, steps = (3, 12, 12), 80

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.again = conv(8, 8)
        self.wider = conv(8, 12, "MaxPoolConv2dBNReLU")
        self.side = conv(12, 12)
        self.add = ai8x.Add()
        self.head = ai8x.Conv2d(12, CLASSES, 1, wide=True)

    def forward(self, x):
        x = self.stem(x)
        x = self.add(x, self.again(self.again(self.again(x))))
        x = self.wider(x)
        return self.head(self.add(x, self.side(x))).flatten(2).mean(2)


class Heads(nn.Module):
    """Two wide heads, of which one is a map, behind a common trunk."""

    input_shape = (3, 12, 12)

    def __init__(self):
        super().__init__()
        self.trunk = conv(3, 8)
        self.deep = conv(8, 12, "MaxPoolConv2dBNReLU")
        self.what = ai8x.Linear(432, CLASSES, bias=True, wide=True)
        self.where = ai8x.Conv2d(12, CLASSES, 1, wide=True)

    def forward(self, x):
        x = self.deep(self.trunk(x))
        return self.what(x.flatten(1)), self.where(x)

    def loss(self, output, x, y):
        return F.cross_entropy(output[0], y) + F.cross_entropy(output[1], y.view(-1, 1, 1).expand(-1, 6, 6))

    def score(self, output, x, y):
        return (output[0].argmax(1) == y).float().mean().item()


class Depthwise(nn.Module):
    """MAX78002: depthwise convolutions, a pool alone, an 8-bit head."""

    input_shape, device = (3, 12, 12), 87

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 12)
        self.depth = conv(12, 12, "DepthwiseConv2dBNReLU")
        self.point = conv(12, 12, size=1)
        self.pool = ai8x.MaxPool2d(2)
        self.mean = ai8x.AvgPool2d(2)
        self.head = ai8x.Linear(108, CLASSES, bias=True)

    def forward(self, x):
        return self.head(self.mean(self.pool(self.point(self.depth(self.stem(x))))).flatten(1))


SHAPES = {cls.__name__: cls for cls in (Plain, Residual, UNet, Keywords, Autoencoder, Shared, Heads, Depthwise)}
BITS = (8, 4, 2)


def data(shape: str, n=96, seed=0):
    return pictures(SHAPES[shape].input_shape, n, seed)


def right(net, x, y) -> float:
    """Share of right answers, 0..1."""
    with torch.no_grad():
        output = net.eval()(x)
    return net.score(output, x, y) if hasattr(net, "score") else (output.argmax(1) == y).float().mean().item()


@torch.enable_grad()
def train(net, x, y, steps, rate):
    optimizer = torch.optim.Adam((p for p in net.parameters() if p.requires_grad), rate)
    net.train()
    for _ in range(steps):
        output = net(x)
        loss = net.loss(output, x, y) if hasattr(net, "loss") else F.cross_entropy(output, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@functools.cache
def _float(shape: str):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ai8x.set_device(getattr(SHAPES[shape], "device", 85), verbose=False)
        return train(net := SHAPES[shape](), *data(shape), getattr(net, "steps", 40), 0.02)


@functools.cache
def _quantized(shape: str, bits: int):
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(1)
        warnings.simplefilter("ignore")
        net = copy.deepcopy(_float(shape))
        ai8x.set_device(getattr(SHAPES[shape], "device", 85), verbose=False)
        ai8x.start_qat(net, [data(shape)[0]], {"weight_bits": bits}, progress=False)
        return net if bits == 8 else train(net, *data(shape), getattr(net, "more", 30), 0.003)


def in_float(shape: str):
    return copy.deepcopy(_float(shape))


def quantized(shape: str, bits: int = 8):
    """A copy of the quantized network; the device is set to its chip."""
    ai8x.set_device(getattr(SHAPES[shape], "device", 85), verbose=False)
    return copy.deepcopy(_quantized(shape, bits))
