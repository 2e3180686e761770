"""The exercises that are tables: the right answer passes, every row's mistake gets the row's hint, and no answer is told so."""

import importlib

import pytest
import torch
from exercises import refuses_no_answer

from qatcourse.checks import Exercise

LESSONS = [importlib.import_module(f"qatcourse.checks.lesson{number:02d}") for number in range(13)]
EXERCISES = {
    f"{lesson.__name__[-2:]}-{check.name}": check
    for lesson in LESSONS
    for check in vars(lesson).values()
    if isinstance(check, Exercise)
}
ROWS = [pytest.param(check, row, id=f"{name}-{i}") for name, check in EXERCISES.items() for i, row in enumerate(check.wrong)]
exercises = pytest.mark.parametrize("check", EXERCISES.values(), ids=EXERCISES)


@exercises
def test_the_right_answer_passes_and_no_answer_is_told_so(check):
    report = check(check.reference)
    assert report.ok and report.message == check.praise and all(row["ok"] == "yes" for row in report.rows), report
    refuses_no_answer(check)


@pytest.mark.parametrize("check, row", ROWS)
def test_a_mistake_gets_its_own_hint(check, row):
    learner = check.mistaken(row)
    report = check(learner)
    label = next(line["case"] for line in report.rows if line["ok"] == "no")
    case = next(case for case in check.all_cases() if case[0] == label)
    assert report.message == f"not yet: {row.text(check.given(learner, *case), check.given(check.reference, *case), *case)}"
    assert not report.ok and "{" not in report.message


def test_other_answers_are_told_what_differs():
    check = EXERCISES["01-my_pixel"]
    assert "must return numbers that fit; problem: a str" in check(lambda u8: "half").message
    assert "the result has shape (3, 1); expected (256,)" in check(lambda u8: torch.zeros(3, 1)).message
    assert "expected 0.992188 at index (255,), got 0.5" in check(lambda u8: check.reference(u8).clamp(max=0.5)).message
