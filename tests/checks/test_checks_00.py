"""Lesson 00: the map, the ways through it, the times and the set-up check."""

import json
import re

import nbformat
import pytest

from qatcourse.checks import lesson00 as lesson
from qatcourse.keeper import lessons, setup_check
from qatcourse.viz.overview import _PLACES, lesson_map

PATH = ["00", "01", "02", "03", "04", "05"]


def test_the_way_passes_in_every_spelling():
    for answer in (PATH, *lesson.check_path.right):
        report = lesson.check_path(answer)
        assert report.ok and all(row["ok"] == "yes" for row in report.rows), report


@pytest.mark.parametrize("answer, said", lesson.check_path.wrong, ids=str)
def test_a_wrong_way_is_advised_and_the_right_one_not_shown(answer, said):
    report = lesson.check_path(answer)
    assert not report.ok and said in report.message and ", ".join(PATH) not in json.dumps([row["expected"] for row in report.rows])


def test_every_lesson_needs_earlier_ones_and_is_on_the_map():
    numbers = [one.number for one in lessons.LESSONS]
    assert numbers == [f"{n:02d}" for n in range(17)]
    assert all(before < one.number for one in lessons.LESSONS for before in one.needs)
    _, sentence = lesson_map(lessons.LESSONS)
    assert all(one.title in sentence for one in lessons.LESSONS)
    steps = [[abs(a - b) for a, b in zip(_PLACES[one.number], _PLACES[need])] for one in lessons.LESSONS for need in one.needs]
    assert max(map(max, steps)) == 1, "an arrow to a neighbour passes behind no other box"


def test_every_way_that_lesson_00_proposes_holds_what_its_lessons_need():
    cells = nbformat.read(lessons.LESSONS[0].path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    ways = [re.findall(r"\b\d\d\b", line) for line in text.splitlines() if line.startswith("- *")]
    assert len(ways) >= 3
    for way in ways:
        assert before(way) == {*way}, way


def test_times_are_measured_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "SECONDS", tmp_path / "seconds.json")
    lessons.keep({"01": 2.2456})
    lessons.keep({"02": 3.2})
    assert lessons.seconds() == {"01": 2.2, "02": 3.2}
    assert [row["its cells run"] for row in lessons.rows()][:4] == ["not measured", "2 s", "3 s", "not measured"]
    assert "processors" in json.loads((tmp_path / "seconds.json").read_text())["computer"]


def test_setup_check_finds_what_is_here_and_names_what_is_not(monkeypatch):
    assert setup_check.missing() == []
    monkeypatch.setitem(setup_check.PACKAGES, "no-such-package", "all lessons")
    monkeypatch.setattr(setup_check.shutil, "which", lambda name: None)
    assert setup_check.missing() == ["no-such-package"]
    assert any(row["found"].startswith("missing: apt-get install gcc") for row in setup_check.tools())


def before(numbers) -> set[str]:
    """These lessons and all that come before them on the map."""
    known = {lesson.number: lesson for lesson in lessons.LESSONS}
    return set(numbers).union(*(before(known[number].needs) for number in numbers))


@pytest.mark.parametrize("lesson", lessons.LESSONS, ids=lambda lesson: lesson.number)
def test_the_map_says_what_the_lesson_says(lesson):
    title, opening = (cell["source"] for cell in nbformat.read(lesson.path, as_version=4).cells[:2])
    assert title == f"# {lesson.number} · {lesson.title}"
    time, wanted = opening.split("**Time.**")[1].split("**Before this.**")
    assert re.match(r" About (\d+) minutes", time)[1] == str(lesson.minutes)
    assert before(re.findall(r"\((\d\d)_\w+\.ipynb\)", wanted)) == before(lesson.needs)
