"""One qdisc by netlink: answers are joined from pieces, told apart from late ones, and parsed."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Sequence

import pytest

from testbed.agent import qdiscreader
from testbed.agent.protocol import Refused
from testbed.agent.qdiscreader import QdiscReader, RelayedKernel, account


def attribute(kind: int, data: bytes) -> bytes:
    """With what fills it up to a multiple of 4."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def qdisc(*, limit: int = 1000, handle: int = 0x10, parent: int = 0x10010, more: bytes = b"") -> bytes:
    """The body of a message about a netem: struct tcmsg, kind, options, statistics."""
    body = struct.pack("=BxxxiIII", 0, 7, handle << 16, parent, 1)
    body += attribute(1, b"netem\0") + attribute(2, struct.pack("=6I", 0, limit, 0, 0, 0, 0) + more)
    counted = attribute(1, struct.pack("=QII", 4200, 42, 0)) + attribute(3, struct.pack("=5I", 3, 300, 2, 0, 1))
    return body + attribute(7, counted)


def message(kind: int, number: int, body: bytes) -> bytes:
    """One netlink message."""
    return struct.pack("=IHHII", 16 + len(body), kind, 0, number, 0) + body


def end(number: int, code: int = 0) -> bytes:
    """An acknowledgement, or an error, with the request's header behind it."""
    return message(2, number, struct.pack("=i", -code) + bytes(16))


class Kernel:
    """Answers what it was given beforehand, in pieces of a few bytes; then nothing any more."""

    def __init__(self, *answers: bytes, piece_bytes: int = 5) -> None:
        self.data, self.piece_bytes = b"".join(answers), piece_bytes
        self.requests: list[tuple[int, int, int]] = []
        """Number, ifindex and parent of each."""

    def send(self, data: bytes) -> None:
        for at in range(0, len(data) // 36 * 36, 36):
            _, _, _, number, _ = struct.unpack_from("=IHHII", data, at)
            _, ifindex, _, parent, _ = struct.unpack_from("=BxxxiIII", data, at + 16)
            self.requests.append((number, ifindex, parent))

    def receive(self, _deadline: float) -> bytes:
        if not self.data:
            raise Refused("silence")
        piece, self.data = self.data[: self.piece_bytes], self.data[self.piece_bytes :]
        return piece


PLACES: Sequence[tuple[int, int]] = [(7, 0x10010), (7, 0x10011), (8, 0x10010)]


def test_each_place_has_its_own_answer_whatever_the_pieces() -> None:
    answers = (message(36, 1, qdisc(limit=5)), end(1), end(2), message(36, 3, qdisc(limit=9)), end(3))
    for piece_bytes in (1, 7, 4096):
        kernel = Kernel(*answers, piece_bytes=piece_bytes)
        first, second, third = QdiscReader(kernel).get(PLACES)
        assert isinstance(first, dict)
        assert isinstance(third, dict)
        assert (first["options"]["limit"], second, third["options"]["limit"]) == (5, None, 9)
        assert kernel.requests == [(1, 7, 0x10010), (2, 7, 0x10011), (3, 8, 0x10010)]


def test_a_class_that_is_not_there_has_no_qdisc_and_any_other_error_is_told() -> None:
    assert QdiscReader(Kernel(end(1, 2), end(2, 19), end(3, 1))).get(PLACES) == [
        None,
        "No such device",
        "Operation not permitted",
    ]


def test_a_late_answer_is_nobodys() -> None:
    kernel = Kernel()
    qdiscs = QdiscReader(kernel)
    with pytest.raises(Refused, match="silence"):
        qdiscs.get(PLACES[:1])
    kernel.data = message(36, 1, qdisc(limit=5)) + end(1) + end(2)
    assert qdiscs.get(PLACES[:1]) == [None]


def test_hundreds_are_asked_in_turns_that_a_console_holds() -> None:
    sent: list[int] = []

    class Counting(Kernel):
        def send(self, data: bytes) -> None:
            sent.append(len(data))
            super().send(data)
            self.data += b"".join(end(number) for number, _, _ in self.requests[-len(data) // 36 :])

    assert QdiscReader(Counting()).get([(7, 0x10010 + number) for number in range(250)]) == [None] * 250
    assert max(sent) <= 2048
    assert sum(sent) == 250 * 36


def test_what_a_netem_has_and_counted() -> None:
    more = attribute(10, struct.pack("=q", 40_000_000)) + attribute(11, struct.pack("=q", 5_000_000))
    more += attribute(1, struct.pack("=3I", 2**31, 0, 0))
    more += attribute(5, attribute(2, struct.pack("=4I", 0, 2**32 - 1, 2**32 - 1, 0)))
    more += attribute(6, struct.pack("=IiIi", 2**32 - 1, -4, 48, 5)) + attribute(8, struct.pack("=Q", 10**10))
    more += attribute(14, struct.pack("=Q", 2**63 + 1)) + attribute(7, struct.pack("=I", 1))
    assert account(qdisc(limit=77, more=more)) == {
        "kind": "netem", "handle": "10:", "parent": "1:10",
        "options": {
            "limit": 77, "gap": 0, "ecn": True, "seed": 2**63 + 1,
            "delay": {"delay": 0.04, "jitter": 0.005, "correlation": pytest.approx(0.5)},
            "loss-gemodel": {"p": 0, "r": 1, "1-h": 0, "1-k": 0},
            "rate": {"rate": 10**10, "packetoverhead": -4, "cellsize": 48, "celloverhead": 5},
        },
        "bytes": 4200, "packets": 42, "qlen": 3, "backlog": 300, "drops": 2, "requeues": 0, "overlimits": 1,
    }  # fmt: skip


def test_times_of_a_kernel_without_64_bits_for_them_are_in_ticks_of_64_ns() -> None:
    body = struct.pack("=BxxxiIII", 0, 7, 0x100000, 0x10010, 1) + attribute(1, b"netem\0")
    body += attribute(2, struct.pack("=6I", 625_000, 1000, 2**32 - 1, 0, 0, 0))
    options = account(body)["options"]
    assert options["delay"]["delay"] == pytest.approx(0.04)
    assert options["loss-random"]["loss"] == 1


def test_a_token_bucket_is_told_as_tc_tells_it() -> None:
    ratespec = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, 125_000)
    # 16,000 bytes at 125,000 a second are 0.128 s: 2,000,000 ticks of 64 ns; 64,000 bytes are 0.512 s.
    parameters = ratespec + bytes(12) + struct.pack("=III", 64_000, 2_000_000, 0)
    body = struct.pack("=BxxxiIII", 0, 7, 0x20100000, 0x100001, 1) + attribute(1, b"tbf\0")
    row = account(body + attribute(2, attribute(1, parameters)))
    assert (row["handle"], row["parent"]) == ("2010:", "10:1")
    assert row["options"] == {"rate": 125_000, "burst": 16_000, "lat": pytest.approx(384_000)}


def test_a_file_is_written_by_the_helper_or_the_reason_is_told() -> None:
    kernel = Kernel(end(1), end(1, 2), end(2, 2))
    qdiscs = QdiscReader(kernel)
    assert qdiscs.write("/sys/a", "1") is None
    assert qdiscs.write("/sys/b", "1") == "No such file or directory", "the second answer to the first is passed over"


def test_a_console_that_was_overlooked_is_nudged_until_it_answers() -> None:
    (theirs, write_fd), (read_fd, answers) = os.pipe(), os.pipe()
    kinds: list[int] = []

    def overlook_the_first() -> None:
        while len(kinds) < 2:  # the request, and the nudge that makes it be seen
            length, kind, *_ = struct.unpack("=IHHII", os.read(theirs, 16))
            os.read(theirs, length - 16) if length > 16 else None
            kinds.append(kind)
        os.write(answers, message(36, 1, qdisc(limit=5)) + end(1) + end(0))

    console = threading.Thread(target=overlook_the_first)
    console.start()
    try:
        (row,) = QdiscReader(RelayedKernel(write_fd, read_fd, alive=lambda: None)).get(PLACES[:1])
    finally:
        console.join(5)
        for descriptor in (theirs, write_fd, read_fd, answers):
            os.close(descriptor)
    assert isinstance(row, dict)
    assert kinds == [38, 1], "RTM_GETQDISC, then NLMSG_NOOP"


def test_a_helper_that_starts_slowly_is_ready_once_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdiscreader, "NUDGE_AFTER_S", 0.001)
    (theirs, write_fd), (read_fd, answers) = os.pipe(), os.pipe()

    def start_slowly() -> None:
        nudged = select.poll()
        nudged.register(theirs, select.POLLIN)
        # What came meanwhile is answered at once, and read together with the line.
        os.write(answers, b"ready\n" + (end(0) if nudged.poll(50) else b""))

    helper = threading.Thread(target=start_slowly)
    helper.start()
    try:
        RelayedKernel(write_fd, read_fd, alive=lambda: None).await_ready(deadline_s=1)
    finally:
        helper.join(5)
        for descriptor in (theirs, write_fd, read_fd, answers):
            os.close(descriptor)
