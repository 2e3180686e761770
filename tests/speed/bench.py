"""Measure speed on this machine: `python tests/speed/bench.py`, or `make bench`.

Four parts, each with its own table: training steps (`bench_steps`), the engines of an exported network on this computer
(`bench_engines`) and on an emulated Cortex-M4 (`bench_cortex`), and how everything grows (`bench_growth`).
"""

import json
import os
import platform
from pathlib import Path

import torch
from bench_cortex import cortex, print_cortex
from bench_engines import engines, print_engines
from bench_growth import growth, print_growth
from bench_steps import Nine, print_steps, training_steps

from qatlib.files import prepare_folder, write_atomic
from qatlib.wording import Parser, command

MOST = {"rounds": 10_000, "threads": 256, "batch": 1024}
PARTS = ("steps", "engines", "cortex", "growth")


def machine() -> dict:
    """What a measurement depends on."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": load,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}  # fmt: skip


@command("bench")
def main(arguments: list[str] | None = None) -> int:
    """0: measured. 2: unusable options (one sentence says why), before anything is measured."""
    description = "Measure training steps, the engines of an exported network, and how everything else grows."
    parser = Parser(prog="python tests/speed/bench.py", description=description)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of interleaved steps or pictures (default: 15)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of the training steps (default: 2)")
    parser.add_argument("--batch", type=int, default=32, help="pictures a training step (default: 32)")
    parser.add_argument("--only", choices=PARTS, help="measure one of the four parts")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to FILE, too")
    options = parser.parse_args(arguments)
    for name in ("rounds", "threads", "batch"):
        if not 1 <= getattr(options, name) <= MOST[name]:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least 1 and at most {MOST[name]:,}")
    if options.json:
        prepare_folder(Path(options.json).parent)
    torch.set_num_threads(options.threads)
    result: dict = machine()
    print(", ".join(f"{key} {value}" for key, value in result.items()))
    for part in PARTS if options.only is None else (options.only,):
        result[part] = measure(part, options)
    if options.json:
        write_atomic(options.json, json.dumps(result, indent=1).encode())
    return 0


def measure(part: str, options):
    """Run one part and print its table."""
    from qatcourse.pose.model import PoseTiny

    if part == "engines":
        result = engines(options.rounds, options.quick)
        print_engines(result)
    elif part == "cortex":
        result = cortex()
        print_cortex(result)
    elif part == "growth":
        result = growth(options.quick)
        print_growth(result)
    else:
        result = {}
        for network in (Nine, PoseTiny):
            result[network.__name__] = training_steps(network, options.rounds, options.batch)
            print_steps(f"{network.__name__}, batch {options.batch}", result[network.__name__])
    return result


if __name__ == "__main__":
    raise SystemExit(main())
