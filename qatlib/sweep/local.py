"""Runs on this computer: one thread for each notebook at work, each notebook in its own kernel process."""

import contextlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

from qatlib.sweep.grid import Job


def cpus() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(workers: int) -> int:
    """Threads a kernel may use so that `workers` of them together do not exceed the processors."""
    return max(1, cpus() // workers)


@contextlib.contextmanager
def _closing_quietly():
    """A thread that still reads from a kernel when it is stopped lets tornado log the closed socket, with a traceback."""
    log = logging.getLogger("tornado.general")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def run_local(jobs: list[Job], workers: int) -> Iterator[dict]:
    """Execute `jobs`, `workers` at a time; yields each record as it comes. An interrupt or a full disk stops the kernels."""
    from qatlib.sweep.worker import Kernels, execute

    kernels = Kernels()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="sweep")
    try:
        for future in as_completed([pool.submit(execute, job, kernels) for job in jobs]):
            yield future.result()
    except BaseException:
        with _closing_quietly():
            kernels.stop()
            pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
