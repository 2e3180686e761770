"""Build the book: stage notebooks and Markdown, let Sphinx make pages of them, put the finished folder in place."""

import contextlib
import io
import shutil
import tempfile
from pathlib import Path

import nbformat

from qatcourse import ROOT
from qatcourse.book import extension, finish, frames, live, pages, reference
from qatcourse.keeper.lessons import LESSONS
from qatlib.files import write_atomic

HERE = Path(__file__).parent
NOTEBOOKS = ROOT / "notebooks"
POSE = LESSONS[5].path  # its slider is on the first page, too
SETTINGS = {
    "project": "QAT for microcontrollers",
    "extensions": ["myst_nb", "qatcourse.book.extension", "qatcourse.book.reference"],
    "html_theme": "furo",
    "html_title": "QAT for microcontrollers",
    "html_math_renderer": "mathml",
    "html_static_path": [str(HERE / "static")],
    "html_css_files": ["book.css"],
    "html_js_files": [("book.js", {"defer": ""})],
    "html_show_search_summary": False,  # it fetches pages, which a browser forbids in files of a disk
    "html_copy_source": False,
    "html_show_sphinx": False,
    "html_show_copyright": False,
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_code_prompt_show": "Show the solution",
    "nb_code_prompt_hide": "Hide the solution",
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 3,
    "exclude_patterns": ["_files"],
    "highlight_language": "none",
}


def build(out: Path) -> dict:
    """Make the book in `out`, which is replaced when all has gone well. What was made: `pages`, `sliders`, `frames`, `bytes`.

    Raises ValueError with file and cell for what cannot be a page, and for what Sphinx warns of.
    """
    with tempfile.TemporaryDirectory(prefix="book-") as scratch:
        stage, made = Path(scratch) / "source", Path(scratch) / "html"
        figures = prepare(stage)
        sphinx(stage, made, Path(scratch) / "trees")
        sizes = finish.weights(made)
        put(made, out)
    return {"pages": len(sizes), "sliders": len(figures), "frames": sum(figures), "bytes": sizes}


def put(made: Path, out: Path) -> None:
    """Copy the finished folder beside `out`, then let it take the place of what is there."""
    fresh, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(made, fresh)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def prepare(stage: Path) -> list[int]:
    """Write what Sphinx reads into `stage`; the number of frames of each slider. All notebooks are checked before a cell runs."""
    lessons = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not lessons:
        raise ValueError(f"{NOTEBOOKS} holds no lessons; the book is built in a checkout of the course")
    solutions = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))
    templates = sorted(set(NOTEBOOKS.glob("*.ipynb")) - set(lessons))  # papermill runs these: they have no outputs
    texts = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted(NOTEBOOKS.glob("*.md"))]
    index = NOTEBOOKS / "solutions" / "index.md"
    (stage / "_files").mkdir(parents=True)
    site = pages.Site(stage, [*lessons, *solutions, *templates, *texts, index])
    read = {path: opened(path) for path in (*lessons, *solutions, *templates)}
    for path in (*lessons, *solutions):
        pages.stored_outputs(path, read[path])
    for path, notebook in read.items():
        site.check(path, notebook)
    for path in texts:
        site.markdown(path, extension.anchored(path.read_text()) if path.name == "GLOSSARY.md" else None)
    sliders = frames.of_all({path: read[path] for path in (*lessons, *solutions)})
    for path, notebook in read.items():
        answers = NOTEBOOKS / "solutions" / f"{path.stem}_solutions.ipynb"
        site.notebook(path, notebook, sliders.get(path, {}), pages.solved(read[answers]) if answers in read else {})
    listed = "\n".join(path.stem for path in solutions)
    words = "Look after you have tried. The page of each lesson has the same code, folded in."
    write_atomic(stage / "notebooks" / "solutions" / "index.md", f"# Solutions\n\n{words}\n\n```{{toctree}}\n{listed}\n```\n")
    (stage / "index.md").write_text(first(site, sliders[POSE], lessons, templates))
    reference.write(stage / "reference")
    return [len(figure["frames"]) for cells in sliders.values() for shown in cells.values() for figure in shown]


def opened(path: Path):
    """The notebook at `path`. Raises ValueError with its name where the file holds none."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as problem:
        raise ValueError(f"{path.relative_to(ROOT)} holds no valid notebook: {str(problem).splitlines()[0]}") from None
    return notebook


def first(site: pages.Site, sliders: dict[int, list[dict]], lessons: list[Path], templates: list[Path]) -> str:
    """The Markdown of the first page."""
    (figure,) = (figure for shown in sliders.values() for figure in shown)
    rows = ["| no. | lesson | you get | minutes |", "|---|---|---|---|"]
    for lesson in LESSONS:
        title = f"[{lesson.title}](notebooks/{lesson.path.name})"
        rows.append(f"| {lesson.number} | {title} | {lesson.gives} | {lesson.minutes} |")
    text = (HERE / "index.md").read_text()
    fill = {
        "{slider}": live.slider(figure, site.files / "frames", "", "first"),
        "{lessons}": "\n".join(rows),
        "{toc_lessons}": "\n".join(f"notebooks/{path.stem}" for path in lessons),
        "{toc_templates}": "\n".join(f"notebooks/{path.stem}" for path in templates),
    }
    for name, content in fill.items():
        text = text.replace(name, content)
    return text


def sphinx(stage: Path, out: Path, trees: Path) -> None:
    """Sphinx, in one process: its parallel writers lose pages that fail. Raises ValueError where it warns, as of a dead link."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    said, warned = io.StringIO(), io.StringIO()
    settings = SETTINGS | {"html_extra_path": [str(files)] if (files := stage / "_files").exists() else []}
    with docutils_namespace(), contextlib.redirect_stderr(io.StringIO()):
        Sphinx(stage, None, out, trees, "html", settings, said, warned).build()
    if lines := finish.readable(warned.getvalue(), stage):
        raise ValueError("\n".join(lines[:20]))
    finish.name_parts(out)
    finish.links(out, stage)
    (out / ".nojekyll").touch()
