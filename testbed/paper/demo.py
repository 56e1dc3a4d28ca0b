"""The demonstration: the paper's client and server across the stack, under one profile after the other."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from testbed.errors import CommandTimeoutError, LabError, Problems
from testbed.evidence.proof import Check
from testbed.lab.host import Host, Log
from testbed.lab.lab import Lab
from testbed.netem.profiles import find_profile
from testbed.spec.impairment import Impairment
from testbed.spec.profile import Profile

PROFILES = ("clean", "lan", "latency", "lossy", "lossy-latency", "awful")
LINK = "client <-> server"

_CLIENTS = 4
"""Clients at once. 30 % loss both ways costs seconds per message, so several. A client does not wait until its message
is read, and the paper's server holds five unread connections and drops further ones, so no more."""

PATIENCE_S = 28.0
_PATIENCE_PER_MESSAGE_S = 1.4
"""How long the messages of a profile may take together, whichever is longer. TCP doubles its timeout with each
consecutive loss, and the paper's server reads one client at a time: at 30 % loss one message in a hundred takes a
minute and delays those behind it. They are under way and not lost, so the demonstration says so and goes on: it takes
a minute."""

_PROBES_S = 1.0
"""Seconds of probing in each direction before the messages of a profile."""


# --- what it measured -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of the paper's client."""

    text: str
    connect_s: float | None
    """From calling connect to its return; None if it failed."""
    delivery_s: float | None
    """From calling send to the engine's time stamp of the server's line in its log; None if there is none."""
    error: str | None = None
    """The error of a client that failed."""
    under_way: str | None = None
    """Where it was at the end of waiting, if a kernel still held it."""

    @property
    def lost(self) -> bool:
        """Whether it was not printed and no kernel holds it."""
        return self.delivery_s is None and self.under_way is None


@dataclass(frozen=True, kw_only=True)
class ProfileRun:
    """All messages under one profile."""

    profile: str
    description: str
    forward: str
    """The impairment toward the server."""
    reverse: str
    commands: tuple[str, ...]
    """The tc commands, each read back."""
    proof: tuple[tuple[str, tuple[Check, ...]], ...]
    """The checks of each direction, probed before the messages were sent."""
    delay_s: float
    """The one-way delay toward the server; its mean, where there is jitter."""
    messages: tuple[Message, ...]
    retransmitted_segments: int
    """RetransSegs of client and server together (RFC 4022)."""
    dropped_packets: int
    """Packets that netem dropped, both directions."""
    duration_s: float

    @property
    def delivered(self) -> int:
        """Number of messages that the server printed."""
        return sum(message.delivery_s is not None for message in self.messages)

    @property
    def under_way(self) -> int:
        """Number of messages still under way at the end of waiting."""
        return sum(message.under_way is not None for message in self.messages)

    @property
    def delivery_times_s(self) -> list[float]:
        """Delivery times of delivered messages."""
        return [message.delivery_s for message in self.messages if message.delivery_s is not None]

    @property
    def connect_times_s(self) -> list[float]:
        """Connect times of clients that connected."""
        return [message.connect_s for message in self.messages if message.connect_s is not None]


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """One demonstration."""

    engine: str
    """What executed netem: host or carried."""
    started: str
    """ISO 8601, UTC."""
    profiles: tuple[ProfileRun, ...]
    server_output: str

    @property
    def lost(self) -> int:
        """Number of lost messages."""
        return sum(message.lost for run in self.profiles for message in run.messages)

    @property
    def under_way(self) -> int:
        """Number of messages still under way at the end of waiting."""
        return sum(run.under_way for run in self.profiles)

    def as_json(self) -> dict[str, Any]:
        """As written to demo.json."""
        whole = asdict(self)
        for run, body in zip(self.profiles, whole["profiles"], strict=True):
            body["delivered"], body["under_way"] = run.delivered, run.under_way
            for name, times in (("connect", run.connect_times_s), ("delivery", run.delivery_times_s)):
                body[f"{name}_median_s"] = median(times)
                body[f"{name}_worst_s"] = max(times, default=None)
        return whole


def median(values: Sequence[float]) -> float | None:
    """The median; None without values."""
    return statistics.median(values) if values else None


# --- how --------------------------------------------------------------------------------------------

See = Callable[[Sequence[ProfileRun], str | None], None]


def run(lab: Lab, profiles: Sequence[str], *, messages: int, see: See, patience_s: float = PATIENCE_S) -> DemoRun:
    """Send ``messages`` messages under each profile; ``see`` is called at each step.

    The messages of a profile may take ``patience_s``, or longer if there are many. Needs hosts ``client`` and
    ``server`` with the programs of ``images/``. Raises InvalidValueError for unknown profiles and hosts before anything
    is sent.
    """
    chosen = check(lab, profiles)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    done: list[ProfileRun] = []
    clients = ThreadPoolExecutor(_CLIENTS, "testbed-client")
    try:
        with lab.host("server").follow() as log:
            for profile in chosen:
                see(done, profile.name)
                done.append(_run_profile(lab, profile, messages, log, clients, patience_s))
    finally:
        clients.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C a client ends with its container
    see(done, None)
    return DemoRun(
        engine=lab.netem_engine, started=started, profiles=tuple(done), server_output=lab.host("server").logs()
    )


def check(lab: Lab, profiles: Sequence[str]) -> list[Profile]:
    """The profiles of these names. Raises InvalidValueError for unknown ones and for a stack without the two hosts."""
    problems = Problems()
    chosen: list[Profile] = []
    with problems.gathered():
        lab.topology.links(LINK)
    for name in profiles:
        with problems.gathered():
            chosen.append(find_profile(lab.profiles, name))
    problems.tell()
    return chosen


def _run_profile(
    lab: Lab, profile: Profile, count: int, log: Log, clients: ThreadPoolExecutor, patience_s: float
) -> ProfileRun:
    client, server = lab.hosts["client"], lab.hosts["server"]
    lab.heal()
    applied = lab.impair(LINK, profile)
    probed = [change.link for change in applied if change.timeline is None]  # a timeline cannot be probed
    for link in probed:
        lab.prove(f"{link} on {link.network}", most_s=_PROBES_S)
    before = _retransmitted(client) + _retransmitted(server)
    began = time.monotonic()
    until = began + max(patience_s, _PATIENCE_PER_MESSAGE_S * count)
    texts = [f"Test message {number:02d} ({profile.name})" for number in range(1, count + 1)]
    messages = tuple(clients.map(lambda text: _send(client, server, text, log, until), texts))
    lab.verifier.verify()
    dropped_packets = sum(lab.ports.counters(change.link).dropped_packets for change in applied)
    return ProfileRun(
        profile=profile.name,
        description=profile.description,
        forward=profile.forward.describe(),
        reverse=profile.reverse.describe(),
        proof=tuple((str(link), tuple(lab.ledger.probed[link])) for link in probed),
        commands=tuple(change.command for change in applied),
        delay_s=(profile.forward.delay_s or 0.0) if isinstance(profile.forward, Impairment) else 0.0,
        messages=messages,
        retransmitted_segments=_retransmitted(client) + _retransmitted(server) - before,
        dropped_packets=dropped_packets,
        duration_s=time.monotonic() - began,
    )


def _send(client: Host, server: Host, text: str, log: Log, until: float) -> Message:
    """Have the paper's client send a message; wait for the server to print it, at most until the time ``until``."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        why = "not sent: the messages before it took too long"
        return Message(text=text, connect_s=None, delivery_s=None, under_way=why)
    argv = ["python3", "observed.py", "--messages", text, "--", "paper_client.py", "server", "8888"]
    try:
        result = client.run(argv, timeout=f"{left_s:.3f}s")
    except CommandTimeoutError:
        return Message(text=text, connect_s=None, delivery_s=None, under_way="the client was still connecting")
    if not result.stdout:
        raise LabError(f"the client printed nothing; exit status {result.exit_code}: {result.stderr[-500:]}")
    sent = json.loads(result.stdout)
    arrived_ns = under_way = None
    if "error" not in sent:
        arrived_ns = log.when(f"Message {text}", max(until - time.monotonic(), 0.0))
        if arrived_ns is None:
            under_way = whereabouts(client, server, sent["local_port"])
            arrived_ns = log.when(f"Message {text}", 0.0)  # it may have arrived meanwhile

    def between(start: str, end_ns: int | None) -> float | None:
        return (end_ns - sent[start]) / 1e9 if start in sent and end_ns is not None else None

    return Message(
        text=text,
        connect_s=between("connect_start_ns", sent.get("connected_ns")),
        delivery_s=between("sent_ns", arrived_ns),
        error=sent.get("error"),
        under_way=under_way if arrived_ns is None else None,
    )


def whereabouts(client: Host, server: Host, port: int) -> str | None:
    """Which kernel holds the message sent from this port, by the connection tables; None if neither."""
    for connection in client.connections():
        if connection["local_port"] == port and connection["send_queue_bytes"]:
            return f"the client's kernel had sent it again {connection['retransmits']} times without an answer"
    if any(connection["remote_port"] == port for connection in server.connections()):
        return "it waited in the server's kernel until the program read the messages before it"
    return None


def _retransmitted(host: Host) -> int:
    return host.counters()["Tcp"]["RetransSegs"]
