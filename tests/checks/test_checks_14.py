"""Lesson 14's checks beyond their tables: stubs, answers of the wrong kind, and that a repair holds when training goes on."""

import pytest
import torch
from exercises import refuses_what_is_no_repair

from qatcourse.checks import exercises

pytestmark = pytest.mark.usefixtures("one_thread")

REPAIRS = {letter: exercises("14")[f"repair_{letter.lower()}"] for letter in "EF"}


def test_each_check_belongs_to_one_lesson():
    mine, theirs = exercises("14"), exercises("11")
    assert [*mine] == ["repair_e", "repair_f", "my_doctor"] and not {*mine} & {*theirs}
    assert {check.lesson for check in mine.values()} == {"14"} and {check.lesson for check in theirs.values()} == {"11"}


@pytest.mark.parametrize("check", REPAIRS.values(), ids=REPAIRS)
def test_stubs_and_wrong_kinds_are_told_so(check):
    refuses_what_is_no_repair(check)


def test_every_exercise_has_six_wrong_answers_and_another_style():
    for check in exercises("14").values():
        assert len(check.wrong) >= 6, check.name
    assert all(len(check.right) >= 3 for check in REPAIRS.values())


def test_a_gain_computed_once_is_refused_though_it_is_right_today():
    def repair(patient):
        gain = torch.exp2(patient.model.head.weight_shift()).detach().clone()
        patient.model.head_gain = lambda: gain
        return patient

    assert "computed at each call" in REPAIRS["F"](repair).message
