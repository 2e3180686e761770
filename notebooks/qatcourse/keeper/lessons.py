"""The thirteen lessons: what each gives, what it needs, how long it takes (`python -m qatcourse.keeper.notebooks --time`).

Minutes for a reader are an estimate (reading, predicting, exercises). Seconds to run are measured and kept in
data/lesson_seconds.json with the computer they were measured on; a lesson that was never measured has none.
"""

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from qatcourse import DATA, ROOT
from qatlib.files import write_atomic

SECONDS = DATA / "lesson_seconds.json"


@dataclass(frozen=True)
class Lesson:
    """`number` as in the file name, `needs`: numbers of the lessons before it, `minutes`: a reader's time, estimated."""

    number: str
    name: str
    title: str
    gives: str
    needs: tuple[str, ...]
    minutes: int

    @property
    def path(self) -> Path:
        return ROOT / "notebooks" / f"{self.number}_{self.name}.ipynb"


LESSONS = (
    Lesson("00", "start_here", "Start here", "the map, a set-up that works", (), 10),
    Lesson("01", "numbers_and_quantizers", "Numbers and quantizers", "codes, scales, rounding, clipping", ("00",), 30),
    Lesson("02", "straight_through", "The straight-through estimator", "gradients through rounding", ("01",), 25),
    Lesson("03", "ai8x_layers", "ai8x layers", "shifts, thresholds, how QAT is switched on", ("02",), 35),
    Lesson("04", "traditional_ptq_qat", "Traditional training, PTQ and QAT", "when QAT pays, with numbers", ("03",), 30),
    Lesson("05", "train_pose_tiny", "Train the tiny pose network", "your own trained network", ("04",), 30),
    Lesson("06", "inspect_parameters", "Inspect the parameters", "the doctor: is QAT on, is it sound?", ("05",), 25),
    Lesson("07", "export_int8", "Export to int8", "integers, ONNX, C, a microcontroller, bit for bit", ("05",), 30),
    Lesson("08", "distillation", "Distillation", "a smaller network from a bigger one", ("04",), 20),
    Lesson("09", "sweep", "Sweeps and mixed precision", "many runs, mixed bits, the Pareto front", ("05",), 25),
    Lesson("10", "claims", "The claims page", "what to believe of a QAT text", ("04",), 30),
    Lesson("11", "break_it", "Break it", "ten bugs found and fixed", ("06", "07"), 40),
    Lesson("12", "two_answers", "Two answers", "why the mean of two answers is no answer", ("05",), 25),
)


def seconds() -> dict[str, float]:
    """number -> measured seconds to run the lesson, without those that were not measured."""
    return json.loads(SECONDS.read_text())["seconds"] if SECONDS.is_file() else {}


def rows() -> list[dict]:
    """One table row a lesson, with a reader's minutes and the seconds its cells run."""
    measured = seconds()
    return [
        {
            "lesson": f"{lesson.number} {lesson.title}",
            "you get": lesson.gives,
            "after": ", ".join(lesson.needs) or "-",
            "your minutes": lesson.minutes,
            "its cells run": f"{measured[lesson.number]:.0f} s" if lesson.number in measured else "not measured",
        }
        for lesson in LESSONS
    ]


def executed(path: Path, timeout: int = 600) -> tuple:
    """(notebook, seconds): all its cells run in a fresh kernel, whose start counts too, in its folder. Nothing is stored.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    import nbformat
    from nbclient import execute

    notebook, began = nbformat.read(path, as_version=4), time.perf_counter()
    options = {"timeout": timeout, "kernel_name": "python3", "record_timing": False}
    execute(notebook, cwd=str(path.parent), **options)
    return notebook, time.perf_counter() - began


def keep(fresh: dict[str, float]) -> None:
    """Store the seconds of some lessons, and what computer this is; those of the others stay."""
    computer = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    content = {"computer": computer, "seconds": seconds() | {number: round(value, 1) for number, value in fresh.items()}}
    write_atomic(SECONDS, json.dumps(content, indent=1, sort_keys=True) + "\n")
