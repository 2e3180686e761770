"""From a trained network to the compact int8 model: `quantize_model`, and `compact_from_checkpoint` for the vendor's integers."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from qatlib.ai8x import mode as target
from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.graph import evaluating
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.ai8x.qat import check_weights, clamp_sums, layers, tensors_in
from qatlib.chip.lowering import Lowered, lower, network
from qatlib.chip.operations import REARRANGING, WEIGHTED
from qatlib.integer.checkpoint import WEIGHT, set_rounding, state_of
from qatlib.integer.compact import CompactModel, pack
from qatlib.integer.quantized import QuantizedModel

STORED = ("op.weight", "weight_bits", "output_shift", "activation_threshold", "final_scale")  # of a layer, in every checkpoint
CODES = -7  # exponent of int8 codes: a code k stands for k / 2^7


@dataclass(frozen=True)
class LayerCodes:
    """One layer's integers: weight int8 (codes of `bits`), bias int8 or None, `shift` between accumulator and output, log2."""

    weight: np.ndarray
    bias: np.ndarray | None
    bits: int
    shift: int
    final_scale: int


def quantize_model(model: nn.Module, bit_width: int | None = None, input_shape=None, sample=None) -> QuantizedModel:
    """The compact integer model of a network made of ai8x layers; `model` stays as it is.

    `bit_width` None takes every layer's own bits from QAT, and 8 where QAT was never on. A number (1, 2, 4, 8) is used for all
    layers, with a warning where training used another. A network that is calibrated (`fuse_bn_layers`, `pre_qat`) but not
    trained with QAT is quantized as it stands (post-training quantization).
    `input_shape` is (C, H, W); it is taken from `sample` or from `model.input_shape` when it is not given. With `sample`, a
    batch of inputs on the 1/128 grid, both networks compute it, and a warning tells how many outputs differ, and whether that is
    all because of Abs (see `engine.narrow`).

    Raises ValueError naming the layer and the remedy: batch norm not fused, never calibrated, NaN weights, stride above 1,
    operations that the chip lacks, `output_shift` beyond its register.
    """
    shape = tuple(sample.shape[1:]) if input_shape is None and sample is not None else input_shape
    compact, trained = convert(model, bit_width, shape)
    quantized = QuantizedModel(compact)
    if sample is not None:
        _compare(trained, quantized, sample)
    return quantized


def convert(model: nn.Module, bit_width: int | None = None, input_shape=None) -> tuple[CompactModel, nn.Module]:
    """The compact model, and the network in QAT that it was made of (`model` or a copy); see `quantize_model`."""
    root = network(model)
    _check_layers(root, bit_width)
    lowered = lower(root, input_shape)
    lowered.require()
    trained = _with_bits(root, bit_width)
    codes = {name: _layer_codes(name, layer) for name, layer in layers(trained).items() if layer.op is not None}
    return _compact(lowered, codes, _state(trained, codes)), trained


def compact_from_checkpoint(model: nn.Module, state_dict: dict[str, torch.Tensor], input_shape=None) -> QuantizedModel:
    """The compact model of the vendor's integer checkpoint, in any form that `state_of` reads; `model` gives the graph only.

    Average pools round as in `with_state`. Raises ValueError naming the layer for a checkpoint that holds no integers, or that does
    not belong to `model`.
    """
    root, content = copy.deepcopy(network(model)), state_dict
    state_dict = state_of(content, own=root.state_dict())
    set_rounding(root, content, "the checkpoint")
    lowered = lower(root, input_shape)
    lowered.require()
    weighted = {name: layer for name, layer in layers(root).items() if layer.op is not None}
    if missing := weighted.keys() - {key.removesuffix(WEIGHT) for key in state_dict if key.endswith(WEIGHT)}:
        raise ValueError(f"{min(missing)}: the checkpoint has no such layer; give the one that belongs to {type(root).__name__}")
    codes = {name: stored_codes(name, state_dict) for name in weighted}
    state = {}
    for name, module in root.named_modules():
        if isinstance(module, (QuantizationAwareModule, Eltwise)):
            keys = (key for key in state_dict if key.rpartition(".")[0] == name)
            state[name] = {key.rpartition(".")[2]: _described(state_dict[key]) for key in keys}
        if name in weighted:
            shift = codes[name].shift + float(state_dict[f"{name}.activation_threshold"])
            state[name]["output_shift"] = [[shift], "float32"]
    return QuantizedModel(_compact(lowered, codes, state))


def _check_layers(model: nn.Module, bit_width: int | None) -> None:
    found = layers(model)
    if bit_width not in (None, 1, 2, 4, 8):
        raise ValueError(f"bit_width is {bit_width!r}; use 1, 2, 4 or 8, or None for the bits that each layer was trained with")
    if target.dev.simulate:
        raise ValueError("simulate is on; call ai8x.set_device(device, False, round_avg) and give the QAT model")
    check_weights(model)
    calibrated = any(p.item() for layer in found.values() for p in (layer.activation_threshold, layer.final_scale))
    calibrated |= all(layer.op is None for layer in found.values())  # pools alone: refused as such
    for name, layer in found.items():
        _check_layer(name, layer, calibrated)


def _check_layer(name: str, layer: QuantizationAwareModule, calibrated: bool) -> None:
    if layer.bn is not None:
        raise ValueError(
            f"{name}: its batch normalisation is not fused; start again "
            "from the float network, ai8x.start_qat(model, train_loader, policy)"
        )
    for parameter, value in layer.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{name}: {parameter} holds NaN or infinity; train again from a sound checkpoint, with a lower learning rate"
            )
    bits = layer.weight_bits.item()
    if not bits and not calibrated:
        raise ValueError(
            f"{name}: QAT was never on (weight_bits is 0) and the network was never calibrated; call "
            "ai8x.start_qat(model, train_loader, policy)"
        )
    if bits and layer.op is not None and not layer.adjust_output_shift.item():
        raise ValueError(f"{name}: it holds an integer checkpoint already; use compact_from_checkpoint(model, state_dict)")
    if layer.op is not None and layer.bias_bits.item() != bits:
        raise ValueError(
            f"{name}: bias_bits {layer.bias_bits.item()} differ from weight_bits {bits}; the chip has one grid for both"
        )


def _with_bits(model: nn.Module, bit_width: int | None) -> nn.Module:
    """The model itself, or a copy with QAT on at `bit_width` where its own bits differ."""
    stored = {name: layer.weight_bits.item() for name, layer in layers(model).items() if layer.op is not None}
    wanted = {name: bit_width or bits or 8 for name, bits in stored.items()}
    if wanted == stored:
        return model
    if other := [name for name, bits in stored.items() if bits and bits != wanted[name]]:
        warnings.warn(
            f"{', '.join(other)}: trained with {', '.join(str(stored[name]) for name in other)} bits and quantized to {bit_width}; "
            "expect other outputs than in training",
            stacklevel=3,
        )
    model = copy.deepcopy(model)
    for name, layer in layers(model).items():
        bits = wanted.get(name, bit_width or 8)
        layer.init_module(bits, bits, True, True, layer.shift_quantile.item())
    clamp_sums(model, True)
    return model


def _layer_codes(name: str, layer: QuantizationAwareModule) -> LayerCodes:
    weight, bias = (None if t is None else t.cpu().numpy().astype(np.int8) for t in layer.quantized_weight())
    return LayerCodes(weight, bias, layer.weight_bits.item(), _whole(name, "output_shift", layer.effective_shift()),
                      _whole(name, "final_scale", layer.final_scale))  # fmt: skip


def stored_codes(name: str, state: dict[str, torch.Tensor]) -> LayerCodes:
    """One layer's integers from the vendor's checkpoint. Raises ValueError where it holds none."""
    if lacking := [key for key in STORED if f"{name}.{key}" not in state]:
        raise ValueError(f"{name}: the checkpoint lacks {lacking[0]}; give the result of quantize_checkpoint(state_dict)")
    bits = int(state[f"{name}.weight_bits"].item())
    weight, bias = state[f"{name}.op.weight"], state.get(f"{name}.op.bias")
    bias = None if bias is None else bias / 2.0 ** (bits - 1)
    if any(t is not None and not torch.equal(t, t.round()) for t in (weight, bias)):
        raise ValueError(f"{name}: its weights are no integers; give the result of quantize_checkpoint(state_dict)")
    shift, final = (_whole(name, key, state[f"{name}.{key}"]) for key in ("output_shift", "final_scale"))
    return LayerCodes(_int8(weight), None if bias is None else _int8(bias), bits, shift, final)


def integers(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is what the vendor's quantize.py (or `quantize_checkpoint`) writes: whole weights beyond 1."""
    weights = [value for key, value in state.items() if key.endswith(WEIGHT)]
    return all(torch.equal(w, w.round()) for w in weights) and any(bool((w.abs() > 1).any()) for w in weights)


def _int8(t: torch.Tensor) -> np.ndarray:
    return t.cpu().numpy().astype(np.int8)


def _whole(name: str, what: str, value: torch.Tensor) -> int:
    if value.item() != int(value.item()):
        raise ValueError(f"{name}: {what} {value.item()} is no whole number; start again from the float network, "
                         "ai8x.start_qat(model, train_loader, policy), which sets powers of two")  # fmt: skip
    return int(value.item())


def _described(value: torch.Tensor) -> list:
    plain = value + 0.0 if value.is_floating_point() else value  # no -0.0: the same network gives the same bytes
    return [plain.tolist(), str(value.dtype).removeprefix("torch.")]


def _state(model: nn.Module, codes: dict[str, LayerCodes]) -> dict[str, dict]:
    """What the vendor's checkpoint needs besides integers, as `compact_to_checkpoint` reads it (`output_shift`: of the weights)."""
    result = {}
    for name, module in model.named_modules():
        if isinstance(module, (QuantizationAwareModule, Eltwise)):
            result[name] = {key: _described(value) for key, value in module.state_dict().items() if "." not in key}
        if isinstance(module, QuantizationAwareModule):
            result[name] |= {"quantize_activation": [[1.0], "float32"], "adjust_output_shift": [[0.0], "float32"]}
        if name in codes:
            result[name]["output_shift"] = _described(module.weight_shift())
            if codes[name].bias is not None:  # else the vendor leaves bias_bits as they were
                result[name]["bias_bits"] = [[float(codes[name].bits)], "float32"]
    return result


def _compact(lowered: Lowered, codes: dict[str, LayerCodes], state: dict) -> CompactModel:
    ops, exponents = [], {"input": CODES}
    for op in lowered.ops:
        layer = codes.get(op.get("layer"))
        exponents[op["name"]] = _exponent(op, exponents, layer)
        trained = {} if layer is None else {"weight_bits": layer.bits, "output_shift": layer.shift}
        if op.get("host") and any(shifts := [exponents[name] - exponents[op["name"]] for name in op["inputs"]]):
            trained = {"shifts": shifts}
        ops.append({key: value for key, value in (op | trained).items() if key != "bias"})
    graph = {
        "format": 1, "arch": lowered.arch, "device": target.dev.device, "input_shape": list(lowered.input_shape),
        "input": "int8 codes k/128", "ops": ops,
        "outputs": [{"op": name, "exponent": exponents[name]} for name in lowered.outputs], "state": state,
    }  # fmt: skip
    used = dict.fromkeys(op["layer"] for op in ops if op["kind"] in WEIGHTED)
    tensors = {f"{name}.weight": pack(codes[name].weight, codes[name].bits) for name in used}
    tensors |= {f"{name}.bias": codes[name].bias for name in used if codes[name].bias is not None}
    return CompactModel(graph, tensors)


def _exponent(op: dict, exponents: dict[str, int], layer: LayerCodes | None) -> int:
    """log2 of the real value of one code that `op` gives. Raises ValueError where its operands are at other scales than input."""
    found = {exponents[name] for name in op["inputs"]}
    moved = op["kind"] in ("concat", *REARRANGING) and len(found) == 1
    if op.get("host") or moved or op["kind"] == "pool" and op["pool"]["type"] == "max":
        return min(found)
    for name in op["inputs"]:
        if exponents[name] != CODES:
            raise ValueError(
                f"{name}: its final_scale is not 0 (or it is wide), but {op['name']} reads it, at another scale; end the "
                "network with a layer, or define layers in execution order and start from the float checkpoint again"
            )
    return CODES if layer is None else layer.final_scale - (layer.bits + 6 if op["wide"] else 7)


def _compare(model: nn.Module, quantized: QuantizedModel, sample: torch.Tensor) -> None:
    with evaluating(model):
        wanted, got = tensors_in(model(sample)), tensors_in(quantized(sample))
    different = sum(int((a != b).sum()) for a, b in zip(wanted, got, strict=True))
    if different:
        total, same = sum(y.numel() for y in got), all(map(torch.equal, wanted, tensors_in(quantized(sample, abs_first=True))))
        reason = ": the chip takes Abs after rounding, training before it" if same else ""
        warnings.warn(f"{different} of {total} outputs differ from the QAT network's on the sample{reason}", stacklevel=3)
