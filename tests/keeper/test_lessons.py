"""A reader's minutes: what is counted, and that the pace fits those who were asked."""

import nbformat
import pytest

from qatcourse.keeper import lessons

MARKDOWN, CODE = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
# lessons 00 to 05 as they were when a demanding reader gave these minutes: prose, captions, code, exercises, written
ASKED = {
    12: (426, 234, 30, 3, 3),
    70: (1479, 1006, 130, 5, 11),
    55: (943, 682, 113, 4, 6),
    75: (1551, 432, 189, 3, 7),
    50: (1079, 940, 158, 3, 6),
    65: (1336, 917, 205, 3, 8),
}


def write(path, *cells):
    path.parent.mkdir(exist_ok=True)
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=list(cells))))
    return path


@pytest.fixture
def pair(tmp_path):
    """A small lesson and its solutions."""
    shown = nbformat.v4.new_output("display_data", {"text/markdown": "*one two three*", "text/plain": "no"})
    printed = nbformat.v4.new_output("stream", text="four five")
    stub, check = "def f(x):\n    return None  # your code", CODE("lesson01.check_f(f)")
    question = CODE("widgets.predict(\n    'a',\n)")
    lesson = write(tmp_path / "01_x.ipynb", MARKDOWN("# 01 · six words of prose"), CODE("# no\n\nx = 1", outputs=[shown, printed]),
                   question, CODE(stub), check)  # fmt: skip
    answer = CODE("def f(x):\n    y = x\n    return y"), CODE("report = lesson01.check_f(f)\nreport"), CODE("assert report.ok")
    return lesson, write(tmp_path / "solutions" / "01_x_solutions.ipynb", MARKDOWN("much else"), CODE("x = 1"), *answer)


def test_what_is_counted(pair):
    assert lessons.counts(*pair) == {"prose": 7, "captions": 5, "code": 4, "exercises": 1, "written": 2}


def test_a_lesson_without_solutions_counts_no_written_lines(pair, tmp_path):
    assert lessons.counts(pair[0], tmp_path / "none.ipynb")["written"] == 0


def test_the_pace_is_as_wrong_as_the_docstring_says():
    errors = [sum(n / pace for n, pace in zip(found, lessons.PACE.values())) - minutes for minutes, found in ASKED.items()]
    assert max(map(abs, errors)) == pytest.approx(9.3, abs=0.05)
    assert (sum(error**2 for error in errors) / len(errors)) ** 0.5 == pytest.approx(6.5, abs=0.05)


def test_minutes_are_put_into_lessons_and_solutions(pair, tmp_path, monkeypatch, capsys):
    class Here(lessons.Lesson):
        path, solutions = pair

    for path in pair:
        write(path, MARKDOWN("**Time.** About 99 minutes."), *nbformat.read(path, as_version=4).cells)
    monkeypatch.setattr(lessons, "MINUTES", tmp_path / "minutes.json")
    monkeypatch.setattr(lessons, "LESSONS", (Here("01", "x", "X", "", ()),))
    assert lessons.main(["--write"]) == 0
    assert all("**Time.** About 5 minutes." in path.read_text() and nbformat.read(path, as_version=4) for path in pair)
    assert capsys.readouterr().out.split()[8:11] == ["01", "5", "5"]
