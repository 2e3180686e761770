"""The weights' shift: the power of two that brings the largest weight of a layer, or most of them, into +-1."""

import numpy as np
import torch

SHIFT_LIMIT = 15


def quantile(values: torch.Tensor, q: float) -> torch.Tensor:
    """`torch.quantile(values, q)` of a flat tensor, to the last bit, by selection instead of sorting (shape (1,))."""
    if q == 1.0:
        return values.max().reshape(1)
    rank = np.float32(q) * np.float32(values.numel() - 1)
    below, above = int(np.floor(rank)), int(np.ceil(rank))
    try:  # several times faster than topk and kthvalue
        ordered = torch.from_numpy(np.partition(values.detach().numpy(), below))
    except (TypeError, RuntimeError):  # on another device, or inside torch.func
        ordered = values.sort().values
    low = ordered[below]
    high = ordered[above:].min() if above > below else low
    weight = torch.tensor(float(rank - np.float32(below)), dtype=values.dtype, device=values.device)
    return torch.lerp(low, high, weight).reshape(1)


def _shift(limit: torch.Tensor) -> torch.Tensor:
    return -torch.floor(torch.log2(1.0 / limit)).clamp(-SHIFT_LIMIT, SHIFT_LIMIT)


def calc_weight_shift(values: torch.Tensor, shift_quantile: float = 1.0) -> torch.Tensor:
    """log2 of the power of two that brings the weights into +-1: -clamp(floor(log2(1 / quantile(|values|))), -15, 15).

    A limit of exactly 2^n gives n (the largest weight then saturates by one code); all zero gives -15. Shape (1,), float32.
    """
    return _shift(quantile(values.abs(), shift_quantile))


def shift_of_both(weight: torch.Tensor, bias: torch.Tensor | None, share: float) -> torch.Tensor:
    """`calc_weight_shift` of weight and bias together."""
    tensors = [t.detach().flatten() for t in (weight, bias) if t is not None]
    if share == 1.0:
        largest = [t.abs().amax(dim=0, keepdim=True) for t in tensors]
        return _shift(torch.maximum(largest[0], largest[-1]))
    return calc_weight_shift(torch.cat(tensors), share)


# For compiled networks one operator: a compiler's own logarithm may differ in the last bit, and the shift with it.
shift_operator = torch.library.custom_op("qatlib::shift_of_both", shift_of_both, mutates_args=())
shift_operator.register_fake(lambda weight, bias, share: weight.new_empty(1))
