"""What `notebooks/STYLE.md` promises of every lesson, read from the files as they are stored."""

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from qatcourse.keeper import lessons as lessons_of_the_map
from qatcourse.keeper import notebooks as make
from qatcourse.keeper.lessons import LESSONS as LESSONS_OF_THE_MAP

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
PATHS = LESSONS + SOLUTIONS

every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
lessons = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell.outputs]


def text_of(path):
    return "\n".join(cell.source for cell in cells(path, "markdown"))


def test_there_are_lessons_and_each_has_solutions():
    assert LESSONS
    with_exercises = [path for path in LESSONS if check_calls(path)]
    expected = {f"{path.stem}_solutions" for path in with_exercises}
    assert expected <= {path.stem for path in SOLUTIONS}


@every
def test_valid_with_stable_ids_and_the_common_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"\d\d[a-z-]*-[\w-]+", name) for name in ids), ids[:3]


@every
def test_begins_and_ends_as_the_style_page_says(path):
    notebook = nbformat.read(path, as_version=4)
    headings = [line for cell in cells(path, "markdown") for line in cell.source.splitlines() if line.startswith("# ")]
    assert len(headings) == 1 and notebook.cells[0].source.startswith("# ")
    opening = "\n".join(cell.source for cell in notebook.cells[:3] if cell.cell_type == "markdown").lower()
    assert "goals" in opening and re.search(r"\d+\s*min", opening)
    closing = notebook.cells[-1]
    assert closing.cell_type == "markdown" and "next" in closing.source.lower()
    assert re.search(r"take[- ]away|take away", text_of(path).lower())


@every
def test_first_code_cell_prints_versions_and_seeds(path):
    first = cells(path, "code")[0]
    printed = "".join(output.get("text", "") for output in first.outputs)
    assert all(name in printed for name in ("qatlib", "torch", "numpy")), printed
    assert "course.start(" in first.source or "manual_seed" in first.source


@every
def test_outputs_are_stored_in_order_and_without_errors(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run make notebooks"
    assert outputs(path) and not any(output.output_type == "error" for output in outputs(path))


@every
def test_stored_outputs_hold_no_noise(path):
    stored = path.read_text()
    noise = (str(ROOT), r"/home/\w+", r"/root/", r"/tmp/", r"site-packages", r" at 0x[0-9a-f]{6,}", r"widget-view", r"\d%\|")
    for pattern in noise:
        assert not re.search(pattern, stored), pattern
    assert not any("execution" in cell.metadata for cell in cells(path, "code"))
    assert path.stat().st_size < 3_000_000


@every
def test_every_stored_figure_has_words(path):
    for cell in cells(path, "code"):
        kinds = [set(output.get("data", {})) for output in cell.outputs]
        for i, output in enumerate(cell.outputs):
            pictures = {"image/png", "image/svg+xml"} & kinds[i]
            if not pictures:
                continue
            alt = output.metadata.get(pictures.pop(), {}).get("alt", "")
            assert len(alt.split()) >= 5, f"{cell.id}: a picture without a sentence; use show(fig, sentence)"
            assert i + 1 < len(kinds) and "text/markdown" in kinds[i + 1], f"{cell.id}: no sentence below the picture"


@every
def test_images_in_markdown_have_alt_text_and_exist(path):
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text_of(path)):
        assert len(alt.split()) >= 3, target
        assert target.startswith("http") or (path.parent / target).exists()


@every
def test_links_to_other_notebooks_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+\.ipynb)", text_of(path)):
        assert (path.parent / target).exists(), f"{target} is linked but missing"


@every
def test_code_cells_are_short_and_have_no_helpers(path):
    sizes = {}
    for cell in cells(path, "code"):
        sizes[cell.id] = len([line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")])
        classes = [node.name for node in ast.parse(cell.source).body if isinstance(node, ast.ClassDef)]
        assert all(name.startswith("My") for name in classes), f"{cell.id}: import classes that the learner does not write"
    longest = max(sizes, key=sizes.get)
    assert statistics.median(sizes.values()) <= 12 and sizes[longest] <= 30, f"{longest} has {sizes[longest]} lines"


def check_calls(path):
    return re.findall(r"(?m)^(?:report = )?(?:lesson\d\d\.)?check_\w+\(", "\n".join(cell.source for cell in cells(path, "code")))


@lessons
def test_exercises_have_stubs_hints_and_untouched_checks_that_say_not_yet(path):
    if path.name.startswith("00"):
        return
    assert len(check_calls(path)) >= 3, "a lesson has at least three exercises"
    assert text_of(path).count("<details>") >= 3
    said = 0
    for cell in cells(path, "code"):
        if re.match(r"(?:lesson\d\d\.)?check_\w+\(", cell.source):
            words = json.dumps(cell.outputs).lower()
            said += "not yet" in words
    assert said >= 3


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_assert_their_reports(path):
    source = "\n".join(cell.source for cell in cells(path, "code"))
    assert len(re.findall(r"(?m)^assert report\.ok", source)) >= 3
    assert "NOT YET" not in path.read_text()


@lessons
def test_a_lesson_asks_before_it_shows(path):
    if path.name.startswith("00"):
        return
    source = "\n".join(cell.source for cell in cells(path, "code"))
    assert source.count("predict(") >= 1


@lessons
def test_a_lesson_and_the_map_name_the_same_minutes_and_prerequisites(path):
    mine = next(lesson for lesson in LESSONS_OF_THE_MAP if lesson.path.name == path.name)
    opening = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells[:3] if cell.cell_type == "markdown")
    assert int(re.search(r"\*\*Time\.\*\* About (\d+) minutes", opening).group(1)) == mine.minutes
    assert set(mine.needs) <= set(re.findall(r"\((\d\d)_\w+\.ipynb\)", opening)), "link what the map puts before it"


LONGER = {"03": 60, "05": 60, "10": 65}  # two write a third of the thread each; one is a page of reference


@pytest.mark.parametrize("lesson", LESSONS_OF_THE_MAP, ids=lambda lesson: lesson.number)
def test_stated_minutes_are_the_formulas_and_few(lesson):
    assert lesson.minutes == lessons_of_the_map.estimate(lesson), "run python -m qatcourse.keeper.lessons --write"
    assert lesson.minutes <= LONGER.get(lesson.number, 45), lessons_of_the_map.counts(lesson.path, lesson.solutions)


def phrases():
    """What the last table of the style page tells us not to write."""
    rows = (FOLDER / "STYLE.md").read_text().partition("Phrases that we do not use")[2].split("\n## ")[0]
    return [phrase for row in re.findall(r"(?m)^\| (`.*?) \|", rows) for phrase in re.findall(r"`([^`]+)`", row)]


def unidiomatic(text):
    return [
        phrase for phrase in phrases() if re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", " ".join(text.split()), re.IGNORECASE)
    ]


TEXTS = [*PATHS, FOLDER / "short_qat.ipynb", FOLDER / "template_your_network.ipynb", ROOT / "README.md", FOLDER / "GLOSSARY.md"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_no_text_holds_a_phrase_that_we_do_not_use(path):
    if path.suffix == ".md":
        assert unidiomatic(path.read_text()) == []
        return
    for cell in nbformat.read(path, as_version=4).cells:
        data = [{**output.get("data", {}), "text": output.get("text", "")} for output in cell.get("outputs", [])]
        shown = [kinds.get(kind, "") for kinds in data for kind in ("text", "text/plain", "text/markdown")]
        assert unidiomatic("\n".join([cell.source, *shown])) == [], cell.id


def test_unidiomatic_phrases_are_found_over_line_ends_and_only_whole():
    assert len(phrases()) >= 20 and unidiomatic("With one scale\na channel; Shall we?") == ["scale a channel", "shall"]
    assert unidiomatic("shallow scales a channel's amendment") == []


@every
def test_exercises_stand_after_their_ideas_and_no_cell_moves_a_slider(path):
    assert not re.search(r"(?m)^#+ Exercises", text_of(path)), "each exercise stands right after its idea"
    assert not [cell.id for cell in cells(path, "code") if re.search(r"\.sliders\[.*\.value = ", cell.source)]


def test_make_refuses_an_unknown_lesson():
    ran = subprocess.run([sys.executable, "-m", "qatcourse.keeper.notebooks", "77"], capture_output=True, text=True)
    assert ran.returncode == 2 and "no lesson starts with 77" in ran.stderr


def test_make_strips_noise_and_keeps_what_was_said():
    view = {make.WIDGET: {"model_id": "abc"}}
    bar = {"output_type": "display_data", "metadata": {}, "data": {"text/plain": "training:  40%|####      |", **view}}
    picture = {"output_type": "display_data", "metadata": {}, "data": {"image/svg+xml": "<svg/>", "text/plain": "Words.", **view}}
    drew = "drew 1,400 pictures in 0.3 s: 4,522 a second on 2 worker(s)"
    text = f"read {ROOT}/data/x.pth\n 50%|##  |\r100%|####| 2it/s\n{drew}\n<f at 0x7f00deadbeef>\n"
    stream = {"output_type": "stream", "name": "stdout", "text": text}
    only_bar = {"output_type": "stream", "name": "stderr", "text": "\r100%|####| 2/2 [00:01<00:00]\n"}
    bar, picture, stream, only_bar = map(nbformat.from_dict, (bar, picture, stream, only_bar))
    assert not make.clean_output(bar) and not make.clean_output(only_bar)
    assert make.clean_output(picture) and set(picture.data) == {"image/svg+xml", "text/plain"}
    assert make.clean_output(stream) and stream.text == "read data/x.pth\n<f>\n"


def test_make_turns_the_links_of_solutions():
    text = "[a](03_ai8x_layers.ipynb) [b](../01_x.ipynb) [c](solutions/02_y_solutions.ipynb) [d](GLOSSARY.md) [e](https://x.org/03_z.ipynb)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    for _ in range(2):  # the second time changes nothing
        make.relink(notebook)
        turned = re.findall(r"\]\(([^)]+)\)", notebook.cells[0].source)
        assert turned == [
            "../03_ai8x_layers.ipynb",
            "../01_x.ipynb",
            "02_y_solutions.ipynb",
            "../GLOSSARY.md",
            "https://x.org/03_z.ipynb",
        ]


def test_make_leaves_a_failing_notebook_as_it_was(tmp_path):
    path = tmp_path / "99_fails.ipynb"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    path.write_text(nbformat.writes(notebook))
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        make.run(path, timeout=120)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_make_runs_stores_and_gives_the_same_bytes_again(tmp_path):
    path = tmp_path / "98_runs.ipynb"
    source = "from qatcourse import viz\nfrom qatcourse.viz import widgets\nviz.show(*viz.staircase())\nprint(6 * 7)"
    question = "widgets.predict('Which?', ['a', 'b'], 'b', 'Because.')"
    made = [nbformat.v4.new_code_cell(text, id=f"98-{i}") for i, text in enumerate((source, question))]
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=made)))
    make.run(path, timeout=120)
    first = path.read_bytes()
    make.run(path, timeout=120)
    assert path.read_bytes() == first
    stored = nbformat.read(path, as_version=4).cells
    assert {"image/png", "text/plain"} == set(stored[0].outputs[0].data) and "42" in first.decode()
    assert stored[1].metadata.jupyter.source_hidden and "Because." in stored[1].outputs[0].data["text/markdown"]
