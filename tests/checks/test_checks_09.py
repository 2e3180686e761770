"""Lesson 09's exercise that is no table, and mixed precision itself."""

import pytest
import torch
from exercises import both_ways

from qatcourse import course
from qatcourse.checks import lesson09 as lesson
from qatcourse.labs import mixed
from qatcourse.pose import evaluate as pose
from qatcourse.pose.data import load
from qatcourse.pose.train import RECIPES
from qatcourse.viz.overview import pareto, pareto_front, sensitivity

SOLUTIONS = [(lesson.check_choice, mixed.greedy)]
WRONG = [
    (lesson.check_choice, lambda d, c, budget: dict.fromkeys(c, 8), "do not fit"),
    (lesson.check_choice, lambda d, c, budget: dict.fromkeys(c, 2), "is possible"),
    (lesson.check_choice, lambda d, c, budget: dict.fromkeys(c, 3), "8, 4 or 2"),
]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)


def test_greedy_refuses_a_budget_below_the_fewest_bits():
    with pytest.raises(ValueError, match="is the least"):
        mixed.greedy(lesson._DROPS, lesson._COUNTS, 100)


def test_changing_bits_afterwards_equals_calibrating_with_them():
    model, poses = course.pretrained(), load("figures", "train", 20, progress=False)
    batches = pose.calibration_batches(poses)
    changed = mixed.with_bits(pose.calibrated_ptq(model, batches, 8), {"conv3": 4})
    direct = pose.calibrated_ptq(model, batches, 8, mixed.overrides({"conv3": 4}))
    assert torch.equal(changed(batches[0][0]), direct(batches[0][0]))
    assert changed.conv3.weight_bits.item() == 4
    assert mixed.weight_bytes(mixed.weight_counts(changed), 8) == sum(mixed.weight_counts(changed).values())


def test_pictures_say_what_they_show():
    points = [(100, 0.5), (200, 0.4), (300, 0.8)]
    assert pareto_front(points) == [(100, 0.5), (300, 0.8)]
    assert "2 of them are beaten by no other" in pareto({"a": points})[1]
    assert pareto({"a": points})[0].axes[0].get_title(loc="left") == "PCK@0.2 against bytes"
    assert "conv1 costs most" in sensitivity(lesson._DROPS)[1]
    with pytest.raises(ValueError, match="at least one point"):
        pareto({"a": []})


def test_sensitivity_uses_the_scale_that_it_is_given():
    poses = load("figures", "train", 20, progress=False)
    model = pose.calibrated_ptq(course.pretrained(), pose.calibration_batches(poses), 8)
    quantiles = [mixed.with_bits(model, {"conv1": 2}, q).conv1.shift_quantile.item() for q in (None, 1.0)]
    assert quantiles == pytest.approx([RECIPES[2][1], 1.0])
    assert mixed.overrides({"conv1": 2, "head": 8}, 0.9) == {"conv1": {"weight_bits": 2, "shift_quantile": 0.9}}
    lost = [mixed.layer_sensitivity(model, poses, (2,), q) for q in (None, 1.0)]
    assert lost[0] != lost[1]


def test_repair_gives_pairs_that_differ_in_quantization_only():
    poses, test = (load("figures", split, 40, progress=False) for split in ("train", "test"))
    same, few = (mixed.repair(course.pretrained(), bits, poses, test, [0, 1]) for bits in ({}, {"conv1": 1}))
    assert [list(run) for run in few] == [["float", "PTQ", "QAT"]] * 2
    assert [run["float"] for run in few] == [run["float"] for run in same], "the float network knows nothing of the bits"
    assert all(a["PTQ"] > b["PTQ"] and a["QAT"] > b["QAT"] for a, b in zip(same, few))
