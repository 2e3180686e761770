"""What the children of test_faults run: training, sweep and export, with a log of what was begun and slower writing."""

import os
import sys
import time


def slow_writing() -> None:
    """Make the moment between writing a temporary file and renaming it long enough to be hit."""
    fsync = os.fsync

    def slow(handle):
        fsync(handle)
        time.sleep(0.05)

    os.fsync = slow


def quiet(log: str) -> None:
    """Send what a child prints to a file."""
    handle = os.open(f"{log}.output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def draw(cache: str) -> None:
    """Draw the pictures, so that no training waits for them; the imports of the server are paid here too."""
    from qatcourse.pose.data import load

    os.environ["QATLIB_CACHE"] = cache
    load("figures", "train", config().n_train, progress=False)
    load("figures", "test", config().n_test, progress=False)


def train(out: str, log: str, cache: str, resume: bool) -> None:
    """A tiny training with QAT in the middle; `log` receives the number of every epoch that begins."""
    import torch

    from qatcourse.pose import train as recipe

    quiet(log)
    slow_writing()
    os.environ["QATLIB_CACHE"] = cache
    torch.set_num_threads(1)
    train_epoch = recipe.train_epoch

    def logged(model, optimizer, poses, config, epoch, *rest):
        with open(log, "a") as handle:
            handle.write(f"{os.getpid()} {epoch}\n")
        return train_epoch(model, optimizer, poses, config, epoch, *rest)

    recipe.train_epoch = logged
    recipe.train(config(), out, resume, progress=False)


def config():
    from qatcourse.pose.train import configure

    return configure(epochs=5, start_epoch=3, n_train=32, n_test=16, batch_size=8)


def sweep(out: str, log: str, notebook: str) -> None:
    """Four short runs, two at a time."""
    from qatcourse.sweep.__main__ import main

    quiet(log)
    slow_writing()
    sys.exit(main([notebook, "--grid", "seed=0:4", f"log={log}", "--out", out, "--workers", "2", "--quiet"]))


def export(checkpoint: str, folder: str, log: str) -> None:
    """All forms of a network."""
    from qatlib.export.__main__ import main

    quiet(log)
    slow_writing()
    sys.exit(main(["all", checkpoint, folder, "--network", "qatcourse.pose.model:PoseTiny"]))
