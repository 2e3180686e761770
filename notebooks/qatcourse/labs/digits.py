"""Lesson 16 and the template: 1,797 handwritten digits (data/README.md says whose), and a plain PyTorch network for them."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from qatcourse import DATA
from qatcourse.viz.base import drawing, figure


class Network(nn.Module):
    """(N, 1, 8, 8) -> ten scores (N, 10), in layers of torch.nn that the chip has, too."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv3, self.bn3 = nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.pool, self.drop, self.fc = nn.AvgPool2d(2), nn.Dropout(0.3), nn.Linear(24 * 2 * 2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.relu(self.bn2(self.conv2(x)))
        x = x + F.relu(self.bn3(self.conv3(x)))
        return self.fc(self.drop(self.pool(x).flatten(1)))


def load() -> tuple[torch.Tensor, ...]:
    """ink, labels, test_ink, test_labels: uint8 (n, 1, 8, 8) of 0..16, int64 (n,) of 0..9; 1,297 for training, 500 for the test."""
    with np.load(DATA / "digits.npz", allow_pickle=False) as archive:
        ink, labels = torch.from_numpy(archive["images"]).unsqueeze(1), torch.from_numpy(archive["labels"]).long()
    return ink[:1297], labels[:1297], ink[1297:], labels[1297:]  # in the order of the source


def to_input(ink: torch.Tensor) -> torch.Tensor:
    """0..16 to real values on the grid of 1/128: steps of 15 codes, from -120/128 (paper) to 120/128 (all ink)."""
    return (ink.float() - 8) * 15 / 128


def data() -> tuple[torch.Tensor, ...]:
    """x_train, y_train, x_test, y_test, as the template wants them."""
    return tuple(to_input(part) if part.dim() > 1 else part for part in load())


@drawing
def picture(ink: torch.Tensor, labels: torch.Tensor):
    """The first picture of each class, 0 to 9. Returns (figure, sentence)."""
    fig, axes = figure(1, 10, height=1.05)
    for label, axis in enumerate(axes):
        axis.imshow(ink[labels == label][0, 0], cmap="gray_r", vmin=0, vmax=16, interpolation="nearest")
        axis.set(xticks=[], yticks=[], xlabel=str(label))
        axis.spines[:].set_visible(True)
    return fig, "One handwritten digit of each class, from 0 to 9, in 8x8 pixels: white is paper, black is ink."
