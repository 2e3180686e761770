"""How times grow: drawing, calibration, training steps and the engines, each at several sizes, with the log-log slope.

A slope of 1 means that twice the size takes twice the time; below 1, that a fixed cost still shows.
"""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_steps import QAT, Nine, build, interleaved, stepper

from qatcourse.viz import table
from qatlib import ai8x

REPEATS = 3


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent p of the best fit seconds = c * size^p.

    >>> round(slope([1, 2, 4], [3.0, 12.0, 48.0]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def row(name: str, unit: str, sizes: Sequence[float], work: Callable[[float], Callable[[], object]], rounds: int = REPEATS) -> dict:
    """One line of the table: `work(size)` prepares what is timed. The sizes take turns, so that the machine's other work hits all;
    the fastest round counts, since other work only ever adds.
    """
    times = interleaved({size: work(size) for size in sizes}, rounds, warmup=1)
    seconds = [min(times[size]) for size in sizes]
    return {"name": name, "unit": unit, "sizes": list(sizes), "seconds": seconds, "slope": slope(sizes, seconds)}


def import_seconds(name: str, repeats: int = REPEATS) -> float:
    """Seconds that `import name` takes in a fresh interpreter, without starting the interpreter."""
    code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(repeats)]
    return min(float(run.stdout) for run in runs)


def drawing(n: float) -> Callable[[], object]:
    """All cores, as the pose data is drawn."""
    from qatcourse.people.crowd import draw

    return lambda: draw(int(n), seed=1, workers=os.cpu_count(), progress=False)


def calibration(n: float = 64, width: float = 1.0, batch: int = 32) -> Callable[[], None]:
    """`pre_qat` of the nine-layer network over n pictures, its channels times `width`."""
    loader = torch.randint(-128, 128, (int(n), *Nine.input_shape)).div(128).split(batch)

    def calibrate() -> None:
        torch.manual_seed(0)
        model = Nine(width)
        ai8x.fuse_bn_layers(model)
        ai8x.pre_qat(model, loader, {"start_epoch": 1, "weight_bits": 8})

    return calibrate


def training(network: Callable[[], torch.nn.Module], batch: float, input_shape: tuple[int, ...]) -> Callable[[], None]:
    """One QAT training step."""
    return stepper(build(network, QAT), int(batch), input_shape)


def engines_by_width(widths: Sequence[float], pictures: int) -> list[dict]:
    """NumPy integers and ONNX Runtime on some pictures of the nine-layer network, its channels times the width."""
    from qatlib.export import engines, export_onnx
    from qatlib.integer import quantize_model
    from qatlib.integer.engine import Integer

    codes = np.random.default_rng(0).integers(-128, 128, (pictures, *Nine.input_shape)).astype(np.int8)
    compact = {w: quantize_model(build(partial(Nine, w), QAT).eval(), input_shape=Nine.input_shape).compact for w in widths}
    with tempfile.TemporaryDirectory() as folder:
        runners = {w: Path(folder) / f"{w}.onnx" for w in widths}
        for w, path in runners.items():
            export_onnx(compact[w], path)
            runners[w] = engines.onnx_runner(path, compact[w])
        return [
            row("NumPy integers, by width", "x channels", widths, lambda w: partial(Integer(compact[w]), codes)),
            row("ONNX Runtime, by width", "x channels", widths, lambda w: partial(runners[w], codes)),
        ]


def engine_rows(sizes: Sequence[int]) -> list[dict]:
    """Every engine on n pictures of PoseTiny, as exported; engines that cannot run here (no gcc) are left out."""
    from qatcourse.pose.model import PoseTiny
    from qatlib.export.check import check_folder, export_all

    model, seconds = build(PoseTiny, QAT).eval(), {}
    with tempfile.TemporaryDirectory() as folder:
        export_all(model, f"{folder}/net", input_shape=PoseTiny.input_shape)
        for n in sizes:
            for engine in check_folder(f"{folder}/net", n, model):
                if engine.milliseconds:
                    seconds.setdefault(engine.name, []).append(engine.milliseconds * n / 1e3)
    return [
        {"name": name, "unit": "pictures", "sizes": list(sizes), "seconds": times, "slope": slope(sizes, times)}
        for name, times in seconds.items()
    ]


def growth(quick: bool = False) -> dict:
    """All measurements: `imports` (seconds by module) and `rows`."""
    from qatcourse.pose.model import PoseTiny

    pictures, few, engine = ((8, 16), (4, 8), (4, 8)) if quick else ((250, 1000, 4000), (64, 128, 256), (16, 64, 256))
    batches, widths, batch = ((1, 2), (0.5, 1), 2) if quick else ((8, 16, 32), (0.5, 1, 2), 16)
    shape = Nine.input_shape
    return {
        "imports": {name: import_seconds(name, 1 if quick else REPEATS) for name in ("qatlib", "torch", "qatlib.ai8x")},
        "rows": [
            row("draw people, all cores", "pictures", pictures, drawing),
            row("calibration, Nine, by pictures", "pictures", few, calibration),
            row("calibration, Nine, by width", "x channels", widths, lambda width: calibration(few[0], width)),
            row("QAT step of Nine, by batch", "batch", batches, lambda n: training(Nine, n, shape)),
            row("QAT step of Nine, by width", "x channels", widths, lambda width: training(partial(Nine, width), batch, shape)),
            row("QAT step of PoseTiny, by batch", "batch", batches, lambda n: training(PoseTiny, n, PoseTiny.input_shape)),
            *engine_rows(engine),
            *engines_by_width(widths, batch),
        ],
    }


def print_growth(result: dict) -> None:
    print("\nimport: " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in result["imports"].items()))
    rows = []
    for line in result["rows"]:
        sizes = ", ".join(f"{size:g}" for size in line["sizes"])
        seconds = ", ".join(f"{s:.{max(0, 2 - math.floor(math.log10(s)))}f}" for s in line["seconds"])
        pace = f"{line['sizes'][-1] / line['seconds'][-1]:,.0f}" if line["unit"] == "pictures" else ""
        rows.append({"": line["name"], "sizes": sizes, "seconds": seconds, "a second": pace, "slope": f"{line['slope']:.2f}"})
    print(f"\n{table(rows)}")
