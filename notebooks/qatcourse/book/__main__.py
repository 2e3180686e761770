"""Build the book:  python -m qatcourse.book [--out book]   See `qatcourse.book`."""

import statistics
import sys
import time
from pathlib import Path

from qatcourse import ROOT
from qatlib.wording import Parser, command


@command("book", "the book that was there is as it was")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m qatcourse.book", description="Build the course as static pages.")
    parser.add_argument("--out", type=Path, default=ROOT / "book", help="folder of the book; one that is there is replaced")
    options = parser.parse_args(arguments)
    try:
        from qatcourse.book.build import build
    except ModuleNotFoundError as problem:
        raise ValueError(f"{problem.name} is not installed; the book needs: pip install '.[book]'") from None
    if options.out.exists() and not (options.out / "objects.inv").is_file() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} holds something else than a book; choose another --out or remove it")
    began = time.perf_counter()
    made = build(options.out.resolve())
    sizes = sorted(made["bytes"].values())
    print(
        f"{options.out}/index.html: {made['pages']} pages in {time.perf_counter() - began:.0f} s; a page loads "
        f"{statistics.median(sizes) / 1e6:.2f} MB (median), at most {sizes[-1] / 1e6:.2f} MB; "
        f"{made['sliders']} sliders with {made['frames']} frames"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
