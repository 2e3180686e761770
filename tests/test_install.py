"""What pip makes of the project: one wheel with both packages, and what runs with its dependencies alone, without any extra."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest
from export_networks import NETWORKS
from imported import closure

from qatlib.export import check, engines, export_onnx
from qatlib.wording import need

ROOT = Path(__file__).resolve().parents[1]
CONTENT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = CONTENT["project"], CONTENT["tool"]["setuptools"]

NETWORK = """
    import torch
    from torch import nn
    from qatlib import ai8x

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = ai8x.FusedMaxPoolConv2dBNReLU(3, 4, 3, padding=1)
            self.fc = ai8x.Linear(64, 2, wide=True)

        def forward(self, x):
            return self.fc(self.conv(x).flatten(1))

    torch.manual_seed(0)
    ai8x.set_device(85, verbose=False)
    x = torch.randint(-128, 128, (8, 3, 8, 8)) / 128
    model = Small()
    print(ai8x.fit(model, (3, 8, 8)))
    ai8x.start_qat(model, [(x,)], {"weight_bits": 8}, progress=False)
    model.eval()
"""
LIBRARY = """
    import qatlib
    from qatlib.export import check_folder, export_all, export_c, export_max78000
    from qatlib.integer import load_compact

    print(qatlib.diagnose(model, x))
    quantized = qatlib.quantize_model(model, input_shape=(3, 8, 8))
    torch.save(quantized.state_dict(), "model_8bit.pth")
    assert torch.equal(load_compact("model_8bit.pth")(x), quantized(x))
    export_c(model, "c", input_shape=(3, 8, 8))
    export_max78000(model, None, "max78000", input_shape=(3, 8, 8))
    rows = export_all(model, "all", input_shape=(3, 8, 8))
    results = check_folder("all", 4, model)
    print(*rows, *results, sep="\\n")
    assert not any(result.differing for result in results)
"""
COURSE = """
    from pathlib import Path
    import qatcourse
    from qatcourse import course, viz
    from qatcourse.keeper import lessons, reference
    from qatcourse.people.crowd import cache_folder

    assert Path(qatcourse.__file__).is_relative_to(UNPACKED) and Path(qatlib.__file__).is_relative_to(UNPACKED)
    assert course.pretrained().state_dict()
    assert reference.load() and reference.value("exact.pose_tiny.weights") > 0
    assert [row for row in lessons.rows() if row["its cells run"] != "not measured"]
    assert "17 lessons" in viz.lesson_map(lessons.LESSONS)[1]
    assert not cache_folder().is_relative_to(UNPACKED)
    course.DATA = Path("elsewhere")
    try:
        course.pretrained()
    except FileNotFoundError as problem:
        print(problem)
"""


def python(folder: Path, *snippets: str, options: tuple[str, ...] = (), **environment: str) -> str:
    """What the snippets print, run as one program in `folder`, with `environment` beside what Python itself needs."""
    code = "".join(map(textwrap.dedent, snippets))
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    ran = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=folder, env=kept | environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_pyproject_lists_every_package():
    found = {
        ".".join(file.parent.relative_to(top).parts)
        for top, name in ((ROOT, "qatlib"), (ROOT / "notebooks", "qatcourse"))
        for file in (top / name).rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == found | {"qatcourse.data"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what the project is built from, for building leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("qatlib", "notebooks/qatcourse", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("cache", "__pycache__"))
    for name in ("pyproject.toml", PROJECT["readme"], "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory) -> Path:
    """The wheel, unpacked into a folder of somebody else's project."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    made = subprocess.run([*pip, "-w", str(folder)], cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    (folder / "theirs").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder / "theirs")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "theirs" / "vendor")
    return folder / "theirs" / "vendor"


@pytest.mark.slow
def test_the_wheel_holds_all_modules_and_the_data_that_the_course_reads(unpacked):
    held = {file.relative_to(unpacked).as_posix() for file in unpacked.rglob("*") if file.is_file()}
    modules = [path for top in (ROOT, ROOT / "notebooks") for path in top.glob("qat*/**/*.py")]
    assert {path.relative_to(ROOT).as_posix().removeprefix("notebooks/") for path in modules} <= held
    data = ["pose_tiny_fp32.pth", "digits.npz", "reference.json", "lesson_seconds.json", "lesson_minutes.json", "claims.json"]
    assert {name for name in held if name.startswith("qatcourse/data/")} == {f"qatcourse/data/{name}" for name in data}
    templates = {file.relative_to(ROOT).as_posix() for file in (ROOT / "qatlib/export/c").rglob("*") if file.is_file()}
    assert len(templates) > 10 and templates <= held
    assert {name.partition("/")[0] for name in held} == {"qatlib", "qatcourse", f"qatlib-{PROJECT['version']}.dist-info"}


@pytest.mark.slow
def test_library_and_course_run_from_the_wheel(unpacked, tmp_path):
    said = python(tmp_path, NETWORK, LIBRARY, f"UNPACKED = {str(unpacked)!r}\n", COURSE, PYTHONPATH=str(unpacked))
    assert "pose_tiny_fp32.pth is missing; get the whole repository" in said
    assert not list(unpacked.rglob("cache"))


@pytest.mark.slow
def test_an_editable_installation_finds_both_packages_from_every_folder(source, tmp_path):
    python(source, f"from setuptools.build_meta import build_editable\nbuild_editable({str(tmp_path)!r})")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    folders = str(tmp_path / "site"), sysconfig.get_path("purelib")
    installed = "import site, sys\nsite.addsitedir({!r})\nsys.path.append({!r})\n".format(*folders)
    tell = "import qatlib.ai8x, qatcourse.course\nprint(qatlib.__file__, qatcourse.DATA / 'reference.json')"
    for name in ("notebooks", "notebooks/solutions", "tests"):
        (source / name).mkdir(exist_ok=True)
        said = python(source / name, installed, tell, options=("-S",))
        assert said.split() == [str(source / "qatlib" / "__init__.py"), str(source / "data" / "reference.json")]


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder with this project's own dependencies and what these need, and nothing else that is installed."""
    folder, distributions = tmp_path_factory.mktemp("bare"), {}
    for requirement in PROJECT["dependencies"]:
        distributions |= closure(requirement)
    for distribution in distributions.values():
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(distribution.locate_file(name))
    (folder / "qatlib").symlink_to(ROOT / "qatlib")
    return folder


@pytest.mark.slow
def test_the_library_needs_its_own_dependencies_alone(bare, tmp_path):
    alone = {"options": ("-S",), "PYTHONPATH": str(bare)}
    listed = python(tmp_path, "from importlib.metadata import distributions as d\nprint(*(x.name for x in d()))", **alone).split()
    assert "torch" in listed and not {"onnx", "onnxruntime", "matplotlib", "papermill", "ipython", "pytest"} & set(listed)
    said = python(tmp_path, NETWORK, LIBRARY, **alone)
    assert "Part(file='model.onnx (not written)', reader=\"onnx is not installed" in said
    assert "Part(file='max78000'," in said
    assert "torch, fake-quantized    0 of 8 outputs differ" in said


@pytest.mark.slow
def test_the_course_names_its_extra_where_that_is_missing(bare, tmp_path):
    told = f"import sys\nsys.path.append({str(ROOT / 'notebooks')!r})\ntry:\n import qatcourse\nexcept ImportError as e:\n print(e)"
    assert python(tmp_path, told, options=("-S",), PYTHONPATH=str(bare)).strip() == str(need("matplotlib", "course"))


def test_without_onnx_the_other_forms_are_written_and_the_last_row_says_what_to_install(tmp_path, monkeypatch):
    network = NETWORKS["residual8"]()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=re.escape("onnx is not installed; install it with: pip install 'qatlib[export]'")):
        export_onnx(network, tmp_path / "net.onnx")
    rows = check.export_all(network, tmp_path / "out")
    assert [row.file for row in rows] == ["model_8bit.pth", "c", "cortex-m4", "model.onnx (not written)", "max78000 (not written)"]
    assert rows[3].reader == str(need("onnx", "export")) and not (tmp_path / "out" / "model.onnx").exists()
    engine = next(engine for engine in check.check_folder(tmp_path / "out", 4) if engine.name == "ONNX Runtime")
    assert str(engine).endswith("not run: the folder was written without model.onnx")


def test_without_onnx_runtime_its_row_says_what_to_install(tmp_path, monkeypatch):
    check.export_all(NETWORKS["residual8"](), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    engine = next(engine for engine in check.check_folder(tmp_path / "out", 4) if engine.name == "ONNX Runtime")
    assert str(engine).endswith(f"not run: {need('onnxruntime', 'export')}") and not engine.missing
    with pytest.raises(ImportError, match="onnxruntime is not installed"):
        engines.onnx_runner(tmp_path / "out" / "model.onnx", None)
