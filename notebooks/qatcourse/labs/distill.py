"""Knowledge distillation (Hinton, Vinyals, Dean 2015), for lesson 08: a small network learns from a large one's heat maps too.

The teacher's maps are computed once; then the recipe is that of `train_pose_tiny`, with a teacher's term in the loss.
"""

import copy
import dataclasses

import numpy as np
import torch
from torch import nn

from qatcourse.labs.compare import fair
from qatcourse.pose.data import PoseSet, to_input
from qatcourse.pose.evaluate import calibration_batches, evaluate
from qatcourse.pose.model import PoseTiny, distillation_loss, pose_loss
from qatcourse.pose.train import FORMAT, Config, pick_device, set_rate, shuffled, start_quantization


def train_student(config: Config, poses: PoseSet, maps: torch.Tensor | None = None, temperature: float = 2.0, alpha: float = 0.5,
                  init: nn.Module | None = None, width: int = 16) -> nn.Module:  # fmt: skip
    """Train a PoseTiny of `width` by `config`, without augmentation; with the teacher's `maps` of `poses`, by distillation.

    Epochs 0..start_epoch are float; with `init`, a float network to start from, they are left out. At start_epoch QAT starts
    with `config.weight_bits` (None: the network stays float). Returns the network in evaluation mode.
    """
    torch.manual_seed(config.seed)
    model = (copy.deepcopy(init) if init is not None else PoseTiny(width=width)).to(pick_device(), memory_format=FORMAT)
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
    steps = shuffled(len(poses), config.batch_size, np.random.default_rng([config.seed, epoch]))
    for step, chosen in enumerate(steps):
        set_rate(optimizer, config, epoch + step / len(steps))
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
