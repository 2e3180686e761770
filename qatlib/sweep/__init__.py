"""Run one notebook with many parameters: `python -m qatlib.sweep NOTEBOOK --grid weight_bits=8,4,2 seed=0:3 --out runs/sweep`.

A notebook that takes part has a cell tagged `parameters` (literals only) and calls `record(pck=...)` for each number it
wants in the table. The parts: `grid` (what to run), `worker` (one run, with papermill), `store` (what is finished),
`local` and `cluster` (who runs it), `picture` (the figure), `driver` (all of it). Only `record` is loaded here, so that
a notebook pays nothing for it.
"""

from qatlib.sweep.recording import record

__all__ = ["parse_grid", "record", "run"]


def __getattr__(name: str):
    if name == "run":
        from qatlib.sweep.driver import run

        return run
    if name == "parse_grid":
        from qatlib.sweep.grid import parse_grid

        return parse_grid
    raise AttributeError(f"qatlib.sweep has no attribute {name!r}; it offers {', '.join(__all__)}")
