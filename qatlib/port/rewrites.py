"""Rewrites of what the chip lacks: each replaces a step of the plain network by steps that it has. None is applied unasked.

But for `hoist`, which changes no value: it brings each ReLU to its layer.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import pad

from qatlib.port.torch_graph import ACTIVATIONS, DROPOUTS, MOVING, NORMS, WEIGHTED, Plain, Step

COMMUTE = (*DROPOUTS, "maxpool1d", "maxpool2d", "adaptivemaxpool1d", "adaptivemaxpool2d", *MOVING)  # with a ReLU


class Rewrite(NamedTuple):
    """`exact`: the float function stays the same; `what` happens, a phrase; `apply` does it to a step."""

    exact: bool
    what: str
    apply: Callable[[Plain, Step], None]

    def __str__(self) -> str:
        return f"{'exact' if self.exact else 'train again'}: {self.what}"


def pair(value, dims: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims


def changed(module: nn.Module, weight: torch.Tensor | None = None, **attributes) -> nn.Module:
    """A copy of `module` with other attributes, that shares its parameters; `weight` replaces that one."""
    new = copy.copy(module)
    new.__dict__ = {**module.__dict__, **attributes, "_parameters": dict(module._parameters)}
    if weight is not None:
        new._parameters["weight"] = nn.Parameter(weight.detach().clone(), module.weight.requires_grad)
    return new


def _like(new: nn.Module, old: nn.Module) -> nn.Module:
    return new.to(old.weight.device).train(old.training)


def _max(dims: int, size, stride) -> tuple[str, nn.Module]:
    return f"maxpool{dims}d", (nn.MaxPool1d, nn.MaxPool2d)[dims - 1](size, stride)


def stride(plain: Plain, step: Step) -> None:
    """At stride 1, then every s-th pixel: after the layer's activation, or before a 1x1 kernel, which skips pixels anyway."""
    m, dims, last = step.module, len(step.shape) - 1, [step, *plain.follow(step)][-1]
    step.module, shape, skip = changed(m, stride=(1,) * dims), last.shape, _max(dims, 1, m.stride[0])
    if max(m.kernel_size) == 1 and not any(m.padding):
        plain.before(step, *skip, (step.source.shape[0], *shape[1:]))
        return
    wide = zip(step.source.shape[1:], m.padding, m.dilation, m.kernel_size)
    step.shape = last.shape = (shape[0], *(n + 2 * p - d * (k - 1) for n, p, d, k in wide))
    plain.after(last, *skip, shape)


def stride_pool(plain: Plain, step: Step) -> None:
    s, dims, (channels, *sizes) = step.module.stride[0], len(step.shape) - 1, step.source.shape
    plain.before(step, *_max(dims, s, s), (channels, *(n // s for n in sizes)))
    step.module = changed(step.module, stride=(1,) * dims)


def embedding(step: Step) -> tuple[int, ...] | None:
    """(padding, row, column): where in a 3x3 kernel this one can lie; None: nowhere."""
    m, inputs = step.module, step.source.shape[1:]
    for padding in (1, 0, 2) if max(m.kernel_size) <= 3 and m.dilation == (1, 1) else ():
        offset = [padding - p for p in m.padding]
        sizes = tuple((n + 2 * padding - 3) // s + 1 for n, s in zip(inputs, m.stride))
        if isinstance(m, nn.ConvTranspose2d):
            sizes = tuple(2 * n + 2 - 2 * padding for n in inputs)
        if all(0 <= o <= 3 - k for o, k in zip(offset, m.kernel_size)) and sizes == step.shape[1:]:
            return padding, *offset
    return None


def kernel(plain: Plain, step: Step) -> None:
    padding, top, left = embedding(step)
    w = step.module.weight.detach()
    weight = pad(w, (left, 3 - left - w.shape[3], top, 3 - top - w.shape[2]))
    more = {"output_padding": (1, 1)} if isinstance(step.module, nn.ConvTranspose2d) else {}
    step.module = changed(step.module, weight, kernel_size=(3, 3), padding=(padding, padding), **more)


def split(plain: Plain, step: Step) -> None:
    """Two 3x3 layers for 5x5, three for 7x7, all with an activation, and a batch normalisation of their own, like the last."""
    m, n, follow, (channels, *sizes) = step.module, step.module.kernel_size[0] // 2, plain.follow(step), step.source.shape
    for i in range(n):
        padding, path = m.padding[0] * (i + 1) // n - m.padding[0] * i // n, f"{step.path}_{i}"
        s = m.stride if i == n - 1 else 1
        conv = _like(nn.Conv2d(channels, m.out_channels, 3, s, padding, groups=m.groups, bias=m.bias is not None), m)
        if i == n - 1:
            step.module = conv
            return
        channels, *sizes = shape = (m.out_channels, *(size + 2 * padding - 2 for size in sizes))
        plain.before(step, "conv2d", conv, shape, path)
        for part in follow:
            norm = part.kind in NORMS and _like(nn.BatchNorm2d(channels, part.module.eps, part.module.momentum), m)
            plain.before(step, part.kind, norm or part.module, shape, f"{path}_bn" if norm else "")


def groups(plain: Plain, step: Step) -> None:
    m, w = step.module, step.module.weight.detach()
    n, blocks = w.shape[1], w.view(m.groups, -1, *w.shape[1:]).movedim(2, -1)
    dense = torch.stack([pad(block, (g * n, (m.groups - 1 - g) * n)) for g, block in enumerate(blocks)])
    step.module = changed(m, dense.movedim(-1, 2).flatten(0, 1), groups=1)


def transposed_3x3(plain: Plain, step: Step) -> None:
    m = step.module
    step.module = _like(nn.ConvTranspose2d(m.in_channels, m.out_channels, 3, 2, 1, 1, m.groups, m.bias is not None), m)


def upsample(plain: Plain, step: Step) -> None:
    """Nearest neighbours, twice as many, as often as needed: a transposed convolution whose kernel repeats a pixel."""
    (channels, *sizes), deep = step.source.shape, plain.device == 87
    ones = torch.ones(channels, 1) if deep else torch.eye(channels)
    m = nn.ConvTranspose2d(channels, channels, 3, 2, 1, 1, groups=channels if deep else 1, bias=False)
    weight = pad(ones[:, :, None, None].expand(-1, -1, 2, 2), (1, 0, 1, 0)).to(plain.sample.device)
    while (sizes := [2 * n for n in sizes])[0] < step.shape[1]:
        plain.before(step, "convtranspose2d", changed(m, weight), (channels, *sizes))
    step.kind, step.path, step.module = "convtranspose2d", "", changed(m, weight)


def windows(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """(window, stride) of the pools, one or two, that make `outputs` of `inputs`; None where sizes do not divide, or by too much.

    >>> windows((32, 32), (1, 1)), windows((6, 4), (1, 1)), windows((7, 7), (3, 3))
    ([((16, 16), (16, 16)), ((2, 2), (2, 2))], [((6, 4), (1, 1))], None)
    """
    if any(n % o for n, o in zip(inputs, outputs)):
        return None
    whole = [n // o for n, o in zip(inputs, outputs)]
    first = [next((a for a in range(min(w, 16), 0, -1) if w % a == 0 and w // a <= 16), 0) for w in whole]
    if not all(first):
        return None
    sizes = [size for size in (tuple(first), tuple(w // a for w, a in zip(whole, first))) if max(size) > 1]
    if any(len(set(size)) > 1 and (size is not sizes[-1] or max(outputs) > 1) for size in sizes):
        return None
    return [(size, size if len(set(size)) == 1 else (1,) * len(size)) for size in sizes]


def adaptive_pool(plain: Plain, step: Step) -> None:
    kind, dims, (channels, *sizes) = ("Max" if "max" in step.kind else "Avg"), len(step.shape) - 1, step.source.shape
    cls = getattr(nn, f"{kind}Pool{dims}d")
    *early, (size, strides) = windows(sizes, step.shape[1:])
    step.kind, step.module = f"{kind.lower()}pool{dims}d", cls(size, strides)
    for window, s in early:
        plain.before(step, step.kind, cls(window, s), (channels, *(n // w for n, w in zip(sizes, window))))


def padded_pool(plain: Plain, step: Step) -> None:
    step.module = type(step.module)(step.module.stride)


def identity(plain: Plain, step: Step) -> None:
    """In front of a lone normalisation or activation, after a sum or average that comes last; depthwise where the chip has that."""
    channels, dims, deep = step.shape[0], len(step.shape) - 1, plain.device == 87 and len(step.shape) > 1
    m = nn.Linear(channels, channels)
    if dims:
        m = (nn.Conv1d, nn.Conv2d)[dims - 1](channels, channels, 1, groups=channels if deep else 1)
    m = changed(m, (torch.ones(channels, 1) if deep else torch.eye(channels)).view_as(m.weight).to(plain.sample.device))
    m._parameters["bias"] = nn.Parameter(torch.zeros(channels, device=plain.sample.device))
    put = plain.before if step.kind in (*NORMS, *ACTIVATIONS) else plain.after
    put(step, ("linear", "conv1d", "conv2d")[dims], m, step.shape)


def activation(plain: Plain, step: Step) -> None:
    step.kind, step.module = "relu", nn.ReLU()


def outside(plain: Plain, step: Step) -> None:
    for reader in dict.fromkeys(plain.readers(step)):
        if reader is not None:
            outside(plain, reader)
    plain.remove(step)


REWRITES = {
    "stride": Rewrite(True, "all pixels are computed, and a 1x1 max pool keeps every s-th", stride),
    "stride_pool": Rewrite(False, "a max pool in front instead of the stride", stride_pool),
    "kernel": Rewrite(True, "a 3x3 kernel with zeros around this one", kernel),
    "split": Rewrite(False, "3x3 layers in a row, with new weights", split),
    "groups": Rewrite(True, "an ordinary convolution whose other weights are zero", groups),
    "transposed": Rewrite(True, "a transposed 3x3 kernel with zeros around this one", kernel),
    "transposed_3x3": Rewrite(False, "a transposed 3x3 convolution with new weights", transposed_3x3),
    "upsample": Rewrite(True, "a transposed 3x3 convolution that repeats every pixel", upsample),
    "adaptive_pool": Rewrite(True, "fixed windows, for inputs of this shape only", adaptive_pool),
    "padded_pool": Rewrite(False, "windows as large as the stride, without padding", padded_pool),
    "identity": Rewrite(True, "a 1x1 layer is added that copies its input", identity),
    "drop_relu": Rewrite(False, "no activation there", Plain.remove),
    "activation": Rewrite(False, "ReLU instead", activation),
    "outside": Rewrite(True, "left out: apply it yourself, after the network", outside),
}


def hoist(plain: Plain) -> None:
    """Move each ReLU up through what it commutes with, to the layers it can be part of: the values stay the same."""
    for step in plain:
        if step.kind not in ("relu", "relu6") or plain.attached(step):
            continue
        spots = _spots(plain, step.source, step.kind)
        if spots is not None:
            step.source.value = step.value
            plain.remove(step)
            for spot in spots:
                plain.after(spot, step.kind, nn.ReLU(), spot.shape)


def _spots(plain: Plain, step: Step, kind: str) -> list[Step] | None:
    """The steps after which a ReLU gives the same as after `step`; none where there is one already, None where it must stay."""
    if step.kind in ("relu", "relu6"):
        step.kind = max(step.kind, kind)  # the end of a ReLU6 is told of
        return []
    if plain.sole(step) is None:
        return None
    if step.kind in WEIGHTED or step.kind in NORMS and plain.attached(step):
        return [step]
    parts = [_spots(plain, source, kind) for source in step.inputs] if step.kind in COMMUTE else [None]
    return None if None in parts else [spot for part in parts for spot in part]
