"""What `testbed watch` makes of pictures of a session, and how it gets them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from rich.console import Console

from testbed.commands.cli import cli
from testbed.errors import UserError
from testbed.lab.window import Window, seen_through, windows
from testbed.report.watched import Film, rendered
from tests.unit.browser import BINARY, chromium

ME = ("--pid", str(os.getpid()))


def link(**words: Any) -> dict[str, Any]:
    counts = {"sent_packets": 90, "sent_bytes": 9000, "dropped_packets": 10, "queued_packets": 0, "queued_bytes": 0}
    return {
        "link": "a -> b",
        "src": "a",
        "dst": "b",
        "network": "lan",
        "asked": "delay 40ms",
        "profile": "",
        "cut": None,
        "timeline": None,
        "kernel": {"delay": "40 ms", "loss": "0%"},
        "counts": counts,
        **words,
    }


def shared(**counts: int) -> dict[str, Any]:
    known = {"sent_packets": 90, "sent_bytes": 9000, "dropped_packets": 10, "marked_packets": 3, "waiting_packets": 20}
    return {
        "bottleneck": "a, c -> b",
        "dst": "b",
        "network": "lan",
        "asked": "rate=8mbit",
        "profile": "home",
        "counts": known | counts,
    }


def picture(
    at_s: float, *links: dict[str, Any], test: str = "t.py::test_it", bottlenecks: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    lab = {"stack": "0", "networks": {"lan": ["a", "b"]}, "links": list(links), "bottlenecks": list(bottlenecks)}
    return {"version": 1, "at_s": at_s, "test": test, "labs": [lab]}


def test_a_rate_is_what_left_between_two_pictures_and_a_loss_is_of_all_that_came() -> None:
    film = Film()
    (first,) = film.add(picture(10.0, link())).rows
    assert (first.rate, first.lost, first.queue, first.delay) == ("", "10 of 100", "empty", "40 ms")
    (second,) = film.add(picture(12.0, link(counts={**link()["counts"], "sent_bytes": 259_000}))).rows
    assert second.rate == "1mbit"  # 250 kB in 2 s
    (anew,) = film.add(picture(13.0, link(counts={**link()["counts"], "sent_bytes": 0}))).rows
    assert anew.rate == ""  # the netem was put there again


def test_a_bottleneck_has_its_rate_its_queue_now_and_what_the_queue_dropped_and_marked() -> None:
    film = Film()
    (first,) = film.add(picture(10.0, bottlenecks=[shared()])).bottlenecks
    assert (first.state, first.asked, first.rate) == ("shaped", "rate=8mbit (profile home)", "")
    assert (first.queue, first.dropped, first.marked) == ("20 packets", "10 of 120", "3")
    scene = film.add(picture(12.0, bottlenecks=[shared(sent_bytes=2_009_000, waiting_packets=0)]))
    assert [(place.rate, place.queue) for place in scene.bottlenecks] == [("8mbit", "empty")]
    console = Console(width=200, record=True)
    console.print(rendered(scene))
    text = console.export_text()
    assert "← shared  rate=8mbit" in text.partition("b\n")[2]
    assert "10 of 100" in text
    lost = {**shared(), "counts": None}
    assert film.add(picture(13.0, bottlenecks=[lost])).bottlenecks[0].state == "gone"
    events = film.add(picture(14.0)).events
    assert [event.split("  ")[-1] for event in events[:2]] == [
        "a, c -> b: no bottleneck any more",
        "a, c -> b: shared rate=8mbit (profile home)",
    ]


def test_events_are_what_differs_between_two_pictures_the_latest_first() -> None:
    film = Film()
    place = {"step": 1, "of": 2, "at_s": 0.0, "repeat_s": None}
    film.add(picture(5.0, link()))
    film.add(picture(6.0, link(timeline=place)))
    film.add(picture(7.0, link(timeline={**place, "step": 2, "at_s": 0.2})))
    film.add(picture(8.0, link(cut="silently", asked=None)))
    scene = film.add(picture(9.5, test=""))
    assert [event.split("  ")[-1] for event in scene.events] == [
        "a -> b: mended",
        "between tests",
        "a -> b: healed",
        "a -> b: silently",
        "a -> b: step 2 of 2, at 200ms",
        "a -> b: step 1 of 2, at 0s",
        "a -> b: delay 40ms",
        "test t.py::test_it",
    ]
    assert scene.events[0].startswith("    4.5 s")


def test_the_terminal_has_the_graph_the_links_and_the_events() -> None:
    console = Console(width=200, record=True)
    console.print(rendered(Film().add(picture(0.0, link(), link(link="outside -> b", src="outside", counts=None)))))
    text = console.export_text()
    assert "→ b  delay 40ms" in text
    assert "← outside" in text or "→ b  delay 40ms" in text.partition("outside")[2]
    assert "10 of 100" in text


@contextmanager
def session(pictures: list[dict[str, Any]]) -> Iterator[Window]:
    """A window through which the last of these pictures is seen."""
    window = Window(lambda: pictures[-1], every_s=0.02)
    try:
        yield window
    finally:
        window.close()


def test_nobody_is_read_for_until_somebody_watches_and_a_fault_ends_nothing() -> None:
    looks: list[int] = []

    def look() -> dict[str, Any]:
        looks.append(threading.get_ident())
        if len(looks) == 1:
            raise RuntimeError("dictionary changed size during iteration")
        return picture(1.0)

    window = Window(look, every_s=0.01)
    try:
        assert windows()[os.getpid()] == window.name == f"testbed-watch-{os.getpid()}"
        assert looks == []
        assert next(iter(seen_through(window.name)))["test"] == "t.py::test_it"
        assert len(looks) >= 2
    finally:
        window.close()
    assert os.getpid() not in windows()
    with pytest.raises(UserError, match=f"--pid {os.getpid()}: no such session"):
        CliRunner().invoke(cli, ["watch", "--once", *ME], standalone_mode=False, catch_exceptions=False)


def test_a_session_that_cannot_be_read_again_and_again_is_told() -> None:
    def look() -> dict[str, Any]:
        raise KeyError("minor")

    window = Window(look, every_s=0.01)
    try:
        with pytest.raises(UserError, match=r"cannot be watched: it cannot be read: KeyError\('minor'\)"):
            CliRunner().invoke(cli, ["watch", "--once", *ME], standalone_mode=False, catch_exceptions=False)
    finally:
        window.close()


def test_a_session_is_awaited_so_long() -> None:
    began = threading.Event()

    def begin() -> None:
        began.wait(30)
        with session([picture(1.0)]):
            ended.wait(30)

    ended = threading.Event()
    beginning = threading.Thread(target=begin)
    beginning.start()
    try:
        threading.Timer(0.3, began.set).start()
        words = ["watch", "--once", "--wait", "30s", *ME]
        assert CliRunner().invoke(cli, words, standalone_mode=False).exit_code == 0
        assert began.is_set()
    finally:
        ended.set()
        beginning.join()


def test_one_picture_as_json_and_as_text() -> None:
    with session([picture(1.0, link())]):
        printed = CliRunner().invoke(cli, ["watch", "--once", "--json", *ME], standalone_mode=False).stdout
        assert '"link": "a -> b"' in printed
        assert CliRunner().invoke(cli, ["watch", "--once", *ME], standalone_mode=False).exit_code == 0


@contextmanager
def served() -> Iterator[str]:
    """The address of the page, of a command that runs as its user starts it."""
    argv = [sys.executable, "-m", "testbed.commands.cli", "watch", "--html", *ME]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as serving:
        assert serving.stdout is not None
        try:
            yield serving.stdout.readline().strip()
        finally:
            serving.terminate()


def test_the_page_is_for_this_machine_alone() -> None:
    with session([picture(1.0, link())]), served() as url:
        assert url.startswith("http://127.0.0.1:")
        with requests.get(f"{url}scenes", stream=True, timeout=30) as scenes:
            assert b'"link": "a -> b"' in next(scenes.iter_lines())
        assert requests.get(url, headers={"Host": "evil.test"}, timeout=30).status_code == 403
        assert requests.get(f"{url}x", timeout=30).status_code == 404


@pytest.mark.skipif(BINARY is None, reason="no Chromium")
def test_the_page_draws_each_link_and_follows_the_session() -> None:
    pictures = [picture(1.0, link())]
    with session(pictures) as window, served() as url, chromium() as page:
        page.call("Page.navigate", url=url)
        page.await_true("document.getElementById('rows')?.textContent.includes('10 of 100')")
        assert page.js("document.querySelectorAll('path[data-link=\"a -> b\"]').length") == 1
        assert page.js("document.getElementById('shared').hidden") is True
        places = [shared(dropped_packets=17)]
        pictures.append(picture(2.0, link(cut="silently"), test="t.py::<b>next</b>", bottlenecks=places))
        page.await_true("document.getElementById('test').textContent === 't.py::<b>next</b>'")
        assert page.js("document.querySelector('path').getAttribute('stroke-dasharray')") == "5 5"
        assert "17 of 127" in page.js("document.getElementById('bottlenecks').textContent")
        drawn = page.js("document.querySelector('text[data-bottleneck]').textContent")
        assert drawn == "shared: rate=8mbit (profile home), 20 packets"
        assert "a -> b: silently" in page.js("document.getElementById('events').textContent")
        window.close()
        page.await_true("document.getElementById('test').textContent === 'the session has ended'")
        assert [text for text in page.said if not text.startswith(f"asks the network for {url}")] == []
