"""Knowledge distillation (Hinton, Vinyals, Dean 2015), for lesson 08: a small network learns from a large one's heat maps too.

The teacher's maps are computed once; then the recipe is that of `train_pose_tiny`, with a teacher's term in the loss.
"""

import copy
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from qatcourse.labs.compare import fair
from qatcourse.pose.data import PoseSet, to_input
from qatcourse.pose.evaluate import calibration_batches, evaluate
from qatcourse.pose.model import PoseTiny, pose_loss
from qatcourse.pose.train import FORMAT, Config, pick_device, start_quantization, steps_of
from qatlib import ai8x


class Student(PoseTiny):
    """PoseTiny with `width` channels where PoseTiny has 64 (and 2 * width where it has 128)."""

    def __init__(self, width: int = 16, **kwargs):
        if width < 4 or width % 4:
            raise ValueError(f"width is {width}; use a multiple of 4, such as 16 (the chip groups processors by 4)")
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(48, width, 3, padding=1, **kwargs)
        self.conv2 = ai8x.FusedConv2dBNReLU(width, width, 3, padding=1, **kwargs)
        self.conv3 = ai8x.FusedConv2dBNReLU(width, width, 3, padding=1, **kwargs)
        self.conv4 = ai8x.FusedMaxPoolConv2dBNReLU(width, 2 * width, 3, padding=1, **kwargs)
        self.conv5 = ai8x.FusedMaxPoolConv2dBNReLU(2 * width, 2 * width, 3, padding=1, **kwargs)
        self.up6 = ai8x.FusedConvTranspose2dBNReLU(2 * width, width, 3, stride=2, padding=1, **kwargs)
        self.up7 = ai8x.FusedConvTranspose2dBNReLU(width, width, 3, stride=2, padding=1, **kwargs)
        self.head = ai8x.Conv2d(width, self.head.op.out_channels, 1, wide=True, **kwargs)


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


@torch.no_grad()
def teacher_maps(teacher: nn.Module, images: np.ndarray, batch_size: int = 250) -> torch.Tensor:
    """The teacher's logits (N, 14, 16, 16) for uint8 pictures, on the CPU, in evaluation mode."""
    device = next(teacher.parameters()).device
    teacher.eval()
    batches = (to_input(images[i : i + batch_size]).to(device) for i in range(0, len(images), batch_size))
    return torch.cat([teacher.logits(x).cpu() for x in batches])


def train_student(config: Config, poses: PoseSet, maps: torch.Tensor | None = None, temperature: float = 2.0, alpha: float = 0.5,
                  init: nn.Module | None = None, width: int = 16) -> nn.Module:  # fmt: skip
    """Train a `Student` by `config`, without augmentation; with the teacher's `maps` of `poses`, by distillation.

    Epochs 0..start_epoch are float; with `init`, a float network to start from, they are left out. At start_epoch QAT starts
    with `config.weight_bits` (None: the network stays float). Returns the network in evaluation mode.
    """
    torch.manual_seed(config.seed)
    model = (copy.deepcopy(init) if init is not None else Student(width)).to(pick_device(), memory_format=FORMAT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    for epoch in range(config.start_epoch if init is not None else 0, config.epochs):
        if epoch == config.start_epoch and config.weight_bits:
            start_quantization(model, optimizer, poses, config)
        student_epoch(model, optimizer, config, epoch, poses, maps, temperature, alpha)
    return model.eval()


def student_epoch(model, optimizer, config: Config, epoch: int, poses: PoseSet, maps, temperature: float, alpha: float) -> None:
    """One pass in an order that depends on (seed, epoch) alone, so that runs with and without a teacher see the same batches."""
    device = next(model.parameters()).device
    model.train()
    for chosen in steps_of(optimizer, config, epoch, len(poses), np.random.default_rng([config.seed, epoch])):
        logits = model.logits(to_input(poses.images[chosen]).to(device))
        joints, labelled = torch.from_numpy(poses.joints[chosen]).to(device), torch.from_numpy(poses.labelled[chosen]).to(device)
        loss = pose_loss(logits, joints, labelled)
        if maps is not None:
            loss = distillation_loss(logits, maps[torch.from_numpy(chosen)].to(device), loss, temperature, alpha)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


VARIANTS = ("labels only", "with the teacher")


def versions(config: Config, poses: PoseSet, test: PoseSet, maps: torch.Tensor, temperature=2.0, alpha=0.5) -> dict:
    """PCK by version of one student and one seed: "float", then "float, ..." and "QAT, ..." for each of VARIANTS, and "PTQ".

    A float student learns from the labels alone. From it, and for the same further epochs, it is trained on in float and in
    QAT, each with and without the teacher. PTQ quantizes the student that was trained on in float from the labels, with
    the same weight scales as QAT.
    """
    start = train_student(dataclasses.replace(config, epochs=max(config.start_epoch, 1), weight_bits=None), poses)
    networks, batches = {"float": start}, calibration_batches(poses, 500)
    for variant, used in zip(VARIANTS, (None, maps)):
        found = fair(config, lambda goal, used=used: train_student(goal, poses, used, temperature, alpha, start), batches)
        networks |= {f"float, {variant}": found["float"], "PTQ": networks.get("PTQ", found["ptq"]), f"QAT, {variant}": found["qat"]}
    return {name: evaluate(network, test)["pck"] for name, network in networks.items()}


def paired_gain(with_teacher: list[float], without: list[float]) -> tuple[float, float]:
    """(mean, standard error) of the differences, seed by seed. Raises ValueError for fewer than two seeds or unequal lists."""
    if len(with_teacher) != len(without) or len(without) < 2:
        raise ValueError(f"{len(with_teacher)} and {len(without)} scores; give the same seeds for both, at least two")
    difference = np.subtract(with_teacher, without)
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # two-sided 95 %, for 2, 3, ... 10 seeds


def teacher_gains(runs: list[dict]) -> dict[str, tuple[float, float]]:
    """`paired_gain` of the teacher for the "float" and the "QAT" student, over the `versions` of several seeds."""
    alone, taught = ({kind: [run[f"{kind}, {variant}"] for run in runs] for kind in ("float", "QAT")} for variant in VARIANTS)
    return {kind: paired_gain(taught[kind], alone[kind]) for kind in ("float", "QAT")}


def uncertainty(error: float, seeds: int) -> float:
    """Half the width of the 95 % interval of a mean whose standard error is `error`."""
    return error * STUDENT_T[min(seeds, 10) - 2]


def clearest(runs: list[dict]) -> str | None:
    """The student, "float" or "QAT", that the teacher changes most beyond its uncertainty; None where it changes neither."""
    shown = {kind: abs(gain) for kind, (gain, error) in teacher_gains(runs).items() if abs(gain) > uncertainty(error, len(runs))}
    return max(shown, key=shown.get, default=None)


def verdict(gain: float, error: float, seeds: int, what: str, cause: str = "The teacher") -> str:
    """One sentence about what `cause` gains: beyond its 95 % interval (Student's t; wide for few seeds) or not."""
    reach = uncertainty(error, seeds)
    seen = f"{cause} changes the PCK of {what} by {gain:+.3f}; {seeds} seeds leave an uncertainty of {reach:.3f} (95 %): "
    if abs(gain) <= reach:
        return seen + "nothing is shown."
    return seen + ("a gain beyond the scatter of the seeds." if gain > 0 else "a loss beyond the scatter of the seeds.")
