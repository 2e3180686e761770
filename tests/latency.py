"""How long does each widget take from the key press to the new picture?  `python tests/latency.py [05 06 ...]`  (none: all lessons)

Opens every lesson that has a slider in JupyterLab in headless Chromium (smoke preset), runs its cells, presses 20 keys on each
slider and each group of radio buttons, and prints median and maximum. Nothing is asserted: times are those of this computer.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from lab import FLAGS, chromium, run_all, server, widget_times

ROOT = Path(__file__).resolve().parent.parent
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
        shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        browser = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        with server(folder, Path(scratch)) as (address, token):
            for name in names:
                page = browser.new_page(viewport={"width": 1400, "height": 1000})
                if errors := run_all(page, address, token, name, SECONDS):
                    raise RuntimeError(f"{name} failed: {errors[0]}")
                rows += [(name[:2], widget, times) for widget, times in widget_times(page)]
                page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
                page.close()
                print(f"lesson {name[:2]} measured", file=sys.stderr, flush=True)
        browser.close()
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests/latency.py", description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="lessons to measure, such as 05 06; none: all that have a slider")
    try:
        names = lessons(parser.parse_args(arguments).numbers)
        if chromium() is None:
            raise ValueError("Chromium is not installed: apt-get install chromium")
        rows = measure(names)
    except (ValueError, RuntimeError) as problem:
        print(f"latency: {problem}", file=sys.stderr)
        return 2
    print(f"{'lesson':8}{'widget':16}{'median ms':>10}{'maximum ms':>12}{'presses':>9}")
    for lesson, widget, times in rows:
        print(f"{lesson:8}{widget:16}{statistics.median(times):10.0f}{max(times):12.0f}{len(times):9}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
