"""Training in several processes that together do what one process does.

    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 --rdzv-backend c10d --rdzv-conf store_type=file --rdzv-endpoint FILE \\
             -m qatcourse.train_pose_tiny

FILE is a new one, for the processes to find each other on one computer. (Plain `torchrun --standalone` works too, but torch's
own meeting point then listens on every network interface.)

Each process takes its share of every batch. The loss is divided by the labelled joints of the whole batch, gradients are added
up, and batch norm sees the statistics of the whole batch, so the only difference to one process is the order of float sums.
"""

import dataclasses
import os
import re
import socket

import torch
import torch.distributed as dist
from torch import nn


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes of one training; alone (the default), every method does nothing."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Which of the n pictures of a batch are this process's.

        >>> [list(range(5))[Team(rank, 2).share(5)] for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
        """
        return slice(self.rank, n, self.size)

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` summed over all processes, in place; the same bits in each."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def add_gradients(self, model: nn.Module) -> None:
        """Sum the gradients over all processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        summed = self.add(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(gradients, summed.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))


_TORCHRUN = "start several processes with torchrun, which sets all that they need, or unset WORLD_SIZE to train in one"


def _described(name: str, least: int, most: int, usual: str = "") -> int:
    """The environment variable `name`, a whole number from `least` to `most`."""
    text = os.environ.get(name, usual)
    if not text:
        raise ValueError(f"{name} is not set, though WORLD_SIZE is {os.environ['WORLD_SIZE']}; {_TORCHRUN}")
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ValueError(f"{name} is {text!r}, not a whole number from {least} to {most}; {_TORCHRUN}")
    return int(text)


def join() -> Team:
    """The team that torchrun describes in the environment (WORLD_SIZE, RANK); alone where it does not.

    Processes of one computer talk, and listen, on the loopback interface only. Raises ValueError where the description is
    incomplete or no numbers, OSError where the processes do not find each other.
    """
    size = _described("WORLD_SIZE", 1, 10**6, "1")
    if size == 1:
        return Team()
    _described("RANK", 0, size - 1)
    _described("MASTER_PORT", 1, 65535)
    if not os.environ.get("MASTER_ADDR"):
        raise ValueError(f"MASTER_ADDR is not set; {_TORCHRUN}")
    if os.environ.get("LOCAL_WORLD_SIZE", str(size)) == str(size) and os.path.exists("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", **_meeting_point(size))
        except RuntimeError as problem:  # torch's DistError is one
            reason = str(problem).splitlines()[0]
            raise OSError(None, f"the {size} processes did not find each other ({reason}); {_TORCHRUN}") from problem
    return Team(dist.get_rank(), dist.get_world_size())


def _meeting_point(size: int) -> dict:
    """Arguments of init_process_group: a store on 127.0.0.1 where that is the address, else whatever the environment describes."""
    local, port, rank = os.environ.get("MASTER_ADDR") == "127.0.0.1", os.environ.get("MASTER_PORT"), int(os.environ["RANK"])
    if not local or not port or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # then torchrun's own store is up already
        return {}
    listening = None
    if rank == 0:  # a socket that torch opens itself would listen everywhere
        with socket.create_server(("127.0.0.1", int(port))) as server:
            listening = server.detach()
    store = dist.TCPStore("127.0.0.1", int(port), size, rank == 0, master_listen_fd=listening)
    return {"store": store, "rank": rank, "world_size": size}


def leave(team: Team) -> None:
    """End the communication."""
    if team.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """all_reduce of values, and of gradients on the way back: each process's loss depends on everybody's values."""

    @staticmethod
    def forward(ctx, values):
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batch of all processes (torch's own SyncBatchNorm needs GPUs). (N, C, H, W), N may be 0 here."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        size = x.new_full((1,), x.numel() // x.shape[1])
        total = _Sum.apply(torch.cat([x.sum((0, 2, 3)), size]))
        n, mean = total[-1].detach(), total[:-1] / total[-1].detach()
        centred = x - mean.view(1, -1, 1, 1)
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            return centred * (scale * self.weight).view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return centred * scale.view(1, -1, 1, 1)


def share_batch_norm(model: nn.Module, team: Team) -> nn.Module:
    """Replace every BatchNorm2d of `model` by one over all processes, before the optimizer is made. Returns the model."""
    for parent in list(model.modules()) if team.size > 1 else []:
        for name, bn in list(parent.named_children()):
            if type(bn) is nn.BatchNorm2d:
                shared = SharedBatchNorm2d(bn.num_features, bn.eps, bn.momentum, bn.affine).to(bn.running_mean)
                shared.load_state_dict(bn.state_dict())
                setattr(parent, name, shared)
    return model
