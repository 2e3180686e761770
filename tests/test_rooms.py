"""The layout: who may import whom, how large things may get, and where the tests of a room are.

quantizers <- ai8x <- chip <- port <- integer <- export <- doctor <- qatcourse
"""

import ast
from pathlib import Path
from statistics import median

import pytest
from imported import imports

import qatlib

ROOT = Path(__file__).resolve().parents[1]
TOPS = {"qatlib": ROOT / "qatlib", "qatcourse": ROOT / "notebooks" / "qatcourse"}
ORDER = [
    "qatlib.quantizers",
    "qatlib.ai8x",
    "qatlib.chip",
    "qatlib.port",
    "qatlib.integer",
    "qatlib.export",
    "qatlib.doctor",
    "qatcourse",
]
BESIDE = {"qatlib", "qatlib.files", "qatlib.wording"}  # anyone may import these; they import none of the others
ALLOWED = {
    ("qatlib.ai8x", "qatlib.chip.meter"): "the lazy name ai8x.fit: whoever has the layers asks whether they fit the chip",
    ("qatlib.ai8x", "qatlib.port.from_torch"): "the lazy name ai8x.from_torch: where a user looks for it",
    ("qatlib.ai8x", "qatlib.port.names"): "the lazy names of the vendor's module that only files written for it ask for",
    ("qatlib.ai8x", "qatlib.port.images"): "the same, for its data loaders",
    ("qatlib", "qatlib.ai8x"): "the lazy table of what `import qatlib` offers",
    ("qatlib", "qatlib.doctor"): "the same table",
    ("qatlib", "qatlib.export.vendor"): "the same table",
    ("qatlib", "qatlib.integer.checkpoint"): "the same table",
    ("qatlib", "qatlib.integer.convert"): "the same table",
}

LAZY = {f"qatlib.{name}": home for name, home in qatlib._HOMES.items()} | {
    "qatlib.ai8x.fit": "qatlib.chip.meter",
    "qatlib.ai8x.from_torch": "qatlib.port.from_torch",
}


def modules(top: str) -> dict[str, Path]:
    """The files of a package by the names of their modules."""
    files = sorted(TOPS[top].rglob("*.py"))
    return {".".join([top, *path.relative_to(TOPS[top]).with_suffix("").parts]).removesuffix(".__init__"): path for path in files}


MODULES = {name: path for top in TOPS for name, path in modules(top).items()}


def rank(name: str) -> int:
    """The place in ORDER of the room that holds `name`, a module or something in one; -1 for what stands beside the rooms."""
    name = LAZY.get(name, name)
    room = name.partition(".")[0] if name.startswith("qatcourse") else ".".join(name.split(".")[:2])
    return ORDER.index(room) if room in ORDER else -1


def forbidden(sources: dict[str, str], packages=()) -> list[tuple[str, str]]:
    """(module, what it imports) for every import that goes up in ORDER."""
    return [
        (module, name)
        for module, source in sources.items()
        for _, name in imports(source, module, module in packages)
        if name.startswith(("qatlib.", "qatcourse")) and rank(name) > rank(module)
    ]


def test_every_module_stands_in_a_room_or_beside_them():
    assert [name for name in MODULES if rank(name) < 0 and name not in BESIDE] == []


def test_imports_go_one_way_only_and_each_exception_is_one():
    sources = {name: path.read_text() for name, path in MODULES.items()}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert {*forbidden(sources, packages)} == {*ALLOWED}


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("qatlib.chip.meter", "def f():\n    from qatlib.integer import compact", "qatlib.integer.compact"),
        ("qatlib.chip.meter", "def f():\n    import qatlib.integer.compact as c", "qatlib.integer.compact"),
        ("qatlib.chip.meter", "if True:\n    from ..integer.compact import pack", "qatlib.integer.compact.pack"),
        ("qatlib.ai8x", "from ..export import check", "qatlib.export.check"),
        ("qatlib.ai8x.layer", "from qatlib import doctor", "qatlib.doctor"),
        ("qatlib.quantizers", "f = lambda: import_module('qatlib.ai8x')", "qatlib.ai8x"),
        ("qatlib.integer", "_LATER = {'check': 'qatlib.export.check'}", "qatlib.export.check"),
        ("qatlib.integer", "import_module(f'qatlib.export.{name}')", "qatlib.export"),
        ("qatlib.doctor.rules", "def f():\n    import qatcourse", "qatcourse"),
        ("qatlib.doctor.rules", "def f():\n    from qatcourse import viz", "qatcourse.viz"),
        ("qatlib.wording", "def f():\n    from qatlib import quantizers", "qatlib.quantizers"),
        ("qatlib.chip.meter", "def f():\n    from qatlib import diagnose", "qatlib.diagnose"),
        ("qatlib.chip.meter", "import qatlib\nqatlib.quantize_model(3)", "qatlib.quantize_model"),
        ("qatlib.ai8x.layer", "def f():\n    from qatlib.ai8x import fit", "qatlib.ai8x.fit"),
        ("qatlib.files", "from .ai8x import layer", "qatlib.ai8x.layer"),
    ],
)
def test_an_import_the_other_way_is_found_wherever_it_hides(module, line, found):
    assert forbidden({module: line}, {"qatlib.ai8x", "qatlib.integer"}) == [(module, found)]


def test_imports_the_right_way_are_none_of_its_business():
    source = "import torch\nfrom qatlib import ai8x, quantize_model\nfrom qatlib.files import sha256\nx = 'qatlib.ai8x has no name'"
    assert forbidden({"qatlib.export.check": source, "qatcourse.course": source}) == []


def lines(*paths: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def test_the_reading_path_of_a_learner_is_short():
    path = lines(TOPS["qatlib"] / "quantizers.py", *(TOPS["qatlib"] / "ai8x").glob("*.py"))
    assert path < 2000


def test_the_packages_stay_small():
    """The checks hold the tables of wrong and right answers, which grow with every mistake that learners make.

    `port` is what networks from elsewhere need, `book` what pages without a kernel need, and nobody else. The model of the chip is
    a witness: it shares as good as nothing with the planner, and so repeats rules that stand in `limits`.
    """
    parts = {"port": "qatlib", "checks": "qatcourse", "book": "qatcourse"}
    sizes = {top: lines(*modules(top).values()) for top in TOPS}
    sizes |= {part: lines(*(TOPS[top] / part).glob("*.py")) for part, top in parts.items()}
    sizes["model"] = lines(*(TOPS["qatlib"] / "chip" / f"{name}.py" for name in ("simulator", "tool", "refusals")))
    assert sizes["model"] < 740 and sizes["port"] < 1480, sizes
    assert sizes["qatlib"] - sizes["port"] - sizes["model"] < 8150, sizes  # goal: 6,000
    assert sizes["qatcourse"] - sizes["checks"] - sizes["book"] < 8150 and sizes["checks"] < 2950 and sizes["book"] < 1300, sizes


def test_no_file_is_long():
    assert {name: lines(path) for name, path in MODULES.items() if lines(path) > 300} == {}


@pytest.mark.parametrize("top", TOPS)
def test_functions_are_short(top):
    nodes = [node for path in modules(top).values() for node in ast.walk(ast.parse(path.read_text()))]
    lengths = [node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert median(lengths) <= 10


def test_few_modules_lie_beside_the_rooms():
    loose = {top: {path.stem for path in TOPS[top].glob("*.py")} for top in TOPS}
    assert len(loose["qatlib"] - {"__init__", "quantizers"}) <= 2
    assert loose["qatcourse"] == {"__init__", "course", "grade", "mine", "progress", "run", "train_pose_tiny"}


def test_every_room_has_its_folder_of_tests():
    rooms = {path.parent.name for top in TOPS.values() for path in top.glob("*/__init__.py")}
    assert {room for room in rooms if not list((ROOT / "tests" / room).glob("test_*.py"))} == set()
    assert (ROOT / "tests" / "test_quantizers.py").is_file()
