"""What every exporter accepts as `model`: a trained network, its compact form, or the compact file."""

import os

import numpy as np

from qatlib.chip.operations import REARRANGING
from qatlib.integer.compact import CompactModel
from qatlib.integer.engine import INT32_MAX, engine_of


def as_compact(model, input_shape: tuple[int, ...] | None = None) -> CompactModel:
    """The compact model of a torch network after QAT, of the result of `quantize_model`, or of a `model_8bit.pth` path.

    `input_shape`, (C, H, W), is for networks that have no attribute of that name. A network whose QAT was never on is refused:
    its outputs would not be those it was evaluated with; post-training quantization is asked for with
    `quantize_model(model, bit_width=8)`. Raises ValueError or TypeError naming what cannot be exported (see `quantize_model` and
    `CompactModel.load`).
    """
    if isinstance(model, CompactModel):
        return model
    if isinstance(model, (str, os.PathLike)):
        return CompactModel.load(model)
    if isinstance(compact := getattr(model, "compact", None), CompactModel):
        return compact
    if not hasattr(model, "named_modules"):
        raise TypeError(f"a {type(model).__name__} cannot be exported; give a trained network, a compact model or its file")
    from qatlib.integer.convert import convert

    compact, _ = convert(model, input_shape=input_shape)
    _refuse_without_qat(model)
    return compact


def _refuse_without_qat(model) -> None:
    """Raise ValueError naming the first layer with weights and no bits."""
    from qatlib.ai8x.qat import layers

    if without := [name for name, layer in layers(model).items() if layer.op is not None and not layer.weight_bits.item()]:
        raise ValueError(
            f"{without[0]}: QAT was never on (weight_bits is 0); call initiate_qat(model, policy) and train, or give "
            "quantize_model(model, bit_width=8) for post-training quantization"
        )


def check_accumulators(model: CompactModel) -> None:
    """Raise OverflowError, naming the layer, if an input could drive a sum beyond 32 bits (see `largest_sum`)."""
    for name in (name for name, largest in engine_of(model).largest.items() if largest > INT32_MAX):
        raise OverflowError(f"{name}: its sums may exceed 32 bits; give the layer fewer inputs or smaller weights")


def sample_codes(model: CompactModel, sample: np.ndarray | None, count: int = 4) -> np.ndarray:
    """`sample` as int8 codes (N, *input_shape), checked; without one: the two extremes, then random pictures, always the same."""
    shape = tuple(model.graph["input_shape"])
    if sample is None:
        codes = np.random.default_rng(0).integers(-128, 128, (count, *shape)).astype(np.int8)
        codes[0], codes[min(1, count - 1)] = -128, 127
        return codes
    sample = np.asarray(sample)
    if not np.issubdtype(sample.dtype, np.integer):
        raise TypeError(f"the sample is {sample.dtype}; give integer codes, round(128·x) for real x on the 1/128 grid")
    if sample.shape == shape:
        sample = sample[None]
    if sample.shape[1:] != shape or not len(sample):
        raise ValueError(f"the sample has shape {sample.shape}; this network reads (N, {', '.join(map(str, shape))})")
    if sample.min() < -128 or sample.max() > 127:
        raise ValueError(f"sample codes from {sample.min()} to {sample.max()}; they must lie in [-128, 127]")
    return sample.astype(np.int8)


def exponents(model: CompactModel) -> dict[str, int]:
    """log2 of the real value of one integer, by operation: of the outputs, and of what they are rearranged from."""
    found = {output["op"]: output["exponent"] for output in model.graph["outputs"]}
    for op in reversed(model.ops):
        if op["name"] in found and op["kind"] in ("concat", *REARRANGING):
            for name, shift in zip(op["inputs"], op.get("shifts", [0] * len(op["inputs"]))):
                found.setdefault(name, found[op["name"]] + shift)
    return found


def answer_rows(model: CompactModel, pictures: np.ndarray, abs_first: bool = False) -> np.ndarray:
    """The integer engine's outputs for `pictures`, int32 (N, all outputs one after the other); with `abs_first` training's."""
    outputs = engine_of(model, abs_first)(pictures)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return np.concatenate([np.asarray(y).reshape(len(pictures), -1).astype(np.int32) for y in outputs], axis=1)
