"""What `testbed watch` shows: successive pictures of a session become rows, rates and events. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from testbed import units

_EVENTS = 12


@dataclass(frozen=True, kw_only=True)
class LinkRow:
    """One link at one moment, in words; an empty word: nothing to say."""

    link: str
    src: str
    dst: str
    network: str
    state: str
    """``cut``, ``impaired`` or ``gone``: the kernel has no netem for it."""
    asked: str
    delay: str
    """By the kernel's netem; so is the loss that it is to make."""
    loss: str
    lost: str
    """Of the packets that met the netem: how many were lost, by random loss or a full queue."""
    rate: str
    """What left it since the picture before."""
    queue: str
    timeline: str


@dataclass(frozen=True, kw_only=True)
class BottleneckRow:
    """One bottleneck at one moment, in words; an empty word: nothing to say."""

    bottleneck: str
    dst: str
    network: str
    state: str
    """``shaped``, or ``gone``: the kernel has none."""
    asked: str
    rate: str
    """What left its queue since the picture before."""
    queue: str
    dropped: str
    """By the queue, of all packets that were led to it."""
    marked: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What there is to see at one moment."""

    test: str
    networks: Mapping[str, list[str]]
    rows: tuple[LinkRow, ...]
    bottlenecks: tuple[BottleneckRow, ...]
    events: tuple[str, ...]
    """The last ones, the latest first."""


@dataclass
class Film:
    """Turns pictures into scenes; remembers the one before, and the last events."""

    _before: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    _shared: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    _test: str = ""
    _at_s: float = 0.0
    _began_s: float | None = None
    _events: list[str] = field(default_factory=list)

    def add(self, picture: Mapping[str, Any]) -> Scene:
        """The next scene. ``picture``: as `testbed.lab.window` sends it."""
        at_s = picture["at_s"]
        if self._began_s is None:
            self._began_s = at_s
        links = {
            (lab["stack"], link["network"], link["link"]): link for lab in picture["labs"] for link in lab["links"]
        }
        test = picture["test"]
        shared = {
            (lab["stack"], place["network"], place["bottleneck"]): place
            for lab in picture["labs"]
            for place in lab["bottlenecks"]
        }
        news = [
            *([f"test {test}" if test else "between tests"] if test != self._test else ()),
            *self._news(links, shared),
        ]
        self._events = [*(f"{at_s - self._began_s:7.1f} s  {text}" for text in reversed(news)), *self._events][:_EVENTS]
        rows = tuple(_row(link, self._before.get(key), at_s - self._at_s) for key, link in links.items())
        bottlenecks = tuple(
            _shared_row(place, self._shared.get(key), at_s - self._at_s) for key, place in shared.items()
        )
        self._before, self._shared, self._test, self._at_s = links, shared, test, at_s
        networks = {name: hosts for lab in picture["labs"] for name, hosts in lab["networks"].items()}
        return Scene(test=test, networks=networks, rows=rows, bottlenecks=bottlenecks, events=tuple(self._events))

    def _news(
        self,
        links: Mapping[tuple[str, str, str], Mapping[str, Any]],
        shared: Mapping[tuple[str, str, str], Mapping[str, Any]],
    ) -> Iterator[str]:
        for key, place in shared.items():
            if place["asked"] != self._shared.get(key, {}).get("asked"):
                yield f"{place['bottleneck']}: shared {_asked(place)}"
        for key, place in self._shared.items():
            if key not in shared:
                yield f"{place['bottleneck']}: no bottleneck any more"
        for key, link in links.items():
            before = self._before.get(key, {})
            if link["cut"] != before.get("cut"):
                yield f"{link['link']}: {link['cut'] or 'mended'}"
            if link["asked"] != before.get("asked"):
                yield f"{link['link']}: {_asked(link) or 'healed'}"
            step, last = (place and place["step"] for place in (link["timeline"], before.get("timeline")))
            if step != last and step is not None:
                yield f"{link['link']}: step {_position(link)}"
        for key, link in self._before.items():
            if key not in links:
                yield f"{link['link']}: {'mended' if link['cut'] and not link['asked'] else 'healed'}"


def _asked(link: Mapping[str, Any]) -> str:
    profile = f" (profile {link['profile']})" if link["profile"] and link["asked"] else ""
    return f"{link['asked'] or ''}{profile}"


def _position(link: Mapping[str, Any]) -> str:
    place = link["timeline"]
    if place is None:
        return ""
    again = f", every {units.format_time(place['repeat_s'])}" if place["repeat_s"] else ""
    return f"{place['step']} of {place['of']}, at {units.format_time(place['at_s'])}{again}"


def _row(link: Mapping[str, Any], before: Mapping[str, Any] | None, passed_s: float) -> LinkRow:
    counts, kernel = link["counts"], link["kernel"] or {}
    lost = rate = queue = ""
    if counts is not None:
        met = counts["sent_packets"] + counts["dropped_packets"]
        lost = f"{counts['dropped_packets']} of {met}"
        queue = f"{counts['queued_packets']} packets" if counts["queued_packets"] else "empty"
        rate = _rate(counts, before, passed_s)
    return LinkRow(
        link=link["link"],
        src=link["src"],
        dst=link["dst"],
        network=link["network"],
        state="cut" if link["cut"] else ("impaired" if counts is not None else "gone"),
        asked="; ".join(filter(None, (_asked(link), link["cut"]))),
        delay=kernel.get("delay", ""),
        loss=kernel.get("loss", ""),
        lost=lost,
        rate=rate,
        queue=queue,
        timeline=_position(link),
    )


def _shared_row(place: Mapping[str, Any], before: Mapping[str, Any] | None, passed_s: float) -> BottleneckRow:
    counts = place["counts"]
    rate = queue = dropped = marked = ""
    if counts is not None:
        rate = _rate(counts, before, passed_s)
        queue = f"{counts['waiting_packets']} packets" if counts["waiting_packets"] else "empty"
        all_packets = counts["sent_packets"] + counts["dropped_packets"] + counts["waiting_packets"]
        dropped, marked = f"{counts['dropped_packets']} of {all_packets}", str(counts["marked_packets"])
    return BottleneckRow(
        bottleneck=place["bottleneck"],
        dst=place["dst"],
        network=place["network"],
        state="shaped" if counts is not None else "gone",
        asked=_asked(place),
        rate=rate,
        queue=queue,
        dropped=dropped,
        marked=marked,
    )


def _rate(counts: Mapping[str, Any], before: Mapping[str, Any] | None, passed_s: float) -> str:
    """What left since the picture before; empty if that is not known."""
    earlier = (before or {}).get("counts")
    if earlier is None or passed_s <= 0 or counts["sent_bytes"] < earlier["sent_bytes"]:
        return ""
    return units.format_rate((counts["sent_bytes"] - earlier["sent_bytes"]) * 8 / passed_s)


_COLOURS = {"cut": "red", "impaired": "yellow", "gone": "magenta", "shaped": "green"}


def rendered(scene: Scene) -> RenderableType:
    """A scene for a terminal: the stack as a graph, a table of its links, and the last events."""
    graph = Tree(Text(scene.test or "between tests", "bold"))
    for network, hosts in scene.networks.items():
        branch = graph.add(Text(network, "cyan"))
        for host in hosts:
            leaves = branch.add(Text(host))
            for row in scene.rows:
                if row.network == network and host == (row.src if row.src in hosts else row.dst):
                    arrow = f"→ {row.dst}" if host == row.src else f"← {row.src}"
                    leaves.add(Text(f"{arrow}  {row.asked}", _COLOURS[row.state]))
            for place in scene.bottlenecks:
                if (place.network, place.dst) == (network, host):
                    leaves.add(Text(f"← shared  {place.asked}", _COLOURS[place.state]))
    table = Table("link", "asked", "delay", "loss", "lost", "rate", "queue", "timeline", box=None, padding=(0, 2, 0, 0))
    for row in scene.rows:
        words = (row.link, row.asked, row.delay, row.loss, row.lost, row.rate, row.queue, row.timeline)
        table.add_row(*(Text(word, _COLOURS[row.state] if word == row.link else "") for word in words))
    shared = Table("bottleneck", "asked", "rate", "queue", "dropped", "marked", box=None, padding=(0, 2, 0, 0))
    for place in scene.bottlenecks:
        name = Text(place.bottleneck, _COLOURS[place.state])
        shared.add_row(name, *map(Text, (place.asked, place.rate, place.queue, place.dropped, place.marked)))
    events = Text("\n".join(scene.events), "dim")
    bottlenecks: list[RenderableType] = [Text(""), shared] if scene.bottlenecks else []
    links = table if scene.rows else Text("no link is impaired", "dim")
    return Group(graph, Text(""), links, *bottlenecks, Text(""), events)
