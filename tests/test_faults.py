"""Twenty kills (SIGKILL) at random moments of training, sweep and export; full disks, folders that cannot be written, interrupts.

Children are forked from one server that has everything imported, so a kill costs no start-up. Half of the kills wait for a
temporary file to appear: they hit the moment between writing and renaming.
"""

import filecmp
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import faults
import pytest
import torch

from qatcourse import train_pose_tiny
from qatcourse.pose import train as recipe
from qatcourse.sweep.store import checksum
from qatlib.files import prepare_folder, write_atomic
from qatlib.integer.compact import CompactModel

NOTEBOOK = Path(__file__).parent / "data" / "sweep_tiny.ipynb"
PRELOAD = ["faults", "qatcourse.pose.train", "qatcourse.sweep.__main__", "qatcourse.sweep.worker", "qatlib.export.check", "onnx"]
KILLS = {"training": 12, "sweep": 4, "export": 4}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Starts a child: `server(function, *arguments)` gives the running process."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)

    def start(function, *arguments):
        process = context.Process(target=function, args=[str(a) if isinstance(a, Path) else a for a in arguments])
        process.start()
        return process

    yield start
    patch.undo()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def reference(server, cache, tmp_path_factory):
    """(folder of a training that nothing disturbed, seconds it took)."""
    folder = tmp_path_factory.mktemp("reference")
    finish(server(faults.draw, cache), folder / "log")
    started = time.time()
    finish(server(faults.train, folder, folder / "log", cache, False), folder / "log")
    return folder, time.time() - started


def finish(process, log: Path) -> None:
    process.join(120)
    assert process.exitcode == 0, Path(f"{log}.output").read_text()[-2000:]


def kill(process, delay: float, until=None) -> bool:
    """SIGKILL after `delay` seconds, then, if given, as soon as `until()` holds; False if it had already ended."""
    process.join(delay)
    while until is not None and process.is_alive() and not until():
        time.sleep(0.002)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


# ---- training -------------------------------------------------------------------------------------------------------


def begun(log: Path) -> dict[str, list[int]]:
    """Epochs that each child began, in order of the children."""
    found = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        pid, epoch = line.split()
        found.setdefault(pid, []).append(int(epoch))
    return found


def check_training(out: Path, log: Path, config, done: int) -> int:
    """Every file that exists is whole; at most the last epoch begun is begun again. Returns the epochs done."""
    for name in ("float.pth", "checkpoint.pth", "final.pth"):
        if (out / name).exists():
            content = recipe.read_checkpoint(out / name)
            assert recipe.Config(**content["config"]) == config and len(content["history"]) == content["epoch"]
            assert all(torch.isfinite(value.float()).all() for value in recipe.load_model(out / name).state_dict().values())
    children = list(begun(log).values())
    for before, after in zip(children, children[1:]):
        assert after[0] >= before[-1], f"epochs {after[0]}..{before[-1]} were trained again: more than one"
    now = recipe.read_checkpoint(out / "checkpoint.pth")["epoch"] if (out / "checkpoint.pth").exists() else 0
    assert now >= done
    return now


def check_same(out: Path, reference: Path) -> None:
    made, expected = (recipe.read_checkpoint(folder / "final.pth") for folder in (out, reference))
    assert list(made["state_dict"]) == list(expected["state_dict"]) and made["history"] == expected["history"]
    assert all(torch.equal(made["state_dict"][name], value) for name, value in expected["state_dict"].items())


@pytest.mark.slow
def test_training_killed_at_random_moments_ends_as_if_undisturbed(server, reference, cache, tmp_path):
    expected, seconds = reference
    rng, out, log, kills, done, completed = random.Random(0), tmp_path / "out", tmp_path / "log", 0, 0, 0
    while kills < KILLS["training"]:
        process = server(faults.train, out, log, cache, True)
        delay = rng.uniform(0.1, 0.7) * seconds
        killed = kill(process, delay, (lambda: list(out.glob(".*.pth.*.tmp"))) if rng.random() < 0.5 else None)
        done = check_training(out, log, faults.config(), done)
        kills += killed
        if not killed:
            assert process.exitcode == 0
            check_same(out, expected)
            shutil.rmtree(out)
            log.unlink()
            done, completed = 0, completed + 1
    finish(server(faults.train, out, log, cache, True), log)
    check_training(out, log, faults.config(), done)
    check_same(out, expected)
    assert not list(out.glob(".*")), "leftovers of killed writers are removed"


# ---- sweep ----------------------------------------------------------------------------------------------------------


def sweep_results(out: Path) -> dict[int, dict]:
    """Finished runs by seed; every file that carries the name of a result is whole."""
    found = [json.loads(path.read_text()) for path in out.glob("results/[!.]*.json")]
    assert all(result["checksum"] == checksum(result) and Path(result["notebook"]).exists() for result in found)
    assert all(json.loads(Path(result["notebook"]).read_text())["cells"] for result in found)
    return {result["parameters"]["seed"]: result for result in found}


@pytest.mark.slow
def test_sweep_killed_at_random_moments_runs_nothing_finished_again(server, tmp_path):
    rng, out, log = random.Random(1), tmp_path / "out", tmp_path / "log"
    finished, lines = {}, []
    for _ in range(KILLS["sweep"]):
        target = len(lines) + rng.randint(1, 2)
        assert kill(server(faults.sweep, out, log, NOTEBOOK), 0, lambda n=target: len(seeds(log)) >= n) or len(finished) == 4
        time.sleep(rng.uniform(0, 0.3))
        now = sweep_results(out)
        assert all(now[seed] == result for seed, result in finished.items())
        assert not set(seeds(log)[len(lines) :]) & set(finished), "a finished run was begun again"
        finished, lines = now, seeds(log)
    finish(server(faults.sweep, out, log, NOTEBOOK), log)
    last = sweep_results(out)
    assert set(last) == {0, 1, 2, 3} and all(last[seed] == result for seed, result in finished.items())
    assert not set(seeds(log)[len(lines) :]) & set(finished) and not list(out.glob("*/.*"))


def seeds(log: Path) -> list[int]:
    return [int(line.split()[1]) for line in log.read_text().splitlines()] if log.exists() else []


# ---- export ---------------------------------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def check_export(folder: Path, expected: Path) -> None:
    """All files or none, each byte for byte; the compact file passes its own checksum."""
    if folder.exists():
        assert files(folder) == files(expected)
        assert filecmp.cmpfiles(folder, expected, files(expected), shallow=False)[1:] == ([], [])
        CompactModel.load(folder / "model_8bit.pth")


@pytest.mark.slow
def test_export_killed_at_random_moments_is_whole_or_absent(server, reference, tmp_path):
    checkpoint, log, rng = reference[0] / "final.pth", tmp_path / "log", random.Random(2)
    started = time.time()
    finish(server(faults.export, checkpoint, tmp_path / "expected", log), log)
    seconds, folder, kills = time.time() - started, tmp_path / "out", 0
    while kills < KILLS["export"]:
        kills += kill(server(faults.export, checkpoint, folder, log), rng.uniform(0.05, 0.9) * seconds)
        check_export(folder, tmp_path / "expected")
    finish(server(faults.export, checkpoint, folder, log), log)
    check_export(folder, tmp_path / "expected")
    assert folder.exists() and not list(tmp_path.glob(".out.*")), "what killed writers left is removed"
    assert sum(KILLS.values()) == 20


# ---- full disks and folders that cannot be written ------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="cannot write .*a: File too large; free some space"):
            write_atomic(path, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def refuse(number: int):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("error", ["ENOSPC", "EROFS", "EACCES", "EDQUOT"])
def test_training_that_cannot_write_says_one_sentence(tmp_path, monkeypatch, capsys, cache, error):
    import errno

    monkeypatch.setenv("QATLIB_CACHE", str(cache))
    (tmp_path / "checkpoint.pth").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refuse(getattr(errno, error)))
    monkeypatch.setattr(recipe, "load", lambda *_, **__: pytest.fail("work began before the folder was tried"))
    assert train_pose_tiny.main(["--out", str(tmp_path), "--epochs", "2"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("train_pose_tiny: cannot write ") and message.count("\n") == 1 and "Traceback" not in message
    assert (tmp_path / "checkpoint.pth").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("below", ["file/out", "../../../../../proc/out"])
def test_training_into_an_impossible_folder_is_refused_at_once(tmp_path, capsys, below):
    (tmp_path / "file").write_text("a file")
    assert train_pose_tiny.main(["--out", str(tmp_path / "file" / "out") if "file" in below else "/proc/out", "--epochs", "2"]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_disk_that_fills_during_training_keeps_the_last_checkpoint(tmp_path, monkeypatch, cache, reference):
    import errno

    monkeypatch.setenv("QATLIB_CACHE", str(cache))
    real, kept = os.replace, []

    def fills(source, target):
        if Path(target).name == "checkpoint.pth":
            if len(kept) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            kept.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fills)
        with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pth: No space left on device; free some space"):
            recipe.train(faults.config(), tmp_path, progress=False)
    assert recipe.read_checkpoint(tmp_path / "checkpoint.pth")["epoch"] == 2
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe.train(faults.config(), tmp_path, resume=True, progress=False)
    torch.set_num_threads(torch_threads)
    assert recipe.read_checkpoint(tmp_path / "final.pth")["epoch"] == faults.config().epochs


def test_leftovers_of_living_writers_stay(tmp_path):
    mine, dead = tmp_path / f".a.{os.getpid()}.tmp", tmp_path / f".a.{2**22 + 1}.tmp"
    mine.touch()
    dead.touch()
    assert prepare_folder(tmp_path) == tmp_path and mine.exists() and not dead.exists()


def test_no_corrupt_checkpoint_is_read_as_good(reference, tmp_path):
    content = (reference[0] / "checkpoint.pth").read_bytes()
    for number in range(12):
        damaged = bytearray(content)
        if number % 2:
            damaged = damaged[: len(content) * number // 12]
        else:
            middle = len(content) * (number + 1) // 14
            damaged[middle : middle + 64] = bytes(64 - i for i in range(64))
        (tmp_path / "checkpoint.pth").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.pth is .*(damaged|read safely)"):
            recipe.train(faults.config(), tmp_path, resume=True, progress=False)


# ---- interrupts -----------------------------------------------------------------------------------------------------


def interrupted_in(monkeypatch, name: str, epoch: int) -> None:
    real = getattr(recipe, name)

    def stop(model, optimizer, poses, config, *rest):
        if name == "start_quantization" or rest[0] == epoch:
            real(model, optimizer, poses, config, *rest)
            raise KeyboardInterrupt
        return real(model, optimizer, poses, config, *rest)

    monkeypatch.setattr(recipe, name, stop)


@pytest.mark.parametrize("name, epoch, done", [("train_epoch", 2, 2), ("start_quantization", 3, 3), ("train_epoch", 4, 4)])
def test_an_interrupt_gives_the_network_of_the_last_whole_epoch(monkeypatch, tmp_path, cache, reference, name, epoch, done):
    monkeypatch.setenv("QATLIB_CACHE", str(cache))
    with monkeypatch.context() as patch:
        interrupted_in(patch, name, epoch)
        result = recipe.train(faults.config(), tmp_path, progress=False)
    saved = recipe.read_checkpoint(tmp_path / "checkpoint.pth")
    assert result.interrupted and len(result.history) == saved["epoch"] == done
    assert all(torch.equal(value, saved["state_dict"][key]) for key, value in result.model.state_dict().items())
    assert recipe.evaluate(result.model, recipe.load("figures", "test", 16, progress=False)) == result.metrics
    assert not (tmp_path / "final.pth").exists()


def test_an_interrupt_before_the_first_epoch_ends_is_passed_on(monkeypatch, tmp_path, cache, capsys):
    monkeypatch.setenv("QATLIB_CACHE", str(cache))
    interrupted_in(monkeypatch, "train_epoch", 0)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(faults.config(), progress=False)
    assert train_pose_tiny.main(["--n-train", "32", "--n-test", "16", "--epochs", "2", "--out", str(tmp_path)]) == 130
    assert "before the end of the first epoch" in capsys.readouterr().err


def test_an_export_that_was_moved_away_and_never_replaced_comes_back(tmp_path):
    from qatlib.files import write_folder

    dead, alive = tmp_path / f".out.{2**22 + 1}.old", tmp_path / f".out.{os.getppid()}.new"
    dead.mkdir()
    alive.mkdir()
    (dead / ".qatlib").write_text("written before the kill")

    def fill(folder):
        assert (tmp_path / "out" / ".qatlib").read_text() == "written before the kill"
        raise ValueError("no new export either")

    with pytest.raises(ValueError, match="no new export"):
        write_folder(tmp_path / "out", fill)
    assert (tmp_path / "out" / ".qatlib").exists() and alive.exists() and not dead.exists()
