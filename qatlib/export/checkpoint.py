"""The vendor's integer checkpoint, as its `quantize.py` (v2, ai8x-synthesis) writes it: same keys, shapes, dtypes,
values.

Weights and bias become integers held in float32, `output_shift` is computed and stored, and the flags are set so that
the vendor's evaluation and its synthesis tool read the result. Names, order and untouched tensors are those of the QAT
checkpoint.
"""

import warnings
from collections.abc import Mapping

import torch

from qatlib.ai8x.layer import SHIFT_LIMIT, quantile
from qatlib.compact import CompactModel
from qatlib.compact_graph import BITS, shift_limits
from qatlib.quantizers import round_half_up

WEIGHT = ".op.weight"


def quantize_checkpoint(
    state_dict: Mapping[str, torch.Tensor], correct_shift: bool = False, default_bits: int | None = None
) -> dict[str, torch.Tensor]:
    """QAT state dict -> integer state dict; the given one stays as it is.

    Below 8 bits the vendor clamps `output_shift` to [-7-b, 23-b], the bounds of its negative; the chip's register holds
    [b-23, b+7]. The default repeats the vendor, so that checkpoints are identical, and warns where the chip would then
    compute something else than training did; `correct_shift=True` writes the register's bounds, and warns where that
    differs.
    `default_bits` is used for layers that carry no bits (the vendor assumes 8); without it they are refused.

    Raises ValueError naming the layer: batch norm not fused, QAT never on, NaN or infinite weights, weights outside an
    ai8x layer, or no ai8x layer at all.

    Source: ai8x-synthesis, izer/quantize.py (QATv2), MAX_BIT_SHIFT method.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"the state dict is a {type(state_dict).__name__}; give model.state_dict()")
    if other := [key for key, value in state_dict.items() if not isinstance(key, str) or not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{other[0]} is a {type(state_dict[other[0]]).__name__}, not a tensor; give model.state_dict()")
    layers = [key.removesuffix(WEIGHT) for key in state_dict if key.endswith(WEIGHT)]
    for name in layers:
        _check_forms(state_dict, name)
    for name, bits in ((layer, _bits(state_dict, layer, default_bits)) for layer in layers):
        _check_layer(state_dict, name, bits)
    _check_whole(state_dict, layers)
    result = {key: _flag(key, value.detach().clone()) for key, value in state_dict.items() if not key.endswith(
        "base_b_q"
    )}
    for name in layers:
        result.update(_quantize_layer(state_dict, name, _bits(state_dict, name, default_bits), correct_shift))
    return result


def _bits(state: Mapping, name: str, default_bits: int | None) -> int:
    stored = state.get(f"{name}.weight_bits")
    if stored is not None and stored.item() != stored.item():
        raise ValueError(f"{name}: weight_bits is NaN; give the state_dict() of a QAT model")
    return int(stored.item()) if stored is not None and stored.item() else default_bits or 0


def _check_whole(state: Mapping, layers: list[str]) -> None:
    if not layers:
        raise ValueError(
            "this state dict holds no ai8x layer (no key ends in .op.weight); give the state_dict() of a QAT model"
        )
    if normalised := [key for key in state if key.endswith("running_mean")]:
        name = normalised[0].removesuffix(".running_mean").removesuffix(".bn")
        raise ValueError(f"{name}: its batch normalisation is not fused; call fuse_bn_layers(model) and train with QAT")
    if plain := [key for key in state if key.endswith("weight") and not key.endswith(WEIGHT)]:
        raise ValueError(
            f"{plain[0]} belongs to no ai8x layer, so it has no bits and no threshold to be quantized with; build that layer "
            "from ai8x, or take it out of the state dict"
        )


def _check_forms(state: Mapping, name: str) -> None:
    """One number where one is read, and real numbers in weight and bias."""
    for key in ("weight_bits", "activation_threshold", "shift_quantile"):
        value = state.get(f"{name}.{key}")
        if value is not None and (value.numel() != 1 or value.is_complex()):
            raise ValueError(f"{name}: {key} is {value.dtype} of shape {tuple(value.shape)}, not one number; give a state_dict()")
    for key in ("op.weight", "op.bias"):
        value = state.get(f"{name}.{key}")
        if value is not None and (not value.is_floating_point() or not value.numel()):
            raise ValueError(f"{name}: {key} is {value.dtype} of shape {tuple(value.shape)}; give the floats of a QAT checkpoint")
    share = state.get(f"{name}.shift_quantile")
    if share is not None and not 0 < share.item() <= 1:
        raise ValueError(f"{name}: shift_quantile is {share.item()}; it must be above 0 and at most 1")


def _check_layer(state: Mapping, name: str, bits: int) -> None:
    if not bits:
        raise ValueError(
            f"{name}: QAT was never on (weight_bits is 0); call initiate_qat(model, policy), or give default_bits=8"
        )
    if bits not in BITS:
        raise ValueError(f"{name}: weight_bits is {bits}; the chip has 1, 2, 4 and 8")
    for key in ("activation_threshold", "op.weight", "op.bias"):
        if key != "op.bias" and f"{name}.{key}" not in state:
            raise ValueError(f"{name}: {key} is missing; give the state_dict() of a model made of ai8x layers")
        if not torch.isfinite(state.get(f"{name}.{key}", torch.zeros(()))).all():
            raise ValueError(
                f"{name}: {key} holds NaN or infinity; train again from a sound checkpoint, with a lower learning "
                "rate"
            )
    if f"{name}.adjust_output_shift" in state and state[f"{name}.adjust_output_shift"].dtype != torch.bool:
        raise ValueError(f"{name}: this checkpoint is already quantized; give the one that QAT saved")


def _flag(key: str, value: torch.Tensor) -> torch.Tensor:
    """The vendor turns two flags into float32 numbers, in every layer."""
    constants = {"adjust_output_shift": 0.0, "quantize_activation": 1.0}
    constant = constants.get(key.rpartition(".")[2])
    return value if constant is None else torch.full((1,), constant)


def _quantize_layer(state: Mapping, name: str, bits: int, correct_shift: bool) -> dict[str, torch.Tensor]:
    weight, bias = state[f"{name}.op.weight"].detach(), state.get(f"{name}.op.bias")
    threshold = state[f"{name}.activation_threshold"].detach()
    low, high = shift_limits(bits)
    share = float(state.get(f"{name}.shift_quantile", torch.ones(1)).item())
    parts = [t.detach().flatten() for t in (weight, bias) if t is not None]
    exact = -torch.floor(torch.log2(1.0 / quantile(torch.cat(parts).abs(), share)))
    shift = exact.clamp(low, high)
    half = 1 << bits - 1

    def codes(t):
        return round_half_up(t.detach() * half * torch.exp2(-shift)).clamp(-half, half - 1)

    legal, vendor = (shift - threshold).clamp(low, high), (shift - threshold).clamp(-high, -low)
    trained = (exact.clamp(-SHIFT_LIMIT, SHIFT_LIMIT) - threshold).clamp(-SHIFT_LIMIT, SHIFT_LIMIT)
    written = legal if correct_shift else vendor
    _warn(name, bits, legal, vendor, trained, correct_shift)
    result = {
        f"{name}.output_shift": written.reshape(1),
        f"{name}.weight_bits": state[f"{name}.weight_bits"].clone() if bits == _bits(state, name, 0) else torch.tensor([bits]),
        f"{name}.bias_bits": torch.tensor([float(bits)]),
        f"{name}.op.weight": codes(weight),
    }
    if bias is not None:
        result[f"{name}.op.bias"] = codes(bias) * 2.0 ** (bits - 8) * 128
    return result


def _warn(name, bits, legal, vendor, trained, correct_shift) -> None:
    low, high = shift_limits(bits)
    if correct_shift and not torch.equal(legal, vendor):
        warnings.warn(
            f"{name}: output_shift {legal.item():g} is written where the vendor's quantize.py writes {vendor.item():g}, "
            f"because the chip's register holds [{low}, {high}] for {bits}-bit weights",
            stacklevel=4,
        )
    elif not correct_shift and not torch.equal(vendor, trained):
        warnings.warn(
            f"{name}: output_shift {vendor.item():g} is written, as the vendor does, but training used {trained.item():g}: "
            "the chip will give other outputs; use correct_shift=True, or more weight bits",
            stacklevel=4,
        )


def compact_to_checkpoint(model: CompactModel, correct_shift: bool = False) -> dict[str, torch.Tensor]:
    """The integer checkpoint of a compact model: what `quantize_checkpoint` gives for the network it came from.

    Raises ValueError for a compact model without the `state` that `quantize_model` stores in its graph.
    """
    if "state" not in model.graph:
        raise ValueError("this compact model lacks the layers' state; export it with quantize_model(model)")
    result: dict[str, torch.Tensor] = {}
    for name, stored in model.graph["state"].items():
        values = {key: torch.tensor(value[0], dtype=getattr(torch, value[1])) for key, value in stored.items()}
        if f"{name}.weight" in model.tensors:
            values |= _integer_layer(model, name, values, correct_shift)
        result |= {f"{name}.{key}": value for key, value in values.items()}
    return result


def _integer_layer(model: CompactModel, name: str, values: dict, correct_shift: bool) -> dict[str, torch.Tensor]:
    bits = int(values["weight_bits"].item())
    low, high = shift_limits(bits)
    bounds = (low, high) if correct_shift else (-high, -low)
    shift = (values["output_shift"].clamp(low, high) - values["activation_threshold"]).clamp(*bounds)
    layer = {"output_shift": shift, "op.weight": torch.from_numpy(model.weight(name).copy()).float()}
    if model.bias(name) is not None:
        layer["op.bias"] = torch.from_numpy(model.bias(name).copy()).float() * 2.0 ** (bits - 1)
    return layer
