"""The command line of a sweep; see `python -m qatcourse.sweep --help`."""

import argparse
import sys

from qatcourse.sweep.driver import describe, run
from qatcourse.sweep.grid import parse_grid
from qatlib.wording import command, folder


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m qatcourse.sweep",
        description="Run a notebook with every combination of parameters. Started again, it runs only what is not finished.",
        epilog="Exit code: 0 all runs finished, 1 some failed, 2 the sweep itself could not run, 130 interrupted.",
    )
    p.add_argument("notebook", help="an .ipynb with a cell tagged `parameters`; qatcourse.sweep.record names the table's numbers")
    p.add_argument("--grid", nargs="+", required=True, metavar="NAME=VALUES", help="weight_bits=8,4,2 seed=0:3 (0:3 is 0, 1, 2)")
    p.add_argument("--out", type=folder, required=True, help="folder for results, executed notebooks, results.csv and results.png")
    p.add_argument("--workers", type=int, help="notebooks at a time on this computer (default: one a processor)")
    p.add_argument("--threads-per-worker", type=int, help="threads a kernel may use (default: the processors, shared out)")
    p.add_argument("--scheduler", metavar="tcp://HOST:8786", help="run on this dask.distributed cluster instead (extra [cluster])")
    p.add_argument("--notebooks", metavar="URL", help="write executed notebooks there, for example s3://bucket/folder (extra [s3])")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    return p


@command("sweep", "finished runs are kept, the same command continues")
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Problems are one sentence on standard error, never a traceback."""
    options = parser().parse_args(arguments)
    sweep = run(options.notebook, parse_grid(options.grid), options.out, options.workers, options.threads_per_worker,
                options.scheduler, options.notebooks, not options.quiet)  # fmt: skip
    for line in sweep.sentences:
        print(line)
    print(describe(sweep))
    return 1 if sweep.failed else 0


if __name__ == "__main__":
    sys.exit(main())
