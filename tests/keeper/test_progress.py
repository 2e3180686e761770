"""What a learner sees of their progress, whatever `progress.json` holds."""

import json

import pytest

from qatcourse import progress
from qatcourse.checks import exercises
from qatcourse.keeper.lessons import LESSONS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QATCOURSE_MINE", str(tmp_path))
    return tmp_path


def test_a_beginner_has_everything_open(folder):
    rows = progress.rows()
    assert [row["lesson"][:2] for row in rows] == [lesson.number for lesson in LESSONS]
    assert rows[0] == {"lesson": "00 Start here", "passed": "0 of 3", "open": "my_levels, my_path, my_minutes"}
    assert progress.summary(rows).startswith("0 of ") and "next is my_levels in lesson 00 Start here" in progress.summary(rows)
    assert list(folder.iterdir()) == []


def test_passes_are_counted_and_names_that_are_no_exercise_are_not(folder):
    (folder / "progress.json").write_text(json.dumps({"00": ["my_levels", "my_levels", "my_dog"], "77": ["my_cat"]}))
    rows = progress.rows()
    assert rows[0]["passed"] == "1 of 3" and rows[0]["open"] == "my_path, my_minutes"
    assert all(row["passed"].startswith("0 of") for row in rows[1:])


def test_everything_passed_is_said(folder):
    (folder / "progress.json").write_text(json.dumps({lesson.number: list(exercises(lesson.number)) for lesson in LESSONS}))
    rows = progress.rows()
    every = sum(int(row["passed"].split(" of ")[1]) for row in rows)
    assert {row["open"] for row in rows} == {"-"} and progress.summary(rows) == f"{every} of {every} exercises passed; all done."


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"00": 3}', '{"00": [[]]}'])
def test_a_broken_file_counts_as_nothing(folder, content):
    (folder / "progress.json").write_text(content)
    assert progress.summary(progress.rows()).startswith("0 of ")


def test_the_command_prints_the_rows_and_one_sentence(folder, capsys):
    assert progress.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["lesson", "passed", "open"] and len(lines) == len(LESSONS) + 2 and lines[-1].endswith(".")


def test_exercises_stand_in_the_order_of_the_lesson():
    assert list(exercises("00")) == ["my_levels", "my_path", "my_minutes"]
