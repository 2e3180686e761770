"""Checkpoints of pose networks: one file that a killed process never leaves half-written, and that loads without running code."""

import dataclasses
from pathlib import Path

import torch

from qatcourse.pose.data import GRID, SIDES
from qatcourse.pose.model import PoseTiny
from qatlib import ai8x
from qatlib.ai8x.policy import load_policy
from qatlib.ai8x.qat import layers
from qatlib.files import load
from qatlib.integer.checkpoint import check_state, save_checkpoint, state_of, with_state
from qatlib.wording import short

NUMBERS = ("epoch", "loss", "lr", "pck", "pckh", "pixel_error")  # of every epoch, in a history


def save(path: Path, model, config, epoch: int, history: list, optimizer=None) -> None:
    """Write a checkpoint: `epoch` epochs of `config` (a dataclass) are done.

    Tensors, numbers and text only, so it loads with weights_only=True.
    """
    more = {"arguments": {"side": model.side}, "epoch": epoch, "config": dataclasses.asdict(config), "history": history}
    save_checkpoint(path, model, **more, **({} if optimizer is None else {"optimizer": optimizer.state_dict()}))


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint of `train`. Raises FileNotFoundError or ValueError naming the file and the remedy."""
    content = load(path)
    if not all(isinstance(content.get(key), dict) for key in ("config", "state_dict")) or type(content.get("epoch")) is not int:
        raise ValueError(f"{path} is not a checkpoint of train_pose_tiny; it lacks 'epoch', 'config' or 'state_dict'")
    state_of(content, str(path))
    return content


def load_model(path: str | Path) -> PoseTiny:
    """The network in a checkpoint, float or in QAT, ready to evaluate."""
    return model_from(read_checkpoint(path), str(path))


def model_from(state_dict: dict, where: str = "the state dict") -> PoseTiny:
    """A PoseTiny with `state_dict`, for pictures as large as its first layer reads; without batch norm where it has none (fused).

    Raises ValueError for the state dict of another network.
    """
    first = state_of(state_dict, where).get("conv1.op.weight", torch.empty(0, 0))
    side = next((side for side in SIDES if first.dim() > 1 and first.shape[1] == 3 * (side // GRID) ** 2), SIDES[0])
    return with_state(PoseTiny(side=side), state_dict, where)


def restore(path: Path, config, model, optimizer):
    """(epochs done, history, optimizer) from a checkpoint; `model` receives its weights.

    Raises ValueError for another config, and for what no training writes: an epoch that its history does not reach, bits that do
    not belong to that epoch, or moments that are not of this optimizer's parameters.
    """
    content = read_checkpoint(path)
    if "optimizer" not in content or not isinstance(content.get("history"), list):
        raise ValueError(f"{path} holds a network only, no state of a training to continue; start in another folder")
    _check_config(content["config"], config, path)
    _check_progress(content["epoch"], content["history"], config, path)
    restored = model_from(content, str(path))
    _check_bits(restored, content["epoch"], config, path)
    for name, module in layers(restored).items():
        if module.bn is None:
            model.get_submodule(name).bn = None
    model.load_state_dict(content["state_dict"])
    ai8x.update_model(model)
    optimizer = ai8x.update_optimizer(model, optimizer)  # without the batch norm that was fused
    _check_moments(content["optimizer"], optimizer, path)
    optimizer.load_state_dict(content["optimizer"])
    return content["epoch"], content["history"], optimizer


def _check_config(stored: dict, config, path: Path) -> None:
    try:
        saved = type(config)(**stored)
    except (TypeError, ValueError, RuntimeError) as problem:  # RuntimeError: tensors where numbers belong
        reason = " ".join(str(problem).split())[:200]
        raise ValueError(f"{path} has settings that this version does not know ({reason}); choose another folder") from problem
    changed = [f.name for f in dataclasses.fields(config) if getattr(saved, f.name) != getattr(config, f.name)]
    if changed:
        raise ValueError(f"{path} has other settings ({', '.join(changed)}); resume with the same, or choose another folder")


def _check_progress(epoch: int, history: list, config, path: Path) -> None:
    """A history has one dict of numbers an epoch, from the first (with `init`: from start_epoch) to the last one done."""
    rows = all(isinstance(row, dict) and all(type(row.get(name)) in (int, float) for name in NUMBERS) for row in history)
    epochs = [row["epoch"] for row in history] if rows else []
    if not 0 < epoch <= config.epochs or epochs not in (list(range(epoch)), list(range(config.start_epoch, epoch))) or not epochs:
        raise ValueError(
            f"{path} says that {short(epoch)} of {config.epochs} epochs are done, and its history does not hold just these; "
            "it is damaged or was changed: start in another folder"
        )


def _check_bits(model: PoseTiny, epoch: int, config, path: Path) -> None:
    policy, quantized = load_policy(config.policy()), bool(config.weight_bits) and epoch > config.start_epoch
    for name, layer in layers(model).items():
        expected = policy.for_layer(name)[0] if quantized else 0
        if layer.weight_bits.item() != expected or (quantized and layer.bn is not None):
            found = f"{layer.weight_bits.item()} bits" + (" and batch norm" if layer.bn is not None else "")
            raise ValueError(f"{path}: {name} has {found} after epoch {epoch}, not {expected}; start in another folder")


def _check_moments(stored, optimizer, path: Path) -> None:
    """The state is as `optimizer.state_dict()` gives it, with moments of the right shape for each parameter that is trained."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = optimizer.state_dict()["param_groups"]
    try:
        groups, state = (stored["param_groups"], stored["state"]) if isinstance(stored, dict) else ([], {})
        sound = [_settings(group) for group in groups] == [_settings(group) for group in own]
        trained = [i for i, p in enumerate(parameters) if p.requires_grad]
        sound = sound and sorted(state) == trained and all(_moments_fit(state[i], parameters[i]) for i in trained)
    except (TypeError, LookupError, AttributeError, RuntimeError, ValueError):  # not even nested as it should be
        sound = False
    if not sound:
        raise ValueError(f"{path}: its optimizer's state does not belong to this network; it is damaged: start in another folder")


def _settings(group: dict) -> dict:
    """Of a parameter group, without the learning rate, which every step sets: values with types (1, 1.0 and a tensor differ)."""
    settings = {key: (type(value), value) for key, value in group.items() if key != "lr"}
    return {**settings, "numbers": [type(number) for number in group["params"]]}


def _moments_fit(moments: dict, parameter: torch.Tensor) -> bool:
    """Of Adam: the number of steps, and two tensors of the parameter's shape, the second never negative."""
    check_state(moments)
    shapes = {name: tuple(value.shape) for name, value in moments.items()}
    like = tuple(parameter.shape)
    finite = all(value.is_floating_point() and not value.isnan().any() for value in moments.values())
    return shapes == {"step": (), "exp_avg": like, "exp_avg_sq": like} and finite and bool((moments["exp_avg_sq"] >= 0).all())
