"""Quantization-aware training for microcontrollers, to the last bit.

Nothing heavy is imported here: `torch`, ONNX and the widgets load when a name that needs them is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_LAZY = {
    "ai8x": "qatlib.ai8x",
    "quantize_model": "qatlib.export",
    "quantize_checkpoint": "qatlib.export",
    "diagnose": "qatlib.doctor",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"qatlib has no attribute {name!r}; it offers {', '.join(sorted(_LAZY))} and its sub-modules")
    module = import_module(_LAZY[name])
    return module if name == module.__name__.rpartition(".")[2] else getattr(module, name)


def __dir__():
    return __all__
