"""A teacher for photographs: five times as large as PoseTiny, float, for computers only; PoseTiny learns from its heat maps too."""

import torch
import torch.nn.functional as F
from torch import nn

from qatcourse.pose.data import SIDES
from qatcourse.pose.model import JOINTS, HeatMaps


def _conv(c_in: int, c_out: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class _Bottleneck(nn.Module):
    """x + three convolutions that pass through `middle` channels (He et al., CVPR 2016), (N, C, H, W) -> the same."""

    def __init__(self, channels: int, middle: int):
        super().__init__()
        last = nn.Conv2d(middle, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.path = nn.Sequential(_conv(channels, middle, 1), _conv(middle, middle), *last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.path(x))


class Teacher(HeatMaps):
    """(N, 12 or 48, 32, 32) -> heat maps (N, 14, 16, 16): the scales of PoseTiny with `width` to 4 * `width` channels."""

    def __init__(self, side: int = SIDES[-1], width: int = 64):
        super().__init__(side)
        w, blocks = width, lambda c, middle, count: [_Bottleneck(c, middle) for _ in range(count)]
        self.at_32 = _conv(self.input_shape[0], w)
        self.at_16 = nn.Sequential(nn.MaxPool2d(2), _conv(w, 2 * w), *blocks(2 * w, w, 1))
        self.at_8 = nn.Sequential(nn.MaxPool2d(2), _conv(2 * w, 3 * w), *blocks(3 * w, w, 2))
        self.at_4 = nn.Sequential(nn.MaxPool2d(2), _conv(3 * w, 4 * w), *blocks(4 * w, 2 * w, 4))
        self.to_8, self.back_8 = nn.Conv2d(4 * w, 3 * w, 1), nn.Sequential(*blocks(3 * w, w, 2))
        self.to_16, self.back_16 = nn.Conv2d(3 * w, 2 * w, 1), nn.Sequential(*blocks(2 * w, w, 2))
        self.head = nn.Conv2d(2 * w, JOINTS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at_16 = self.at_16(self.at_32(x))
        at_8 = self.at_8(at_16)
        x = self.back_8(F.interpolate(self.to_8(self.at_4(at_8)), scale_factor=2) + at_8)
        return self.head(self.back_16(F.interpolate(self.to_16(x), scale_factor=2) + at_16))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """`forward(x)`, float32; computed in bfloat16 where the processor multiplies that faster."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=_multiplies_bfloat16(x.device)):
            return self(x).float()


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
