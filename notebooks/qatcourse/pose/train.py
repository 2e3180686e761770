"""Training PoseTiny: float first, then quantization-aware.

The whole recipe is `train`: float epochs; at `start_epoch` batch norm is fused, activation statistics set the thresholds,
and quantization is switched on; then training goes on. Every epoch ends with a checkpoint, so `--resume` continues to the
same result after a kill at any moment. Order of randomness depends on (seed, epoch) only: the same seed gives the same bytes on
the same computer with the same number of threads. Elsewhere float sums have another order, and the network other weights.
"""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from qatcourse.people.crowd import check_memory
from qatcourse.pose.checkpoint import load_model, model_from, read_checkpoint, restore, save  # noqa: F401 (for users)
from qatcourse.pose.data import PoseSet, augment, load, to_input, warp
from qatcourse.pose.evaluate import calibration_batches, evaluate, qat_policy
from qatcourse.pose.model import PoseTiny, pose_loss
from qatcourse.pose.parallel import Team, share_batch_norm
from qatlib import ai8x
from qatlib.export.network import load_state
from qatlib.files import prepare_folder

# weight_bits: (learning rate after QAT starts, share of the weights that sets the shift). Few bits need larger steps to cross
# the distance between two codes, and a grid that spends its codes on the many small weights, not on the few largest.
RECIPES = {None: (5e-4, 1.0), 8: (5e-4, 1.0), 4: (1e-3, 0.985), 2: (2e-3, 0.985), 1: (2e-3, 0.985)}
FORMAT = torch.channels_last  # convolutions train about a fifth faster when a pixel's channels lie side by side


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on. `weight_bits` None trains the float network all the way (the fair comparison).

    `qat_learning_rate` and `shift_quantile` None become what suits `weight_bits` (RECIPES).
    """

    data: str = "figures"
    preset: str = "quick"
    weight_bits: int | None = 8
    overrides: dict = dataclasses.field(default_factory=dict)
    epochs: int = 12
    start_epoch: int = 9
    seed: int = 0
    n_train: int = 6400
    n_test: int = 1000
    batch_size: int = 64
    learning_rate: float = 2e-3
    qat_learning_rate: float | None = None
    shift_quantile: float | None = None
    weight_decay: float = 1e-4

    def __post_init__(self):
        whole = {"epochs": 1, "n_train": 1, "n_test": 1, "batch_size": 1, "start_epoch": 0, "seed": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 10**8:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least} (at most 100,000,000)")
        if self.weight_bits is not None and (type(self.weight_bits) is not int or self.weight_bits not in (1, 2, 4, 8)):
            raise ValueError(f"weight_bits is {self.weight_bits!r}; choose 1, 2, 4 or 8 (None trains without quantization)")
        if not 0 <= self.start_epoch <= self.epochs:
            raise ValueError(f"start_epoch is {self.start_epoch}; it must be in 0..epochs ({self.epochs})")
        if self.weight_bits is not None and self.start_epoch == self.epochs:
            raise ValueError(
                f"start_epoch is {self.start_epoch} of {self.epochs} epochs, so quantization would never start; choose a smaller "
                "one, or weight_bits=None for a float network"
            )
        rates = {"learning_rate": self.learning_rate, "qat_learning_rate": self.recipe()[0], "weight_decay": self.weight_decay}
        for name, value in rates.items():
            if not isinstance(value, (int, float)) or not 0 <= value < 100 or (value == 0 and name != "weight_decay"):
                raise ValueError(f"{name} is {value!r}; it must be a number above 0 (usual: 1e-4 to 1e-2)")
        if not isinstance(self.data, str):
            raise ValueError(f"data is {self.data!r}; use 'figures' or 'lsp:/path'")
        ai8x.load_policy(self.policy())

    def recipe(self) -> tuple[float, float]:
        """(learning rate after QAT starts, shift_quantile): as given, else what suits `weight_bits`."""
        usual = RECIPES[self.weight_bits]
        return tuple(own if own is not None else other for own, other in zip((self.qat_learning_rate, self.shift_quantile), usual))

    def policy(self) -> dict:
        """The QAT policy as ai8x reads it."""
        return qat_policy(self.weight_bits or 8, self.overrides, shift_quantile=self.recipe()[1])


PRESETS = {
    "smoke": {"epochs": 3, "start_epoch": 2, "n_train": 600, "n_test": 200},  # for tests: seconds, and no useful network
    "quick": {"epochs": 12, "start_epoch": 9, "n_train": 6400, "n_test": 1000},
    "full": {"epochs": 26, "start_epoch": 20, "n_train": 20000, "n_test": 2000},
}


def configure(preset: str = "quick", **options) -> Config:
    """The settings of a preset ('quick': about 3 minutes on 2 cores, 'full': about 15) with `options` in their place."""
    known = [field.name for field in dataclasses.fields(Config)]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"setting {unknown[0]!r} is unknown; the settings are {', '.join(known)}")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    given = {key: value for key, value in options.items() if value is not None or key == "weight_bits"}
    values = {**PRESETS[preset], **given}
    if "epochs" in given and "start_epoch" not in given:
        values["start_epoch"] = max(0, min(values["start_epoch"], math.ceil(given["epochs"] * 0.7), given["epochs"] - 1))
    return Config(preset=preset, **values)


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


def steps_of(optimizer, config: Config, epoch: int, n: int, rng: np.random.Generator):
    """Which of n pictures each step of an epoch sees, as indices, in an order that `rng` gives; sets the step's learning rate."""
    order, starts = rng.permutation(n), range(0, n, config.batch_size)
    for step, start in enumerate(starts):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, epoch + step / len(starts))
        yield order[start : start + config.batch_size]


def train_epoch(model, optimizer, poses: PoseSet, config: Config, epoch: int, bar, team: Team) -> float:
    """One pass over the training set; the mean loss. Order and augmentation depend on (seed, epoch) alone."""
    rng = np.random.default_rng([config.seed, epoch])
    losses, photographs = [], poses.name != "figures"
    model.train()
    for chosen in steps_of(optimizer, config, epoch, len(poses), rng):
        batch = augment(poses.images[chosen], poses.joints[chosen], poses.labelled[chosen], rng, mirrored=0.5 * photographs)
        images, joints, labelled = warp(*batch, rng) if photographs else batch
        loss = batch_loss(model, images, joints, labelled, team)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        team.add_gradients(model)
        optimizer.step()
        losses.append(loss.detach())
        bar.update(1)
    return team.add(sum(losses)).item() / len(losses)


def batch_loss(model, images: np.ndarray, joints: np.ndarray, labelled: np.ndarray, team: Team | None = None) -> torch.Tensor:
    """The loss of a batch; of several processes, this one's summand of it."""
    team, device = team or Team(), next(model.parameters()).device
    mine = team.share(len(images))
    logits = model.logits(to_input(images[mine]).to(device))
    loss = pose_loss(logits, torch.from_numpy(joints[mine]).to(device), torch.from_numpy(labelled[mine]).to(device))
    return loss if team.size == 1 else loss * float(labelled[mine].sum() / max(labelled.sum(), 1))


def start_quantization(model, optimizer, poses: PoseSet, config: Config, progress: bool = False):
    """Fuse batch norm, measure activations, set thresholds, switch QAT on; the optimizer for the new parameters."""
    batches = calibration_batches(poses)
    return ai8x.start_qat(model, batches, config.policy(), optimizer, progress)


def train(config: Config, out: str | Path | None = None, resume: bool = False, init: dict | None = None,
          train_poses: PoseSet | None = None, test_poses: PoseSet | None = None, progress: bool = True,
          team: Team | None = None) -> Result:  # fmt: skip
    """Train by `config`. With `out`, a folder: a checkpoint after every epoch, `float.pth` where QAT starts, `final.pth` last.

    `init` is the state dict of a float network to start from; training then begins at `start_epoch`. `resume` continues from the
    checkpoint in `out`, if there is one yet. An interrupt (Ctrl-C, Jupyter's stop button) gives the network as it was after
    the last whole epoch; before the end of the first one it is passed on. `team`: the processes that share every batch.
    Raises TypeError or ValueError for unusable settings, and OSError, before any work, where `out` cannot be written.
    """
    check_arguments(config, train_poses, test_poses)
    team, out = team or Team(), Path(out) if out else None
    if resume and not out:
        raise ValueError("resume=True needs out, the folder with the checkpoint to continue from")
    ai8x.load_policy(config.policy()).check_names(dict(PoseTiny().named_children()))
    if out and team.first:
        prepare_folder(out)
    progress = progress and team.first
    torch.manual_seed(config.seed)
    model = share_batch_norm(PoseTiny(), team).to(pick_device(), memory_format=FORMAT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    first, history = 0, []
    if init is not None:
        load_state(model, init)
        first = config.start_epoch
    if resume and (out / "checkpoint.pth").exists():
        first, history, optimizer = restore(out / "checkpoint.pth", config, model, optimizer)
    train_poses = train_poses or load(config.data, "train", config.n_train, config.seed, progress=progress)
    test_poses = test_poses or load(config.data, "test", config.n_test, progress=progress)
    kept = (copy.deepcopy(model.state_dict()), list(history))
    try:
        for state in epochs(model, optimizer, config, first, history, train_poses, test_poses, out, progress, team):
            kept = state
        result = Result(config, model.eval(), history, evaluate(model, test_poses))
        if out and team.first:
            save(out / "final.pth", model, config, config.epochs, history)
    except KeyboardInterrupt:
        if not kept[1]:
            raise
        return stopped(config, *kept, out)
    return result


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
           out: Path | None, progress: bool, team: Team):  # fmt: skip
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
            loss = train_epoch(model, optimizer, train_poses, config, epoch, bar, team)
            history.append({"epoch": epoch, "loss": loss, "lr": learning_rate(config, epoch), **evaluate(model, monitor)})
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", pck=f"{history[-1]['pck']:.3f}")
            yield copy.deepcopy(model.state_dict()), list(history)
            if out and team.first:
                save(out / "checkpoint.pth", model, config, epoch + 1, history, optimizer)


def stopped(config: Config, state_dict: dict, history: list, out: Path | None) -> Result:
    """The result of a training that was interrupted: the network after its last whole epoch, and that epoch's metrics."""
    further = f"; resume=True with out={str(out)!r} continues" if out else ""
    tqdm.write(f"interrupted: this is the network after epoch {len(history)} of {config.epochs}{further}")
    metrics = {name: history[-1][name] for name in ("pck", "pckh", "pixel_error")}
    return Result(config, model_from(state_dict).to(pick_device(), memory_format=FORMAT), history, metrics, interrupted=True)
