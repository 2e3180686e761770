"""What cannot be a page is refused by file and cell, before any work where it can be seen, and leaves the book that was there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ipywidgets
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qatcourse import ROOT
from qatcourse.book import build, extension, frames, live, pages
from qatcourse.viz import widgets

PATH = ROOT / "notebooks" / "99_trial.ipynb"  # there is no such file; cells run in its folder
HEAD = "from qatcourse.viz import widgets\nimport ipywidgets\n"
SHOWN = [new_output("display_data", data={"text/plain": "x", "image/svg+xml": "<svg/>"})]
SHOWN += [new_output("display_data", data={"text/markdown": "*x* (Sliders at a = 1; run the cell to move them.)"})]


def ran(source: str, *outputs, count: int | None = 1):
    return new_code_cell(source, outputs=list(outputs), execution_count=count)


def lesson(*cells):
    return new_notebook(cells=[new_markdown_cell("# 99 · Trial"), *cells])


FAILED = new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=[])
STORED = {
    "never run": (ran("x = 1", count=None), "x = 1", "was never run"),
    "failed": (ran("y = 1 / 0", FAILED), "y = 1 / 0", "failed with ZeroDivisionError: division by zero"),
    "lost print": (ran("\nprint(3)"), "print(3)", "has lost its output"),
    "lost figure": (ran("a = 1\nshow(*viz.bars(a))"), "a = 1", "has lost its output"),
    "lost question": (ran('widgets.predict("?", ["a", "b"], "a", "b")'), "widgets.predict", "has lost its output"),
    "lost value": (ran("figure = 3\nfigure"), "figure = 3", "has lost its output"),
    "lost check": (ran("lesson01.check_clip(my_clip)"), "lesson01", "has lost its output"),
    "lost slider": (ran("widgets.slider_figure(draw, a=range(3))"), "widgets.slider_figure", "has lost its output"),
}


@pytest.mark.parametrize("name", STORED)
def test_outputs_that_are_missing_or_failed_name_file_and_cell(name):
    cell, first, problem = STORED[name]
    with pytest.raises(ValueError, match=re.escape(problem)) as refused:
        pages.stored_outputs(PATH, lesson(ran("z = 2"), cell))
    assert str(refused.value).startswith(f"99_trial.ipynb, cell 3 ('{first}") and "keeper.notebooks 99" in str(refused.value)


def test_cells_that_show_nothing_are_no_fault():
    silent = [
        "",
        "x = 1",
        "assert x",
        "%matplotlib inline",
        "if x:\n    print(x)",
        "table(rows)\nx = 1",
        "table(rows);",
        "x.append(1)",
    ]
    pages.stored_outputs(PATH, lesson(*map(ran, silent), ran("print(1)", *SHOWN), new_markdown_cell("text")))


UNCOUNTABLE = {
    "FloatSlider 'gain'": ipywidgets.FloatSlider(value=1, description="gain"),
    "IntRangeSlider ''": ipywidgets.IntRangeSlider(value=(1, 2)),
    "SelectionRangeSlider 'r'": ipywidgets.SelectionRangeSlider(options=[1, 2, 3], description="r"),
    "Text ''": ipywidgets.Text("1"),
}


@pytest.mark.parametrize("name", UNCOUNTABLE)
def test_a_control_whose_values_cannot_be_counted_is_named(name):
    figure = widgets.slider_figure(lambda a: ("<svg/>", "fine."), a=UNCOUNTABLE[name])
    with pytest.raises(TypeError, match=f"{name} has no countable set of values: give a range or a list"):
        frames.positions(figure)


RUNS = {
    "ipywidgets.FloatSlider(value=1, description='gain')": "TypeError: FloatSlider 'gain' has no countable",
    "range(3)": "ZeroDivisionError",  # at the last of three positions
}


@pytest.mark.parametrize("values", RUNS)
def test_a_slider_without_frames_names_file_and_cell(values):
    draw = "lambda a: ('<svg/>', f'{1 / (2 - a) if isinstance(a, int) else a}')"
    notebook = lesson(
        ran(HEAD), ran(f"widgets.slider_figure({draw}, a={values})", *SHOWN), ran("raise RuntimeError('not reached')")
    )
    with pytest.raises(ValueError, match=re.escape(RUNS[values])) as refused:
        frames.sliders(PATH, notebook)
    assert str(refused.value).startswith("99_trial.ipynb, cell 3 (")


def test_a_cell_before_the_slider_that_fails_is_named():
    slider = ran("widgets.slider_figure(lambda a: ('<svg/>', str(a)), a=range(3))", *SHOWN)
    with pytest.raises(ValueError, match=r"99_trial.ipynb, cell 3 \('gone'\).*NameError") as refused:
        frames.sliders(PATH, lesson(ran(HEAD), ran("gone"), slider))
    assert "\n" not in str(refused.value)


def test_more_or_fewer_sliders_than_stored_are_refused():
    with pytest.raises(ValueError, match=r"cell 2 .*stored 1 sliders and shows 0"):
        frames.sliders(PATH, lesson(ran("print(1)", *SHOWN)))


def test_sliders_inside_a_loop_are_all_found():
    draw = "lambda a: (f'<svg><g>{a}</g></svg>', f'{a}.')"
    loop = f"from IPython.display import display\nfor n in (2, 3):\n    display(widgets.slider_figure({draw}, a=range(n)))"
    found = frames.sliders(PATH, lesson(ran(HEAD), ran(loop, *SHOWN * 2)))
    assert [len(figure["frames"]) for figure in found[2]] == [2, 3]


def test_positions_are_those_of_the_controls():
    dropdown = ipywidgets.Dropdown(options=[("low", 10), ("high", 20)], value=20, description="start")
    figure = widgets.slider_figure(
        lambda kind, gain, a: ("<svg/>", f"{kind} {gain} {a}"), kind=["x", "y"], gain=[0.5, 2], a=dropdown, start={"gain": 2}
    )
    made = frames.positions(figure)
    assert [said for _, said in made["frames"]] == [f"{k} {g} {a}" for k in "xy" for g in (0.5, 2) for a in (10, 20)]
    assert [(c["label"], c["choices"], c["at"], c["radio"]) for c in made["controls"]] == [
        ("kind", ["x", "y"], 0, True),
        ("gain", ["0.5", "2"], 1, False),
        ("start", ["low", "high"], 1, True),
    ]


def test_too_many_positions_are_thinned_before_they_are_drawn_and_the_page_says_so(tmp_path):
    drawn = []

    def draw(a, b):
        drawn.append((a, b))
        return f"<svg><g>{a}</g><g>{b}</g></svg>", f"{a} and {b}."

    figure = widgets.slider_figure(draw, a=range(100_001), b=range(3), start={"a": 77, "b": 1})
    made = frames.positions(figure, most=60)
    assert len(made["frames"]) <= 60 and len(drawn) <= 61
    choices = made["controls"][0]["choices"]
    assert choices[made["controls"][0]["at"]] == "77" and made["controls"][1]["choices"] == ["0", "1", "2"]
    text = live.slider(made, tmp_path, "", "one")
    assert f"This page has {len(choices)} of 100001 positions of a; JupyterLab has all." in text


def test_frames_that_take_too_many_bytes_are_thinned_and_one_picture_that_does_is_refused(tmp_path):
    noise = [os.urandom(3000).hex() for _ in range(16)]
    figure = widgets.slider_figure(lambda a: (f"<svg><g>{noise[a]}</g></svg>", f"{a}."), a=range(16), start={"a": 5})
    site = pages.Site(tmp_path, [])
    made = site.fitting(frames.positions(figure), 20_000)
    assert made["controls"][0]["choices"] == ["1", "5", "9", "13"] and made["controls"][0]["at"] == 1
    (file,) = (tmp_path / "_files" / "frames").iterdir()
    assert file.stat().st_size <= 20_000 and [said for _, said in live.unpacked(file)] == ["1.", "5.", "9.", "13."]
    with pytest.raises(ValueError, match="draw it smaller"):
        site.fitting(made, 100)


def test_equal_pieces_are_stored_once(tmp_path):
    shared = os.urandom(20_000).hex()
    frames_of = [(f"<svg><g>{shared}</g><text>{k}</text></svg>", f"{k} & <k>") for k in range(20)]
    file = tmp_path / f"{live.packed(frames_of, tmp_path)}.js"
    assert file.stat().st_size < 40_000 and live.unpacked(file) == frames_of
    assert live.packed(frames_of, tmp_path) == file.stem


LINKS = [
    "[x](gone.ipynb)",
    "![x](gone.png)",
    '<a href="gone.html">x</a>',
    "[x](../data/gone)",
    '<img src="no.png">',
    "[x](solutions/gone.ipynb#a)",
    "[x](../../outside.md)",
    "[`code`](gone%20too.md)",
]
LOADED = [
    "![x](https://example.org/x.png)",
    '<script src="//example.org/x.js"></script>',
    '<img alt="" src="http://example.org/x.png">',
]
FINE = [
    "`draws[0](t)` and `f[a](b)`",
    "```python\nrows[k](x)\n```",
    "[x](https://example.org) [y](mailto:a@example.org) [z](#part)",
    "[x](GLOSSARY.md) [y](../qatlib/chip) [z](../LICENSE) ![w](../data/picture.png)",
    "![x](data:image/png;base64,AAAA)",
    '`<img src="no.png">` and\n\n```html\n<a href="gone.html">\n```',
]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("shown", [False, True])
def test_a_dead_link_names_file_and_cell(tmp_path, link, shown):
    cell = new_markdown_cell(f"Look at\n\n{link} for more")
    if shown:
        cell = ran("Look at", new_output("display_data", data={"text/html" if link[0] == "<" else "text/markdown": link}))
    with pytest.raises(ValueError, match=r"99_trial.ipynb, cell 2 \('Look at.*leads nowhere"):
        pages.Site(tmp_path, []).check(PATH, lesson(cell))


@pytest.mark.parametrize("link", LOADED)
def test_what_a_browser_would_load_from_elsewhere_names_file_and_cell(tmp_path, link):
    with pytest.raises(ValueError, match=r"99_trial.ipynb, cell 3 \('Look.*example.org.*works offline"):
        pages.Site(tmp_path, []).check(PATH, lesson(ran("x = 1"), new_markdown_cell(f"Look\n\n{link}")))


@pytest.mark.parametrize("text", FINE)
def test_links_to_the_course_and_code_that_looks_like_a_link_are_no_fault(tmp_path, text):
    site = pages.Site(tmp_path, [ROOT / "notebooks" / "GLOSSARY.md"])
    made = site.links(text, PATH, "here")
    assert made == text.replace("[y](../qatlib/chip) [z](../LICENSE)", "[y](../reference/chip.rst) z")
    assert (tmp_path / "data" / "picture.png").is_file() == ("picture" in text)


def test_a_link_to_no_part_of_a_page_names_the_cell(tmp_path):
    """Also where a solution was folded in before it, which moves the cells of the staged notebook."""
    site = pages.Site(tmp_path / "source", [PATH])
    for link in ("[a](#nowhere)", '<a href="#nowhere">a</a>'):
        cells = [
            new_markdown_cell("**Exercise 1.** Do."),
            ran("check_it(it)"),
            new_markdown_cell("# Part"),
            new_markdown_cell(f"Go\n\n{link}"),
        ]
        site.notebook(PATH, lesson(*cells), {}, {"1": "it = 1"})
        (tmp_path / "source" / "index.md").write_text("# One\n\n```{toctree}\nnotebooks/99_trial\nnotebooks/GLOSSARY\n```\n")
        (tmp_path / "source" / "notebooks" / "GLOSSARY.md").write_text("# Glossary\n\n| Symbol or word | Means |\n|---|---|\n")
        with pytest.raises(ValueError, match=r"99_trial.ipynb, cell 5 \('Go'\).*nowhere"):
            build.sphinx(tmp_path / "source", tmp_path / "html", tmp_path / "trees")


def test_a_formula_that_cannot_be_drawn_and_a_missing_heading_are_named(tmp_path):
    for text, problem in (
        ("$$\\nosuch{x}$$", "index: the formula"),
        ("[x](#nowhere)", "index.md.*nowhere"),
        ("```{nosuch}\n```", "index.md.*nosuch"),
    ):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / "index.md").write_text(f"# One\n\n{text}\n")
        with pytest.raises(ValueError, match=problem):
            build.sphinx(tmp_path / "source", tmp_path / "html", tmp_path / "trees")


def test_a_question_is_read_back_from_its_stored_text():
    asked = widgets.predict("a < b & *c*?", ["1", "1. 5", "no: - x"], "1. 5", "Since 1 < 2. And 'so' on.")
    again = widgets.Prediction.read(asked.still)
    assert vars(asked).keys() == vars(again).keys() and (again.question, again.choices) == (asked.question, asked.choices)
    assert (again.answer, again.because, again.still) == (asked.answer, asked.because, asked.still)
    assert widgets.Prediction.read("**Predict first.** nothing") is None and widgets.Prediction.read("*a sentence*") is None
    assert live.question(again, "q").count("<template>") == 3


def test_terms_are_the_words_of_the_glossary_that_mean_one_thing():
    found = extension.terms((ROOT / "notebooks" / "GLOSSARY.md").read_text())
    assert found["scale"][0] == "term-scale" and found["round error"][0] == found["clip error"][0]
    assert not {"Symbol or word", "x", "q", "b"} & set(found) and all(means for _, means in found.values())


# The whole command, in a copy of the project.


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("copy") / "project"
    leave = shutil.ignore_patterns("__pycache__", "cache", ".ipynb_checkpoints")
    for name in ("notebooks", "qatlib", "data"):
        shutil.copytree(ROOT / name, root / name, ignore=leave)
    shutil.copy(ROOT / "README.md", root)
    shutil.copy(ROOT / "LICENSE", root)
    (root / "tests").mkdir()
    for file in (ROOT / "tests").glob("*.py"):
        shutil.copy(file, root / "tests")
    (root / "tests" / "speed").mkdir()
    return root


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'notebooks'}"}
    return subprocess.run(
        [sys.executable, "-m", "qatcourse.book", *arguments], cwd=root, env=environment, capture_output=True, text=True
    )


def spoil_cell(path: Path, change) -> None:
    notebook = nbformat.read(path, 4)
    change(next(cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs))
    nbformat.write(notebook, path)


SPOILED = {
    "an output is missing": (
        "notebooks/15_when_qat_pays.ipynb",
        lambda path: spoil_cell(path, lambda cell: cell.update(execution_count=None)),
    ),
    "a cell has failed": (
        "notebooks/13_learned_ranges.ipynb",
        lambda path: spoil_cell(path, lambda cell: cell.update(outputs=[FAILED])),
    ),
    "no notebook": ("notebooks/16_your_own_network.ipynb", lambda path: path.write_text("{}")),
    "a dead link": ("notebooks/GLOSSARY.md", lambda path: path.write_text(path.read_text() + "\n[x](17_gone.ipynb)\n")),
    "a dead link in a solution": (
        "notebooks/solutions/09_sweep_solutions.ipynb",
        lambda path: path.write_text(path.read_text().replace("../10_claims.ipynb", "../10_clams.ipynb")),
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_the_command_names_what_is_wrong_and_leaves_the_old_book(copy, name):
    file, spoil = SPOILED[name]
    (copy / "book").mkdir(exist_ok=True)
    (copy / "book" / "objects.inv").write_text("old")
    before = (copy / file).read_text()
    try:
        spoil(copy / file)
        done = command(copy)
    finally:
        (copy / file).write_text(before)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert Path(file).name in done.stderr and ("cell" in done.stderr or file.endswith(".md") or name == "no notebook")
    assert (copy / "book" / "objects.inv").read_text() == "old" and not list(copy.glob(".book*"))


def test_a_folder_that_holds_something_else_is_not_replaced(copy, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = command(copy, "--out", str(tmp_path))
    assert done.returncode != 0 and "something else than a book" in done.stderr and (tmp_path / "mine.txt").is_file()
