"""Networks that rename places, or rearrange values behind their last layer, with the structures of published ones.

Keyword spotting that turns a signal into a map, an autoencoder of signals, a detector whose heads are permuted and concatenated,
dilated signals.
"""

import torch
from torch import nn

from qatlib import ai8x


class Net(nn.Module):
    def __init__(self, input_shape, forward, **layers):
        super().__init__()
        self.input_shape, self.run = input_shape, forward
        for name, make in layers.items():
            setattr(self, name, make())

    def forward(self, x):
        return self.run(self, x)


def conv(c_in, c_out, kernel=3, **more):
    return lambda: ai8x.Conv2d(c_in, c_out, kernel, **{"padding": kernel // 2} | more)


def relu(c_in, c_out, kernel=3, **more):
    return lambda: ai8x.FusedConv2dReLU(c_in, c_out, kernel, **{"padding": kernel // 2} | more)


def signal(c_in, c_out, kernel=3, dilation=1, **more):
    return lambda: ai8x.Conv1d(c_in, c_out, kernel, dilation=dilation, **more)


def linear(c_in, c_out, **more):
    return lambda: ai8x.Linear(c_in, c_out, **more)


def keywords(n, x):
    x = n.b(n.a(x))
    x = n.d(n.c(x.view(x.shape[0], x.shape[1], 4, -1)))
    return n.fc(x.view(x.size(0), -1))


def autoencoder(n, x):
    x = n.b(n.a(x))
    x = n.e(n.d(n.c(x.view(x.shape[0], x.shape[1]))))
    return x.view(x.shape[0], 8, 3)


def boxes(n, x):
    """Heads on two maps: for each place the numbers of some boxes side by side, joined over all places of both."""
    y = n.a(x)
    z, batch = n.b(y), y.size(0)
    pairs = ((n.place1(y), n.place2(z), 4), (n.score1(y), n.score2(z), 3))
    return tuple(torch.cat([h.permute(0, 2, 3, 1).contiguous().view(batch, -1, k) for h in heads], dim=1) for *heads, k in pairs)


def heads(n, x):
    y = n.a(x)
    return [n.b(y).permute(0, 2, 1, 3), n.d(y).mT, n.c(y).transpose(1, -1).flatten(1)]


def odd(y):
    return y.view(-1, 2, 4, 24).transpose(1, 3).reshape(-1, 6, 32)


def detector(wide=False, deep=False):
    layers = {"a": relu(3, 6), "b": lambda: ai8x.FusedMaxPoolConv2dReLU(6, 5, 3, padding=1)}
    heads = {"place1": conv(6, 8, wide=wide), "place2": conv(5, 8, wide=wide), "score1": conv(6, 6, wide=wide),
             "score2": conv(5, 6, wide=wide and not deep)}  # fmt: skip
    return (3, 8, 6), boxes, layers | heads


# input shape, forward, layers: what becomes of the rearrangements, kind and whether it is the host's
SHAPE = (3, 4, 6)
CASES = {
    "keywords": ((6, 16), keywords, {"a": lambda: ai8x.FusedConv1dReLU(6, 9, 1), "b": lambda: ai8x.FusedConv1dReLU(9, 5, 1),
                 "c": relu(5, 6), "d": relu(6, 3), "fc": linear(48, 4, wide=True)}, ["reshape", "flatten"]),
    "autoencoder": ((10, 3), autoencoder, {"a": signal(10, 7, 1), "b": signal(7, 6, 3), "c": linear(6, 4), "d": linear(4, 6),
                    "e": linear(6, 24)}, ["flatten", "reshape/host"]),
    "boxes": (*detector(), ["permute/host", "reshape/host", "concat/host"]),
    "boxes in 32 bits": (*detector(wide=True), ["permute/host", "reshape/host", "concat/host"]),
    "boxes of both widths": (*detector(wide=True, deep=True), ["permute/host", "reshape/host", "concat/host"]),
    "the input is a signal": (SHAPE, lambda n, x: n.a(x.flatten(2)), {"a": signal(3, 4)}, ["reshape"]),
    "the input is a map": ((3, 24), lambda n, x: (n.p(x.view(-1, 3, 4, 6)), n.a(x.view(-1, 3, 6, 4))),
                           {"a": conv(3, 4, wide=True), "p": lambda: ai8x.MaxPool2d(2)}, ["reshape"]),
    "the input twice": (SHAPE, lambda n, x: (n.s(n.a(x).flatten(2), x.flatten(2)), x.view(-1, 3, 2, 12)),
                        {"a": conv(3, 3), "s": ai8x.Add}, ["reshape"]),
    "there and back": (SHAPE, lambda n, x: n.b(n.a(x).flatten(1).reshape(x.shape[0], 3, 4, 6)),
                       {"a": conv(3, 3), "b": conv(3, 2)}, []),
    "permuted and back": (SHAPE, lambda n, x: n.b(n.a(x).permute(0, 2, 3, 1).contiguous().movedim(-1, 1)),
                          {"a": conv(3, 3), "b": conv(3, 2)}, []),
    "a vector as a map": ((9,), lambda n, x: n.b(n.a(x).unsqueeze(2).unsqueeze(-1)).squeeze(3).squeeze(2),
                          {"a": linear(9, 5), "b": conv(5, 4, 1)}, ["reshape", "flatten"]),
    "a vector as a signal": ((9,), lambda n, x: n.b(n.a(x).view(x.size(0), 5, 1)), {"a": linear(9, 5), "b": signal(5, 4, 1)},
                             ["reshape"]),
    "one pixel permuted": ((4, 3, 3), lambda n, x: n.b(n.a(x).permute(0, 2, 3, 1).reshape(x.size(0), 6)),
                           {"a": conv(4, 6, padding=0), "b": linear(6, 3)}, ["flatten"]),
    "an axis of one": ((3, 7), lambda n, x: n.b(n.a(x).unsqueeze(3).transpose(2, 3)), {"a": signal(3, 4, 1), "b": conv(4, 3)},
                       ["reshape"]),
    "a sum of renamed maps": (SHAPE, lambda n, x: n.c(n.s(n.a(x).view(-1, 3, 8, 3), n.b(x).view(-1, 3, 8, 3))),
                              {"a": conv(3, 3), "b": conv(3, 3), "c": conv(3, 2), "s": ai8x.Add}, ["reshape"]),
    "a sum of a map and a signal": ((4, 24), lambda n, x: n.c(n.s(n.a(x), n.b(x.view(-1, 4, 4, 6)).flatten(2))),
                                    {"a": signal(4, 4, padding=1), "b": conv(4, 4), "c": signal(4, 3), "s": ai8x.Add}, ["reshape"]),
    "maps joined and renamed": (SHAPE, lambda n, x: n.c(torch.cat([n.a(x).view(-1, 4, 8, 3), n.b(x).view(-1, 4, 8, 3)], 1)),
                                {"a": conv(3, 4), "b": conv(3, 4), "c": conv(8, 2)}, ["reshape", "concat"]),
    "flat maps joined": (SHAPE, lambda n, x: n.c(torch.cat([n.a(x).flatten(1), n.b(x).flatten(1)], 1)),
                         {"a": conv(3, 2), "b": conv(3, 3), "c": linear(120, 5)}, ["flatten", "concat"]),
    "heads of all kinds": (SHAPE, heads, {"a": conv(3, 4), "b": conv(4, 3, wide=True), "c": conv(4, 2), "d": conv(4, 3)},
                           ["permute/host", "reshape/host"]),
    "an output that is read": (SHAPE, lambda n, x: (y := n.a(x), n.b(y), y), {"a": conv(3, 4), "b": conv(4, 2, wide=True)}, []),
    "channels of odd parts": (SHAPE, lambda n, x: odd(torch.cat([n.a(x), n.b(x)], 1)),
                              {"a": conv(3, 3, wide=True), "b": conv(3, 5)}, ["concat/host", "reshape/host", "permute/host"]),
    "the maps of the input": (SHAPE, lambda n, x: (n.a(x), x.permute(0, 2, 3, 1), torch.cat([x, n.a(x)], 3)), {"a": conv(3, 3, 1)},
                              ["permute/host", "concat/host"]),
    **{f"kernel {k} by {d}": ((4, 24), lambda n, x: n.b(n.a(x)), {"a": signal(4, 5, k, d, padding=p),
                                                                  "b": signal(5, 3, k, d, wide=True)}, [])
       for k, d, p in ((5, 2, 2), (4, 2, 1), (3, 4, 2), (2, 8, 1), (3, 5, 0), (8, 1, 2))},
}  # fmt: skip


def trained(name):
    torch.manual_seed(len(name))
    shape, forward, layers, _ = CASES[name]
    net = Net(shape, forward, **layers).eval()
    ai8x.start_qat(net, [torch.randint(-128, 128, (8, *shape)) / 128], {"weight_bits": 8}, progress=False)
    return net
