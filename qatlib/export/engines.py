"""The engines that read an exported folder: each takes the same pictures and gives rows of integers to compare.

The fake-quantized torch network, ONNX Runtime, the compiled C project, and the known answer for the chip, which is computed here
from the synthesis inputs themselves. A file that cannot be used is refused by name.
"""

import copy
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qatlib.compact import CompactModel
from qatlib.compact_graph import WEIGHTED
from qatlib.export.source import answer_rows, sample_codes

ONNX, CHECKPOINT, C_FOLDER, CHIP_FOLDER = "model.onnx", "checkpoint.pth", "c", "max78000"
BLOCK = 16


@dataclass(frozen=True)
class Engine:
    """One result of `check_folder`: of `outputs` integers for `pictures` pictures, `differing` are not the reference's.

    Without pictures it did not run, and `note` says why; `missing` where its files were deleted.
    """

    name: str
    pictures: int
    outputs: int
    differing: int
    milliseconds: float | None = None
    note: str = ""
    missing: bool = False

    def __str__(self) -> str:
        if not self.pictures:
            return f"{self.name:<24} {'missing' if self.missing else 'not run'}: {self.note}"
        pace = "" if self.milliseconds is None else f", {self.milliseconds:.3f} ms a picture"
        count = f"{self.pictures} picture{'s' if self.pictures > 1 else ''}"
        return f"{self.name:<24} {self.differing:,} of {self.outputs:,} outputs differ, {count}{pace}"


@contextmanager
def _reading(path: Path):
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
    import torch

    network = network.eval()
    device = next(network.parameters()).device
    exponents = [output["exponent"] for output in compact.graph["outputs"]]

    @torch.no_grad()
    def run(block: np.ndarray) -> np.ndarray:
        outputs = network(torch.from_numpy(block).to(device, torch.float32) / 128)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        integers = [y.double().cpu().numpy() * 2.0**-exponent for y, exponent in zip(outputs, exponents, strict=True)]
        return _rows(integers, len(block))

    return run


def _torch(folder: Path, compact: CompactModel, codes: np.ndarray, model):
    import torch

    if model is None:
        from qatlib.train_pose_tiny import load_model

        model = load_model(folder / CHECKPOINT)
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ValueError(f"{folder / CHECKPOINT}: {name} holds NaN or infinity; export a sound checkpoint again")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return timed(torch_runner(model, compact), codes)
    finally:
        torch.set_num_threads(threads)


def onnx_runner(path: Path, compact: CompactModel):
    """A function from int8 codes to the integers that ONNX Runtime computes from `path`, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what it logs, it also raises
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output["op"] for output in compact.graph["outputs"]]
    return lambda block: _rows(session.run(names, {"codes": block}), len(block))


def _onnx(folder: Path, compact: CompactModel, codes: np.ndarray, _):
    with _reading(folder / ONNX):
        return timed(onnx_runner(folder / ONNX, compact), codes)


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


def _c(folder: Path, compact: CompactModel, codes: np.ndarray, _):
    if compiler() is None:
        return "no C compiler; install gcc"
    with tempfile.TemporaryDirectory() as temporary:
        compile_c(folder / C_FOLDER, Path(temporary) / "network")
        return run_c(Path(temporary) / "network", codes)


def _chip(folder: Path, compact: CompactModel, codes: np.ndarray, _):
    """The integers of the synthesis inputs (checkpoint and sample) against the expected ones beside them."""
    forms = ("*.pth.tar", "sample_*.npy", "expected_*.npy")
    stored, sample, expected = (_only(folder / CHIP_FOLDER, form) for form in forms)
    model = synthesis_model(compact, stored)
    with _reading(sample):
        picture = sample_codes(model, np.load(sample).reshape(model.graph["input_shape"]))  # a vector is stored as (C, 1, 1)
    with _reading(expected):
        wanted = np.load(expected)
        rows = answer_rows(model, picture)[0]
        differing = int((rows.reshape(wanted.shape) != wanted).sum())
    return Engine("MAX78000 known answer", 1, rows.size, differing)


def _only(folder: Path, form: str) -> Path:
    found = sorted(folder.glob(form))
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} files {form} where one belongs; export the folder again")
    return found[0]


def synthesis_model(compact: CompactModel, path: Path) -> CompactModel:
    """`compact`'s graph with the weights, biases, bits and shifts of the vendor's checkpoint `path` instead of its own."""
    import torch

    from qatlib.compact import pack
    from qatlib.export.convert import stored_codes

    graph, tensors = copy.deepcopy(compact.graph), {}
    with _reading(path):
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        for op in (op for op in graph["ops"] if op["kind"] in WEIGHTED):
            layer = stored_codes(op["layer"], state)
            op |= {"weight_bits": layer.bits, "output_shift": layer.shift}
            tensors[f"{op['layer']}.weight"] = pack(layer.weight, layer.bits)
            if layer.bias is not None:
                tensors[f"{op['layer']}.bias"] = layer.bias
        return CompactModel(graph, tensors)


ENGINES = {
    "torch, fake-quantized": (CHECKPOINT, _torch), "ONNX Runtime": (ONNX, _onnx), "C, gcc -O3": (C_FOLDER, _c),
    "MAX78000 known answer": (CHIP_FOLDER, _chip),
}  # fmt: skip
