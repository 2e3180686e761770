"""The book's files: which pages there are, that every link leads somewhere in the book, and that sliders hold what Python draws."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from qatcourse import ROOT, viz
from qatcourse.book import extension, live
from qatcourse.pose.widgets import drawn_again
from qatcourse.viz.widgets import STORED, Prediction

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb")) + sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
MARKDOWN = ["README.md", "data/README.md", "notebooks/GLOSSARY.md", "notebooks/ROOMS.md", "notebooks/STYLE.md"]


class Page(HTMLParser):
    """`ids` of a page, the `links` that a reader can follow, the `parts` that a browser loads by itself."""

    def __init__(self, file: Path):
        super().__init__()
        self.ids, self.links, self.parts, self.file = {""}, [], [], file
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        if "href" in found and (tag == "a" or found.get("rel") in ("index", "search", "next", "prev", "author")):
            self.links.append(found["href"])
        elif tag == "link":
            self.parts.append(found["href"])
        elif "src" in found:
            self.parts.append(found["src"])


@pytest.fixture(scope="module")
def pages(book) -> dict[Path, Page]:
    return {(book.out / name).resolve(): Page(book.out / name) for name in book.pages}


def test_every_notebook_and_every_markdown_file_is_a_page(book):
    files = [str(path.relative_to(ROOT)) for path in NOTEBOOKS] + MARKDOWN
    assert len(NOTEBOOKS) == 36
    assert {re.sub(r"\.(ipynb|md)$", ".html", name) for name in files} <= set(book.pages)
    assert {"index.html", "search.html", "reference/index.html"} <= set(book.pages) and (book.out / ".nojekyll").is_file()


def test_every_link_leads_somewhere_in_the_book(pages):
    dead = []
    for file, page in pages.items():
        for link in page.links:
            if re.match(r"(https?|mailto):", link):
                continue
            name, _, part = unquote(link).partition("#")
            target = (file.parent / name).resolve() if name else file
            if target not in pages and not target.is_file() or part and part not in pages.get(target, page).ids:
                dead.append(f"{file.name}: {link}")
    assert not dead


def test_no_part_of_a_page_comes_from_elsewhere(pages, book):
    for file, page in pages.items():
        for part in page.parts:
            if not part.startswith("data:"):
                target = (file.parent / unquote(part.partition("?")[0])).resolve()
                assert target.is_file() and target.is_relative_to(book.out.resolve()), f"{file.name} loads {part}"
    for sheet in book.out.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?https?:", sheet.read_text()), sheet


def test_a_page_has_three_megabytes_at_most(book):
    sizes = book.made["bytes"]
    assert set(sizes) == set(book.pages)
    assert max(sizes.values()) <= 3_000_000
    frames = {name: (book.out / "frames" / f"{name}.js").stat().st_size for name in frame_files(book.out / "index.html")}
    assert len(frames) == 1 and sizes["index.html"] > sum(frames.values()) > 10_000


def frame_files(page: Path) -> list[str]:
    return re.findall(r'data-frames="(\w+)"', page.read_text())


def test_the_frames_of_each_slider_are_those_that_python_drew(book):
    assert sum(map(len, book.drawn.values())) >= 12
    for path, figures in book.drawn.items():
        files = frame_files(book.out / path.relative_to(ROOT).with_suffix(".html"))
        assert [live.unpacked(book.out / "frames" / f"{file}.js") for file in files] == [
            [tuple(frame) for frame in figure["frames"]] for figure in figures
        ]


def test_a_slider_says_what_its_drawing_function_returns(book):
    """Functions without data, called here, position by position."""
    lesson = {path.name[:2]: figures for path, figures in book.drawn.items() if path.parent.name == "notebooks"}
    for figure, draw in (
        (lesson["00"][0], lambda bits: viz.staircase(int(bits), scale=2.0 ** (1 - int(bits)))),
        (lesson["02"][0], lambda weight, bits: viz.microscope_panel(weight=float(weight), bits=int(bits))),
        (lesson["02"][1], lambda rate, target: viz.descent_panel(rate=float(rate), target=float(target))),
    ):
        positions = [[]]
        for control in figure["controls"]:
            positions = [[*before, choice] for before in positions for choice in control["choices"]]
        assert len(positions) == len(figure["frames"]) > 7
        for position, (picture, said) in zip(positions, figure["frames"]):
            drawn, sentence = draw(*position)
            assert said == sentence and picture == viz.widgets.markup(drawn if isinstance(drawn, str) else viz.png(drawn), said)[0]


def test_the_stored_sentence_of_a_slider_is_that_of_the_frame_where_it_stands(book):
    """Numbers may differ in the last digit that is shown: trained networks round otherwise on other processors."""
    for path, figures in book.drawn.items():
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]
        stored = [
            output.data["text/plain"] for output in outputs if "(Sliders at" in output.get("data", {}).get("text/markdown", "")
        ]
        for sentence, figure in zip(stored, figures, strict=True):
            at = 0
            for control in figure["controls"]:
                at = at * len(control["choices"]) + control["at"]
            words, numbers = split(figure["frames"][at][1])
            assert words == split(sentence)[0]
            assert numbers == pytest.approx(split(sentence)[1], rel=0.02, abs=0.02)


def split(sentence: str) -> tuple[str, list[float]]:
    number = r"-?\d[\d,]*\.?\d*"
    return re.sub(number, "#", sentence), [float(each.replace(",", "")) for each in re.findall(number, sentence)]


def test_the_pose_slider_is_drawn_from_what_lesson_05_kept(book):
    (path,) = (path for path in NOTEBOOKS if path.name.startswith("05_") and path.parent.name == "notebooks")
    (kept,) = (
        o.data[STORED] for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", ()) if STORED in o.get("data", {})
    )
    figure = drawn_again(kept)
    (shown,) = book.drawn[path]
    assert shown["controls"][0]["choices"] == ["2", "4", "8"] and [said for _, said in shown["frames"]] == [
        figure.frame({"bits": bits})[1] for bits in (2, 4, 8)
    ]
    assert frame_files(book.out / "index.html") == frame_files(book.out / "notebooks" / "05_train_pose_tiny.html")


def test_every_question_of_a_lesson_is_on_its_page(book):
    asked = 0
    for path in NOTEBOOKS:
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]
        questions = [found for o in outputs if (found := Prediction.read(o.get("data", {}).get("text/markdown", "")))]
        text = (book.out / path.relative_to(ROOT).with_suffix(".html")).read_text()
        assert text.count('class="question"') == len(questions)
        assert "widgets.predict" not in re.sub("<[^>]+>", "", text), "its source gives the answer away"
        asked += len(questions)
    assert asked > 50


def test_solutions_are_folded_into_lessons():
    from qatcourse.book import pages

    for path in NOTEBOOKS:
        if path.parent.name == "solutions":
            answers = pages.solved(nbformat.read(path, 4))
            assert len(answers) >= 3 and all(code and "report" not in code and "check_" not in code for code in answers.values())


def test_the_page_of_a_lesson_has_each_solution_once_and_closed(book):
    for path in NOTEBOOKS:
        if path.parent.name == "notebooks" and path.name[0].isdigit():
            text = (book.out / path.relative_to(ROOT).with_suffix(".html")).read_text()
            exercises = re.findall(r"<strong>Exercise (\d+)\.", text)
            folded = re.findall(r'<details class="solution" id="solution-(\d+)">', text)
            assert folded == exercises != [], path.name


def test_terms_lead_to_the_glossary(book):
    text = (book.out / "notebooks" / "01_numbers_and_quantizers.html").read_text()
    linked = re.findall(r'<a class="term[^"]*" href="GLOSSARY\.html#(term-[\w-]+)" title="([^"]+)">(?:<[^>]+>)*([^<]+)<', text)
    words = [word for _, _, word in linked]
    assert len(words) == len(set(words)) > 5 and {"scale", "SQNR"} <= set(words)
    known = extension.terms((ROOT / "notebooks" / "GLOSSARY.md").read_text())
    assert all(known[word] == (place, html.unescape(means)) for place, means, word in linked)


def test_formulas_need_no_script(book):
    text = (book.out / "notebooks" / "01_numbers_and_quantizers.html").read_text()
    assert "<math " in text and "<mi>x</mi>" in text and not re.search(r"<script[^>]*mathjax", text, re.IGNORECASE)
