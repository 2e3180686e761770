"""Quantization-aware training for microcontrollers, to the last bit.

Nothing heavy is imported here: `torch`, ONNX and the doctor load when a name that needs them is first used.
"""

from importlib import import_module

__version__ = "0.1.0"


def lazy(package: str, homes: dict[str, str]):
    """(`__getattr__`, `__dir__`) of `package`, in which each name of `homes` is imported from its module on first use."""

    def find(name: str):
        if name not in homes:
            raise AttributeError(f"{package} has no {name!r}; it offers {', '.join(sorted(homes))} and its modules")
        module = import_module(homes[name])
        return module if module.__name__ == f"{package}.{name}" else getattr(module, name)

    return find, lambda: [*homes]


_HOMES = {
    "ai8x": "qatlib.ai8x", "diagnose": "qatlib.doctor", "quantize_checkpoint": "qatlib.export.vendor",
    "quantize_model": "qatlib.integer.convert", "save_checkpoint": "qatlib.integer.checkpoint",
    "load_checkpoint": "qatlib.integer.checkpoint",
}  # fmt: skip
__all__ = ["__version__", *_HOMES]
__getattr__, __dir__ = lazy(__name__, _HOMES)
