"""A stored notebook as the source of a page: checked, its outputs made for a browser, its links resolved, solutions folded in."""

import ast
import base64
import hashlib
import html
import os
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat

from qatcourse import ROOT
from qatcourse.book import live
from qatcourse.book.frames import is_slider, place, thinner
from qatcourse.viz.widgets import Prediction
from qatlib.files import write_atomic

SLIDER_BYTES = 2_000_000  # of a page, for all its sliders
LOUD = {"print", "show", "display", "keep"}  # calls that show something wherever they stand,
LAST = {"start", "diagnose", "table", "predict", "slider_figure", "bit_width_slider"}  # and at the end of a cell
PICTURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg", "image/gif": "gif"}
CODE = r"(?P<code>(?s:```.*?```|~~~.*?~~~|`[^`]+`))"
LINK = re.compile(CODE + r"|(?P<mark>!?)\[(?P<words>[^][]*)\]\((?P<target>[^()\s]+)\)")
TAG = re.compile(r'(?<=\s)(href|src)="([^"]+)"')
EXERCISE = re.compile(r"^\*\*Exercise (\d+)\.", re.MULTILINE)


def stored_outputs(path: Path, notebook) -> None:
    """Raises ValueError with file and cell where a cell of a lesson was not run, failed, or lost what it showed."""
    again = f"run it and store its outputs: python -m qatcourse.keeper.notebooks {path.name[:2]}"
    for k, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        where = place(path, k, cell.source)
        if cell.execution_count is None:
            raise ValueError(f"{where}: was never run; {again}")
        for output in cell.outputs:
            if output.output_type == "error":
                raise ValueError(f"{where}: failed with {output.ename}: {output.evalue}; repair the cell, then {again}")
        if not cell.outputs and _loud(cell.source):
            raise ValueError(f"{where}: has lost its output; {again}")


def _loud(source: str) -> bool:
    """Whether a cell, by its source, must have shown something."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # magics
        return False
    lines = body + [line for loop in body if isinstance(loop, ast.For | ast.With) for line in loop.body]
    if any(_called(line) in LOUD for line in lines):
        return True
    if not body or source.rstrip().endswith(";"):
        return False
    named = isinstance(body[-1], ast.Expr) and isinstance(body[-1].value, ast.Name)
    return named or _called(body[-1]) in LAST or _called(body[-1]).startswith("check_")


def _called(line: ast.stmt) -> str:
    """The last part of the name that a statement calls, if it is a call and nothing else."""
    call = line.value.func if isinstance(line, ast.Expr) and isinstance(line.value, ast.Call) else None
    return getattr(call, "attr", getattr(call, "id", ""))


class Site:
    """The folder that Sphinx reads, laid out like the repository. `pages`: the files that become pages.

    `files` is what goes beside the pages as it is: pictures and frames.
    """

    def __init__(self, stage: Path, pages: list[Path]):
        self.stage, self.files, self.pages = stage, stage / "_files", {page.resolve() for page in pages}

    def up(self, path: Path) -> str:
        """From the page of `path` to the top of the book."""
        return "../" * len(path.relative_to(ROOT).parent.parts)

    def links(self, text: str, path: Path, where: str) -> str:
        """Markdown with its links resolved: to pages, to the reference of `qatlib`; other files of the repository are only named.

        Raises ValueError, which begins with `where`, for a link that leads nowhere, and for a picture or script from elsewhere.
        """

        def turned(found: re.Match) -> str:
            if found["code"]:
                return found[0]
            mark, words, target = found["mark"], found["words"], found["target"]
            file = self.file(target, path, where, bool(mark))
            if mark and file:
                self.copy(file)
            if file is None or mark or file in self.pages:
                return found[0]
            if file / "index.md" in self.pages:
                return f"[{words}]({target.rstrip('/')}/index.md)"
            inside = file.relative_to(ROOT).with_suffix("").parts
            room = inside[1] if len(inside) > 1 else "index"
            return f"[{words}]({self.up(path)}reference/{room}.rst)" if inside[0] == "qatlib" else words

        return LINK.sub(turned, self.tags(text, path, where))

    def tags(self, text: str, path: Path, where: str) -> str:
        """HTML, or Markdown with some, whose links to notebooks and Markdown lead to their pages. Raises as `links`."""
        for name, target in TAG.findall(re.sub(CODE, "", text)):
            self.file(html.unescape(target), path, where, name == "src")
        return re.sub(r'(href="(?![a-z]+:)[^"#]*)\.(?:ipynb|md)(?=["#])', r"\1.html", text)

    def file(self, target: str, path: Path, where: str, loads: bool) -> Path | None:
        """The file of the course that `target` names; None for an address. `loads`: a browser loads it by itself."""
        if re.match(r"[a-z]+:|//", target):
            if loads and not target.startswith(("data:", "attachment:")):
                raise ValueError(
                    f"{where}: {target} is loaded from elsewhere; the book works offline, so keep the file in the course"
                )
            return None
        name = unquote(target.partition("#")[0])
        file = Path(os.path.normpath(path.parent / name)) if name else path
        if not file.is_relative_to(ROOT) or name and not file.exists():
            raise ValueError(f"{where}: the link {target} leads nowhere in the course")
        return file if name else None

    def check(self, path: Path, notebook) -> None:
        """Raises ValueError with file and cell where a link of a notebook, or of what it shows, leads nowhere."""
        for k, cell in enumerate(notebook.cells):
            where = place(path, k, cell.source)
            if cell.cell_type == "markdown":
                self.links(cell.source, path, where)
            for output in cell.get("outputs", ()):
                self.tags(output.get("data", {}).get("text/html", ""), path, where)
                self.links(output.get("data", {}).get("text/markdown", ""), path, where)

    def copy(self, file: Path) -> None:
        """Put a picture where its page expects it."""
        to = self.stage / file.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(file.read_bytes())

    def markdown(self, path: Path, text: str | None = None) -> None:
        """Stage a Markdown file."""
        text = path.read_text() if text is None else text
        write_atomic(self.stage / path.relative_to(ROOT), self.links(text, path, str(path.relative_to(ROOT))))

    def notebook(self, path: Path, notebook, sliders: dict[int, list[dict]], answers: dict[str, str]) -> None:
        """Stage a notebook; `answers`: number of an exercise -> the code that solves it, folded in after its check."""
        cells, asked = [], None
        share = SLIDER_BYTES // max(1, sum(map(len, sliders.values())))
        for k, cell in enumerate(notebook.cells):
            fresh = []
            if cell.cell_type == "markdown":
                text = self.links(cell.source, path, place(path, k, cell.source))
                if asked in answers and re.search(r"^(## |\*\*Exercise )", text, re.MULTILINE):
                    fresh, asked = [folded(asked, answers[asked])], None
                if found := EXERCISE.search(text):
                    asked = found[1]
                fresh.append(nbformat.v4.new_markdown_cell(text))
            else:
                fresh.append(self.code(path, k, cell, sliders.get(k, []), share, hide=path.parent.name == "solutions" and asked))
                if re.search(r"\bcheck_\w+\(", cell.source):
                    fresh += [folded(asked, answers[asked])] if asked in answers else []
                    asked = None
            for made in fresh:
                made.metadata["index"] = k
            cells += fresh
        staged = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}, **notebook.metadata})
        for k, cell in enumerate(staged.cells):
            cell["id"] = f"c{k}"
        write_atomic(self.stage / path.relative_to(ROOT), nbformat.writes(staged))

    def code(self, path: Path, k: int, cell, figures: list[dict], share: int, hide: bool):
        """A code cell for the page. `hide`: its code is a solution, folded away. A question's is left out."""
        made = nbformat.v4.new_code_cell(cell.source, execution_count=cell.execution_count)
        made.outputs = self.outputs(path, f"cell-{k + 1}", cell.outputs, figures, share)
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            made.metadata["tags"] = ["remove-input"]
        elif hide and not re.search(r"\breport\b|\bcheck_\w+\(", cell.source):
            made.metadata["tags"] = ["hide-input"]
        return made

    def outputs(self, path: Path, name: str, outputs: list, figures: list[dict], share: int) -> list:
        """Outputs for the browser: pictures as files, sliders and questions alive."""
        made, figures, up = [], list(figures), self.up(path)
        for output in outputs:
            data = dict(output.get("data", {}))
            if is_slider(output):
                made = made[:-1]  # without its picture, which the slider brings
                shown = self.fitting(figures.pop(0), share)
                data = {"text/html": live.slider(shown, self.files / "frames", up, f"{name}-{len(made)}")}
            elif asked := Prediction.read(data.get("text/markdown", "")):
                data = {"text/html": live.question(asked, f"{name}-{len(made)}")}
            elif kind := next((kind for kind in PICTURES if kind in data), None):
                data = {"text/html": self.picture(data[kind], kind, data.get("text/plain", ""), up)}
            elif "text/html" in data:
                data = {"text/html": self.tags(data["text/html"], path, name)}
            elif "data" in output:
                data = {kind: value for kind, value in data.items() if kind in ("text/markdown", "text/plain")}
            if "data" not in output:
                made.append(output)
            elif data:
                made.append(nbformat.v4.new_output("display_data", data=data))
        return made

    def fitting(self, figure: dict, share: int) -> dict:
        """The figure with as many frames as `share` bytes hold."""
        while (file := self.files / "frames" / f"{live.packed(figure['frames'], self.files / 'frames')}.js").stat().st_size > share:
            if len(figure["frames"]) == 1:
                raise ValueError(
                    f"one picture of a slider takes {file.stat().st_size:,} bytes, more than a page has: draw it smaller"
                )
            file.unlink()
            figure = thinner(figure, len(figure["frames"]) - 1)
        return figure

    def picture(self, content: str, kind: str, sentence: str, up: str) -> str:
        """The HTML of a picture that becomes a file of its own, equal ones once."""
        raw = content.encode() if kind == "image/svg+xml" else base64.b64decode(content)
        file = f"{hashlib.sha256(raw).hexdigest()[:16]}.{PICTURES[kind]}"
        (self.files / "pictures").mkdir(parents=True, exist_ok=True)
        (self.files / "pictures" / file).write_bytes(raw)
        return f'<img class="figure" src="{up}pictures/{file}" alt="{html.escape(sentence)}" {_size(raw, kind)}>'


def _size(raw: bytes, kind: str) -> str:
    """Width and height of a PNG or SVG as attributes, so that a page does not jump while it loads."""
    if kind == "image/png":
        width, height = (int.from_bytes(raw[k : k + 4], "big") for k in (16, 20))
        return f'width="{width}" height="{height}"'
    head = raw.decode().partition(">")[0] if kind == "image/svg+xml" else ""
    return " ".join(re.findall(r'\b(?:width|height)="[\d.]+"', head))


def folded(number: str, code: str):
    """A cell with the solution behind a click."""
    fence = f"```python\n{code.strip()}\n```"
    words = f'<details class="solution" id="solution-{number}"><summary>Solution of exercise {number}</summary>'
    return nbformat.v4.new_markdown_cell(f"{words}\n\n{fence}\n\n</details>")


def solved(notebook) -> dict[str, str]:
    """number -> code of each exercise of a solutions notebook, without checks and reports."""
    answers, number = {}, None
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = EXERCISE.search(cell.source)
            number = found[1] if found else None if cell.source.startswith("## ") else number
        elif re.search(r"\bcheck_\w+\(", cell.source):
            number = None
        elif number:
            answers[number] = f"{answers.get(number, '')}\n\n\n{cell.source}".strip()
    return answers
