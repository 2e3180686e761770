"""Run one notebook with many parameters: `python -m qatcourse.sweep NOTEBOOK --grid weight_bits=8,4,2 seed=0:3 --out runs/sweep`.

A notebook that takes part has a cell tagged `parameters` (literals only) and calls `record(pck=...)` for each number it
wants in the table. The parts: `grid` (what to run), `notebook` (the notebook and where notebooks go), `worker` (one run, with
papermill), `store` (what is finished), `executors` (who runs it), `picture` (the figure), `driver` (all of it). Each is loaded
on first use, so that a notebook pays nothing for the others.
"""

from qatlib import lazy

_HOMES = {name: f"qatcourse.sweep.{home}" for name, home in {"parse_grid": "grid", "record": "recording", "run": "driver"}.items()}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy(__name__, _HOMES)
