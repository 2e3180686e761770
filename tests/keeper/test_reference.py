"""The numbers that README and lessons quote can be measured again, here and now."""

import re

import pytest

from qatcourse.keeper import readme, reference


def test_every_number_says_how_it_was_measured():
    stored = reference.load()
    assert stored, "data/reference.json is missing or empty"
    for name, entry in stored.items():
        assert set(entry) == {"value", "tolerance", "unit", "command"}, name
        group = entry["command"].removeprefix("python -m qatcourse.keeper.reference ")
        assert name.startswith(group) and group in reference.GROUPS, name


@pytest.mark.parametrize("group", reference.QUICK_GROUPS)
def test_numbers_measured_again(group):
    found = [f"{n.name}: measured {n.value:.5g}, stored {known}" for n, known in reference.differences([group])]
    assert not found, "\n".join(found)


def test_numbers_of_the_microcontroller_measured_again(cross_compiler):
    test_numbers_measured_again("cortex")


def test_a_wrong_number_is_found(tmp_path, monkeypatch):
    stored = reference.load()
    stored["exact.pose_tiny.weights"]["value"] += 1
    (tmp_path / "reference.json").write_text(__import__("json").dumps(stored))
    known = reference.load(tmp_path / "reference.json")
    monkeypatch.setattr(reference, "load", lambda: known)
    assert [number.name for number, _ in reference.differences(["exact"])] == ["exact.pose_tiny.weights"]


def test_unknown_name_is_refused(capsys):
    assert reference.main(["no.such.number"]) == 2
    assert "no number is called 'no.such.number'" in capsys.readouterr().err


def test_readme_tables_are_the_stored_numbers():
    text = readme.README.read_text()
    for name in readme.SECTIONS:
        assert f"<!-- {name} -->" in text and f"<!-- end {name} -->" in text
    assert readme.filled(text) == text, "run python -m qatcourse.keeper.readme"


def test_readme_names_only_files_that_exist():
    text = readme.README.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (reference.ROOT / target).exists(), target
