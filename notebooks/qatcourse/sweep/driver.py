"""A whole sweep: check everything, run what is not finished, then write the table and the picture."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from tqdm.auto import tqdm

from qatcourse.sweep.executors import check_address, cpus, here, outcome, perform, there
from qatcourse.sweep.grid import Job, Kernels, Run, check_grid, expand
from qatcourse.sweep.store import Store
from qatlib.files import write_atomic

PATIENCE = 60  # seconds without a finished run, after which the folder is asked


@dataclasses.dataclass
class Sweep:
    """The outcome: one record a run in the order of the grid, the runs that were already finished, paths, sentences."""

    records: list[dict]
    resumed: int
    seconds: float
    out: Path
    picture: Path | None
    sentences: list[str]

    @property
    def failed(self) -> list[dict]:
        return [record for record in self.records if record["status"] == "failed"]


def run(notebook, grid: dict, out, workers: int | None = None, threads: int | None = None, scheduler: str | None = None,
        remote: str | None = None, progress: bool = True) -> Sweep:  # fmt: skip
    """Run `notebook` once for each combination of `grid` ({name: values}) and keep everything in the folder `out`.

    Called again with the same `out`, it runs only what is not finished. A failing run does not stop the others. `workers`
    notebooks run at a time, each with `threads` threads (default: the processors, shared out); with `scheduler`
    ("tcp://host:8786") they run on that dask cluster. `remote` ("s3://bucket/folder") takes the executed notebooks.
    Raises ValueError, TypeError, FileNotFoundError, ImportError or OSError, in one sentence, before any run starts; OSError also
    where the disk fills up later. What was finished by then stays finished.
    """
    from qatcourse.sweep.notebook import check_target, read_notebook

    check_grid(grid)
    _check_numbers(workers=workers, threads=threads)
    text, code = read_notebook(notebook, grid)
    if remote is not None:
        check_target(remote)
    if scheduler is not None:
        check_address(scheduler)
    _check_out(str(out))
    store, runs = Store(out), expand(grid, code)
    store.prepare({"notebook": str(notebook), "grid": {name: list(values) for name, values in grid.items()}})
    folder = None if "://" in str(notebook) else str(Path(notebook).resolve().parent)
    job = Job(runs[0], text, str(notebook), str(store.out), remote, threads, folder, Kernels())
    with store.locked():
        store.clean(runs)
        return _Driver(store, runs, job, progress).go(workers, scheduler)


def _check_numbers(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 4096):
            raise ValueError(f"{name} is {number!r}; give a whole number of at least 1")


def _check_out(out: str) -> None:
    if not out.strip():
        raise ValueError(f"out is {out!r}; give a folder for the results ('.' is the present one)")
    if "://" in out:
        raise ValueError(f"out is {out!r}; the results need a folder, give the URL as --notebooks for the executed notebooks")


class _Driver:
    def __init__(self, store: Store, runs: list[Run], job: Job, progress: bool):
        self.store, self.runs, self.job, self.progress, self.started = store, runs, job, progress, time.time()
        self.records = self._finished()  # by key
        self.resumed = len(self.records)

    def go(self, workers: int | None, scheduler: str | None) -> Sweep:
        waiting = [run for run in self.runs if run.key not in self.records]
        workers = min(workers or cpus(), len(waiting))
        try:
            if waiting:
                with there(scheduler, self.store.out) if scheduler else here(workers, self.job.kernels) as (pool, threads):
                    jobs = [dataclasses.replace(self.job, run=run, threads=self.job.threads or threads) for run in waiting]
                    self._collect(self._arriving({pool.submit(perform, job): job for job in jobs}))
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk is what brought us here, perhaps
                self.records |= self._finished()  # also what ended, but had not been collected yet
                self._write()
            raise
        self.store.clean(self.runs)
        return self._write()

    def _finished(self) -> dict[str, dict]:
        return {run.key: done for run in self.runs if (done := self.store.finished(run)) is not None}

    def _arriving(self, futures: dict[Future, Job]) -> Iterator[dict]:
        """The record of each run as it comes, from the folder first: dask's executor never ends a future whose result it lost."""
        while futures:
            ended = wait(futures, PATIENCE, FIRST_COMPLETED).done
            for future in ended or [f for f, job in futures.items() if self.store.finished(job.run)]:
                job = futures.pop(future)
                yield self.store.finished(job.run) or outcome(future, job)

    def _collect(self, arriving: Iterator[dict]) -> None:
        options = {"initial": self.resumed, "desc": "sweep", "unit": "run", "disable": not self.progress}
        failed, written = 0, time.time()
        with tqdm(total=len(self.runs), **options) as bar:
            for record in arriving:
                self.records[record["key"]] = record
                if record["status"] == "failed":
                    failed += 1
                    tqdm.write(_complaint(record))
                bar.set_postfix(failed=failed)
                bar.update(1)
                if time.time() - written > 10:
                    self.store.write_table(self._ordered())
                    written = time.time()

    def _ordered(self) -> list[dict]:
        return [self.records[run.key] for run in self.runs if run.key in self.records]

    def _write(self) -> Sweep:
        from qatcourse.sweep.picture import draw

        records, picture = self._ordered(), None
        sentences = [f"table in {self.store.write_table(records)}"]
        drawn = draw(records)
        if drawn is not None:
            picture = write_atomic(self.store.out / "results.png", drawn[0])
            sentences.append(f"picture in {picture}: {drawn[1]}")
        return Sweep(records, self.resumed, time.time() - self.started, self.store.out, picture, sentences)


def _complaint(record: dict) -> str:
    where = " ".join(f"{name}={value}" for name, value in record["parameters"].items())
    return f"failed: {where}: {record['error']} (see {record['notebook'] or 'the worker'})"


def describe(sweep: Sweep) -> str:
    """The outcome in one line."""
    done = sum(record["status"] == "done" for record in sweep.records)
    fresh = len(sweep.records) - sweep.resumed
    speed = f", {fresh / sweep.seconds * 60:.1f} runs a minute" if fresh else ""
    counts = f"{done} of {len(sweep.records)} runs finished ({sweep.resumed} from before), {len(sweep.failed)} failed"
    return f"sweep: {counts}, {sweep.seconds:.0f} s{speed}; {os.path.relpath(sweep.out)}"
