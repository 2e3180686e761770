"""What every exporter accepts as `model`: a trained network, its compact form, or the compact file."""

import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qatlib.compact import CompactModel
from qatlib.compact_graph import WEIGHTED
from qatlib.files import sha256

MARKER = ".qatlib"


def as_compact(model, input_shape: tuple[int, ...] | None = None) -> CompactModel:
    """The compact model of a torch network after QAT, of the result of `quantize_model`, or of a `model_8bit.pth` path.

    `input_shape`, (C, H, W), is for networks that have no attribute of that name. A network whose QAT was never on is refused:
    its outputs would not be those it was evaluated with; post-training quantization is asked for with
    `quantize_model(model, bit_width=8)`. Raises ValueError or TypeError naming what cannot be exported (see `quantize_model` and
    `CompactModel.load`).
    """
    if isinstance(model, CompactModel):
        return model
    if isinstance(model, (str, os.PathLike)):
        return CompactModel.load(model)
    if not hasattr(model, "state_dict"):
        raise TypeError(f"a {type(model).__name__} cannot be exported; give a trained network, a compact model or its file")
    state = model.state_dict()
    if "graph" not in state:
        from qatlib.export import quantize_model

        state = quantize_model(model, input_shape=input_shape).state_dict()
        _refuse_without_qat(model)
    return CompactModel.from_state_dict({key: value.cpu().numpy() for key, value in state.items()})


def _refuse_without_qat(model) -> None:
    """Raise ValueError naming the first layer with weights and no bits."""
    from qatlib.ai8x.graph import unwrap

    layers = {name: module for name, module in unwrap(model).named_modules() if hasattr(module, "weight_bits")}
    if without := [name for name, layer in layers.items() if layer.op is not None and not layer.weight_bits.item()]:
        raise ValueError(
            f"{without[0]}: QAT was never on (weight_bits is 0); call initiate_qat(model, policy) and train, or give "
            "quantize_model(model, bit_width=8) for post-training quantization"
        )


def check_accumulators(model: CompactModel) -> None:
    """Raise OverflowError, naming the layer, if an input could drive a sum beyond 32 bits: 128·(Σ|w| + |bias|) + 2^(n-1)."""
    for op in (op for op in model.ops if op["kind"] in WEIGHTED):
        weight, bias = model.weight(op["layer"]).astype(np.int64), model.bias(op["layer"])
        axes = (0, 2, 3) if op["kind"] == "conv_transpose2d" else tuple(range(1, weight.ndim))
        largest = int(np.abs(weight).sum(axis=axes).max()) + (0 if bias is None else int(np.abs(bias.astype(np.int64)).max()))
        if 128 * largest + (1 << max(op["weight_bits"] - 2 - op["output_shift"], 0)) > 2**31 - 1:
            raise OverflowError(f"{op['name']}: its sums may exceed 32 bits; give the layer fewer inputs or smaller weights")


def last_uses(model: CompactModel) -> dict[str, int]:
    """For each tensor that an output needs: the index of the last operation that reads it, len(ops) for the outputs."""
    ops = model.ops
    last = {output["op"]: len(ops) for output in model.graph["outputs"]}
    for index in reversed(range(len(ops))):
        if ops[index]["name"] in last:
            for name in ops[index]["inputs"]:
                last.setdefault(name, index)
    return last


def sample_codes(model: CompactModel, sample: np.ndarray | None, count: int = 4) -> np.ndarray:
    """`sample` as int8 codes (N, *input_shape), checked; without one: the two extremes, then random pictures, always the same."""
    shape = tuple(model.graph["input_shape"])
    if sample is None:
        codes = np.random.default_rng(0).integers(-128, 128, (count, *shape)).astype(np.int8)
        codes[0], codes[min(1, count - 1)] = -128, 127
        return codes
    sample = np.asarray(sample)
    if not np.issubdtype(sample.dtype, np.integer):
        raise TypeError(f"the sample is {sample.dtype}; give integer codes, round(128·x) for real x on the 1/128 grid")
    if sample.shape == shape:
        sample = sample[None]
    if sample.shape[1:] != shape or not len(sample):
        raise ValueError(f"the sample has shape {sample.shape}; this network reads (N, {', '.join(map(str, shape))})")
    if sample.min() < -128 or sample.max() > 127:
        raise ValueError(f"sample codes from {sample.min()} to {sample.max()}; they must lie in [-128, 127]")
    return sample.astype(np.int8)


def answer_rows(model: CompactModel, pictures: np.ndarray) -> np.ndarray:
    """The integer engine's outputs for `pictures`, int32 (N, all outputs one after the other)."""
    from qatlib.integer import Integer

    outputs = Integer(model)(pictures)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return np.concatenate([np.asarray(y).reshape(len(pictures), -1).astype(np.int32) for y in outputs], axis=1)


def _heal(folder: Path) -> None:
    """Undo what killed writers left beside `folder`: put the old one back if it was just moved away, remove the rest."""
    from psutil import pid_exists

    for leftover in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*")):
        writer, _, kind = leftover.name.removeprefix(f".{folder.name}.").partition(".")
        if kind not in ("new", "old") or not writer.isdigit() or (int(writer) != os.getpid() and pid_exists(int(writer))):
            continue
        if kind == "old" and not folder.exists():
            os.replace(leftover, folder)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def write_folder(folder: str | os.PathLike, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write into an empty neighbour of `folder`, then put that in its place: a reader never sees half of it.

    Its file `.qatlib` records the SHA-256 of every other one, for `recorded`. Replaced is only an empty folder, or one that this
    function has written (it holds `.qatlib`); else FileExistsError. Raises OSError naming the folder where it cannot be written.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (folder / MARKER).exists()):
        raise FileExistsError(f"{folder} exists and was not written by qatlib; choose another name, or delete it first")
    building, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    try:
        _heal(folder)
        building.mkdir(parents=True)
        fill(building)
        record(building)
        if folder.exists():
            os.replace(folder, old)
        os.replace(building, folder)
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        raise OSError(f"cannot write {folder}: {reason}; free some space or choose another folder") from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def record(folder: Path) -> None:
    """Write `.qatlib`: the SHA-256 of every other file in `folder`, in the form that `sha256sum -c .qatlib` reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER)
    lines = [f"{sha256(path.read_bytes()).hex()}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / MARKER).write_text("".join(lines))


def recorded(folder: Path) -> dict[str, str]:
    """SHA-256 by file, as `record` wrote them. Raises ValueError for a folder without them."""
    marker = folder / MARKER
    lines = marker.read_text(errors="replace").splitlines() if marker.is_file() else []
    found = {file: digest for digest, separator, file in (line.partition("  ") for line in lines) if separator}
    if not found or not all(len(digest) == 64 for digest in found.values()):
        raise ValueError(f"{marker} records no checksums of the folder's files; export the folder again")
    return found
