"""The site: every page is whole without a network, nothing in a record can do harm, and a browser filters and sorts."""

import functools
import html
import inspect
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_leaderboard import NET, PUBLISHED, a_run, dense, random_rows, seeds, timed
from test_records import measured
from test_report import CHROMIUM, Read, contrast

from baselines.errors import UserError
from repro import __main__ as cli
from repro import boards, registry, report, site, surveys

OTHER = "resnet56_cifar10"
METHOD = '''"""Fake: A Method.

A. Author. CONF 2020, https://example.org/paper.

Idea: the ``ratio`` smallest
filters go; IDEA.

How it is done: by size.

Deviations
- The first one,
  told at length.
- The second one.
"""

from dataclasses import dataclass

from methods.base import Claim, Method, Paper, Reported, Select


@dataclass
class Fake(Method):
    """Removes filters; CLASS."""

    ratio: float = 0.5
    rates: tuple[float, ...] = ()

    paper = Paper("A Paper TITLE", "A. Author", "CONF 2020", "https://example.org/paper", "javascript:alert(1)")
    reported = (
        Reported("vgg16_cifar10", "Fake-A", "Table 1", top1=93.4, base_top1=93.96, params=500.0, verified="CHECKED"),
        Reported("vgg16_cifar10", "Fake-B LABEL", "Table 2", "vgg16_cifar10/b", top1=92.0),
    )
    claims = (Claim("Fakes are better, SAID.", "Sec. 4", Select("fake"), (Select("random_filter"),), ("ratio",)),)
    recipes = {"vgg16_cifar10/b": {"ratio": 0.25, "rates": (0.125,) * 40}}
    expected_failures = {"smaller": "REASON"}

    def compress(self, model, task):
        scores = 1 < 2  # Eq. 3: COMMENT
        # Eq. 4 alone
        return model if scores else None


def helper():
    """What it does.

    More of
    Eq. 5.
    """
'''
HARMFUL = """</script><script>alert(1)</script><img src=x onerror="alert(2)">&lt;'<!--"""
WORDS = ("IDEA", "CLASS", "TITLE", "CHECKED", "LABEL", "REASON", "COMMENT", "SAID")


BUNDLE, PAGE = site.bundle, report.page


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Bundling the plots' library and making the runs' pages take long: only the tests that look at them do it. Of the
    printed tables one is enough."""
    monkeypatch.setattr(site, "bundle", lambda: "// vega\n")
    few = [survey for survey in surveys.SURVEYS if survey.slug == "vgg16_cifar10_hrank"]
    monkeypatch.setattr(surveys, "build", functools.partial(surveys.build, surveys=few))
    monkeypatch.setattr(report, "page", lambda record, *_: f"<!doctype html>\n<body>\n<p>{record.id}</p>\n</body>\n")


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setattr(site, "bundle", BUNDLE)
    monkeypatch.setattr(report, "page", PAGE)


def entries(folder, word=None):
    """The registry of a folder with the method ``fake``, in whose texts ``word`` stands, and a broken one."""
    source = METHOD
    for place in WORDS if word else ():
        source = source.replace(place, word if place == "COMMENT" else word.replace('"', '\\"'))
    family = folder / "methods" / "filter_pruning"
    family.mkdir(parents=True)
    (family / "__init__.py").write_text('"""Filters."""\n')
    (family / "fake.py").write_text(source)
    (family / "broken.py").write_text("import nowhere_at_all\n")
    return registry.entries(folder / "methods")


def hyper(ratio, **more):
    return {"ratio": ratio, "rates": [], **more}


def some_runs(**changes):
    """Two baselines and two budgets, with a row that diverged, and a dense net with latencies."""
    runs = [dense(93.0, seed=0), dense(93.2, seed=1), *random_rows()]
    for ratio, top1 in ((0.5, 92.0), (0.25, 9.5), (0.75, 88.0)):
        net = {"compressed": measured(top1, params=int(1000 * ratio), macs=int(1e5 * ratio), bytes=int(4e3 * ratio))}
        runs += seeds(top1, top1 + 0.4, hyperparameters=hyper(ratio), **{"latency": timed(), **net, **changes})
    for run in runs[-2:]:
        run.compressed = replace(run.compressed, top1=88.0 + run.seed)
    runs += [a_run(status="diverged", hyperparameters=hyper(0.9), compressed=measured(None, params=500))]
    runs += [a_run(60.0, budget="zero", hyperparameters=hyper(0.5)), a_run(91.0, baseline=OTHER)]
    return [*runs, a_run(90.0, budget="smoke")]


def made(folder, records=None, word=None):
    """{name: content} of all files of the site."""
    baselines = {NET: PUBLISHED, OTHER: PUBLISHED}
    return dict(site.files(some_runs() if records is None else records, entries(folder, word), baselines))


def data(page):
    """What the plots of a page are made of."""
    return json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def plotted(folder, records):
    """The plot of the one board that the records make."""
    (plot,) = data(made(folder, records)[f"boards/{NET}.html"])["boards"]
    return plot


# ---------------------------------------------------------------------------------------------------- the Pareto front


def on_front(points):
    """Oracle, by comparing every point with every other one."""

    def beaten(point, other):
        return other[0] <= point[0] and other[1] >= point[1] and other != point

    return {i for i, point in enumerate(points) if not any(beaten(point, other) for other in points)}


def agrees(front):
    numbers = random.Random(0)
    for size in [*range(8), *range(8, 60, 4)] * 6:
        points = [(numbers.randint(0, 9), numbers.randint(0, 9)) for _ in range(size)]
        found = front(points)
        if len(found) != len(set(found)) or set(found) != on_front(points):
            return False
        if [points[i][0] for i in found] != sorted(points[i][0] for i in found):
            return False
    return True


def test_the_pareto_front_is_what_brute_force_finds():
    assert agrees(site.pareto_front)
    assert site.pareto_front([]) == []
    assert site.pareto_front([(2, 5.0), (1, 5.0), (1, 5.0), (1, 4.0), (3, 6.0), (0, 1.0)]) == [5, 1, 2, 4]


@pytest.mark.parametrize(
    "old, new", [("-points[i][1]", "points[i][1]"), (" or points[i] == points[found[-1]]", ""), ("[1] > p", "[1] >= p")]
)
def test_the_oracle_catches_a_front_that_is_wrong(old, new):
    source = inspect.getsource(site.pareto_front)
    assert source.count(old) == 1
    space = {}
    exec(f"from __future__ import annotations\n{source.replace(old, new)}", space)
    assert not agrees(space["pareto_front"])


# ---------------------------------------------------------------------------------------------------------- the boards


def test_a_board_has_the_dense_net_first_then_controls_and_the_essential_columns_first(tmp_path):
    read = Read(made(tmp_path)[f"boards/{NET}.html"])
    head, *rows = read.tables[1]
    assert head[:6] == ["method", "top-1", "Δ top-1", "rank", "compression", "MACs reduction"]
    assert [re.sub(r"\W", "", row[0])[:4] for row in rows] == ["dens", "rand", *["fake"] * 4]
    assert rows[0][:2] == ["●densedefaults", "93.10 ± 0.14"] and rows[1][0].startswith("●random_filter")
    assert [row[1] for row in rows].count("diverged") == 1


def test_remarks_footnotes_and_a_missing_dense_net_are_said(tmp_path):
    files = made(tmp_path)
    text = Read(files[f"boards/{OTHER}.html"]).text
    assert "The dense net itself is not run yet." in text
    assert "No ranks: no row has two seeds yet" in text
    assert "Clamped layers" not in text and "Published accuracy of the dense net: top-1 93.96 % (Table 0)." in text
    assert "No ranks: no row has two seeds yet" in Read(files["index.html"]).text
    clamped = [a_run(details={"clamped": ["features.9"]})]
    assert "features.9" in Read(made(tmp_path / "b", clamped)[f"boards/{NET}.html"]).text


def test_a_point_is_a_row_with_its_mean_its_bar_and_its_run(tmp_path):
    runs = some_runs()
    plot = data(made(tmp_path, runs)[f"boards/{NET}.html"])["boards"][1]
    point = next(p for p in plot["points"] if p["setting"].startswith("ratio=0.25"))
    assert (point["method"], point["n"], point["family"]) == ("fake", 2, "filter_pruning")
    assert (point["y"], point["low"], point["high"], point["accuracy"]) == (9.5, 9.5, 9.5, "9.50 ± 0.00")
    assert (point["bytes"], point["macs"], point["rule"]) == (1000, 25_000, 25.0)
    assert (point["latency1"], point["latency64"]) == (50.0, 25.0)
    assert point["href"] == f"../runs/{next(r.id for r in runs if r.hyperparameters.get('ratio') == 0.25)}.html"
    moved = next(p for p in plot["points"] if p["setting"].startswith("ratio=0.75"))
    assert (moved["y"], moved["low"], moved["high"]) == (88.5, round(88.5 - 0.5**0.5, 4), round(88.5 + 0.5**0.5, 4))
    assert not any("ratio=0.9" in p["setting"] for p in plot["points"])  # it diverged
    whole = next(p for p in plot["points"] if p["dense"])
    assert [whole[key] for key in ("rule", "latency1", "latency64")] == [100.0] * 3
    assert plot["dense"] == pytest.approx(93.38, abs=0.1)


def test_the_front_of_a_plane_is_marked_by_the_rows_on_it(tmp_path):
    plot = data(made(tmp_path)[f"boards/{NET}.html"])["boards"][1]
    by_row = {point["row"]: point for point in plot["points"]}
    for plane in plot["planes"]:
        known = [row for row, point in by_row.items() if point[plane["key"]] is not None]
        pairs = [(by_row[row][plane["key"]], by_row[row]["y"]) for row in known]
        assert set(plane["front"]) == {known[i] for i in on_front(pairs)} and plane["front"]
    assert {plane["key"] for plane in plot["planes"]} == {"bytes", "macs", "rule", "latency1", "latency64"}


def test_what_is_not_measured_has_no_plane_and_what_has_no_fast_kernel_no_point(tmp_path):
    plot = plotted(tmp_path, [dense(), a_run(method="other")])
    assert [plane["key"] for plane in plot["planes"]] == ["bytes", "macs"]
    plot = plotted(tmp_path / "a", [dense(), a_run()])
    assert [plane["key"] for plane in plot["planes"]] == ["bytes", "macs", "rule"]
    assert plotted(tmp_path / "b", [dense(), a_run(latency=timed("no_fast_kernel"))])["planes"] == plot["planes"]
    zero = a_run(compressed=measured(90.0, bytes=0), hyperparameters={"ratio": 0.1})
    assert [p["bytes"] for p in plotted(tmp_path / "c", [zero])["points"]] == [None]  # the axis is logarithmic


def test_every_family_has_its_own_look_and_every_look_stands_out_in_both_schemes():
    families = [SimpleNamespace(family=f"family{i}") for i in range(11)] + [SimpleNamespace(family="controls")]
    looks = site._looks({str(i): entry for i, entry in enumerate(families)}, [])
    assert len({(look["colour"], look["shape"]) for look in looks.values()}) == 12
    assert next(iter(looks)) == "controls"
    style = (site.ASSETS / "site.css").read_text()
    backs = re.findall("--back: (#[0-9a-f]{6})", style)
    assert len(backs) == 2
    for look in looks.values():
        assert min(contrast(look["colour"], back) for back in backs) >= 3, look
    for scheme in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme))
        for text in ("text", "soft", "accent", "good", "warn", "bad"):
            assert min(contrast(colours[text], colours[back]) for back in ("back", "fill")) >= 4.5, text


def test_a_board_of_a_hundred_rows_is_light(tmp_path):
    runs = [
        a_run(50 + i / 4, hyperparameters=hyper(i / 200), seed=s, latency=timed()) for i in range(100) for s in (0, 1)
    ]
    records = [dense(), *runs]
    view = site.View(*[site.build(records, {}, {}).boards, {r.id: r for r in records}, {}, {}, []])
    view = replace(view, looks=site._looks({}, view.boards))
    page = site.board_page(view, NET, view.boards, None)
    assert len(Read(page).tables[0]) == 102 and len(page) < 300_000


# -------------------------------------------------------------------------------------------------------- the cards


def test_a_card_says_what_the_file_says(tmp_path):
    page = made(tmp_path)["methods/fake.html"]
    text = Read(page).text
    assert "A Paper TITLE . A. Author. CONF 2020." in text
    assert "Idea: the ratio smallest filters go; IDEA." in text and "How it is done: by size." in text
    assert "The first one, told at length." in text and "The second one." in text
    assert "Removes filters; CLASS." in text
    at = {part: METHOD[: METHOD.index(part)].count("\n") + 1 for part in ("# Eq. 3", "# Eq. 4", "def helper")}
    assert f"line {at['# Eq. 3']}: Eq. 3: COMMENT scores = 1 < 2" in text
    assert f"line {at['# Eq. 4']}: Eq. 4 alone return model if scores else None" in text
    assert f"line {at['def helper']}: More of Eq. 5. def helper():" in text
    assert "vgg16_cifar10/b ratio = 0.25 rates = [0.125,0.125,0.125,0.125 … [0.125,0.125," in text.replace("…", " …")
    assert "defaults ratio = 0.5 rates = []" in text and "smaller REASON" in text
    assert ("a", "href", "https://example.org/paper") in Read(page).attributes and "javascript:" not in page


def test_a_card_has_the_paper_beside_our_rows_with_verdicts(tmp_path):
    good = [a_run(92.8, budget="paper", seed=s, hyperparameters=hyper(0.5)) for s in (0, 1)]
    read = Read(made(tmp_path, [*some_runs(), *good])["methods/fake.html"])
    first, *others = [row for row in read.tables[0][1:] if row[0].startswith("Fake-A")]
    assert first[0].startswith("Fake-A: 93.4 (Δ -0.56) (Table 1)") and "checked: CHECKED" in first[0] and not others
    printed = {tuple(row[-2:]) for row in read.tables[0][1:4]}
    assert printed == {("reduced budget", "params exact"), ("reproduced", "params exact")}
    unrun = next(row for row in read.tables[0] if row[0].startswith("Fake-B LABEL"))
    assert unrun[1:] == ["not run yet"]


def test_the_printed_tables_stand_on_a_page_with_ours_and_their_footnotes(tmp_path):
    read = Read(made(tmp_path)["surveys.html"])
    head, *rows = read.tables[0]
    assert head[:3] == ["method", "top-1 (%) ↑", "top-1, ours"] and head[-2:] == ["source", "verified"]
    last = next(row for row in rows if row[0].startswith("HRank-3"))
    assert last[head.index("params reduction (%) ↑")].startswith("92.0 [") and last[2] == "not in the suite yet"
    assert "contradicts itself: it prints 92.0 % fewer params, but its 1.78M of 14.98M are 88.1 % fewer." in read.text
    assert all(len(row) == len(head) and all(row) for row in rows)


def test_the_claims_stand_on_a_page_and_on_the_card_of_their_method(tmp_path):
    files = made(tmp_path)
    read = Read(files["claims.html"])
    ((_, *claim),) = read.tables[0][1:]
    assert claim[:3] == ["fake", "Fakes are better, SAID.", "Sec. 4"] and claim[-1].startswith("holds 1")
    at = read.tables[1][0].index("runs")
    (runs,) = (re.findall("[0-9a-f]{12}", row[at]) for row in read.tables[1][1:] if row[at] != "–")
    linked = [value for tag, _, value in read.attributes if tag == "a" and str(value).startswith("runs/")]
    assert linked == [f"runs/{run}.html" for run in runs] and set(linked) < set(files)
    card = Read(files["methods/fake.html"]).text
    assert "Claims of the paper" in card and "Fakes are better, SAID. Sec. 4 – holds 1" in card


def test_the_index_lists_every_method_and_says_what_is_broken(tmp_path):
    files = made(tmp_path)
    rows = Read(files["index.html"]).rows(0)
    assert rows["fake"] == [
        "◆filter pruning".replace("◆", rows["fake"][0][0]),
        "A Paper TITLE",
        "CONF 2020",
        "2",
        "2",
        "9",
    ]
    assert "fails to import: ModuleNotFoundError" in rows["broken"][1] and "methods/broken.html" not in files


def test_the_idea_and_the_equations_of_every_method_file_are_found():
    for entry in (entry for entry in registry.entries().values() if entry.cls):
        source = entry.path.read_text("utf-8")
        idea, _ = site.told(sys.modules[entry.cls.__module__].__doc__)
        assert len(idea) > 40, entry.name
        assert len(site.equations(source)) >= len(re.findall(r"#.*\bEqs?\. ?\(?\d", source)), entry.name


def test_equations_are_found_by_the_lines_that_python_counts():
    assert site.equations("# a\u2028b\x0cc\nx = 1  # Eq. 3\n") == [(2, "Eq. 3", "x = 1")]


def test_marked_up_prose_is_escaped():
    assert site.prose("a ``b`` 2**3 <d> `<e>`") == "a <code>b</code> 2**3 &lt;d&gt; <code>&lt;e&gt;</code>"


# --------------------------------------------------------------------------------------------------- pages do no harm


def test_a_run_has_the_page_that_report_makes_and_a_way_back(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "page", PAGE)
    runs = some_runs()[-6:]
    files = made(tmp_path, runs)
    assert sorted(name[5:-5] for name in files if name.startswith("runs/")) == sorted(
        r.id for r in runs if r.budget != "smoke"
    )
    run = runs[-3]
    page, cls = files[f"runs/{run.id}.html"], registry.entries(tmp_path / "methods")["fake"].cls
    way = re.search(r"<nav.*?</nav>\n+", page, re.DOTALL)[0]
    assert page.replace(way, "") == report.page(run, cls, PUBLISHED)
    assert f'href="../boards/{run.baseline}.html#{run.baseline}-{run.budget}"' in way and "../methods/fake.html" in way


def test_every_link_leads_to_a_file_and_nothing_comes_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "page", PAGE)
    files = made(tmp_path, some_runs()[-6:])
    pages = {name: Read(page) for name, page in files.items() if name.endswith(".html")}
    ids = {name: {value for _, key, value in read.attributes if key == "id"} for name, read in pages.items()}
    for name, read in pages.items():
        for tag, key, value in read.attributes:
            if key not in ("href", "src") or value == "data:,":
                continue
            if "://" in value:
                assert (tag, key) == ("a", "href")
                continue
            target, _, mark = value.partition("#")
            target = str((Path("/") / name).parent.joinpath(target).resolve())[1:]
            assert target in files and (not mark or mark in ids[target]), (name, value)
        assert "default-src 'none'" in files[name] and "unsafe-eval" not in files[name]
    assert len(pages) == 1 + 2 + 2 + 1 + len([name for name in files if name.startswith("runs/")])
    for name in ("site.css", "site.js"):
        text = files[f"assets/{name}"]
        assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|import\(|eval\(|innerHTML", text)


def harmful_runs(word):
    nested, data = {"ratio": 0.5, "rates": [word], word: {word: [word]}}, {"data": word}
    return [dense(options=data), a_run(hyperparameters=nested, details={"clamped": [word], word: word}, options=data)]


def test_harmful_texts_are_only_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "page", PAGE)
    records = harmful_runs(HARMFUL)
    bad = made(tmp_path / "bad", records, HARMFUL)
    good = made(tmp_path / "good", harmful_runs("plain"), "plain")
    names = [name for name in bad if name.startswith(("index", "boards", "methods", "claims"))]
    assert names == [name for name in good if name.startswith(("index", "boards", "methods", "claims"))]
    for name in names:
        assert "<script>alert" not in bad[name] and "<img" not in bad[name], name
        assert Read(bad[name]).skeleton == Read(good[name]).skeleton, name
        assert Read(bad[name]).text.count(HARMFUL) >= 1, name
    (board,) = data(bad[f"boards/{NET}.html"])["boards"]
    assert any(HARMFUL in point["setting"] for point in board["points"])
    (page,) = {bad[name] for name in bad if name.startswith("runs/") and records[1].id in name}
    assert "<script" not in page and "<img" not in page


@pytest.mark.parametrize("change", [{"id": "../../etc"}, {"id": "a/b"}, {"method": "../x"}, {"baseline": "a b"}])
def test_words_that_are_no_file_names_are_refused(tmp_path, change):
    record = a_run()
    for name, value in change.items():
        setattr(record, name, value)
    with pytest.raises(UserError, match="is no file name"):
        made(tmp_path, [record])


# -------------------------------------------------------------------------------------------------------- the folder


def written(folder, out, records=None):
    return site.write(
        some_runs() if records is None else records, out, entries(folder), {NET: PUBLISHED, OTHER: PUBLISHED}
    )


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_records_give_the_same_bytes(tmp_path):
    first = written(tmp_path / "1", tmp_path / "a")
    second = written(tmp_path / "2", tmp_path / "b", some_runs()[::-1])
    assert first == tmp_path / "a" / "index.html" and contents(first.parent) == contents(second.parent)
    assert not any(str(tmp_path).encode() in content for content in contents(first.parent).values())


def test_a_site_is_replaced_by_a_newer_one_without_leftovers(tmp_path):
    out = tmp_path / "new" / "site"
    out.mkdir(parents=True)  # an empty folder may be taken
    written(tmp_path / "1", out)
    gone = set(contents(out))
    written(tmp_path / "2", out, [dense(), a_run()])
    assert len(contents(out)) < len(gone) and [path.name for path in out.parent.iterdir()] == ["site"]
    listed = (out / site.MARKER).read_text().split()
    assert sorted(listed) == sorted(set(contents(out)) - {site.MARKER})


def test_what_it_did_not_write_is_left_alone(tmp_path):
    out = tmp_path / "out"
    written(tmp_path / "1", out)
    (out / "boards" / "mine.txt").write_text("mine")
    before = contents(out)
    with pytest.raises(UserError, match=r"holds 'boards/mine.txt', which this command did not write: give another"):
        written(tmp_path / "2", out)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    (foreign / site.MARKER).write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"holds 'thesis.tex', which this command did not write"):
        written(tmp_path / "3", foreign)
    with pytest.raises(UserError, match="is a file: give the name of a folder"):
        written(tmp_path / "4", foreign / "thesis.tex")
    with pytest.raises(UserError, match="cannot be written"):
        written(tmp_path / "5", foreign / "thesis.tex" / "site")
    assert contents(out) == before and contents(foreign) == {"thesis.tex": b"years of work", site.MARKER: b"\xff"}


def test_an_error_on_the_way_leaves_the_site_as_it_was(tmp_path, monkeypatch):
    out = tmp_path / "site"
    written(tmp_path / "1", out)
    before = contents(out)

    def broken(*_):
        raise RuntimeError

    monkeypatch.setattr(report, "page", broken)
    with pytest.raises(RuntimeError):
        written(tmp_path / "2", out)
    assert contents(out) == before and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_without_the_package_of_the_plots_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UserError) as caught:
        BUNDLE.__wrapped__()
    assert str(caught.value).count(". ") == 0 and "pip install" in str(caught.value)


def test_the_command_writes_the_site_and_says_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["site"]) == 2 and "There are no records below results/records" in capsys.readouterr().err
    record = a_run(method="hrank", hyperparameters={"ratio": 0.5})
    record.save(tmp_path / "results")
    assert cli.main(["site"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("Site of 1 records: site/index.html\n", "")
    assert Path("site", "runs", f"{record.id}.html").is_file()
    Path("results", "records", "bad.json").write_text("{")
    assert cli.main(["site", "out=other", "results.dir=results"]) == 2
    assert "is not valid JSON" in capsys.readouterr().err and Path("other", "index.html").is_file()
    assert cli.main(["site", "outdir=x"]) == 2 and "Choose one of: out=..." in capsys.readouterr().err


def test_the_files_of_the_site_are_installed_and_its_package_is_an_extra():
    import tomllib

    root = Path(site.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert "assets/*" in project["tool"]["setuptools"]["package-data"]["repro"]
    extras = project["project"]["optional-dependencies"]
    assert extras["site"] and all(set(extras["site"]) <= set(extras[name]) for name in ("test",))
    assert {path.suffix for path in site.ASSETS.iterdir()} == {".css", ".js", ".j2"}


# --------------------------------------------------------------------------------------------------------- in a browser

DRIVE = """
const wait = (time) => new Promise((done) => setTimeout(done, time));
const inside = () => document.querySelector("#driven").contentWindow, page = () => inside().document;
const until = async (what) => { for (let i = 0; i < 200 && !what(); i++) await wait(50); return what(); };
const rows = () => [...page().querySelectorAll(".board:not([hidden]) tbody tr:not([hidden])")];
const column = (n) => rows().map((row) => row.cells[n].innerText.trim());
const points = () => [...page().querySelectorAll(".board:not([hidden]) figure .mark-symbol path")];
const planes = () => page().querySelectorAll(".board:not([hidden]) figure svg").length;
const count = () => page().querySelector(".board:not([hidden]) .count").innerText;
const now = () => ({ rows: rows().length, points: points().length, planes: planes(), count: count() });
const set = async (name, value) => {
  const field = page().querySelector(".filters").elements[name];
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  await wait(600);
  return now();
};
const sort = (n) => {
  const head = page().querySelector(".board:not([hidden]) thead tr").cells[n];
  head.querySelector("button").click();
  return [head.getAttribute("aria-sort"), column(n)];
};
const drive = async () => {
  const found = {};
  await until(() => page()?.documentElement?.dataset.ready === "yes");
  found.start = now();
  found.text = await set("text", "RATIO=0.75 fake");
  for (const kind of ["mouseover", "pointermove", "mousemove"]) {
    points()[0].dispatchEvent(new MouseEvent(kind, { bubbles: true, clientX: 50, clientY: 50 }));
  }
  await wait(300);
  found.lit = [...page().querySelectorAll("tr.lit small")].map((one) => one.innerText);
  found.tooltip = page().querySelector("#vg-tooltip-element")?.innerText;
  await set("text", "");
  found.family = await set("family", "controls");
  await set("family", "");
  found.scratch = await set("start", "scratch");
  await set("start", "");
  found.least = await set("least", "91");
  await set("least", "");
  found.other = await set("board", page().querySelector("[name=board]").options[0].value);
  found.all = await set("board", "");
  await set("board", page().querySelector("[name=board]").options[1].value);
  found.unsorted = column(1);
  found.sorted = [sort(1), sort(1), sort(1)];
  found.byname = sort(0)[0];
  found.hacked = window.hacked ?? null;
  await set("text", "ratio=0.75");
  points()[0].dispatchEvent(new MouseEvent("click", { bubbles: true }));
  await until(() => inside().location.href.includes("/runs/"));
  await until(() => page()?.readyState === "complete");
  found.opened = [inside().location.pathname.split("/").pop(), page().title];
  const roots = [...document.querySelectorAll(".width")].map((one) => one.contentDocument.documentElement);
  const tables = document.querySelector('.width[src$="surveys.html"]').contentDocument;
  const left = () => [...tables.querySelectorAll("tbody tr:not([hidden]) th")].map((one) => one.innerText);
  const search = tables.querySelector(".find").elements.text;
  const whole = left().length;
  search.value = "hrank-3 92.0";
  search.dispatchEvent(new Event("input", { bubbles: true }));
  found.tables = [whole, left(), tables.querySelector(".count").innerText];
  search.value = "";
  search.dispatchEvent(new Event("input", { bubbles: true }));
  const head = [...tables.querySelector("thead tr").cells].findIndex((one) => one.innerText.startsWith("MACs ↓"));
  tables.querySelectorAll("thead th")[head].querySelector("button").click();
  found.macs = [...tables.querySelectorAll("tbody tr")].map((row) => row.cells[head].innerText);
  found.widths = roots.map((root) => [root.scrollWidth, root.clientWidth]);
  document.title = JSON.stringify(found);
};
onload = () => drive().catch((error) => { document.title = JSON.stringify({ error: String(error.stack) }); });
"""


def driven(folder, out):
    """(what the script above finds, the messages of the console) in headless Chromium."""
    pages = ["index.html", f"boards/{NET}.html", "methods/fake.html", "surveys.html", "claims.html"]
    frames = [
        f'<iframe class="width" width="{width}" height="800" src="file://{out}/{page}"></iframe>'
        for page in pages
        for width in (390, 1440)
    ]
    driven = (
        f'<iframe id="driven" width="1200" height="2000" src="file://{out}/boards/{NET}.html#{NET}-short"></iframe>'
    )
    (folder / "drive.html").write_text(f"<!doctype html><script>{DRIVE}</script>{driven}{''.join(frames)}", "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --hide-scrollbars --user-data-dir={folder / 'profile'}"
    flags += " --allow-file-access-from-files --virtual-time-budget=60000 --enable-logging=stderr --dump-dom"
    words = [CHROMIUM, *flags.split(), f"file://{folder / 'drive.html'}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    title = re.search("<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    return json.loads(html.unescape(title[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium.")
def test_in_a_browser_filters_narrow_sorts_order_and_points_open_their_runs(tmp_path, real):
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed: pip install -e '.[site]'.")
    runs = [run for run in some_runs() if run.budget != "smoke"]
    word = "<img src=x onerror='parent.hacked = 1'>"
    runs.append(a_run(91.5, hyperparameters=hyper(0.6, word=word), starts_from="scratch", seed=7))
    out = tmp_path / "out"
    written(tmp_path / "1", out, runs)
    assert len(BUNDLE()) < 1_500_000
    found, console = driven(tmp_path, out)
    assert "error" not in found, found
    assert console == []
    board = next(b for b in boards.build(runs, {}, {}).boards if b.slug == f"{NET}-short")
    rows, planes = len(board.rows), found["start"]["planes"]
    assert (found["start"]["rows"], found["start"]["count"], planes) == (rows, f"Rows: {rows}", 5)
    assert found["text"]["rows"] == 1 and found["text"]["points"] == planes < found["start"]["points"]
    assert found["text"]["count"] == f"Rows: 1 of {rows}"
    assert found["lit"] == ["ratio=0.75"]
    assert " ".join(found["tooltip"].split()).startswith("method fake setting ratio=0.75 n 2 top-1, % 88.50 ± 0.71")
    controls = [row for row in board.rows if row["family"] == "controls"]
    assert found["family"]["rows"] == len(controls) and found["family"]["points"] < found["start"]["points"]
    assert (found["scratch"]["rows"], found["scratch"]["points"]) == (1, 3)
    assert found["least"]["rows"] == sum((row["top1"] or 0) >= 91 for row in board.rows)
    assert found["other"]["rows"] == 1 and found["all"]["rows"] == rows + 1
    (up, ascending), (down, descending), (none, original) = found["sorted"]
    assert (up, down, none, found["byname"]) == ("ascending", "descending", "none", "ascending")
    assert original == found["unsorted"] != ascending
    numbers = [float(text.split()[0]) for text in ascending if text != "diverged"]
    assert numbers == sorted(numbers) and numbers[0] == 9.5 and ascending[-1] == "diverged"
    assert [text.split()[0] for text in descending[:-1]] == [text.split()[0] for text in ascending[-2::-1]]
    run = next(r for r in runs if r.hyperparameters.get("ratio") == 0.75 and r.seed == 0)
    assert found["opened"][0] == f"{run.id}.html" and found["opened"][1].endswith(f"({run.id})")
    whole, left, count = found["tables"]
    assert (left, count) == (["HRank-3"], f"Rows: 1 of {whole}") and whole > 10
    assert found["macs"] == sorted(found["macs"], key=lambda text: float(text.split("M")[0]))
    assert found["hacked"] is None
    assert [seen for _, seen in found["widths"]] == [390, 1440] * 5
    assert all(wide <= seen for wide, seen in found["widths"])
