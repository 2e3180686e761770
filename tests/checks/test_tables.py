"""Every exercise by its table: right answers pass in every style, every row's mistake gets the row's hint, no answer does harm."""

import importlib

import pytest
import torch
from exercises import refuses_no_answer

from qatcourse.checks import Check, Exercise, exercises
from qatcourse.keeper.lessons import LESSONS
from qatlib import ai8x
from qatlib.ai8x import mode

CHECKS = {f"{lesson.number}-{name}": check for lesson in LESSONS for name, check in exercises(lesson.number).items()}
TABLES = {name: check for name, check in CHECKS.items() if isinstance(check, Exercise)}
ROWS = [pytest.param(check, row, id=f"{name}-{i}") for name, check in CHECKS.items() for i, row in enumerate(check.wrong)]
STYLES = [pytest.param(check, style, id=f"{name}-{i}") for name, check in CHECKS.items() for i, style in enumerate(check.right)]
FUNCTIONS = {name: check for name, check in CHECKS.items() if not check.value}
ANSWERS = [None, 0.5, "text", b"", [], {}, {1: object()}, [float("nan")] * 9, torch.ones(2, 2, dtype=torch.bool), type]
all_checks = pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)


@pytest.mark.parametrize("check", TABLES.values(), ids=TABLES)
def test_the_right_answer_passes_and_no_answer_is_told_so(check):
    report = check(check.reference)
    assert report.ok and report.message == check.praise and all(row["ok"] == "yes" for row in report.rows), report
    refuses_no_answer(check)


@all_checks
def test_a_table_holds_six_mistakes_and_another_style(check):
    assert len(check.wrong) >= 6 and len(check.right) >= 1


@pytest.mark.parametrize("check, style", STYLES)
def test_a_right_answer_in_another_style_passes(check, style):
    report = check(style)
    assert report.ok and all(row["ok"] == "yes" for row in report.rows), report


@pytest.mark.parametrize("check, row", ROWS)
def test_a_mistake_gets_its_own_hint(check, row):
    if isinstance(check, Exercise):
        learner = check.mistaken(row)
        report = check(learner)
        label = next(line["case"] for line in report.rows if line["ok"] == "no")
        case = next(case for case in check.all_cases() if case[0] == label)
        said = f"not yet: {row.text(check.given(learner, *case), check.given(check.reference, *case), *case)}"
        assert report.message == said and "{" not in said
    else:
        answer, said = row
        report = check(answer)
        assert said in report.message, report
    assert not report.ok and report.message.startswith("not yet")


@pytest.mark.parametrize("stop", [SystemError, SystemExit])
@pytest.mark.parametrize("check", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_answer_that_sets_the_device_or_stops_leaves_nothing_changed(check, stop):
    def careless(*arguments):
        ai8x.set_device(87, simulate=True, verbose=False)
        torch.set_grad_enabled(False)
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                argument.detach().zero_()
        raise stop("stopped")

    report = check(careless)
    assert not report.ok and stop.__name__ in report.message
    assert str(mode.dev).startswith("Device 85") and not mode.dev.simulate and torch.is_grad_enabled()
    again = [*check.right, getattr(check, "reference", None)]
    assert check(again[0]).ok


@all_checks
@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_whatever_comes_back_is_a_report(check, answer):
    assert not check(answer).ok
    if not check.value:
        assert not check(lambda *arguments: answer).ok


def test_other_answers_are_told_what_differs():
    check = CHECKS["01-my_pixel"]
    assert "must return numbers that fit; problem: a str" in check(lambda u8: "half").message
    assert "the result has shape (3, 1); expected (256,)" in check(lambda u8: torch.zeros(3, 1)).message
    assert "expected 0.992188 at index (255,), got 0.5" in check(lambda u8: check.reference(u8).clamp(max=0.5)).message


def test_every_check_of_a_lessons_module_is_an_exercise_of_its_lesson():
    for lesson in LESSONS:
        module, found = importlib.import_module(f"qatcourse.checks.lesson{lesson.number}"), exercises(lesson.number)
        own = [value for name, value in vars(module).items() if name.startswith("check_")]
        assert own and all(isinstance(check, Check) for check in own)
        assert [*found.values()] == own and {check.lesson for check in own} == {lesson.number}
