"""The book's chapter "Library reference": a page for each room of `qatlib`, for autodoc to fill from the docstrings.

An object has one entry: on the page of the room where its code is, under the path where users import it.
"""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from qatcourse.book.docstrings import inline, joined, ref, rst
from qatcourse.book.public import FURTHER, PAGES, Entry, entries, linked, members, reading, targets

COMMANDS = {"doctor": "qatlib.doctor.__main__", "export": "qatlib.export.__main__"}
INTRODUCTION = """
What the package `qatlib` offers, taken from its docstrings: shapes, units, errors and sources. Each page is a room of the library;
its sections are the modules, in an order to read them.

Shapes are written as (N, C, H, W): batch, channels, rows, columns. Unless a text says otherwise, tensors hold real values, of which
1.0 is 128 integer codes; codes of 8 bits are -128..127. Whatever is refused, the error names the value and a remedy. Examples that
begin with `>>>` are run by the tests.

`from qatlib import ai8x` gives the layers, `import qatlib` the shortest way to the rest:
"""


def write(folder: Path) -> list[str]:
    """Write the chapter's source files into `folder`; returns their names without suffix, `index` first."""
    known = entries()
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"index": _index(known)} | {name: _page(name, known) for name in PAGES}
    for name, lines in texts.items():
        (folder / f"{name}.rst").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(texts)


def _title(text: str, underline: str) -> list[str]:
    return ["", text, underline * len(text), ""]


def _index(known: dict[str, Entry]) -> Iterator[str]:
    yield from [*_title("Library reference", "="), rst(INTRODUCTION)]
    for entry in known.values():
        begins = joined(inspect.getdoc(entry.value).partition("\n\n")[0].splitlines())
        first = inline(begins, lambda code: linked(entry.path, entry.value, code))  # noqa: B023
        yield from (f"- {ref(entry.path, path)}: {first}" for path in [entry.path, *entry.others] if path.count(".") == 1)
    yield from ["", "The rooms:", "", ".. toctree::", "   :maxdepth: 1", "", *(f"   {name}" for name in PAGES)]


def _page(page: str, known: dict[str, Entry]) -> Iterator[str]:
    room = f"qatlib.{page}"
    yield from [*_title(PAGES[page], "="), f".. automodule:: {room}", ""]
    strangers = [(path, entry) for entry in known.values() if entry.page != page for path in [entry.path, *entry.others]]
    refs = [ref(entry.path, path) for path, entry in strangers if path.rpartition(".")[0] == room]
    if refs:
        yield from [f"Offered here, too, and described with its own room: {', '.join(refs)}.", ""]
    if page in COMMANDS:
        yield from [*_title("On the command line", "-"), rst(inspect.getdoc(import_module(COMMANDS[page])))]
    mine = [entry for entry in known.values() if entry.page == page]
    texts = [module for module, names in FURTHER.items() if not names and module.startswith(f"{room}.")]
    for module in sorted(dict.fromkeys([*(entry.home for entry in mine), *texts]), key=reading):
        if module != room:
            yield from [*_title(f"``{module.removeprefix('qatlib.')}``", "-"), f".. automodule:: {module}", ""]
        yield from TABLES.get(module, list)()
        own = [entry for entry in mine if entry.home == module]
        yield from _layers(own) if module.endswith("catalogue") else _objects(own)


def _objects(found: list[Entry]) -> Iterator[str]:
    for entry in found:
        kind = "class" if inspect.isclass(entry.value) else "function"
        yield from [f".. auto{kind}:: {entry.path}"]
        if kind == "class" and members(entry.value):
            yield from ["   :members: " + ", ".join(members(entry.value)), "   :member-order: bysource"]
        yield ""


def written_out(cls: type) -> type:
    """The class whose code a layer of the catalogue's table runs: itself, or the nearest that is no row of the table."""
    return next(base for base in cls.__mro__ if base.__module__ != "qatlib.ai8x")


def _layers(found: list[Entry]) -> Iterator[str]:
    """The catalogue: a section for each class that is written out, with those that preset its arguments; then pools alone."""
    groups = {}
    for entry in found:
        alone = next(iter(inspect.signature(entry.value).parameters)) == "kernel_size"
        groups.setdefault("Pooling alone" if alone else written_out(entry.value).__name__, []).append(entry)
    for title, group in groups.items():
        yield from [*_title(title, "~"), *_objects(group)]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield from [".. list-table::", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        yield from ("   " + ("* - " if i == 0 else "  - ") + inline(cell) for i, cell in enumerate(row))
    yield ""


def _findings() -> Iterator[str]:
    advice = import_module("qatlib.doctor.advice").ADVICE
    return _table(("Finding", "Remedy"), [(name, remedy) for name, (_, _, remedy) in advice.items()])


def _rewrites() -> Iterator[str]:
    rows = import_module("qatlib.port.rewrites").REWRITES.items()
    return _table(("Rewrite", "What happens", "Same values"), [(f"`{n}`", r.what, "yes" if r.exact else "no") for n, r in rows])


def _formula() -> Iterator[str]:
    yield from [
        ".. py:data:: FORMULA",
        "   :module: qatlib.chip.meter",
        "",
        "   " + inline(import_module("qatlib.chip.meter").FORMULA),
        "",
    ]


TABLES = {"qatlib.doctor.advice": _findings, "qatlib.port.rewrites": _rewrites, "qatlib.chip.meter": _formula}


def _docstring(app, what, name, value, options, lines: list[str]) -> None:
    lines[:] = rst("\n".join(lines), lambda code: linked(name, value, code)).splitlines()


def _signature(app, what, name, value, options, signature, returned):
    """A layer of the catalogue's table takes what the class that is written out takes."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    parameters = list(inspect.signature(written_out(value)).parameters.values())
    needed = [str(parameter) for parameter in parameters if parameter.default is parameter.empty and str(parameter) != "**kwargs"]
    return f"({', '.join([*needed, '**kwargs'])})", returned


def _missing(app, env, node, shown):
    """References by any path that imports an object lead to its entry; types of other packages in signatures stay text."""
    if node.get("refdomain") != "py":
        return None
    path = targets().get(node["reftarget"])
    if path:
        return env.get_domain("py").resolve_xref(env, node.get("refdoc"), app.builder, "obj", path, node, shown)
    return shown if node.get("reftype") == "class" else None


def _configure(app, config) -> None:
    config.smartquotes = False  # 'Max' and --network are code, also where they stand in a sentence
    config.autodoc_preserve_defaults = True  # functions as defaults by their names, not their addresses
    config.toc_object_entries_show_parents = "hide"


def setup(app) -> dict[str, bool]:
    """For Sphinx: this module is an extension, which brings autodoc with it."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("config-inited", _configure)
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _missing)
    return {"parallel_read_safe": True}
