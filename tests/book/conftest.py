"""The book, built once for all of its tests, and what Python drew for each slider while it was built."""

import contextlib
import dataclasses
from pathlib import Path

import pytest

from qatcourse.book import build, frames


@dataclasses.dataclass(frozen=True)
class Book:
    """`out`: the folder; `drawn`: path of a notebook -> its sliders (`frames.positions`) in their order; `made`: see `build`."""

    out: Path
    drawn: dict[Path, list[dict]]
    made: dict

    @property
    def pages(self) -> list[str]:
        return sorted(str(page.relative_to(self.out)) for page in self.out.rglob("*.html"))


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Book:
    drawn, real = {}, frames.of_all

    def watched(notebooks):
        found = real(notebooks)
        drawn.update({path: [figure for shown in cells.values() for figure in shown] for path, cells in found.items()})
        return found

    out = tmp_path_factory.mktemp("site") / "book"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "of_all", watched)
        made = build.build(out)
    return Book(out, drawn, made)


@pytest.fixture
def visit(book, browser):
    """`visit(page)` opens a page of the book from the disk, offline; what a browser would complain of fails the test."""
    with contextlib.ExitStack() as stack:

        def opened(name: str, part: str = "", **options):
            context = browser.new_context(offline=True, **options)
            stack.callback(context.close)
            page = context.new_page()
            page.problems = []
            page.on("console", lambda said: page.problems.append(f"{said.type}: {said.text}"))
            page.on("pageerror", lambda problem: page.problems.append(f"error: {problem}"))
            page.on("requestfailed", lambda asked: page.problems.append(f"not found: {asked.url[-80:]}"))
            page.on("request", lambda asked: inside(asked.url, page.problems))
            page.goto(f"{(book.out / name).as_uri()}{part}")
            return page

        def inside(url: str, problems: list) -> None:
            if not url.startswith((f"{book.out.as_uri()}/", "data:", "blob:")):
                problems.append(f"asked for {url}")

        yield opened
