"""Write one network for every engine, and prove that all engines give the same integers.

`export_all` fills a folder, `check_folder` runs what it finds there: the fake-quantized torch network, the NumPy integers, ONNX
Runtime, the compiled C project, and the known answer for the chip.
"""

import io
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qatlib.compact import CompactModel
from qatlib.export.source import answer_rows, as_compact, sample_codes, write_folder
from qatlib.files import write_atomic

COMPACT, ONNX, CHECKPOINT, C_FOLDER, CHIP_FOLDER = "model_8bit.pth", "model.onnx", "checkpoint.pth", "c", "max78000"
READERS = {
    COMPACT: "qatlib.export.load_compact, qatlib.integer, torch.load",
    ONNX: "ONNX Runtime and other ONNX engines",
    CHECKPOINT: "qatlib.train_pose_tiny.load_model",
    C_FOLDER: "any C99 compiler: make check",
    CHIP_FOLDER: "the vendor's ai8xize.py, see its README.md",
}
BLOCK = 16


@dataclass(frozen=True)
class Written:
    """One result of `export_all`: `file` in the folder, its size in bytes (of all files, for a folder), and what reads it."""

    file: str
    size: int
    reader: str


@dataclass(frozen=True)
class Engine:
    """One result of `check_folder`: of `outputs` integers for `pictures` pictures, `differing` are not the reference's."""

    name: str
    pictures: int
    outputs: int
    differing: int
    milliseconds: float | None = None
    note: str = ""

    def __str__(self) -> str:
        if not self.pictures:
            return f"{self.name:<24} skipped: {self.note}"
        pace = "" if self.milliseconds is None else f", {self.milliseconds:.3f} ms a picture"
        count = f"{self.pictures} picture{'s' if self.pictures > 1 else ''}"
        return f"{self.name:<24} {self.differing:,} of {self.outputs:,} outputs differ, {count}{pace}"


def export_all(model, folder: str | os.PathLike, sample: np.ndarray | None = None, input_shape=None) -> list[Written]:
    """Write every form of `model` into `folder`, whole or not at all; the list says what was written.

    `model`: a trained network, or the path of a checkpoint of train_pose_tiny or of a compact file. `sample`: int8 codes
    (N, *input_shape), the pictures of the known-answer tests. A network that does not fit the chip gets everything but the
    synthesis inputs; the last row then says why. Raises as `quantize_model` and `export_c` do.
    """
    from qatlib.export.c_project import export_c
    from qatlib.export.max78000 import export_max78000
    from qatlib.export.onnx_graph import export_onnx

    network = read_model(model)
    compact, refused = as_compact(network, input_shape), []

    def fill(target: Path) -> None:
        _save_compact(compact, target / COMPACT)
        _save_checkpoint(network, target / CHECKPOINT)
        export_onnx(compact, target / ONNX)
        export_c(compact, target / C_FOLDER, sample)
        try:
            export_max78000(compact, None if sample is None else sample_codes(compact, sample)[0], target / CHIP_FOLDER)
        except ValueError as problem:
            refused.append(str(problem))

    folder = write_folder(folder, fill)
    rows = [Written(name, _size(folder / name), reader) for name, reader in READERS.items() if (folder / name).exists()]
    return [*rows, *(Written(f"{CHIP_FOLDER} (not written)", 0, reason) for reason in refused)]


def read_model(model):
    """A path's content: the network of a train_pose_tiny checkpoint, or a compact model. Anything else is returned as it is."""
    if not isinstance(model, (str, os.PathLike)):
        return model
    from qatlib.train_pose_tiny import load_model

    try:
        return CompactModel.load(model)
    except ValueError as no_compact:
        try:
            return load_model(model)
        except (ValueError, RuntimeError, KeyError) as no_checkpoint:
            reason = str(no_checkpoint).splitlines()[0]
            raise ValueError(f"{model} is neither a compact model ({no_compact}) nor a checkpoint ({reason})") from None


def _save_compact(compact: CompactModel, path: Path) -> None:
    from qatlib.export.quantized import QuantizedModel

    QuantizedModel(compact).save(path)


def _save_checkpoint(network, path: Path) -> None:
    """Of a PoseTiny only: its class is known when the folder is checked."""
    import torch

    from qatlib.pose.model import PoseTiny

    if isinstance(network, PoseTiny):
        content = {"epoch": 0, "config": {}, "state_dict": {key: value.cpu() for key, value in network.state_dict().items()}}
        buffer = io.BytesIO()  # torch.save writes a path's name into the file; this way the same network gives the same bytes
        torch.save(content, buffer)
        write_atomic(path, buffer.getvalue())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def table(rows: list[Written]) -> str:
    """The summary of `export_all`: file, bytes, what reads it."""
    width = max(len(row.file) for row in rows)
    return "\n".join(f"{row.file:<{width}}  {row.size:>12,}  {row.reader}" for row in rows)


def pictures(model: CompactModel, n: int) -> np.ndarray:
    """n inputs, int8: both extremes and noise; for PoseTiny every second one is a drawn person of the test set."""
    codes = sample_codes(model, None, n)
    if model.graph["arch"] == "PoseTiny" and n > 3:
        from qatlib.pose.data import load, to_codes

        drawn = to_codes(load("figures", "test", n // 2, progress=False).images)
        codes[-len(drawn) :] = drawn
    return codes


def check_folder(folder: str | os.PathLike, n: int = 256, model=None) -> list[Engine]:
    """Run every engine found in `folder` on the same n pictures, and count the outputs that differ from the NumPy integers.

    `model`: the torch network the folder was made from, where it is no PoseTiny. Times are one picture's, on one core, in
    blocks of 16 (C: one by one). Raises FileNotFoundError for a folder without model_8bit.pth, ValueError for n below 1.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is {n!r}; compare at least one picture")
    folder = Path(folder)
    if not (folder / COMPACT).is_file():
        raise FileNotFoundError(f"no {COMPACT} in {folder}; write the folder with: python -m qatlib.export all CHECKPOINT {folder}")
    compact = CompactModel.load(folder / COMPACT)
    codes = pictures(compact, n)
    begin = time.perf_counter()
    reference = answer_rows(compact, codes)
    results = [Engine("NumPy integers (ref.)", n, reference.size, 0, 1e3 * (time.perf_counter() - begin) / n)]
    engines = {"torch, fake-quantized": _torch, "ONNX Runtime": _onnx, "C, gcc -O3": _c, "MAX78000 known answer": _chip}
    for name, engine in engines.items():
        results += _compare(name, engine(folder, compact, codes, model), reference, n)
    return results


def _compare(name: str, outcome, reference: np.ndarray, n: int) -> list[Engine]:
    """`outcome`: None (nothing to run), a reason for skipping, an `Engine`, or (rows of outputs, milliseconds a picture)."""
    if outcome is None:
        return []
    if isinstance(outcome, str):
        return [Engine(name, 0, 0, 0, note=outcome)]
    if isinstance(outcome, Engine):
        return [outcome]
    rows, milliseconds = outcome
    return [Engine(name, n, reference.size, int((rows != reference).sum()), milliseconds)]


def _timed(run, codes: np.ndarray) -> tuple[np.ndarray, float]:
    """Outputs of all blocks, after one that warms up, and milliseconds a picture."""
    run(codes[:1])
    begin = time.perf_counter()
    rows = np.concatenate([run(codes[i : i + BLOCK]) for i in range(0, len(codes), BLOCK)])
    return rows, 1e3 * (time.perf_counter() - begin) / len(codes)


def _rows(outputs, count: int) -> np.ndarray:
    return np.concatenate([np.asarray(y).reshape(count, -1) for y in outputs], axis=1)


def _torch(folder: Path, compact: CompactModel, codes: np.ndarray, model):
    if model is None and not (folder / CHECKPOINT).is_file():
        return None
    import torch

    from qatlib.train_pose_tiny import load_model

    network = (load_model(folder / CHECKPOINT) if model is None else model).eval()
    device = next(network.parameters()).device
    exponents = [output["exponent"] for output in compact.graph["outputs"]]

    @torch.no_grad()
    def run(block: np.ndarray) -> np.ndarray:
        outputs = network(torch.from_numpy(block).to(device, torch.float32) / 128)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        integers = [y.double().cpu().numpy() * 2.0**-exponent for y, exponent in zip(outputs, exponents, strict=True)]
        return _rows(integers, len(block))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _timed(run, codes)
    finally:
        torch.set_num_threads(threads)


def _onnx(folder: Path, compact: CompactModel, codes: np.ndarray, _):
    if not (folder / ONNX).is_file():
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / ONNX), options, providers=["CPUExecutionProvider"])
    names = [output["op"] for output in compact.graph["outputs"]]
    return _timed(lambda block: _rows(session.run(names, {"codes": block}), len(block)), codes)


def _c(folder: Path, compact: CompactModel, codes: np.ndarray, _):
    source = folder / C_FOLDER
    if not source.is_dir():
        return None
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return "no C compiler here; install gcc"
    with tempfile.TemporaryDirectory() as temporary:
        program, given, found = (Path(temporary) / name for name in ("network", "in.bin", "out.bin"))
        sources = [str(source / name) for name in ("main.c", "network.c", "engine.c")]
        build = [compiler, "-O3", "-std=c99", "-o", str(program), *sources]
        built = subprocess.run(build, capture_output=True, text=True)
        if built.returncode:
            raise ValueError(f"{source} does not compile: {built.stderr.strip().splitlines()[0]}; export it again")
        codes.tofile(given)
        ran = subprocess.run([program, given, found], capture_output=True, text=True)
        if ran.returncode:
            raise ValueError(f"the C program of {source} failed: {ran.stderr.strip() or ran.returncode}; export it again")
        rows = np.fromfile(found, np.int32).reshape(len(codes), -1)
        return rows, float(ran.stdout.split(",")[1].split()[0])


def _chip(folder: Path, compact: CompactModel, codes: np.ndarray, _):
    found = sorted((folder / CHIP_FOLDER).glob("expected_*.npy"))
    if not found:
        return None
    sample = np.load(found[0].with_name(found[0].name.replace("expected_", "sample_")))
    expected = np.load(found[0]).ravel()
    rows = answer_rows(compact, sample_codes(compact, sample))[0]
    return Engine("MAX78000 known answer", 1, rows.size, int((rows != expected).sum()))
