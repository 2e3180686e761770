"""PoseTiny: 14 joints from one picture, built from ai8x layers to fill the MAX78000's kernel memory.

The picture enters folded to 32x32 (12 channels of 64x64 pixels, 48 of 128x128: the chip's way to trade pixels for channels); the
network leaves one 16x16 heat map per joint as 32-bit accumulators; where a map's peak lies is read outside the chip.
"""

import torch
import torch.nn.functional as F
from torch import nn

from qatcourse.pose.data import GRID, SIDES, load, to_input
from qatlib import ai8x

JOINTS = 14
MAP_SIZE = 16


class HeatMaps(nn.Module):
    """What pose networks share: pictures of `side` pixels, folded, in; a heat map (16, 16) per joint out; joints read at the peaks.

    Raises ValueError for a side other than 64 and 128.
    """

    def __init__(self, side: int):
        if type(side) is not int or side not in SIDES:
            raise ValueError(f"side = {side!r}; PoseTiny reads pictures of 64 or 128 pixels")
        super().__init__()
        self.side, self.input_shape = side, (3 * (side // GRID) ** 2, GRID, GRID)

    @property
    def cell(self) -> float:
        """Pixels of the picture per heat-map cell."""
        return self.side / MAP_SIZE

    def coordinates(self, x: torch.Tensor) -> torch.Tensor:
        """Joint positions (N, 14, 2) in pixels of the picture (x right, y down, origin at the top-left corner), by `peak`.

        Raises TypeError or ValueError for other inputs than (N, *input_shape) of the weights' dtype.
        """
        self._check_input(x)
        return peak(self.logits(x), self.cell)

    def sample_inputs(self, count: int) -> torch.Tensor:
        """Drawn people of the test set as inputs (count, *input_shape), for the doctor and the comparison of engines."""
        images, larger = load("figures", "test", count, progress=False).images, self.side // SIDES[0]
        return to_input(images.repeat(larger, axis=1).repeat(larger, axis=2))

    def _check_input(self, x) -> None:
        """Shape and dtype only: looking at values would make a GPU wait."""
        remedy = "use qatcourse.pose.data.to_input(images)"
        dtype = next(self.parameters()).dtype
        if not isinstance(x, torch.Tensor) or x.dtype != dtype:
            raise TypeError(f"x must be a tensor of {dtype}, not {getattr(x, 'dtype', type(x).__name__)}; {remedy}")
        if x.dim() != 4 or tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (N, {', '.join(map(str, self.input_shape))}): {remedy}")


class PoseTiny(HeatMaps):
    """(N, 12 or 48, 32, 32) on the 1/128 grid -> heat maps (N, 14, 16, 16), real values (QAT: multiples of 2^final_scale / 2^14).

    `side` of the pictures: 64 (12 channels) or 128 pixels (48 channels). Four scales, 32x32 to 4x4 cells; two sums bring what the
    finer ones saw back to the coarser answer, and one goes around two convolutions at the bottom (the hourglass of Newell et al.,
    ECCV 2016, with residual sums as in He et al., CVPR 2016). `width` channels at all scales but the finest, which has half.
    Keyword arguments (`weight_bits`, ...) go to every layer, as ai8x networks do. Raises ValueError for another side or width.
    """

    input_shape = (12, GRID, GRID)

    def __init__(self, num_joints: int = JOINTS, side: int = SIDES[0], width: int = 64, **kwargs):
        if not isinstance(width, int) or width < 8 or width % 8:
            raise ValueError(f"width is {width!r}; use a multiple of 8, such as 16 (the chip groups processors by 4)")
        super().__init__(side)
        C, P, T = ai8x.FusedConv2dBNReLU, ai8x.FusedMaxPoolConv2dBNReLU, ai8x.ConvTranspose2d
        three, up = {"kernel_size": 3, "padding": 1, **kwargs}, {"stride": 2, "batchnorm": "Affine"}
        self.conv1 = C(self.input_shape[0], width // 2, **three)
        self.conv2 = P(width // 2, width, **three)
        self.conv3 = P(width, width, **three)
        self.conv4 = C(width, width, **three)
        self.conv5 = P(width, width, **three)
        self.conv6 = C(width, width, **three)
        self.conv7 = ai8x.FusedConv2dBN(width, width, **three)
        self.add7 = ai8x.Add()
        self.up8 = T(width, width, **three, **up)
        self.add8 = ai8x.Add()
        self.conv9 = C(width, width, **three)
        self.up10 = T(width, width, **three, **up)
        self.add10 = ai8x.Add()
        self.conv11 = C(width, width, **three)
        self.conv12 = C(width, width, **three)
        self.head = ai8x.Conv2d(width, num_joints, 1, wide=True, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at_16 = self.conv2(self.conv1(x))
        at_8 = self.conv4(self.conv3(at_16))
        x = self.conv5(at_8)
        x = self.add7(x, self.conv7(self.conv6(x)))
        x = self.add8(at_8, self.up8(x))
        x = self.add10(at_16, self.up10(self.conv9(x)))
        return self.head(self.conv12(self.conv11(x)))

    def head_gain(self) -> torch.Tensor:
        """What undoes the head's weight scale, shape (1,): 2^weight_shift in QAT, 1 before.

        The chip never shifts a wide output, so in QAT the heat maps are 2^-weight_shift times the float ones, and change by
        a factor of 2 whenever the shift does. A softmax needs one temperature: multiply by this first.
        """
        return torch.exp2(self.head.weight_shift())

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Heat maps in the float network's units, in QAT too: `forward(x) * head_gain()`."""
        return self(x) * self.head_gain()


def peak(logits: torch.Tensor, cell: float = 4.0) -> torch.Tensor:
    """The likeliest position under softmax(logits): (N, J, H, W) -> (N, J, 2) pixels of `cell` to a map's cell, x first.

    The highest cell of the softmax after a slight blur (a Gaussian of 0.6 cells, so that a joint between two cells is not beaten
    by a lesser one in the middle of a cell), and within it the centre of gravity of the softmax over 3x3 cells. Where a map has two
    peaks this is one of them; a mean over the whole map (`soft_argmax`) would be a place between them where no joint is.
    """
    n, joints, height, width = logits.shape
    probability = logits.flatten(2).softmax(dim=-1).view(n * joints, 1, height, width)
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=logits.dtype, device=logits.device) / 0.6) ** 2)
    taps = taps / taps.sum()
    best = F.conv2d(probability, (taps[:, None] * taps)[None, None], padding=2).flatten(1).argmax(dim=1)
    near = F.unfold(probability, 3, padding=1).gather(2, best.view(-1, 1, 1).expand(-1, 9, 1)).view(-1, 3, 3)
    near = near / near.sum(dim=(1, 2), keepdim=True)
    offset = torch.stack([near[:, :, 2] - near[:, :, 0], near[:, 2] - near[:, 0]], dim=-1).sum(dim=1)
    place = torch.stack([best % width, best // width], dim=-1) + offset + 0.5
    return (place * cell).view(n, joints, 2)


def soft_argmax(logits: torch.Tensor, cell: float = 4.0) -> torch.Tensor:
    """The expected position under softmax(logits), the mean over the whole map; shapes and units as in `peak`."""
    probability = logits.flatten(2).softmax(dim=-1).view_as(logits)
    centres = torch.arange(max(logits.shape[2:]), dtype=logits.dtype, device=logits.device) + 0.5
    x = (probability.sum(dim=2) * centres[: logits.shape[3]]).sum(dim=-1)
    y = (probability.sum(dim=3) * centres[: logits.shape[2]]).sum(dim=-1)
    return torch.stack([x, y], dim=-1) * cell


def target_maps(joints: torch.Tensor, cell: float = 4.0, sigma: float = 0.6) -> torch.Tensor:
    """Gaussian targets (N, J, 16 * 16), each summing to 1, around `joints` (N, J, 2) in pixels; sigma in cells."""
    centres = torch.arange(MAP_SIZE, device=joints.device) + 0.5
    distance = (joints.unsqueeze(-1) / cell - centres) / sigma
    along_x, along_y = (-0.5 * distance.square()).unbind(dim=2)
    return (along_y.unsqueeze(-1) + along_x.unsqueeze(-2)).flatten(2).softmax(dim=-1)


def pose_loss(logits: torch.Tensor, joints: torch.Tensor, labelled: torch.Tensor, cell: float = 4.0) -> torch.Tensor:
    """Cross-entropy of the heat maps (N, J, 16, 16) with `target_maps`, averaged over labelled joints.

    `joints` (N, J, 2) pixels, `labelled` (N, J) bool; unlabelled joints weigh nothing. There is no term for the distance between
    `soft_argmax` and label: it asks only where the mean lies, and is content with probability where no joint is (lesson 12).
    """
    mask = labelled.to(logits.dtype)
    entropy = -(target_maps(joints, cell) * F.log_softmax(logits.flatten(2), dim=-1)).sum(dim=-1)
    return (entropy * mask).sum() / mask.sum().clamp(min=1)


def soften(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Heat maps (N, J, H, W) as probabilities of each joint's place at a temperature: each map sums to 1.

    >>> soften(torch.tensor([[[[0.0, 2.0]]]]), 1000.0).round(decimals=2).flatten().tolist()
    [0.5, 0.5]
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (1 leaves the heat maps as they are)")
    return (logits.flatten(2) / temperature).softmax(dim=-1).view_as(logits)


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, task: torch.Tensor, temperature: float, alpha: float):
    """alpha * T^2 * KL(teacher || student, both at temperature T, mean of all maps) + (1 - alpha) * task (equations of section 2).

    `student`, `teacher`: logits (N, J, H, W); `task`: the loss of the labels, scalar. Raises ValueError for alpha outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it is the teacher's share of the loss and must lie in 0..1")
    wanted = soften(teacher, temperature).flatten(0, 1).flatten(1)
    found = (student.flatten(0, 1).flatten(1) / temperature).log_softmax(dim=-1)
    return alpha * temperature**2 * F.kl_div(found, wanted, reduction="batchmean") + (1 - alpha) * task
