"""The two networks of the recorded runs (tests/golden), in float with batch norm; `.eval()` and fusing are the caller's."""

import torch
from torch import nn

from qatlib import ai8x


class NetAdd(nn.Module):
    """Residual sum, max pooling, wide linear head: (N, 3, 16, 16) -> (N, 10)."""

    input_shape = (3, 16, 16)

    def __init__(self):
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(3, 8, 3, padding=1)
        self.conv2 = ai8x.FusedMaxPoolConv2dBNReLU(8, 16, 3, padding=1)
        self.conv3 = ai8x.FusedConv2dBNReLU(16, 16, 3, padding=1)
        self.conv4 = ai8x.FusedConv2dBN(16, 16, 1)
        self.add = ai8x.Add()
        self.conv5 = ai8x.FusedMaxPoolConv2dBNReLU(16, 24, 3, padding=1)
        self.fc = ai8x.Linear(384, 10, bias=True, wide=True)

    def forward(self, x):
        x = self.conv2(self.conv1(x))
        x = self.conv5(self.add(self.conv4(self.conv3(x)), x))
        return self.fc(x.view(x.size(0), -1))


class NetCatMaps(nn.Module):
    """Concatenation, a layer used twice, average pooling: (N, 3, 16, 16) -> (N, 5, 4, 4)."""

    input_shape = (3, 16, 16)

    def __init__(self):
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(3, 8, 3, padding=1)
        self.branch_a = ai8x.FusedConv2dBNReLU(8, 12, 3, padding=1)
        self.branch_b = ai8x.FusedConv2dReLU(8, 4, 1)
        self.shared = ai8x.FusedConv2dBNReLU(16, 16, 3, padding=1)
        self.conv4 = ai8x.FusedAvgPoolConv2dBNReLU(16, 16, 3, padding=1)
        self.head = ai8x.FusedMaxPoolConv2d(16, 5, 1)

    def forward(self, x):
        x = self.conv1(x)
        x = self.shared(self.shared(torch.cat((self.branch_a(x), self.branch_b(x)), dim=1)))
        return self.head(self.conv4(x))


class NetCat(NetCatMaps):
    """As recorded: the mean of the maps, (N, 5)."""

    def forward(self, x):
        return super().forward(x).mean(dim=(2, 3))
