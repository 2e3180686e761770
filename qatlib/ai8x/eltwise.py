"""Element-wise layers: sums and differences of two or more equally shaped inputs."""

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
        self.register_buffer("activation_threshold", torch.tensor(0.0))
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
        clamp = f"clamp {'on, output -1..127/128' if self.clamped else 'off'}"
        simulated = "output -128..127 (integers)"
        return f"activation_threshold={self.activation_threshold.item():g}, {simulated if target.dev.simulate else clamp}"


class Add(Eltwise):
    """Sum of equally shaped inputs; saturates at the end, not between operands."""

    def combine(self, a, b):
        return torch.add(a, b)


class Sub(Eltwise):
    """First input minus the others, all of one shape; saturates at the end."""

    def combine(self, a, b):
        return torch.add(a, b, alpha=-1)
