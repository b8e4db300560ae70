"""The page in a real Chromium: silent console, no request, no overflow, dark mode, copy button."""

import copy

import pytest
from tests.reporting.browser import Browser
from tests.reporting.records_example import example_run, example_runs

from secateur.reporting import write_html

pytest.importorskip("jinja2", reason="install the extra 'report' (Jinja2)")

WIDTHS = (360, 390, 768, 1280, 1920)
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
# What sticks out of the window to the right, except inside a box that scrolls by itself.
OVERFLOW = """[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll, pre') && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => `${e.tagName} ${e.className.baseVal ?? e.className} ${e.textContent.slice(0, 30)}`)"""
# Contrast of every text with the first opaque colour behind it, by the formula of WCAG 2.
CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3]) layers.push(colour);
      if (colour[3] === 255) break;
    }
    return layers.reverse().reduce((under, over) =>
      under.map((v, i) => v + (over[i] - v) * over[3] / 255), [255, 255, 255]);
  };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('script, style, title, .skip') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const front = light(rgba(e.closest('svg') ? style.fill : style.color));
    const back = light(behind(e));
    const ratio = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${e.tagName} ${e.textContent.slice(0, 30)}`);
  }
  return poor;
})()"""


@pytest.fixture(scope="module")
def browser(chromium):
    tab = Browser(chromium)
    yield tab
    tab.close()


def long_names():
    run = copy.deepcopy(example_run(0))
    path = "backbone/block_11/" + "separable_convolution_" * 4 + "<script>alert(1)</script>/kernel"
    run["name"] = "a_recipe_with_a_name_that_has_no_place_to_break_" * 2
    run["plan"][0]["path"] = path
    for stage in run["stages"]:
        stage["weights"][0]["path"] = path
        stage["weights"] *= 10
    for row in run["rows"]:
        row["bytes"] *= 123_456
        row["runtime"] = "a runtime with delegates, " * 4
    return [run]


def no_labels():
    run = copy.deepcopy(example_run(0))
    run["rows"] = [row | {"accuracy": None, "latency": None} for row in run["rows"][:-1]]
    run["stages"], run["data"] = run["stages"][:2], None
    return [run]


RECORDS = {
    "three seeds": lambda: example_runs(3),
    "one seed": lambda: example_runs(1),
    "long names": long_names,
    "no labels": no_labels,
}


@pytest.fixture(scope="module", params=RECORDS)
def page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return write_html(RECORDS[request.param](), folder / "page.html")


def test_the_console_is_silent_and_nothing_is_requested(browser, page):
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.evaluate("performance.getEntriesByType('resource').map(e => e.name)") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(browser, page, width):
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOW) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, page, scheme):
    browser.open(page, scheme=scheme)
    assert browser.evaluate(CONTRAST) == []


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_html(example_runs(3), tmp_path_factory.mktemp("example") / "page.html")


def test_dark_mode_is_dark_and_light_mode_is_light(browser, example):
    def brightness(scheme):
        browser.open(example, scheme=scheme)
        rgb = browser.evaluate(BACKGROUND).removeprefix("rgb(").removesuffix(")")
        return sum(map(int, rgb.split(",")))

    assert brightness("light") > 3 * 230
    assert brightness("dark") < 3 * 40


def test_printing_is_light_and_fits_the_paper(browser, example):
    browser.open(example, width=718, scheme="dark", media="print")
    assert browser.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    assert browser.evaluate("document.documentElement.scrollWidth") <= 718
    assert browser.evaluate("getComputedStyle(document.querySelector('button')).display") == "none"


def test_the_wide_table_scrolls_in_its_own_box(browser, example):
    browser.open(example, width=360)
    box = "document.querySelector('.scroll:has(.main)')"
    assert browser.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
    assert browser.evaluate(f"{box}.tabIndex") == 0


def test_the_sentence_fits_the_first_screen(browser, example):
    for width, height in ((1280, 720), (390, 844)):
        browser.open(example, width=width, height=height)
        assert (
            browser.evaluate("document.querySelector('h1').getBoundingClientRect().bottom") < height
        )


def test_the_copy_button_does_something(browser, example):
    browser.open(example)
    browser.evaluate("document.querySelector('button[data-copy=command]').click()")
    browser.evaluate("new Promise(r => setTimeout(r, 200))")
    label = browser.evaluate("document.querySelector('button[data-copy=command]').textContent")
    assert label in {"Copied", "Selected"}


def test_bars_are_as_long_as_the_files_are_large(browser, example):
    browser.open(example)
    widths = browser.evaluate(
        "[...document.querySelectorAll('.result .bar.raw:is(rect)')]"
        ".map(e => e.getBoundingClientRect().width)"
    )
    assert len(widths) == 6
    assert widths[5] / widths[1] == pytest.approx(24472 / 85040, abs=0.01)
