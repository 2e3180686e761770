"""`make run`: what is refused before anything starts, and how a lesson is executed. The lessons themselves run under nbval."""

import json

import nbformat
import pytest

from qatcourse import run as command
from qatcourse import train_pose_tiny
from qatcourse.labs import compare

NAMES = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}


def notebook(folder, name, code, parameters="run = ''"):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    book = nbformat.v4.new_notebook(cells=cells, metadata=NAMES)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.ipynb").write_text(nbformat.writes(book))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--weight-bits", "3"], "weight_bits is 3; choose 1, 2, 4 or 8"),
        (["--preset", "huge"], "preset 'huge' is unknown"),
        (["--data", "lsp:/no/such/folder"], "/no/such/folder"),
        (["--data", "photos"], "data 'photos' is unknown"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_unusable_settings_are_refused_before_any_work(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("QATLIB_PRESET", raising=False)
    out = tmp_path / "out"
    assert command.main([*arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("run: ") and said in error and error.count("\n") == 1
    assert not out.exists()


def test_an_unknown_preset_in_the_environment_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QATLIB_PRESET", "huge")
    assert command.main(["--preset", "quick", "--out", str(tmp_path / "out")]) == 2
    said, error = capsys.readouterr().err.splitlines()
    assert said == "QATLIB_PRESET=huge is set: it goes before the preset 'quick'; unset it to choose yourself"
    assert "'huge'" in error
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "QATLIB_PRESET" in capsys.readouterr().out


@pytest.mark.parametrize(
    "main, arguments", [(command.main, []), (command.main, ["--data", "cats"]), (train_pose_tiny.main, ["--data", "lsp:/no"])]
)
def test_a_refused_command_leaves_nothing_in_its_folder(main, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("QATLIB_PRESET", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") <= 2 and not list(tmp_path.iterdir())


def test_outside_of_the_project_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="top folder of the project"):
        command.execute("05_train_pose_tiny", tmp_path, {})


def test_a_parameter_that_the_lesson_does_not_have_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook(tmp_path / "notebooks", "07_export_int8", "print(run)")
    with pytest.raises(ValueError, match=r"no parameters \['rum'\]"):
        command.execute("07_export_int8", tmp_path, {"rum": "x"})


def test_a_lesson_is_executed_with_its_parameters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook(tmp_path / "notebooks", "07_export_int8", "print('got', run)")
    done = nbformat.read(command.execute("07_export_int8", tmp_path, {"run": "here"}), 4)
    printed = [output["text"] for cell in done.cells if cell.cell_type == "code" for output in cell.outputs if "text" in output]
    assert printed == ["got here\n"]


def test_a_failing_cell_is_reported_with_the_place_to_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook(tmp_path / "notebooks", "07_export_int8", "raise ValueError('no wind')")
    with pytest.raises(RuntimeError, match="ValueError: no wind.*07_export_int8.ipynb"):
        command.execute("07_export_int8", tmp_path, {})
    assert (tmp_path / "07_export_int8.ipynb").is_file()


def test_table_and_paths_are_printed_last(tmp_path, monkeypatch, capsys):
    row = {"version": "QAT", "weight_bits": 8, "pck": 0.5, "pckh": 0.6, "pixel_error": 3.25, "bytes": 12345}

    def write(lesson, folder, parameters):
        (folder / "comparison.json").write_text(json.dumps([row]))
        (folder / "export").mkdir(exist_ok=True)
        (folder / "export" / "model.onnx").write_bytes(b"12345")

    monkeypatch.setattr(command, "execute", write)
    monkeypatch.setenv("QATLIB_PRESET", "smoke")
    assert command.main(["--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert compare.table([compare.Version(**row)]) in shown
    assert shown.rstrip().endswith("export/") and "          5 bytes" in shown
    assert shown.index("12,345") < shown.index("comparison.json")
