"""A suite in virtual time whose packets are the same on every machine, and their digests, which are committed.

A digest takes in the bytes of each packet of IP that passes a port in one direction; the packets' times are kept
beside it. Left out is what the kernel draws at random: the initial sequence numbers of TCP, the identifications of IP,
and when ARP asks again. These depend on all that the kernel did before: on files beside the tests, on variables, on
testbed's own code. So do some reads of the clock, each of which takes 256 ns: times are compared within ten
microseconds. All else is decided by the seed, the suite and the kernel alone, whatever the checkout, its path, the
user, the environment, Python and the processor.

``python -m tests.lab.identical`` writes the digests anew, after a change of the suite or with another kernel.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.evidence.replaying import Replay
from testbed.observe import pcapng
from testbed.observe.capture import Packet

PROJECT = Path(__file__).with_name("project")
COMMITTED = Path(__file__).with_name("digests.json")
SEED = 7
_SUITE = "test_packets.py"
_TESTS = ("delay_udp", "loss_tcp", "jitter_udp", "reordering_tcp", "timeline_tcp")
_IPV4 = bytes([8, 0])
_TCP, _SYN, _ACK, _SACK = 6, 0x02, 0x10, 5
_WITHIN_US = 10
_DEADLINE_S = 500.0


@dataclass(frozen=True, kw_only=True)
class OneWay:
    """What passed at a port in one direction."""

    digest: str
    times_us: tuple[int, ...]
    """Since the beginning of the test."""

    @classmethod
    def read(cls, content: Mapping[str, str]) -> OneWay:
        """From `as_json`."""
        times = zlib.decompress(base64.b64decode(content["times_us"]))
        return cls(digest=content["digest"], times_us=struct.unpack(f"<{len(times) // 4}I", times))

    def as_json(self) -> dict[str, str]:
        """As the file has it."""
        times = zlib.compress(struct.pack(f"<{len(self.times_us)}I", *self.times_us), 9)
        return {"digest": self.digest, "times_us": base64.b64encode(times).decode()}


Digests = Mapping[str, OneWay]
"""By test, port and direction."""


def run(
    folder: Path,
    *,
    python: Sequence[str] = (sys.executable,),
    environment: Mapping[str, str] = os.environ,
) -> Digests:
    """The digests of the suite's packets; ``folder``: where it is run, which must not exist."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__", "report"))
    kept = folder / "report" / "kept"
    names = [f"{_SUITE}::test_{test}" for test in _TESTS]
    own = Replay(tests=tuple(names), into=str(kept)).environment()
    words = ["-m", "pytest", "-p", "no:cacheprovider", "--rootdir=.", "--virtual-time", f"--testbed-seed={SEED}"]
    done = subprocess.run(
        [*python, *words, _SUITE],
        cwd=folder,
        env={**{name: value for name, value in environment.items() if name != "PYTEST_ADDOPTS"}, **own},
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        stdin=subprocess.DEVNULL,
    )
    digests: dict[str, OneWay] = {}
    for file in sorted(kept.rglob("replay/*.pcapng")):
        (test,) = (test for test in _TESTS if f"_test_{test}-" in file.parent.parent.name)
        packets = pcapng.read(file.read_bytes()).packets
        digests.update((f"{test} {file.stem} {way}", one) for way, one in ways(packets).items())
    if len(digests) != 4 * len(_TESTS):
        raise RuntimeError(f"not every test was run:\n{done.stdout}\n{done.stderr}")
    return digests


def ways(packets: Sequence[Packet]) -> dict[str, OneWay]:
    """Both directions of a port: the bytes without random numbers, and the times."""
    first = dict[bytes, int]()
    of_ip = [(packet, without_random_numbers(packet.data, first)) for packet in packets if packet.data[12:14] == _IPV4]
    return {
        way: OneWay(
            digest=hashlib.blake2b(
                b"".join(data for packet, data in of_ip if packet.left == left), digest_size=16
            ).hexdigest(),
            times_us=tuple(packet.time_ns // 1000 for packet, _ in of_ip if packet.left == left),
        )
        for way, left in (("from the host", False), ("toward the host", True))
    }


def differences(committed: Digests, seen: Digests) -> Iterator[str]:
    """A sentence for each port and direction that differs; times only where the bytes are the same."""
    for place in sorted({**committed, **seen}):
        ours, theirs = committed[place], seen[place]
        if len(ours.times_us) != len(theirs.times_us):
            yield f"{place}: {len(theirs.times_us)} packets, and committed are {len(ours.times_us)}"
        elif ours.digest != theirs.digest:
            yield f"{place}: other bytes in {len(ours.times_us)} packets"
        elif late := [pair for pair in zip(ours.times_us, theirs.times_us, strict=True) if _apart(*pair)]:
            first_us = "the first at {1} µs instead of {0} µs".format(*late[0])
            yield f"{place}: {len(late)} packets at other times, {first_us}"


def _apart(one_us: int, other_us: int) -> bool:
    return abs(one_us - other_us) > _WITHIN_US


def without_random_numbers(data: bytes, first: dict[bytes, int]) -> bytes:
    """A frame of IPv4 whose TCP sequence numbers count from the connection's first, which ``first`` keeps by sender."""
    frame, transport = bytearray(data), 14 + 4 * (data[14] & 15)
    frame[18:20] = frame[24:26] = bytes(2)  # the identification, and the checksum over it
    if frame[23] != _TCP:
        return bytes(frame)
    ours, theirs = (
        bytes(frame[address : address + 4] + frame[port : port + 2])
        for address, port in ((26, transport), (30, transport + 2))
    )
    flags = frame[transport + 13]
    if flags & _SYN:
        first[ours] = int.from_bytes(frame[transport + 4 : transport + 8])
    _count_from(frame, transport + 4, first[ours])
    _count_from(frame, transport + 8, first[theirs] if flags & _ACK else int.from_bytes(frame[transport + 8 :][:4]))
    frame[transport + 16 : transport + 18] = bytes(2)
    at, end = transport + 20, transport + 4 * (frame[transport + 12] >> 4)
    while at < end:
        length = 1 if frame[at] <= 1 else frame[at + 1]
        for edge in range(at + 2, at + length, 4) if frame[at] == _SACK else ():
            _count_from(frame, edge, first[theirs])
        at += length
    return bytes(frame)


def _count_from(frame: bytearray, at: int, first: int) -> None:
    number = int.from_bytes(frame[at : at + 4]) - first
    frame[at : at + 4] = (number % (1 << 32)).to_bytes(4)
