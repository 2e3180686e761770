"""Names of the vendor's `ai8x` module that no layer here needs, for files that were written for it: reached as `ai8x.NAME`.

    sys.modules["ai8x"] = qatlib.ai8x    # from here on, `import ai8x` in such files finds this library

Arithmetic and state-dict keys are the vendor's (QATv2). Names of the insides of its layers are refused, with what to use instead.
"""

import torch
from torch import nn

from qatlib.ai8x import legality
from qatlib.ai8x import mode as target
from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.graph import evaluating, place
from qatlib.quantizers import round_half_up, straight_through
from qatlib.wording import warn

_HALF = 2.0**15  # QAT's bound of wide outputs: 2^(FULL_ACC_BITS - 2 (DATA_BITS - 1) - 1)


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


class Quantize(nn.Module):
    """Round to codes, ties up, gradient straight through: k / 2^(num_bits-1), in simulate floor(x / 2^(num_bits-1) + 0.5).

    In simulate `num_bits` may be 1 (plain rounding) or less (multiplies first). `num_extra_bit_shift` divides by a further 2^n.
    """

    def __init__(self, num_bits=8, num_extra_bit_shift=0):
        super().__init__()
        self.num_bits, self.num_extra_bit_shift = num_bits, num_extra_bit_shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bits, extra = self.num_bits, self.num_extra_bit_shift
        if target.dev.simulate:
            return straight_through(x, round_half_up(x / 2.0 ** (bits + extra - 1 if bits != 1 else 0)))
        return straight_through(x, round_half_up(x * 2.0 ** (bits - extra - 1)) / 2.0 ** (bits - 1))


class Clamp(nn.Module):
    """Clamp to min_val..max_val, both included; the gradient passes at the bounds, too."""

    def __init__(self, min_val=None, max_val=None):
        super().__init__()
        self.min_val, self.max_val = min_val, max_val

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(self.min_val, self.max_val)


class _Rounding(nn.Module):
    """Round integer codes (`unit` 1) or real values on the grid 1/`unit`; the gradient passes straight through."""

    rounding, unit = None, 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return straight_through(x, self.rounding(x * self.unit) / self.unit)


_ROUNDINGS = {
    "Floor": (torch.floor, 1.0, "Floor of integer codes."),
    "AvgPoolFloor": (torch.trunc, 1.0, "Towards zero, as the chip rounds averages of integer codes."),
    "FloorQat": (torch.trunc, 128.0, "Towards zero on the grid k / 128."),
    "Round": (torch.round, 1.0, "Nearest integer code, ties to even."),
    "RoundQat": (torch.round, 128.0, "Nearest k / 128, ties to even."),
}
Floor, AvgPoolFloor, FloorQat, Round, RoundQat = (
    type(name, (_Rounding,), {"rounding": staticmethod(function), "unit": unit, "__doc__": doc, "__module__": __name__})
    for name, (function, unit, doc) in _ROUNDINGS.items()
)


class Abs(nn.Module):
    """Absolute value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()


class FusedSoftwareLinearReLU(nn.Module):
    """(N, in) -> (N, out): a linear layer, ReLU, and a clamp to -1..127/128. QAT leaves it in float, and no accelerator runs it.

    In simulate its input is integer codes, its output floor(x / 128 + 0.5), clamped to 16 bits. Only `bias=True` gives a bias.
    Keys: op.weight, op.bias. Warns, as the vendor does: `fit` and every export refuse it.
    """

    def __init__(self, in_features, out_features, bias=None, relu=True):
        super().__init__()
        warn(f"{type(self).__name__} runs outside the accelerator, so no export holds it; use ai8x.Linear")
        self.op, self.relu = nn.Linear(in_features, out_features, bias is True), relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.op(x).relu() if self.relu else self.op(x)
        if target.dev.simulate:
            return round_half_up(x / 128).clamp(-(2**15), 2**15 - 1)
        return x.clamp(-1.0, 127 / 128)


class SoftwareLinear(FusedSoftwareLinearReLU):
    """`FusedSoftwareLinearReLU` without ReLU."""

    def __init__(self, in_features, out_features, **kwargs):
        super().__init__(in_features, out_features, relu=False, **kwargs)


def get_activation(activation=None) -> nn.Module:
    """The module that computes 'ReLU', 'Abs' or None (nothing). Raises ValueError for others (the vendor gives nothing)."""
    legality.check_choice("activation", activation, (None, "ReLU", "Abs"))
    return nn.ReLU(inplace=True) if activation == "ReLU" else Abs() if activation else Empty()


def quantize_clamp(wide, quantize_activation=False, clamp_activation=False, weight_bits=8) -> tuple[nn.Module, nn.Module]:
    """(quantize, clamp) of a layer's output in the present mode, `ai8x.Empty()` for what does nothing."""
    if target.dev.simulate:
        low, high = (-(2**29), 2**29 - 1) if wide else (-128, 127)
        return Quantize(9 - weight_bits if wide else 8), Clamp(low, high)
    quantize = Quantize(target.dev.WIDE_LAYER_RESOLUTION_BITS if wide else 8) if quantize_activation else Empty()
    return quantize, (Clamp(-_HALF, _HALF) if wide else Clamp(-1.0, 127 / 128)) if clamp_activation else Empty()


def quantize_clamp_pool(pooling, quantize_activation=False, clamp_activation=False) -> tuple[nn.Module, nn.Module]:
    """(quantize, clamp) of what a pool gives in the present mode; only average pools (`pooling` 'Avg') have any."""
    simulate, rounds = target.dev.simulate, target.dev.round_avg
    if pooling != "Avg":
        return Empty(), Empty()
    if simulate:
        return Round() if rounds else AvgPoolFloor(), Clamp(-128, 127)
    quantize = (RoundQat() if rounds else FloorQat()) if quantize_activation else Empty()
    return quantize, Clamp(-1.0, 127 / 128) if clamp_activation else Empty()


def quantize_clamp_parameters(weight_bits, bias_bits) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """(quantize weight, quantize bias, clamp weight, clamp bias) in the present mode; bits 0 do nothing."""
    if target.dev.simulate:
        return Quantize(weight_bits - 7), Quantize(2 * (weight_bits - 8) + 1), Empty(), Empty()
    if not weight_bits and not bias_bits:
        return Empty(), Empty(), Empty(), Empty()
    return *map(Quantize, (weight_bits, bias_bits)), *(Clamp(-1.0, 1 - 2.0 ** (1 - b)) for b in (weight_bits, bias_bits))


def stat_collect(train_loader, model, args=None) -> None:
    """Show `model` every batch in evaluation mode, for `init_hist` to count. Batches are (inputs, target); `args` is not needed."""
    with evaluating(model):
        for inputs, *_ in train_loader:
            model(inputs.to(place(model).device))


class bayer_filter:
    """(3, H, W) -> (1, H, W): of each 2x2 pixels the green, the blue, the red and the green again, as a Bayer sensor sees them."""

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        seen = img[1:2].clone()
        seen[0, 0::2, 1::2], seen[0, 1::2, 0::2] = img[2, 0::2, 1::2], img[0, 1::2, 0::2]
        return seen


OFFERED = (
    *_ROUNDINGS, "Abs", "Clamp", "FusedSoftwareLinearReLU", "Quantize", "SoftwareLinear", "bayer_filter", "get_activation",
    "quantize_clamp", "quantize_clamp_parameters", "quantize_clamp_pool", "stat_collect",
)  # fmt: skip
INSTEAD = {  # insides of the vendor's layers -> what does that here
    "OutputShiftLimit": "ai8x.calc_weight_shift(values, shift_quantile), or layer.weight_shift()",
    "OutputShiftPassthrough": "layer.output_shift",
    "WeightScale": "torch.exp2(-layer.weight_shift())",
    "OutputScale": "torch.exp2(layer.effective_shift())",
    "Scaler": "x * torch.exp2(layer.effective_shift())",
    "One": "torch.ones(1)",
    "ID3": "ai8x.Empty()",
    "QuantizationFunction": "ai8x.Quantize(bits), a module",
    "FloorFunction": "ai8x.Floor(), a module",
    "AvgPoolFloorFunction": "ai8x.AvgPoolFloor(), a module",
    "RoundFunction": "ai8x.Round(), a module",
    "DevAI85": "ai8x.set_device(85), then ai8x.dev",
    "DevAI87": "ai8x.set_device(87), then ai8x.dev",
    "DevAI84": "ai8x.set_device(85): device 84 has other arithmetic and is not supported",
    "histogram": "qatlib.ai8x.statistics.histogram(output)",
    "calc_q_error": "qatlib.ai8x.statistics.quantization_errors(counts, values)",
    "calc_threshold": "ai8x.init_threshold(model), for all layers",
    "init_threshold_module": "ai8x.init_threshold(model), for all layers",
    "register_hist_hooks": "ai8x.init_hist(model), for all layers",
    "release_hist_hooks": "ai8x.release_hist(model), for all layers",
}
EXPORT = "qatlib.export.export_onnx(model, path, input_shape), which writes the chip's integers as ONNX"


def find(name: str):
    """What `ai8x.NAME` is. Raises AttributeError, with what to use instead where that is known."""
    if name in OFFERED:
        return globals()[name]
    instead = EXPORT if name == "onnx_export_prep" or name.endswith("ONNX") else INSTEAD.get(name)
    raise AttributeError(f"qatlib.ai8x has no {name!r}" + (f", an inside of the vendor's layers; use {instead}" if instead else ""))
