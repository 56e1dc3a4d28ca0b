"""The demonstration: the paper's client and server across the stack, under one profile after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from testbed.errors import CommandTimeoutError, LabError, Problems
from testbed.evidence.demo import DemoRun, Message, ProfileRun
from testbed.lab.host import Host, Log
from testbed.lab.lab import Lab
from testbed.netem.profiles import find_profile
from testbed.spec.impairment import Impairment
from testbed.spec.profile import Profile

PROFILES = ("clean", "lan", "latency", "lossy", "lossy-latency", "awful")
LINK = "client <-> server"

# Four clients at once, because 30 % loss both ways costs one seconds; and no more, because a client does not wait
# until its message is read, and the paper's server holds five unread connections and drops what comes then.
_CLIENTS = 4

# How long each profile's messages have together, and at least each one. TCP doubles its waiting time with each loss
# in a row, and the paper's server reads one client at a time: at 30 % loss one message in some hundred takes a
# minute, and those behind it wait with it. That is TCP at work and no loss, so we stop waiting and say where it is:
# so early that the whole demonstration takes a minute.
_PATIENCE_S = 28.0
_PATIENCE_PER_MESSAGE_S = 1.4

# How long probes are sent in each direction before a profile's messages.
_PROBES_S = 1.0

See = Callable[[Sequence[ProfileRun], str | None], None]


def run(lab: Lab, profiles: Sequence[str], *, messages: int, see: See) -> DemoRun:
    """Send ``messages`` messages under each profile; ``see`` hears of each step.

    Needs hosts ``client`` and ``server`` with the programs of ``images/``. Raises InvalidValueError for unknown
    profiles and hosts before anything is sent.
    """
    chosen = check(lab, profiles)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    done: list[ProfileRun] = []
    clients = ThreadPoolExecutor(_CLIENTS, "testbed-client")
    try:
        with lab.host("server").follow() as log:
            for profile in chosen:
                see(done, profile.name)
                done.append(_run_profile(lab, profile, messages, log, clients))
    finally:
        clients.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C, a client ends with its container
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


def _run_profile(lab: Lab, profile: Profile, count: int, log: Log, clients: ThreadPoolExecutor) -> ProfileRun:
    client, server = lab.hosts["client"], lab.hosts["server"]
    lab.heal()
    applied = lab.impair(LINK, profile)
    probed = [each for each in applied if each.timeline is None]  # what changes meanwhile cannot be probed
    for each in probed:
        lab.prove(f"{each.link} on {each.link.network}", most_s=_PROBES_S)
    before = _retransmitted(client) + _retransmitted(server)
    began = time.monotonic()
    until = began + max(_PATIENCE_S, _PATIENCE_PER_MESSAGE_S * count)
    texts = [f"Test message {number:02d} ({profile.name})" for number in range(1, count + 1)]
    messages = tuple(clients.map(lambda text: _send(client, server, text, log, until), texts))
    lab.verify()
    counters = [lab.counters(each.link) for each in applied]
    return ProfileRun(
        profile=profile.name,
        description=profile.description,
        forward=profile.forward.describe(),
        reverse=profile.reverse.describe(),
        proof=tuple((str(each.link), tuple(lab.ledger.probed[each.link])) for each in probed),
        commands=tuple(each.command for each in applied),
        delay_s=(profile.forward.delay_s or 0.0) if isinstance(profile.forward, Impairment) else 0.0,
        messages=messages,
        retransmitted_segments=_retransmitted(client) + _retransmitted(server) - before,
        dropped_packets=sum(each.dropped_packets for each in counters),
        duration_s=time.monotonic() - began,
    )


def _send(client: Host, server: Host, text: str, log: Log, until: float) -> Message:
    """Have the paper's client send one message, and wait until the server has printed it, or ``until`` has come."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        return Message(text=text, connect_s=None, delivery_s=None, under_way="not sent: those before it took too long")
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
            under_way = _whereabouts(client, server, sent["local_port"])
            arrived_ns = log.when(f"Message {text}", 0.0)  # it may have come while we looked

    def between(start: str, end_ns: int | None) -> float | None:
        return (end_ns - sent[start]) / 1e9 if start in sent and end_ns is not None else None

    return Message(
        text=text,
        connect_s=between("connect_start_ns", sent.get("connected_ns")),
        delivery_s=between("sent_ns", arrived_ns),
        error=sent.get("error"),
        under_way=under_way if arrived_ns is None else None,
    )


def _whereabouts(client: Host, server: Host, port: int) -> str | None:
    """Where the message is that was sent from this port, by the kernels' own tables; None if nobody has it."""
    for each in client.connections():
        if each["local_port"] == port and each["send_queue_bytes"]:
            return f"the client's kernel had sent it again {each['retransmits']} times without an answer"
    if any(each["remote_port"] == port for each in server.connections()):
        return "it waited in the server's kernel until the program read those before it"
    return None


def _retransmitted(host: Host) -> int:
    return host.counters()["Tcp"]["RetransSegs"]
