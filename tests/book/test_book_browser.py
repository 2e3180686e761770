"""The book as a reader meets it: from the disk, offline, without a kernel, in headless Chromium."""

import re
import statistics
import sys
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from qatcourse import ROOT
from qatcourse.book import frames, live
from qatcourse.viz import widgets
from qatcourse.viz.widgets import Prediction

pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 800}
SLIDER = ".slider-figure[data-ready]"
# Milliseconds from a key press to the frame in which the picture is decoded and in the page.
LATENCY = """(input) => new Promise((done) => {
  const picture = input.closest('.slider-figure').querySelector('.picture');
  const watcher = new MutationObserver(async () => {
    watcher.disconnect();
    await picture.querySelector('img')?.decode();
    done(performance.now() - start);
  });
  let start;
  watcher.observe(picture, {childList: true, subtree: true});
  input.addEventListener('keydown', () => { start = performance.now(); }, {once: true, capture: true});
})"""


def pages_with(book, mark: str) -> list[str]:
    return [name for name in book.pages if mark in (book.out / name).read_text()]


def ready(page):
    page.wait_for_function("() => [...document.querySelectorAll('.slider-figure')].every(f => 'ready' in f.dataset)")


@pytest.mark.parametrize("scheme, size", [("light", {"width": 1300, "height": 900}), ("dark", PHONE)])
def test_every_page_opens_without_a_complaint(book, visit, scheme, size):
    """No error, no missing picture, nothing wider than the screen; names, roles and contrast as axe wants them.

    In the dark only where a lesson shows something: the colours of all other pages are the theme's.
    """
    found = {}
    for name in [name for name in book.pages if scheme == "light" or not re.search("solutions/|reference/(?!quantizers)", name)]:
        page = visit(name, viewport=size, color_scheme=scheme)
        ready(page)
        broken = page.evaluate("() => [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(-60))")
        asked = {"preload": False}  # to preload is to fetch style sheets
        if scheme == "dark":
            asked["runOnly"] = ["color-contrast", "scrollable-region-focusable"]  # what colours and width can change
        violations = [
            (each["id"], each["nodes"][0]["html"][:120]) for each in Axe().run(page, options=asked).response["violations"]
        ]
        wide = page.evaluate("() => document.scrollingElement.scrollWidth - window.innerWidth")
        complaints = [*page.problems, *broken, *violations, *[f"{wide} pixels too wide"] * (wide > 0)]
        if complaints or not page.title() or page.locator("h1").count() != 1:
            found[name] = complaints or "no title, or not one heading"
        page.context.close()
    assert not found


def test_every_slider_moves_by_keyboard_to_what_python_drew(book, visit):
    """Each control through all of its positions while the others stand where they stood, then all to their ends."""
    moved = 0
    for path, figures in book.drawn.items():
        page = visit(str(path.relative_to(ROOT).with_suffix(".html")))
        ready(page)
        assert page.locator(SLIDER).count() == len(figures)
        for k, figure in enumerate(figures):
            moved += walk(page, page.locator(SLIDER).nth(k), figure)
        assert not page.problems
        page.context.close()
    assert moved > 150


def walk(page, shown, figure: dict) -> int:
    at = [control["at"] for control in figure["controls"]]
    check(page, shown, figure, at)
    count = 0
    for k, control in enumerate(figure["controls"]):
        last = len(control["choices"]) - 1
        for place in (*range(at[k] + 1, last + 1), *range(last - 1, -1, -1), *range(1, at[k] + 1)):
            control_of(shown, figure, k).press("ArrowRight" if place > at[k] else "ArrowLeft")
            at[k] = place
            check(page, shown, figure, at)
            count += 1
    for key, ends in (("End", [len(control["choices"]) - 1 for control in figure["controls"]]), ("Home", [0] * len(at))):
        if not any(control["radio"] for control in figure["controls"]):
            for k in range(len(at)):
                control_of(shown, figure, k).press(key)
            check(page, shown, figure, ends)
    return count


def control_of(shown, figure: dict, k: int):
    """The element of control `k` that takes keys."""
    control = shown.locator(".controls > *").nth(k)
    return control.locator("input:checked" if figure["controls"][k]["radio"] else "input")


def check(page, shown, figure: dict, at: list[int]) -> None:
    place = 0
    for control, k in zip(figure["controls"], at):
        place = place * len(control["choices"]) + k
    picture, sentence = figure["frames"][place]
    same = """([shown, html]) => {
      const made = document.createElement('template');
      made.innerHTML = html;
      return shown.querySelector('.picture').innerHTML === made.innerHTML;
    }"""
    assert page.evaluate(same, [shown.element_handle(), picture]), (figure["controls"], at)
    live = shown.locator("[aria-live=polite]")
    assert live.count() == 1 and live.text_content() == sentence
    for k, control in enumerate(figure["controls"]):
        if not control["radio"]:
            words = control["choices"][at[k]]
            field = control_of(shown, figure, k)
            assert field.get_attribute("aria-valuetext") == words == shown.locator("output").nth(k).text_content()


def test_words_become_radio_buttons_that_move_with_ranges(tmp_path, browser):
    """No lesson has such a slider yet; its picture is text, several elements, or one."""
    pictures = {"none": "only text", "two": "<p>1</p><p>2</p>", "one": "<svg><g>1</g></svg>"}
    figure = widgets.slider_figure(lambda bits, kind: (pictures[kind], f"{bits} <bits>, {kind}."), bits=[2, 4, 8], kind=[*pictures])
    made = frames.positions(figure)
    text = live.slider(made, tmp_path / "frames", "", "one")
    script = (Path(live.__file__).parent / "static" / "book.js").read_text()
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{text}<script>{script}</script>")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    ready(page)
    assert walk(page, page.locator(SLIDER), made) == 8
    page.close()


def test_every_question_answers_and_explains(book, visit):
    asked = 0
    for name in pages_with(book, 'class="question"'):
        page = visit(name)
        for k in range(page.locator(".question").count()):
            question = page.locator(".question").nth(k)
            choices = [label.strip() for label in question.locator("label").all_text_contents()]
            reply = question.locator("[aria-live=polite]")
            assert reply.text_content() == "Choose an answer, then read on."
            said = []
            for i in range(len(choices)):
                question.locator("input").nth(i).press("Space")
                said.append(reply.text_content())
            (right,) = (k for k, words in enumerate(said) if words.startswith("Yes. "))
            because = said[right].removeprefix("Yes. ")
            truth = Prediction("", choices, choices[right], because)
            expected = [
                f"Not this time: {truth.answer}. {because}" if i != right else f"Yes. {because}" for i in range(len(choices))
            ]
            assert said == expected and len(because) > 10
            asked += 1
        assert not page.problems
        page.context.close()
    assert asked > 50


def test_the_first_page_shows_a_slider_at_once(book, visit):
    for size in ({"width": 1400, "height": 900}, PHONE):
        page = visit("index.html", viewport=size)
        ready(page)
        box = page.locator(SLIDER).locator("input").bounding_box()
        assert box["y"] + box["height"] < size["height"], "the slider is below the fold"
        page.locator(SLIDER).locator("input").press("Home")
        said = page.locator(".qatlib-sentence").text_content()
        assert said.startswith("2-bit weights") and "PTQ" in said and "QAT" in said and "bytes" in said
        assert page.locator("text=engineers who train a network").bounding_box()["y"] < box["y"]


def test_tab_reaches_the_controls_of_a_page(book, visit):
    page = visit("index.html")
    ready(page)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.matches('.slider-figure input[type=range]')"):
            break
    page.keyboard.press("ArrowLeft")
    assert page.locator(".qatlib-sentence").text_content().startswith("4-bit weights")


def test_without_scripts_pictures_sentences_and_answers_are_there(book, visit):
    page = visit("notebooks/01_numbers_and_quantizers.html", java_script_enabled=False)
    figure = page.locator(".slider-figure")
    assert figure.locator("svg").is_visible() and not figure.locator(".controls").is_visible()
    assert "bits = 4, clip percent = 100" in figure.locator(".still").text_content()
    assert page.locator(".question details").first.is_visible()


def test_a_browser_that_cannot_unpack_says_so(book, browser):
    context = browser.new_context(offline=True)
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto((book.out / "index.html").as_uri())
    assert page.locator(".slider-figure .still").is_visible() and page.locator(".slider-figure img").is_visible()
    context.close()


def test_the_search_finds_a_word_offline(book, visit):
    page = visit("search.html", "?q=oscillation")
    page.wait_for_selector("ul.search a")
    assert any("straight" in found.lower() for found in page.locator("ul.search a").all_text_contents())
    assert not page.problems


def test_print_leaves_the_controls_out_and_keeps_the_pictures(book, visit):
    page = visit("notebooks/01_numbers_and_quantizers.html")
    ready(page)
    page.emulate_media(media="print")
    assert page.locator(".slider-figure svg").is_visible() and not page.locator(".slider-figure .controls").is_visible()
    assert not page.locator(".sidebar-drawer").is_visible()
    assert len(page.pdf()) > 50_000


def test_previous_and_next_lead_through_the_lessons(book, visit):
    page, seen = visit("notebooks/00_start_here.html"), []
    while "/notebooks/" in page.url and page.url.rsplit("/", 1)[1][:2].isdigit():
        seen.append(page.url.rsplit("/", 1)[1][:2])
        with page.expect_navigation():
            page.click("a.next-page")
    assert seen == [f"{k:02}" for k in range(17)] and not page.problems


def test_from_key_press_to_picture(book, visit, capsys):
    """Printed, not asserted, but for what no computer may take: times are those of this machine."""
    rows = []
    for path in book.drawn:
        name = str(path.relative_to(ROOT).with_suffix(".html"))
        page = visit(name)
        ready(page)
        for k in range(page.locator(SLIDER + " input[type=range]").count()):
            field, times = page.locator(SLIDER + " input[type=range]").nth(k), []
            field.press("Home")
            for i in range(20):
                last = int(field.get_attribute("max"))
                page.evaluate("(input) => { window.latency = (" + LATENCY + ")(input); }", field.element_handle())
                field.press("ArrowRight" if i // last % 2 == 0 else "ArrowLeft")
                times.append(page.evaluate("() => window.latency"))
            rows.append((path.stem[:24], k, statistics.median(times), max(times)))
        page.context.close()
    with capsys.disabled():
        print("\nkey press to picture, ms (page, slider, median, maximum of 20):", file=sys.stderr)
        for row in rows:
            print("  {:<26}{} {:6.1f} {:6.1f}".format(*row), file=sys.stderr)
    assert len(rows) > 14 and statistics.median(row[2] for row in rows) < 100
