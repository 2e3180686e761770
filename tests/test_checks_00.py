"""Lesson 00: its exercises, the map, the times and the set-up check."""

import json
import re

import nbformat
import pytest
from exercises import both_ways

from qatlib import lessons, setup_check
from qatlib.checks import lesson00 as lesson
from qatlib.viz.overview import _PLACES, lesson_map

PATH = ["00", "01", "02", "03", "04", "05"]


def minutes(table, numbers):
    return sum(table[number] for number in numbers)


SOLUTIONS = [(lesson.check_path, PATH), (lesson.check_minutes, minutes), (lesson.check_levels, lambda bits: 2**bits)]
WRONG = [
    (lesson.check_path, [], "write a list"),
    (lesson.check_path, None, "write a list"),
    (lesson.check_path, [*PATH, "06"], "no arrow leads"),
    (lesson.check_path, [*PATH, "07"], "07 itself"),
    (lesson.check_path, PATH[:-1], "backwards"),
    (lesson.check_path, PATH[::-1], "another order"),
    (lesson.check_path, [*PATH, "12"], "no lesson '12'"),
    (lesson.check_minutes, lambda table, numbers: sum(table.values()), "only the chosen"),
    (lesson.check_minutes, lambda table, numbers: len(numbers), "counted the lessons"),
    (lesson.check_levels, lambda bits: 2 * bits, "doubles"),
    (lesson.check_levels, lambda bits: 2**bits - 1, "0 is a code"),
    (lesson.check_levels, lambda bits: 2 ** (bits - 1), "negative"),
]
STUBS = [lesson.check_minutes, lesson.check_levels]
test_solution_passes, test_wrong_answer_is_advised, test_stub_and_broken_code_are_told_so = both_ways(SOLUTIONS, WRONG, STUBS)


def test_every_lesson_needs_earlier_ones_and_is_on_the_map():
    numbers = [one.number for one in lessons.LESSONS]
    assert numbers == [f"{n:02d}" for n in range(12)]
    assert all(before < one.number for one in lessons.LESSONS for before in one.needs)
    _, sentence = lesson_map(lessons.LESSONS)
    assert all(one.title in sentence for one in lessons.LESSONS)
    steps = [[abs(a - b) for a, b in zip(_PLACES[one.number], _PLACES[need])] for one in lessons.LESSONS for need in one.needs]
    assert max(map(max, steps)) == 1, "an arrow to a neighbour passes behind no other box"


def test_times_are_measured_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "SECONDS", tmp_path / "seconds.json")
    monkeypatch.setattr(lessons, "execute", lambda one: 1.25 + int(one.number))
    monkeypatch.setattr(lessons.Lesson, "exists", True)
    assert lessons.main(["01"]) == 0 and lessons.main(["02"]) == 0
    assert lessons.seconds() == {"01": 2.2, "02": 3.2}
    assert [row["its cells run"] for row in lessons.rows()][:4] == ["not measured", "2 s", "3 s", "not measured"]
    assert "processors" in json.loads((tmp_path / "seconds.json").read_text())["computer"]
    assert lessons.main(["99"]) == 2


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
