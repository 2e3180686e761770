"""One list of versions serves pip, make and conda; and the set-up says in a sentence what it lacks."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from imported import canonical, closure, imports
from packaging.requirements import Requirement
from rattler import MatchSpec, Version

from qatcourse.sweep.worker import environment
from qatlib.wording import SHORT_SPIN, command

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip() and line[0] != "#"]
BASH, MAKE = shutil.which("bash"), shutil.which("make")


def pip_arguments() -> tuple[str, str]:
    """The constraints file and the editable requirement that the Makefile installs."""
    return re.search(r"pip install .*-c (\S+) -e '(\S+)'", (ROOT / "Makefile").read_text()).groups()


def test_every_pin_is_exact_and_torch_names_no_build():
    for pin in PINS:
        (clause,) = pin.specifier
        assert clause.operator == "==" and "+" not in clause.version and "*" not in clause.version, pin
    names = [canonical(pin.name) for pin in PINS]
    assert len(set(names)) == len(names) and "torch" in names


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_every_dependency_has_a_pin_inside_its_range(extra):
    pins = {canonical(pin.name): next(iter(pin.specifier)).version for pin in PINS}
    for text in PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]:
        wanted = Requirement(text)
        if wanted.name == PROJECT["name"]:
            assert wanted.extras <= set(PROJECT["optional-dependencies"])
            continue
        assert canonical(wanted.name) in pins, f"{wanted.name} has no pin in constraints.txt"
        assert wanted.specifier.contains(pins[canonical(wanted.name)]), f"the pin of {wanted} is outside its range"


def test_the_readme_installs_what_the_makefile_installs():
    constraints, editable = pip_arguments()
    assert f"pip install -c {constraints} -e '{editable}'" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "data/README.md", "notebooks/ROOMS.md", "notebooks/STYLE.md"])
def test_links_lead_to_files_and_commands_to_modules(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!\w+:)([^)#]+)", text)
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []
    modules = set(re.findall(r"python -m ((?:qatlib|qatcourse)[\w.]*)", text))
    assert [module for module in modules if find_spec(module) is None] == []
    scripts = re.findall(r"python (tests/[\w/]+\.py)", text)
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def needed(extras: tuple[str, ...]) -> set[str]:
    """The installed distributions that the project needs with these extras."""
    texts, found = list(PROJECT["dependencies"]), {}
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    for wanted in map(Requirement, texts):
        if wanted.name == PROJECT["name"]:
            found |= dict.fromkeys(needed(tuple(wanted.extras)))
        else:
            found |= closure(str(wanted))
    return set(found)


@pytest.mark.parametrize(
    ("folder", "extras"), [("qatlib", ("export",)), ("notebooks", ("cluster", "book")), ("tests", ("cluster", "test"))]
)
def test_what_a_folder_imports_is_what_its_extras_install(folder, extras):
    """Or what comes with it: nbclient with papermill, IPython with JupyterLab."""
    own = {"qatlib", "qatcourse", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    names = {name.partition(".")[0] for path in (ROOT / folder).rglob("*.py") for _, name in imports(path.read_text(), path.stem)}
    sources, installed = packages_distributions(), needed(extras)
    foreign = {name: {canonical(source) for source in sources.get(name, [name])} for name in names - own - sys.stdlib_module_names}
    drawing = {"matplotlib"} if folder == "qatlib" else set()  # only Fit.plot, which names the extra that it needs
    assert {name for name, possible in foreign.items() if not possible & installed} == drawing


def test_the_map_counts_what_an_extra_adds():
    """Other versions need other packages: up to three more or less. Those of s3 are not installed here."""
    text = (ROOT / "notebooks" / "ROOMS.md").read_text()
    told = {name: int(count) for name, count in re.findall(r"^\| `(?:'\.\[)?([\w .]+?)(?:\]')?` \|[^|]*\| (\d+)", text, re.M)}
    before = {"pip install .": None, "export": (), "course": (), "cluster": ("course",), "book": ("course",)}
    before["test"] = ("cluster", "book")
    assert [*told] == [*before][:4] + ["s3", "book", "test"]
    for name, others in before.items():
        added = needed(()) if others is None else needed((*others, name)) - needed(others)
        assert abs(told[name] - len(added)) <= 3, (name, len(added))


def test_environment_yml_installs_what_the_makefile_installs():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(conda) == {"name", "channels", "dependencies", "variables"} and conda["name"] == PROJECT["name"]
    exported = dict(re.findall(r"^export (\w+) \?= (\w+)$", (ROOT / "Makefile").read_text(), re.M))
    assert {name: str(value) for name, value in conda["variables"].items()} == SHORT_SPIN
    assert SHORT_SPIN.items() <= exported.items()
    *specs, pip = conda["dependencies"]
    parsed = {spec.name.normalized: spec.version for spec in map(MatchSpec, specs)}
    assert set(parsed) == {"python", "pip"}, "versions of packages belong in constraints.txt alone"
    constraints, editable = pip_arguments()
    assert pip == {"pip": [f"-c {constraints}", f"-e {editable}"]}
    assert (ROOT / constraints).is_file()
    extras = Requirement(f"{PROJECT['name']}{editable.removeprefix('.')}").extras
    assert extras <= set(PROJECT["optional-dependencies"])
    python = MatchSpec("python" + PROJECT["requires-python"])
    assert Version("3.11") >= Version(PROJECT["requires-python"].removeprefix(">="))
    assert str(parsed["python"]) == "3.11.*" and str(python.version) == PROJECT["requires-python"]


def test_commands_and_sweeps_let_waiting_threads_sleep_unless_the_environment_says_otherwise(monkeypatch):
    seen = []
    main = command("test")(lambda arguments: seen.append(os.environ["GOMP_SPINCOUNT"]))
    for own in (None, "77"):
        monkeypatch.setenv("GOMP_SPINCOUNT", own) if own else monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        seen.append(environment(1)["GOMP_SPINCOUNT"])
        main([])
    assert seen == [*SHORT_SPIN.values()] * 2 + ["77"] * 2


def tracked_texts() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("this is no git checkout, so there is no list of the project's files")
    raw = {name: (ROOT / name).read_bytes() for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()}
    return {name: content.decode(errors="replace") for name, content in raw.items() if b"\0" not in content}


def test_no_file_names_a_registry_or_a_folder_of_one_machine():
    texts = tracked_texts()
    assert "pyproject.toml" in texts and len(texts) > 20
    registries = ["index-url", "pypi.org", "pythonhosted.org", "download.pytorch.org", "anaconda.org"]
    own_folder = re.compile(r"(?<![\w.~+/-])/(?:home|root|work|Users)/\w")
    for name, text in texts.items():
        if name != Path(__file__).relative_to(ROOT).as_posix():
            assert not [registry for registry in registries if registry in text], name
            assert not own_folder.search(text), f"{name}: {own_folder.search(text)}"


def project(folder: Path) -> Path:
    """A copy of what make reads, in a folder of its own, with a set-up that looks finished."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
        os.utime(folder / name, (1000, 1000))
    (folder / ".venv").mkdir()
    (folder / ".venv" / "ready").touch()
    return folder


def make(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess:
    environment = {"PATH": path or os.environ["PATH"]}
    return subprocess.run([MAKE, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


needs_make = pytest.mark.skipif(MAKE is None, reason="make is not installed")


@needs_make
@pytest.mark.parametrize("target", ["run", "test", "processors", "lab", "notebooks", "reference", "bench"])
def test_make_installs_only_when_a_version_list_changed(tmp_path, target):
    folder = project(tmp_path)
    again = make(folder, "-n", target)
    assert again.returncode == 0 and ".venv/bin/python" in again.stdout and "pip install" not in again.stdout
    (folder / "constraints.txt").touch()
    os.utime(folder / ".venv" / "ready", (2000, 2000))
    assert "pip install" in make(folder, "-n", target).stdout


@needs_make
def test_make_run_passes_its_options_on(tmp_path):
    folder = project(tmp_path)
    plain = make(folder, "-n", "run").stdout
    assert '-m qatcourse.run --data "figures" --preset "quick" --weight-bits "8" --seed "0"' in plain
    chosen = make(folder, "-n", "run", "DATA=lsp:/my photos", "PRESET=full", "BITS=4", "SEED=7").stdout
    assert '--data "lsp:/my photos" --preset "full" --weight-bits "4" --seed "7"' in chosen


@needs_make
def test_without_a_new_enough_python_make_says_so(tmp_path):
    folder = project(tmp_path)
    (folder / ".venv" / "ready").unlink()
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    told = make(folder, "run", path=f"{folder}:/usr/bin:/bin")
    assert told.returncode != 0 and "Python 3.11 or newer is needed" in told.stderr
    assert not (folder / ".venv" / "ready").exists()


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
@pytest.mark.parametrize("result", [0, 3])
def test_ci_calls_make_test_and_hands_on_its_result(tmp_path, result):
    (tmp_path / "bin").mkdir()
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    stub = f'#!{BASH}\necho "$PWD|$*|$QATLIB_BROWSER_REQUIRED|$QATLIB_CORTEX_REQUIRED|$(cat)"\nexit {result}\n'
    for name in ("make", "chromium", "arm-none-eabi-gcc", "qemu-system-arm"):
        (tmp_path / "bin" / name).write_text(stub)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CI": "true"}
    ran = subprocess.run([BASH, tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, input="x", cwd="/")
    assert ran.returncode == result
    assert ran.stdout.splitlines()[-1] == f"{tmp_path}|test|1|1|"
