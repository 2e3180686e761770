"""A small network with two branches that meet in a concatenation, for lesson 03: what must happen to their scales?"""

import copy

import torch
from torch import nn

from qatcourse.labs.ptq import thresholds
from qatlib import ai8x


class Branches(nn.Module):
    """(N, 3, H, W) -> (N, 4, H, W): `join` reads `quiet` and `loud`, whose weights are `ratio` times as large."""

    def __init__(self, ratio: float = 8.0, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.quiet = ai8x.FusedConv2dReLU(3, 8, 3, padding=1)
        self.loud = ai8x.FusedConv2dReLU(3, 8, 3, padding=1)
        self.join = ai8x.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.loud.op.weight *= ratio
            self.loud.op.bias *= ratio
            self.join.op.weight[:, 8:] /= ratio  # both branches matter alike to the sum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(torch.cat((self.quiet(x), self.loud(x)), dim=1))


def measured(net: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """layer -> the threshold that its own outputs for `x` ask for; `net` stays as it is."""
    return thresholds(net, [(x,)])


def unequal(net: nn.Module, thresholds: dict[str, float]) -> nn.Module:
    """A copy of a quantized network whose first layers keep `thresholds` of their own, as if nobody had made them equal."""
    wrong = copy.deepcopy(net)
    for name in ("quiet", "loud"):
        wrong.get_submodule(name).activation_threshold.data.fill_(thresholds[name])
    ai8x.update_model(wrong)
    return wrong.eval()
