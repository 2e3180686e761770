"""What Sphinx lacks: formulas as MathML, drawn without a script, and the first mention of a term as a link to its meaning."""

import posixpath
import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.transforms.post_transforms import SphinxPostTransform

GLOSSARY = "notebooks/GLOSSARY"
ROW = re.compile(r"^\| (?:<span[^>]*></span>)?(?P<words>[^|]+) \| (?P<means>[^|]+) \|", re.MULTILINE)


def terms(text: str) -> dict[str, tuple[str, str]]:
    """term -> (anchor, meaning) of the glossary's rows; single letters and symbols are left out, since they mean other things too.

    >>> terms("| *q*, code | the integer that is stored | 01 |")
    {'code': ('term-q-code', 'the integer that is stored')}
    """
    found = {}
    for row in ROW.finditer(text):
        for word in re.split(r",(?![^(]*\))", row["words"]):
            if len(word := re.sub(r"[*`]", "", word).strip()) > 2 and row["means"].strip("-") and row["words"] != "Symbol or word":
                found[word] = anchor(row["words"]), re.sub(r"[*`]", "", row["means"]).strip()
    return found


def anchor(words: str) -> str:
    return "term-" + re.sub(r"\W+", "-", words.lower()).strip("-")


def anchored(text: str) -> str:
    """The glossary with an anchor at each row."""
    return ROW.sub(lambda row: row[0].replace("| ", f'| <span id="{anchor(row["words"])}"></span>', 1), text)


class Terms(SphinxPostTransform):
    """In each lesson, the first mention of each term links to the glossary; the meaning shows when the pointer rests on it."""

    default_priority = 800
    formats = ("html",)

    def run(self, **options) -> None:
        name = self.env.docname
        if not name.startswith("notebooks/") or name == GLOSSARY:
            return
        if not (known := terms((Path(self.env.srcdir) / f"{GLOSSARY}.md").read_text())):
            return
        words = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, sorted(known, key=len, reverse=True))) + r")(?=s?(?![\w-]))")
        seen: set[str] = set()
        for paragraph in list(self.document.findall(nodes.paragraph)):
            for text in list(paragraph.findall(nodes.Text)):
                if not _quiet(text.parent, paragraph):
                    self._link(text, words, known, seen)

    def _link(self, text: nodes.Text, words: re.Pattern, known: dict, seen: set[str]) -> None:
        whole = isinstance(text.parent, nodes.literal)
        parts, end = [], 0
        for found in [words.fullmatch(text)] if whole else words.finditer(text):
            if not found or found[1] in seen:
                continue
            seen.add(found[1])
            place, means = known[found[1]]
            target = f"{posixpath.relpath(GLOSSARY, posixpath.dirname(self.env.docname))}.html#{place}"
            link = nodes.reference("", "", refuri=target, internal=True, reftitle=means, classes=["term"])
            if whole:
                inner = text.parent.deepcopy()
                link += inner
                text.parent.parent.replace(text.parent, link)
                return
            link += nodes.Text(found[1])
            parts += [nodes.Text(text[end : found.start()]), link]
            end = found.end()
        if parts:
            text.parent.replace(text, [part for part in [*parts, nodes.Text(text[end:])] if part != ""])


def _quiet(node, paragraph) -> bool:
    """Whether text below `node` must stay as it is: links, titles, formulas, text that stands in a table of contents."""
    while node is not paragraph:
        if isinstance(node, nodes.reference | nodes.math | nodes.title):
            return True
        node = node.parent
    return False


def formula(writer, node) -> None:
    """Write a formula as MathML. Raises ValueError with the page's name for TeX that docutils does not know."""
    block = isinstance(node, nodes.math_block)
    try:
        drawn = tex2mathml(node.astext(), as_block=block)
    except MathError as problem:
        raise ValueError(f"{writer.builder.current_docname}: the formula {node.astext()!r} cannot be drawn: {problem}") from None
    writer.body.append(f'<div class="formula">{drawn}</div>' if block else drawn)
    raise nodes.SkipNode


def setup(app) -> dict:
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.add_post_transform(Terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
