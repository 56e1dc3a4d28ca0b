"""Captures of a test's packets: started at each port as it is impaired, saved or dropped at its end."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.lab.observer import SNAP_BYTES, PortCapture
from testbed.observe.passages import losses
from testbed.spec.links import LOCALHOST
from testbed.spec.words import ranges, write_numbers
from testbed.writing import refuse_links, write_whole

if TYPE_CHECKING:
    from testbed.lab.lab import Lab
    from testbed.lab.ports import Port
    from testbed.spec.links import LinkRef, PortRef

_NAME_LENGTH = 120
# To follow a packet through a port takes some 20 µs, and the user waits.
_MOST_NUMBERED = 50_000


@dataclass(frozen=True)
class LinkLosses:
    """The packets that a link has lost, by number, as far as a capture tells."""

    link: LinkRef
    count: int = 0
    """Packets that it carried."""
    numbers: tuple[int, ...] = ()
    unknown: str = ""
    """Why it is not known which; empty if it is."""

    def __str__(self) -> str:
        if not self.numbers:
            return f"{self.link}: {self.unknown}"
        which = self.unknown or f"drop_packets={write_numbers(ranges(self.numbers))}"
        return f"{self.link}: lost {len(self.numbers)} of {self.count} packets: {which}"


class KeptCaptures:
    """The captures of one test."""

    def __init__(self, lab: Lab, folder: Path, *, below: Path) -> None:
        """``folder``: for this test's files; those of an earlier run are removed.

        Nothing is written or removed through a symbolic link between ``below`` and ``folder``: see `save`.
        """
        self._lab = lab
        self._folder = folder
        self._below = below
        self._running: dict[PortRef, list[tuple[Port | None, PortCapture]]] = {}
        self._began: dict[LinkRef, tuple[int, int]] = {}
        """The two times between which each link's sequence began; CLOCK_MONOTONIC in ns."""
        self.losses: list[LinkLosses] = []
        """Of each link that lost packets, which; known after `save`."""
        self.failed = ""
        """Why the packets of a port could not be captured; empty if they could."""
        try:
            refuse_links(folder, below)
            for path in (*folder.glob("*.pcapng"), folder / "lost.txt"):
                path.unlink(missing_ok=True)
        except OSError as error:
            self.failed = str(error.strerror)

    @contextmanager
    def putting(self, ref: LinkRef, again: bool) -> Iterator[None]:
        """Capture at the link's port, beginning before the impairment. ``again``: only its sequence begins again.

        If capturing fails, the test continues without.
        """
        if not again:
            self._begin(ref)
        before_ns = self._clock(ref)
        yield
        after_ns = self._clock(ref)
        if before_ns is not None and after_ns is not None and (again or ref not in self._began):
            self._began[ref] = before_ns, after_ns

    def _clock(self, ref: LinkRef) -> int | None:
        """CLOCK_MONOTONIC where packets are captured; None where they are not."""
        if not any(self._running.values()):
            return None
        try:
            return int(self._lab.capture_agent(ref.receivers_port.host).call("clock"))
        except LabError as error:
            self.failed = str(error)
            return None

    def _begin(self, ref: LinkRef) -> None:
        """Begin to capture at the link's port, unless a capture runs there already."""
        inward = replace(ref.receivers_port, out=False)  # captures have both directions of a cable
        port = self._lab.ports.at(inward.host, inward.network)
        known = self._running.setdefault(inward, [])
        if known and known[-1][0] is port:
            return
        capture = self._lab.capture(f"{inward.host} on {ref.network}", snap_bytes=SNAP_BYTES)
        try:
            capture.begin()
        except LabError as error:
            self.failed = str(error)
        else:
            known.append((port, capture))

    def save(self) -> list[Path]:
        """End every capture and write it, and the lost packets to ``lost.txt``. Returns the files' paths.

        Raises LabError if a capture cannot be fetched, OSError if it cannot be written.
        """
        saved = []
        for port, captures in self._running.items():
            for number, (_, capture) in enumerate(captures, start=1):
                capture.end(at_once=True)
                name = f"{port}" if number == 1 else f"{port}-{number}"
                saved.append(capture.save(self._folder / f"{name}.pcapng", below=self._below))
                self.losses += self._losses(capture) if len(captures) == 1 else []
        self._running.clear()
        if self.losses:
            saved.append(self._folder / "lost.txt")
            write_whole(saved[-1], "".join(f"{line}\n" for line in self.losses), below=self._below)
        return saved

    def _losses(self, capture: PortCapture) -> list[LinkLosses]:
        """The packets that each link impaired at a port has lost, if any."""
        here = {
            applied.link: applied.impairment
            for applied in self._lab.ledger.history
            if applied.link.receivers_port == capture.port and applied.link.far in ("", LOCALHOST)
        }
        if len(capture.packets) > _MOST_NUMBERED:
            return [LinkLosses(ref, unknown="too many packets to say by number which were lost") for ref in here]
        lost = []
        for ref, impairment in here.items():
            chosen = partial(
                losses,
                capture.capture,
                self._marks(ref),
                protocol=ref.traffic.protocol,
                port=ref.traffic.port,
                longest_s=(impairment.delay_s or 0.0) + 4 * (impairment.jitter_s or 0.0),
            )
            before_ns, after_ns = self._began.get(ref, (0, 0))
            seen = chosen(since_ns=before_ns)
            if seen is None:
                lost.append(LinkLosses(ref, unknown="which packets were lost is not known: not all were captured"))
                continue
            count, numbers = seen
            if numbers:
                certain = chosen(since_ns=after_ns) == seen
                why = "" if certain else "which numbers is not known: packets came while its sequence began"
                lost.append(LinkLosses(ref, count, tuple(numbers), why))
        return lost

    def _marks(self, ref: LinkRef) -> Sequence[str]:
        """What the packets of a link come from."""
        if not ref.beyond:
            return self._lab.hosts[ref.src].marks(ref.network)
        source = self._lab.ports.source(ref)
        return () if source is None else source.addresses

    def drop(self) -> None:
        """End every capture and forget the packets."""
        with ExitStack() as undo:
            for captures in self._running.values():
                for _, capture in captures:
                    undo.callback(capture.drop)
        self._running.clear()


def file_name(test_id: str) -> str:
    """A folder's name for a test's id; different ids give different names."""
    plain = re.sub(r"[^\w.\-]+", "_", test_id).strip("_.")
    if len(plain) <= _NAME_LENGTH and plain == test_id:
        return plain
    return f"{plain[:_NAME_LENGTH]}-{hashlib.sha256(test_id.encode()).hexdigest()[:6]}"
