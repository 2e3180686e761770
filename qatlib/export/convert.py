"""From a trained network to the compact int8 model: `quantize_model`, and `compact_from_checkpoint` for the vendor's integers."""

import copy
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from qatlib.ai8x import device as target
from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.ai8x.scales import trace, unwrap
from qatlib.compact import CompactModel, pack
from qatlib.export.checkpoint import WEIGHT
from qatlib.export.graph_of import LayerCodes, build
from qatlib.export.quantized import QuantizedModel


def quantize_model(model: nn.Module, bit_width: int | None = None, input_shape=None, sample=None) -> QuantizedModel:
    """The compact integer model of a network made of ai8x layers; `model` stays as it is.

    `bit_width` None takes every layer's own bits from QAT, and 8 where QAT was never on. A number (1, 2, 4, 8) is used for all
    layers, with a warning where training used another. A network that is calibrated (`fuse_bn_layers`, `pre_qat`) but not
    trained with QAT is quantized as it stands (post-training quantization).
    `input_shape` is (C, H, W); it is taken from `sample` or from `model.input_shape` when it is not given. With `sample`, a
    batch of inputs on the 1/128 grid, both networks compute it, and a warning tells how many outputs differ.

    Raises ValueError naming the layer and the remedy: batch norm not fused, never calibrated, NaN weights, stride above 1,
    operations that the chip lacks, `output_shift` beyond its register.
    """
    root = _root(model)
    shape = _input_shape(root, input_shape, sample)
    _check_layers(root, bit_width)
    trained = _with_bits(root, bit_width)
    codes = {name: _layer_codes(name, layer) for name, layer in _layers(trained).items() if layer.op is not None}
    graph = build(trace(trained, shape), dict(trained.named_modules()), codes, shape, type(root).__name__)
    quantized = QuantizedModel(_compact(graph, codes, _state(trained, codes)))
    if sample is not None:
        _compare(trained, quantized, sample)
    return quantized


def compact_from_checkpoint(model: nn.Module, state_dict: dict[str, torch.Tensor], input_shape=None) -> QuantizedModel:
    """The compact model of the vendor's integer checkpoint; `model` gives the graph only (its weights do not matter).

    Raises ValueError naming the layer for a checkpoint that holds no integers, or that does not belong to `model`.
    """
    root = _root(model)
    shape = _input_shape(root, input_shape, None)
    layers = {name: layer for name, layer in _layers(root).items() if layer.op is not None}
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"the checkpoint is a {type(state_dict).__name__}; give a state dict")
    if missing := layers.keys() - {key.removesuffix(WEIGHT) for key in state_dict if key.endswith(WEIGHT)}:
        raise ValueError(f"{min(missing)}: the checkpoint has no such layer; give the one that belongs to {type(root).__name__}")
    codes = {name: stored_codes(name, state_dict) for name in layers}
    state = {}
    for name, module in root.named_modules():
        if isinstance(module, (QuantizationAwareModule, Eltwise)):
            keys = (key for key in state_dict if key.rpartition(".")[0] == name)
            state[name] = {key.rpartition(".")[2]: _described(state_dict[key]) for key in keys}
        if name in layers:
            shift = codes[name].shift + float(state_dict[f"{name}.activation_threshold"])
            state[name]["output_shift"] = [[shift], "float32"]
    graph = build(trace(root, shape), dict(root.named_modules()), codes, shape, type(root).__name__)
    return QuantizedModel(_compact(graph, codes, state))


def _root(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}; give a torch network of ai8x layers (a file: load_model(path))")
    root = unwrap(model)
    return nn.Sequential(root) if isinstance(root, QuantizationAwareModule) else root


def _layers(model: nn.Module) -> dict[str, QuantizationAwareModule]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizationAwareModule)}


def _input_shape(model: nn.Module, input_shape, sample) -> tuple[int, ...]:
    shape = input_shape or (None if sample is None else tuple(sample.shape[1:])) or getattr(model, "input_shape", None)
    if shape is None:
        raise ValueError(f"{type(model).__name__} has no input_shape; give input_shape=(C, H, W)")
    return tuple(int(n) for n in shape)


def _check_layers(model: nn.Module, bit_width: int | None) -> None:
    layers = _layers(model)
    if not any(layer.op is not None for layer in layers.values()):
        raise ValueError(
            f"{type(model).__name__} has no ai8x layer; build it from ai8x.Conv2d, ai8x.FusedConv2dReLU and the like"
        )
    if bit_width not in (None, 1, 2, 4, 8):
        raise ValueError(f"bit_width is {bit_width!r}; use 1, 2, 4 or 8, or None for the bits that each layer was trained with")
    if target.dev.simulate:
        raise ValueError("simulate is on; call ai8x.set_device(device, False, round_avg) and give the QAT model")
    calibrated = any(p.item() for layer in layers.values() for p in (layer.activation_threshold, layer.final_scale))
    for name, layer in layers.items():
        _check_layer(name, layer, calibrated)


def _check_layer(name: str, layer: QuantizationAwareModule, calibrated: bool) -> None:
    if layer.bn is not None:
        raise ValueError(
            f"{name}: its batch normalisation is not fused; call fuse_bn_layers(model), pre_qat(...) and train with QAT"
        )
    for parameter, value in layer.named_parameters():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{name}: {parameter} holds NaN or infinity; train again from a sound checkpoint, with a lower learning rate"
            )
    bits = layer.weight_bits.item()
    if not bits and not calibrated:
        raise ValueError(
            f"{name}: QAT was never on (weight_bits is 0) and the network was never calibrated; call fuse_bn_layers(model), "
            "pre_qat(model, loader, policy) and initiate_qat(model, policy)"
        )
    if bits and layer.op is not None and not layer.adjust_output_shift.item():
        raise ValueError(f"{name}: it holds an integer checkpoint already; use compact_from_checkpoint(model, state_dict)")
    if layer.op is not None and layer.bias_bits.item() != bits:
        raise ValueError(
            f"{name}: bias_bits {layer.bias_bits.item()} differ from weight_bits {bits}; the chip has one grid for both"
        )


def _with_bits(model: nn.Module, bit_width: int | None) -> nn.Module:
    """The model itself, or a copy with QAT on at `bit_width` where its own bits differ."""
    stored = {name: layer.weight_bits.item() for name, layer in _layers(model).items() if layer.op is not None}
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
    for name, layer in _layers(model).items():
        bits = wanted.get(name, bit_width or 8)
        layer.init_module(bits, bits, True, True, layer.shift_quantile.item())
    for module in model.modules():
        if isinstance(module, Eltwise):
            module.set_clamp(True)
    return model


def _layer_codes(name: str, layer: QuantizationAwareModule) -> LayerCodes:
    weight, bias = (None if t is None else t.cpu().numpy().astype(np.int8) for t in layer.quantized_weight())
    return LayerCodes(weight, bias, layer.weight_bits.item(), _whole(name, "output_shift", layer.effective_shift()),
                      _whole(name, "final_scale", layer.final_scale))  # fmt: skip


def stored_codes(name: str, state: dict[str, torch.Tensor]) -> LayerCodes:
    """One layer's integers from the vendor's checkpoint. Raises ValueError where it holds none."""
    bits = int(state[f"{name}.weight_bits"].item())
    weight, bias = state[f"{name}.op.weight"], state.get(f"{name}.op.bias")
    bias = None if bias is None else bias / 2.0 ** (bits - 1)
    if any(t is not None and not torch.equal(t, t.round()) for t in (weight, bias)):
        raise ValueError(f"{name}: its weights are no integers; give the result of quantize_checkpoint(state_dict)")
    shift, final = (_whole(name, key, state[f"{name}.{key}"]) for key in ("output_shift", "final_scale"))
    return LayerCodes(_int8(weight), None if bias is None else _int8(bias), bits, shift, final)


def _int8(t: torch.Tensor) -> np.ndarray:
    return t.cpu().numpy().astype(np.int8)


def _whole(name: str, what: str, value: torch.Tensor) -> int:
    if value.item() != int(value.item()):
        raise ValueError(f"{name}: {what} {value.item()} is no whole number; call pre_qat again, which sets powers of two")
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
            result[name] |= {"output_shift": _described(module.weight_shift()), "bias_bits": [[float(codes[name].bits)], "float32"]}
    return result


def _compact(graph: dict, codes: dict[str, LayerCodes], state: dict) -> CompactModel:
    used = {op["layer"] for op in graph["ops"] if "layer" in op}
    tensors = {}
    for name in (name for name in codes if name in used):
        tensors[f"{name}.weight"] = pack(codes[name].weight, codes[name].bits)
        if codes[name].bias is not None:
            tensors[f"{name}.bias"] = codes[name].bias
    return CompactModel({**graph, "state": state}, tensors)


@torch.no_grad()
def _compare(model: nn.Module, quantized: QuantizedModel, sample: torch.Tensor) -> None:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        wanted, got = (y if isinstance(y, (tuple, list)) else (y,) for y in (model(sample), quantized(sample)))
    finally:
        for module in training:
            module.training = True
    different = sum(int((a != b).sum()) for a, b in zip(wanted, got, strict=True))
    if different:
        total = sum(y.numel() for y in got)
        warnings.warn(f"{different} of {total} outputs differ from the QAT network's on the sample", stacklevel=3)
