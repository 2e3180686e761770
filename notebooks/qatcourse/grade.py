"""Run many learners' notebooks and say which exercises pass: `python -m qatcourse.grade FOLDER_OF_COPIES --out FOLDER`

Copies are FOLDER/LEARNER/01_numbers....ipynb or FOLDER/LEARNER_01_numbers....ipynb; nothing is written among them. Each notebook
has a kernel of its own and a time limit. A learner's lessons run in order, in a temporary folder that takes their mine.py along and
keeps the pieces that pass; learners run in parallel. The preset is the smallest, unless QATLIB_PRESET says otherwise.

This counts what was passed and proves nothing: a notebook is a program that runs with your rights, and could record passes that it
did not earn, or do harm. Grade people whom you know, and read the notebooks where it matters.
"""

import atexit
import contextlib
import csv
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError
from tqdm.auto import tqdm

from qatcourse import mine
from qatcourse.keeper.lessons import LESSONS
from qatcourse.progress import standing
from qatcourse.sweep import worker
from qatcourse.sweep.executors import cpus, here
from qatcourse.sweep.grid import Kernels
from qatcourse.viz.base import table
from qatlib.files import prepare_folder, write_atomic
from qatlib.wording import Parser, command, folder

_LESSON = "|".join(f"{lesson.number}_{lesson.name.partition('_')[0]}" for lesson in LESSONS)
NAME = re.compile(rf"(?:(.*?)_)?({_LESSON})")  # LEARNER_01_numbers, 01_numbers
OPTIONS = worker.OPTIONS | {"kernel_name": "python3", "allow_errors": True, "shutdown_kernel": "immediate"}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Grades</title>
<style>body {font-family: sans-serif} td, th {padding: 2px 16px 2px 0; border-bottom: 1px solid #ddd}</style>
"""


class _Client(NotebookClient):
    """Keeps no output, for a cell may print without end; only what errors say. Cells count as In [3] does."""

    errors = ()

    def process_message(self, message, cell, index):
        content = message["content"]
        if message["msg_type"] == "error":
            self.errors += (f"cell {self.code_cells_executed}: {content.get('ename')}: {content.get('evalue')}",)
        return super().process_message(message, cell, index) if message["msg_type"] == "status" else None


def plain(text: str, most: int = 200) -> str:
    """`text` in one line of printable characters, without colours, cut to `most` of them."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text[: 10 * most])
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]


def copies(place: Path) -> dict[str, list[tuple[str, Path | None]]]:
    """Learner -> [(number of the lesson or "", path; None: an empty folder)]. Raises OSError or ValueError where there are none."""
    if not place.is_dir():
        raise FileNotFoundError(f"no folder {place}; give the folder that holds the learners' folders or notebooks")
    found = {}
    for path in sorted(path for path in place.iterdir() if not path.name.startswith((".", "__"))):
        books = (sorted(path.glob("[!.]*.ipynb")) or [None]) if path.is_dir() else [path] if path.suffix == ".ipynb" else []
        for book in books:
            match = NAME.match(book.stem) if book else None
            name = plain(path.name if path.is_dir() else (match and match[1]) or path.stem)
            found.setdefault(name, []).append((match[2][:2] if match else "", book))
    if not any(book for each in found.values() for _, book in each):
        raise ValueError(f"no notebooks in {place}; it should hold LEARNER/01_numbers.ipynb or LEARNER_01_numbers.ipynb")
    return {name: sorted(each, key=str) for name, each in found.items()}


def grade(place: Path, jobs: int, timeout: float, progress: bool = True) -> list[dict]:
    """One row a copy, learner by learner; see the module. Raises as `copies` does. An interrupt ends every kernel."""
    found, kernels = copies(place), Kernels()
    with (
        tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as base,
        tqdm(total=sum(map(len, found.values())), desc="grading", unit="notebook", disable=not progress) as bar,
        here(min(jobs, len(found)), kernels) as (pool, threads),
    ):

        def learner(name: str) -> list[dict]:
            work, rows = Path(tempfile.mkdtemp(dir=base)), []
            for own in {book.with_name("mine.py") for _, book in found[name] if book and book.parent != place}:
                with contextlib.suppress(OSError):  # there is none, or none that can be read
                    shutil.copyfile(own, work / "mine.py")
            while len(rows) < len(found[name]) and not kernels.stopped:
                rows.append({"learner": name, **_row(*found[name][len(rows)], work, timeout, threads, kernels)})
                bar.update()
            return rows

        return [row for each in pool.map(learner, found) for row in each]


def _row(number: str, path: Path | None, work: Path, *options) -> dict:
    began, kept, passed = time.monotonic(), work / "progress.json", {}
    try:
        book = _read(number, path)
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink(missing_ok=True)
        reason = _execute(book, work, *options)
        if kept.is_file() and kept.stat().st_size < 100_000:  # what else a learner makes of that name is no progress
            passed = mine.passed(work)
    except Exception as problem:  # whatever a learner hands in is a row
        reason = str(problem) or type(problem).__name__
    names, still = standing(number, passed) if number else ([], [])
    what = {"lesson": number or (plain(path.name) if path else "-"), "passed": len(names) - len(still), "of": len(names)}
    return {**what, "open": ", ".join(still), "seconds": round(time.monotonic() - began, 1), "reason": plain(reason)}


def _read(number: str, path: Path | None):
    """The notebook. Raises ValueError with the reason why it cannot run."""
    if not path or not path.is_file():
        raise ValueError("is no file" if path else "no notebook was handed in")
    content = path.read_bytes()
    try:
        book = nbformat.reads(content.decode(), as_version=4)
        nbformat.validate(book)
    except Exception as problem:
        raise ValueError(f"is no notebook ({type(problem).__name__})" if content.strip() else "is empty") from None
    if not number:
        raise ValueError("is no lesson of the course; its name should begin as the lesson's does")
    if not any(cell.cell_type == "code" and cell.source.strip() for cell in book.cells):
        raise ValueError("is empty: it holds no code")
    return book


def _execute(book, work: Path, timeout: float, threads: int, kernels: Kernels) -> str:
    """Run `book` in `work` to its end, for `timeout` seconds or until `kernels` stop; what went wrong, or ""."""
    end, own, found = time.monotonic() + timeout, {"QATCOURSE_MINE": str(work), "TMPDIR": str(work)}, []
    client = _Client(book, timeout_func=lambda cell: max(0.1, 0 if kernels.stopped else end - time.monotonic()), **OPTIONS)
    client.kill = lambda: _end(work)
    try:
        with kernels.watched(client):
            client.execute(cwd=str(work), env={"QATLIB_PRESET": "smoke", **worker.environment(threads), **own}, **QUIET)
    except CellTimeoutError:
        found = [f"not finished after {timeout:g} s, in cell {client.code_cells_executed}"]
    except Exception as problem:  # DeadKernelError, and whatever else a broken kernel makes of it
        died = f"the kernel died in cell {client.code_cells_executed}"
        found = [died if "died" in str(problem) else f"{type(problem).__name__}: {problem}"]
    finally:
        atexit.unregister(client._cleanup_kernel)  # which nbclient leaves there if a kernel dies while it starts
        _end(work)
    more = [f"and {len(client.errors) - 1} more"] if len(client.errors) > 1 else []
    return "; ".join([*found, *map(plain, client.errors[:1]), *more])


def _end(place: Path) -> None:
    """Kill every process that runs for notebooks in `place`: the environment which it inherited says so."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("QATCOURSE_MINE") == str(place):
                process.kill()


def harmless(field) -> str:
    """A field of the CSV that no spreadsheet takes for a formula."""
    return f"'{field}" if str(field).startswith(tuple("=+-@＝＋－＠")) and field != "-" else str(field)


def _write(rows: list[dict], out: Path) -> str:
    """`grades.csv` and `grades.html` in `out`, each whole or not at all; what they say, in one sentence."""
    passed, every = (sum(row[name] for row in rows) for name in ("passed", "of"))
    who, troubled, text = {row["learner"] for row in rows}, [row for row in rows if row["reason"]], io.StringIO()
    said = f"{len(rows)} notebooks of {len(who)} learners: {passed} of {every} exercises passed; {len(troubled)} need a look"
    csv.writer(text).writerows([list(rows[0]), *([harmless(field) for field in row.values()] for row in rows)])
    write_atomic(out / "grades.csv", text.getvalue())
    write_atomic(out / "grades.html", PAGE + table(rows, said)._repr_html_())
    return said


@command("grade", "nothing was written")
def main(arguments: list[str] | None = None) -> int:
    """0: graded, whatever the grades are. 2: unusable input; nothing was started."""
    parser = Parser(prog="python -m qatcourse.grade", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=folder, help="holds LEARNER/01_numbers....ipynb or LEARNER_01_numbers....ipynb")
    parser.add_argument("--out", type=folder, default=".", help="where grades.csv and grades.html go (default: the present folder)")
    parser.add_argument("--jobs", type=int, default=cpus(), help="learners at a time (default: one a processor)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds a notebook may take (default: 600)")
    options = parser.parse_args(arguments)
    place, out, began = Path(options.folder), Path(options.out), time.monotonic()
    if not 1 <= options.jobs <= 1000:
        raise ValueError(f"--jobs is {options.jobs}; give a whole number from 1 to 1000")
    if not 0 < options.timeout <= 7 * 86400:
        raise ValueError(f"--timeout is {options.timeout:g}; give seconds, more than 0 and at most a week")
    if copies(place) and out.resolve().is_relative_to(place.resolve()):
        raise ValueError(f"--out {out} lies among the copies; name a folder elsewhere")
    prepare_folder(out)
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # a kernel that dies is a row
    rows = grade(place, options.jobs, options.timeout)
    said = _write(rows, out)
    sys.stdout.reconfigure(errors="replace")  # a terminal that does not know a learner's letters
    print(f"{table(rows)}\n{said}; {time.monotonic() - began:.0f} s; grades.csv and grades.html are in {os.path.relpath(out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
