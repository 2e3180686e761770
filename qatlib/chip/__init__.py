"""The MAX78000 and MAX78002: their limits, memories and schedule, and whether a network fits (`fit`)."""

from qatlib import lazy

_HOMES = {
    "fit": "qatlib.chip.meter",
    "Fit": "qatlib.chip.meter",
    "LayerSpec": "qatlib.chip.spec",
    "Simulator": "qatlib.chip.simulator",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
