"""What this place can do, each found by trying: taps, the kernel's own netem, programs that drop packets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from . import splice
from .batch import Batch, Outcome
from .protocol import Refused
from .rejecting import TUN, open_tap


class Trials:
    """Tries things on devices of its own."""

    def __init__(self, tag: str, tc: Callable[[], Batch]) -> None:
        """``tag`` goes into device names; ``tc``: of this kernel."""
        self._tag = tag
        self._tc = tc
        self._tried = 0

    def host_netem(self) -> dict[str, Any]:
        """Whether this kernel has netem and seeds it, tried on a tap that vanishes with its descriptor.

        ``host_netem`` is None if it has, else why not; ``host_seed`` whether it takes a seed (Linux 6.6);
        ``host_marks`` is None if it marks packets, by which answers of cuts that reject are told, else why not.
        """
        with self._device_to_try() as device:
            tc = self._tc()
            outcome = tc.run([
                f"qdisc add dev {device} root handle 1: htb default 0 direct_qlen 1000",
                f"class add dev {device} parent 1: classid 1:10 htb rate 1gbit quantum 60000",
                f"qdisc add dev {device} parent 1:10 handle 10: netem limit 1000 delay 1ms",
                f"filter add dev {device} parent 1: protocol ip prio 1 flower src_ip 192.0.2.1 classid 1:10",
            ])  # fmt: skip
            # Apart: an iproute2 before 6.6 knows no seed and still does the rest.
            seeding = tc.run([
                f"qdisc replace dev {device} parent 1:10 handle 10: netem limit 1000 delay 1ms seed 1",
                f"qdisc show dev {device}",
            ])  # fmt: skip
            marks = splice.Redirect(source=device, target=device, first=f"{mark(1)} pipe ")
            marking = tc.run(list(splice.lines([marks])))
        shown = seeding.shown[0] if seeding.shown else []
        seeded = any(qdisc.get("options", {}).get("seed") == 1 for qdisc in shown if qdisc["kind"] == "netem")
        return {"host_netem": _reasons(outcome), "host_seed": seeded, "host_marks": _reasons(marking)}

    def program(self, path: str) -> str | None:
        """Why this kernel does not let us have a stored program drop packets; None if it does. Found by trying."""
        with self._device_to_try() as device:
            outcome = self._tc().run([
                f"qdisc add dev {device} root handle 1: htb",
                f"filter add dev {device} parent 1: chain 16 protocol all prio 1 handle 1 bpf object-file {path} "
                f"section classifier action gact drop",
            ])  # fmt: skip
        return _reasons(outcome)

    @contextmanager
    def _device_to_try(self) -> Iterator[str]:
        """A device of nobody's, on which qdiscs are tried; it vanishes. Never the same name: tc remembers the index."""
        self._tried += 1
        device = f"tb{self._tag}t{self._tried}"
        with ExitStack() as undo:
            if no_tun() is None:
                undo.callback(os.close, open_tap(device))
            else:
                run("ip", "link", "add", device, "type", "veth", "peer", "name", f"{device}p")
                undo.callback(run, "ip", "link", "delete", device)
            yield device


def _reasons(outcome: Outcome) -> str | None:
    """Why lines failed, each reason once; None if none did."""
    return "; ".join(dict.fromkeys(complaint["text"] for complaint in outcome.complaints)) or None


def mark(number: int) -> str:
    """The action that marks an answer: the gate's filters know it by the mark, and htb lets its priority pass."""
    return f"action skbedit mark {number} priority 1:0"


def run(*argv: str) -> str:
    """Run a program; what it printed. Raises Refused with its complaint if it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        raise Refused(f"{argv[0]} not found; install iproute2 (apt-get install iproute2)") from None
    if done.returncode:
        raise Refused(f"`{' '.join(argv)}` failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def no_tun() -> str | None:
    """None if taps can be had; else why not."""
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        return f"{TUN}: {error.strerror}"
    return None
