"""Who runs the notebooks: an Executor of threads on this computer, or the one of a dask.distributed cluster.

A cluster's workers need this environment and the output folder under the same path (a shared disk). A run that was under way on
a lost worker starts again elsewhere; a finished one has its record in the folder, so it is not run a second time.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from pathlib import Path

from qatcourse.sweep.grid import Job, Kernels
from qatlib.wording import need, short


def cpus() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(workers: int) -> int:
    """Threads a kernel may use so that `workers` of them together do not exceed the processors."""
    return max(1, cpus() // workers)


@contextlib.contextmanager
def here(workers: int, kernels: Kernels) -> Iterator[tuple[Executor, int]]:
    """(`workers` threads, threads a kernel may use). An interrupt or a full disk stops `kernels`."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="sweep")
    try:
        yield pool, threads_for(workers)
    except BaseException:
        logging.getLogger("tornado.general").addFilter(no_closed_socket)  # it stays: some are logged after the pool has ended
        kernels.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def no_closed_socket(record: logging.LogRecord) -> bool:
    """A filter against the tracebacks of threads that still read from a kernel which was stopped."""
    return not (record.exc_info and type(record.exc_info[1]).__name__ == "ZMQError")


def check_address(address: str) -> None:
    """Raise ValueError unless `address` names a host and a port; dask tries a wrong one for long, and complains even later."""
    match = re.fullmatch(r"([a-z]+://)?(\[[0-9a-fA-F:.]+\]|[^/\s:\[\]]+):([0-9]{1,5})", str(address))
    if not match or match[1] not in (None, "tcp://", "tls://", "ws://", "wss://") or not 0 < int(match[3]) < 65536:
        raise ValueError(f"scheduler is {short(address)}; write it as tcp://HOST:8786 (tls:// where the scheduler uses TLS)")


@contextlib.contextmanager
def there(address: str, out: Path) -> Iterator[tuple[Executor, int]]:
    """(the cluster of the scheduler at `address`, threads a kernel may use on its most crowded host).

    Runs not yet begun are withdrawn when the context ends. Raises ImportError or OSError with the remedy.
    """
    try:
        from distributed import Client
    except ImportError as problem:
        raise need("dask.distributed", "cluster") from problem
    try:
        client = Client(address, timeout=5, set_as_default=False)
    except (OSError, ValueError) as problem:
        remedy = "start one (`dask scheduler --host 127.0.0.1`; for other computers with dask's TLS) or correct --scheduler"
        raise OSError(None, f"no scheduler answers at {address}; {remedy}") from problem
    with client:
        yield client.get_executor(pure=False), survey(client, out)


def look(path: str) -> int:
    """On a worker: its processors, 0 where it does not see the file `path`."""
    return cpus() if os.path.exists(path) else 0


def survey(client, out: Path) -> int:
    """Threads a kernel may use on the most crowded host. Raises OSError for no workers or one without the folder `out`."""
    with tempfile.NamedTemporaryFile(dir=out / "results", prefix=".", suffix=".tmp") as file:
        seen = client.run(look, file.name)
    if not seen:
        raise OSError(None, "the scheduler has no workers; start some with `dask worker ADDRESS`, then run this again")
    blind = sorted(worker for worker in seen if not seen[worker])
    if blind:
        raise OSError(None, f"worker {blind[0]} does not see {out}; choose an --out on a disk that all workers share")
    workers, crowd = client.scheduler_info(n_workers=-1)["workers"], Counter()
    for worker in seen:
        crowd[workers[worker]["host"]] += workers[worker]["nthreads"]
    return max(1, min(seen[worker] // crowd[workers[worker]["host"]] for worker in seen))


def perform(job: Job) -> dict:
    """One run. papermill is loaded here, in the task's thread, so that a cluster's worker answers its scheduler meanwhile."""
    from qatcourse.sweep.worker import execute

    return execute(job)


def outcome(future: Future, job: Job) -> dict:
    """The record of a finished future; a run that took several workers down with it counts as failed.

    Raises OSError where the connection to a cluster was lost, or the run could not write.
    """
    try:
        return future.result()
    except CancelledError as problem:  # nobody else withdraws a run that is waited for
        raise OSError(None, "the connection to the scheduler was lost; start the same command again to continue") from problem
    except Exception as problem:
        if type(problem).__name__ != "KilledWorker":  # of dask.distributed, which need not be installed
            raise
        return job.record("failed", error="KilledWorker: every worker that ran it died, perhaps for want of memory")
