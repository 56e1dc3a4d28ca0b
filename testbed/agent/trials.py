"""What this machine can do, determined by trying: its kernel's own netem, programs that drop packets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from . import splice
from .batch import BatchOutput
from .localtc import LocalTc
from .protocol import Refused
from .taps import no_tun, open_tap


class Trials:
    """Tries things on devices of its own."""

    def __init__(self, tag: str, tc: LocalTc) -> None:
        """``tag`` goes into device names."""
        self._tag = tag
        self._tc = tc
        self._tried = 0

    def host_netem(self) -> dict[str, Any]:
        """What this machine's kernel can do for the host engine.

        ``host_netem``: None if it has netem, else why not. ``host_seed``: whether its netem takes a seed (Linux 6.6).
        ``host_marks``: None if it marks packets, by which replies to rejected packets are known, else why not.
        """
        with self._device() as device:
            tc = self._tc.batch()
            netem = "parent 1:10 handle 10: netem limit 1000 delay 1ms"
            lines = [
                f"qdisc add dev {device} root handle 1: htb default 0 direct_qlen 1000",
                f"class add dev {device} parent 1: classid 1:10 htb rate 1gbit quantum 60000",
                f"qdisc add dev {device} {netem}",
                f"filter add dev {device} parent 1: protocol ip prio 1 flower src_ip 192.0.2.1 classid 1:10",
            ]
            output = tc.run(lines)
            # Separately: an iproute2 before 6.6 takes no seed, and does all the rest.
            seeding = tc.run([f"qdisc replace dev {device} {netem} seed 1", f"qdisc show dev {device}"])
            marks = splice.Redirect(source=device, target=device, first=f"{splice.mark(1)} pipe ")
            marking = tc.run(list(splice.lines([marks])))
        qdiscs = seeding.shown[0] if seeding.shown else []
        seeded = any(qdisc.get("options", {}).get("seed") == 1 for qdisc in qdiscs if qdisc["kind"] == "netem")
        return {"host_netem": _reasons(output), "host_seed": seeded, "host_marks": _reasons(marking)}

    def program(self, path: str) -> str | None:
        """Why this machine's kernel refuses to drop packets by a stored program; None if it does not refuse."""
        with self._device() as device:
            lines = [
                f"qdisc add dev {device} root handle 1: htb",
                f"filter add dev {device} parent 1: chain 16 protocol all prio 1 handle 1 bpf object-file {path} "
                f"section classifier action gact drop",
            ]
            return _reasons(self._tc.batch().run(lines))

    @contextmanager
    def _device(self) -> Iterator[str]:
        """A device to try qdiscs on; it vanishes. Its name is always a new one: tc remembers the index."""
        self._tried += 1
        device = f"tb{self._tag}t{self._tried}"
        with ExitStack() as undo:
            if no_tun() is None:
                undo.callback(os.close, open_tap(device))
            else:
                run("ip", "link", "add", device, "type", "veth", "peer", "name", f"{device}p")
                undo.callback(run, "ip", "link", "delete", device)
            yield device


def _reasons(output: BatchOutput) -> str | None:
    """Why lines failed, each reason once; None if none did."""
    return "; ".join(dict.fromkeys(complaint["text"] for complaint in output.complaints)) or None


def run(*argv: str) -> str:
    """Run a program; returns its output. Raises Refused with its complaint if it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        raise Refused(f"{argv[0]} not found; install iproute2 (apt-get install iproute2)") from None
    if done.returncode:
        raise Refused(f"`{' '.join(argv)}` failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
