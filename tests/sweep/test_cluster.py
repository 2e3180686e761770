"""The same sweep on a dask.distributed cluster of real processes on 127.0.0.1, one of which is killed on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qatcourse.sweep import run
from qatcourse.sweep.__main__ import main

pytest.importorskip("distributed", reason="the cluster is an extra: pip install 'qatlib[cluster]'")
NOTEBOOK = Path(__file__).parents[1] / "data" / "sweep_tiny.ipynb"


def wait_for(condition, seconds: float = 120):
    """Poll until `condition()` is true; its value."""
    deadline = time.time() + seconds
    while not (value := condition()):
        assert time.time() < deadline, "waited too long"
        time.sleep(0.05)
    return value


class Cluster:
    """A scheduler and workers, each a process of its own, without nannies: what dies stays dead."""

    def __init__(self, folder: Path):
        self.folder, self.file, self.processes = folder, folder / "scheduler.json", []
        self.start("dask_scheduler", "--port", "0", "--scheduler-file", str(self.file))
        wait_for(lambda: self.file.exists() and self.file.read_text().endswith("}"))
        self.address = json.loads(self.file.read_text())["address"]

    def start(self, module: str, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--host", "127.0.0.1", "--no-dashboard", *arguments]
        with open(self.folder / f"{module}{len(self.processes)}.log", "w") as log:
            self.processes.append(subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log))
        return self.processes[-1]

    def worker(self) -> subprocess.Popen:
        return self.start("dask_worker", self.address, "--nthreads", "1", "--no-nanny")

    def wait_for_workers(self, count: int) -> None:
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=120)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_repeats_nothing_finished(cluster, tmp_path, capsys):
    workers = [cluster.worker(), cluster.worker()]
    cluster.wait_for_workers(2)
    out, log = tmp_path / "out", tmp_path / "log"
    grid = ["weight_bits=8,4", "seed=0:4", "wait=1.0", f"log={log}"]
    sweep = ["-m", "qatcourse.sweep", str(NOTEBOOK), "--out", str(out), "--grid", *grid]
    process = subprocess.Popen([sys.executable, *sweep, "--scheduler", cluster.address], stdout=subprocess.PIPE, text=True)
    wait_for(lambda: {json.loads(path.read_bytes())["process"] for path in out.glob("results/*.json")} == {w.pid for w in workers})
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("results/*.json")}
    workers[0].send_signal(signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "8 of 8 runs finished (0 from before), 0 failed" in output

    results = {path: json.loads(path.read_bytes()) for path in out.glob("results/*.json")}
    assert len(results) == 8 == len(list(out.glob("notebooks/*.ipynb")))
    assert all(path.stat().st_mtime_ns == when and path.read_bytes() == content for path, (when, content) in before.items())
    assert {result["process"] for result in results.values()} == {worker.pid for worker in workers}, "both workers finished runs"
    begun = log.read_text().splitlines()
    assert len(set(begun)) == 8 and 8 <= len(begun) <= 9, "only the run that the dead worker had begun may begin again"
    again = {line for line in begun if begun.count(line) > 1}
    repeated = {path for path, r in results.items() if any(line.startswith(told(r["parameters"])) for line in again)}
    assert not repeated & set(before), "a finished run began again"
    with open(out / "results.csv", newline="") as handle:
        assert [row["status"] for row in csv.DictReader(handle)] == ["done"] * 8

    assert main([*sweep[2:], "--scheduler", cluster.address, "--quiet"]) == 0
    assert "(8 from before)" in capsys.readouterr().out and log.read_text().splitlines() == begun


def told(parameters: dict) -> str:
    """How the notebook's log names a run."""
    return f"{parameters['weight_bits']} {parameters['seed']} "


@pytest.mark.slow
def test_failing_runs_empty_clusters_and_lost_schedulers_are_told(cluster, tmp_path, capsys):
    command = [str(NOTEBOOK), "--grid", "fail_at=0,None", "--scheduler", cluster.address, "--quiet", "--out"]
    assert main([*command, str(tmp_path / "a")]) == 2
    assert "the scheduler has no workers" in capsys.readouterr().err
    cluster.worker()
    cluster.wait_for_workers(1)
    sweep = run(NOTEBOOK, {"fail_at": [0, None]}, tmp_path / "b", scheduler=cluster.address, progress=False)
    assert [record["status"] for record in sweep.records] == ["failed", "done"]
    assert sweep.failed[0]["error"] == "RuntimeError: seed 0 is made to fail" and os.path.exists(sweep.failed[0]["notebook"])

    log = tmp_path / "log"
    waiting = subprocess.Popen(
        [sys.executable, "-m", "qatcourse.sweep", *command, str(tmp_path / "c"), "--grid", "wait=120", f"log={log}"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(log.exists)
    cluster.processes[0].kill()
    message = waiting.communicate(timeout=60)[1]
    assert waiting.returncode == 2 and "sweep: the connection to the scheduler was lost; start the same command again" in message
