"""The engines that read an exported folder: each takes the same pictures and gives rows of integers to compare.

The fake-quantized torch network, ONNX Runtime, the C project on this computer, its twin on an emulated Cortex-M4, and a model of
the chip on the files for the vendor's tool. A file that cannot be used is refused by name.
"""

import copy
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from qatlib.ai8x.graph import place
from qatlib.ai8x.qat import tensors_in
from qatlib.chip.describe import describe
from qatlib.chip.simulator import Simulator
from qatlib.export import cortex_m4
from qatlib.export.max78000 import arch_name, known_answer, sample_shape
from qatlib.export.network import hint
from qatlib.files import load
from qatlib.integer.checkpoint import with_state
from qatlib.integer.compact import CompactModel
from qatlib.integer.engine import has_abs
from qatlib.integer.source import answer_rows, sample_codes
from qatlib.wording import need

BLOCK = 16
SIMULATED = 1_600_000_000  # multiplications that our model of the chip does in a second or two


@dataclass(frozen=True)
class Engine:
    """One result of `check_folder`: of `outputs` integers for `pictures` pictures, `differing` are not the reference's.

    Without pictures it did not run, and `note` says why; `missing` where its files were deleted. `instructions`: an emulator's
    count for a picture. `from_chip`: how many outputs differ from the chip's, and by how much at most, where engine and reference
    take Abs as training does (see `integer.engine.narrow`).
    """

    name: str
    pictures: int = 0
    outputs: int = 0
    differing: int = 0
    milliseconds: float | None = None
    note: str = ""
    missing: bool = False
    instructions: int | None = None
    from_chip: tuple[int, int] | None = None

    def __str__(self) -> str:
        if not self.pictures:
            return f"{self.name:<24} {'missing' if self.missing else 'not run'}: {self.note}"
        pace = "" if self.milliseconds is None else f", {self.milliseconds:.3f} ms a picture"
        pace += f", {self.instructions / 1e6:.1f} million instructions a picture" if self.instructions else ""
        if self.from_chip:
            pace += "; Abs as in training: {:,} are not the chip's (off by up to {:,})".format(*self.from_chip)
        count = f"{self.pictures} picture{'s' if self.pictures > 1 else ''}"
        return f"{self.name:<24} {self.differing:,} of {self.outputs:,} outputs differ, {count}{pace}"


class Outcome(NamedTuple):
    """Rows of outputs of the first pictures, how long one took, and, if not the reference's, what they should be.

    `training`: that is what they are because training takes Abs before rounding.
    """

    rows: np.ndarray
    milliseconds: float | None = None
    instructions: int | None = None
    wanted: np.ndarray | None = None
    training: bool = False


@contextmanager
def _reading(path: Path | str):
    """Whatever a damaged or foreign file makes its reader raise becomes one sentence that names the file."""
    try:
        yield
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        raise ValueError(f"{path} cannot be used ({lines[0][:200]}); export the folder again") from problem


def timed(run, codes: np.ndarray) -> tuple[np.ndarray, float]:
    """Outputs of all blocks, after one picture that warms up, and milliseconds a picture."""
    run(codes[:1])
    begin = time.perf_counter()
    rows = np.concatenate([run(codes[i : i + BLOCK]) for i in range(0, len(codes), BLOCK)])
    return rows, 1e3 * (time.perf_counter() - begin) / len(codes)


def _rows(outputs, count: int) -> np.ndarray:
    return np.concatenate([np.asarray(y).reshape(count, -1) for y in outputs], axis=1)


def torch_runner(network, compact: CompactModel):
    """A function from int8 codes (N, *input_shape) to the integers that `network`, a QAT network in torch, stands for."""
    network = network.eval()
    like = place(network)
    exponents = [output["exponent"] for output in compact.graph["outputs"]]

    @torch.no_grad()
    def run(block: np.ndarray) -> np.ndarray:
        outputs = tensors_in(network(torch.from_numpy(block).to(like.device, like.dtype) / 128))
        integers = [y.double().cpu().numpy() * 2.0**-exponent for y, exponent in zip(outputs, exponents, strict=True)]
        return _rows(integers, len(block))

    return run


def run_torch(path: Path, compact: CompactModel, codes: np.ndarray, model):
    content = load(path)
    if model is None:
        return f"which network it is must be said: {hint(content)}"
    model = with_state(copy.deepcopy(model), content, str(path))
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; export a sound checkpoint again")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = Outcome(*timed(torch_runner(model, compact), codes))
    finally:
        torch.set_num_threads(threads)
    return found._replace(wanted=answer_rows(compact, codes, abs_first=True), training=True) if has_abs(compact) else found


def onnx_runner(path: Path, compact: CompactModel):
    """A function from int8 codes to the integers that ONNX Runtime, on one thread, computes from `path`. ImportError without it."""
    try:
        import onnxruntime
    except ModuleNotFoundError as problem:
        raise need("onnxruntime", "export") from problem

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what it logs, it also raises
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output["op"] for output in compact.graph["outputs"]]
    return lambda block: _rows(session.run(names, {"codes": block}), len(block))


def run_onnx(path: Path, compact: CompactModel, codes: np.ndarray, _):
    if find_spec("onnxruntime") is None:
        return str(need("onnxruntime", "export"))
    with _reading(path):
        return Outcome(*timed(onnx_runner(path, compact), codes))


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def compile_c(source: Path, program: Path) -> None:
    """Build the C project in `source`. Raises ValueError with the compiler's first complaint."""
    sources = [str(source / name) for name in ("main.c", "network.c", "engine.c")]
    built = subprocess.run([compiler(), "-O3", "-std=c99", "-o", str(program), *sources], capture_output=True, text=True)
    if built.returncode:
        raise ValueError(f"{source} does not compile: {built.stderr.strip().splitlines()[0]}; export the folder again")


def run_c(program: Path, codes: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows of outputs and the milliseconds a picture that the program itself measures."""
    with tempfile.TemporaryDirectory() as temporary:
        given, found = Path(temporary) / "in.bin", Path(temporary) / "out.bin"
        codes.tofile(given)
        ran = subprocess.run([program, given, found], capture_output=True, text=True)
        if ran.returncode:
            raise ValueError(f"the C program failed: {ran.stderr.strip() or ran.returncode}; export the folder again")
        return np.fromfile(found, np.int32).reshape(len(codes), -1), float(ran.stdout.split(",")[1].split()[0])


def run_project(folder: Path, compact: CompactModel, codes: np.ndarray, _):
    if compiler() is None:
        return "no C compiler; install gcc"
    with tempfile.TemporaryDirectory() as temporary:
        compile_c(folder, Path(temporary) / "network")
        return Outcome(*run_c(Path(temporary) / "network", codes))


def run_cortex_m4(folder: Path, compact: CompactModel, codes: np.ndarray, _):
    """The first pictures only: see `cortex_m4.MOST`."""
    if problem := cortex_m4.missing():
        return problem
    with _reading(folder):
        rows, instructions = cortex_m4.run_pictures(folder, codes[: cortex_m4.MOST])
    return Outcome(rows, None, instructions)


def run_chip(folder: Path, compact: CompactModel, codes: np.ndarray, _):
    """Our model of the chip, on the description and the checkpoint alone: the folder's sample, then the first pictures.

    As many as `SIMULATED` multiplications allow, one at least; the sample's integers are to be the expected ones beside it.
    """
    arch, shape = arch_name(compact), sample_shape(compact)
    with _reading(checkpoint := folder / f"{arch}.pth.tar"):
        state = load(checkpoint)["state_dict"]
    with _reading(both := f"{folder / arch}.yaml with {checkpoint.name}"):
        chip = Simulator((folder / f"{arch}.yaml").read_text(), state, shape, compact.graph["device"])
    with _reading(sample := folder / f"sample_{arch}.npy"):
        picture = sample_codes(compact, np.load(sample).reshape(compact.graph["input_shape"]))  # a vector is stored as (C, 1, 1)
    macs = sum(layer.weight.size * prod(layer.out_dim) for layer in chip.layers if layer.weight is not None)
    codes = np.concatenate([picture, codes[: max(1, SIMULATED // max(macs, 1))]])
    with _reading(both):
        rows = np.array([np.concatenate([y.ravel() for y in chip.run(x.reshape(shape)).values()]) for x in codes])
    with _reading(expected := folder / f"expected_{arch}.npy"):
        wanted = np.load(expected).reshape(1, -1)
    layers = describe(compact)
    names = [layer.name for layer in layers if layer.name in layers.outputs]  # in the chip's order
    return Outcome(rows, wanted=np.concatenate([wanted, known_answer(compact, names, codes[1:]).reshape(len(codes) - 1, -1)]))
