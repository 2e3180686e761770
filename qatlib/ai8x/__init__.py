"""A drop-in for Analog Devices' `ai8x` module (QATv2): same names, same checkpoints, same numbers to the last bit.

Read in this order: `mode` (which chip, and how layers compute), `shift`, `layer` (the arithmetic), `catalogue` (names), `eltwise`,
then the way from float to QAT: `qat` (the sequence), `statistics` (thresholds), `scales` (one where branches meet), `policy`.
"""

from importlib import import_module

from qatlib.ai8x import mode as _device
from qatlib.ai8x.catalogue import LAYERS
from qatlib.ai8x.eltwise import Add, Eltwise, Sub
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.ai8x.mode import Device, set_device
from qatlib.ai8x.shift import calc_weight_shift

globals().update(LAYERS)

_QAT = ("fuse_bn_layers", "pre_qat", "initiate_qat", "start_qat", "update_model", "update_optimizer")
_LATER = {  # name -> its module, imported when the name is first used
    **dict.fromkeys(_QAT, "qatlib.ai8x.qat"),
    **dict.fromkeys(("init_hist", "init_threshold", "release_hist"), "qatlib.ai8x.statistics"),
    **dict.fromkeys(("QATPolicy", "load_policy"), "qatlib.ai8x.policy"), "from_torch": "qatlib.port.from_torch",
    **dict.fromkeys(("fold", "normalize", "unfold_batch"), "qatlib.port.images"),
    **dict.fromkeys(("BitwiseOr", "BitwiseXor", "Empty"), "qatlib.port.names"),
    "apply_scales": "qatlib.ai8x.scales", "trace": "qatlib.ai8x.graph", "fit": "qatlib.chip.meter",
}  # fmt: skip

__all__ = ["Add", "Device", "Eltwise", "QuantizationAwareModule", "Sub", "calc_weight_shift", "set_device", *LAYERS, *_LATER]


def __getattr__(name: str):
    if name == "dev":
        return _device.dev
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    if name.startswith("__"):
        raise AttributeError(f"qatlib.ai8x has no {name!r}")
    return import_module("qatlib.port.names").find(name)  # what only files written for the vendor's module ask for
