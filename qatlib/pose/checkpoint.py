"""Checkpoints of pose networks: one file that a killed process never leaves half-written, and that loads without running code."""

import dataclasses
import io
from pathlib import Path

import torch

from qatlib import ai8x
from qatlib.files import check_archive, write_atomic
from qatlib.pose.model import PoseTiny


def save(path: Path, model, config, epoch: int, history: list, optimizer=None) -> None:
    """Write a checkpoint: `epoch` epochs of `config` (a dataclass) are done.

    Tensors, numbers and text only, so it loads with weights_only=True.
    """
    content = {
        "arch": "PoseTiny",
        "epoch": epoch,
        "config": dataclasses.asdict(config),
        "state_dict": model.state_dict(),
        "history": history,
    }
    if optimizer is not None:
        content["optimizer"] = optimizer.state_dict()
    buffer = io.BytesIO()  # torch.save to a full disk raises no OSError
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint of `train`. Raises FileNotFoundError or ValueError naming the file and the remedy."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train first, or give the path of a .pth file")
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise ValueError(f"{path} is not a readable checkpoint (truncated or of another kind); train again") from problem
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("config", "state_dict")) or (
        not isinstance(content.get("epoch"), int)
    ):
        raise ValueError(f"{path} is not a checkpoint of train_pose_tiny; it lacks 'epoch', 'config' or 'state_dict'")
    return content


def load_model(path: str | Path) -> PoseTiny:
    """The network in a checkpoint, float or in QAT, ready to evaluate."""
    return model_from(read_checkpoint(path)["state_dict"])


def model_from(state_dict: dict) -> PoseTiny:
    """A PoseTiny with `state_dict`; batch norm is left out where the state dict has none (it was fused).

    Raises ValueError for the state dict of another network.
    """
    model = PoseTiny()
    if not any(".bn." in key for key in state_dict):
        for module in model.modules():
            if isinstance(module, ai8x.QuantizationAwareModule):
                module.bn = None
    load_state(model, state_dict)
    ai8x.update_model(model)
    return model.eval()


def load_state(model: PoseTiny, state_dict: dict) -> None:
    """`model.load_state_dict`, with one sentence for what does not belong to PoseTiny."""
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, TypeError, AttributeError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise ValueError(f"the state dict is not PoseTiny's; give a checkpoint of train_pose_tiny ({reason})") from problem
