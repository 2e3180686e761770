"""Grading: learners of every kind, run for real; what is refused before any work; tables that show no learner's code or formula."""

import csv
import json
import os
import threading
import time

import nbformat
import psutil
import pytest

from qatcourse import grade as grading

FIRST = "from qatcourse.checks import lesson00\n"
PATH = FIRST + "lesson00.check_path(['00', '01', '02', '03', '04', '05'])"
LEVELS = FIRST + "lesson00.check_levels(lambda bits: 2**bits)"
WRONG = FIRST + "lesson00.check_levels(lambda bits: 2 * bits)"
NAME = "00_start_here.ipynb"
GOOD, EVIL = "Zoë Ångström 林", "<img src=x onerror=alert(1)>"
BROKEN = {"nojson": b"{", "nothing": b"", "list": b"[]", "bytes": b"\xff\xfe\0", "old": b'{"nbformat": 9}'}
HANGS = {
    "sleeps": "import time\ntime.sleep(1000)",
    "talks": "while True:\n    print('x' * 10000)",
    "spins": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True:\n    pass",
    "hides": "import subprocess, time\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)\ntime.sleep(1000)",
}


def hand_in(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])))


def snapshot(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(folder, out, *options):
    return grading.main([str(folder), "--out", str(out), *options])


def rows(out):
    with open(out / "grades.csv", newline="", encoding="utf-8") as file:
        return {(row["learner"], row["lesson"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A class of learners, graded: (rows by learner and lesson, folder of the copies, folder of the results)."""
    folder, out = tmp_path_factory.mktemp("copies"), tmp_path_factory.mktemp("grades")
    hand_in(folder / GOOD / NAME, PATH, LEVELS)
    hand_in(folder / GOOD / "02_straight_through.ipynb", "import pathlib\nassert pathlib.Path('mine.py').read_text() == '# mine'")
    (folder / GOOD / "mine.py").write_text("# mine")
    hand_in(folder / EVIL / NAME, "raise ValueError('<script>alert(2)</script>')", "1 / 0", LEVELS)
    hand_in(folder / "=cmd()|calc_00_start.ipynb", WRONG)
    hand_in(folder / "exits_00_start_here.ipynb", LEVELS, "import os\nos._exit(3)", PATH)
    hand_in(folder / "writes_00_start_here.ipynb", "import os\nos.mkfifo('progress.json')")
    hand_in(folder / "lacks_00_start_here.ipynb", "")
    hand_in(folder / "other_homework.ipynb", "1")
    for name, content in BROKEN.items():
        (folder / f"{name}_00_start_here.ipynb").write_bytes(content)
    (folder / "absent").mkdir()
    (folder / "folder" / NAME).mkdir(parents=True)
    (folder / "notes.txt").write_text("not a notebook")
    before = snapshot(folder)
    assert run(folder, out, "--jobs", "2") == 0
    assert snapshot(folder) == before, "copies are only read"
    assert sorted(path.name for path in out.iterdir()) == ["grades.csv", "grades.html"]
    return rows(out), out


def test_passes_are_counted_and_open_exercises_named(graded):
    good = graded[0][GOOD, "00"]
    assert (good["passed"], good["of"], good["open"], good["reason"]) == ("2", "3", "my_minutes", "")
    assert graded[0]["'=cmd()|calc", "00"]["passed"] == "0" and float(good["seconds"]) > 0


def test_kept_pieces_are_taken_along(graded):
    assert graded[0][GOOD, "02"]["reason"] == ""


def test_exceptions_are_named_and_do_not_stop_what_follows(graded):
    evil = graded[0][EVIL, "00"]
    assert evil["passed"] == "1" and evil["reason"] == "cell 1: ValueError: <script>alert(2)</script>; and 1 more"


def test_a_dead_kernel_is_a_reason_and_what_was_passed_before_counts(graded):
    row = graded[0]["exits", "00"]
    assert (row["passed"], row["reason"]) == ("1", "the kernel died in cell 2")


@pytest.mark.parametrize(
    "learner, lesson, reason",
    [
        ("nojson", "00", "is no notebook"),
        ("list", "00", "is no notebook"),
        ("bytes", "00", "is no notebook"),
        ("old", "00", "is no notebook"),
        ("nothing", "00", "is empty"),
        ("lacks", "00", "is empty: it holds no code"),
        ("absent", "-", "no notebook was handed in"),
        ("folder", "00", "is no file"),
        ("other_homework", "other_homework.ipynb", "is no lesson of the course"),
        ("writes", "00", ""),
    ],
)
def test_what_cannot_run_is_a_row_with_its_reason(graded, learner, lesson, reason):
    row = graded[0][learner, lesson]
    assert row["reason"].startswith(reason) and bool(row["reason"]) == bool(reason) and row["passed"] == "0"


def test_the_page_shows_names_and_runs_nothing(graded):
    page = (graded[1] / "grades.html").read_text(encoding="utf-8")
    assert GOOD in page and "&lt;img src=x" in page and "<img" not in page and "<script" not in page


def test_what_hangs_ends_with_all_that_it_started(tmp_path, capsys):
    for name, cell in HANGS.items():
        hand_in(tmp_path / "copies" / name / NAME, cell)
    began = time.monotonic()
    assert run(tmp_path / "copies", tmp_path, "--timeout", "8", "--jobs", "4") == 0
    assert time.monotonic() - began < 90
    assert {row["reason"] for row in rows(tmp_path).values()} == {"not finished after 8 s, in cell 1"}, capsys.readouterr()
    assert "4 notebooks of 4 learners: 0 of 12 exercises passed; 4 need a look" in capsys.readouterr().out
    assert started_by("grade-") == []


def started_by(words):
    """Processes whose environment names a folder of pieces with `words` in it."""
    found = []
    for process in psutil.process_iter():
        try:
            found += [process] if words in process.environ().get("QATCOURSE_MINE", "") else []
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("seconds", [0.3, 1, 6])
def test_an_interrupt_ends_every_kernel(tmp_path, monkeypatch, seconds):
    for name in ("a", "b", "c"):
        hand_in(tmp_path / name / NAME, HANGS["hides"])
    monkeypatch.setattr(grading.tempfile, "tempdir", str(tmp_path.parent))
    late = threading.Timer(seconds, lambda: os.kill(os.getpid(), 2))
    late.start()
    with pytest.raises(KeyboardInterrupt):
        grading.grade(tmp_path, 2, 500, progress=False)
    late.join()
    assert started_by(str(tmp_path.parent / "grade-")) == []


@pytest.mark.parametrize(
    "options, said",
    [
        (["nowhere"], "no folder"),
        (["empty"], "no notebooks in"),
        (["good", "--timeout", "0"], "--timeout is 0"),
        (["good", "--timeout", "nan"], "--timeout is nan"),
        (["good", "--jobs", "0"], "--jobs is 0"),
        (["good", "--jobs", "9999"], "--jobs is 9999"),
        (["good", "--out", "good/a"], "lies among the copies"),
        (["good", "--out", "file/under"], "cannot write"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grading, "_execute", lambda *_: pytest.fail("something ran"))
    hand_in(tmp_path / "good" / "a" / NAME, LEVELS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert grading.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("grade: ") and said in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "good"]


def test_fields_that_a_spreadsheet_would_run_are_made_harmless():
    made = [grading.harmless(text) for text in ("=1+1", "+1", "-1", "@x", "＝1", "Ann", "-", 3)]
    assert made == ["'=1+1", "'+1", "'-1", "'@x", "'＝1", "Ann", "-", "3"]


def test_names_are_one_printable_line():
    assert grading.plain("a\x1b[31mb\nc\udcff\t" + "d" * 500) == "ab c " + "d" * 195


def test_learners_and_lessons_are_read_from_names(tmp_path):
    for name in ("ann_01_numbers_and_quantizers", "team_07_bob_03_ai8x_layers", "ann_01_numbers_2026_10_x", "99_no"):
        hand_in(tmp_path / f"{name}.ipynb", "1")
    found = [(learner, number) for learner, each in grading.copies(tmp_path).items() for number, _ in each]
    assert sorted(found) == [("99_no", ""), ("ann", "01"), ("ann", "01"), ("team_07_bob", "03")]


def test_forged_progress_of_other_shapes_counts_as_nothing(tmp_path):
    for content in ("[" * 100_000, "[]", json.dumps({"00": 3}), json.dumps({"00": [["my_levels"]]})):
        (tmp_path / "progress.json").write_text(content)
        assert grading.mine.passed(tmp_path).get("00", []) == []
