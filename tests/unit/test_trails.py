"""Digests of what passed at ports: as the agent makes them, and where two runs part."""

from __future__ import annotations

import gc
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.agent import capture, trails
from testbed.errors import InvalidValueError
from testbed.evidence.trail import Passed, Trail, partings
from testbed.pytest.trails import collect_garbage

Frame = tuple[int, bytes]
"""The time in ns since 1970, and the bytes."""
BEGAN_NS = 5 * 10**9


def block(*frames: Frame, outgoing: bool = True) -> bytes:
    """A block of the kernel's ring (packet(7), TPACKET_V3)."""
    body = b""
    for time_ns, data in frames:
        kind = bytes([4 if outgoing else 0])
        ahead = (60 + len(data) + 15) & ~15
        head = capture.PACKET.pack(ahead, *divmod(time_ns, 10**9), len(data), len(data), 0, 60).ljust(58, b"\0") + kind
        body += (head.ljust(60, b"\0") + data).ljust(ahead, b"\0")
    return struct.pack("=IIIIII", 1, 0, 1, len(frames), 48, 48 + len(body)).ljust(48, b"\0") + body


class Ring(trails.FollowedPort):
    """An interface without a kernel: blocks come from the test."""

    def __init__(self) -> None:
        self.ended = "no kernel"
        self._read = self._at = 0
        self.begin(since_ns=BEGAN_NS, keep_bytes=0, whole=[])

    def finish(self, content: bytes) -> None:
        self._keep(content)

    def look(self, content: bytes) -> None:
        self._take_from(content)


def trail_of(*frames: Frame, **how: Any) -> Trail:
    ring = Ring()
    ring.finish(block(*frames, **how))
    return Trail.read({**ring.result(), "lost": 0})


def frames(count: int, *, changed: int | None = None) -> list[Frame]:
    """One a microsecond; of ``changed``, a byte is another."""
    return [(BEGAN_NS + number * 1000, bytes([number % 251, number == changed])) for number in range(1, count + 1)]


def passed(**ports: Trail) -> Passed:
    return Passed(since_ns=BEGAN_NS, ports=ports)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_block_that_is_read_while_it_fills_counts_each_packet_once(count: int, first: int, second: int) -> None:
    all_of_them = frames(count)
    ring = Ring()
    for part in sorted((first, second)):
        ring.look(block(*all_of_them[:part]))
    ring.finish(block(*all_of_them))
    ring.finish(block(*frames(3)))
    assert Trail.read({**ring.result(), "lost": 0}) == trail_of(*all_of_them, *frames(3))


@pytest.mark.parametrize(
    "other",
    [
        trail_of((BEGAN_NS + 1001, b"data")),
        trail_of((BEGAN_NS + 1000, b"dada")),
        trail_of((BEGAN_NS + 1000, b"data.")),
        trail_of((BEGAN_NS + 1000, b"data"), outgoing=False),
    ],
    ids=["time", "bytes", "length", "direction"],
)
def test_time_length_direction_and_bytes_change_the_digest(other: Trail) -> None:
    assert trail_of((BEGAN_NS + 1000, b"data")).digest != other.digest


def test_packets_from_before_the_beginning_do_not_count() -> None:
    assert trail_of((BEGAN_NS - 1, b"before"), (BEGAN_NS + 1000, b"data")) == trail_of((BEGAN_NS + 1000, b"data"))


@pytest.mark.parametrize(
    ("count", "changed", "same", "until"),
    [(100, 37, 36, 37), (100, 1, 0, 1), (100, 100, 99, 100), (3000, 37, 32, 40), (3000, 2999, 2992, 3000)],
)
def test_two_runs_part_at_the_first_packet_that_differs(count: int, changed: int, same: int, until: int) -> None:
    """Of more than 511 packets each second mark is left out, and again: 3,000 have one for every eight."""
    one, other = trail_of(*frames(count)), trail_of(*frames(count, changed=changed))
    assert one.packets == count
    (parting,) = partings(passed(server=one), passed(server=other))
    assert (parting.same, parting.until, parting.time_ns) == (same, until, until * 1000)
    assert partings(passed(server=one), passed(server=one)) == []


@pytest.mark.parametrize(("fewer", "same", "until"), [(60, 60, 61), (700, 700, 702)])
def test_a_run_with_more_packets_parts_where_the_other_ends(fewer: int, same: int, until: int) -> None:
    """700 packets have a mark for every two, and 1,000 too."""
    one, other = trail_of(*frames(fewer)), trail_of(*frames(1000 if fewer > 500 else 100))
    (parting,) = partings(passed(server=one), passed(server=other))
    assert (parting.same, parting.until) == (same, until)


def test_runs_with_fewer_marks_are_compared_at_those_that_both_have() -> None:
    (parting,) = partings(passed(server=trail_of(*frames(100))), passed(server=trail_of(*frames(3000, changed=37))))
    assert (parting.same, parting.until) == (32, 40)


def test_the_port_that_parts_first_comes_first_and_a_port_of_one_run_alone_is_named() -> None:
    one = passed(a=trail_of(*frames(50)), b=trail_of(*frames(50)))
    other = passed(a=trail_of(*frames(50, changed=40)), b=trail_of(*frames(50, changed=9)), c=trail_of(*frames(60)))
    assert [(parting.port, parting.until) for parting in partings(one, other)] == [("c", 60), ("b", 9), ("a", 40)]


def test_what_is_written_is_read_back() -> None:
    one = passed(a=trail_of(*frames(700)), b=trail_of())
    assert Passed.read(one.as_json()) == one


@pytest.mark.parametrize("changed", [{"marks": "?"}, {"packets": "3"}, {"every": 0}, {"digest": None}])
def test_digests_that_are_none_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=r"digests of packets .*: cannot be read: "):
        Trail.read({**trail_of(*frames(2)).as_json(), **changed})


def test_collections_of_garbage_do_not_depend_on_what_was_before() -> None:
    """Which garbage is there, how many objects there are, and how long ago the last collection was."""

    def collections(ballast: int) -> list[tuple[int, int]]:
        """After how many objects garbage was collected, and the generation."""
        seen: list[tuple[int, int]] = []
        later: list[list[object]] = []

        def collecting(phase: str, info: dict[str, int]) -> None:
            if phase == "start":
                seen.append((len(later), info["generation"]))

        older = [[number] for number in range(ballast)]
        collect_garbage()
        gc.callbacks.append(collecting)
        try:
            while len(later) < 200_000:
                later.append([])
        finally:
            gc.callbacks.remove(collecting)
            gc.unfreeze()
        assert len(older) == ballast
        return seen

    def alike() -> bool:
        return collections(0) == collections(1_234) == collections(300_000) != []

    assert any(alike() for _ in range(5)), "another thread, of pytest-xdist, may allocate something meanwhile"
