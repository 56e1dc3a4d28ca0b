"""Reports as pages: content, no active parts, size, and how a browser shows them."""

from __future__ import annotations

import hashlib
import html
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from testbed.evidence.proof import Check
from testbed.evidence.series import Series
from testbed.evidence.verdict import Verdict
from testbed.judge.comparison import compare
from testbed.judge.envelope import Interval
from testbed.paper.demo import DemoRun, Message, ProfileRun
from testbed.paper.demopage import demo_page
from testbed.report import compared as compared_page
from testbed.report import envelope, run
from testbed.report.page import (
    Bars,
    Charts,
    Curves,
    Line,
    Nested,
    NestedLayer,
    OverTime,
    Page,
    Pairs,
    Part,
    Points,
    Table,
    Text,
    render,
)
from testbed.resources import resource
from testbed.spec.axis import Axis
from testbed.versions.runs import as_run
from tests.unit import browser
from tests.unit.browser import Browser, chromium
from tests.unit.reports import NASTY, session

ROOT = Path(__file__).parents[2]
CHARTS = Charts(title="Base and head", charts=[
    Pairs(title="pairs", unit="s", base=[1.0, 1.1, 1.2], head=[1.1, 1.1, 1.4], paired=True, ratio=True),
    Pairs(title="runs", unit="count", base=[1.0, 0.0], head=[2.0, 1.0, 3.0], paired=False, ratio=False),
    Points(title="many", unit="s", groups={"base": [number / 1e4 for number in range(1, 400)], "head": [0.01, 0.02]}),
    Points(title="decades", unit="s", groups={"one": [1e-3, 1.0, 10.0]}, logarithmic=True),
    Curves(title="curves", x="time, s", y="kB", dashed=["theory"], curves={
        "measured": [(0.0, 1.0), (1.0, 3.0)], "theory": [(0.0, 1.0), (1.0, 2.0)],
    }),
    Bars(title="bars", y="s", names=["a long name", "other"], series={"a": {"a long name": 1.0, "other": 2.0}}),
    Nested(title="nested", below="wire: 78 bytes", layers=[
        NestedLayer(name=name, size_bytes=size, text="<&>",
                    above=f"{name} (OSI: 7 application, 6 presentation, 5 session)")
        for name, size in (("Ethernet", 14), ("IPv4", 20), ("TCP", 32), ("message", 1200))
    ]),
    Points(title="crowded", unit="s", groups={
        name: [*(0.01 + number * 1e-6 for number in range(60)), 0.25] for name in ("base", "head")
    }),
    OverTime(title="time", lines=[
        Line(name="cwnd", unit="segments", times_s=[0.0, 1.0], values=[10.0, 20.0]),
        Line(name="srtt", unit="s", times_s=[0.5, 1.5], values=[0.04, float("nan")]),
    ]),
])  # fmt: skip


def test_of_200_cells_a_page_is_written_in_time_and_no_larger_than_5_mb() -> None:
    long_run = session(200)
    began = time.process_time()
    text = render(run.page(long_run))
    assert time.process_time() - began < 5.0
    assert len(text.encode()) < 5_000_000
    assert text.count('<details class="cell"') == 200


def test_of_200_cells_in_20_pairs_a_comparison_is_written_in_time_and_no_larger_than_5_mb() -> None:
    """What a run tells of 200 tests is made once: the page does not know that 20 runs hold the same."""
    first = as_run(session(200))
    passed = {name: replace(test, outcome=Verdict.HOLDS) for name, test in first.tests.items()}
    runs = [replace(first, seed=seed, tests=passed) for seed in range(20)]
    outcome = compare(runs, runs)
    began = time.process_time()
    text = render(compared_page.page(outcome, base="base", head="head", base_runs=runs, head_runs=runs))
    assert time.process_time() - began < 5.0
    assert len(text.encode()) < 5_000_000
    assert text.count('<details class="cell"') == 200
    assert text.count("every sample of runs that passed") >= 2 * 200


def test_outputs_have_an_end_and_those_of_tests_that_failed_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_MOST_OUTPUT", 30_000)
    printed = {
        number: (
            cell.word,
            sum(len(part.text) for part in cell.parts if isinstance(part, Text) and part.title.startswith("Output")),
        )
        for number, cell in enumerate(run.page(session(40)).cells)
    }
    bad = [length for word, length in printed.values() if word in ("failed", "invalid")]
    assert bad
    assert min(bad) >= 3000
    assert sum(length for _, length in printed.values()) < 31_000, "an escape is longer than what it stands for"


def test_what_programs_print_is_text_and_nothing_else() -> None:
    text = render(run.page(session(5)))
    assert "<script>alert" not in text
    assert "49" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).partition("it&#39;s")[2][:30]
    assert html.escape(NASTY.replace("\x1b", "\\x1b")).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    assert "\x1b" not in text
    assert len(re.findall(r"<script\b", text)) == 4, "the data, the library in two files, ours"


def test_every_part_of_a_test_is_in_its_cell() -> None:
    long_run = session(7)
    cell = run.page(long_run).cells[3]
    heads = [part.title for part in cell.parts]
    assert cell.word == "invalid", "the seed gives one"
    assert (cell.row, cell.column) == ("tests/test_upload.py::test_number_0", "satellite-geo")
    assert heads == [
        "Why it did not pass",
        "To run it again under the same network",
        "client -> server on lan: read-back holds, counters shown, probe not asked",
        "Metrics",
        "Samples",
        "Programs",
        "Output of python3 in client",
        "Packets, for Wireshark",
    ]
    (samples,) = (part for part in cell.parts if isinstance(part, Charts))
    metric = long_run.tests[3].last.metric("request")
    assert metric is not None
    first = samples.charts[0]
    assert isinstance(first, Points)
    assert first.groups == {"samples": metric.values}, "every point"


def compared(tests: int, pairs: int) -> Page:
    base, head = (
        [as_run(session(tests, seed=seed, samples=20, factor=factor)) for seed in range(pairs)] for factor in (1.0, 1.3)
    )
    comparison = compare(base, head)
    return compared_page.page(comparison, base="main", head="<b>fix</b>", base_runs=base, head_runs=head)


def test_a_comparison_has_what_regressed_first_with_every_pair_and_every_sample() -> None:
    page = compared(1, 40)
    (cell,) = page.cells
    assert (page.counts, cell.word, cell.tone) == ([("regressed", 1, "bad")], "regressed", "bad")
    table = next(part for part in cell.parts if isinstance(part, Table))
    verdicts = [row[-1] for row in table.rows]
    assert verdicts == sorted(verdicts, key=["regressed", "undecided", "improved", "same"].index)
    assert verdicts[0] == "regressed"
    charts = next(part.charts for part in cell.parts if isinstance(part, Charts))
    first = charts[0]
    assert isinstance(first, Pairs)
    assert len(first.base) == len(first.head) > 20
    samples = next(chart for chart in charts if isinstance(chart, Points))
    passed = sum(session(1, seed=seed).tests[0].last.outcome is Verdict.HOLDS for seed in range(40))
    assert {name: len(values) for name, values in samples.groups.items()} == {"base": passed * 20, "head": passed * 20}
    titles = [part.title for part in cell.parts]
    for side in ("base", "head"):
        shown = [title.partition(": ")[2] for title in titles if title.startswith(f"{side}, seed ")]
        assert any("read-back" in title for title in shown), "what one run of it was asked, held and was seen to do"
        assert any(title.startswith("Output of ") for title in shown)
        assert {"Programs", "Packets, for Wireshark", "to run it again"} <= set(shown)
    text = render(page)
    assert "&lt;b&gt;fix&lt;/b&gt; against main" in text
    assert "<b>fix" not in text


def test_very_many_samples_are_thinned_out_over_their_whole_range() -> None:
    runs = [as_run(session(1, seed=seed, samples=700)) for seed in range(9)]
    (test,) = runs[0].tests
    values = compared_page.thinned(compared_page.samples_of(runs, test, "upload"), most=1000)
    assert 500 < len(values) <= 1000
    every = sorted(value for run in runs for value in run.tests[test].metrics["upload"].values)
    assert (values[0], values[-1] > every[-20]) == (every[0], True)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (300, 300), (301, 151), (10_000, 296)])
def test_a_series_of_many_points_is_thinned_out_evenly_and_its_last_point_stays(count: int, kept: int) -> None:
    packets = Series.of("n", "s", [(float(at), at * 2.0) for at in range(count)])
    assert len(packets.times_s) == len(packets.values) == kept
    assert (packets.times_s[0], packets.times_s[-1], packets.values[-1]) == (0.0, count - 1.0, 2.0 * (count - 1))


def test_groups_keep_their_order() -> None:
    text = render(
        Page(
            title="t",
            lead="",
            parts=[Charts(title="", charts=[Points(title="p", unit="s", groups={"second": [1.0], "first": [2.0]})])],
        )
    )
    assert '"groups":{"second":[1],"first":[2]}' in text


def test_an_incomplete_session_says_so() -> None:
    page = run.page(replace(session(2), end=None))
    assert page.notes == ["r.jsonl: the session did not come to its end: it was killed, or broke off."]


def test_a_failed_test_that_is_not_shown_is_told() -> None:
    whole = session(200)
    assert run.page(whole).notes == [], "some that are shown failed"
    passed = tuple(test for test in whole.tests if test.last.outcome is Verdict.HOLDS)
    (note,) = run.page(replace(whole, tests=passed)).notes
    assert note.startswith("pytest ended with status 1: a test failed that has no lab of this session")


def test_the_library_is_the_one_that_is_pinned() -> None:
    pinned = [
        line.split()
        for line in (ROOT / "scripts/requirements/assets.lock").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert len(pinned) == 2
    for _, path, digest in pinned:
        content = resource(f"testbed/report/assets/{Path(path).name}").read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert b"</script" not in content.lower()


# --- in a browser ------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(browser.BINARY is None, reason="no Chromium here; CI installs it")


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(opened: Browser) -> Iterator[Browser]:
    opened.said.clear()
    yield opened
    assert opened.said == []


def written(folder: Path, content: Page) -> Path:
    file = folder / "index.html"
    file.write_text(render(content))
    return file


@needs_chromium
def test_every_chart_of_200_cells_is_drawn_when_its_cell_is_opened(page: Browser, tmp_path: Path) -> None:
    page.open(written(tmp_path, run.page(session(200, samples=12))))
    assert page.js("document.querySelectorAll('.chart svg').length") == 0, "none before"
    for first in range(0, 200, 25):
        cells = f"[...document.querySelectorAll('details.cell')].slice({first}, {first + 25})"
        charts = f"{cells}.flatMap(cell => [...cell.querySelectorAll('.chart')])"
        page.js(f"{cells}.forEach(cell => {{ cell.open = true }})")
        page.await_true(f"{charts}.every(chart => chart.querySelectorAll('svg').length === 2)")
        widths = page.js(f"{charts}.flatMap(each => [...each.querySelectorAll('svg')].map(svg => svg.clientWidth))")
        assert len(widths) >= 100
        assert min(widths) > 200
        page.js(f"{cells}.forEach(cell => {{ cell.open = false }})")
    assert page.js("document.querySelectorAll('.chart.across svg').length") == 20 * 2, "one panel a unit"
    assert page.js("document.querySelectorAll('.chart svg circle').length") == 400 * 12, "every sample is a point"


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_each_kind_of_chart_is_drawn_wide_and_narrow_light_and_dark(
    page: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    parts: list[Part] = [CHARTS, Table(title="t", heads=["a"], rows=[["x" * 300]]), Text(title="t", text="y" * 3000)]
    page.open(written(tmp_path, Page(title="charts", lead="all", parts=parts)), width=width, height=3000, dark=dark)
    drawn = page.js("[...document.querySelectorAll('.chart')].map(chart => chart.querySelectorAll('svg').length)")
    assert drawn == [2, 1, 2, 2, 1, 1, 1, 2, 2]
    outside = page.js(
        "[...document.querySelectorAll('.chart svg')].map(svg => [...svg.querySelectorAll('circle')].filter(dot => {"
        " const [inner, outer] = [dot, svg].map(each => each.getBoundingClientRect());"
        " return inner.top < outer.top || inner.bottom > outer.bottom; }).length)"
    )
    assert sum(outside) == 0, "every point lies in its chart"
    ticks = page.js("[...document.querySelectorAll('.chart')][3].querySelector('svg').textContent")
    assert "0.001" in ticks, "1 ms of a scale in seconds has no prefix"
    bars = page.js(
        "[...document.querySelectorAll('.chart')][5].querySelectorAll('[aria-label=rect] rect')"
        ".values().map(bar => bar.getBoundingClientRect().width).toArray()"
    )
    assert bars[1] == pytest.approx(2 * bars[0], rel=0.02)
    boxes = page.js(
        "[...document.querySelectorAll('.chart')][6].querySelectorAll('[aria-label=rect] rect')"
        ".values().map(box => box.getBoundingClientRect().toJSON()).toArray()"
    )
    rows = [[box for box in boxes if box["y"] == y] for y in sorted({box["y"] for box in boxes})]
    assert [len(row) for row in rows] == [1, 2, 3, 4], "the message alone, and a header more in each row"
    for row in rows:
        for box, following in pairwise(sorted(row, key=lambda box: box["x"])):
            assert following["x"] - box["right"] == pytest.approx(2, abs=0.2), "they lie side by side"
            assert box["width"] > 40, "its name has room"
            assert following["right"] <= width
    last = "[...document.querySelectorAll('.chart')].at(-1).querySelectorAll('svg')"
    path = page.js(f"[...{last}].at(-1).querySelector('[aria-label=line] path').getAttribute('d')")
    assert path.count(",") == 1, "what is not finite is not drawn"
    assert page.js("document.documentElement.scrollWidth") <= width, "the page itself does not scroll sideways"
    assert "NaN" not in page.js("[...document.querySelectorAll('svg')].map(svg => svg.outerHTML).join('')")
    ink, paper = page.js("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert (luminance(ink) > luminance(paper)) is dark
    if kept := os.environ.get("TESTBED_SCREENSHOTS"):
        page.screenshot(Path(kept) / f"charts-{width}.png")


def luminance(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


@needs_chromium
def test_a_comparison_is_drawn(page: Browser, tmp_path: Path) -> None:
    page.open(written(tmp_path, compared(3, 12)), height=2600)
    page.js("document.querySelectorAll('details.cell').forEach(cell => { cell.open = true })")
    page.await_true("document.querySelectorAll('.chart').length > 3")
    page.await_true("[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg circle'))")
    if kept := os.environ.get("TESTBED_SCREENSHOTS"):
        page.screenshot(Path(kept) / "compared.png")


@needs_chromium
def test_the_demonstration_is_drawn(page: Browser, tmp_path: Path) -> None:
    messages = tuple(
        Message(text=f"m{number}", connect_s=0.1, delivery_s=0.01 * (number + 1) if number else None)
        for number in range(20)
    )
    check = Check(field="delay", asked="40ms", kernel="40ms", seen="41 ms", verdict=Verdict.HOLDS)
    profiles = tuple(
        ProfileRun(
            profile=name, description="so", forward="delay 40ms", reverse="delay 40ms", commands=("tc qdisc …",),
            proof=(("client -> server", (check,)),), delay_s=0.04, messages=messages, retransmitted_segments=1,
            dropped_packets=2, duration_s=1.0,
        ) for name in ("lan", "<lossy>", *(f"profile {number}" for number in range(4)))
    )  # fmt: skip
    file = tmp_path / "index.html"
    file.write_text(demo_page(DemoRun(engine="host", started="2026", profiles=profiles, server_output="</script>m")))
    page.open(file, height=2000)
    assert page.js("document.querySelectorAll('.chart svg circle').length") == 6 * 19, (
        "every message that came is a point"
    )
    assert page.js("document.querySelector('.lead').textContent").startswith("114 of 120 messages were delivered.")
    assert page.js("document.getElementById('shown').textContent") == "6 of 6", "no outcome of theirs has a box"
    assert page.js("[...document.querySelectorAll('details.cell')].filter(cell => !cell.hidden).length") == 6
    if kept := os.environ.get("TESTBED_SCREENSHOTS"):
        page.screenshot(Path(kept) / "demo.png")


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_long_impairment_leaves_the_table_of_tests_in_sight(page: Browser, tmp_path: Path, width: int) -> None:
    content = run.page(session(20))
    long = "client -> server: " + "; ".join(f"at {second} s delay={second}ms" for second in range(200))
    cells = [replace(cell, column=long) if number == 3 else cell for number, cell in enumerate(content.cells)]
    page.open(written(tmp_path, replace(content, cells=cells)), width=width, height=900)
    assert page.js("document.querySelector('.matrix thead').clientHeight") < 250
    assert page.js("document.querySelectorAll('.matrix thead .column')[3].title") == long
    assert page.js("document.querySelector('.matrix tbody th').clientWidth") >= 170


@needs_chromium
def test_a_cell_is_reached_and_opened_by_keyboard(page: Browser, tmp_path: Path) -> None:
    page.open(written(tmp_path, run.page(session(7))))
    page.press("Tab")
    assert page.js("document.activeElement.className") == "skip"
    for _ in range(30):
        page.press("Tab")
        if page.js("document.activeElement.matches('.matrix a')"):
            break
    where = page.js("document.activeElement.getAttribute('href')")
    page.press("Enter")
    page.await_true(f"document.querySelector('{where}').open")
    page.await_true(f"document.activeElement === document.querySelector('{where} summary')")
    page.await_true(f"document.querySelectorAll('{where} .chart svg').length === 4")
    page.press("Enter")
    page.await_true(f"!document.querySelector('{where}').open")


@needs_chromium
def test_cells_are_filtered_by_word_and_outcome(page: Browser, tmp_path: Path) -> None:
    content = run.page(session(40))
    page.open(written(tmp_path, content))
    shown = "[...document.querySelectorAll('details.cell')].filter(cell => !cell.hidden).length"
    page.js("document.querySelector('[value=passed]').click()")
    assert page.js(shown) == sum(cell.word != "passed" for cell in content.cells)
    page.js("words.value = 'NUMBER_3 4g'; words.dispatchEvent(new Event('input', {bubbles: true}))")
    expected = [
        cell for cell in content.cells if cell.word != "passed" and "number_3" in cell.row and cell.column == "4g"
    ]
    assert page.js(shown) == len(expected)
    assert page.js("document.getElementById('shown').textContent") == f"{len(expected)} of 40"


LOSS, DELAY = Axis.parse("loss=0..30%", 16), Axis.parse("delay=0..400ms", 3)
AGAIN = "pytest test_it.py::test_upload --testbed-seed 1 --testbed-vary loss=12%"


def envelope_page(versions: Sequence[str], across: Axis | None) -> Page:
    """Of a search that stopped at the third part of head's links, and of base's a bit later."""
    columns = []
    for version in versions:
        for number in range(1 if across is None else len(across.texts)):
            bound = {"head": 6, "base": 11}[version] - 2 * number
            columns.append(
                envelope.Column(
                    version=version,
                    link="" if across is None else across.at(number),
                    replay=AGAIN,
                    interval=Interval(first=bound, last=bound + 1),
                    runs=[(9, 0) if level < bound else (1, 7) if level % 2 else (0, 0) for level in range(16)],
                )
            )
    facts = [("ended", "found"), ("head", "head (1a2b3c4d <with> changes)")]
    return envelope.page_of(LOSS, across, columns, facts=facts, confidence=0.95)


ENVELOPES = [(("head",), None), (("head", "base"), None), (("head", "base"), DELAY)]


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
@pytest.mark.parametrize(("versions", "across"), ENVELOPES, ids=["one", "with base", "map with base"])
def test_an_envelope_is_drawn_and_reached_by_keyboard(
    page: Browser, tmp_path: Path, versions: Sequence[str], across: Axis | None, width: int, dark: bool
) -> None:
    page.open(written(tmp_path, envelope_page(versions, across)), width=width, height=2000, dark=dark)
    columns = len(versions) * (1 if across is None else 3)
    assert page.js("document.querySelectorAll('details.cell').length") == columns
    above = 0 if columns == 1 else 1
    page.await_true(f"document.querySelectorAll('.chart svg').length === {above + 1}")  # the first cell is open
    drawn = "[...document.querySelector('.chart').querySelectorAll('[aria-label=line] path')]"
    curves = page.js(f"{drawn}.map(path => path.getAttribute('d'))")
    assert len(curves) == len(versions) * (1 if across is None else 2), (
        "on a map, where it held and from where it fails"
    )
    assert all("NaN" not in curve and len(curve) > 10 for curve in curves)
    focused = []
    for _ in range(60):
        page.press("Tab")
        focused.append(page.js("document.activeElement.closest('details.cell')?.id ?? ''"))
        if page.js("document.activeElement.matches('details.cell:last-of-type summary')"):
            break
    assert len({*focused} - {""}) == columns, "the keyboard reaches each"
    last = "[...document.querySelectorAll('details.cell')].at(-1).open"
    was_open = page.js(last)
    page.press("Enter")
    page.await_true(f"{last} === {'false' if was_open else 'true'}")
    page.js("document.querySelectorAll('details.cell').forEach(cell => { cell.open = true })")
    page.await_true(f"document.querySelectorAll('.chart svg').length === {above + columns}")
    sizes = page.js("[...document.querySelectorAll('.chart svg')].map(svg => [svg.clientWidth, svg.clientHeight])")
    assert all(wide > 200 and high > 100 for wide, high in sizes)
    assert page.js("document.documentElement.scrollWidth") <= width
    lead = page.js("document.querySelector('.lead').textContent")
    assert ("(worse)" in lead) is (len(versions) == 2)
    if kept := os.environ.get("TESTBED_SCREENSHOTS"):
        page.screenshot(Path(kept) / f"envelope-{columns}-{width}.png")
