"""The vendor's integer checkpoint, as its `quantize.py` (v2, ai8x-synthesis) writes it: same keys, shapes, dtypes, values.

Weights and bias become integers held in float32, `output_shift` is computed and stored, and the flags are set so that the vendor's
evaluation and its synthesis tool read the result. Names, order and untouched tensors are those of the QAT checkpoint.
"""

import warnings
from collections.abc import Mapping

import torch

from qatlib.ai8x.shift import SHIFT_LIMIT, quantile
from qatlib.chip.operations import BITS, shift_limits
from qatlib.integer.checkpoint import WEIGHT, layer_names, state_of
from qatlib.integer.compact import CompactModel
from qatlib.quantizers import weight_codes

FLAGS = {"adjust_output_shift": torch.zeros(1), "quantize_activation": torch.ones(1)}  # the vendor makes numbers of them


def quantize_checkpoint(
    state_dict: Mapping[str, torch.Tensor], correct_shift: bool = False, default_bits: int | None = None
) -> dict[str, torch.Tensor]:
    """QAT state dict, in any form that `state_of` reads -> integer state dict; the given one stays as it is.

    Of pools, which have no weights, only flags change.

    Below 8 bits the vendor clamps `output_shift` to [-7-b, 23-b], the bounds of its negative; the chip's register holds
    [b-23, b+7]. The default repeats the vendor, so that checkpoints are identical, and warns where the chip would then
    compute something else than training did; `correct_shift=True` writes the register's bounds, and warns where that
    differs. `default_bits` is used for layers that carry no bits (the vendor assumes 8); without it they are refused.

    Raises ValueError naming the layer: batch norm not fused, QAT never on, NaN or infinite weights, weights outside an
    ai8x layer, or no ai8x layer at all; and as `state_of`.

    Source: ai8x-synthesis, izer/quantize.py (QATv2), MAX_BIT_SHIFT method.
    """
    state_dict = state_of(state_dict)
    alone = _has(state_dict, FLAGS) and not any(key.endswith(WEIGHT) for key in state_dict)
    layers = {} if alone else {name: _layer(state_dict, name) for name in layer_names(state_dict)}
    bits = {name: _bits(layer) or default_bits or 0 for name, layer in layers.items()}
    for name, layer in layers.items():
        _check_layer(name, layer, bits[name])
    _check_others(state_dict)
    result = {key: value.detach().clone() for key, value in state_dict.items() if not key.endswith("base_b_q")}
    result |= {key: FLAGS[last].clone() for key in result if (last := key.rpartition(".")[2]) in FLAGS}
    for name, layer in layers.items():
        quantized = _quantize_layer(name, layer, bits[name], correct_shift)
        result |= {f"{name}.{key}": value for key, value in quantized.items()}
    return result


def _layer(state: Mapping, name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value.detach() for key, value in state.items() if key.startswith(f"{name}.")}


def _has(state: Mapping, last_parts) -> bool:
    return any(key.rpartition(".")[2] in last_parts for key in state)


def _bits(layer: dict) -> int:
    return int(layer["weight_bits"].item()) if "weight_bits" in layer else 0


def _check_layer(name: str, layer: dict, bits: int) -> None:
    if not _has(layer, ("weight_bits", "activation_threshold", "output_shift")):
        raise ValueError(
            f"{name}: it has weights, but no quantization state, as a SoftwareLinear has none: that runs outside the accelerator; "
            "use ai8x.Linear, or take it out of the state dict and compute it outside the network"
        )
    if not bits:
        raise ValueError(f"{name}: QAT was never on (weight_bits is 0); call initiate_qat(model, policy), or give default_bits=8")
    if bits not in BITS:
        raise ValueError(f"{name}: weight_bits is {bits}; the chip has 1, 2, 4 and 8")
    if "activation_threshold" not in layer:
        raise ValueError(f"{name}: activation_threshold is missing; give the state_dict() of a model made of ai8x layers")
    for key in (key for key in ("activation_threshold", "op.weight", "op.bias") if key in layer):
        if layer[key].dtype != torch.float32:
            raise ValueError(f"{name}: {key} is {layer[key].dtype}; give the float32 of a QAT checkpoint, after model.float()")
        if not torch.isfinite(layer[key]).all():
            raise ValueError(
                f"{name}: {key} holds NaN or infinity; train again from a sound checkpoint, with a lower learning rate"
            )
    if "adjust_output_shift" in layer and layer["adjust_output_shift"].dtype != torch.bool:
        raise ValueError(f"{name}: this checkpoint is already quantized; give the one that QAT saved")


def _check_others(state: Mapping) -> None:
    """Raise ValueError for what a network holds beside layers that can be quantized."""
    for key in state:
        if key.endswith("running_mean"):
            name = key.removesuffix(".running_mean").removesuffix(".bn")
            raise ValueError(f"{name}: its batch normalisation is not fused; call fuse_bn_layers(model) and train with QAT")
    for key in state:
        if key.endswith("weight") and not key.endswith(WEIGHT):
            raise ValueError(
                f"{key} belongs to no ai8x layer, so it has no bits and no threshold to be quantized with; build that layer "
                "from ai8x, or take it out of the state dict"
            )


def _quantize_layer(name: str, layer: dict, bits: int, correct_shift: bool) -> dict[str, torch.Tensor]:
    weight, bias, threshold = layer["op.weight"], layer.get("op.bias"), layer["activation_threshold"]
    share = float(layer.get("shift_quantile", torch.ones(1)).item())
    largest = quantile(torch.cat([t.flatten() for t in (weight, bias) if t is not None]).abs(), share)
    exact = -torch.floor(torch.log2(1.0 / largest))
    shift = exact.clamp(*shift_limits(bits))
    trained = (exact.clamp(-SHIFT_LIMIT, SHIFT_LIMIT) - threshold).clamp(-SHIFT_LIMIT, SHIFT_LIMIT)
    _warn(name, bits, shift - threshold, trained, correct_shift)
    result = {
        "output_shift": _register(shift - threshold, bits, correct_shift).reshape(1),
        "weight_bits": layer["weight_bits"].clone() if bits == _bits(layer) else torch.tensor([bits]),
        "op.weight": weight_codes(weight, bits, shift),
    }
    if bias is not None:  # else the vendor leaves bias_bits as they were
        result["bias_bits"] = torch.tensor([float(bits)])
        result["op.bias"] = weight_codes(bias, bits, shift) * 2.0 ** (bits - 8) * 128
    return result


def _register(shift: torch.Tensor, bits: int, correct_shift: bool) -> torch.Tensor:
    """`shift` within the bounds of the chip's register, or within their negatives, as the vendor has it."""
    low, high = shift_limits(bits)
    return shift.clamp(low, high) if correct_shift else shift.clamp(-high, -low)


def _warn(name: str, bits: int, shift: torch.Tensor, trained: torch.Tensor, correct_shift: bool) -> None:
    legal, vendor = (_register(shift, bits, correct) for correct in (True, False))
    if correct_shift:
        differs, (low, high) = legal != vendor, shift_limits(bits)
        text = f"{legal.item():g} is written where the vendor's quantize.py writes {vendor.item():g}, because the chip's register "
        text += f"holds [{low}, {high}] for {bits}-bit weights"
    else:
        differs = vendor != trained
        text = f"{vendor.item():g} is written, as the vendor does, but training used {trained.item():g}: the chip will give other "
        text += "outputs; use correct_shift=True, or more weight bits"
    if differs.any():
        warnings.warn(f"{name}: output_shift {text}", stacklevel=4)


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
    shift = values["output_shift"].clamp(*shift_limits(bits)) - values["activation_threshold"]
    layer = {"output_shift": _register(shift, bits, correct_shift), "op.weight": torch.tensor(model.weight(name)).float()}
    if model.bias(name) is not None:
        layer["op.bias"] = torch.tensor(model.bias(name)).float() * 2.0 ** (bits - 1)
    return layer
