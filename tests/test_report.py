"""The page of one record: every number is there, nothing is run or loaded, and a browser shows it without complaint."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, fields, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jinja2
import pytest
from oracle import mutant
from test_leaderboard import NET, PUBLISHED, Fake
from test_records import a_record, measured

from methods.base import Method, Paper, Reported
from repro import __main__ as cli
from repro import registry, report
from repro.boards import search_of
from repro.record import Measurement, code_version
from repro.verdict import deviation_texts, deviations

VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "source", "use", "image", "base"}
DENSE = Measurement(
    top1=93.53, top5=99.61, params=1_234_567, nonzero=1_234_560, macs=321_456_789,
    effective_macs=321_456_700, bits=39_506_144, bytes=4_938_268, onnx_bytes=4_940_001, bit_ops=329_171_751_936,
)  # fmt: skip
COMPRESSED = Measurement(
    top1=92.27, top5=99.08, params=617_283, nonzero=500_001, macs=100_200_300,
    effective_macs=90_100_200, bits=4_938_264, bytes=620_001, onnx_bytes=2_470_002, bit_ops=6_412_819_200,
)  # fmt: skip
CELL = {"threads": 2, "batch": 64, "rounds": 31, "dense_ms": 131.4, "dense_spread_ms": 6.57}
CELL |= {"compressed_ms": 65.7, "compressed_spread_ms": 5.81}
LATENCY = {"runtime": "onnxruntime 1.32.0", "device": "a cpu", "load": 0.25, "loaded": False, "kernel": "dense"}
LATENCY |= {"cells": [CELL]}
RULE = {"params": 700_000, "macs": 150_000_000, "dense_params": 1_234_567, "dense_macs": 300_000_000}
LAYERS = [
    {"name": "a", "dense": [64, 3], "compressed": [16, 3], "params": [192, 48], "nonzero": [192, 12], "macs": [9, 2]},
    {"name": "b", "dense": [10, 64], "compressed": None, "params": [640, 0], "nonzero": [640, 0], "macs": [8, 0]},
]
LAYERS = [layer | {"bit_ops": [77_777, 55]} for layer in LAYERS]


@dataclass
class Claimed(Fake):
    """A method with a paper that can be linked.

    Deviations
    - ``ratio`` is ours, and
      so is the rest
    - the second one
    """

    paper = Paper("A Paper", "A. Author", "CONF 2020", "https://example.org/paper", "https://example.org/code")


def a_full(**changes):
    """A record in which everything is measured."""
    full = {"dense": DENSE, "compressed": COMPRESSED, "latency": LATENCY, "counted": {"hrank_out_only": RULE}}
    return a_record(**{**full, "layers": LAYERS, "budget": "paper", **changes})


def a_page(record=None, cls=Claimed, **more):
    return report.page(a_full() if record is None else record, cls, PUBLISHED, **more)


class Read(HTMLParser):
    """What a page holds: ``skeleton`` (tags and attribute names), ``text``, ``tables`` of cells, ``attributes``."""

    def __init__(self, page):
        super().__init__()
        self.skeleton, self.attributes, self.tables, self.open, words = [], [], [], [], []
        self.words = words
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(words).split())

    def handle_starttag(self, tag, attrs):
        self.skeleton.append((tag, *(name for name, _ in attrs)))
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.open += [] if tag in VOID else [tag]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.skeleton.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data.strip().replace("\xa0", " ")

    def rows(self, table):
        """The rows of a table by their first cell."""
        return {row[0]: row[1:] for row in self.tables[table]}


# ------------------------------------------------------------------------------------------------ what the page says


def test_every_number_of_the_headline_is_there():
    record = a_full(
        dense=replace(DENSE, subset_top1=97.5),
        compressed=replace(COMPRESSED, subset_top1=96.25),
        after_compression={"top1": 41.55, "top5": 80.05, "subset_top1": 50.25},
    )
    rows = Read(a_page(record)).rows(0)
    assert rows["quantity"] == ["dense", "compressed", "change"]
    assert rows["top-1"] == ["93.53 %", "92.27 %", "-1.26 points"]
    assert rows["top-1 after compression, before training"] == ["93.53 %", "41.55 %", "-51.98 points"]
    assert rows["top-5"] == ["99.61 %", "99.08 %", "-0.53 points"]
    assert rows["top-5 after compression, before training"] == ["99.61 %", "80.05 %", "-19.56 points"]
    assert rows["top-1 among the subset's classes"] == ["97.50 %", "96.25 %", "-1.25 points"]
    assert rows["parameters"] == ["1,234,567", "617,283", "-50.0 %"]
    assert rows["nonzero parameters"] == ["1,234,560", "500,001", "-59.5 %"]
    assert rows["MACs"] == ["321,456,789", "100,200,300", "-68.8 %"]
    assert rows["effective MACs (zero weights skipped)"] == ["321,456,700", "90,100,200", "-72.0 %"]
    assert rows["bits of the parameters"] == ["39,506,144", "4,938,264", "-87.5 %"]
    assert rows["bytes of the file"] == ["4,938,268", "620,001", "-87.4 %"]
    assert rows["bytes of the ONNX file"] == ["4,940,001", "2,470,002", "-50.0 %"]
    assert rows["bit operations"] == ["329,171,751,936", "6,412,819,200", "-98.1 %"]
    assert rows["compression ratio, by bytes of the file"] == ["", "7.96x", ""]
    shown = {text for row in rows.values() for text in row}
    for net in (record.dense, record.compressed):
        for name in (field.name for field in fields(net)):
            assert {f"{getattr(net, name):,}", f"{getattr(net, name):.2f} %"} & shown, name


def test_what_was_not_measured_is_said():
    read = Read(a_page(a_record(after_compression=None)))
    rows = read.rows(0)
    assert rows["bytes of the ONNX file"] == rows["bit operations"] == ["not measured", "not measured", ""]
    assert rows["top-1 after compression, before training"] == ["93.50 %", "not measured", ""]
    assert "top-1 among the subset's classes" not in rows
    assert "Under the papers' counting rules: not measured." in read.text
    assert "Parameters and MACs of each layer: not measured." in read.text
    assert re.search(r"Latency Not measured\.", read.text)


def test_a_dense_training_has_no_compressed_net():
    record = a_record(kind="train", method="dense", compressed=a_record().dense)
    assert Read(a_page(record, None)).tables[0][:2] == [["quantity", "dense"], ["top-1", "93.50 %"]]


@pytest.mark.parametrize("budget", ["smoke", "zero", "short"])
def test_a_reduced_budget_has_a_banner_and_no_reproduction(budget):
    read = Read(a_page(a_full(budget=budget)))
    assert f"Budget {budget}." in read.text
    assert budget == "smoke" or "Verdict: reduced budget" in read.text
    assert "Budget paper" not in Read(a_page()).text


def test_banners_of_divergence_staleness_and_given_weights():
    sha = {"dense_sha256": "ab" * 32}
    fresh = a_full(method="hrank", provenance=sha | code_version("hrank", registry.ROOT))
    assert report.banners(fresh) == []
    assert [title for _, title, _ in report.banners(a_full(provenance=fresh.provenance))] == ["Stale"]
    fresh.status, fresh.given_weights = "diverged", True
    assert [title for _, title, _ in report.banners(fresh)] == ["Diverged", "Given weights"]
    assert "(abababababab…)" in Read(a_page(fresh)).text


def test_the_paper_is_beside_the_run_with_the_computed_verdict():
    read = Read(a_page(a_full(counted={})))
    assert "Fake-A, Table 1 Verdict: close . Structure: params differ by" in read.text
    rows = read.rows(1)
    assert rows["top-1"] == ["93.40 %", "92.27 %", "-1.13 points"]
    assert rows["top-1 of the dense net"] == ["93.96 %", "93.53 %", "-0.43 points"]
    assert rows["change of top-1"] == ["-0.56 points", "-1.26 points", "-0.70 points"]
    same = a_full(compressed=measured(93.0, params=500, macs=40_000), counted={})
    assert "Verdict: reproduced . Structure: params exact, MACs exact." in Read(a_page(same)).text
    assert "No row of the paper fits" in Read(a_page(a_full(hyperparameters={"ratio": 0.7}))).text


def test_the_cost_is_there_under_every_accounting_and_beside_the_paper():
    rows = Read(a_page(a_full(counted={"hrank_out_only": RULE, "a_new_rule": RULE | {"dense_macs": 0}}))).rows(2)
    assert rows["physical"] == ["1,234,567", "617,283", "50.0 %", "321,456,789", "100,200,300", "68.8 %"]
    assert rows["rule hrank_out_only"] == ["1,234,567", "700,000", "43.3 %", "300,000,000", "150,000,000", "50.0 %"]
    assert rows["rule a_new_rule"][3:] == ["0", "150,000,000", ""]
    assert rows["paper, Fake-ATable 1, rule mac"] == ["", "500", "", "", "40,000", ""]


def test_a_bar_is_as_long_as_what_was_kept():
    wide, gone = (report.bar(layer) for layer in LAYERS)
    assert (wide["kept"], wide["nonzero"], wide["text"]) == (0.25, 0.25, "16 of 64")
    assert (gone["kept"], gone["text"]) == (0.0, "gone")
    page = a_page()
    assert '<i style="width:25.00%"><b style="width:25.00%">' in page and "25.0 %<span" in page
    rows = Read(page).rows(3)
    assert rows["a"] == ["64 x 3", "16 x 3", "192", "48", "192", "12", "9", "2", "77,777", "55"]
    assert rows["b"][:4] == ["10 x 64", "-", "640", "0"]
    assert "last column" not in a_page(a_record())


def test_odd_layers_do_not_break_the_page():
    odd = [{"name": None, "dense": [], "compressed": []}, {"name": "z", "dense": [0, 0], "compressed": [5]}]
    assert [report.bar(layer)["kept"] for layer in odd] == [0.0, 0.0]
    assert report.bar({"name": "more", "dense": [8, 8], "compressed": [16, 8]})["kept"] == 1.0
    Read(a_page(a_record(layers=odd)))
    Read(a_page(a_record(layers=[])))


SEARCHED = {"policy": {"b": 1.0, "a": 0.625}, "uniform": {"b": 0.75, "a": 0.75}, "rewards": [-0.5, -0.75, -0.25]}


def test_a_search_shows_its_policy_and_its_rewards():
    page = a_page(a_full(details=SEARCHED))
    text = Read(page).text
    assert "a 62.5 % 75.0 % alike b 100.0 % 75.0 % alike" in text  # in network order
    assert '<b style="width:62.50%"></b><u style="left:75.00%"></u>' in page
    assert "of 3 the first has -0.5 and the best -0.25, found in episode 3." in page
    assert "What the search found" not in a_page()


def search_is_to_scale(module):
    """Whether each reward is a dot and the line runs along the best so far, in 1000 x 100, down from the top."""
    panel = module.search_panel(search_of(a_full(details=SEARCHED)))
    return (panel["dots"], panel["path"]) == (
        "M0.0 50.00h0M500.0 100.00h0M1000.0 0.00h0",
        "M0.0 50.00h0L500.0 50.00L1000.0 0.00",
    )


def test_a_search_is_drawn_to_scale():
    assert search_is_to_scale(report)
    for old, new in (
        ('"path": list(enumerate(best, 1))', '"path": list(enumerate(search.rewards, 1))'),
        ("for point in ((x, y), (x, None))]", "for point in ((x, y),)]"),
        ("100 - _place(y, y_low, y_high)", "_place(y, y_low, y_high)"),
    ):
        assert not search_is_to_scale(mutant(report, old, new))


def test_a_paper_that_prints_a_loss_and_counts_what_is_not_zero():
    row = Reported(NET, "Loses", "Table 9", delta=-1.0, params_reduction=59.5, rule="nonzero")
    cls = type("Loses", (Claimed,), {"reported": (row,)})
    read = Read(a_page(a_full(counted={}), cls))
    assert read.rows(1) == {"accuracy": ["paper", "this run", "difference"],
                            "change of top-1": ["-1.00 points", "-1.26 points", "-0.26 points"]}  # fmt: skip
    assert "Loses, Table 9 Verdict: reproduced . Structure: params exact." in read.text
    ours = ["1,234,560", "500,001", "59.5 %", "321,456,700", "90,100,200", "72.0 %"]
    assert read.rows(2)["rule nonzero"] == ours and "weights that are zero count nowhere" in read.text


def test_thousands_of_layers():
    layers = [LAYERS[0] | {"name": f"layer{i}"} for i in range(1000)]
    read = Read(a_page(a_full(layers=layers)))
    assert sum(tag[0] == "li" for tag in read.skeleton) == 1000 + 2 and len(read.rows(3)) == 1000 + 2


def test_latency_is_a_table_with_its_flags():
    rows = Read(a_page()).rows(4)
    assert rows["2"] == ["64", "131.400 ± 6.570", "65.700 ± 5.810", "2.00x", "31"]
    text = Read(a_page(a_full(latency=LATENCY | {"loaded": True, "load": 0.73}))).text
    assert "The machine was loaded (0.73 cores" in text and "No faster kernel" not in text
    read = Read(a_page(a_full(latency=LATENCY | {"kernel": "no_fast_kernel"})))
    assert "No faster kernel exists" in read.text and "no speed-up is claimed" in read.text
    assert read.rows(4)["2"][3] == "not claimed" and "2.00x" not in read.text


def test_settings_details_deviations_and_provenance():
    details = {"kept": {f"layer{i}": i for i in range(20)}, "few": [1.5, None, True], "empty": []}
    provenance = a_record().provenance | {"packages": {"torch": "2.14.1"}, "data_sha256": {"x_test": "ef" * 32}}
    page = a_page(a_full(details=details, provenance=provenance, hyperparameters={"ratio": 0.5, "rates": [0.1] * 9}))
    text = Read(page).text
    assert "few 1.5, none, yes" in text and "empty none" in text and "20 values layer0 0 layer1 1" in text
    assert "<summary>20 values</summary>" in page and "<summary>9 values</summary>0.1, 0.1," in page
    assert "torch 2.14.1" in text and "ef" * 32 in text and "ab" * 32 in text
    assert "<li><code>ratio</code> is ours, and so is the rest</li>" in page and "the second one" in text
    assert ("a", "href", "https://example.org/paper") in Read(page).attributes
    assert "epochs 2.0" in text and "images 100,000" in text


def test_deviations_are_counted_as_they_are_listed():
    assert deviation_texts(Claimed) == ["``ratio`` is ours, and so is the rest", "the second one"]
    assert deviations(Claimed) == 2 and deviation_texts(Method) is None


def test_a_run_after_another_names_it():
    parent = a_full()
    text = Read(a_page(a_full(parent=parent.id, seed=1), parent=parent)).text
    assert f"run {parent.id}: fake on {NET}, budget paper, seed 0, top-1 92.27 %, 617,283 parameters" in text
    assert "whose record is not here" in Read(a_page(a_full(parent=parent.id))).text


# --------------------------------------------------------------------------------------------------------- the curve


def test_the_curve_is_drawn_to_scale():
    loss, rate = report.panels([[0, 2.0, 0.1], [50, 1.0, 0.05], [100, 0.5, 0.0]])
    assert loss["path"] == "M0.0 0.00h0L500.0 50.00L1000.0 75.00" and loss["name"] == "training loss"
    assert rate["path"] == "M0.0 0.00h0L500.0 50.00L1000.0 100.00"
    assert loss["y"] == [(0.0, "0"), (25.0, "0.5"), (50.0, "1"), (75.0, "1.5"), (100.0, "2")]
    assert [text for _, text in loss["x"]] == ["0", "20", "40", "60", "80", "100"]
    assert "starts at 2, ends at 0.5" in loss["alt"]


def test_a_loss_over_decades_is_logarithmic():
    loss, _ = report.panels([[0, 10.0, 0.1], [1, 0.01, 0.1]])
    assert loss["name"] == "training loss, logarithmic"
    assert [text for _, text in loss["y"]] == ["0.01", "0.1", "1", "10"]
    negative, _ = report.panels([[0, 10.0, 0.1], [1, -0.01, 0.1]])
    assert negative["name"] == "training loss"


def test_nulls_are_gaps_and_an_empty_curve_is_none():
    loss, rate = report.panels([[0, 1.0, 0.1], [1, None, 0.1], [2, 0.5, None], [3, None, 0.1], [None, 0.5, 0.1]])
    assert loss["path"] == "M0.0 0.00h0M666.7 50.00h0"
    assert rate["path"].count("M") == 2
    assert report.panels([]) == report.panels([[0, None, None]]) == report.panels([[None, 1.0, 1.0]]) == []
    text = Read(a_page(a_full(status="diverged", curve=[[0, 1.0, 0.1], [1, None, None]]))).text
    assert "The loss was not a number at 1 of 2 points" in text and "Diverged" in text
    assert "No training curve: nothing was trained." in Read(a_page(a_full(curve=[], meter={"steps": 0}))).text


@pytest.mark.parametrize("curve", [[[7, 1.0, 0.1]], [[0, 1e18, 5e-324], [10**18, -1e18, 1e-323]], [[10**18, 0, 0]] * 2])
def test_extreme_curves_stay_in_their_box(curve):
    for panel in report.panels(curve):
        assert all(0 <= place <= 100 for place, _ in panel["x"] + panel["y"])
        assert len(panel["y"]) <= 11 and "nan" not in panel["path"]


# ----------------------------------------------------------------------------------------- a page that does no harm

HOSTILE = """<script>alert("x" & 'y')</script>"""


def a_page_with(word):
    """The page of a record in which every free text is ``word``."""

    @dataclass
    class Odd(Claimed):
        paper = Paper(word, word, word, f"https://example.org/{word}", f"javascript:{word}")
        reported = (Reported(NET, word, word, top1=93.0, verified=word, params=5.0),)

    Odd.__doc__ = f"A method.\n\n    Deviations\n    - {word}\n"
    layers = [layer | {"name": word} for layer in LAYERS]
    nested = {word: [word, {word: [[[[word]]]]}, [word] * 20]}
    searched = {"policy": {word: 0.5}, "uniform": {word: 0.25}, "rewards": [1.0, 2.0]}
    latency = LATENCY | {"runtime": word, "device": word, "loaded": True}
    record = a_full(
        method=word, family=word, baseline=NET, recipe=word, details=nested | searched, options=nested, layers=layers,
        counted={word: RULE}, latency=latency, provenance=a_record().provenance | nested, meter={word: 1}, parent=word,
        status=word,
    )  # fmt: skip
    return a_page(record, Odd, parent=a_full(method=word, budget=word))


def harmless(page):
    """Oracle: the hostile text adds no tag and no attribute to what a plain text gives, and can be read everywhere."""
    read = Read(page)
    return read.skeleton == Read(a_page_with("plain")).skeleton and read.text.count(HOSTILE) > 40


def test_hostile_texts_are_only_texts():
    page = a_page_with(HOSTILE)
    assert harmless(page) and HOSTILE not in page
    assert not any(value and value.startswith("javascript:") for _, _, value in Read(page).attributes)


def test_the_oracle_catches_a_page_that_does_not_escape(monkeypatch):
    real = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **settings: real(**settings | {"autoescape": False}))
    monkeypatch.setattr(report, "_template", report._template.__wrapped__)
    with pytest.raises(AssertionError):  # the tags do not close any more
        assert harmless(a_page_with(HOSTILE))


def test_nothing_is_loaded():
    for page in (a_page(), a_page(a_record())):
        read = Read(page)
        assert not {tag for tag, *_ in read.skeleton} & LOADING
        assert not [name for _, name, _ in read.attributes if name.startswith("on")]
        links = {(tag, name) for tag, name, value in read.attributes if value and "://" in value}
        assert links == {("a", "href")}
        style = page[page.index("<style>") : page.index("</style>")]
        assert "url(" not in style and "@import" not in style and "http" not in style
        assert "default-src 'none'" in page and page.startswith("<!doctype html>") and '<meta charset="utf-8">' in page


def test_the_same_record_gives_the_same_bytes(tmp_path):
    record = a_full(method="hrank", family="filter_pruning")
    record.save(tmp_path)
    first, second = (report.write(record.id, tmp_path, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second and first.decode("utf-8").endswith("</html>")


def test_headings_go_down_one_level_at_a_time_and_cells_have_headers():
    read = Read(a_page())
    levels = [int(tag[1]) for tag, *_ in read.skeleton if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert ("html", "lang", "en") in read.attributes
    assert all("scope" in names for tag, *names in read.skeleton if tag == "th")
    assert all({"role", "aria-label"} <= set(names) for tag, *names in read.skeleton if tag == "svg")


def contrast(one, other):
    """WCAG 2 contrast of two #rrggbb colours."""
    lights = []
    for colour in (one, other):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_the_colours_have_contrast_in_both_schemes():
    assert round(contrast("#000000", "#ffffff"), 6) == 21
    schemes = re.findall(r":root \{(.*?)\}", a_page(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme))
        for text in ("text", "soft", "accent", "good", "warn", "bad"):
            assert min(contrast(colours[text], colours[back]) for back in ("back", "fill")) >= 4.5, text


# --------------------------------------------------------------------------------------------------------- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WIDTHS = (390, 1440)
MEASURE = """onload = () => { document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, root = page.documentElement;
  return {title: page.title, wide: root.scrollWidth, seen: root.clientWidth}
})) }"""


def browsed(page, folder):
    """(what a browser finds in the page at every width, the messages of its console)."""
    frames = [
        f'<iframe width="{w}" height="844" style="border:0" srcdoc="{html.escape(page)}"></iframe>' for w in WIDTHS
    ]
    (folder / "frames.html").write_text(f"<!doctype html><script>{MEASURE}</script>{''.join(frames)}", "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --hide-scrollbars --user-data-dir={folder / 'profile'}"
    words = [CHROMIUM, *flags.split(), "--enable-logging=stderr", "--dump-dom", f"file://{folder / 'frames.html'}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    title = re.search("<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    return json.loads(html.unescape(title[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium.")
def test_a_browser_shows_the_page_at_both_widths_without_complaint(tmp_path):
    long = {"a_long_word_" * 20: "ab" * 300, "list": ["cd" * 100] * 20, "rates": list(range(200))}
    layers = [LAYERS[0] | {"name": "block." * 30 + str(i)} for i in range(60)]
    shares = {layer["name"]: 0.5 for layer in layers}
    long |= {"policy": shares, "uniform": shares, "rewards": [-0.5 / n for n in range(1, 400)]}
    page = a_page(a_full(details=long, layers=layers, hyperparameters={"ratio": 0.5}))
    found, console = browsed(page, tmp_path)
    assert console == []
    for width, frame in zip(WIDTHS, found, strict=True):
        assert frame["title"].startswith(f"fake on {NET}") and frame["seen"] == width
        assert frame["wide"] <= frame["seen"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium.")
def test_the_browser_catches_a_wide_page_and_a_script(tmp_path):
    bad = '<div style="width:5000px">wide</div><script>1</script></body>'
    found, console = browsed(a_page().replace("</body>", bad), tmp_path)
    assert all(frame["wide"] >= 5000 > frame["seen"] for frame in found)
    assert len(console) == len(WIDTHS) and all("Content Security Policy" in line for line in console)


# --------------------------------------------------------------------------------------------------------- the command


def ran(capsys, *words):
    status = cli.main(["report", *words])
    return status, *capsys.readouterr()


def test_the_command_writes_the_page_of_a_prefix_and_says_where(tmp_path, monkeypatch, capsys):
    record = a_record(method="hrank", layers=LAYERS)
    record.save(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert ran(capsys, f"run={record.id[:4]}") == (0, f"Report: {record.id}.html\n", "")
    assert sorted(os.listdir(tmp_path)) == [f"{record.id}.html", "results"]
    text = Path(f"{record.id}.html").read_text("utf-8")
    assert "HRank: Filter Pruning" in text and f"run={record.id}" in text
    assert ran(capsys, f"run={record.id}", "out=new/a.html", "results.dir=results")[:2] == (0, "Report: new/a.html\n")
    assert os.listdir("new") == ["a.html"] and Path("new/a.html").read_text("utf-8") == text


@pytest.mark.parametrize(
    "words, says",
    [
        ((), "The run is missing: add run=ID"),
        (("run=abc",), "run=abc is no id: give the 12 digits"),
        (("run=../../x",), "run=../../x is no id"),
        (("run=0000",), "There is no run 0000 in"),
        (("id=0000",), "'id=0000' is not an option here. Choose one of: run=..., out=..., results.dir=..."),
        (("run=0000", "results.dir=nowhere"), "There are no records below nowhere/records: make one with"),
    ],
)
def test_bad_words(tmp_path, monkeypatch, capsys, words, says):
    a_record(method="hrank").save(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    status, out, err = ran(capsys, *words)
    assert (status, out) == (2, "") and err.startswith(says) and err.count("\n") == 1


def test_a_prefix_of_several_a_bad_record_and_a_bad_place(tmp_path, monkeypatch, capsys):
    record = a_record(method="hrank")
    path = record.save(tmp_path)
    words = (f"run={record.id[:5]}", f"results.dir={tmp_path}")
    assert "is a folder: give a file, such as" in ran(capsys, *words, f"out={tmp_path}")[2]
    assert "cannot be written (File exists)" in ran(capsys, *words, f"out={path / 'a.html'}")[2]
    other = path.with_name(f"{record.id[:5]}{'0' * 7}.json")
    shutil.copy(path, other)
    status, _, err = ran(capsys, *words)
    assert status == 2 and f"run={record.id[:5]} fits 2 runs" in err and path.stem in err and other.stem in err
    path.write_text("{")
    assert "is not valid JSON" in ran(capsys, f"run={record.id}", f"results.dir={tmp_path}")[2]


def test_the_template_is_installed_with_the_package():
    import tomllib

    root = Path(report.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert "report.html.j2" in project["tool"]["setuptools"]["package-data"]["repro"]
    assert any(name.startswith("jinja2") for name in project["project"]["dependencies"])
