"""A whole sweep: check everything, run what is not finished, then write the table and the picture."""

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path

from tqdm.auto import tqdm

from qatlib.files import write_atomic
from qatlib.messages import sentence
from qatlib.sweep.cluster import check_address
from qatlib.sweep.grid import Job, Run, check_grid, expand
from qatlib.sweep.store import Store

STORAGE = {  # what papermill's handlers import, and what installs it
    "s3://": ("boto3", "qatlib[s3]"),
    "gs://": ("gcsfs", "papermill[gcs]"),
    "abs://": ("azure.storage.blob", "papermill[azure]"),
    "adl://": ("azure.datalake.store", "papermill[azure]"),
    "hdfs://": ("pyarrow", "papermill[hdfs]"),
    "https://github.com/": ("github", "papermill[github]"),
    "http://github.com/": ("github", "papermill[github]"),
}


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
    check_grid(grid)
    for name, number in (("workers", workers), ("threads", threads)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 4096):
            raise ValueError(f"{name} is {number!r}; give a whole number of at least 1")
    text, code = read_notebook(notebook, grid)
    check_remote(remote)
    if str(remote).partition("://")[2].startswith("github.com/"):
        raise ValueError(f"notebooks cannot go to {remote!r}; papermill only reads from GitHub, give a folder of a storage service")
    if scheduler is not None:
        check_address(scheduler)
    if not str(out).strip():
        raise ValueError(f"out is {str(out)!r}; give a folder for the results ('.' is the present one)")
    if "://" in str(out):
        raise ValueError(f"out is {str(out)!r}; the results need a folder, give the URL as --notebooks for the executed notebooks")
    store, runs = Store(out), expand(grid, code)
    store.prepare({"notebook": str(notebook), "grid": {name: list(values) for name, values in grid.items()}})
    with store.locked():
        store.clean(runs)
        return _Driver(store, runs, str(notebook), text, remote, progress).go(workers, threads, scheduler)


class _Driver:
    def __init__(self, store: Store, runs: list[Run], source: str, text: str, remote: str | None, progress: bool):
        self.store, self.runs, self.source, self.text, self.remote, self.progress = store, runs, source, text, remote, progress
        self.records = self._finished()
        self.resumed, self.started = len(self.records), time.time()

    def go(self, workers: int | None, threads: int | None, scheduler: str | None) -> Sweep:
        waiting = [run for run in self.runs if run.key not in self.records]
        try:
            if waiting and scheduler:
                self._on_cluster(waiting, threads, scheduler)
            elif waiting:
                self._here(waiting, workers, threads)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk is what brought us here, perhaps
                self.records |= self._finished()  # also what ended, but had not been collected yet
                self._write()
            raise
        self.store.clean(self.runs)
        return self._write()

    def _finished(self) -> dict[str, dict]:
        """key -> record of the runs whose results are in the folder."""
        return {run.key: done for run in self.runs if (done := self.store.finished(run)) is not None}

    def _here(self, waiting: list[Run], workers: int | None, threads: int | None) -> None:
        from qatlib.sweep.local import cpus, run_local, threads_for

        workers = min(workers or cpus(), len(waiting))
        self._collect(run_local(self._jobs(waiting, threads or threads_for(workers)), workers))

    def _on_cluster(self, waiting: list[Run], threads: int | None, scheduler: str) -> None:
        from qatlib.sweep.cluster import connect, run_cluster, survey

        with connect(scheduler) as client:
            free = survey(client, self.store)
            self._collect(run_cluster(client, self._jobs(waiting, threads or free)))

    def _jobs(self, waiting: list[Run], threads: int) -> list[Job]:
        folder = None if "://" in self.source else str(Path(self.source).resolve().parent)
        return [Job(self.text, self.source, run, str(self.store.out), self.remote, threads, folder) for run in waiting]

    def _collect(self, arriving) -> None:
        failed, written = 0, time.time()
        options = {"initial": self.resumed, "desc": "sweep", "unit": "run", "disable": not self.progress}
        # closing: an interrupt that comes between two records stops the kernels too, at once
        with contextlib.closing(arriving), tqdm(total=len(self.runs), **options) as bar:
            for record in arriving:
                self.records[record["key"]] = record
                if record["status"] == "failed":
                    failed += 1
                    where = " ".join(f"{name}={value}" for name, value in record["parameters"].items())
                    tqdm.write(f"failed: {where}: {record['error']} (see {record['notebook'] or 'the worker'})")
                bar.set_postfix(failed=failed)
                bar.update(1)
                if time.time() - written > 10:
                    self.store.write_table(self._ordered())
                    written = time.time()

    def _ordered(self) -> list[dict]:
        return [self.records[run.key] for run in self.runs if run.key in self.records]

    def _write(self) -> Sweep:
        from qatlib.sweep.picture import draw

        records, picture = self._ordered(), None
        sentences = [f"table in {self.store.write_table(records)}"]
        drawn = draw(records)
        if drawn is not None:
            picture = write_atomic(self.store.out / "results.png", drawn[0])
            sentences.append(f"picture in {picture}: {drawn[1]}")
        return Sweep(records, self.resumed, time.time() - self.started, self.store.out, picture, sentences)


def read_notebook(notebook, grid: dict) -> tuple[str, str]:
    """(JSON text, the part of it that decides results) of a notebook that takes all the parameters of `grid`.

    Raises FileNotFoundError, or ValueError for a file that is no notebook, has no `parameters` cell, lacks a name of the grid,
    or asks for a kernel that is not installed.
    """
    import nbformat
    from papermill import inspect_notebook

    text = _text(notebook)
    try:
        node = nbformat.reads(text, as_version=4)
        nbformat.validate(node)
    except Exception as problem:
        raise ValueError(f"{notebook} is not a notebook; give the path of an .ipynb file") from problem
    language = _kernel(notebook, node)
    if "name" not in node.metadata.get("language_info", {}):  # never run in Jupyter; papermill needs the language
        node.metadata["language_info"] = {"name": language}
        text = nbformat.writes(node)
    known = inspect_notebook(node)
    if not known:
        raise ValueError(f"{notebook} takes no parameters; tag a cell `parameters` and set each with a literal there")
    unknown = [name for name in grid if name not in known]
    if unknown:
        raise ValueError(f"{notebook} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    return text, json.dumps([[cell.cell_type, cell.source, cell.metadata.get("tags", [])] for cell in node.cells])


def _kernel(notebook, node) -> str:
    """The language of the notebook's kernel, which must be installed."""
    from jupyter_client.kernelspec import KernelSpecManager

    name, installed = node.metadata.get("kernelspec", {}).get("name"), KernelSpecManager().find_kernel_specs()
    if name not in installed:
        raise ValueError(f"{notebook} asks for the kernel {name!r}; choose an installed one in Jupyter ({', '.join(installed)})")
    return KernelSpecManager().get_kernel_spec(name).language


def _text(notebook) -> str:
    if "://" in str(notebook):
        from papermill.iorw import papermill_io

        check_remote(str(notebook))
        try:
            return papermill_io.read(str(notebook), [".ipynb"])
        except Exception as problem:  # each service raises its own kinds
            raise OSError(None, f"cannot read {notebook} ({sentence(problem)}); correct the address or your access") from problem
    path = Path(notebook)
    if not path.is_file():
        raise FileNotFoundError(f"no notebook at {path}; give the path of an .ipynb file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not a notebook (not UTF-8 text); give the path of an .ipynb file") from problem


def check_remote(url: str | None) -> None:
    """Raise ValueError for a URL that papermill has no handler for, ImportError where its handler lacks a package."""
    if url is None:
        return
    from papermill.iorw import papermill_io

    schemes = sorted({scheme for scheme, _ in papermill_io._handlers if scheme.endswith("://")})
    if not any(url.startswith(scheme) for scheme in schemes):
        raise ValueError(f"notebooks cannot go to {url!r}; papermill writes to {', '.join(schemes)}")
    for scheme, (package, extra) in STORAGE.items():
        if url.startswith(scheme) and not _installed(package):
            raise ImportError(f"{scheme} needs {package}; install it with: pip install '{extra}'")


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a.b.c, a is missing
        return False


def describe(sweep: Sweep) -> str:
    """The outcome in one line."""
    done = sum(record["status"] == "done" for record in sweep.records)
    fresh = len(sweep.records) - sweep.resumed
    speed = f", {fresh / sweep.seconds * 60:.1f} runs a minute" if fresh else ""
    counts = f"{done} of {len(sweep.records)} runs finished ({sweep.resumed} from before), {len(sweep.failed)} failed"
    return f"sweep: {counts}, {sweep.seconds:.0f} s{speed}; {os.path.relpath(sweep.out)}"
