"""What each ingredient of the recipe for photographs is worth, for lesson 12: one is changed, and the network trained anew."""

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch

from qatcourse.pose import data, model, train
from qatcourse.pose.data import PoseSet
from qatcourse.pose.evaluate import heat_maps, score
from qatcourse.pose.model import PoseTiny, peak, soft_argmax

EPOCHS = 12


class WithoutSums(PoseTiny):
    """PoseTiny whose coarser maps go up without what the finer ones saw; its sums add 0."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add8, self.add10 = Second(), Second()


class Second(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return second


def with_distance(logits, joints, labelled, cell):
    """The course's loss, and twice the distance (L1, cells) between the mean of each map and its label."""
    distance = (soft_argmax(logits, cell) - joints).abs().sum(-1) / cell
    return model.pose_loss(logits, joints, labelled, cell) + 2 * (distance * labelled).sum() / labelled.sum().clamp(min=1)


# name -> what it is, settings that differ, what is put in place of what; only "teacher" learns from one
VARIANTS = {
    "recipe": ("the recipe, from labels alone", {}, {}),
    "teacher": ("from the teacher, too", {}, {}),
    "distance": ("distance of the mean in the loss", {}, {(train, "pose_loss"): with_distance}),
    "side64": ("64x64 pixels", {"side": 64}, {}),
    "without_sums": ("network without sums across scales", {}, {(train, "PoseTiny"): WithoutSums}),
    "still": ("not turned, scaled or moved", {}, {(data, "TURN"): 0, (data, "ZOOM"): 1, (data, "SHIFT"): 0}),
    "any_angle": ("turned by up to 180 degrees", {}, {(data, "TURN"): 180}),
    "decay": ("weight decay 0.0001 in place of 0.05", {"weight_decay": 1e-4}, {}),
}


def measured(name: str, config: train.Config, teacher: torch.nn.Module) -> Iterator[tuple[str, dict]]:
    """("peak" or "soft", metrics of the test photographs) of variant `name` of a float `config`, trained for EPOCHS."""
    _, settings, replaced = VARIANTS[name]
    config = dataclasses.replace(config, weight_bits=None, epochs=EPOCHS, start_epoch=EPOCHS, teacher_epochs=0, **settings)
    test = train.pictures(config, "test")
    with contextlib.ExitStack() as stack:
        for (module, attribute), value in replaced.items():
            stack.enter_context(mock.patch.object(module, attribute, value))
        network = train.train(config, test_poses=test, teacher=teacher if name == "teacher" else None).model
    logits = heat_maps(network, test.images)
    for decoder, decode in (("peak", peak), ("soft", soft_argmax)):
        yield decoder, score(decode(logits, network.cell).numpy(), test)


def mirrored(network: PoseTiny, test: PoseSet) -> np.ndarray:
    """Positions (N, 14, 2) from the mean of two softmax maps: of the picture, and of its mirror image mirrored back."""
    there, back = (heat_maps(network, images) for images in (test.images, np.ascontiguousarray(test.images[:, :, ::-1])))
    both = sum(maps.flatten(2).softmax(-1).view_as(maps) for maps in (there, back.flip(-1)[:, data.MIRRORED]))
    return peak((both / 2).clamp(min=1e-30).log(), network.cell).numpy()


def stored_rows(stored: dict) -> list[dict]:
    """A row for each variant in data/reference.json, and the recipe's network decoded by the mean."""
    names = {f"{key}.peak": what for key, (what, *_) in VARIANTS.items()}
    names = {"recipe.peak": names["recipe.peak"], "recipe.soft": "decoded by the mean of the map", **names}
    found = {what: stored.get(f"lsp.ablation.{key}.pck") for key, what in names.items()}
    values = {what: number["value"] for what, number in found.items() if number}
    if not values:
        return []
    first = next(iter(values.values()))
    return [{"recipe": what, "PCK@0.2": value, "difference": round(value - first, 4)} for what, value in values.items()]
