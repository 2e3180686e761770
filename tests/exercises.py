"""What the check of every exercise must do, tested both ways: answers that are right, wrong, missing, broken or no answer."""

import pytest


def refuses_no_answer(check):
    for answer, said in (
        (lambda *arguments: None, ("returned None", "changed nothing")),
        (lambda *arguments: 1 / 0, ("ZeroDivisionError",)),
        (0.5, ("without calling it",)),
    ):
        report = check(answer)
        assert not report.ok and any(words in report.message for words in said), report


def refuses_what_is_no_repair(check):
    refuses_no_answer(check)
    assert not check(lambda patient: patient).ok
    assert "return the patient" in check(lambda patient: patient.model).message


def both_ways(solutions, wrong):
    """Two test functions for checks that are code: `solutions` (check, right answer), `wrong` (check, answer, words of advice)."""

    @pytest.mark.parametrize("check, answer", solutions)
    def solution_passes(check, answer):
        report = check(answer)
        assert report.ok and all(row["ok"] == "yes" for row in report.rows), report
        if callable(answer):
            refuses_no_answer(check)

    @pytest.mark.parametrize("check, answer, said", wrong)
    def wrong_answer_is_advised(check, answer, said):
        report = check(answer)
        assert not report.ok and report.message.startswith("not yet") and said in report.message, report
        assert any(row["ok"] == "no" for row in report.rows) or not report.rows, report.rows

    return solution_passes, wrong_answer_is_advised
