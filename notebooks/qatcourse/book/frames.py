"""Every position of a notebook's sliders: its cells run in a fresh kernel up to the last slider, each of which draws its frames.

A slider whose output keeps its data (`SliderFigure.stored`) is drawn from that instead: nothing has to be trained.
"""

import itertools
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ipywidgets
import nbformat
from tqdm.auto import tqdm

from qatcourse.keeper.lessons import executed
from qatcourse.pose.widgets import drawn_again
from qatcourse.viz.widgets import STORED, SliderFigure, markup, options

MOST = 500  # frames of one slider
FRAMES = "application/vnd.qatcourse.frames+json"
STILL = re.compile(r"\(Sliders at .+; run the cell to move them\.\)\s*$")  # how a slider's stored sentence ends
COLLECT = f"""
def _collect():
    import torch
    from IPython.display import display
    from qatcourse.book.frames import positions
    from qatcourse.viz.widgets import SliderFigure
    def frames(figure):
        try:
            found = positions(figure)
        except Exception as problem:
            found = {{"problem": f"{{type(problem).__name__}}: {{problem}}"}}
        display({{{FRAMES!r}: found}}, raw=True)
    SliderFigure._ipython_display_ = frames
    torch.set_num_threads(1)  # two kernels share the cores
_collect()
"""


def place(path: Path, k: int, source: str) -> str:
    """How an error names the cell with index `k`: file, number from 1, first line."""
    first = next((line.strip() for line in source.splitlines() if line.strip()), "")
    name = "/".join(path.parts[-2:]) if path.parent.name == "solutions" else path.name
    return f"{name}, cell {k + 1} ({first[:60]!r})"


def is_slider(output) -> bool:
    return bool(STILL.search(output.get("data", {}).get("text/markdown", "")))


def sliders(path: Path, notebook) -> dict[int, list[dict]]:
    """Index of cell -> the `positions` of each slider that it shows. `notebook`: as it is stored at `path`; not changed.

    Raises ValueError with file and cell where one fails, shows another number of sliders than it stored, or shows a slider whose
    positions cannot be counted.
    """
    cells = notebook.cells
    counts = {k: sum(map(is_slider, cell.get("outputs", ()))) for k, cell in enumerate(cells)}
    kept = {k: [o.data[STORED] for o in cell.get("outputs", ()) if STORED in o.get("data", {})] for k, cell in enumerate(cells)}
    found = {k: [positions(drawn_again(each)) for each in kept[k]] for k in counts if counts[k] and len(kept[k]) == counts[k]}
    if not (missing := [k for k in counts if counts[k] and k not in found]):
        return found
    ran = run(path, notebook, max(missing))
    for k in missing:
        shown = [output.data[FRAMES] for output in ran[k].outputs if FRAMES in output.get("data", {})]
        problems = [each["problem"] for each in shown if "problem" in each]
        if len(shown) != counts[k]:
            problems.append(f"stored {counts[k]} sliders and shows {len(shown)} when it runs; store its outputs again")
        if problems:
            raise ValueError(f"{place(path, k, cells[k].source)}: {problems[0]}")
        found[k] = shown
    return found


def run(path: Path, notebook, last: int) -> list:
    """The cells up to index `last`, run in a fresh kernel where a slider shows its frames.

    Raises ValueError with file and cell where one fails.
    """
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    part = nbformat.from_dict({**notebook, "cells": [nbformat.v4.new_code_cell(COLLECT), *notebook.cells[: last + 1]]})
    for cell in part.cells:
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    try:
        executed(path, notebook=part)
    except (CellControlSignal, DeadKernelError) as problem:
        code = [k for k, cell in enumerate(part.cells) if cell.cell_type == "code" and cell.source.strip()]
        at = next((k for k in code if part.cells[k].execution_count is None), code[-1])
        at = next((k for k in code if any(o.output_type == "error" for o in part.cells[k].outputs)), at)
        said = f"{getattr(problem, 'ename', type(problem).__name__)}: {getattr(problem, 'evalue', problem)}"
        raise ValueError(f"{place(path, at - 1, part.cells[at].source)} failed when it was run for its sliders. {said}") from None
    return part.cells[1:]


def of_all(notebooks: dict[Path, object], processes: int = 2) -> dict[Path, dict[int, list[dict]]]:
    """`sliders` of each notebook that shows some; two kernels at a time."""
    shows = {path: [o for cell in notebook.cells for o in cell.get("outputs", ())] for path, notebook in notebooks.items()}
    chosen = [path for path, outputs in shows.items() if any(map(is_slider, outputs))]
    pool = ThreadPoolExecutor(processes)
    try:
        jobs = pool.map(sliders, chosen, map(notebooks.get, chosen))
        return dict(zip(chosen, list(tqdm(jobs, total=len(chosen), desc="sliders"))))
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure, what has not begun is not worth waiting for


def positions(figure: SliderFigure, most: int = MOST) -> dict:
    """What a page without a kernel needs to behave like `figure`, with at most `most` positions.

    `height`: pixels; `controls`: for each its `label`, the text of every `choice`, the index `at` which it stands, whether it is
    of words (`radio`), and of how many choices these are; `frames`: (picture as HTML, sentence), the last control running fastest.
    Where there are more positions, the control with most choices loses every second one, never the one at which it stands.
    Raises TypeError for a control whose values cannot be counted.
    """
    values = {name: options(control) for name, control in figure.sliders.items()}
    at = {name: values[name].index(now) if now in values[name] else 0 for name, now in figure.values.items()}
    kept = thinned({name: len(of) for name, of in values.items()}, at, most)
    controls = [
        {
            "label": control.description or name,
            "choices": [labels(control)[k] for k in kept[name]],
            "at": kept[name].index(at[name]),
            "radio": not isinstance(control, ipywidgets.IntSlider | ipywidgets.SelectionSlider),
            "of": len(values[name]),
        }
        for name, control in figure.sliders.items()
    ]
    chosen = itertools.product(*([values[name][k] for k in kept[name]] for name in figure.sliders))
    drawn = (figure.frame(dict(zip(figure.sliders, each))) for each in chosen)
    return {"height": figure.height, "controls": controls, "frames": [(markup(*each)[0], each[1]) for each in drawn]}


def thinned(counts: dict[str, int], at: dict[str, int], most: int) -> dict[str, list[int]]:
    """name -> indices that stay, so that there are at most `most` combinations; the index `at` stays.

    >>> thinned({"weight": 9, "bits": 2}, {"weight": 3, "bits": 0}, most=10)
    {'weight': [1, 3, 5, 7], 'bits': [0, 1]}
    """
    kept = {name: list(range(count)) for name, count in counts.items()}
    while math.prod(map(len, kept.values())) > max(most, 1):
        longest = max(kept, key=lambda name: len(kept[name]))
        kept[longest] = kept[longest][kept[longest].index(at[longest]) % 2 :: 2]
    return kept


def labels(control) -> list[str]:
    """The text of each choice of a control."""
    return [str(option[0] if isinstance(option, tuple) else option) for option in getattr(control, "options", options(control))]


def thinner(figure: dict, most: int) -> dict:
    """The same figure with at most `most` frames."""
    controls = figure["controls"]
    names = [str(k) for k in range(len(controls))]
    sizes = [len(control["choices"]) for control in controls]
    kept = thinned(dict(zip(names, sizes)), {name: control["at"] for name, control in zip(names, controls)}, most)
    places = [0]
    for name, size in zip(names, sizes):
        places = [place * size + k for place in places for k in kept[name]]
    fewer = [
        {**control, "choices": [control["choices"][k] for k in kept[name]], "at": kept[name].index(control["at"])}
        for name, control in zip(names, controls)
    ]
    return {**figure, "controls": fewer, "frames": [figure["frames"][place] for place in places]}
