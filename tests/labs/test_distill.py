"""Distillation: the loss against its definition, students that train the same way each time, honest verdicts."""

import dataclasses

import numpy as np
import pytest
import torch

from qatcourse import ROOT
from qatcourse.keeper import reference
from qatcourse.labs import distill
from qatcourse.pose.data import load
from qatcourse.pose.evaluate import heat_maps
from qatcourse.pose.model import PoseTiny, distillation_loss, soften
from qatcourse.pose.train import configure
from qatcourse.viz import distillation as pictures
from qatlib import ai8x


def maps(seed: int, n: int = 3) -> torch.Tensor:
    return 3 * torch.randn(n, 14, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_loss_is_its_definition():
    student, teacher, t, alpha = maps(1), maps(2), 3.0, 0.7
    p, q = (soften(x, t).flatten(2).numpy() for x in (teacher, student))
    wanted = alpha * t**2 * (p * np.log(p / q)).sum(-1).mean() + (1 - alpha) * 5.0
    found = distillation_loss(student, teacher, torch.tensor(5.0), t, alpha)
    assert found.item() == pytest.approx(wanted, rel=1e-12)  # float64, 256-term sums: about 256 * 2^-53


def test_ends_of_alpha_and_a_perfect_student():
    student, teacher, task = maps(1), maps(2), torch.tensor(5.0)
    assert distillation_loss(student, teacher, task, 2.0, 0.0).item() == 5.0
    one = distillation_loss(student, teacher, task, 2.0, 1.0)
    assert one.item() > 0 and distillation_loss(student, teacher, task * 9, 2.0, 1.0).item() == one.item()
    assert abs(distillation_loss(teacher, teacher, task, 2.0, 1.0).item()) < 1e-12


def test_temperature_flattens_and_its_square_keeps_the_gradient():
    peaks = [soften(maps(1), t).flatten(2).max(-1).values.mean().item() for t in (1, 4, 16)]
    assert peaks[0] > peaks[1] > peaks[2] > 1 / 256
    student = (maps(1) / 10).requires_grad_()
    losses = [distillation_loss(student, maps(2) / 10, torch.tensor(0.0), t, 1.0) for t in (20.0, 40.0)]
    norms = [torch.autograd.grad(loss, student)[0].norm() for loss in losses]
    assert norms[0].item() == pytest.approx(norms[1].item(), rel=0.05)  # the limit of high temperature; first order in 1/T


@pytest.mark.parametrize("call", [
    lambda: soften(maps(1), 0),
    lambda: distillation_loss(maps(1), maps(2), torch.tensor(0.0), 2.0, 1.5),
    lambda: PoseTiny(width=12),
    lambda: distill.paired_gain([0.1], [0.2]),
    lambda: distill.paired_gain([0.1, 0.2], [0.2]),
])  # fmt: skip
def test_bad_values_are_named(call):
    with pytest.raises(ValueError, match="[0-9]"):
        call()


def test_student_is_small_keeps_the_shape_and_fits():
    student, x = PoseTiny(width=16), torch.zeros(2, *PoseTiny.input_shape)
    assert student(x).shape == (2, 14, 16, 16)
    assert list(dict(student.named_children())) == list(dict(PoseTiny().named_children()))
    big, small = (sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (PoseTiny(), student))
    assert 10 < big / small < 20
    assert ai8x.fit(student).fits


@pytest.fixture(scope="module")
def tiny():
    poses = load("figures", "train", 64, progress=False)
    config = configure("quick", epochs=2, start_epoch=1, n_train=64, n_test=64, batch_size=32, weight_bits=4)
    torch.manual_seed(3)
    return config, poses, heat_maps(PoseTiny(), poses.images)


def test_training_repeats_and_the_teacher_matters(tiny):
    config, poses, taught = tiny
    runs = [distill.train_student(config, poses, m) for m in (taught, taught, None)]
    weights = [run.conv3.op.weight.detach() for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert all(run.conv1.weight_bits.item() == 4 and run.conv1.bn is None for run in runs)


def test_alpha_zero_is_training_without_a_teacher(tiny):
    config, poses, taught = tiny
    config = dataclasses.replace(config, weight_bits=None)
    deaf, alone = distill.train_student(config, poses, taught, alpha=0.0), distill.train_student(config, poses)
    for a, b in zip(deaf.parameters(), alone.parameters()):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)  # 0 * KL may turn the sign of zeros and sums by one rounding


def test_arms_differ_in_labels_and_teacher_only(tiny):
    _, poses, taught = tiny
    found = distill.arms(poses, taught, 10)
    assert list(found) == list(distill.ARMS) and all(len(seen) == len(poses) for seen, _ in found.values()), "equal steps"
    assert found["labels"][1] is None and np.array_equal(found["labels"][0].images, found["same"][0].images)
    assert len(np.unique(found["labels"][0].images, axis=0)) == 10 and torch.equal(found["same"][1][12], taught[2])
    partly, maps = found["all"]
    assert np.array_equal(partly.images, poses.images) and maps is taught
    assert np.array_equal(partly.labelled[:10], poses.labelled[:10]) and not partly.labelled[10:].any()
    everything = distill.arms(poses, taught, len(poses))
    assert list(everything) == ["labels", "all"] and np.array_equal(everything["labels"][0].joints, poses.joints)


def test_stored_numbers_say_what_the_lesson_says():
    known = reference.load()
    for kind, labels in distill.LABELLED.items():
        swept, runs = distill.grid(known, kind), distill.seeds(known, kind)
        assert set(swept) == {(t, a) for t in distill.TEMPERATURES for a in distill.ALPHAS[kind]} and labels <= distill.PICTURES
        arms = set(distill.ARMS.values()) - ({distill.ARMS["same"]} if kind == "many" else set())
        assert len(runs) >= 3 and all(set(run) == arms | {"seen"} for run in runs)
    few, many = (distill.seeds(known, kind) for kind in distill.LABELLED)
    alone, taught = distill.ARMS["labels"], distill.ARMS["all"]
    assert all(run[taught] > run[alone] + 0.1 for run in few), "few labels: the teacher wins with every seed"
    assert all(abs(run[taught] - run[alone]) < 0.05 for run in many)
    assert all(run["seen"] > run[alone] + 0.2 for run in few), "memorized"
    figure, sentence = pictures.seeds(few, "Few labels")
    assert all(name in sentence for name in few[0]) and figure.axes[0].get_title(loc="left") == "Few labels"


def test_the_lesson_trains_the_seeds_that_its_text_speaks_of():
    lesson = (ROOT / "notebooks" / "08_distillation.ipynb").read_text()
    assert lesson.count("seeds, rows = range(1), []") == 1 and "Change `range(1)` to `range(3)`" in lesson


def test_the_students_pictures_are_new_to_the_teacher():
    own, new = load("figures", "train", 20, progress=False), distill.unseen(20)
    assert not any(np.array_equal(a, b) for a in own.images for b in new.images)


def test_verdict_needs_more_than_noise():
    assert distill.paired_gain([0.3, 0.5], [0.2, 0.2]) == pytest.approx((0.2, 0.1))
    assert "nothing is shown" in distill.verdict(0.05, 0.01, 2, "QAT"), "two seeds: t is 12.7, not 2"
    assert "nothing is shown" in distill.verdict(0.1, 0.042, 5, "it", "QAT in place of PTQ"), "five seeds: t is 2.8"
    assert distill.verdict(0.1, 0.03, 5, "it", "QAT in place of PTQ").startswith("QAT in place of PTQ changes")
    assert "a gain" in distill.verdict(0.05, 0.01, 3, "QAT") and "a loss" in distill.verdict(-0.05, 0.01, 99, "QAT")


def test_pictures_tell_peak_and_factor():
    _, sentence = pictures.softened(np.zeros((64, 64, 3), np.uint8), torch.zeros(2, 16, 16), ["wrist", "ankle"], 2.0)
    assert "wrist 0.00 (8.0 bits)" in sentence
    black = np.zeros((64, 64, 3), np.uint8)
    maps_of = [pictures.softened(black, maps(1)[0, :1], ["wrist"], t)[0].axes[1].images[0] for t in (1, 8)]
    assert maps_of[0].norm.vmin == maps_of[1].norm.vmin and maps_of[0].norm.vmax == maps_of[1].norm.vmax, "one range of colours"
    cold, hot = pictures.gradient_norms(maps(1), maps(2), [1.0, 32.0])
    assert cold > 200 * hot, "about T squared"
