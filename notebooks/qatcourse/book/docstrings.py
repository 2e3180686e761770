"""Docstrings as they are written here -> reStructuredText."""

import re
from collections.abc import Callable, Iterator
from textwrap import dedent


def rst(text: str, link: Callable[[str], str | None] = lambda name: None) -> str:
    """Text as docstrings here have it -> reStructuredText that gives no warning, whatever it holds.

    `code` in single backticks, or the role that `link` gives for it; "- " lists; indented lines and aligned columns as they stand;
    doctests; everything else is plain text, in which `*emphasis*` is the only mark. What is raised begins a paragraph.
    """
    out = []
    for kind, lines in _pieces(text):
        if kind == "text":
            sentences = re.split(r"(?<=[.)]) (?=Raises [A-Z]|Sources?: )", joined(lines))
            out += [inline(part, link) for part in sentences]
        elif kind == "item":
            out.append("- " + inline(joined(lines).removeprefix("- "), link))
        else:
            indent = " " * (len(lines[0]) - len(lines[0].lstrip())) if kind == "doctest" else ""
            language = "pycon" if kind == "doctest" else "default"
            out.append(f".. code-block:: {language}\n\n" + "\n".join("    " + line.removeprefix(indent) for line in lines))
    return "\n\n".join(out) + "\n"


def _pieces(text: str) -> Iterator[tuple[str, list[str]]]:
    """(kind, its lines without common indentation): text, item, doctest or literal."""
    for block in re.split(r"\n[ \t]*\n", text.expandtabs(4).strip("\n")):
        lines, kind, piece = [line for line in block.splitlines() if line.strip()], "", []
        aligned = sum(bool(re.search(r"\S {2,}\S", line)) for line in lines) > 1
        for line in lines:
            new = _kind(line, kind, aligned)
            if piece and (new != kind or new == "item" and line[0] == "-"):
                yield kind, dedent("\n".join(piece)).splitlines()
                piece = []
            kind, piece = new, [*piece, line]
        yield from [(kind, dedent("\n".join(piece)).splitlines())] if piece else []


def joined(lines: list[str]) -> str:
    """One line of several; a word that is broken at its hyphen is whole again."""
    return re.sub(r"(?<=[a-z]-)\n(?=[a-z])", "", "\n".join(map(str.strip, lines))).replace("\n", " ")


def _kind(line: str, before: str, aligned: bool) -> str:
    if before == "doctest" or re.match(r" *>>>( |$)", line):
        return "doctest"
    if aligned:
        return "literal"
    if line.startswith("- "):
        return "item"
    return "text" if line[0] != " " else before if before == "item" else "literal"


_MARKS = re.compile(
    r"(?P<ticks>`+)(?P<code>.+?)(?P=ticks)(?!`)|(?<![\w*])\*(?P<emphasis>\w([^*`]*\w)?)\*(?![\w*])"
    r"|\b(?P<error>[A-Z]\w*(Error|Exception))\b|^(?P<strong>Raises)\b"
)


def inline(text: str, link: Callable[[str], str | None] = lambda name: None) -> str:
    """One paragraph of `rst`, on one line, so that only its beginning could be taken for other markup."""
    out, end = "", 0
    for found in _MARKS.finditer(text):
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        out += _escaped(text[end : found.start()]) + ("\\ " if before.strip() else "")
        out += _marked(found, link) + ("\\ " if after.strip() else "")
        end = found.end()
    out += _escaped(text[end:])
    return out if re.match(r"\w(?![\w#]*[.)]\s)", out) else "\\ " + out


def _marked(found: re.Match, link: Callable[[str], str | None]) -> str:
    code = (found["code"] or found["error"] or "").strip()
    if "`" in code or code.endswith("\\"):  # a literal would end elsewhere
        return _escaped(found[0])
    if code:
        path = link(code)
        return ref(path, code) if path else f"``{code}``"
    return f"*{found['emphasis']}*" if found["emphasis"] else f"**{found['strong']}**" if found["strong"] else _escaped(found[0])


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_|`])", r"\\\1", text).replace("::", ":\\:")


def ref(path: str, shown: str = "") -> str:
    return f":py:obj:`{shown or path.rpartition('.')[2]} <{path}>`"
