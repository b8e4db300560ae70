"""The page of a sweep: what it holds as text, and what it does in a real Chromium."""

import copy
import math
import re

import pytest
from tests.reporting.browser import Browser
from tests.reporting.sweep_example import example_points, failed_point, impossible_point
from tests.reporting.test_page_in_chromium import BACKGROUND, CONTRAST, OVERFLOW

from secateur.errors import SecateurError
from secateur.reporting import sweep_training
from secateur.reporting.sweep_lines import curves, dense_level, zoomed
from secateur.reporting.sweep_page import render, write_sweep_html
from secateur.reporting.sweep_series import studies
from secateur.reporting.sweep_table import cells, columns

pytest.importorskip("jinja2", reason="install the extra 'report' (Jinja2)")


@pytest.fixture(scope="module")
def points():
    return [*example_points(3), impossible_point(), failed_point()]


def long_names():
    """Curves, models and errors that nobody made room for, and more curves than colours."""
    found = []
    for number in range(10):
        for point in example_points(1):
            if point["curve"] in ("dense", "weights, one-shot") and (
                number == 0 or point["curve"] != "dense"
            ):
                name = f"<script>alert({number})</script> " + "unbroken_name_" * 5
                curve = point["curve"] if point["curve"] == "dense" else name
                found.append(
                    point | {"curve": curve, "fingerprint": f"{number}{point['fingerprint']}"}
                )
    return [*found, failed_point() | {"error": "E" * 300}]


def test_findings_come_before_figures_and_the_table(points):
    page = render(points)
    places = [page.index(text) for text in ('id="findings-0"', 'id="figures-0"', 'id="table-0"')]
    assert places == sorted(places)
    assert "part at 70" in page and "Hypothesis" in page


def test_impossible_and_failed_points_are_shown(points):
    page = render(points)
    assert "dense_3 has 2 units" in page and "MemoryError" in page
    assert "What has no figures" not in render(example_points(1))


def test_borrowed_times_are_marked(points):
    (study,) = studies(points)
    table = cells(study)
    text = dict(columns(table))["time"]
    weights = next(c for c in table if c.curve == "weights, one-shot")
    units = next(c for c in table if c.curve == "units, one-shot" and c.asked == 0.8)
    assert text(weights) == "149 us*" and text(units) == "15.8 us" and text(table[0]) == "149 us"
    assert "the dense network's, whose shape it has" in render(points).replace("&#39;", "'")


def test_the_same_points_make_the_same_page(points):
    assert render(points) == render(points[::-1])


def test_points_that_lack_everything_still_make_a_page():
    bare = [failed_point() | {"data": None, "machine": None, "versions": None, "created": None}]
    page = render(bare)
    assert "support no finding" in page and "No point of this study was finished" in page


def test_no_point_is_one_line():
    with pytest.raises(SecateurError, match="received no point"):
        render([])


def test_the_zoomed_axis_gives_each_tenth_of_the_rest_as_much_room():
    assert zoomed(0.99) - zoomed(0.9) == pytest.approx(zoomed(0.9) - zoomed(0.0))
    assert zoomed(1.0) == pytest.approx(4.0)


def test_curves_follow_the_records(points):
    (study,) = studies(points)
    line = next(c for c in curves(study, "accuracy") if c.name == "units, one-shot")
    at = [p["test"]["accuracy"] for p in points
          if p["curve"] == line.name and p["sparsity"]["asked"] == 0.9 and p["status"] == "done"]  # fmt: skip
    assert dict(line.points)[0.9] == pytest.approx(sum(at) / 3)
    low, high = next((low, high) for x, low, high in line.band if x == 0.9)
    assert low < min(at) and high > max(at)  # of three seeds the interval is wider than the range
    realised = next(c for c in curves(study, "accuracy", "realised") if c.name == line.name)
    assert realised.points[-1][0] == pytest.approx(0.9992 * 0.99)
    assert not any("scratch" in c.name for c in curves(study, "accuracy", "realised"))
    assert dense_level(study, "time").mean == 148.6


def test_time_has_a_line_a_kind(points):
    (study,) = studies(points)
    found = {c.name: c for c in curves(study, "time")}
    assert set(found) == {"weights", "units", "scratch"}
    assert found["weights"].borrowed and not found["units"].borrowed


# --- training -------------------------------------------------------------------------------------


def test_training_begins_where_the_dense_network_ended(points):
    (study,) = studies(points)
    found = sweep_training.trainings(study, "loss")
    dense = next(one for one in found if one.number is None and one.validation)
    assert [epoch for epoch, _ in dense.points] == list(range(1, 11))
    own = [one for one in found if one.name == "units + 1 epoch" and one.validation]
    assert [one.k for one in own] == [0.8, 0.9, 0.95] and all(one.joined for one in own)
    assert [one.points[0] for one in own] == [dense.points[-1]] * 3
    after = [p["history"]["after"]["val_loss"][0] for p in points
             if p["curve"] == "units + 1 epoch" and p["sparsity"]["asked"] == 0.9]  # fmt: skip
    assert own[1].points[1:] == [(11.0, pytest.approx(sum(after) / 3))]
    small = next(one for one in found if "scratch" in one.name)
    assert small.points[0][0] == 1.0 and not small.joined
    assert not any("one-shot" in one.name for one in found)


def test_an_epoch_that_diverged_or_was_not_validated_is_left_out(points):
    own = [p for p in points if p["curve"] == "weights + 1 epoch" and p["status"] == "done"]
    odd = copy.deepcopy(own)
    for point in odd:
        point["history"]["after"] = {"loss": [math.nan, 0.5, None], "val_loss": [None, 0.5, 0.75]}
    (study,) = studies(odd)
    found = {one.validation: one for one in sweep_training.trainings(study, "loss") if one.k == 0.9}
    assert found[False].points[1:] == [(12.0, 0.5)]
    assert found[True].points[1:] == [(12.0, 0.5), (13.0, 0.75)]
    assert (
        "NaN" not in render(odd) and "nan" not in sweep_training.figure(study)["charts"][0]["svg"]
    )


def test_a_sweep_that_trained_nothing_has_no_such_section(points):
    bare = [p | {"history": {"dense": {}, "after": {}}} for p in points if p["status"] == "done"]
    assert 'id="training-0"' not in render(bare) and 'id="training-0"' in render(points)
    (study,) = studies(bare)
    assert sweep_training.figure(study) is None and sweep_training.plot_lines(study) == []


def test_many_trainings_stay_some_kilobytes(points):
    """Ten curves at ten sparsities, thirty epochs each, as a full challenge has them."""
    numbers = [1 / (n + 3) for n in range(30)]
    history = {key: numbers for key in ("loss", "accuracy", "val_loss", "val_accuracy")}
    (template,) = [p for p in points if p["curve"] == "weights + 1 epoch" and p["seed"] == 0
                   and p["sparsity"]["asked"] == 0.9]  # fmt: skip
    many = [
        template | {"curve": f"curve {c}", "sparsity": template["sparsity"] | {"asked": k / 11},
                    "history": {"dense": history, "after": history}, "fingerprint": f"{c}-{k}"}
        for c in range(10) for k in range(1, 11)
    ]  # fmt: skip
    (study,) = studies(many)
    charts = sweep_training.figure(study)["charts"]
    assert [chart["name"] for chart in charts] == ["Loss", "Accuracy"]
    assert sum(len(chart["svg"]) for chart in charts) < 500_000


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(chromium):
    tab = Browser(chromium)
    yield tab
    tab.close()


@pytest.fixture(scope="module", params=["challenge", "long names", "two data sets"])
def page(request, tmp_path_factory, points):
    records = {
        "challenge": lambda: points,
        "long names": long_names,
        "two data sets": lambda: [*points, *example_points(1, data="fashion-mnist")],
    }[request.param]()
    return write_sweep_html(records, tmp_path_factory.mktemp("sweep") / "page.html")


@pytest.fixture(scope="module")
def challenge(tmp_path_factory, points):
    return write_sweep_html(points, tmp_path_factory.mktemp("challenge") / "page.html")


def test_the_console_is_silent_and_nothing_is_requested(browser, page):
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways(browser, page, width):
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOW) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, page, scheme):
    browser.open(page, scheme=scheme)
    assert browser.evaluate(CONTRAST) == []


def test_print_is_light_without_controls(browser, challenge):
    browser.open(challenge, width=718, scheme="dark", media="print")
    assert browser.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    assert browser.evaluate("document.documentElement.scrollWidth") <= 718
    style = "getComputedStyle(document.querySelector('.controls')).display"
    assert browser.evaluate(style) == "none"


VISIBLE = """[...document.querySelectorAll('.plot')].filter(e => !e.hidden)
  .map(e => e.dataset.axis + ' ' + e.dataset.sparsity)"""


def test_axis_and_sparsity_are_chosen(browser, challenge):
    browser.open(challenge)
    assert browser.evaluate(VISIBLE) == ["zoomed asked"] * 3
    browser.evaluate("document.querySelector('input[value=even]').click()")
    browser.evaluate("document.querySelector('input[value=realised]').click()")
    assert browser.evaluate(VISIBLE) == ["even realised"] * 3


def test_a_curve_is_hidden_in_every_figure(browser, challenge):
    drawn = "[...document.querySelectorAll('.plot:not([hidden]) .curve-0')].filter(e => e.getClientRects().length).length"
    browser.open(challenge)
    before = browser.evaluate(drawn)
    browser.evaluate("document.querySelector('input[data-curve=\"0\"]').click()")
    assert before > 20 and browser.evaluate(drawn) == 0


def test_values_are_read_under_the_pointer(browser, challenge):
    browser.open(challenge)
    browser.evaluate("""(() => {
      const svg = document.querySelector('.plot:not([hidden]) svg');
      const mark = [...svg.querySelectorAll('.mark')].find(e => e.textContent.includes('95 %'));
      const box = mark.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.x + 1, clientY: box.y + 40}));
    })()""")
    read = browser.evaluate("document.querySelector('.plot:not([hidden]) .readout').textContent")
    assert read.startswith("asked 95 %: ")
    assert re.search(r"weights, one-shot: \d\d\.\d\d %", read)


STRONG = """[...document.querySelectorAll('.course .line:not(.aside):not(.dashed) title')]
  .filter(e => e.parentElement.getClientRects().length).map(e => e.textContent)"""


def test_the_sparsity_whose_training_stands_out_is_chosen(browser, challenge):
    browser.open(challenge)
    before = browser.evaluate(STRONG)
    assert "units + 1 epoch at 90 %, validation" in before and "dense, validation" in before
    assert not any("at 95 %" in name for name in before)
    browser.evaluate(
        "[...document.querySelectorAll('.trainings label')].find(e => e.textContent.trim() === '95 %').click()"
    )
    after = browser.evaluate(STRONG)
    assert "units + 1 epoch at 95 %, validation" in after and not any("at 90 %" in n for n in after)
    assert browser.evaluate("document.querySelector('[data-level]').textContent") == "95 %"
    boxes = "[...document.querySelectorAll('.trainings input[data-curve]')]"
    browser.evaluate(f"{boxes}.forEach(e => e.click())")
    assert browser.evaluate(STRONG) == ["dense, validation"] * 2


def test_an_epoch_is_read_under_the_pointer(browser, challenge):
    browser.open(challenge)
    browser.evaluate("""(() => {
      const svg = document.querySelectorAll('.course svg')[1], box = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 20, clientY: box.y + 40}));
    })()""")
    read = browser.evaluate("document.querySelectorAll('.course .readout')[1].textContent")
    assert read.startswith("epoch 11: ")
    assert re.search(r"units \+ 1 epoch at 90 %, validation: \d\d\.\d\d %", read)
