"""What a sweep leaves on disk, and what counts as finished.

    OUT/results/SLUG.json      one finished run: key, parameters, metrics. Written whole or not at all, and once
    OUT/notebooks/SLUG.ipynb   its executed notebook        OUT/failed/SLUG.ipynb   the notebook of a run that failed
    OUT/results.csv, .png      the table and the picture of everything finished so far
"""

import contextlib
import csv
import io
import json
import os
import uuid
from pathlib import Path

from qatcourse.sweep.grid import Run
from qatlib.files import sha256, write_atomic

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; of two attempts the last one stays
    fcntl = None

FOLDERS = ("results", "notebooks", "failed")


class Store:
    """The folder of a sweep, on a disk that all workers see."""

    def __init__(self, out: str | os.PathLike):
        self.out = Path(os.path.abspath(out))

    def prepare(self, about: dict) -> None:
        """Make the folders and prove that they can be written. Raises OSError with one sentence where they cannot."""
        write_atomic(self.out / "sweep.json", json.dumps(about, indent=1) + "\n")
        try:
            for folder in FOLDERS:
                (self.out / folder).mkdir(exist_ok=True)
        except OSError as problem:
            raise OSError(problem.errno, f"cannot use folder {self.out}: {problem.strerror}; choose another") from problem

    @contextlib.contextmanager
    def locked(self, name: str = ".sweep.lock", wait: bool = False):
        """Hold a lock of this folder; it vanishes with the process, however that ends. Raises ValueError if it is taken."""
        with self._open(name) as handle:
            if fcntl:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    raise ValueError(f"another sweep is at work in {self.out}; wait for it, or choose another --out") from None
            yield

    def _open(self, name: str):
        try:
            return open(self.out / name, "a")
        except OSError as problem:
            text = f"cannot use {self.out / name}: {problem.strerror}; remove it, or choose another --out"
            raise OSError(problem.errno, text) from problem

    def clean(self, runs: list[Run]) -> int:
        """Remove what killed attempts left behind, and results that are not intact; the number of results removed."""
        for folder in FOLDERS:
            for leftover in (self.out / folder).glob(".*.tmp*"):
                leftover.unlink(missing_ok=True)
        broken = [run for run in runs if self._result(run).exists() and self.finished(run) is None]
        for run in broken:
            self._result(run).unlink()
        return len(broken)

    def _result(self, run: Run) -> Path:
        return self.out / "results" / f"{run.slug}.json"

    def notebook(self, run: Run, failed: bool = False) -> Path:
        """Where the executed notebook of `run` belongs."""
        return self.out / ("failed" if failed else "notebooks") / f"{run.slug}.ipynb"

    def attempt(self, run: Run) -> Path:
        """A path for the notebook while it runs; every attempt has its own."""
        return self.out / "notebooks" / f".{run.slug[-12:]}.{uuid.uuid4().hex[:8]}.tmp.ipynb"

    def finished(self, run: Run) -> dict | None:
        """The record of a finished run, None for one that is not finished or whose record is damaged or of another run."""
        try:
            content = json.loads(self._result(run).read_bytes())
            intact = content["checksum"] == checksum(content) and content["key"] == run.key and content["status"] == "done"
            return content if intact and _complete(content) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def finish(self, run: Run, record: dict, attempt: Path | None) -> dict:
        """Mark `run` as finished, once: of two attempts the first one's notebook and record stay. Returns the record that stays."""
        with self.locked(".finish.lock", wait=True):
            first = self.finished(run)
            if first is not None:
                return first
            if attempt is not None:
                os.replace(attempt, self.notebook(run))
            record = {**record, "checksum": checksum(record)}
            write_atomic(self._result(run), json.dumps(record, indent=1) + "\n")
        self.notebook(run, failed=True).unlink(missing_ok=True)
        return record

    def write_table(self, records: list[dict]) -> Path:
        """Write results.csv; returns its path."""
        columns, rows = table(records)
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return write_atomic(self.out / "results.csv", text.getvalue())


def _complete(record: dict) -> bool:
    """Whether it has all that the table shows."""
    kinds = {"parameters": dict, "metrics": dict, "seconds": (int, float), "error": str, "notebook": str}
    values = [*record["metrics"].values(), *record["parameters"].values()]
    plain = all(isinstance(value, (bool, int, float, str, type(None))) for value in values)
    return plain and all(isinstance(record[name], kind) for name, kind in kinds.items())


def checksum(record: dict) -> str:
    """SHA-256 over a record, its own checksum left out."""
    return sha256(json.dumps({k: v for k, v in record.items() if k != "checksum"}, sort_keys=True).encode()).hex()


def table(records: list[dict]) -> tuple[list[str], list[dict]]:
    """(columns, rows): parameters, status, seconds, metrics, error, notebook. A name that is taken gets a `_`."""
    rows = [_row(record) for record in records]
    last = list(rows[0])[-2:] if rows else []
    columns = dict.fromkeys(name for row in rows for name in row if name not in last)
    return [*columns, *last], rows


def _row(record: dict) -> dict:
    row = {name: "None" if value is None else value for name, value in record["parameters"].items()}
    fixed = [(_free(name, row), record[name]) for name in ("status", "seconds", "error", "notebook")]
    status, (seconds, taken), *last = fixed
    row |= dict([status, (seconds, round(taken, 2))])
    row |= {_free(name, row | dict(last)): value for name, value in record["metrics"].items()}
    return row | dict(last)


def _free(name: str, taken: dict) -> str:
    return name if name not in taken else _free(f"{name}_", taken)
