"""Knowledge distillation (Hinton, Vinyals, Dean 2015), for lesson 08: a small network learns from a large one's heat maps too.

The teacher's maps are computed once; then the recipe is that of `train_pose_tiny`, with a teacher's term in the loss.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from qatcourse.pose.data import PoseSet, load, to_input
from qatcourse.pose.evaluate import evaluate, heat_maps
from qatcourse.pose.model import PoseTiny, distillation_loss, pose_loss
from qatcourse.pose.train import FORMAT, Config, configure, pick_device, set_rate, shuffled, start_quantization


def train_student(config: Config, poses: PoseSet, maps: torch.Tensor | None = None, temperature: float = 2.0, alpha: float = 0.5):
    """Train a PoseTiny of width 16 by `config`, without augmentation; with the teacher's `maps` of `poses`, by distillation.

    At start_epoch QAT starts with `config.weight_bits` (None: the network stays float). Returns it in evaluation mode.
    """
    torch.manual_seed(config.seed)
    model = PoseTiny(width=16).to(pick_device(), memory_format=FORMAT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    for epoch in range(config.epochs):
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


PICTURES, LABELLED = 2000, {"few": 100, "many": 2000}  # of the pictures of a setting, how many have labels
TEMPERATURES, ALPHAS = (1.0, 2.0, 4.0), {"few": (0.5, 0.8, 1.0), "many": (0.5, 0.8)}  # at 1 it does not matter how many
SETTINGS = {"epochs": 7, "start_epoch": 5, "n_train": PICTURES, "weight_bits": 4, "learning_rate": 6e-3, "batch_size": 32}
ARMS = {"labels": "labels alone", "same": "teacher, labelled pictures", "all": "teacher, all pictures"}


def unseen(n: int) -> PoseSet:
    """Pictures to learn from that the committed network has not learned from: its maps of its own ones hold their labels."""
    return load("figures", "train", n, seed=1, progress=False)


def arms(poses: PoseSet, maps: torch.Tensor, labels: int) -> dict[str, tuple[PoseSet, torch.Tensor | None]]:
    """What each of ARMS learns from, where only the first `labels` of `poses` have labels: (pictures, the teacher's maps or None).

    "labels" and "same" see those pictures again and again, so that all arms take as many steps.
    """
    again, known = np.arange(len(poses)) % labels, poses.labelled & (np.arange(len(poses)) < labels)[:, None]
    partly = dataclasses.replace(poses, labelled=known, visible=poses.visible & known)
    found = {"labels": (poses[again], None), "same": (poses[again], maps[again]), "all": (partly, maps)}
    return found if labels < len(poses) else {name: found[name] for name in ("labels", "all")}


def measured(teacher: nn.Module, kind: str, seeds: int) -> Iterator[tuple[str, float]]:
    """(name, PCK) of 4-bit students in the setting `kind` of LABELLED: the sweep, on 500 held-out pictures, seed 0; then, at its
    best temperature and alpha, each arm on test pictures, seed by seed, and "seen": labels alone on the pictures it learned from.
    """
    poses, held, scores = unseen(PICTURES + 500)[:PICTURES], unseen(PICTURES + 500)[PICTURES:], {}
    ways, test = arms(poses, heat_maps(teacher, poses.images), LABELLED[kind]), load("figures", "test", 500, progress=False)
    for at in itertools.product(TEMPERATURES, ALPHAS[kind]):
        scores[at] = evaluate(train_student(configure("quick", **SETTINGS), *ways["all"], *at), held)["pck"]
        yield f"T{at[0]:g}.alpha{100 * at[1]:.0f}", scores[at]
    for seed, arm in itertools.product(range(seeds), ways):
        student = train_student(configure("quick", seed=seed, **SETTINGS), *ways[arm], *max(scores, key=scores.get))
        yield f"seed{seed}.{arm}", evaluate(student, test)["pck"]
        if arm == "labels":
            yield f"seed{seed}.seen", evaluate(student, poses[: LABELLED[kind]])["pck"]


def grid(stored: dict, kind: str) -> dict[tuple[float, float], float]:
    """(temperature, alpha) -> PCK on held-out pictures, from the reference numbers."""
    places = itertools.product(TEMPERATURES, ALPHAS[kind])
    return {(t, alpha): stored[f"distill.{kind}.T{t:g}.alpha{100 * alpha:.0f}"]["value"] for t, alpha in places}


def seeds(stored: dict, kind: str) -> list[dict[str, float]]:
    """One dict a seed: PCK by the words of ARMS, and "seen", from the reference numbers."""
    found: dict[str, dict] = {}
    for name in sorted(name for name in stored if name.startswith(f"distill.{kind}.seed")):
        *_, seed, arm = name.split(".")
        found.setdefault(seed, {})[ARMS.get(arm, arm)] = stored[name]["value"]
    return [*found.values()]


def paired_gain(with_teacher: list[float], without: list[float]) -> tuple[float, float]:
    """(mean, standard error) of the differences, seed by seed. Raises ValueError for fewer than two seeds or unequal lists."""
    if len(with_teacher) != len(without) or len(without) < 2:
        raise ValueError(f"{len(with_teacher)} and {len(without)} scores; give the same seeds for both, at least two")
    difference = np.subtract(with_teacher, without)
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # two-sided 95 %, for 2, 3, ... 10 seeds


def uncertainty(error: float, seeds: int) -> float:
    """Half the width of the 95 % interval of a mean whose standard error is `error`."""
    return error * STUDENT_T[min(seeds, 10) - 2]


def verdict(gain: float, error: float, seeds: int, what: str, cause: str = "The teacher") -> str:
    """One sentence about what `cause` gains: beyond its 95 % interval (Student's t; wide for few seeds) or not."""
    reach = uncertainty(error, seeds)
    seen = f"{cause} changes the PCK of {what} by {gain:+.3f}; {seeds} seeds leave an uncertainty of {reach:.3f} (95 %): "
    if abs(gain) <= reach:
        return seen + "nothing is shown."
    return seen + ("a gain beyond the scatter of the seeds." if gain > 0 else "a loss beyond the scatter of the seeds.")
