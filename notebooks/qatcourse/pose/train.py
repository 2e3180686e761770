"""Training PoseTiny: float first, then quantization-aware.

The whole recipe is `train`: float epochs; at `start_epoch` batch norm is fused, activation statistics set the thresholds,
and quantization is switched on; then training goes on. Every epoch ends with a checkpoint, so `--resume` continues to the
same result after a kill at any moment. Order of randomness depends on (seed, epoch) only: the same seed gives the same bytes on
the same computer with the same number of threads. Elsewhere float sums have another order, and the network other weights.
"""

import copy
import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from qatcourse.people.crowd import check_memory
from qatcourse.pose.checkpoint import load_model, model_from, read_checkpoint, restore, save  # noqa: F401 (for users)
from qatcourse.pose.data import PoseSet, augment, load, to_input
from qatcourse.pose.evaluate import calibration_batches, evaluate
from qatcourse.pose.model import PoseTiny, distillation_loss, pose_loss
from qatcourse.pose.parallel import Team, share_batch_norm
from qatcourse.pose.settings import PRESETS, RECIPES, Config, configure  # noqa: F401 (for users)
from qatcourse.pose.teacher import Teacher
from qatlib import ai8x
from qatlib.ai8x.qat import layers
from qatlib.files import load as read_file
from qatlib.files import prepare_folder
from qatlib.files import save as write_file
from qatlib.integer.checkpoint import load_state

TEACHER = 0.7  # its share of the loss, where there is one
FORMAT = torch.channels_last  # convolutions train about a fifth faster when a pixel's channels lie side by side


@dataclasses.dataclass
class Result:
    """A trained network, its history (one dict an epoch) and its metrics: of the test set; interrupted, of the last epoch."""

    config: Config
    model: PoseTiny
    history: list
    metrics: dict
    interrupted: bool = False


def pick_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def learning_rate(config: Config, epoch: float) -> float:
    """Cosine to a fiftieth within the float part, and again, from the recipe's rate, within the part after start_epoch."""
    first, last, peak = (0, config.start_epoch, config.learning_rate)
    if epoch >= config.start_epoch:
        first, last, peak = (config.start_epoch, config.epochs, config.recipe()[0])
    progress = (epoch - first) / max(last - first, 1)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def pictures(config: Config, split: str, progress: bool = True) -> PoseSet:
    """The pictures of `split` ("train" or "test") that `config` asks for; those to test on do not depend on its seed."""
    n, seed = (config.n_train, config.seed) if split == "train" else (config.n_test, 0)
    return load(config.data, split, n, seed, progress, config.side)


def shuffled(n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Which of n pictures each step of an epoch sees, as indices."""
    order = rng.permutation(n)
    return [order[start : start + batch_size] for start in range(0, n, batch_size)]


def set_rate(optimizer, config: Config, epoch: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, epoch)


def ahead(items: Iterator) -> Iterator:
    """The `items`, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def epoch_batches(config: Config, poses: PoseSet, epoch: int) -> Iterator[tuple]:
    """(epoch and its share done, images, joints, labelled) of each step, augmented. Depends on (seed, epoch) alone."""
    rng = np.random.default_rng([config.seed, epoch])
    steps = shuffled(len(poses), config.batch_size, rng)
    for step, batch in enumerate(ahead(augment(poses[chosen], rng) for chosen in steps)):
        yield epoch + step / len(steps), *batch


def tensor_batches(config: Config, poses: PoseSet, epoch: int) -> Iterator[tuple]:
    """`epoch_batches` as tensors, for a loop of one's own: (rate, x (N, 12 or 48, 32, 32), joints (N, 14, 2), labelled (N, 14))."""
    for at, images, joints, labelled in epoch_batches(config, poses, epoch):
        yield learning_rate(config, at), to_input(images), torch.from_numpy(joints), torch.from_numpy(labelled)


def train_epoch(model, optimizer, poses: PoseSet, config: Config, epoch: int, bar, team: Team, teacher=None) -> float:
    """One pass over the training set; the mean loss. Order and augmentation depend on (seed, epoch) alone."""
    losses = []
    model.train()
    for at, *batch in epoch_batches(config, poses, epoch):
        set_rate(optimizer, config, at)
        loss = batch_loss(model, *batch, team, teacher)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        team.add_gradients(model)
        optimizer.step()
        losses.append(loss.detach())
        bar.update(1)
    return team.add(sum(losses)).item() / len(losses)


def batch_loss(model, images: np.ndarray, joints: np.ndarray, labelled: np.ndarray, team: Team | None = None,
               teacher=None) -> torch.Tensor:  # fmt: skip
    """The loss of a batch, from labels and from a teacher's maps; of several processes, this one's summand of it."""
    team, device = team or Team(), next(model.parameters()).device
    mine = team.share(len(images))
    x = to_input(images[mine]).to(device)
    logits = model.logits(x)
    truth = torch.from_numpy(joints[mine]).to(device), torch.from_numpy(labelled[mine]).to(device)
    loss = pose_loss(logits, *truth, model.cell)
    if team.size > 1:
        loss = loss * float(labelled[mine].sum() / max(labelled.sum(), 1))
    if teacher is None:
        return loss
    with torch.no_grad():
        maps, part = teacher.logits(x), len(x) / len(images)
    return part * distillation_loss(logits, maps, loss / part, temperature=1.0, alpha=TEACHER)


def start_quantization(model, optimizer, poses: PoseSet, config: Config, progress: bool = False):
    """Fuse batch norm, measure activations, set thresholds, switch QAT on; the optimizer for the new parameters."""
    batches = calibration_batches(poses)
    return ai8x.start_qat(model, batches, config.policy(), optimizer, progress)


def train(config: Config, out: str | Path | None = None, resume: bool = False, init: dict | None = None,
          train_poses: PoseSet | None = None, test_poses: PoseSet | None = None, progress: bool = True,
          team: Team | None = None, network=None, teacher=None) -> Result:  # fmt: skip
    """Train by `config`. With `out`, a folder: a checkpoint after every epoch, `float.pth` where QAT starts, `final.pth` last.

    `init` is the state dict of a float network to start from; training then begins at `start_epoch`. `resume` continues from the
    checkpoint in `out`, if there is one yet. An interrupt (Ctrl-C, Jupyter's stop button) gives the network as it was after
    the last whole epoch; before the end of the first one it is passed on. `team`: the processes that share every batch.
    `network`: what to train in float in place of a new PoseTiny. `teacher`: where that of `config.teacher_epochs` exists already;
    with `init` none is made.
    Raises TypeError or ValueError for unusable settings, and OSError, before any work, where `out` cannot be written.
    """
    check_arguments(config, train_poses, test_poses)
    team, out = team or Team(), Path(out) if out else None
    if resume and not out:
        raise ValueError("resume=True needs out, the folder with the checkpoint to continue from")
    ai8x.load_policy(config.policy()).check_names(layers(PoseTiny()))
    if out and team.first:
        prepare_folder(out)
    progress = progress and team.first
    torch.manual_seed(config.seed)
    model = share_batch_norm(network or PoseTiny(side=config.side), team).to(pick_device(), memory_format=FORMAT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    first, history = 0, []
    if init is not None:
        load_state(model, init)
        first = config.start_epoch
    if resume and (out / "checkpoint.pth").exists():
        first, history, optimizer = restore(out / "checkpoint.pth", config, model, optimizer)
    train_poses = train_poses or pictures(config, "train", progress)
    test_poses = test_poses or pictures(config, "test", progress)
    if config.teacher_epochs and teacher is None and init is None:
        teacher = taught(config, out and out / "teacher.pth", resume, train_poses, test_poses, progress, team)
    kept = (copy.deepcopy(model.state_dict()), list(history))
    try:
        for state in epochs(model, optimizer, config, first, history, train_poses, test_poses, out, progress, team, teacher):
            kept = state
        result = Result(config, model.eval(), history, evaluate(model, test_poses))
        if out and team.first:
            save(out / "final.pth", model, config, config.epochs, history)
    except KeyboardInterrupt:
        if not kept[1] or network is not None:
            raise
        return stopped(config, *kept, out)
    return result


def taught(config: Config, path: Path | None, keep: bool, train_poses: PoseSet, test_poses: PoseSet, progress: bool = True,
           team: Team | None = None) -> Teacher:  # fmt: skip
    """The teacher of `config`, trained from the labels; kept in `path`, and with `keep` read from there if it is there."""
    torch.manual_seed(config.seed)  # the same first weights in every process, and in every run
    teacher = Teacher(config.side).to(pick_device(), memory_format=FORMAT)
    if keep and path and path.exists():
        load_state(teacher, read_file(path)["state_dict"])
        return teacher.eval()
    goal = dataclasses.replace(
        config, weight_bits=None, overrides={}, epochs=config.teacher_epochs, start_epoch=config.teacher_epochs, teacher_epochs=0
    )
    poses = {"train_poses": train_poses, "test_poses": test_poses, "progress": progress}
    result = train(goal, **poses, team=team, network=teacher)
    if progress:
        print(f"teacher: PCK@0.2 {result.metrics['pck']:.3f} after {goal.epochs} epochs")
    if path and (team or Team()).first:
        write_file(path, {"state_dict": teacher.state_dict()})
    return result.model


def check_arguments(config, train_poses, test_poses) -> None:
    """Of `train`, before any work: types, and that the pictures still to be drawn fit in memory."""
    if not isinstance(config, Config):
        raise TypeError(f"config is a {type(config).__name__}; make one with configure(preset, ...)")
    for name, poses in (("train_poses", train_poses), ("test_poses", test_poses)):
        if not isinstance(poses, (PoseSet, type(None))):
            raise TypeError(f"{name} is a {type(poses).__name__}; give a qatcourse.pose.data.PoseSet, or None to load config.data")
    if config.data == "figures":
        check_memory((config.n_train if train_poses is None else 0) + (config.n_test if test_poses is None else 0))


def epochs(model, optimizer, config: Config, first: int, history: list, train_poses: PoseSet, test_poses: PoseSet,
           out: Path | None, progress: bool, team: Team, teacher=None):  # fmt: skip
    """Train from epoch `first` to the end; after each, yields a copy of (state dict, history) and writes the checkpoint."""
    monitor = test_poses.subset(min(500, len(test_poses.images)))
    steps = math.ceil(len(train_poses.images) / config.batch_size)
    with tqdm(total=(config.epochs - first) * steps, desc="training", disable=not progress) as bar:
        for epoch in range(first, config.epochs):
            if epoch == config.start_epoch:
                if out and team.first:
                    save(out / "float.pth", model, config, epoch, history)
                if config.weight_bits:
                    optimizer = start_quantization(model, optimizer, train_poses, config, progress)
            loss = train_epoch(model, optimizer, train_poses, config, epoch, bar, team, teacher)
            history.append({"epoch": epoch, "loss": loss, "lr": learning_rate(config, epoch), **evaluate(model, monitor)})
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", pck=f"{history[-1]['pck']:.3f}")
            if os.environ.get("QATLIB_EPOCHS") and progress:
                said = f"epoch {epoch + 1:3} of {config.epochs}: loss {loss:.3f}, PCK@0.2 {history[-1]['pck']:.3f}"
                tqdm.write(said, file=sys.stderr)  # not in the middle of the bar
            yield copy.deepcopy(model.state_dict()), list(history)
            if out and team.first:
                save(out / "checkpoint.pth", model, config, epoch + 1, history, optimizer)


def stopped(config: Config, state_dict: dict, history: list, out: Path | None) -> Result:
    """The result of a training that was interrupted: the network after its last whole epoch, and that epoch's metrics."""
    further = f"; resume=True with out={str(out)!r} continues" if out else ""
    tqdm.write(f"interrupted: this is the network after epoch {len(history)} of {config.epochs}{further}")
    metrics = {name: history[-1][name] for name in ("pck", "pckh", "pixel_error")}
    return Result(config, model_from(state_dict).to(pick_device(), memory_format=FORMAT), history, metrics, interrupted=True)
