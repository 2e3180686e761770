"""One run of a sweep: papermill executes the notebook, the store keeps it. The same function serves threads and clusters."""

import contextlib
import errno
import os
import re
import signal
import threading
import time
from pathlib import Path

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine
from papermill.exceptions import PapermillExecutionError
from papermill.execute import prepare_notebook_metadata, raise_for_execution_errors
from papermill.iorw import load_notebook_node, write_ipynb
from papermill.parameterize import parameterize_notebook

from qatlib.command_line import SHORT_SPIN
from qatlib.sweep.grid import Job
from qatlib.sweep.recording import recorded
from qatlib.sweep.store import Store

_THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
_STORAGE = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO}


class Kernels:
    """The kernels at work, so that an interrupt can stop them; without it they would finish their notebooks first."""

    def __init__(self):
        self._pids, self._lock, self._stopped = set(), threading.Lock(), False

    def add(self, pid: int) -> None:
        with self._lock:
            self._pids.add(pid)
            if self._stopped:
                _kill(pid)

    def remove(self, pid: int) -> None:
        with self._lock:
            self._pids.discard(pid)

    def stop(self) -> None:
        """Kill all, those that are just starting too."""
        with self._lock:
            self._stopped = True
            for pid in self._pids:
                _kill(pid)

    @property
    def stopped(self) -> bool:
        return self._stopped


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


class _Client(PapermillNotebookClient):
    kernels: Kernels | None = None

    def papermill_execute_cells(self):
        pid = getattr(self.km.provisioner, "pid", None)
        if self.kernels is None or pid is None:
            return super().papermill_execute_cells()
        self.kernels.add(pid)
        try:
            return super().papermill_execute_cells()
        finally:
            self.kernels.remove(pid)


class _Engine(NBClientEngine):
    """papermill's own engine, with an environment for the kernel (papermill itself offers none)."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, kernels=None, start=None, **ignored):
        quiet = ["--log-level=CRITICAL"]  # an interrupt is the sweep's own sentence, not one of each kernel besides
        client = _Client(
            nb_man, kernel_name=kernel_name, startup_timeout=120, timeout=None, config=_private(), extra_arguments=quiet
        )
        client.kernels = kernels
        return client.execute(**start)


def _private():
    """Encrypt what client and kernel say to each other, where this jupyter_client can: other users share 127.0.0.1."""
    from jupyter_client import KernelManager
    from traitlets.config import Config

    return Config({"KernelManager": {"transport_encryption": "auto"}} if hasattr(KernelManager, "transport_encryption") else {})


def environment(threads: int) -> dict[str, str]:
    """The kernel's environment: ours, with every numerical library held to `threads` threads, and SHORT_SPIN."""
    return {**SHORT_SPIN, **os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in _THREADS}}


def execute(job: Job, kernels: Kernels | None = None) -> dict:
    """Run one notebook to its end and keep it; its record. A run that is already finished is not run again.

    A notebook that fails gives a record with status "failed" and is tried again by the next sweep. Raises OSError only
    where the store itself cannot be written, because then every other run would fail too.
    """
    store, started = Store(job.out), time.time()
    done = store.finished(job.run)
    if done is not None:
        return done
    attempt = None if job.remote else store.attempt(job.run)
    target = f"{job.remote.rstrip('/')}/{job.run.slug}.ipynb" if job.remote else str(attempt)
    try:
        try:
            metrics = recorded(_papermill(job, target, kernels))
        except Exception as problem:
            if kernels is not None and kernels.stopped:
                return _record(job, "interrupted", started, target)
            _raise_if_storage(problem, store)
            return _failed(job, store, problem, started, attempt, target)
        done = _record(job, "done", started, target if job.remote else str(store.notebook(job.run)), metrics)
        return store.finish(job.run, done, attempt)
    finally:
        if attempt is not None:
            attempt.unlink(missing_ok=True)


def _papermill(job: Job, target: str, kernels: Kernels | None):
    """Parameterize, execute, write: papermill's own steps, in its own order."""
    import nbformat

    notebook = load_notebook_node(nbformat.reads(job.notebook, as_version=4))
    notebook = prepare_notebook_metadata(parameterize_notebook(notebook, job.run.parameters), job.source, target)
    start = {"env": environment(job.threads), "cwd": job.cwd}
    name = notebook.metadata.kernelspec.name
    notebook = _Engine.execute_notebook(notebook, name, output_path=target, progress_bar=False, kernels=kernels, start=start)
    raise_for_execution_errors(notebook, target)
    write_ipynb(notebook, target)
    return notebook


def _raise_if_storage(problem: Exception, store: Store) -> None:
    if isinstance(problem, OSError) and problem.errno in _STORAGE:
        text = f"cannot write to {store.out}: {problem.strerror}; free some space or choose another folder, then start again"
        raise OSError(problem.errno, text) from problem


def _failed(job: Job, store: Store, problem: Exception, started: float, attempt: Path | None, target: str) -> dict:
    if attempt is not None and attempt.exists():
        target = str(store.notebook(job.run, failed=True))
        os.replace(attempt, target)
    if isinstance(problem, PapermillExecutionError):
        error = f"{problem.ename}: {problem.evalue}"
    else:
        error = f"{type(problem).__name__}: {problem}"
    error = re.sub(r"\x1b\[[0-9;]*m", "", error).strip().splitlines()[0][:300]
    return _record(job, "failed", started, target, error=error)


def _record(job: Job, status: str, started: float, notebook: str, metrics: dict | None = None, error: str = "") -> dict:
    return {
        "key": job.run.key,
        "parameters": job.run.parameters,
        "status": status,
        "metrics": metrics or {},
        "seconds": time.time() - started,
        "threads": job.threads,
        "process": os.getpid(),
        "error": error,
        "notebook": notebook,
    }
