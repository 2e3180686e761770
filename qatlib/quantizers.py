"""Quantizers: integer ranges, scales, rounding, and gradients that pass through it.

Three views of one number: a *real value* x, an *integer code* q, and the *fake-quantized* value scale * (q - zero_point),
a real value that lies on the grid. One path serves all: `fake_quantize` is `dequantize(quantize(x))`.

Sources: Jacob et al. 2018 (arXiv 1712.05877) for scale and zero point; Bengio et al. 2013 (arXiv 1308.3432) for the straight-
through estimator; ai8x (QATv2) for powers of two and for rounding half towards plus infinity.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class IntRange:
    """The integer codes of `bit_width` bits (1..32, else ValueError): q_min..q_max, both included.

    >>> IntRange(8), IntRange(4).levels, IntRange(8, signed=False).q_max
    (IntRange(-128..127), 16, 255)
    """

    bit_width: int
    signed: bool = True

    def __post_init__(self):
        if isinstance(self.bit_width, bool) or not isinstance(self.bit_width, int) or not 1 <= self.bit_width <= 32:
            raise ValueError(f"bit_width is {self.bit_width!r}; choose a whole number from 1 to 32")

    @property
    def q_min(self) -> int:
        return -(1 << (self.bit_width - 1)) if self.signed else 0

    @property
    def q_max(self) -> int:
        return self.q_min + self.levels - 1

    @property
    def levels(self) -> int:
        return 1 << self.bit_width

    def __repr__(self):
        return f"IntRange({self.q_min}..{self.q_max})"


def round_half_up(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest integer, ties towards plus infinity: floor(x + 0.5), the rule of the chip.

    >>> round_half_up(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])).tolist()
    [-1.0, 0.0, 1.0, 2.0, 3.0]
    """
    return torch.floor(x + 0.5)


def straight_through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Forward: `rounded`, shaped as x, to the last bit. Backward: the gradient of x, as if no rounding had happened.

    The sum is exact because x - x.detach() is exactly zero. The popular `x + (rounded - x).detach()` is exact
    too while x and `rounded` are within a factor of two (Sterbenz), but not where clamping has moved x far.

    >>> x = torch.tensor([0.3, 1.7], requires_grad=True)
    >>> y = straight_through(x, round_half_up(x)); y.sum().backward(); y.tolist(), x.grad.tolist()
    ([0.0, 2.0], [1.0, 1.0])
    """
    return rounded.detach() + (x - x.detach())


def _tensor(name: str, x) -> torch.Tensor:
    if not isinstance(x, torch.Tensor) or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} is a {getattr(x, 'dtype', type(x).__name__)}; give a real torch tensor, torch.as_tensor({name})")
    return x


def _positive(scale) -> torch.Tensor:
    try:
        if torch.as_tensor(scale).is_complex():
            raise TypeError
        scale = torch.as_tensor(scale, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"scale is {scale!r}; give a number above 0, or a tensor of such") from None
    if not bool(((scale > 0) & torch.isfinite(scale)).all()):
        raise ValueError(f"scale is {scale.tolist()}; every scale must be finite and above 0 (is the tensor all zero or NaN?)")
    return scale


def _whole(zero_point, like: torch.Tensor) -> torch.Tensor:
    try:
        codes = torch.as_tensor(zero_point, device=like.device)
        real = codes.double()
        unusable = codes.is_complex() or codes.dtype == torch.bool or not bool(((real.frac() == 0) & (real.abs() < 2**31)).all())
    except (TypeError, ValueError, RuntimeError, OverflowError):
        unusable = True
    if unusable:
        raise ValueError(f"zero_point is {zero_point!r}; it is an integer code, so give a whole number of at most 32 bits")
    return codes


def _check_broadcast(x: torch.Tensor, **others: torch.Tensor) -> None:
    """Ranges are broadcast against x; they must not make it larger."""
    for name, other in others.items():
        try:
            fits = torch.broadcast_shapes(x.shape, other.shape) == x.shape
        except RuntimeError:
            fits = False
        if not fits:
            shapes = f"{name} has shape {tuple(other.shape)}, x {tuple(x.shape)}"
            raise ValueError(f"{shapes}; give one {name}, or one per channel as (C, 1, 1, 1)")


def quantize(x: torch.Tensor, scale, zero_point=0, bit_width: int = 8, signed: bool = True, rounding=round_half_up) -> torch.Tensor:
    """Real values to integer codes: clamp(rounding(x / scale) + zero_point, q_min, q_max).

    `scale` and `zero_point` broadcast against x: a number for one range per tensor, shape (C, 1, 1, 1) for one per channel.
    Returns int32 codes of the shape of x (int64 for 32 bits). Raises TypeError for x that is no real tensor; ValueError for NaN
    in x, a scale that is not finite and positive, a zero_point that is no whole number, shapes that do not broadcast to x's.

    >>> quantize(torch.tensor([-9.0, 0.24, 0.26, 9.0]), scale=0.5, bit_width=4).tolist()
    [-8, 0, 1, 7]
    """
    codes, scale = IntRange(bit_width, signed), _positive(scale)
    if not _tensor("x", x).isfinite().all():
        raise ValueError("x holds NaN or infinite values; find the layer that makes them before quantizing")
    zero_point = _whole(zero_point, x)
    _check_broadcast(x, scale=scale, zero_point=zero_point)
    q = rounding(x / scale) + zero_point
    if bit_width > 24:  # float32 has no 2^25 - 1: clamp where q_max is exact
        q = q.to(torch.float64)
    return q.clamp(codes.q_min, codes.q_max).to(torch.int64 if bit_width == 32 else torch.int32)


def dequantize(q: torch.Tensor, scale, zero_point=0) -> torch.Tensor:
    """Integer codes to real values: scale * (q - zero_point). Raises as `quantize`."""
    scale, zero_point = _positive(scale), _whole(zero_point, _tensor("q", q))
    _check_broadcast(q, scale=scale, zero_point=zero_point)
    return scale * (q - zero_point).to(torch.float32)


def fake_quantize(
    x: torch.Tensor, scale, zero_point=0, bit_width: int = 8, signed: bool = True, clip_gradient: bool = True
) -> torch.Tensor:
    """Quantize and dequantize, with a straight-through gradient: float32 of the shape of x. Raises as `quantize`.

    The gradient is 1 where the code was inside q_min..q_max before clamping and, with `clip_gradient`, 0 elsewhere.

    >>> x = torch.tensor([-2.0, 0.3, 2.0], requires_grad=True)
    >>> y = fake_quantize(x, scale=0.25, bit_width=4); y.sum().backward(); y.tolist(), x.grad.tolist()
    ([-2.0, 0.25, 1.75], [1.0, 1.0, 0.0])
    """
    codes, scale, x = IntRange(bit_width, signed), _positive(scale), _tensor("x", x)
    real = dequantize(quantize(x.detach(), scale, zero_point, bit_width, signed), scale, zero_point)
    if clip_gradient:
        unclamped = round_half_up(x.detach() / scale) + torch.as_tensor(zero_point)
        x = torch.where((unclamped >= codes.q_min) & (unclamped <= codes.q_max), x, x.detach())
    return straight_through(x, real)


def symmetric_scale(x: torch.Tensor, bit_width: int = 8, dim: int | None = None) -> torch.Tensor:
    """Scale of a symmetric quantizer (zero_point 0): max|x| / q_max, shape (), or per channel `dim`, (.., 1, C, 1, ..).

    0 where all of x is 0 (`quantize` then refuses the scale). Raises TypeError for x that is no real tensor, ValueError for an
    empty x, for NaN, or for a `dim` that x does not have.
    """
    if not _tensor("x", x).numel() or not x.isfinite().all():
        raise ValueError(f"x of shape {tuple(x.shape)} is empty or holds NaN or infinite values; a scale needs finite values")
    if dim is not None and not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim is {dim!r}, but x has {x.dim()} dimensions; choose one of them, or None for a single scale")
    q_max = max(IntRange(bit_width).q_max, 1)
    if dim is None:
        return x.detach().abs().max() / q_max
    others = [d for d in range(x.dim()) if d != dim % x.dim()]
    return x.detach().abs().amax(dim=others, keepdim=True) / q_max


def affine_params(x_min, x_max, bit_width: int = 8, signed: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, zero_point) for codes that span x_min..x_max and real 0, exactly. ValueError for ends swapped or not finite.

    >>> scale, zero_point = affine_params(-1.0, 3.0, bit_width=8, signed=False); round(scale.item(), 4), int(zero_point)
    (0.0157, 64)
    """
    try:
        low, high = torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float32) for v in (x_min, x_max)))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"x_min is {x_min!r} and x_max {x_max!r}; give two numbers, or tensors of one shape") from None
    if not low.numel() or not bool((low.isfinite() & high.isfinite()).all()):
        raise ValueError(f"x_min {low.tolist()} and x_max {high.tolist()} must be finite; a range needs two ends")
    if not bool((low <= high).all()):
        raise ValueError(f"x_min {low.tolist()} is above x_max {high.tolist()}; swap them")
    codes = IntRange(bit_width, signed)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _positive((high - low) / (codes.levels - 1))
    zero_point = (codes.q_min + round_half_up(-low / scale)).clamp(codes.q_min, codes.q_max)
    return scale, zero_point.to(torch.int32)


_LIMITS: dict[tuple, tuple[float, float]] = {}  # a table, because compiled code can read one


def pass_limits(factor: float, q_min: float, q_max: float) -> tuple[float, float]:
    """The open interval of float32 values v whose code round_half_up(v * factor) lies in q_min..q_max before clamping.

    (Largest float32 below the range, smallest above it): so one kernel, `hardtanh_backward`, masks as clamping the code would.
    """
    if (key := (factor, q_min, q_max)) in _LIMITS:
        return _LIMITS[key]

    def outermost(start: float, outwards: float, inside) -> float:
        """The first float32 on the way out that is not inside; x + 0.5 rounds, so it may lie on either side of `start`."""
        value, factor32, half = np.float32(start), np.float32(factor), np.float32(0.5)
        while not inside(np.floor(value * factor32 + half)):
            value = np.nextafter(value, np.float32(-outwards))
        while inside(np.floor(value * factor32 + half)):
            value = np.nextafter(value, np.float32(outwards))
        return float(value)

    low = outermost((q_min - 0.5) / factor, -np.inf, lambda code: code >= q_min)
    return _LIMITS.setdefault(key, (low, outermost((q_max + 0.5) / factor, np.inf, lambda code: code <= q_max)))


for _grid in ((128.0, -128.0, 127.0), (2.0**14, -(2.0**29), 2.0**29), *((1.0, -(2**b), 2**b - 1) for b in (0, 1, 3, 7))):
    pass_limits(*_grid)  # those of ai8x's layers
_HALF = torch.tensor(0.5)


def fused(function: type[torch.autograd.Function], *arguments):
    """`function.apply(*arguments)`; inside torch.func, whose transforms see plain operations only, its equal `function.plain`."""
    try:
        return function.apply(*arguments)
    except RuntimeError as problem:
        if "functorch" in str(problem):
            return function.plain(*arguments)
        raise


class FusedQuantize(torch.autograd.Function):
    """clamp(round_half_up(x * factor), q_min, q_max) / factor * out_scale, and its straight-through gradient, in few passes.

    With `relu`, x <= 0 gives 0 and passes no gradient. `factor` and `out_scale` are powers of two: every product is exact. Equal to
    `plain`, the two-line estimator, forward and backward, to the bit (tested).
    """

    @staticmethod
    def forward(ctx, x, factor, q_min, q_max, relu, out_scale):
        low, high = pass_limits(factor, q_min, q_max)
        ctx.limits, ctx.out_scale = (0.0 if relu else low, high), out_scale
        ctx.save_for_backward(x)
        q = torch.add(_HALF, x, alpha=factor).floor_()
        return q.clamp_(0 if relu else q_min, q_max).mul_(out_scale / factor)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad = torch.ops.aten.hardtanh_backward(grad, x, *ctx.limits)
        if ctx.out_scale != 1.0:
            grad = grad.mul_(ctx.out_scale)
        return grad, None, None, None, None, None

    @staticmethod
    def plain(x, factor, q_min, q_max, relu, out_scale):
        x = x.relu() if relu else x
        codes = round_half_up(x.detach() * factor)
        x = torch.where((codes >= q_min) & (codes <= q_max), x, x.detach())
        return straight_through(x, codes.clamp(q_min, q_max) / factor) * out_scale


def weight_codes(weight: torch.Tensor, bit_width: int, shift: torch.Tensor) -> torch.Tensor:
    """Integer codes (in floats) of a layer's weights or bias: clamp(round_half_up(w * 2^-shift * half), -half, half - 1).

    half = 2^(bit_width-1); `shift`, shape (1,), is log2 of full scale. What `FusedWeightQuantize` does in training (tested).
    """
    half = 1 << bit_width - 1
    return round_half_up(weight.detach() * torch.exp2(-shift) * half).clamp(-half, half - 1)


class FusedWeightQuantize(torch.autograd.Function):
    """Weight and bias of a layer, fake-quantized and pre-multiplied: clamp(round_half_up(w * scale * half)) / half * gain.

    half = 2^(bits-1); `scale`, `gain`: tensors of one element, powers of two. The gradient is scale * gain inside the range, and 0
    where the rounded code was clamped. Returns one tensor for each of `tensors`.
    """

    @staticmethod
    def forward(ctx, scale, gain, bits, *tensors):
        half = 1 << (bits - 1)
        to_codes, from_codes = scale * half, gain / half
        unrounded = [t * to_codes for t in tensors]
        ctx.save_for_backward(scale * gain, *unrounded)
        ctx.limits = pass_limits(1.0, -half, half - 1)
        return tuple(u.add(_HALF).floor_().clamp_(-half, half - 1).mul_(from_codes) for u in unrounded)

    @staticmethod
    def backward(ctx, *grads):
        gain, *unrounded = ctx.saved_tensors
        passed = (torch.ops.aten.hardtanh_backward(grad, u, *ctx.limits).mul_(gain) for grad, u in zip(grads, unrounded))
        return None, None, None, *passed

    @staticmethod
    def plain(scale, gain, bits, *tensors):
        half = 1 << (bits - 1)
        return tuple(FusedQuantize.plain(t * scale, half, -half, half - 1, False, 1.0) * gain for t in tensors)
