"""What the check of every exercise must do, tested both ways: answers that are right, wrong, missing, broken or no answer."""

import pytest


def both_ways(solutions, wrong, stubs=None):
    """Three test functions for a lesson's checks.

    `solutions`: (check, right answer); `wrong`: (check, wrong answer, words of its advice); `stubs`: the checks whose exercise
    is a function, by default all of `solutions`.
    """
    stubs = sorted({check for check, _ in solutions}, key=lambda check: check.__name__) if stubs is None else stubs

    @pytest.mark.parametrize("check, answer", solutions)
    def solution_passes(check, answer):
        report = check(answer)
        assert report.ok and all(row["ok"] == "yes" for row in report.rows), report

    @pytest.mark.parametrize("check, answer, said", wrong)
    def wrong_answer_is_advised(check, answer, said):
        report = check(answer)
        assert not report.ok and report.message.startswith("not yet") and said in report.message, report
        assert any(row["ok"] == "no" for row in report.rows) or not report.rows, report.rows

    @pytest.mark.parametrize("check", stubs)
    def stub_and_broken_code_are_told_so(check):
        for answer, said in (
            (lambda *arguments: None, ("returned None", "changed nothing")),
            (lambda *arguments: 1 / 0, ("ZeroDivisionError",)),
            (0.5, ("without calling it",)),
        ):
            report = check(answer)
            assert not report.ok and any(words in report.message for words in said), report

    return solution_passes, wrong_answer_is_advised, stub_and_broken_code_are_told_so
