"""How long does each widget take from key press to picture?  `python tests/speed/latency.py [05 06 ...]`  (none: all lessons)

Opens every lesson that has a slider in JupyterLab in headless Chromium (smoke preset), runs its cells, presses 20 keys on each
slider and each group of radio buttons, and prints median and maximum. Nothing is asserted: times are those of this computer.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from lab import FLAGS, chromium, run_all, server, widget_times

from qatcourse.viz import table
from qatlib.wording import Parser, command

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 900  # for all cells of one lesson


def lessons(numbers: list[str]) -> list[str]:
    """Names of the lessons that show a slider, of `numbers` only where given. ValueError for a number without one."""
    paths = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    names = [path.name for path in paths if "slider_figure(" in (text := path.read_text()) or "bit_width_slider(" in text]
    if missing := [number for number in numbers if number not in {name[:2] for name in names}]:
        raise ValueError(f"lesson {missing[0]} has no slider; lessons with one: {', '.join(name[:2] for name in names)}")
    return [name for name in names if not numbers or name[:2] in numbers]


def measure(names: list[str]) -> list[tuple[str, str, list[float]]]:
    """(lesson, widget, milliseconds of 20 key presses) for every widget of these lessons."""
    from playwright.sync_api import sync_playwright

    rows = []
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        folder = Path(scratch) / "course" / "notebooks"
        shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "qatcourse"))
        browser = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        with server(folder, Path(scratch)) as (address, token):
            for name in names:
                page = browser.new_page(viewport={"width": 1400, "height": 1000})
                if errors := run_all(page, address, token, name, SECONDS):
                    raise ValueError(f"{name} failed: {errors[0]}")
                rows += [(name[:2], widget, times) for widget, times in widget_times(page)]
                page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
                page.close()
                print(f"lesson {name[:2]} measured", file=sys.stderr, flush=True)
        browser.close()
    return rows


@command("latency")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="tests/speed/latency.py", description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="lessons to measure, such as 05 06; none: all that have a slider")
    names = lessons(parser.parse_args(arguments).numbers)
    if chromium() is None:
        raise ValueError("Chromium is not installed: apt-get install chromium")
    rows = measure(names)
    names = ("lesson", "widget", "median ms", "maximum ms", "presses")
    cells = [(*row[:2], f"{statistics.median(row[2]):.0f}", f"{max(row[2]):.0f}", len(row[2])) for row in rows]
    print(table([dict(zip(names, row)) for row in cells]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
