"""How times grow: drawing, calibration, training steps and the engines, each at several sizes, with the log-log slope.

A slope of 1 means that twice the size takes twice the time; below 1, that a fixed cost still shows.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from qatlib import ai8x
from qatlib.bench_steps import QAT, Nine, build, stepper

REPEATS = 3


def fastest(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of some runs: other work on the machine only ever adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent p of the best fit seconds = c * size^p.

    >>> round(slope([1, 2, 4], [3.0, 12.0, 48.0]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def row(name: str, unit: str, sizes: Sequence[float], seconds: Callable[[float], float]) -> dict:
    """One line of the table; `seconds(size)` measures. The first size is measured once more in front, to warm up."""
    seconds(sizes[0])
    times = [seconds(size) for size in sizes]
    return {"name": name, "unit": unit, "sizes": list(sizes), "seconds": times, "slope": slope(sizes, times)}


def import_seconds(name: str, repeats: int = REPEATS) -> float:
    """Seconds that `import name` takes in a fresh interpreter, without starting the interpreter."""
    code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(repeats)]
    return min(float(run.stdout) for run in runs)


def draw_seconds(n: float) -> float:
    """All cores, as the pose data is drawn."""
    from qatlib.pose.figures import draw

    return fastest(lambda: draw(int(n), seed=1, workers=os.cpu_count(), progress=False), 2)


def calibration_seconds(n: float, batch: int = 32) -> float:
    """`pre_qat` of the nine-layer network over n pictures."""
    loader = torch.randint(-128, 128, (int(n), *Nine.input_shape)).div(128).split(batch)

    def calibrate() -> None:
        torch.manual_seed(0)
        model = Nine()
        ai8x.fuse_bn_layers(model)
        ai8x.pre_qat(model, loader, {"start_epoch": 1, "weight_bits": 8})

    return fastest(calibrate, 2)


def step_seconds(batch: float = 16, width: float = 1.0) -> float:
    """One QAT training step of the nine-layer network, its channels times `width`."""
    step = stepper(build(partial(Nine, width), QAT), int(batch), Nine.input_shape)
    step()
    return fastest(step, 5)


def engine_rows(sizes: Sequence[int]) -> list[dict]:
    """Every engine on n pictures of PoseTiny, as exported; engines that cannot run here (no gcc) are left out."""
    from qatlib.export.check import check_folder, export_all
    from qatlib.pose.model import PoseTiny

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
    pictures = (8, 16) if quick else (250, 1000, 4000)
    batches, widths = ((1, 2), (0.5, 1)) if quick else ((8, 16, 32), (0.5, 1, 2))
    return {
        "imports": {name: import_seconds(name, 1 if quick else REPEATS) for name in ("qatlib", "torch", "qatlib.ai8x")},
        "rows": [
            row("draw people, all cores", "pictures", pictures, draw_seconds),
            row("calibration (pre_qat), Nine", "pictures", (4, 8) if quick else (64, 128, 256), calibration_seconds),
            row("QAT step of Nine, by batch", "pictures", batches, step_seconds),
            row("QAT step of Nine, by width", "x channels", widths, lambda width: step_seconds(2 if quick else 16, width)),
            *engine_rows((4, 8) if quick else (16, 64, 256)),
        ],
    }


def print_growth(result: dict) -> None:
    print("\nimport: " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in result["imports"].items()))
    print(f"\n{'':<30}{'sizes':<22}{'seconds':<26}{'a second':>12}{'slope':>8}")
    for line in result["rows"]:
        sizes = ", ".join(f"{size:g}" for size in line["sizes"])
        seconds = ", ".join(f"{s:.{max(0, 2 - math.floor(math.log10(s)))}f}" for s in line["seconds"])
        pace = f"{line['sizes'][-1] / line['seconds'][-1]:,.0f}" if line["unit"] == "pictures" else ""
        print(f"{line['name']:<30}{sizes:<22}{seconds:<26}{pace:>12}{line['slope']:>8.2f}")
