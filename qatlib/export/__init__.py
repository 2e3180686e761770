"""One trained network for every engine: integer checkpoint, compact int8 file, ONNX, C, and the chip's synthesis inputs."""

from qatlib import lazy

_HOMES = {
    "quantize_checkpoint": "qatlib.export.vendor", "compact_to_checkpoint": "qatlib.export.vendor",
    "export_onnx": "qatlib.export.onnx_graph", "export_c": "qatlib.export.c_project",
    "export_max78000": "qatlib.export.max78000", "export_all": "qatlib.export.check", "check_folder": "qatlib.export.check",
}  # fmt: skip
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
