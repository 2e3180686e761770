"""One run of a sweep: papermill executes the notebook, the store keeps it. The same function serves threads and clusters."""

import contextlib
import errno
import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client import KernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine
from papermill.exceptions import PapermillExecutionError
from papermill.execute import prepare_notebook_metadata, raise_for_execution_errors
from papermill.iorw import load_notebook_node, write_ipynb
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from qatcourse.sweep.grid import Job, Kernels
from qatcourse.sweep.recording import recorded
from qatcourse.sweep.store import Store
from qatlib.wording import SHORT_SPIN

_THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
_STORAGE = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO}
OPTIONS = {
    "startup_timeout": 120,
    "timeout": None,
    # an interrupt is the sweep's own sentence, not one of each kernel besides
    "extra_arguments": ["--log-level=CRITICAL"],
    # other users share 127.0.0.1; an older jupyter_client cannot encrypt
    "config": Config({"KernelManager": {"transport_encryption": "auto"}} if hasattr(KernelManager, "transport_encryption") else {}),
}


class _Client(PapermillNotebookClient):
    kernels: Kernels

    def papermill_execute_cells(self):
        process = getattr(self.km.provisioner, "process", None)  # not every provisioner's kernels are processes of ours
        with self.kernels.watched(process) if process else contextlib.nullcontext():
            super().papermill_execute_cells()


class _Engine(NBClientEngine):
    """papermill's own engine, with an environment for the kernel (papermill itself offers none)."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, job=None, **ignored):
        client = _Client(nb_man, kernel_name=kernel_name, **OPTIONS)
        client.kernels = job.kernels
        with tempfile.TemporaryDirectory() as nobody:  # no run uses a learner's pieces, none counts as progress
            return client.execute(env={**environment(job.threads), "QATCOURSE_MINE": nobody}, cwd=job.cwd)


def environment(threads: int) -> dict[str, str]:
    """The kernel's environment: ours, with every numerical library held to `threads` threads, and SHORT_SPIN."""
    return {**SHORT_SPIN, **os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in _THREADS}}


def execute(job: Job) -> dict:
    """Run one notebook to its end and keep it; its record. A run that is already finished is not run again.

    A notebook that fails gives a record with status "failed" and is tried again by the next sweep. Raises OSError only
    where the store itself cannot be written, because then every other run would fail too.
    """
    store = Store(job.out)
    done = store.finished(job.run)
    if done is not None:
        return done
    attempt = store.attempt(job.run)
    try:
        return _attempt(job, store, attempt)
    finally:
        attempt.unlink(missing_ok=True)


def _attempt(job: Job, store: Store, attempt: Path) -> dict:
    """One run whose notebook is in `attempt` until it is finished; with `job.remote` it is there from the beginning."""
    target, started = f"{job.remote.rstrip('/')}/{job.run.slug}.ipynb" if job.remote else str(attempt), time.time()
    try:
        metrics = recorded(_papermill(job, target))
    except Exception as problem:
        _raise_if_general(problem, job)
        if attempt.exists():
            target = str(attempt.replace(store.notebook(job.run, failed=True)))
        return job.record("failed", time.time() - started, target, error=_told(problem))
    kept = target if job.remote else str(store.notebook(job.run))
    return store.finish(job.run, job.record("done", time.time() - started, kept, metrics), None if job.remote else attempt)


def _papermill(job: Job, target: str):
    """Parameterize, execute, write: papermill's own steps, in its own order."""
    notebook = load_notebook_node(nbformat.reads(job.notebook, as_version=4))
    notebook = prepare_notebook_metadata(parameterize_notebook(notebook, job.run.parameters), job.source, target)
    name = notebook.metadata.kernelspec.name
    notebook = _Engine.execute_notebook(notebook, name, output_path=target, progress_bar=False, job=job)
    raise_for_execution_errors(notebook, target)
    write_ipynb(notebook, target)
    return notebook


def _raise_if_general(problem: Exception, job: Job) -> None:
    """Raise what is no failure of this run alone: an interrupt, as it came, or storage that takes nothing more."""
    if job.kernels.stopped:
        raise problem
    if isinstance(problem, OSError) and problem.errno in _STORAGE:
        text = f"cannot write to {job.out}: {problem.strerror}; free some space or choose another folder, then start again"
        raise OSError(problem.errno, text) from problem


def _told(problem: Exception) -> str:
    """`problem` in one line, as the notebook told it."""
    notebook = isinstance(problem, PapermillExecutionError)
    kind, text = (problem.ename, problem.evalue) if notebook else (type(problem).__name__, problem)
    return re.sub(r"\x1b\[[0-9;]*m", "", f"{kind}: {text}").strip().splitlines()[0][:300]
