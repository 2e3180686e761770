"""Write one network for every engine, and prove that all engines give the same integers.

`export_all` fills a folder, `check_folder` proves that its files are as they were written and runs them (see `engines`).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qatlib.export import engines
from qatlib.export.c_project import export_c
from qatlib.export.engines import Engine
from qatlib.export.max78000 import export_max78000
from qatlib.export.network import hint
from qatlib.export.onnx_graph import export_onnx
from qatlib.files import load, recorded, sha256, write_folder
from qatlib.integer.checkpoint import layer_names, save_checkpoint, state_of, with_state
from qatlib.integer.compact import CompactModel
from qatlib.integer.convert import compact_from_checkpoint, integers
from qatlib.integer.engine import has_abs
from qatlib.integer.quantized import QuantizedModel, save_compact
from qatlib.integer.source import answer_rows, as_compact, sample_codes
from qatlib.wording import columns

ABS = "which takes Abs before rounding, the chip after it: see check"
COMPACT, CHECKPOINT, ONNX, C, M4, CHIP = "model_8bit.pth", "checkpoint.pth", "model.onnx", "c", "cortex-m4", "max78000"


@dataclass(frozen=True)
class Part:
    """A file or folder that `export_all` writes: what reads it, and which engine `check_folder` runs on it, with `run`.

    `absent`: how the sentence begins that says why a folder is without it; `size`: bytes (of all files), once it is written.
    """

    file: str
    reader: str
    engine: str
    run: Callable | None = None
    absent: str = "the folder was written"
    size: int = 0


PARTS = (
    Part(COMPACT, "qatlib.integer.load_compact, torch.load", "NumPy integers (ref.)"),
    Part(CHECKPOINT, "your own network, in torch", "torch, fake-quantized", engines.run_torch,
         "the folder was written from integers,"),
    Part(ONNX, "ONNX Runtime and other ONNX engines", "ONNX Runtime", engines.run_onnx),
    Part(C, "any C99 compiler: make check", "C, gcc -O3", engines.run_project),
    Part(M4, "the microcontroller beside the accelerator: make check", "C, Cortex-M4 in QEMU", engines.run_cortex_m4,
         "the network does not fit the Cortex-M4, so the folder was written"),
    Part(CHIP, "the vendor's ai8xize.py, see its README.md", "our model of the chip", engines.run_chip,
         "the network does not fit the chip, so the folder was written"),
)  # fmt: skip


def export_all(model, folder: str | os.PathLike, sample: np.ndarray | None = None, input_shape=None) -> list[Part]:
    """Write every form of `model` into `folder`, whole or not at all; the list says what was written.

    `model`: a trained network, a compact model, or the path of a compact file. `sample`: int8 codes (N, *input_shape), the
    pictures of the known-answer tests. Without the package onnx everything else is written, and for a network that does not fit the
    chip, or the microcontroller beside it, everything but the files for that; the last rows say why. Raises as `quantize_model`
    and `export_c` do.
    """
    compact, refused = as_compact(model, input_shape), []

    def fill(target: Path) -> None:
        save_compact(compact, target / COMPACT)
        if isinstance(model, nn.Module) and not isinstance(model, QuantizedModel):  # it says which class the check asks for
            save_checkpoint(target / CHECKPOINT, model, epoch=0, config={})
        try:
            export_onnx(compact, target / ONNX)
        except ImportError as problem:
            refused.append(replace(PARTS[2], file=f"{ONNX} (not written)", reader=str(problem)))
        export_c(compact, target / C, sample)
        picture = None if sample is None else sample_codes(compact, sample)[0]
        for part, export in zip(PARTS[-2:], (partial(export_c, compact, target=M4), partial(export_max78000, compact, picture))):
            try:
                export(folder=target / part.file)
            except ValueError as problem:
                refused.append(replace(part, file=f"{part.file} (not written)", reader=str(problem)))

    folder = write_folder(folder, fill)
    rows = [replace(part, size=size(folder / part.file)) for part in PARTS if (folder / part.file).exists()]
    if has_abs(compact):
        rows = [replace(row, reader=f"{row.reader} ({ABS})") if row.file == CHECKPOINT else row for row in rows]
    return rows + refused


def from_checkpoint(path: str | os.PathLike, network: nn.Module | None, input_shape=None):
    """What `export_all` takes, from a file: a compact model, or `network` with the weights of a checkpoint, in QAT or integer.

    Raises ValueError for a checkpoint without its network, and for what belongs to another one.
    """
    content = load(path)
    if "graph" in content:
        return CompactModel.from_file(content, path)
    state = state_of(content, str(path), network and network.state_dict())
    if network is None:
        layer_names(state, str(path))
        raise ValueError(f"{path} is a checkpoint; say of which network: {hint(content)} (importing a module runs it)")
    if integers(state):
        return compact_from_checkpoint(network, content, input_shape)
    return with_state(network, content, str(path))


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def table(rows: list[Part]) -> str:
    """The summary of `export_all`: file, bytes, what reads it."""
    return columns((row.file, f"{row.size:>12,}", row.reader) for row in rows)


def pictures(model: CompactModel, n: int, network=None) -> np.ndarray:
    """n inputs, int8: both extremes and noise; every second one what `network.sample_inputs` gives, where it has that."""
    codes = sample_codes(model, None, n)
    if hasattr(network, "sample_inputs") and n > 3:
        typical = (network.sample_inputs(n // 2) * 128).round().clamp(-128, 127).to(torch.int8).numpy()
        codes[-len(typical) :] = typical
    return codes


def check_folder(folder: str | os.PathLike, n: int = 256, model=None) -> list[Engine]:
    """Run every engine of `folder` on the same n pictures, and count the outputs that differ from the NumPy integers.

    Torch takes Abs as training does: so do the integers it is compared with, and `from_chip` tells what the chip makes of it.

    `model`: the torch network (its class, built as it was for training), which then gets the folder's checkpoint; without either
    torch does not run. Times are one picture's, on one core, in blocks of 16 (C: one by one); the emulator computes 16 pictures at
    most and counts instructions, the model of the chip the folder's sample and as many as a second or two allow. An engine whose
    files were deleted is listed as missing. Raises FileNotFoundError for a folder without model_8bit.pth, ValueError for n outside
    1..10^6 and, naming the file, for one that is not as it was written.
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 10**6:
        raise ValueError(f"n is {n!r}; compare at least one picture and at most a million")
    folder = Path(folder)
    if not (folder / COMPACT).is_file():
        raise FileNotFoundError(f"no {COMPACT} in {folder}; write it with: python -m qatlib.export all CHECKPOINT {folder}")
    compact, written = CompactModel.load(folder / COMPACT), recorded(folder)
    _check_unchanged(folder, written)
    codes = pictures(compact, n, model)
    reference, milliseconds = engines.timed(lambda block: answer_rows(compact, block), codes)
    results = [Engine(PARTS[0].engine, n, reference.size, 0, milliseconds)]
    for part in PARTS[1:]:
        files = [file for file in written if file.partition("/")[0] == part.file]
        if not files:
            results.append(Engine(part.engine, note=f"{part.absent} without {part.file}"))
        elif gone := [file for file in files if not (folder / file).is_file()]:
            results.append(Engine(part.engine, note=f"{gone[0]}; export the folder again", missing=True))
        else:
            results.append(_compared(part, part.run(folder / part.file, compact, codes, model), reference))
    return results


def _check_unchanged(folder: Path, written: dict[str, str]) -> None:
    """Raise ValueError for a file that is not as it was written; a deleted one is a matter of its engine."""
    for path, digest in ((folder / file, digest) for file, digest in written.items()):
        if path.is_file() and sha256(path.read_bytes()).hex() != digest:
            raise ValueError(f"{path} was edited or damaged after it was written; export the folder again")


def _compared(part: Part, outcome: str | engines.Outcome, reference: np.ndarray) -> Engine:
    """`outcome`: a reason for not running, or what the engine computed."""
    if isinstance(outcome, str):
        return Engine(part.engine, note=outcome)
    rows, wanted = outcome.rows, reference[: len(outcome.rows)] if outcome.wanted is None else outcome.wanted
    if rows.shape != wanted.shape:
        shapes = f"{rows.shape[1]} outputs a picture, the network has {wanted.shape[1]}"
        raise ValueError(f"{part.engine}: {shapes}; the file belongs to another network, export the folder again")
    gap = np.abs(rows - reference[: len(rows)].astype(np.float64)) if outcome.training else None
    return Engine(part.engine, len(rows), rows.size, int((rows != wanted).sum()), outcome.milliseconds,
                  instructions=outcome.instructions,
                  from_chip=None if gap is None else (int((gap > 0).sum()), int(gap.max())))  # fmt: skip
