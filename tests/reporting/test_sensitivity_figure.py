"""Table, sentence and page of which weights hurt, from plain records: nothing that they do not say."""

import csv
import io
import re

import pytest
from rich.console import Console

from secateur.errors import SecateurError
from secateur.reporting.sensitivity import findings, grid, rankings, tables, write_csv
from secateur.reporting.sensitivity_page import render, write_html

PRUNED = {"a/kernel": 1000, "b/kernel": 200, "c/kernel": 800}


def record(kind, path, level, drop, **words):
    accuracy = None if drop is None else 0.9 - drop
    made = {
        "kind": kind, "path": path, "layer": None, "shape": None, "size": None, "n": 1000,
        "accuracy": accuracy, "loss": None if drop is None else 0.3 + drop, "mse": None,
        "drop": drop, "output_error": 0.1,
    }  # fmt: skip
    if path is not None:
        made |= {"layer": path.split("/")[0], "shape": [10, 10], "size": PRUNED.get(path, 100)}
    made["sparsity" if kind == "pruning" else "bits"] = level
    if kind == "quantization":
        made |= {"error": 0.01, "sqnr_db": 40.0, "layer_error": 0.02, "scale": "per output"}
    return made | words


def pruned(drops, levels=(0.5, 0.9), n=1000):
    """{path: drop at each level} as records."""
    made = [record("pruning", None, 0.0, 0.0, n=n)]
    for path, values in drops.items():
        made += [record("pruning", path, s, d, n=n) for s, d in zip(levels, values, strict=True)]
    return made


def quantized(drops, levels=(8, 4)):
    made = [record("quantization", None, None, 0.0)]
    for path, values in drops.items():
        rows = zip(levels, values, strict=True)
        made += [record("quantization", path, bits, drop) for bits, drop in rows]
    return made


def many(count=30):
    drops = {f"layer{i:02}/kernel": (0.001 * i, 0.02 * i) for i in range(count)}
    return pruned(drops) + quantized(drops)


@pytest.mark.parametrize(
    ("drops", "sentence"),
    [
        (
            {"a/kernel": (0.0, 0.001), "b/kernel": (0.001, 0.123), "c/kernel": (0.0, 0.01)},
            "b/kernel at 90 % alone costs 12.3 points, each of the other 2 at most 1.0 (less than "
            "the 3.2 that 1,000 samples can tell); it holds 10.0 % of these weights: leave it out "
            'with select = { exclude = ["b/kernel"] }.',
        ),
        (  # most of the weights: leaving it out would leave little to prune
            {"a/kernel": (0.0, 0.2), "b/kernel": (0.0, 0.0)},
            "a/kernel at 90 % alone costs 20.0 points, b/kernel 0.0 (less than the 3.2 that 1,000 "
            "samples can tell); it holds 83.3 % of these weights: prune it less (50 % alone costs "
            "nothing that shows).",
        ),
        (  # noise, and gains that are none
            {"a/kernel": (0.01, 0.03), "b/kernel": (-0.02, -0.03)},
            "No weight pruned to 90 % alone costs more than 3.2 points, the least that 1,000 "
            "samples can tell.",
        ),
        (  # all alike
            {"a/kernel": (0.0, 0.30), "b/kernel": (0.0, 0.31)},
            "At 90 % each weight alone costs between 30.0 and 31.0 points, too close for 1,000 "
            "samples to tell them apart.",
        ),
        (  # a tie at the top, and the rest hurts too: no advice
            {"a/kernel": (0.0, 0.40), "b/kernel": (0.0, 0.41), "c/kernel": (0.0, 0.1)},
            "b/kernel and a/kernel at 90 % each alone cost 40.0 to 41.0 points (too close for "
            "1,000 samples to tell them apart), c/kernel 10.0.",
        ),
        (  # curves that cross
            {"a/kernel": (0.01, 0.4), "b/kernel": (0.15, 0.2)},
            "a/kernel at 90 % alone costs 40.0 points, b/kernel 20.0; at 50 % it is b/kernel that "
            "costs more, 15.0 to 1.0.",
        ),
        (
            {"a/kernel": (0.0, 0.4)},
            "a/kernel, the only one looked at, costs 40.0 points at 90 %.",
        ),
    ],
)
def test_the_sentence_says_what_the_samples_can_tell(drops, sentence):
    assert findings(pruned(drops)) == sentence


def test_more_samples_tell_more_and_bits_bring_no_advice():
    drops = {"a/kernel": (0.0, 0.001), "b/kernel": (0.0, 0.03)}
    assert findings(pruned(drops)).startswith("No weight")
    assert findings(pruned(drops, n=10_000)).startswith("b/kernel at 90 % alone costs 3.0 points")
    told = findings(quantized({"a/kernel": (0.0, 0.0), "b/kernel": (0.0, 0.2)}))
    assert told == (
        "b/kernel at 4 bits alone costs 20.0 points, a/kernel 0.0 (less than the 3.2 that 1,000 "
        "samples can tell)."
    )


def test_without_labels_outputs_are_compared():
    made = pruned({"a/kernel": (None, None), "b/kernel": (None, None)})
    for one in made:
        one |= {"drop": None, "accuracy": None}
    made[2]["output_error"] = 0.5
    assert findings(made) == (
        "a/kernel at 90 % alone changes the outputs by 50.0 % (relative RMS), b/kernel by 10.0 %."
    )
    headings, rows = grid(rankings(made)[0])
    assert headings[3:] == ["50 %\noutputs' error", "90 %\noutputs' error"]
    assert rows[0] == ["a/kernel", "10 \N{MULTIPLICATION SIGN} 10", "1,000", "10.0 %", "50.0 %"]
    assert "points" not in render(made, "net")


def test_a_point_that_overflowed_is_the_worst_and_does_not_break_the_page():
    made = pruned({"a/kernel": (0.0, 0.1), "b/kernel": (0.0, 0.2)})
    made[2] |= {"output_error": None, "loss": None}
    assert list(rankings(made)[0].weights) == ["b/kernel", "a/kernel"]
    assert "nan" not in render(made, "net")


def test_the_table_is_sorted_by_harm():
    made = many()
    ranking = rankings(made)[0]
    assert list(ranking.weights)[:2] == ["layer29/kernel", "layer28/kernel"]
    headings, rows = grid(ranking)
    assert [h.replace("\n", " ") for h in headings[3:]] == ["50 % points", "90 % points"]
    assert rows[0][3:] == ["-2.9", "-58.0"]
    console = Console(width=120, file=io.StringIO(), record=True)
    for table in tables(made):
        console.print(table)
    text = console.export_text()
    assert text.index("layer29/kernel") < text.index("layer28/kernel")
    assert "which tell no less than 3.2 points" in " ".join(text.split())


def test_of_thirty_lines_the_worst_have_names_and_the_others_are_grey():
    page = render(many(), "net", "digits")
    svg = re.search(r'<svg class="chart".*?</svg>', page, re.S).group()
    assert svg.count('<path class="line rest"') == 26
    assert [svg.count(f'<path class="line worst-{i}"') for i in range(5)] == [1, 1, 1, 1, 0]
    # The worst are drawn last, on top of the crowd.
    assert svg.rindex('"line rest"') < svg.index('"line worst-3"') < svg.index('"line worst-0"')
    legend = re.search(r'<ul class="names">.*?</ul>', page, re.S).group()
    assert legend.count("<code>") == 4 and "the other 26" in legend
    assert "nan" not in svg and "inf" not in svg


def test_a_few_lines_all_have_names_and_lie_where_the_numbers_say():
    page = render(pruned({"a/kernel": (0.0, 0.4), "b/kernel": (0.0, 0.0)}), "net")
    assert "the other" not in re.search(r'<ul class="names">.*?</ul>', page, re.S).group()
    points = re.search(r'<path class="line worst-0" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)L'
                       r"([\d.]+) ([\d.]+)", page)  # fmt: skip
    x0, y0, x1, y1, x2, y2 = map(float, points.groups())
    # What is left is halved once at 50 %, and 3.32 times at 90 %.
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3.3219, rel=0.01)
    assert y0 == y1 < y2  # the same accuracy, then a lower one: SVG counts downwards
    assert "a/kernel: 50 % at zeros, this weight alone 90 %" in page


def test_bars_are_as_long_as_the_errors():
    made = quantized({"a/kernel": (0.0, 0.2), "b/kernel": (0.0, 0.0)}, levels=(8, 4))
    made[2]["layer_error"] = 0.04
    page = render(made, "net")
    bars = re.findall(r'aria-label="(\S+): ([^"]*)".*?<rect[^>]*width="([\d.]+)%"', page)
    assert bars[2:] == [
        ("a/kernel", "4.0 %, 40.0 dB, -20.0 points", "100.00"),
        ("b/kernel", "2.0 %, 40.0 dB, 0.0 points", "50.00"),
    ]
    assert "The other 18 are in the table" in render(many(), "net")


def test_the_page_asks_for_nothing_and_escapes_names(tmp_path):
    made = pruned({"<b>&/kernel": (0.0, 0.4), "b/kernel": (0.0, 0.0)})
    page = write_html(made, tmp_path / "page.html", "<i>net", "<u>data").read_text()
    for tag in ("<b>", "<i>", "<u>", "<script", "http://", "https://"):
        assert tag not in page.replace("http://www.w3.org/2000/svg", "")
    with pytest.raises(SecateurError, match="cannot be written"):
        write_html(made, tmp_path / "no" / "page.html", "net")


def test_csv_has_every_record(tmp_path):
    path = write_csv(many(2), tmp_path / "found.csv")
    with path.open() as stream:
        read = list(csv.DictReader(stream))
    assert len(read) == len(many(2))
    assert read[1]["shape"] == "10x10"
    assert (read[0]["path"], read[0]["sparsity"], read[-1]["bits"]) == ("", "0.0", "4")
