"""Lesson 10's exercises in other styles, and its verdicts: the lesson, the exercise and the brief must agree."""

import re
from pathlib import Path

import nbformat
import pytest

from qatcourse.checks import exercises
from qatcourse.checks import lesson10 as lesson
from qatcourse.labs.claims import CLAIMS, HOLDS, UNTESTED, WHEN

LESSON = Path(__file__).resolve().parents[2] / "notebooks" / "10_claims.ipynb"
METHODS = {"holds": HOLDS, "when": WHEN, "false": "false", "untested": UNTESTED}
CHECKS = exercises("10").values()


@pytest.mark.parametrize("check, answer", [(check, answer) for check in CHECKS for answer in check.right])
def test_right_answers_in_other_styles_pass(check, answer):
    report = check.judge(answer)
    assert report.ok and all(row["ok"] == "yes" for row in report.rows), report


@pytest.mark.parametrize("answer, said", lesson.check_verdicts.wrong)
def test_wrong_verdicts_are_advised(answer, said):
    report = lesson.check_verdicts(answer)
    assert not report.ok and report.message.startswith("not yet") and said in report.message, report


def test_other_answers_do_not_stop_the_checks():
    for answer in ("False", dict.fromkeys(lesson._TRUTH, 1.0), {3: "false"}, {"": None}):
        assert not lesson.check_verdicts(answer).ok
    assert "TypeError" in lesson.check_qat_is_on(lambda model: "True").message
    assert "expected (2,)" in lesson.check_loss(lambda fp32, quantized: fp32 - quantized).message


def given() -> dict[int, tuple[str, str]]:
    """Claim -> (verdict, the last Markdown above it) as the lesson's cells give it."""
    found, above = {}, ""
    for cell in nbformat.read(LESSON, as_version=4).cells:
        if cell.cell_type == "markdown":
            above = cell.source
            continue
        for method, number in re.findall(r"page\.(holds|when|false|untested|settle)\((\d+)", cell.source):
            assert int(number) not in found, number
            found[int(number)] = METHODS.get(method, method), above
    return found


def test_the_lesson_judges_every_claim_below_the_words_of_the_brief():
    assert sorted(given()) == [claim.number for claim in CLAIMS]
    for claim in CLAIMS:
        verdict, above = given()[claim.number]
        line = next(line for line in above.splitlines() if line.startswith(f"- **{claim.number}** "))
        assert claim.quote.replace("**", "") in line  # its line of the brief stands in the table of verdicts
        assert verdict == "settle" or (verdict == WHEN) == bool(claim.condition)


def test_the_exercise_asks_for_the_verdicts_of_the_lesson():
    assert {number: verdict for number, verdict, _ in lesson._TRUTH.values()} == {
        number: given()[number][0] for number, _, _ in lesson._TRUTH.values()
    }
