"""Captures kept for a test: begun at each port as it is impaired, written to files or forgotten when it is over."""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.labs.observing import SNAP_BYTES, PortCapture

if TYPE_CHECKING:
    from testbed.labs.lab import Lab, Port
    from testbed.model.topology import LinkRef

_NAME_LENGTH = 120


class KeptCaptures:
    """The captures of one test."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        """``folder``: where this test's files go; what an earlier run of it left there is removed."""
        self._lab = lab
        self._folder = folder
        self._running: dict[tuple[str, str], list[tuple[Port | None, PortCapture]]] = {}
        self.failed = ""
        """Why packets of some port could not be captured; empty if they could."""
        for path in folder.glob("*.pcapng"):
            path.unlink()

    def on_impaired(self, ref: LinkRef) -> None:
        """Begin to capture at the link's port, unless that is done already and the port is still the same.

        If it cannot be done the test goes on without.
        """
        port = self._lab.port(ref)
        known = self._running.setdefault((ref.dst, ref.network), [])
        if known and known[-1][0] is port:
            return
        capture = PortCapture(self._lab, f"{ref.dst} on {ref.network}", snap_bytes=SNAP_BYTES)
        try:
            capture.begin()
        except LabError as error:
            self.failed = str(error)
        else:
            known.append((port, capture))

    def save(self) -> list[Path]:
        """End every capture and write it; the files' paths. Raises LabError if they cannot be had."""
        saved = []
        for (host, network), captures in self._running.items():
            for number, (_, capture) in enumerate(captures, start=1):
                capture.end(at_once=True)
                name = f"{host}@{network}" if number == 1 else f"{host}@{network}-{number}"
                saved.append(capture.save(self._folder / f"{name}.pcapng"))
        self._running.clear()
        return saved

    def drop(self) -> None:
        """End every capture and forget the packets."""
        with ExitStack() as each:
            for captures in self._running.values():
                for _, capture in captures:
                    each.callback(capture.drop)
        self._running.clear()


def file_name(test_id: str) -> str:
    """A test's id as the name of a folder, another for each test."""
    plain = re.sub(r"[^\w.\-]+", "_", test_id).strip("_.")
    if len(plain) <= _NAME_LENGTH and plain == test_id:
        return plain
    return f"{plain[:_NAME_LENGTH]}-{hashlib.sha256(test_id.encode()).hexdigest()[:6]}"
