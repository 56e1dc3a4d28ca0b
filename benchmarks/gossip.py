"""Hosts on a ring that send to their neighbours all at once, and the fate of every message.

::

    with LocalLab(gossip.drawing(40)) as lab:
        talked = gossip.talk(lab, neighbours=8, impairment=Impairment(delay_s=0.01, loss_ratio=0.02))
    assert not talked.unexplained and talked.complete

Each unordered pair of neighbours is judged as a run of its own: the oracle knows two ends.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import CommandTimeoutError, InvalidValueError, LabError
from testbed.evidence.journal import Journal
from testbed.evidence.observed import CounterGroups, KernelEvidence, LinkCounts, difference
from testbed.evidence.verdict import Verdict
from testbed.judge import oracle
from testbed.judge.account import Account, Cause, Expectation
from testbed.lab.host import Program
from testbed.lab.lab import Lab
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.netem import readback
from testbed.spec import drawings
from testbed.spec.drawings import Drawing
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef

HOST = "peer"
_SHARED = "/begin"
_JOURNAL = "/tmp/gossip.journal"  # noqa: S108  # in a host of the lab's, which has a /tmp of its own
_READY_DEADLINE_S = 120.0
_NETWORK = "lan"


@dataclass(frozen=True, kw_only=True)
class Talked:
    """The results of one run."""

    accounts: Mapping[tuple[str, str], Account]
    """The oracle's account of each pair of neighbours."""
    messages: int
    """That every host was to send to each neighbour."""

    @property
    def unexplained(self) -> list[str]:
        """Every pair whose sums do not balance, or with a loss of unknown cause; in words."""
        return [
            f"{a}, {b}: {account}"
            for (a, b), account in self.accounts.items()
            if account.verdict in (Verdict.INVALID, Verdict.UNKNOWN) or account.causes[Cause.UNKNOWN]
        ]

    @property
    def complete(self) -> bool:
        """Whether every host sent everything to each neighbour, in both directions of each pair."""
        return all(
            len(account.directions) == 2 and all(direction.sent == self.messages for direction in account.directions)
            for account in self.accounts.values()
        )

    @property
    def sent(self) -> int:
        """Messages, in all."""
        return sum(direction.sent for account in self.accounts.values() for direction in account.directions)

    @property
    def causes(self) -> Counter[Cause]:
        """Why messages did not arrive, in all."""
        return sum((account.causes for account in self.accounts.values()), Counter[Cause]())


def drawing(hosts: int, programs: Path) -> Drawing:
    """So many hosts on one network; ``programs`` is the folder images/common. Raises InvalidValueError."""
    body = {"x-testbed": {"local": {"path": str(programs)}}, "volumes": [f"begin:{_SHARED}"]}
    return drawings.star(hosts, host=HOST, services={HOST: body})


def pairs(hosts: Sequence[str], neighbours: int) -> list[tuple[str, str]]:
    """The pairs of hosts that talk: each host with as many neighbours on either side. Raises InvalidValueError."""
    if neighbours < 2 or neighbours % 2 or neighbours >= len(hosts):
        raise InvalidValueError(
            f"{neighbours} neighbours of {len(hosts)} hosts: an even number, smaller than the hosts'"
        )
    count = len(hosts)
    pairs = [
        (hosts[number], hosts[(number + step) % count])
        for number in range(count)
        for step in range(1, neighbours // 2 + 1)
    ]
    if len({frozenset(pair) for pair in pairs}) < len(pairs):
        raise InvalidValueError(f"{neighbours} neighbours of {count} hosts: some pairs would talk twice")
    return pairs


def talk(
    lab: Lab,
    *,
    neighbours: int = 8,
    impairment: Impairment | Sequence[Mapping[str, str]],
    messages: int = 10,
    rate_per_s: float = 5.0,
    deadline_s: float = 60.0,
) -> Talked:
    """Impair every pair both ways, have all hosts talk at once, and judge each pair.

    ``impairment``: or the steps of a timeline. ``rate_per_s``: messages a second to each neighbour. Raises
    CommandTimeoutError, LabError.
    """
    hosts = list(lab.hosts)
    talking = pairs(hosts, neighbours)
    for a, b in talking:
        for link in (f"{a} -> {b}", f"{b} -> {a}"):
            lab.link(link).impair(impairment)
    with ExitStack() as undo:
        programs = _start(lab, talking, messages, rate_per_s, deadline_s, undo)
        _await(programs, "ready", _READY_DEADLINE_S)
        before = {name: lab.host(name).counters() for name in hosts}
        lab.host(hosts[0]).put(f"{_SHARED}/now", b"")
        _await(programs, '"messages"', deadline_s + _READY_DEADLINE_S)
        # An answer to a word that was said twice may still be under way.
        await_condition(lab.ports.counts, _Still(), deadline_s=_READY_DEADLINE_S, every_s=0.2)
        for name, program in programs.items():
            done = program.stop("SIGTERM")
            if done.exit_code not in (0, 1):
                raise LabError(f"`{name}`: {' '.join(done.argv)}: exit status {done.exit_code}: {done.stderr[-2000:]}")
    links = lab.ports.counts()
    kernel = {name: difference(before[name], lab.host(name).counters()) for name in hosts}
    journals = {name: _parts(lab.host(name).get(_JOURNAL)) for name in hosts}
    return Talked(accounts=dict(_accounts(talking, journals, kernel, links, messages)), messages=messages)


def _start(
    lab: Lab, talking: Sequence[tuple[str, str]], messages: int, rate_per_s: float, deadline_s: float, undo: ExitStack
) -> dict[str, Program]:
    peers: dict[str, list[str]] = {}
    for number, (a, b) in enumerate(talking):
        for own, other, flow in ((a, b, 2 * number), (b, a, 2 * number + 1)):
            peers.setdefault(own, []).append(f"{lab.host(other).addresses(_NETWORK)[0]}/{flow}")
    programs: dict[str, Program] = {}
    for name, addresses in peers.items():
        programs[name] = program = lab.host(name).start([
            "python3", "gossip.py", "--messages", str(messages), "--rate", str(rate_per_s),
            "--deadline", str(deadline_s), "--begin", f"{_SHARED}/now", "--journal", _JOURNAL,
            *(word for address in addresses for word in ("--peer", address)),
        ])  # fmt: skip
        undo.callback(_kill, program)
    return programs


class _Still:
    """Whether the links' counters are what they were the last time, and nothing waits in their queues."""

    def __init__(self) -> None:
        self._before: Mapping[LinkRef, readback.NetemCounters] = {}

    def __call__(self, seen: Mapping[LinkRef, readback.NetemCounters]) -> bool:
        same, self._before = seen == self._before, seen
        return same and not any(sample.queued_packets for sample in seen.values())


def _kill(program: Program) -> None:
    if not program.ended:
        program.stop("SIGKILL")


def _await(programs: Mapping[str, Program], text: str, deadline_s: float) -> None:
    def silent() -> list[str]:
        return [name for name, program in programs.items() if text not in program.output]

    try:
        await_condition(silent, lambda names: not names, deadline_s=deadline_s, every_s=max(0.1, deadline_s / 1000))
    except NotSeenError:
        name = silent()[0]
        raise CommandTimeoutError(
            f"`{name}` and {len(silent()) - 1} others did not print {text!r} within {deadline_s:g} s; "
            f"it printed: {programs[name].output[-500:]!r}"
        ) from None


def _parts(content: bytes) -> dict[int, list[bytes]]:
    """A host's journal as one journal for each peer, by its ``conn``: as if it had kept them apart."""
    first, *lines = content.splitlines()
    head: list[bytes] = [first]
    parts: dict[int, list[bytes]] = {}
    end: list[Any] = []
    for line in lines:
        row = json.loads(line)
        if row[0] == "begin":
            head.append(line)
        elif row[0] == "end":
            end = row
        else:
            parts.setdefault(row[2] or 0, []).append(line)
    # "begin" and "end" count as lines, too; without its end a journal is cut short, and so are its parts.
    return {
        conn: [*head, *rows, *([json.dumps([*end[:3], len(rows) + 2]).encode()] if end else [])]
        for conn, rows in parts.items()
    }


def _accounts(
    talking: Sequence[tuple[str, str]],
    journals: Mapping[str, Mapping[int, list[bytes]]],
    kernel: Mapping[str, CounterGroups],
    links: Mapping[LinkRef, readback.NetemCounters],
    messages: int,
) -> Iterator[tuple[tuple[str, str], Account]]:
    conns: Counter[str] = Counter()
    for pair in talking:
        read = []
        for name in pair:
            conns[name] += 1
            lines = journals[name].get(conns[name])
            if lines is not None:
                read.append(Journal([line + b"\n" for line in lines], name=name))
        counted = {
            (ref.src, ref.dst): LinkCounts(
                sent_packets=seen.sent_packets, dropped_packets=seen.dropped_packets, queued_packets=seen.queued_packets
            )
            for ref in (LinkRef(pair[0], pair[1], _NETWORK), LinkRef(pair[1], pair[0], _NETWORK))
            if (seen := links.get(ref)) is not None
        }
        evidence = KernelEvidence(kernel={name: kernel[name] for name in pair}, links=counted)
        expect = Expectation(messages=messages, most_lost_ratio=1.0, most_duplicate_ratio=1.0)
        yield pair, oracle.judge(read, evidence, expect=expect)
