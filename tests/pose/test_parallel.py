"""Two processes train as one: the same sums, the same batch statistics, the same loss, also through the change to QAT."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from qatcourse.pose.parallel import Team, join, leave, share_batch_norm
from qatcourse.pose.train import read_checkpoint

HERE = os.path.dirname(__file__)


def start(script: str, rank: int, size: int, port: int, folder) -> subprocess.Popen:
    told = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {**os.environ, **told, "OMP_NUM_THREADS": "1", "PYTHONPATH": HERE, "QATLIB_CACHE": str(folder)}
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)


def together(script: str, folder, size: int = 2) -> None:
    """Run `script` in `size` processes that know of each other through 127.0.0.1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(script, rank, size, port, folder) for rank in range(size)]
    for process in processes:
        error = process.communicate(timeout=1200)[1]
        assert process.returncode == 0, error


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, 3, dtype=torch.float64)
    bn = torch.nn.BatchNorm2d(5, momentum=0.05, dtype=torch.float64)
    return torch.nn.Sequential(conv, bn, torch.nn.ReLU(), torch.nn.Conv2d(5, 2, 3, dtype=torch.float64)).train()


def step(team: Team) -> dict:
    """Gradients and statistics of one step on 5 pictures (3 and 2 in two processes), in float64."""
    model = share_batch_norm(network(), team)
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = model(x[team.share(5)]).square().sum() / 5
    loss.backward()
    team.add_gradients(model)
    loss = team.add(loss.detach())
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    return {"loss": loss.item(), "state": state, "grad": {name: p.grad.tolist() for name, p in model.named_parameters()}}


def listening() -> set[str]:
    """The local addresses, in hexadecimal, on which this process waits for connections."""
    own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


def step_and_write(path: str) -> None:
    team = join()
    if os.path.isdir("/proc/net"):
        waiting = listening()
        assert waiting <= {"0100007F"} and (waiting or not team.first), f"listens on {waiting}, not on 127.0.0.1 alone"
    found = step(team)
    with open(f"{path}{team.rank}", "w") as handle:
        json.dump(found, handle)
    leave(team)


def flat(tree) -> np.ndarray:
    parts = [value for part in tree.values() for value in (part.values() if isinstance(part, dict) else [part])]
    return np.concatenate([np.ravel(part) for part in parts])


def test_alone_nothing_changes():
    team, model = join(), network()
    assert team == Team() and team.first and share_batch_norm(model, team) is model and type(model[1]) is torch.nn.BatchNorm2d
    assert list(range(5))[team.share(5)] == [0, 1, 2, 3, 4] and not dist.is_initialized()


@pytest.mark.slow
def test_one_step_of_two_processes_is_that_of_one(tmp_path):
    together(f"from test_parallel import *; step_and_write({str(tmp_path / 'rank')!r})", tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1], "both processes hold the same bits"
    alone = step(Team())
    # float64: sums of at most 5 * 6 * 6 * 27 terms, each rounded by 2^-53 relative to sums of order 10
    assert np.abs(flat(ranks[0]) - flat(alone)).max() < 5 * 36 * 27 * 2.0**-53 * 10


@pytest.mark.slow
def test_training_by_torchrun_has_the_loss_of_one_process(tmp_path):
    settings = ["--epochs", "3", "--start-epoch", "2", "--n-train", "80", "--n-test", "16"]
    command = [sys.executable, "-m", "qatcourse.train_pose_tiny", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QATLIB_CACHE": str(tmp_path)}
    run = {"env": environment, "check": True, "capture_output": True, "text": True, "timeout": 1200}
    subprocess.run([*command, "--out", str(tmp_path / "one")], **run)
    meeting = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-endpoint", str(tmp_path / "meeting")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--local-addr", "127.0.0.1", *meeting, "--nproc-per-node", "2"]
    two = subprocess.run([*launcher, *command[1:], "--out", str(tmp_path / "two")], **run)
    assert two.stdout.count("trained 3 epochs") == 1, "one process speaks for both"
    alone, shared = (read_checkpoint(tmp_path / name / "final.pth")["history"] for name in ("one", "two"))
    losses = [[epoch["loss"] for epoch in history] for history in (alone, shared)]
    # Only the order of float32 sums differs, but AdamW's first steps are lr * gradient / |gradient|, so a weight whose gradient is
    # rounding noise may move the other way by a whole step of 2e-3; and in QAT a sum next to a rounding boundary may change
    # a code. Both touch few of many weights and codes: 1e-3 of the loss. The exact comparison is the float64 step above.
    assert np.allclose(losses[1], losses[0], rtol=1e-3, atol=0)
    assert losses[0][1] < losses[0][0], "the loss moves, so that equality means something"
