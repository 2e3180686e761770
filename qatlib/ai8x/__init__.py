"""A drop-in for Analog Devices' `ai8x` module (QATv2): same names, same checkpoints, same numbers to the last bit.

Read in this order: `mode` (which chip, and how layers compute), `layer` (the arithmetic), `catalogue` (the names), `eltwise`,
then the way from float to QAT: `qat` (the sequence), `statistics` (thresholds), `scales` (one where branches meet), `policy`.
"""

from importlib import import_module

from qatlib.ai8x import mode as _device
from qatlib.ai8x.catalogue import LAYERS
from qatlib.ai8x.eltwise import Add, BitwiseOr, BitwiseXor, Eltwise, Empty, Sub
from qatlib.ai8x.layer import QuantizationAwareModule, calc_weight_shift
from qatlib.ai8x.mode import Device, fold, normalize, set_device, unfold_batch

globals().update(LAYERS)

_LATER = {
    "fuse_bn_layers": "qat", "pre_qat": "qat", "initiate_qat": "qat", "update_model": "qat", "update_optimizer": "qat",
    "start_qat": "qat", "init_hist": "statistics", "release_hist": "statistics", "init_threshold": "statistics",
    "apply_scales": "scales", "trace": "graph", "QATPolicy": "policy", "load_policy": "policy",
}  # fmt: skip

__all__ = [
    "Add", "BitwiseOr", "BitwiseXor", "Device", "Eltwise", "Empty", "QuantizationAwareModule", "Sub", "calc_weight_shift", "fold",
    "normalize", "set_device", "unfold_batch", *LAYERS, *_LATER, "fit",
]  # fmt: skip


def __getattr__(name: str):
    if name == "dev":
        return _device.dev
    if name in _LATER:
        return getattr(import_module(f"qatlib.ai8x.{_LATER[name]}"), name)
    if name == "fit":  # the one look from the layers to the chip: whoever has the layers asks whether they fit
        return import_module("qatlib.chip.meter").fit
    if "SoftwareLinear" in name:
        raise AttributeError(f"{name} ran outside the accelerator of device 84, which is not supported; use ai8x.Linear")
    raise AttributeError(f"qatlib.ai8x has no {name!r}")
