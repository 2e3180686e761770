"""The pages that Sphinx made: its warnings by cell, names that the theme forgets, links that lead nowhere, bytes of a page."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

from qatcourse.book.frames import place

PAGE_BYTES = 3_000_000
NAMED = (
    ('<aside class="sidebar-drawer">', '<aside class="sidebar-drawer" aria-label="Pages">'),
    ('<aside class="toc-drawer([^"]*)">', r'<aside class="toc-drawer\1" aria-label="On this page">'),
    ('role="heading">', 'role="heading" aria-level="2">'),
    ('<div id="search-results">', '<h1>Search</h1><div id="search-results">'),
    ("<th[^>]*>(<p></p>)?</th>", "<td></td>"),
)


def cell(notebook: Path, k: int, name: str) -> str:
    """How an error names a cell of a staged notebook. Its cells remember their place, since solutions were folded in between."""
    found = json.loads(notebook.read_text())["cells"][k]
    return place(Path(name), found["metadata"]["index"], "".join(found["source"]))


def readable(warnings: str, stage: Path) -> list[str]:
    """The lines of Sphinx's warnings, with the notebook's cell instead of myst-nb's line, and without the folder of this build."""

    def located(found: re.Match) -> str:
        return cell(stage / found[1], int(found[2]) // 10_000 - 1, found[1])

    text = re.sub(r"\x1b\[[0-9;]*m", "", warnings).replace(f"{stage}/", "")
    return [re.sub(r"^(\S+\.ipynb):(\d{5,})", located, line) for line in text.splitlines() if line.strip()]


def name_parts(out: Path) -> None:
    """Give names to what the theme leaves without: landmarks, captions, the search page's heading; an empty cell heads nothing."""
    for page in out.rglob("*.html"):
        text = page.read_text()
        for pattern, named in NAMED:
            text = re.sub(pattern, named, text)
        page.write_text(text)


def links(out: Path, stage: Path) -> None:
    """Raises ValueError, with page or cell, for links that lead to no file or to no part of a page."""
    texts = {page.resolve(): page.read_text() for page in sorted(out.rglob("*.html"))}
    parts = {page: {"", *re.findall(r'\b(?:id|name)="([^"]+)"', text)} for page, text in texts.items()}
    dead = []
    for page, text in texts.items():
        for link in dict.fromkeys(re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', text)):
            if re.match("[a-z]+:", link):
                continue
            name, _, part = unquote(link).partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.is_file() or part not in parts.get(target, {part}):
                dead.append(f"{_origin(page.relative_to(out.resolve()), link, stage)}: the link {link} leads nowhere")
    if dead:
        raise ValueError("\n".join(dead[:20]))


def _origin(page: Path, link: str, stage: Path) -> str:
    """The cell that holds `link`, or the page where no cell does."""
    notebook = stage / page.with_suffix(".ipynb")
    cells = json.loads(notebook.read_text())["cells"] if notebook.is_file() else []
    k = next((k for k, each in enumerate(cells) if link in json.dumps(each).replace('\\\\"', '"')), None)
    return str(page) if k is None else cell(notebook, k, notebook.name)


def weights(out: Path) -> dict[str, int]:
    """page -> bytes that a browser loads for it, the search index aside. Raises ValueError for a page above PAGE_BYTES."""
    sizes = {}
    for page in sorted(out.rglob("*.html")):
        text = page.read_text()
        parts = set(re.findall(r'<(?:script|img|link)[^>]*?(?:src|href)="([^"#?:]+)', text))
        files = {(page.parent / part).resolve() for part in parts if not part.endswith(".html")}
        sizes[str(page.relative_to(out))] = page.stat().st_size + sum(file.stat().st_size for file in files if file.is_file())
    if heavy := {name: size for name, size in sizes.items() if size > PAGE_BYTES}:
        raise ValueError("; ".join(f"{name} has {size:,} bytes, more than {PAGE_BYTES:,}" for name, size in heavy.items()))
    return sizes
