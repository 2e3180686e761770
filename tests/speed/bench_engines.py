"""Engines x networks x bits: do all engines give the same integers, how long does one picture take, how large are the files?

Every engine of an exported folder is compared with the NumPy integers (`check_folder`), and timed one picture at a time on one
thread, in rounds that all engines share, beside the float network in plain torch. In a round each engine computes the picture
REPEATED times, so that all find the caches as they leave them; the C program, which starts anew, times itself.
"""

import copy
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_steps import interleaved
from torch import nn

from qatcourse.viz import table
from qatlib import ai8x

FP32 = "torch FP32"
REPEATED = 16
MIXED = {"conv1": {"weight_bits": 8}, "conv3": {"weight_bits": 2}, "up8": {"weight_bits": 8}, "head": {"weight_bits": 8}}
SHIFT = {"shift_quantile": 0.99}  # with 1, most 4- and 2-bit weights of this network would be zero
FILES = ("model_8bit.pth", "model.onnx", "c", "cortex-m4", "max78000")


def networks(quick: bool = False) -> dict[str, tuple[nn.Module, nn.Module]]:
    """By name: (float network, its calibrated QAT copy). PoseTiny with the course's weights; lesson 11's residual network."""
    from qatcourse.course import pretrained
    from qatcourse.labs import break_it
    from qatcourse.pose.data import load, to_codes

    ai8x.set_device(85, verbose=False)
    pose, spotter = pretrained(), break_it.healthy()
    people = torch.from_numpy(to_codes(load("figures", "train", 8 if quick else 64, progress=False).images)) / 128
    forms = {"8 bits": (8, {}), "4 bits": (4, {}), "2 bits": (2, {}), "8, 4 and 2 bits": (4, MIXED)}
    made = {
        f"PoseTiny, {name}": (pose, break_it.quantized(pose, people, weight_bits=bits, overrides=overrides, **SHIFT))
        for name, (bits, overrides) in forms.items()
    }
    residual = break_it.quantized(spotter.float_model, spotter.x, weight_bits=8)
    return made | {"Spotter (residual), 8 bits": (spotter.float_model, residual)}


def plain(model: nn.Module) -> nn.Module:
    """A float network with batch norm fused and each ai8x layer replaced by torch's own pool, operator and activation."""
    model = copy.deepcopy(model).eval()
    ai8x.fuse_bn_layers(model)
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, ai8x.QuantizationAwareModule)]:
        if layer.activation not in (None, "ReLU"):
            raise ValueError(f"{name}: activation {layer.activation} has no plain twin; use ReLU or none")
        parts = [layer.pool, layer.op, nn.ReLU() if layer.activation else None]
        model.set_submodule(name, nn.Sequential(*(part for part in parts if part is not None)))
    return model


def repeat(step) -> None:
    for _ in range(REPEATED):
        step()


def picture_times(folder: Path, network: tuple[nn.Module, nn.Module], code: np.ndarray, rounds: int) -> dict[str, dict]:
    """By engine, for one picture, `code` int8 (1, *input_shape): `ms`, and its `ratio` to FP32 within a round; medians.

    C only where there is a compiler.
    """
    from qatlib.export import engines
    from qatlib.integer.compact import CompactModel
    from qatlib.integer.engine import Integer

    compact, real = CompactModel.load(folder / "model_8bit.pth"), torch.from_numpy(code).float() / 128
    own: list[float] = []  # what the C program says: starting it would take longer than a picture
    steps = {
        FP32: torch.no_grad()(partial(plain(network[0]), real)),
        "torch, fake-quantized": partial(engines.torch_runner(network[1], compact), code),
        "NumPy integers (ref.)": partial(Integer(compact), code),
        "ONNX Runtime": partial(engines.onnx_runner(folder / "model.onnx", compact), code),
    }
    with tempfile.TemporaryDirectory() as temporary:
        program = Path(temporary) / "network"
        if engines.compiler():
            engines.compile_c(folder / "c", program)
            steps["C, gcc -O3"] = lambda: own.append(engines.run_c(program, np.repeat(code, REPEATED, 0))[1])
        repeated = {name: step if name.startswith("C,") else partial(repeat, step) for name, step in steps.items()}
        times = interleaved(repeated, rounds)
    times = {name: [each / REPEATED for each in seconds] for name, seconds in times.items()}
    times |= {"C, gcc -O3": [ms / 1e3 for ms in own[-rounds:]]} if own else {}
    ratios = {name: [a / b for a, b in zip(seconds, times[FP32], strict=True)] for name, seconds in times.items()}
    median = statistics.median
    return {name: {"ms": 1e3 * median(seconds), "ratio": median(ratios[name])} for name, seconds in times.items()}


def engines(rounds: int, quick: bool = False) -> dict[str, dict]:
    """By network: `rows` (engine, pictures, outputs, differing; ms and ratio where there is a time), and `bytes` by file."""
    threads, result = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    try:
        for name, network in networks(quick).items():
            result[name] = _measured(network, rounds, 4 if quick else 256)
    finally:
        torch.set_num_threads(threads)
    return result


def _measured(network: tuple[nn.Module, nn.Module], rounds: int, n: int) -> dict:
    from qatcourse.labs.compare import file_bytes
    from qatlib.export.check import check_folder, export_all, pictures
    from qatlib.integer.source import as_compact

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "net"
        written = {row.file: row.size for row in export_all(network[1], folder)}
        checked, compact = check_folder(folder, n, network[1]), as_compact(folder / "model_8bit.pth")
        times = picture_times(folder, network, pictures(compact, 4)[-1:], rounds)
    rows = [{"engine": FP32, "pictures": 0, "outputs": 0, "differing": 0} | times[FP32]]
    for engine in checked:
        counts = {"pictures": engine.pictures, "outputs": engine.outputs, "differing": engine.differing}
        rows.append({"engine": engine.name} | counts | times.get(engine.name, {}))
    floats = file_bytes(plain(network[0]).state_dict())
    sizes = {"FP32 weights": floats} | {name: written[name] for name in FILES if name in written}
    return {"rows": rows, "bytes": sizes}


def print_engines(result: dict[str, dict]) -> None:
    print(f"\n{'':<24}{'pictures':>9}{'differing outputs':>27}{'ms a picture':>14}{'/ FP32':>8}")
    for name, part in result.items():
        print(name)
        for row in part["rows"]:
            count = f"{row['differing']:,} of {row['outputs']:,}" if row["pictures"] else ""
            pace = f"{row['ms']:>14.3f}{row['ratio']:>8.2f}" if "ms" in row else ""
            print(f"  {row['engine']:<22}{row['pictures'] or '':>9}{count:>27}{pace}")
    columns = ("FP32 weights", *FILES)
    sizes = {name: {column: f"{part['bytes'].get(column, 0):,}" for column in columns} for name, part in result.items()}
    print(f"\n{table([{'bytes': name} | row for name, row in sizes.items()])}")
