"""What a learner writes is kept by name, used by later lessons, edited by hand; nothing that a learner writes breaks that."""

import ast
import importlib.util
import json

import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from qatcourse import mine
from qatcourse.checks import lesson01, lesson02

QUANTIZE = """
def my_quantize(x, scale, bit_width):
    half = 2 ** (bit_width - 1)
    return torch.floor(x / scale + 0.5).clamp(-half, half - 1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QATCOURSE_MINE", str(tmp_path))
    return tmp_path


@pytest.fixture
def notebook(folder):
    """Runs cells like a notebook's, in one kernel; gives the value of a cell's last line."""
    shell = InteractiveShell.instance()

    def run(cell):
        result = shell.run_cell("import torch\nfrom qatcourse.checks import lesson01, lesson02\n" if cell is None else cell)
        result.raise_error()
        return result.result

    run(None)
    yield run
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


def test_outside_of_a_notebook_nothing_is_kept(folder):
    assert lesson01.check_quantize(lesson01.check_quantize.reference).ok
    assert not list(folder.iterdir()) and mine.passed() == {}


def test_a_piece_that_passes_is_kept_readable_and_used_later(notebook, folder, capsys):
    notebook(QUANTIZE)
    report = notebook("lesson01.check_quantize(my_quantize)")
    assert report.ok and "Kept as my_quantize in mine.py." in report.message
    text = (folder / "mine.py").read_text()
    assert text == f"{mine.HEADER}\n\nimport torch\n\n\n{QUANTIZE.strip()}\n"
    assert mine.passed() == {"01": ["my_quantize"]}
    kept = mine.piece("my_quantize")
    assert "my_quantize: yours, from mine.py." in capsys.readouterr().out
    assert kept(torch.tensor([0.3]), 0.25, 3).tolist() == [1.0]


def test_what_does_not_pass_is_not_kept(notebook, folder):
    notebook("def my_quantize(x, scale, bit_width):\n    return torch.round(x / scale)")
    assert not notebook("lesson01.check_quantize(my_quantize)").ok and not list(folder.iterdir())


def test_without_a_piece_of_their_own_learners_get_the_solutions(folder, capsys):
    quantize, through = mine.piece("my_quantize", "my_straight_through")
    out = capsys.readouterr().out
    assert "my_quantize, my_straight_through: the solution's, until yours passes in lesson 01, 02." in out
    assert lesson01.check_quantize.judge(quantize).ok and lesson02.check_straight_through.judge(through).ok


def test_the_same_pieces_are_the_same_objects_and_serve_each_other(folder):
    assert mine.piece("MyLayer") is mine.piece("MyLayer")
    (folder / "mine.py").write_text("def my_shift(weights):\n    return weights.abs().max().log2().ceil()\n")
    assert mine.piece("my_weight_shift").__globals__["my_shift"] is mine.piece("my_shift")


def test_a_piece_is_checked_once_and_again_when_its_text_changes(folder, monkeypatch):
    judged, judge = [], lesson01.check_quantize.judge
    monkeypatch.setattr(lesson01.check_quantize, "judge", lambda answer: (judged.append(answer), judge(answer))[1])
    first, second = (QUANTIZE.replace("half", name) for name in ("checked_first", "checked_second"))  # no other test has these
    for text, times in ((first, 1), (first, 1), (second, 2)):
        (folder / "mine.py").write_text(f"import torch\n{text}")
        mine.piece("my_quantize")
        assert len(judged) == times


def test_running_the_solutions_writes_nothing_over_them(notebook, monkeypatch):
    before = mine.solution().read_text()
    monkeypatch.setenv("QATCOURSE_MINE", str(mine.solution().parent))
    monkeypatch.setattr(mine, "write_atomic", lambda path, text: None)  # the progress of a keeper
    notebook(QUANTIZE)
    report = notebook("lesson01.check_quantize(my_quantize)")
    assert report.ok and "ept" not in report.message and mine.solution().read_text() == before


def test_a_piece_written_again_replaces_the_old_one_in_place(notebook, folder):
    notebook(QUANTIZE)
    notebook("lesson01.check_quantize(my_quantize)")
    (folder / "mine.py").write_text((folder / "mine.py").read_text() + "\n\n# mine alone\nextra = 3\n# the end\n")
    notebook(QUANTIZE.replace("half", "h"))
    notebook("lesson01.check_quantize(my_quantize)")
    text = (folder / "mine.py").read_text()
    assert text.count("def my_quantize") == 1 and "half" not in text
    assert text.index("def my_quantize") < text.index("# mine alone\nextra = 3") < text.index("# the end")


def test_helpers_imports_and_constants_of_the_notebook_come_along(notebook, folder):
    notebook("import numpy as np\nfrom torch import floor as down\nHALF = 0.5")
    notebook("def rounded(v):\n    return down(v + HALF)")
    notebook("def quant(x, scale, bits):\n    h = np.power(2, bits - 1).item()\n    return rounded(x / scale).clamp(-h, h - 1)")
    assert "Kept" in notebook("lesson01.check_quantize(quant)").message
    spec = importlib.util.spec_from_file_location("kept", folder / "mine.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    assert module.my_quantize(torch.tensor([9.0]), 1, 3).item() == 3
    text = (folder / "mine.py").read_text()
    lines = ("import numpy as np", "from torch import floor as down", "HALF = 0.5", "my_quantize = quant")
    assert all(line in text for line in lines)


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("half = {8: 128, 4: 8, 3: 4}\ndef my_quantize(x, s, b):\n    return torch.floor(x / s + 0.5).clamp(-half[b], half[b] - 1)",
         "name 'half' is not defined"),
        ("import functools\nmy_quantize = functools.partial(lesson01.check_quantize.reference)", "as a function or a class"),
        ("exec('def my_quantize(x, s, b): return torch.floor(x / s + 0.5).clamp(-2**(b-1), 2**(b-1) - 1)')",
         "source cannot be found"),
    ],
)  # fmt: skip
def test_what_needs_this_notebook_passes_but_is_not_kept_and_says_why(notebook, folder, cell, why):
    notebook(cell)
    report = notebook("lesson01.check_quantize(my_quantize)")
    assert report.ok and "Not kept" in report.message and why in report.message, report
    assert not (folder / "mine.py").exists() and mine.passed() == {"01": ["my_quantize"]}


def test_a_lambda_and_a_decorated_function_are_kept(notebook, folder):
    notebook("my_quantize = lambda x, s, b: torch.floor(x / s + 0.5).clamp(-(2 ** (b - 1)), 2 ** (b - 1) - 1)")
    assert "Kept" in notebook("lesson01.check_quantize(my_quantize)").message
    notebook("@torch.no_grad()" + QUANTIZE)
    assert "Kept" in notebook("lesson01.check_quantize(my_quantize)").message
    assert "@torch.no_grad()\ndef my_quantize" in (folder / "mine.py").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def my_quantize(x, scale, bits):\n    return x", "is not used: codes are whole numbers"),
        ("def my_quantize(x, scale, bits:\n    return x", "cannot be read"),
        ("1 / 0", "ZeroDivisionError"),
        ("def my_quantize(x):\n    return x", "TypeError"),
    ],
)
def test_a_piece_that_was_spoiled_by_hand_is_named_and_the_solutions_is_used(folder, capsys, text, said):
    (folder / "mine.py").write_text(text)
    assert lesson01.check_quantize.judge(mine.piece("my_quantize")).ok
    assert said in capsys.readouterr().out


def test_a_broken_file_is_never_written_over(notebook, folder):
    (folder / "mine.py").write_text("def broken(:\n")
    notebook(QUANTIZE)
    assert "Not kept: mine.py cannot be read" in notebook("lesson01.check_quantize(my_quantize)").message
    assert (folder / "mine.py").read_text() == "def broken(:\n"


def test_an_unknown_piece_is_refused_by_name():
    with pytest.raises(ValueError, match="'my_quantise' is no piece; the pieces are my_quantize"):
        mine.piece("my_quantise")


def test_a_broken_record_counts_as_nothing_and_is_mended_by_the_next_pass(notebook, folder):
    for text in ("{", "[]", '{"01": 3}', '{"01": [3]}'):
        (folder / "progress.json").write_text(text)
        assert not mine.passed().get("01")
    notebook(QUANTIZE)
    notebook("lesson01.check_quantize(my_quantize)")
    assert json.loads((folder / "progress.json").read_text()) == {"01": ["my_quantize"]}


def test_the_solutions_pieces_are_those_that_their_notebooks_write():
    """One text in two places: the cells of the solutions, and `solutions/mine.py`, which lessons fall back on."""
    told = {node.name: ast.dump(node) for node in ast.parse(mine.solution().read_text()).body if hasattr(node, "name")}
    written = {}
    for name, check in mine.pieces().items():
        (path,) = mine.solution().parent.glob(f"{check.lesson}_*.ipynb")
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        nodes = [node for cell in cells for node in ast.parse(cell).body if getattr(node, "name", "") == name]
        written[name] = ast.dump(nodes[-1]) if nodes else "missing"
    assert {name for name in told if written.get(name) != told[name]} == set()
    assert [*told] == [*mine.pieces()]
