"""The teacher of photographs: his maps, his part of the loss, and the file in which a run keeps him."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qatcourse.labs.compare import teacher_of
from qatcourse.pose.data import load, to_input
from qatcourse.pose.model import PoseTiny, pose_loss
from qatcourse.pose.teacher import Teacher
from qatcourse.pose.train import TEACHER, batch_loss, configure, taught, train


@pytest.fixture(scope="module")
def poses():
    return load("figures", "train", 64, progress=False)


@pytest.mark.parametrize("side", [64, 128])
def test_reads_both_sides_and_gives_maps_as_the_network_does(side):
    teacher, tiny = Teacher(side, width=8).eval(), PoseTiny(side=side).eval()
    x = teacher.sample_inputs(2)
    with torch.no_grad():
        assert teacher.logits(x).shape == tiny.logits(x).shape == (2, 14, 16, 16) and teacher.logits(x).dtype == torch.float32
        assert teacher.cell == tiny.cell and teacher.coordinates(x).shape == (2, 14, 2)
    with pytest.raises(ValueError, match="side = 96"):
        Teacher(96)


def test_a_batch_learns_from_labels_and_maps_in_their_shares(poses):
    torch.manual_seed(0)
    teacher, tiny = Teacher(64, width=8).eval(), PoseTiny().eval()
    batch = poses.images[:6], poses.joints[:6], poses.labelled[:6]
    with torch.no_grad():
        wanted = teacher.logits(to_input(batch[0])).flatten(2).softmax(-1)
        logits = tiny.logits(to_input(batch[0]))
        divergence = (wanted * (wanted.log() - F.log_softmax(logits.flatten(2), -1))).sum(-1).mean()
        labels = pose_loss(logits, torch.from_numpy(batch[1]), torch.from_numpy(batch[2]))
        expected = TEACHER * divergence + (1 - TEACHER) * labels
        torch.testing.assert_close(batch_loss(tiny, *batch, teacher=teacher), expected)
        torch.testing.assert_close(batch_loss(tiny, *batch), labels)


def test_a_run_keeps_its_teacher_and_goes_on_with_him(poses, tmp_path):
    config = configure("smoke", epochs=2, start_epoch=1, n_train=64, n_test=20, teacher_epochs=1)
    given = {"train_poses": poses, "test_poses": poses.subset(20), "progress": False}
    first = train(config, tmp_path, **given)
    written = (tmp_path / "teacher.pth").read_bytes()
    alone = train(dataclasses.replace(config, teacher_epochs=0), **given)
    assert first.history[0]["loss"] != alone.history[0]["loss"]
    again = train(config, tmp_path, resume=True, **given)  # nothing left to do: the same teacher, the same network
    assert (tmp_path / "teacher.pth").read_bytes() == written and again.history == first.history
    teacher = teacher_of(tmp_path, config, *list(given.values())[:2])
    kept = torch.load(tmp_path / "teacher.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    assert teacher_of(tmp_path, dataclasses.replace(config, teacher_epochs=0)) is None
    assert np.isfinite(first.metrics["pixel_error"])


def test_a_teacher_depends_on_the_seed_alone(poses):
    config = configure("smoke", epochs=2, start_epoch=1, n_train=32, n_test=20, teacher_epochs=1)
    states = []
    for spoilt in (1, 2):
        torch.manual_seed(spoilt)
        states.append(taught(config, None, False, poses.subset(32), poses.subset(20), progress=False).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
