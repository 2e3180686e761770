"""The seventeen lessons: what each gives, what it needs, how long it takes.

Seconds to run are measured (`python -m qatcourse.keeper.notebooks --time`) and kept in data/lesson_seconds.json with the computer
they were measured on. A reader's minutes are computed from what stands in a lesson and its solutions: one for every 50 words of
prose, 250 words of captions and prints, 8 lines of code, exercise, and line that the learner writes (PACE); rounded to 5.

That is a fit to lessons 00 to 05 as they once were, for which a demanding reader gave 12, 70, 55, 75, 50 and 65 minutes; it gives
19, 66, 46, 66, 54 and 67, wrong by 9.3 at most and 6.5 in the root mean square. Six lessons cannot tell five weights apart: an
exercise and a written line were set to a minute, the others chosen among round numbers. Hints count, tables do not.

`python -m qatcourse.keeper.lessons` prints minutes and counts; `--write` puts the minutes into lessons, map and README.
"""

import json
import os
import platform
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from qatcourse import DATA, ROOT
from qatlib.files import write_atomic
from qatlib.wording import Parser, columns, command

SECONDS, MINUTES = DATA / "lesson_seconds.json", DATA / "lesson_minutes.json"
PACE = {"prose": 50, "captions": 250, "code": 8, "exercises": 1, "written": 1}  # so many a minute
TIME = re.compile(r"(\*\*Time\.\*\* About )\d+( minutes)")


@dataclass(frozen=True)
class Lesson:
    """`number` as in the file name, `needs`: numbers of the lessons before it."""

    number: str
    name: str
    title: str
    gives: str
    needs: tuple[str, ...]

    @property
    def path(self) -> Path:
        return ROOT / "notebooks" / f"{self.number}_{self.name}.ipynb"

    @property
    def solutions(self) -> Path:
        return self.path.parent / "solutions" / f"{self.path.stem}_solutions.ipynb"

    @property
    def minutes(self) -> int:
        """A reader's time, as it was computed last; 0 for a new lesson."""
        return json.loads(MINUTES.read_text()).get(self.number, 0)


LESSONS = (
    Lesson("00", "start_here", "Start here", "the map, a set-up that works", ()),
    Lesson("01", "numbers_and_quantizers", "Numbers and quantizers", "codes, scales, rounding, clipping", ("00",)),
    Lesson("02", "straight_through", "The straight-through estimator", "gradients through rounding", ("01",)),
    Lesson("03", "ai8x_layers", "ai8x layers", "shifts, thresholds, how QAT is switched on", ("02",)),
    Lesson("04", "traditional_ptq_qat", "Traditional training and PTQ by hand", "a network quantized by your code", ("03",)),
    Lesson("05", "train_pose_tiny", "Train the tiny pose network", "your own trained network", ("04",)),
    Lesson("06", "inspect_parameters", "Inspect the parameters", "the doctor: is QAT on, is it sound?", ("05",)),
    Lesson("07", "export_int8", "Export to int8", "integers, ONNX, C, a microcontroller, bit for bit", ("05",)),
    Lesson("08", "distillation", "Distillation", "a smaller network from a bigger one", ("04",)),
    Lesson("09", "sweep", "Sweeps and mixed precision", "many runs, mixed bits, the Pareto front", ("05",)),
    Lesson("10", "claims", "The claims page", "what to believe of a QAT text", ("04",)),
    Lesson("11", "break_it", "Break it", "four patients diagnosed and repaired", ("06", "07")),
    Lesson("12", "two_answers", "Two answers", "why the mean of two answers is no answer", ("05",)),
    Lesson("13", "learned_ranges", "Learned ranges", "LSQ and PACT against measured ranges", ("05",)),
    Lesson("14", "break_it_again", "Break it again", "six more patients, a doctor of your own", ("11",)),
    Lesson("15", "when_qat_pays", "When QAT pays", "PTQ and QAT at 8, 4 and 2 bits, with seeds", ("04",)),
    Lesson("16", "your_own_network", "Your own network", "plain PyTorch, your data, the chip's files", ("07",)),
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


def executed(path: Path, timeout: int = 600, notebook=None) -> tuple:
    """(notebook, seconds): all its cells run in a fresh kernel, whose start counts too, in its folder, as a learner who
    has no pieces and no progress yet. Nothing is stored. `notebook`: what to run there instead of what the file holds.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook, began = notebook or nbformat.read(path, as_version=4), time.perf_counter()
    quiet = ["--IPKernelApp.log_level=40"]  # it would warn of its transport at every start
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False, extra_arguments=quiet)
    with tempfile.TemporaryDirectory() as nobody:
        client.execute(cwd=str(path.parent), env={**os.environ, "QATCOURSE_MINE": nobody})
    return notebook, time.perf_counter() - began


def keep(fresh: dict[str, float]) -> None:
    """Store the seconds of some lessons, and what computer this is; those of the others stay."""
    computer = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    content = {"computer": computer, "seconds": seconds() | {number: round(value, 1) for number, value in fresh.items()}}
    write_atomic(SECONDS, json.dumps(content, indent=1, sort_keys=True) + "\n")


def counts(path: Path, solutions: Path) -> dict[str, int]:
    """What a reader of the lesson at `path` meets, by the names of PACE."""
    text, code = _cells(path)
    shown = [output.get("text", output.get("data", {}).get("text/markdown", "")) for cell in code for output in cell.outputs]
    read, solved = Counter(_lines(code)), Counter(_lines(_cells(solutions)[1]))
    given = r"\s*(assert )?report\b|import |from |.* = mine\.piece\("  # what a solution has beside the learner's own lines
    written = {line: number for line, number in (solved - read).items() if not re.match(given, line)}
    checks = [line for line in read.elements() if re.match(r"(?:report = )?(?:lesson\d\d\.)?check_\w+\(", line)]
    prose, captions = (sum(len(part.split()) for part in parts) for parts in ([cell.source for cell in text], shown))
    return dict(zip(PACE, (prose, captions, read.total(), len(checks), sum(written.values()))))


def _cells(path: Path) -> tuple[list, list]:
    """Markdown cells and code cells; none where there is no such notebook."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells if path.is_file() else []
    return [cell for cell in cells if cell.cell_type == "markdown"], [cell for cell in cells if cell.cell_type == "code"]


def _lines(code: list) -> list[str]:
    """Lines that are read or written: no blank ones, no comments, no questions, whose source is folded."""
    lines = (line for cell in code if not cell.source.startswith("widgets.predict(") for line in cell.source.splitlines())
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


def estimate(lesson: Lesson) -> int:
    """A reader's minutes, rounded to 5, at least 5."""
    found = counts(lesson.path, lesson.solutions)
    return max(5, 5 * round(sum(found[name] / pace for name, pace in PACE.items()) / 5))


def keep_minutes() -> None:
    """Put the computed minutes into data/lesson_minutes.json, every lesson and its solutions."""
    write_atomic(MINUTES, json.dumps({lesson.number: estimate(lesson) for lesson in LESSONS}, indent=1) + "\n")
    for lesson in LESSONS:
        for path in filter(Path.is_file, (lesson.path, lesson.solutions)):
            write_atomic(path, TIME.sub(rf"\g<1>{lesson.minutes}\g<2>", path.read_text()))


@command("lessons")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m qatcourse.keeper.lessons", description="A reader's minutes, and what they come from.")
    parser.add_argument("--write", action="store_true", help="put the minutes into the lessons; run lesson 00 after that")
    if parser.parse_args(arguments).write:
        keep_minutes()
    rows = [(one.number, one.minutes, estimate(one), *counts(one.path, one.solutions).values()) for one in LESSONS]
    print(columns([("lesson", "stated", "computed", *PACE), *(map(str, row) for row in rows)], right=range(1, 8)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
