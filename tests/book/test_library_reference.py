"""The chapter "Library reference": complete, each object once, every docstring good, and pages that Sphinx makes without a word."""

import ast
import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qatlib
from qatcourse.book.docstrings import rst
from qatcourse.book.public import PAGES, entries, linked
from qatcourse.book.reference import write

pytest.importorskip("furo")
CONF = 'extensions = ["myst_nb", "qatcourse.book.reference"]\nhtml_theme = "furo"\nhighlight_language = "none"\n'
INDEX = "# Book\n\n{py:obj}`qatlib.quantize_model`\n\n```{toctree}\nreference/index\n```\n"


def public() -> dict[str, object]:
    """What users can import, by path: of `qatlib`, its rooms, and the modules beside them; not computed by the chapter's code."""
    found = {}
    for module in [qatlib, *(import_module(f"qatlib.{path.stem}") for path in Path(qatlib.__file__).parent.glob("[a-z]*"))]:
        names = getattr(module, "__all__", None)
        if names is None:
            body = ast.parse(Path(module.__file__).read_text()).body
            names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"]
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in names}
    vendors = import_module("qatlib.port.names").OFFERED
    found |= {f"qatlib.ai8x.{name}": getattr(qatlib.ai8x, name) for name in vendors}
    return {path: value for path, value in found.items() if inspect.isclass(value) or inspect.isroutine(value)}


def described(folder: Path) -> dict[str, list[str]]:
    """The ids of the entries on each page of the built chapter."""
    pages = {page.stem: page.read_text() for page in folder.glob("*.html")}
    return {name: re.findall(r'<dt class="sig[^"]*" id="([^"]+)"', text) for name, text in pages.items()}


def missing_or_twice(folder: Path) -> list[str]:
    """Public objects that have no entry in the chapter or several, and ids that stand twice."""
    ids = [name for names in described(folder).values() for name in names]
    values = [entries()[name].value for name in ids if name in entries()]
    return [path for path, value in public().items() if values.count(value) != 1] + [name for name in ids if ids.count(name) > 1]


@pytest.fixture(scope="module")
def chapter(tmp_path_factory) -> Path:
    """The chapter in a project of its own, built with every warning an error, also that of a reference that leads nowhere."""
    from sphinx.cmd.build import main

    folder = tmp_path_factory.mktemp("reference")
    for name, text in {"conf.py": CONF, "index.md": INDEX}.items():
        (folder / name).write_text(text)
    assert write(folder / "reference") == ["index", *PAGES]
    assert main(["-n", "-W", "--keep-going", "-q", "-b", "html", str(folder), str(folder / "html")]) == 0
    return folder / "html" / "reference"


def test_every_public_object_has_one_entry(chapter):
    assert len(public()) > 150
    assert missing_or_twice(chapter) == []


def test_a_missing_entry_and_a_second_one_are_seen(chapter, tmp_path):
    for page in chapter.glob("*.html"):
        text = page.read_text().replace('id="qatlib.chip.fit"', "").replace('id="qatlib.files.load"', 'id="qatlib.files.save"')
        (tmp_path / page.name).write_text(text)
    wrong = {"qatlib.chip.fit", "qatlib.ai8x.fit", "qatlib.files.load", "qatlib.files.save"}
    assert {*missing_or_twice(tmp_path)} == wrong


def test_entries_stand_in_their_room_under_the_path_of_users(chapter):
    ids = described(chapter)
    assert {"qatlib.ai8x.start_qat", "qatlib.ai8x.FusedMaxPoolConv2dBNReLU"} <= {*ids["ai8x"]}
    assert {"qatlib.integer.quantize_model", "qatlib.save_checkpoint", "qatlib.integer.CompactModel.load"} <= {*ids["integer"]}
    assert "qatlib.ai8x.from_torch" in ids["port"] and "qatlib.chip.fit" in ids["chip"] and "qatlib.wording.short" in ids["wording"]
    noise = {"state_dict", "train", "parameters", "backward", "extra_repr", "zero_grad"}
    assert [name for names in ids.values() for name in names if name.rpartition(".")[2] in noise] == []


def test_any_path_of_an_object_links_to_its_entry(chapter):
    assert 'href="reference/integer.html#qatlib.integer.quantize_model"' in (chapter.parent / "index.html").read_text()
    assert 'href="chip.html#qatlib.chip.fit"' in (chapter / "ai8x.html").read_text()


def test_pages_are_the_same_whenever_they_are_made(chapter):
    texts = [page.read_text() for page in chapter.glob("*.html")]
    assert not [found for text in texts for found in re.findall(r".{40}\b0x[0-9a-f]{9,}", text)]


@pytest.mark.parametrize("path", entries())
def test_every_docstring_begins_with_a_sentence(path):
    first = (inspect.getdoc(entries()[path].value) or "").partition("\n\n")[0]
    assert len(first.split()) > 1 and first.endswith((".", "?")), first


def test_every_example_is_collected_and_each_page_that_has_some_runs():
    collected, shown = {}, {}
    for entry in entries().values():
        if ">>> " in (entry.value.__doc__ or ""):
            shown.setdefault(entry.page, []).append(f"{entry.home}.{entry.value.__name__}")
    for module in {entry.home for entry in entries().values()}:
        tests = doctest.DocTestFinder().find(import_module(module))
        collected |= {test.name: test for test in tests if test.examples}
    assert {*shown} >= {"quantizers", "ai8x", "port", "integer", "wording"}
    assert [name for names in shown.values() for name in names if name not in collected] == []
    for names in shown.values():
        result = doctest.DocTestRunner(verbose=False).run(collected[names[0]])
        assert result.attempted and not result.failed


@pytest.mark.parametrize(
    ("name", "code", "target"),
    [
        ("qatlib.integer.QuantizedModel", "engine.narrow", "qatlib.integer.engine.narrow"),
        ("qatlib.integer.CompactModel", "qatlib.chip.operations", "qatlib.chip.operations"),
        ("qatlib.chip.Fit", "plot()", "qatlib.chip.Fit.plot"),
        ("qatlib.ai8x.QATPolicy", "load_policy({'weight_bits': 8})", "qatlib.ai8x.load_policy"),
        ("qatlib.ai8x.from_torch", "start_qat", "qatlib.ai8x.start_qat"),
        ("qatlib.ai8x.start_qat", "ai8x.fit", "qatlib.chip.fit"),
        ("qatlib.ai8x.start_qat", "start_qat", None),  # itself
        ("qatlib.doctor.Diagnosis", "layers", None),  # its own field, not the function of that name
        ("qatlib.ai8x.AvgPool2d", "stride", None),
        ("qatlib.ai8x.start_qat", "load", None),
        ("qatlib.ai8x.start_qat", "x = a*b", None),
    ],
)
def test_code_links_to_what_it_names_and_to_nothing_else(name, code, target):
    assert linked(name, entries()[name].value, code) == target


NASTY = [
    "`a_b`",
    "``",
    "`",
    "*",
    "**",
    "_",
    "a_",
    "|",
    "|x|",
    "\\",
    "::",
    ":role:`x`",
    ".. x",
    "- ",
    "-",
    "1. ",
    "(a) ",
    "=====",
    "+--+",
] + [">>> 1", ">>>", "[1]_", "<http://a_b>", "    ", "  ", " ", "\n", "\n\n", "word", "Raises ValueError", "é", "\t", ":x:", "~"]


@given(st.lists(st.sampled_from(NASTY), max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_whatever_a_docstring_holds_is_no_bad_markup(text):
    from docutils.core import publish_doctree

    tree = publish_doctree(
        rst(text), settings_overrides={"report_level": 5, "syntax_highlight": "none", "line_length_limit": 10**6}
    )
    assert [str(message) for message in tree.findall() if message.tagname in ("system_message", "problematic")] == []
    assert tree.astext().count("word") == text.count("word")


def test_docstrings_keep_their_form():
    text = """First: `code`, *term*, a*b*c and w_x|y|. Raises ValueError for `x`.

    - one
      line
    - two::

        n = 1    # indented
        m = 2

    bits: 8      # aligned
    shift: 1.0   # columns
    """
    assert rst(inspect.cleandoc(text)).split("\n\n") == [
        "First: ``code``\\ , *term*\\ , a\\*b\\*c and w\\_x\\|y\\|.",
        "\\ **Raises** ``ValueError`` for ``x``\\ .",
        "- one line",
        "- two:\\:",
        ".. code-block:: default",
        "    n = 1    # indented\n    m = 2",
        ".. code-block:: default",
        "    bits: 8      # aligned\n    shift: 1.0   # columns\n",
    ]
