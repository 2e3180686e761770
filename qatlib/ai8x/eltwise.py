"""Element-wise layers: sums, differences and bit operations of two or more equally shaped inputs."""

import torch
from torch import nn

from qatlib.ai8x import mode as target


class Eltwise(nn.Module):
    """Combine inputs of one shape one after another, then clamp once (QAT: -1..127/128, simulate: -128..127, float: no clamp).

    Any number of inputs from one on; the chip takes 2 to 16. Real values, in simulate integer codes. Source: `ai8x.Eltwise`.
    The clamp is not part of the vendor's checkpoints; `update_model` switches it on again where QAT is on.
    """

    def __init__(self, f=None):
        super().__init__()
        self.f = f
        self.activation_threshold = nn.Parameter(torch.tensor(0.0), requires_grad=False)
        self.clamped = False

    def set_clamp(self, clamp: bool) -> None:
        """Switch the clamp of training mode on or off (simulate always clamps)."""
        self.clamped = bool(clamp)

    def combine(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The operation of two operands: `f(a, b)` of `Eltwise(f)`."""
        if self.f is None:
            raise TypeError("Eltwise is a base class; use Add, Sub, BitwiseXor or BitwiseOr, or give it a function: Eltwise(f)")
        return self.f(a, b)

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        y = x[0]
        for other in x[1:]:
            y = self.combine(y, other)
        if target.dev.simulate:
            return y.clamp(-128, 127)
        return y.clamp(-1.0, 127 / 128) if self.clamped else y

    def extra_repr(self) -> str:
        threshold = f"activation_threshold={self.activation_threshold.item():g}"
        if target.dev.simulate:
            return f"{threshold}, output -128..127 (integers)"
        return f"{threshold}, clamp {'on, output -1..127/128' if self.clamped else 'off'}"


class Add(Eltwise):
    """Sum of equally shaped inputs; saturates at the end, not between operands."""

    def combine(self, a, b):
        return torch.add(a, b)


class Sub(Eltwise):
    """First input minus the others, all of one shape; saturates at the end."""

    def combine(self, a, b):
        return torch.add(a, b, alpha=-1)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return torch.round((x + 0.5) * 256.0).to(torch.int32)


class BitwiseXor(Eltwise):
    """Exclusive or of 8-bit codes. As in the vendor's code it reads real values -0.5..0.5 as 0..255 and has no gradient.

    So it does in simulate, where the inputs are integers and the result is wrong: it is here for checkpoints, not for the chip.
    """

    def combine(self, a, b):
        return torch.bitwise_xor(_bits(a), _bits(b)).to(a.dtype) / 256.0 - 0.5


class BitwiseOr(Eltwise):
    """Inclusive or of 8-bit codes; units as `BitwiseXor`."""

    def combine(self, a, b):
        return torch.bitwise_or(_bits(a), _bits(b)).to(a.dtype) / 256.0 - 0.5


class Empty(nn.Module):
    """Gives back its input: stands in networks where a layer may be absent."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x
