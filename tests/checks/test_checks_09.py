"""Lesson 09: mixed precision itself, and what its pictures say."""

import pytest
import torch
from exercises import both_ways

from qatcourse import course
from qatcourse.checks import lesson09 as lesson
from qatcourse.keeper import reference
from qatcourse.labs import distill, mixed
from qatcourse.pose import evaluate as pose
from qatcourse.pose.data import load
from qatcourse.pose.train import RECIPES
from qatcourse.viz.overview import pareto, pareto_front, sensitivity

test_solution_passes, test_wrong_answer_is_advised = both_ways(
    [(lesson.check_choice, answer) for answer in lesson.check_choice.right],
    [(lesson.check_choice, *row) for row in lesson.check_choice.wrong],
)


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
    points = {"2 bits": (100, [0.4, 0.6]), "4 bits": (200, 0.4), "8 bits": (300, 0.8), "1 bit": (50, 0.01)}
    assert pareto_front([(100, 0.5), (200, 0.4), (300, 0.8)]) == [(100, 0.5), (300, 0.8)]
    figure, sentence = pareto({"a": points}, least=0.3, level=("float", 0.85))
    assert "3 of them are beaten by no other: 0.010 with 50 bytes, 0.500 with 100 bytes" in sentence
    axis, texts = figure.axes[0], [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["1 bit: below, 0.01", "2 bits", "4 bits", "8 bits", "float"], "every point is named"
    assert 0.2 < axis.get_ylim()[0] < 0.3 and axis.get_ylim()[1] < 1, "the height is that of the points that matter"
    assert sum(len(line.get_ydata()) for line in axis.lines if line.get_marker() == "o") == 5, "every seed is a dot"
    assert "conv1 costs most" in sensitivity(lesson._DROPS)[1]
    with pytest.raises(ValueError, match="at least one point"):
        pareto({"a": {}})


def test_sensitivity_uses_the_scale_that_it_is_given():
    poses = load("figures", "train", 20, progress=False)
    model = pose.calibrated_ptq(course.pretrained(), pose.calibration_batches(poses), 8)
    quantiles = [mixed.with_bits(model, {"conv1": 2}, q).conv1.shift_quantile.item() for q in (None, 1.0)]
    assert quantiles == pytest.approx([RECIPES[2][1], 1.0])
    assert mixed.overrides({"conv1": 2, "head": 8}, 0.9) == {"conv1": {"weight_bits": 2, "shift_quantile": 0.9}}
    lost = [mixed.layer_sensitivity(model, poses, (2,), q) for q in (None, 1.0)]
    assert lost[0] != lost[1]


def test_choices_of_bits_train_alike_and_meet_uniform_4_bits():
    counts = {**lesson._COUNTS}
    found = mixed.chosen(lesson._DROPS, counts, (0.75, 0.5))
    assert found["uniform4"] == dict.fromkeys(counts, 4) and list(found) == ["uniform4", "mixed75", "mixed50"]
    assert mixed.weight_bytes(counts, found["mixed50"]) <= mixed.weight_bytes(counts, 8) / 2
    poses, test = (load("figures", split, 40, progress=False) for split in ("train", "test"))
    choices = {"all": {}, "again": {}, "few": {"conv1": 1}}
    scores = mixed.after_qat(course.pretrained(), choices, poses, test, seed=0)
    assert scores["all"] == scores["again"] > scores["few"]


def test_stored_numbers_say_what_the_lesson_says():
    after = mixed.stored(reference.load())
    size, uniform = after["uniform4"]
    assert size == 195_712 and all(len(scores) == 3 for _, scores in after.values())
    small, mixed38 = after["mixed38"]
    assert small < 0.8 * size and all(a > b for a, b in zip(mixed38, uniform)), "a quarter fewer bytes, and no seed loses"
    for name in ("mixed38", "mixed50", "mixed75"):
        gain, error = distill.paired_gain(after[name][1], uniform)
        assert "nothing is shown" in distill.verdict(gain, error, 3, name)
