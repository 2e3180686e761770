"""Lessons in a real browser: JupyterLab in headless Chromium, sliders moved from the keyboard, questions answered.

Needs Chromium (Debian: apt-get install chromium). Without it these tests are skipped, or fail where QATLIB_BROWSER_REQUIRED=1
says that they must not be, as in CI. Screenshots go to runs/screenshots. Slider times are printed, not asserted;
`python tests/speed/latency.py` measures every widget of every lesson.
"""

import re
import shutil
import statistics
from pathlib import Path

import pytest
from lab import key_times, next_key, press, run_all, server

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "runs" / "screenshots"
SECONDS = 300  # for all cells of one lesson; on an idle computer they need about 20
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "qatcourse"))
    with server(folder, tmp_path_factory.mktemp("lab")) as (address, token):
        yield address, token, folder


@pytest.fixture(scope="module", params=["01", "04", "07"])
def lesson(request, browser, lab):
    """(number, page) of a lesson whose cells have all run."""
    address, token, folder = lab
    name = next(folder.glob(f"{request.param}_*.ipynb")).name
    SHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    errors = run_all(page, address, token, name, SECONDS)
    assert not errors, errors
    yield request.param, page
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()


def shoot(page, element, name: str) -> None:
    element.evaluate("e => e.closest('.jp-Cell').scrollIntoView({block: 'start'})")
    page.wait_for_timeout(300)
    page.screenshot(path=SHOTS / f"{name}.png")


def cell_of(handle):
    return handle.evaluate_handle("e => e.closest('.jp-Cell')").as_element()


def shown(cell) -> tuple[str, str]:
    """(sentence, picture) that a slider's cell shows now."""
    sentence = cell.query_selector(".qatlib-sentence")
    return sentence.inner_text(), cell.evaluate("c => [...c.querySelectorAll('.widget-html-content')].map(p => p.innerHTML).join()")


def test_slider_moves_from_the_keyboard_and_changes_what_is_shown(lesson):
    number, page = lesson
    handles = page.query_selector_all(".noUi-handle")
    assert handles, f"lesson {number} shows no slider"
    for index, handle in enumerate(handles):
        cell = cell_of(handle)
        before, value = shown(cell), handle.get_attribute("aria-valuenow")
        key = next_key(handle, "ArrowRight")
        times = [press(page, handle, key)]
        page.wait_for_timeout(100)
        assert handle.get_attribute("aria-valuenow") != value
        assert shown(cell)[1] != before[1], f"slider {index} of lesson {number} moved, its picture did not change"
        times += key_times(page, handle, 19)
        label = cell.query_selector(".widget-label")
        name = label.inner_text() if label else "slider"
        where = f"lesson {number}, slider {index} (beside '{name}')"
        print(f"\n{where}: median {statistics.median(times):.0f} ms, maximum {max(times):.0f} ms of {len(times)}")
        shoot(page, handle, f"{number}_slider_{index}")


def test_question_is_answered_and_explains(lesson):
    number, page = lesson
    questions = page.locator(".jp-Cell", has_text=re.compile("Predict first")).filter(has=page.locator("input[type=radio]"))
    assert questions.count() > 0, f"lesson {number} asks nothing"
    question = questions.first
    assert "Choose an answer" in question.inner_text()
    question.locator("input[type=radio]").first.focus()
    page.keyboard.press("Space")
    reply = question.locator(".widget-html-content", has_text=re.compile("Yes|Not this time"))
    reply.wait_for(timeout=20_000)
    assert re.match(r"(Yes\.|Not this time:) .{10}", reply.inner_text()), reply.inner_text()
    shoot(page, question.element_handle(), f"{number}_question")


def test_figures_have_words(lesson):
    """JupyterLab gives pictures no alt text, whatever the output's metadata say; so each needs its sentence beside it."""
    number, page = lesson
    silent = page.evaluate("""() => [...document.querySelectorAll('.jp-OutputArea')]
      .filter(area => area.querySelector('img, svg[aria-label], .jp-RenderedSVG') && area.innerText.trim().length < 30)
      .map(area => area.closest('.jp-Cell').innerText.slice(0, 80))""")
    assert not silent, f"lesson {number}: pictures without a sentence: {silent}"
    shoot(page, page.query_selector(".jp-Cell"), f"{number}_top")
