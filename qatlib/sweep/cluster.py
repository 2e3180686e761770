"""The same runs on an existing dask.distributed cluster, which replaces workers that die.

The workers need this environment and the output folder under the same path (a shared disk). A run that was under way on a
lost worker starts again elsewhere; a finished one has its record in the folder, so it is not run a second time.
"""

import re
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qatlib.messages import short
from qatlib.sweep.grid import Job
from qatlib.sweep.local import cpus
from qatlib.sweep.store import Store


def check_address(address: str) -> None:
    """Raise ValueError unless `address` names a host and a port; dask tries a wrong one for long, and complains even later."""
    match = re.fullmatch(r"([a-z]+://)?(\[[0-9a-fA-F:.]+\]|[^/\s:\[\]]+):([0-9]{1,5})", str(address))
    if not match or match[1] not in (None, "tcp://", "tls://", "ws://", "wss://") or not 0 < int(match[3]) < 65536:
        raise ValueError(f"scheduler is {short(address)}; write it as tcp://HOST:8786 (tls:// where the scheduler uses TLS)")


def connect(address: str, timeout: float = 5):
    """A client of the scheduler at `address`. Raises ImportError or OSError with the remedy."""
    try:
        from distributed import Client
    except ImportError as problem:
        raise ImportError("--scheduler needs dask.distributed; install it with: pip install 'qatlib[cluster]'") from problem
    try:
        return Client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as problem:
        remedy = "start one (`dask scheduler --host 127.0.0.1`; for other computers with dask's TLS) or correct --scheduler"
        raise OSError(None, f"no scheduler answers at {address}; {remedy}") from problem


def look(path: str, word: str) -> dict:
    """On a worker: does it see the same folder, and how many processors has it?"""
    seen = Path(path)
    return {"same": seen.is_file() and seen.read_text() == word, "cpus": cpus()}


def survey(client, store: Store) -> int:
    """Threads a kernel may use on the most crowded host. Raises OSError for no workers or one without the folder."""
    word, path = uuid.uuid4().hex, store.out / ".shared"
    path.write_text(word)
    try:
        answers = client.run(look, str(path), word)
    finally:
        path.unlink(missing_ok=True)
    if not answers:
        raise OSError(None, "the scheduler has no workers; start some with `dask worker ADDRESS`, then run this again")
    blind = sorted(worker for worker, answer in answers.items() if not answer["same"])
    if blind:
        raise OSError(None, f"worker {blind[0]} does not see {store.out}; choose an --out on a disk that all workers share")
    workers = client.scheduler_info(n_workers=-1)["workers"]
    crowd = Counter()
    for worker in answers:
        crowd[workers[worker]["host"]] += workers[worker]["nthreads"]
    return max(1, min(answer["cpus"] // crowd[workers[worker]["host"]] for worker, answer in answers.items()))


def perform(job: Job) -> dict:
    """On a worker: one run. papermill is loaded here, in the task's thread, so that the worker answers its scheduler meanwhile."""
    from qatlib.sweep.worker import execute

    return execute(job)


def run_cluster(client, jobs: list[Job]) -> Iterator[dict]:
    """Execute `jobs` on the cluster; yields each record as it comes. Jobs not yet begun are withdrawn if the caller stops."""
    from distributed import as_completed

    futures = {client.submit(perform, job, key=f"sweep-{job.run.key}", pure=False): job for job in jobs}
    try:
        for future in as_completed(list(futures), loop=client.loop):
            yield _outcome(future, futures[future])
            future.release()
    finally:
        if client.status == "running":
            client.cancel(list(futures))


def _outcome(future, job: Job) -> dict:
    """The record of a future; a run that took several workers down with it counts as failed, a lost scheduler ends the sweep."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    if future.status == "finished":
        return future.result()
    problem = CancelledError() if future.status in ("cancelled", "lost") else future.exception()
    if isinstance(problem, CancelledError):
        raise OSError(None, "the connection to the scheduler was lost; start the same command again to continue")
    if not isinstance(problem, KilledWorker):
        raise problem
    return {
        "key": job.run.key,
        "parameters": job.run.parameters,
        "status": "failed",
        "metrics": {},
        "seconds": 0.0,
        "threads": job.threads,
        "process": None,
        "error": "KilledWorker: every worker that ran it died, perhaps for want of memory",
        "notebook": "",
    }
