"""PoseTiny: 14 joints from a 64x64 picture, built from ai8x layers to fill the MAX78000's kernel memory.

The picture enters folded by 4 (48 channels of 16x16, the chip's way to trade pixels for channels); the network leaves one
16x16 heat map per joint as 32-bit accumulators; the arg-max to coordinates is soft and runs outside the chip.
"""

import torch
import torch.nn.functional as F
from torch import nn

from qatlib import ai8x

JOINTS = 14
MAP_SIZE = 16
CELL = 4.0  # pixels of the 64x64 picture per heat-map cell


class PoseTiny(nn.Module):
    """(N, 48, 16, 16) on the 1/128 grid -> heat maps (N, 14, 16, 16), real values (QAT: multiples of 2^final_scale / 2^14).

    Keyword arguments (`weight_bits`, ...) go to every layer, as ai8x networks do.
    """

    input_shape = (48, MAP_SIZE, MAP_SIZE)

    def __init__(self, num_joints: int = JOINTS, **kwargs):
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(48, 64, 3, padding=1, **kwargs)
        self.conv2 = ai8x.FusedConv2dBNReLU(64, 64, 3, padding=1, **kwargs)
        self.conv3 = ai8x.FusedConv2dBNReLU(64, 64, 3, padding=1, **kwargs)
        self.conv4 = ai8x.FusedMaxPoolConv2dBNReLU(64, 128, 3, padding=1, **kwargs)
        self.conv5 = ai8x.FusedMaxPoolConv2dBNReLU(128, 128, 3, padding=1, **kwargs)
        self.up6 = ai8x.FusedConvTranspose2dBNReLU(128, 64, 3, stride=2, padding=1, **kwargs)
        self.up7 = ai8x.FusedConvTranspose2dBNReLU(64, 60, 3, stride=2, padding=1, **kwargs)
        self.head = ai8x.Conv2d(60, num_joints, 1, wide=True, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.conv1(x)))
        x = self.conv5(self.conv4(x))
        return self.head(self.up7(self.up6(x)))

    def head_gain(self) -> torch.Tensor:
        """What undoes the head's weight scale, shape (1,): 2^weight_shift in QAT, 1 before.

        The chip never shifts a wide output, so in QAT the heat maps are 2^-weight_shift times the float ones, and change by
        a factor of 2 whenever the shift does. A soft arg-max needs one temperature: multiply by this first.
        """
        return torch.exp2(self.head.weight_shift())

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Heat maps in the float network's units, in QAT too: `forward(x) * head_gain()`."""
        return self(x) * self.head_gain()

    def coordinates(self, x: torch.Tensor) -> torch.Tensor:
        """Joint positions (N, 14, 2) in pixels of the 64x64 picture (x right, y down, origin at the top-left corner).

        Raises TypeError or ValueError for other inputs than (N, 48, 16, 16) of the weights' dtype.
        """
        self._check_input(x)
        return soft_argmax(self.logits(x))

    @staticmethod
    def sample_inputs(count: int) -> torch.Tensor:
        """Drawn people of the test set as inputs (count, 48, 16, 16), for the doctor and the comparison of engines."""
        from qatcourse.pose.data import load, to_input

        return to_input(load("figures", "test", count, progress=False).images)

    def _check_input(self, x) -> None:
        """Shape and dtype only: looking at values would make a GPU wait."""
        remedy = "use qatcourse.pose.data.to_input(images)"
        dtype = self.head.op.weight.dtype
        if not isinstance(x, torch.Tensor) or x.dtype != dtype:
            raise TypeError(f"x must be a tensor of {dtype}, not {getattr(x, 'dtype', type(x).__name__)}; {remedy}")
        if x.dim() != 4 or tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (N, {', '.join(map(str, self.input_shape))}): {remedy}")


def soft_argmax(logits: torch.Tensor) -> torch.Tensor:
    """Expected position under softmax(logits): (N, J, H, W) -> (N, J, 2) pixels, x first."""
    n, joints, height, width = logits.shape
    probability = logits.flatten(2).softmax(dim=-1).view(n, joints, height, width)
    centres = (torch.arange(max(height, width), dtype=logits.dtype, device=logits.device) + 0.5) * CELL
    x = (probability.sum(dim=2) * centres[:width]).sum(dim=-1)
    y = (probability.sum(dim=3) * centres[:height]).sum(dim=-1)
    return torch.stack([x, y], dim=-1)


def target_maps(joints: torch.Tensor, sigma: float = 0.8) -> torch.Tensor:
    """Gaussian targets (N, J, 16 * 16), each summing to 1, around `joints` (N, J, 2) in pixels; sigma in cells."""
    centres = (torch.arange(MAP_SIZE, device=joints.device) + 0.5) * CELL
    distance = (joints.unsqueeze(-1) - centres) / (CELL * sigma)
    along_x, along_y = (-0.5 * distance.square()).unbind(dim=2)
    return (along_y.unsqueeze(-1) + along_x.unsqueeze(-2)).flatten(2).softmax(dim=-1)


def pose_loss(logits: torch.Tensor, joints: torch.Tensor, labelled: torch.Tensor, l1_weight: float = 2.0) -> torch.Tensor:
    """Cross-entropy of the heat maps plus L1 of the coordinates (in cells), averaged over labelled joints.

    `joints` (N, J, 2) pixels, `labelled` (N, J) bool; unlabelled joints weigh nothing.
    """
    mask = labelled.to(logits.dtype)
    entropy = -(target_maps(joints) * F.log_softmax(logits.flatten(2), dim=-1)).sum(dim=-1)
    distance = (soft_argmax(logits) - joints).abs().sum(dim=-1) / CELL
    return ((entropy + l1_weight * distance) * mask).sum() / mask.sum().clamp(min=1)
