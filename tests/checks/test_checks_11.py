"""Lesson 11's checks beyond their tables: stubs, answers of the wrong kind, and what a repair may leave behind."""

import pytest
import torch
from exercises import refuses_what_is_no_repair

from qatcourse.checks import exercises, lesson11
from qatcourse.labs import break_it
from qatlib import ai8x

pytestmark = pytest.mark.usefixtures("one_thread")

REPAIRS = {letter: exercises("11")[f"repair_{letter.lower()}"] for letter in "ABCD"}
repairs = pytest.mark.parametrize("check", REPAIRS.values(), ids=REPAIRS)


@repairs
def test_stubs_and_wrong_kinds_are_told_so(check):
    refuses_what_is_no_repair(check)


def test_every_exercise_has_six_wrong_answers_and_another_style():
    for check in exercises("11").values():
        assert len(check.wrong) >= 6, check.name
    assert all(len(check.right) >= 3 for check in REPAIRS.values())


def test_a_report_shows_the_symptom_before_and_after():
    report = REPAIRS["D"](REPAIRS["D"].right[0])
    assert report.ok and len(report.rows) == len(lesson11.SEEDS)
    for row in report.rows:
        assert "before: finds 100% of the spots" in row["case"] and " 0.0% of the values differ" not in row["case"]
        assert row["got"].startswith("healthy") and "0.0% of the values differ" in row["got"]


def test_what_a_repair_leaves_behind_is_undone():
    def repair(patient):
        ai8x.set_device(87, simulate=True, verbose=False)
        patient.x.zero_()
        patient.images.zero_()
        return patient

    before = break_it.admit("A").x.clone()
    assert "simulating the chip" in REPAIRS["A"](repair).message
    assert (ai8x.dev.device, ai8x.dev.simulate) == (85, False)
    assert torch.equal(break_it.admit("A").x, before)
