"""Write one network for every engine, and prove that all engines give the same integers.

`export_all` fills a folder, `check_folder` proves that its files are as they were written and runs them (see `engines`).
"""

import io
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qatlib.compact import CompactModel
from qatlib.export.engines import C_FOLDER, CHECKPOINT, CHIP_FOLDER, ENGINES, ONNX, Engine
from qatlib.export.source import answer_rows, as_compact, recorded, sample_codes, write_folder
from qatlib.files import sha256, write_atomic

COMPACT = "model_8bit.pth"
READERS = {
    COMPACT: "qatlib.export.load_compact, qatlib.integer, torch.load",
    ONNX: "ONNX Runtime and other ONNX engines",
    CHECKPOINT: "qatlib.train_pose_tiny.load_model",
    C_FOLDER: "any C99 compiler: make check",
    CHIP_FOLDER: "the vendor's ai8xize.py, see its README.md",
}


@dataclass(frozen=True)
class Written:
    """One result of `export_all`: `file` in the folder, its size in bytes (of all files, for a folder), and what reads it."""

    file: str
    size: int
    reader: str


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
    """Run every engine of `folder` on the same n pictures, and count the outputs that differ from the NumPy integers.

    `model`: the torch network the folder was made from, where it is no PoseTiny. Times are one picture's, on one core, in
    blocks of 16 (C: one by one). An engine whose files were deleted is listed as missing. Raises FileNotFoundError for a folder
    without model_8bit.pth, ValueError for n below 1 and, naming the file, for one that is not as it was written.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is {n!r}; compare at least one picture")
    folder = Path(folder)
    if not (folder / COMPACT).is_file():
        raise FileNotFoundError(f"no {COMPACT} in {folder}; write the folder with: python -m qatlib.export all CHECKPOINT {folder}")
    compact = CompactModel.load(folder / COMPACT)
    written = recorded(folder)
    gone = _missing(folder, written)
    codes = pictures(compact, n)
    begin = time.perf_counter()
    reference = answer_rows(compact, codes)
    results = [Engine("NumPy integers (ref.)", n, reference.size, 0, 1e3 * (time.perf_counter() - begin) / n)]
    for name, (part, run) in ENGINES.items():
        if part in gone:
            results.append(Engine(name, 0, 0, 0, note=f"{gone[part]}; export the folder again", missing=True))
        elif not any(_part(file) == part for file in written) and (part != CHECKPOINT or model is None):
            results.append(Engine(name, 0, 0, 0, note=NOT_WRITTEN[part]))
        else:
            results.append(_compared(name, run(folder, compact, codes, model), reference, n))
    return results


NOT_WRITTEN = {
    CHECKPOINT: "no checkpoint.pth, which is written for PoseTiny only; give check_folder(..., model=the network)",
    ONNX: "the folder was written without model.onnx",
    C_FOLDER: "the folder was written without c",
    CHIP_FOLDER: "the network does not fit the chip, so the folder was written without max78000",
}


def _part(file: str) -> str:
    return file.partition("/")[0]


def _missing(folder: Path, written: dict[str, str]) -> dict[str, str]:
    """The first deleted file of each part of `folder`. Raises ValueError for a file that is not as it was written."""
    gone: dict[str, str] = {}
    for file, digest in written.items():
        path = folder / file
        if not path.is_file():
            gone.setdefault(_part(file), file)
        elif sha256(path.read_bytes()).hex() != digest:
            raise ValueError(f"{path} was edited or damaged after it was written; export the folder again")
    return gone


def _compared(name: str, outcome, reference: np.ndarray, n: int) -> Engine:
    """`outcome`: a reason for not running, an `Engine`, or (rows of outputs, milliseconds a picture)."""
    if isinstance(outcome, str):
        return Engine(name, 0, 0, 0, note=outcome)
    if isinstance(outcome, Engine):
        return outcome
    rows, milliseconds = outcome
    if rows.shape != reference.shape:
        shapes = f"{rows.shape[1]} outputs a picture, the network has {reference.shape[1]}"
        raise ValueError(f"{name}: {shapes}; the file belongs to another network, export the folder again")
    return Engine(name, n, reference.size, int((rows != reference).sum()), milliseconds)
