"""One trained network for every engine: integer checkpoint, compact int8 file, ONNX, C, and the chip's synthesis inputs."""

from importlib import import_module

_LAZY = {
    "quantize_checkpoint": "checkpoint", "compact_to_checkpoint": "checkpoint",
    "quantize_model": "convert", "compact_from_checkpoint": "convert", "QuantizedModel": "quantized", "load_compact": "quantized",
    "export_onnx": "onnx_graph", "export_c": "c_project", "export_max78000": "max78000",
    "export_all": "check", "check_folder": "check",
}  # fmt: skip
__all__ = list(_LAZY)


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"qatlib.export has no {name!r}; it offers {', '.join(sorted(_LAZY))}")
    return getattr(import_module(f"qatlib.export.{_LAZY[name]}"), name)


def __dir__():
    return __all__
