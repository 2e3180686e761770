"""Sweeps on this computer: what is refused, what is run, what is kept, what an interrupt and a full disk leave."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import pytest

from qatcourse.sweep import grid as grids
from qatcourse.sweep import parse_grid, record, run
from qatcourse.sweep.__main__ import main
from qatcourse.sweep.executors import check_address, cpus, no_closed_socket, outcome, threads_for
from qatcourse.sweep.grid import check_grid, expand, name_run
from qatcourse.sweep.notebook import STORAGE, read_notebook
from qatcourse.sweep.picture import draw
from qatcourse.sweep.recording import MIME, recorded
from qatcourse.sweep.store import Store, checksum, table

NOTEBOOK = Path(__file__).parents[1] / "data" / "sweep_tiny.ipynb"


def rows(out: Path) -> list[dict]:
    with open(out / "results.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def started(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


# ---- grids ----------------------------------------------------------------------------------------------------------


def test_literals_of_a_grid():
    grid = parse_grid(["a=8,-1,2.5,1e-3", "b=None,True,text,'x,y',\"it's\"", "c=0:3", "d=5:0:-2", "e=''"])
    assert grid == {"a": [8, -1, 2.5, 1e-3], "b": [None, True, "text", "x,y", "it's"], "c": [0, 1, 2], "d": [5, 3, 1], "e": [""]}
    assert [type(value) for value in grid["a"]] == [int, int, float, float]


ENTRIES = ["a", "a=", "a=1,", "a=1,,2", "=1", "1a=2", "../a=1", "a b=1", "a=3:3", "a=0:3:0", "a=0:1000000", "a='x"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_bad_grid_entries_are_named(entry):
    with pytest.raises(ValueError, match=re.escape(repr(entry.partition("=")[2] if ":" in entry else entry))):
        parse_grid([entry])


def test_a_name_given_twice_is_refused():
    with pytest.raises(ValueError, match="'a' is given twice"):
        parse_grid(["a=1", "a=2"])


@pytest.mark.parametrize(
    "grid, error, words",
    [
        ({}, ValueError, "at least one parameter"),
        ({"a": []}, ValueError, "at least one value"),
        ({"a": 3}, ValueError, "at least one value"),
        ({"a": [1, 2, 1]}, ValueError, "1 twice"),
        ({"a": [[1]]}, TypeError, "holds a list"),
        ({"a": [float("nan")]}, ValueError, "nan"),
        ({"a": range(400), "b": range(400)}, ValueError, "160,000 runs"),
    ],
)
def test_unusable_grids_are_refused(grid, error, words):
    with pytest.raises(error, match=words):
        check_grid(grid)


def test_values_that_only_look_equal_are_different_runs():
    runs = expand({"a": [1, 1.0, True, "1"]}, "code")
    assert len({run.key for run in runs}) == 4 and check_grid({"a": [1, 1.0, True]}) == 3


def test_the_key_follows_notebook_and_parameters():
    assert name_run({"a": 1}, "x").key == name_run({"a": 1}, "x").key
    assert len({name_run({"a": 1}, "x").key, name_run({"a": 2}, "x").key, name_run({"a": 1}, "y").key}) == 3


@pytest.mark.parametrize("value", ["../../etc/passwd", "/etc/passwd", "a\0b", "..", "con:", "x" * 5000, "{a}", "\n", "\u202efdp"])
def test_file_names_are_safe_whatever_the_value(value):
    run = name_run({"data": value}, "")
    assert re.fullmatch(r"[A-Za-z0-9=.,_-]{1,80}", run.slug) and not run.slug.startswith(".")


# ---- record ---------------------------------------------------------------------------------------------------------


def test_record_outside_a_notebook_prints(capsys):
    record(pck=np.float32(0.5), epochs=np.array([3]), name="a")
    assert capsys.readouterr().out == "recorded pck = 0.5, epochs = 3, name = a\n"


@pytest.mark.parametrize("values", [{"a": [1]}, {"a": np.zeros(2)}, {"a": object()}, {"a": {}}])
def test_record_refuses_what_is_no_number(values):
    with pytest.raises(TypeError, match=r"record\(a=\.\.\.\)"):
        record(**values)


def test_record_without_values_is_refused():
    with pytest.raises(ValueError, match="name a value"):
        record()


def test_recorded_keeps_the_last_value_and_infinities():
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    def shown(values):
        return new_code_cell(outputs=[new_output("display_data", {MIME: values})])

    found = recorded(new_notebook(cells=[shown({"a": 1, "b": {"float": "inf"}}), shown({"a": 2, "c": {"float": "nan"}})]))
    assert found["a"] == 2 and found["b"] == float("inf") and np.isnan(found["c"])


# ---- what is refused before anything starts -------------------------------------------------------------------------


def notebook_file(path: Path, kernel: str = "python3", tagged: bool = True) -> Path:
    from nbformat.v4 import new_code_cell, new_notebook

    cell = new_code_cell("a = 1", metadata={"tags": ["parameters"]} if tagged else {})
    nbformat.write(new_notebook(cells=[cell], metadata={"kernelspec": {"name": kernel, "display_name": kernel}}), path)
    return path


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{nb}", "--grid", "widht_bits=8"], "no parameter 'widht_bits'; it has weight_bits, seed"),
        (["{nb}", "--grid", "seed=1,1"], "1 twice"),
        (["{nb}", "--grid", "seed="], "empty value"),
        (["{tmp}/absent.ipynb", "--grid", "a=1"], "no notebook at"),
        (["{tmp}", "--grid", "a=1"], "no notebook at"),
        (["{tmp}/text.ipynb", "--grid", "a=1"], "is not a notebook"),
        (["{tmp}/binary.ipynb", "--grid", "a=1"], "not UTF-8"),
        (["{tmp}/untagged.ipynb", "--grid", "a=1"], "takes no parameters; tag a cell"),
        (["{tmp}/julia.ipynb", "--grid", "a=1"], "kernel 'julia-9'"),
        (["ftp://host/a.ipynb", "--grid", "a=1"], "papermill writes to"),
        (["{nb}", "--grid", "seed=1", "--workers", "0"], "workers is 0"),
        (["{nb}", "--grid", "seed=1", "--threads-per-worker", "-1"], "threads is -1"),
        (["{nb}", "--grid", "seed=1", "--notebooks", "nowhere://a"], "'nowhere://a'; papermill writes to"),
        (["{nb}", "--grid", "seed=1", "--scheduler", "tcp://127.0.0.1:1"], "no scheduler answers at tcp://127.0.0.1:1"),
        (["{nb}", "--grid", "seed=1", "--out", "s3://bucket/a"], "the results need a folder"),
        (["{nb}", "--grid", "seed=1", "--out", "{tmp}/text.ipynb/below"], "cannot write"),
        (["{nb}", "--grid", "seed=1", "--out", "/proc/sweep"], "cannot write"),
    ],
)
def test_refusals_are_one_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch, arguments, words):
    (tmp_path / "text.ipynb").write_text("not a notebook")
    (tmp_path / "binary.ipynb").write_bytes(b"\xff\xfe\x00")
    notebook_file(tmp_path / "untagged.ipynb", tagged=False)
    notebook_file(tmp_path / "julia.ipynb", kernel="julia-9")
    arguments = [a.format(nb=NOTEBOOK, tmp=tmp_path) for a in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.startswith("sweep: ") and captured.err.count("\n") == 1 and not captured.out
    assert not list(tmp_path.glob("out/results/*"))


SCHEMES = {
    "s3": "boto3 is not installed; install it with: pip install 'qatlib[s3]'",
    "gs": "gs:// needs gcsfs; install it with: pip install 'papermill[gcs]'",
    "abs": "abs:// needs azure.storage.blob; install it with: pip install 'papermill[azure]'",
    "adl": "adl:// needs azure.datalake.store; install it with: pip install 'papermill[azure]'",
    "hdfs": "hdfs:// needs pyarrow; install it with: pip install 'papermill[hdfs]'",
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("read", [False, True], ids=["writing", "reading"])
def test_storage_without_its_package_names_what_installs_it(tmp_path, capsys, monkeypatch, scheme, read):
    monkeypatch.setitem(sys.modules, STORAGE[f"{scheme}://"][0], None)
    notebook, remote = (f"{scheme}://bucket/a.ipynb", []) if read else (str(NOTEBOOK), ["--notebooks", f"{scheme}://bucket/a"])
    assert main([notebook, "--grid", "seed=1", "--out", str(tmp_path / "out"), *remote]) == 2
    assert capsys.readouterr().err == f"sweep: {SCHEMES[scheme]}\n"
    assert not (tmp_path / "out").exists()


def test_github_is_no_place_to_write_to(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "github", types.ModuleType("github"))
    url = "https://github.com/someone/notebooks"
    assert main([str(NOTEBOOK), "--grid", "seed=1", "--out", str(tmp_path / "out"), "--notebooks", url]) == 2
    assert "papermill only reads from GitHub, give a folder" in capsys.readouterr().err


def test_every_scheme_that_imports_something_is_known():
    from papermill.iorw import papermill_io

    alone = {"https://", "http://", "local", "-"}  # requests comes with papermill; the others are files
    assert {scheme for scheme, _ in papermill_io._handlers} - alone == set(STORAGE)


def test_a_notebook_that_a_service_refuses_is_named(tmp_path, capsys, monkeypatch):
    from papermill.iorw import papermill_io

    class Refusing:
        def read(self, path):
            raise RuntimeError("no\naccess")

    monkeypatch.setattr(papermill_io, "_handlers", list(papermill_io._handlers))
    papermill_io.register("test://", Refusing())
    assert main(["test://bucket/a.ipynb", "--grid", "seed=1", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "sweep: cannot read test://bucket/a.ipynb (no access); correct the address or your access\n"


def test_a_wrong_address_leaves_nothing_behind_that_complains_later(tmp_path):
    command = [sys.executable, "-m", "qatcourse.sweep", str(NOTEBOOK), "--grid", "seed=1", "--scheduler", "tcp://127.0.0.1:abc"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'tcp://127.0.0.1:abc'; write it as tcp://HOST:8786" in done.stderr


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:8786", "tls://host.example:1", "host:65535", "tcp://[::1]:8786", "ws://h:80"])
def test_addresses_that_dask_knows_are_let_through(address):
    check_address(address)


def test_cluster_without_distributed_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main([str(NOTEBOOK), "--grid", "seed=1", "--out", str(tmp_path), "--scheduler", "tcp://127.0.0.1:1"]) == 2
    expected = "sweep: dask.distributed is not installed; install it with: pip install 'qatlib[cluster]'\n"
    assert capsys.readouterr().err == expected


def test_two_sweeps_in_one_folder_are_refused(tmp_path, capsys):
    store = Store(tmp_path)
    store.prepare({})
    with store.locked():
        assert main([str(NOTEBOOK), "--grid", "seed=1", "--out", str(tmp_path)]) == 2
    assert "another sweep is at work" in capsys.readouterr().err


# ---- the store ------------------------------------------------------------------------------------------------------


def done(run, seconds=1.0, **metrics) -> dict:
    told = {"status": "done", "metrics": metrics, "seconds": seconds, "error": "", "notebook": "n"}
    return {"key": run.key, "parameters": run.parameters, **told}


def test_of_two_attempts_the_first_stays(tmp_path):
    store, run = Store(tmp_path), name_run({"a": 1}, "")
    store.prepare({})
    attempts = [store.attempt(run), store.attempt(run)]
    for number, attempt in enumerate(attempts):
        attempt.write_text(str(number))
    kept = [store.finish(run, done(run, pck=number), attempt) for number, attempt in enumerate(attempts)]
    assert kept[0] == kept[1] == store.finished(run) and kept[0]["metrics"] == {"pck": 0}
    assert store.notebook(run).read_text() == "0"


def test_eight_attempts_at_once_finish_once(tmp_path):
    store, run = Store(tmp_path), name_run({"a": 1}, "")
    store.prepare({})
    kept = []
    threads = [threading.Thread(target=lambda n=n: kept.append(store.finish(run, done(run, pck=n), None))) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(kept) == 8 and len({record["checksum"] for record in kept}) == 1


DAMAGE = ["", "{", "[]", "null", "[" * 200_000, "cut", "flip", "other key", "unchecked", "metrics", "seconds", "nested"]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage[:9])
def test_a_damaged_result_does_not_count_and_is_removed(tmp_path, damage):
    store, run = Store(tmp_path), name_run({"a": 1}, "")
    store.prepare({})
    store.finish(run, done(run, pck=0.25), None)
    path = tmp_path / "results" / f"{run.slug}.json"
    text = path.read_text()
    other = {**json.loads(text), "key": "0"}
    lacking = {name: {key: value for key, value in done(run).items() if key != name} for name in ("metrics", "seconds")}
    lacking["nested"] = {**done(run), "metrics": {"pck": [1]}}
    damaged = {
        **{name: json.dumps({**record, "checksum": checksum(record)}) for name, record in lacking.items()},
        "cut": text[:-20],
        "flip": text.replace("0.25", "0.75"),
        "other key": json.dumps({**other, "checksum": checksum(other)}),
        "unchecked": json.dumps(done(run)),
    }
    path.write_text(damaged.get(damage, damage))
    assert store.finished(run) is None
    assert store.clean([run]) == 1 and not path.exists()


def test_a_result_of_another_notebook_does_not_count(tmp_path):
    store, run = Store(tmp_path), name_run({"a": 1}, "notebook")
    store.prepare({})
    store.finish(run, done(run), None)
    assert store.finished(name_run({"a": 1}, "changed notebook")) is None


def test_leftovers_of_killed_attempts_are_removed(tmp_path):
    store, run = Store(tmp_path), name_run({"a": 1}, "")
    store.prepare({})
    store.attempt(run).write_text("half")
    (tmp_path / "results" / ".abc.tmp").write_text("half")
    store.clean([run])
    assert not list(tmp_path.glob("*/.*"))


def test_table_keeps_columns_apart_that_share_a_name():
    run = name_run({"seconds": 3, "pck": None}, "")
    columns, found = table([done(run, seconds=1.234, pck=0.5, error=7)])
    assert columns == ["seconds", "pck", "status", "seconds_", "pck_", "error_", "error", "notebook"]
    assert list(found[0].values()) == [3, "None", "done", 1.23, 0.5, 7, "", "n"] and list(found[0]) == columns


def test_a_table_holds_numbers_of_any_size(tmp_path):
    store, huge = Store(tmp_path), name_run({"seed": 10**30}, "")
    store.prepare({})
    path = store.write_table([done(huge, macs=2**80), done(name_run({"seed": 1}, ""), macs=0.5)])
    assert path == tmp_path / "results.csv" and [(row["seed"], row["macs"]) for row in rows(tmp_path)] == [
        (str(10**30), str(2**80)), ("1", "0.5")]  # fmt: skip


def test_picture_says_what_it_shows():
    records = [done(name_run({"bits": b, "seed": s}, ""), pck=0.1 * b + s) for b in (8, 4) for s in (0, 1)]
    png, sentence = draw(records)
    assert png.startswith(b"\x89PNG") and sentence == (
        "The pck of 4 runs, mean (least to most): 1.3 (0.8 to 1.8) at bits = 8, 0.9 (0.4 to 1.4) at bits = 4."
    )
    assert draw([{**records[0], "status": "failed"}]) is None
    assert "seconds" in draw([{**record, "metrics": {}} for record in records])[1]
    equal = [done(name_run({"bits": b}, ""), pck=n) for n, b in enumerate((1, 1.0, True))]
    assert draw(equal)[1] == ("The pck of 3 runs, mean (least to most): 0 at bits = 1, 1 at bits = 1.0, 2 at bits = True.")


def test_picture_shows_numbers_of_one_kind_beside_each_other():
    runs = [name_run({"bits": bits, "preset": preset, "seed": 0}, "") for bits in (8, 4) for preset in "ab"]
    records = [done(run_, pck=0.5, fp32_pck=0.9, other=3) for run_ in runs]
    sentence = draw(records)[1]
    assert "0.5 at bits = 8 (pck, preset = a)" in sentence and "0.9 (0.9 to 0.9) at bits = 4 (fp32_pck)" in sentence
    assert "other" not in sentence


def test_threads_never_exceed_the_processors():
    assert threads_for(1) == cpus() and all(threads_for(n) * n <= max(n, cpus()) for n in range(1, 9))


# ---- real runs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_fails_partly_resumes_and_reruns_only_what_is_missing(tmp_path, capsys):
    out, log = tmp_path / "out {seed}", tmp_path / "log"
    hostile = '"); raise SystemExit(3) #\n\'"""'
    grid = {"weight_bits": [8, 4], "fail_at": [None, 0], "log": [str(log)]}
    first = run(NOTEBOOK, grid, out, workers=2, progress=False)
    assert [record["status"] for record in first.records] == ["done", "failed", "done", "failed"] and len(started(log)) == 4
    assert first.failed[0]["error"] == "RuntimeError: seed 0 is made to fail"
    kept = nbformat.read(first.failed[0]["notebook"], as_version=4)
    assert any(o.get("ename") == "RuntimeError" for cell in kept.cells for o in cell.get("outputs", []))
    assert [(r["weight_bits"], r["step"]) for r in rows(out) if r["status"] == "done"] == [("8", "0.0078125"), ("4", "0.125")]
    assert rows(out)[0]["folder"] == "data" and rows(out)[0]["threads"] == str(threads_for(2)) and rows(out)[1]["step"] == ""
    assert first.picture.read_bytes().startswith(b"\x89PNG") and "0.125 at weight_bits = 4" in first.sentences[1]
    markers = {path: path.stat().st_mtime_ns for path in out.glob("results/*.json")}
    broken = sorted(markers)[0]
    broken.write_text(broken.read_text()[:-9])

    second = run(NOTEBOOK, {"weight_bits": [8], "log": [str(log)]}, tmp_path / "other", workers=1, progress=False)
    assert second.resumed == 0 and second.records[0]["metrics"]["threads"] == threads_for(1)

    third = run(NOTEBOOK, {**grid, "fail_at": [None]}, out, workers=2, progress=False)
    assert third.resumed == 1 and len(started(log)) == 4 + 1 + 1 and not third.failed
    assert [path for path, when in markers.items() if path.stat().st_mtime_ns != when] == [broken]
    assert run(NOTEBOOK, {**grid, "fail_at": [None]}, out, progress=False).resumed == 2 and len(started(log)) == 6

    assert main([str(NOTEBOOK), "--grid", "fail_at=0", "--out", str(tmp_path / "failing"), "--quiet"]) == 1
    assert "1 failed" in capsys.readouterr().out
    odd = run(NOTEBOOK, {"fail_at": [hostile]}, tmp_path / "hostile", progress=False)
    assert odd.records[0]["status"] == "done" and odd.records[0]["parameters"]["fail_at"] == hostile


class Folder:
    """A papermill handler that keeps `test://name` in a folder, as its own s3 handler keeps s3://name in a bucket."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, text, url):
        (self.path / url.removeprefix("test://bucket/")).write_text(text)

    def pretty_path(self, url):
        return url


@pytest.mark.slow
def test_notebooks_go_to_remote_storage(tmp_path, monkeypatch):
    from papermill.iorw import papermill_io

    monkeypatch.setattr(papermill_io, "_handlers", list(papermill_io._handlers))
    papermill_io.register("test://", Folder(tmp_path))
    sweep = run(NOTEBOOK, {"weight_bits": [4], "fail_at": [None, 0]}, tmp_path / "out", remote="test://bucket", progress=False)
    assert [record["notebook"][:14] for record in sweep.records] == ["test://bucket/"] * 2
    arrived = [nbformat.read(tmp_path / record["notebook"][14:], as_version=4) for record in sweep.records]
    assert recorded(arrived[0])["step"] == 0.125 and "made to fail" in str(arrived[1].cells)
    assert not list((tmp_path / "out/notebooks").iterdir())


@pytest.mark.slow
def test_interrupt_stops_kernels_and_leaves_a_folder_to_resume(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-m", "qatcourse.sweep", str(NOTEBOOK), "--out", str(out), "--workers", "2", "--quiet"]
    grid = ["--grid", f"log={log}", "wait=0,60", "seed=0:2"]
    process = subprocess.Popen([*command, *grid], env={**os.environ, "SWEEP": str(out)}, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while len(started(log)) < 4 and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert len(processes_with(f"SWEEP={out}")) >= 2
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=55)[1]
    assert process.returncode == 130 and message.strip().startswith("sweep: interrupted; finished runs are kept")
    assert not processes_with(f"SWEEP={out}"), "a kernel outlived the sweep"
    finished = len(list(out.glob("results/*.json")))
    assert finished == 2 and len(rows(out)) == 2
    assert run(NOTEBOOK, {"log": [str(log)], "wait": [0], "seed": [0, 1]}, out, progress=False).resumed == 2


def test_an_interrupt_silences_nothing_but_closed_sockets():
    import logging

    import zmq

    for problem, told in ((zmq.ZMQError(88), False), (ValueError("x"), True), (None, True)):
        record = logging.makeLogRecord({"exc_info": problem and (type(problem), problem, None)})
        assert no_closed_socket(record) is told


@pytest.mark.slow
def test_an_interrupt_between_two_records_stops_kernels_too(tmp_path, monkeypatch):
    from qatcourse.sweep import driver

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver.tqdm, "set_postfix", interrupt)
    before = time.time()
    assert main([str(NOTEBOOK), "--grid", "wait=0,200", "--workers", "2", "--out", str(tmp_path)]) == 130
    assert time.time() - before < 100, "the notebook that waits 200 s was not stopped"
    assert not [t for t in threading.enumerate() if t.name.startswith("sweep")]


@pytest.mark.slow
def test_the_table_of_an_interrupted_sweep_holds_a_run_that_was_not_collected_yet(tmp_path, monkeypatch):
    from qatcourse.sweep import driver

    def interrupted(self, arriving):
        next(arriving)
        arriving.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(driver._Driver, "_collect", interrupted)
    assert main([str(NOTEBOOK), "--grid", "seed=0:2", "--workers", "1", "--out", str(tmp_path)]) == 130
    assert len(rows(tmp_path)) == len(list(tmp_path.glob("results/*.json"))) >= 1


class Deaf(ThreadPoolExecutor):
    """Does the work, but its futures never end: so does dask's executor where it loses a result on the way."""

    def submit(self, task, job):
        super().submit(task, job)
        return Future()


@pytest.mark.slow
def test_a_run_whose_result_is_lost_on_the_way_is_found_in_the_folder(tmp_path, monkeypatch):
    from qatcourse.sweep import driver, executors

    monkeypatch.setattr(executors, "ThreadPoolExecutor", Deaf)
    monkeypatch.setattr(driver, "PATIENCE", 0.1)
    sweep = run(NOTEBOOK, {"seed": [0, 1]}, tmp_path, workers=2, progress=False)
    assert [record["status"] for record in sweep.records] == ["done", "done"] and len(rows(tmp_path)) == 2


def test_only_a_run_that_killed_its_workers_becomes_a_failed_one():
    class KilledWorker(Exception):
        """Named as dask's."""

    job, future = grids.Job(name_run({"a": 1}, ""), "", "", "", None, 2, None, grids.Kernels()), Future()
    future.set_exception(KilledWorker())
    record = outcome(future, job)
    assert (record["status"], record["threads"], record["parameters"]) == ("failed", 2, {"a": 1})
    assert record["error"] == "KilledWorker: every worker that ran it died, perhaps for want of memory"
    future = Future()
    future.set_exception(KeyError("a"))
    with pytest.raises(KeyError):
        outcome(future, job)


def processes_with(setting: str) -> list[int]:
    """Processes whose environment holds `setting`: kernels inherit it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if setting.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_disk_that_fills_up_stops_the_sweep_in_one_sentence(tmp_path, capsys, monkeypatch):
    import errno

    from qatcourse.sweep import worker

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "_papermill", full)
    assert main([str(NOTEBOOK), "--grid", "seed=0:3", "--out", str(tmp_path), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"sweep: cannot write to {tmp_path}: No space left on device; free") and message.count("\n") == 1


def test_reading_a_notebook_ignores_its_outputs(tmp_path):
    path = notebook_file(tmp_path / "a.ipynb")
    before = read_notebook(path, {"a": [1]})[1]
    node = nbformat.read(path, as_version=4)
    node.cells[0].outputs = [nbformat.v4.new_output("stream", text="hello")]
    nbformat.write(node, path)
    assert read_notebook(path, {"a": [1]})[1] == before and grids.MAX_RUNS == 100_000
