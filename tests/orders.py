"""Arithmetic that adds in another order than torch does on this processor, to run tests in: `with sums(): ...`."""

import contextlib
import os

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
SUMS = {
    aten.convolution, aten.convolution_backward, aten.addmm, aten.mm, aten.bmm, aten.mean, aten.sum,
    aten._log_softmax, aten._log_softmax_backward_data, aten._softmax, aten._softmax_backward_data, aten.nll_loss_forward,
    aten.native_batch_norm, aten.native_batch_norm_backward, aten.var, aten.var_mean, aten.std, aten.linalg_vector_norm,
}  # fmt: skip


def sums():
    """The arithmetic that QATLIB_SUMS asks for, to enter: "" (torch's own), "exact", "channels last", or "shuffled 3"."""
    kind = os.environ.get("QATLIB_SUMS", "")
    if kind.startswith("shuffled "):
        return Shuffled(int(kind.split()[1]))
    return {"": contextlib.nullcontext, "exact": ExactSums, "channels last": ChannelsLast}[kind]()


class ExactSums(TorchDispatchMode):
    """Every float32 sum is taken in float64 and rounded once: as good as equal on all processors, and equal to none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket not in SUMS or not any(_is(t, torch.float32) for t in args):
            return func(*args, **kwargs)
        wide = tree_map(lambda t: t.double() if _is(t, torch.float32) else t, args)
        results = tree_map(lambda t: t.float() if _is(t, torch.float64) else t, func(*wide, **kwargs))
        if func.overloadpacket is aten.native_batch_norm:  # which also writes running statistics
            for running, written in zip(args[3:5], wide[3:5]):
                if running is not None:
                    running.copy_(written)
        return results


def _is(value, dtype: torch.dtype) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == dtype


class ChannelsLast(TorchDispatchMode):
    """2D convolutions read their pictures channel by channel of a pixel, which adds in yet another order."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is aten.convolution and args[0].dim() == 4:
            x, weight, *rest = args
            turned = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
            return func(*turned, *rest, **(kwargs or {})).contiguous()
        return func(*args, **(kwargs or {}))


class Shuffled(TorchDispatchMode):
    """Convolutions and products add their batches and channels in an order drawn from `seed`: as many processors as one likes."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def order(self, n: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng([self.seed, n]).permutation(n))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, kind = kwargs or {}, func.overloadpacket
        if kind is aten.convolution:
            x, w, *rest = args
            transposed, groups = args[6], args[8]
            if groups == 1 and x.shape[1] == w.shape[0 if transposed else 1]:
                order = self.order(x.shape[1])
                return func(x[:, order], w[order] if transposed else w[:, order], *rest, **kwargs)
        if kind is aten.convolution_backward:
            gy, x, w, *rest = args
            order = self.order(len(x))
            gx, *others = func(gy[order], x[order], w, *rest, **kwargs)
            return (None if gx is None else gx[order.argsort()], *others)
        if kind in (aten.mm, aten.addmm) and args[-2].shape[1] == args[-1].shape[0]:
            *bias, a, b = args
            order = self.order(a.shape[1])
            return func(*bias, a[:, order], b[order], **kwargs)
        return func(*args, **kwargs)
