"""The demonstration: the paper's client and server across the stack, under one profile after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from testbed.errors import LabError
from testbed.labs.compose import ComposeHost, ComposeLab, FollowedLog
from testbed.links.profiles import find_profile
from testbed.model.demo import DemoRun, Message, ProfileRun
from testbed.model.impairment import Impairment, Profile

PROFILES = ("clean", "lan", "latency", "lossy", "lossy-latency", "awful")
LINK = "client <-> server"

# Four clients at once, because 30 % loss both ways costs one seconds; and no more, because a client does not wait
# until its message is read, and the paper's server holds five unread connections and drops what comes then.
_CLIENTS = 4
_CLIENT_DEADLINE = "180s"
_DELIVERY_DEADLINE_S = 60.0

See = Callable[[Sequence[ProfileRun], str | None], None]


def run(lab: ComposeLab, profiles: Sequence[str], *, messages: int, see: See) -> DemoRun:
    """Send ``messages`` messages under each profile; ``see`` hears of each step.

    Needs hosts ``client`` and ``server`` with the programs of ``images/``. Raises InvalidValueError for unknown
    profiles and hosts before anything is sent.
    """
    chosen = check(lab, profiles)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    done: list[ProfileRun] = []
    clients = ThreadPoolExecutor(_CLIENTS, "testbed-client")
    try:
        with lab.hosts["server"].follow() as log:
            for profile in chosen:
                see(done, profile.name)
                done.append(_run_profile(lab, profile, messages, log, clients))
    finally:
        clients.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C, a client ends with its container
    see(done, None)
    return DemoRun(
        engine=lab.netem_engine, started=started, profiles=tuple(done), server_output=lab.host("server").logs()
    )


def check(lab: ComposeLab, profiles: Sequence[str]) -> list[Profile]:
    """The profiles of these names. Raises InvalidValueError for unknown ones and for a stack without the two hosts."""
    lab.topology.links(LINK)
    return [find_profile(lab.profiles, name) for name in profiles]


def _run_profile(
    lab: ComposeLab, profile: Profile, count: int, log: FollowedLog, clients: ThreadPoolExecutor
) -> ProfileRun:
    client, server = lab.hosts["client"], lab.hosts["server"]
    lab.heal()
    applied = lab.impair(LINK, profile)
    before = _retransmitted(client) + _retransmitted(server)
    began = time.monotonic()
    texts = [f"Test message {number:02d} ({profile.name})" for number in range(1, count + 1)]
    messages = tuple(clients.map(lambda text: _send(client, text, log), texts))
    lab.verify()
    counters = [lab.read(each.link) for each in applied]
    return ProfileRun(
        profile=profile.name,
        description=profile.description,
        forward=profile.forward.describe(),
        reverse=profile.reverse.describe(),
        commands=tuple(each.command for each in applied),
        delay_s=(profile.forward.delay_s or 0.0) if isinstance(profile.forward, Impairment) else 0.0,
        messages=messages,
        retransmitted_segments=_retransmitted(client) + _retransmitted(server) - before,
        dropped_packets=sum(each.dropped_packets for each in counters),
        duration_s=time.monotonic() - began,
    )


def _send(client: ComposeHost, text: str, log: FollowedLog) -> Message:
    """Have the paper's client send one message, and wait until the server has printed it."""
    argv = ["python3", "observed.py", "--messages", text, "--", "paper_client.py", "server", "8888"]
    result = client.run(argv, timeout=_CLIENT_DEADLINE)
    if not result.stdout:
        raise LabError(f"the client printed nothing; exit status {result.exit_code}: {result.stderr[-500:]}")
    sent = json.loads(result.stdout)
    arrived_ns = None if "error" in sent else log.when(f"Message {text}", _DELIVERY_DEADLINE_S)

    def between(start: str, end_ns: int | None) -> float | None:
        return (end_ns - sent[start]) / 1e9 if start in sent and end_ns is not None else None

    return Message(
        text=text,
        connect_s=between("connect_start_ns", sent.get("connected_ns")),
        delivery_s=between("sent_ns", arrived_ns),
        error=sent.get("error"),
    )


def _retransmitted(host: ComposeHost) -> int:
    return host.counters()["Tcp"]["RetransSegs"]
