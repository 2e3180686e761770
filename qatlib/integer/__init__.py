"""A trained network as integers: its operations, the compact int8 file, and the NumPy engine that defines what is right.

`compact` is the file, `engine` computes it with NumPy; `convert` makes a compact model of a trained network, `quantized` runs one
like a torch module.
"""

from qatlib import lazy

_HOMES = {
    "CompactModel": "qatlib.integer.compact", "Integer": "qatlib.integer.engine", "QuantizedModel": "qatlib.integer.quantized",
    "load_compact": "qatlib.integer.quantized", "quantize_model": "qatlib.integer.convert",
    "compact_from_checkpoint": "qatlib.integer.convert",
}  # fmt: skip
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
