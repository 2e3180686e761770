"""Run notebooks and store their outputs:  python -m qatcourse.keeper.notebooks [NUMBER ...]   (01 02; none: all, solutions too)

Each notebook runs in a fresh kernel in its own folder. What is stored holds no noise: no widget state, no progress bars, no
timestamps, no memory addresses, no paths of this computer. A notebook whose cell fails is left as it was.
"""

import os
import re
import sys
from pathlib import Path

import nbformat
from tqdm.auto import tqdm

from qatcourse import ROOT
from qatcourse.keeper.lessons import executed, keep
from qatlib.files import write_atomic
from qatlib.wording import Parser, command

HERE = ROOT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS = re.compile(r"\d+%\||\d+it \[|\d+it/s|^drew [\d,]+ pictures in ")  # bars, and the speed of this computer


def find(numbers: list[str], solutions: bool = True) -> list[Path]:
    """Lessons, and after each its solutions, whose names start with one of `numbers` (none: all). ValueError: no such lesson."""
    lessons = sorted(HERE.glob("[0-9][0-9]_*.ipynb"))
    missing = [number for number in numbers if not any(path.name.startswith(number) for path in lessons)]
    if missing:
        offered = ", ".join(path.name[:2] for path in lessons)
        raise ValueError(f"no lesson starts with {', '.join(missing)}; there are {offered or 'none'}")
    chosen = [path for path in lessons if not numbers or path.name.startswith(tuple(numbers))]
    pairs = ([path, HERE / "solutions" / f"{path.stem}_solutions.ipynb"] for path in chosen)
    return [path for pair in pairs for path in pair if path.exists() and (solutions or path.parent == HERE)]


def without_noise(text: str) -> str:
    """`text` with this computer's paths and memory addresses taken out."""
    text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".").replace(str(Path.home()) + "/", "~/")
    text = re.sub(r"/tmp/[\w./=,@-]+", "a temporary file", text)
    return re.sub(r" at 0x[0-9a-f]{6,}", "", text)


def clean_output(output) -> bool:
    """Strip one output in place; False where nothing is left to keep."""
    if output.output_type == "stream":
        lines = [line.rsplit("\r", 1)[-1] for line in output.text.split("\n")]
        output.text = without_noise("\n".join(line for line in lines if not PROGRESS.search(line)))
        return bool(output.text.strip())
    data = output.get("data", {})
    live = data.pop(WIDGET, None)
    for kind, value in data.items():
        if isinstance(value, str) and not kind.startswith("image/png"):
            data[kind] = without_noise(value)
    only_text = set(data) <= {"text/plain"}
    return bool(data) and not (only_text and (live is not None or PROGRESS.search(data["text/plain"])))


def clean(notebook) -> None:
    """Take the noise out of an executed notebook, and fold the source of questions away. In place."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            if cell.source.startswith("widgets.predict("):
                cell.metadata["jupyter"] = {"source_hidden": True}  # the source gives the answer away
            cell.outputs = merged([output for output in cell.outputs if clean_output(output)])


def relink(notebook) -> None:
    """In a solutions notebook, let Markdown links that were written for the lesson's folder lead to the same files. In place."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?=(?:\d\d|short|template)_\w+\.ipynb|\w+\.md)(?!\d\d_\w+_solutions)", "](../", cell.source)
            cell.source = cell.source.replace("](solutions/", "](").replace("](solutions)", "](.)")


def merged(outputs: list) -> list:
    """Neighbouring pieces of one stream as one: how a kernel cuts its prints depends on the clock."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def run(path: Path, timeout: int) -> float:
    """Execute one notebook and store it; the seconds it took. Raises nbclient's CellExecutionError where a cell fails."""
    notebook, seconds = executed(path, timeout)
    clean(notebook)
    store(path, notebook)
    return seconds


def store(path: Path, notebook) -> None:
    """Write a valid notebook; one in `solutions` with its links turned."""
    if path.parent.name == "solutions":
        relink(notebook)
    nbformat.validate(notebook)
    write_atomic(path, nbformat.writes(notebook) + "\n")


@command("notebooks", "the notebooks run so far are stored")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m qatcourse.keeper.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="lessons to run, such as 01 02; none: all")
    parser.add_argument("--no-solutions", action="store_true", help="run the lessons only")
    parser.add_argument("--time", action="store_true", help="keep the lessons' seconds for lesson 00 (on an idle computer)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a cell may take")
    options = parser.parse_args(arguments)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    paths = find(options.numbers, not options.no_solutions)
    times, failures = {}, {}
    if options.time:
        paths.sort(key=lambda path: path.name.startswith("00_"))  # it shows the times of the others
    for path in (bar := tqdm(paths, desc="notebooks")):
        bar.set_postfix_str(path.stem)
        try:
            times[path.stem] = run(path, options.timeout)
            if options.time and path.parent == HERE:
                keep({path.name[:2]: times[path.stem]})
        except Exception as problem:
            failures[path.stem] = problem
    for name, problem in failures.items():
        said = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).strip()
        print(f"{name} failed and was left as it was:\n{said}", file=sys.stderr)
    each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
    print(f"{len(times)} notebooks run and stored in {sum(times.values()):.0f} s ({each}); {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
