"""How fast the oracle judges, how much memory it needs, and whether it ever judges falsely.

Journals are generated here, as the programs in images/ write them, with faults that are known; nothing is sent.
"""

from __future__ import annotations

import gc
import json
import random
import time
from contextlib import suppress
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import common
from benchmarks.common import Check, Report
from testbed.evidence.journal import VERSION, Journal
from testbed.evidence.verdict import Verdict
from testbed.judge.account import Account, Expectation
from testbed.judge.oracle import Oracle, judge, read
from tests.unit.journals import DATAGRAM_FATES, LATE_AFTER_S, STREAM_FATES, Datagrams, connections, datagrams

MOST_S = 3.0
RECORDS = 1_000_000
JOURNALS, _QUICK_JOURNALS = 10_000, 2_000
_ROUNDS, _QUICK_ROUNDS = 5, 3
_LOSS_RATIO, _SPACING_NS, _DELAY_NS, _OVERTAKES_NS = 0.01, 20_000, 20_000_000, 60_000
_REORDERED_RATIO = 0.01


def measure(report: Report) -> None:
    """All three."""
    report.say(f"writing two journals of {RECORDS:,} records together")
    client, server, lost = _journals(RECORDS // 2)
    took_s: list[float] = []
    accounts: list[Account] = []

    def once() -> None:
        accounts.append(judge([Journal.of(client, name="client"), Journal.of(server, name="server")]))

    for _ in range(_QUICK_ROUNDS if report.quick else _ROUNDS):
        gc.collect()
        began_s = time.process_time()
        once()
        took_s.append(time.process_time() - began_s)
    counted = accounts[-1].direction("client", "server").lost
    report.check(
        Check(
            name=f"{RECORDS:,} records read and judged, the fastest of {len(took_s)}",
            value=min(took_s),
            bound=MOST_S,
            unit="s",
        )
    )
    report.check(Check(name="losses miscounted in them", value=abs(counted - lost), bound=0, unit=""))
    report.note(f"CPU time, which is all it takes: {', '.join(f'{duration_s:.2f}' for duration_s in took_s)} s")
    report.check(
        Check(
            name="most remembered on the way, for each message lost or under way",
            value=_most_remembered(client, server) / (lost + _DELAY_NS / _SPACING_NS),
            bound=4,
            unit="",
            bound_words="itself, its gap, and a block read ahead",
        )
    )
    count = _QUICK_JOURNALS if report.quick else JOURNALS
    report.say(f"judging {count:,} journals with known faults, drawn by Hypothesis")
    judged, falsely = _draw(count)
    report.check(Check(name="journals with known faults judged", value=judged, bound=count, unit="", at_least=True))
    report.check(Check(name=f"false verdicts in {judged:,} of them", value=len(falsely), bound=0, unit=""))
    if falsely:
        report.note(f"the smallest that is judged falsely: {min(falsely, key=len)}")


def _draw(count: int) -> tuple[int, list[str]]:
    """Judge so many runs; the number of runs, and those judged falsely, shrunk by Hypothesis."""
    judged, falsely = 0, []

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(
            st.lists(st.sampled_from(DATAGRAM_FATES), min_size=1, max_size=12).map(datagrams),
            st.lists(st.sampled_from(STREAM_FATES), min_size=1, max_size=8).map(connections),
        ),
        st.booleans(),
    )
    def judge_one(run: Datagrams, miscounted: bool) -> None:
        nonlocal judged
        judged += 1
        if not _judged_rightly(run, miscounted=miscounted):
            falsely.append(", ".join(run.fates) + " with a counter off by one" * miscounted)
            raise AssertionError

    with suppress(AssertionError, ExceptionGroup):  # told by `falsely`
        judge_one()
    return judged, falsely


def _journals(messages: int) -> tuple[bytes, bytes, int]:
    """Of a sender and a receiver: some messages lost, some overtaken."""
    chance = random.Random(1)  # noqa: S311  # a repeatable journal, no secret
    sent = [json.dumps(["begin", 0, 1])]
    arriving: list[tuple[int, str]] = []
    for sequence in range(messages):
        at = _DELAY_NS + sequence * _SPACING_NS
        sent.append(f'["sent",{at},1,0,{sequence},100,100,100]')
        if chance.random() >= _LOSS_RATIO:
            arrives = at + _DELAY_NS + chance.randrange(_SPACING_NS // 2)
            arrives += _OVERTAKES_NS if chance.random() < _REORDERED_RATIO else 0
            arriving.append((arrives, f'["received",{arrives},1,0,{sequence},100,{at},"whole"]'))
    arriving.sort()
    received = [json.dumps(["begin", 0, 2]), *(line for _, line in arriving)]
    first = json.dumps({"journal": "testbed", "version": VERSION, "program": "generated", "transport": "udp"})
    for pid, lines in ((1, sent), (2, received)):
        lines.append(json.dumps(["end", 10**15, pid, len(lines) + 1]))
        lines.insert(0, first)
    return ("\n".join(sent) + "\n").encode(), ("\n".join(received) + "\n").encode(), messages - len(arriving)


class _Watched(Oracle):
    """An oracle that notes the most it remembered after any block of rows."""

    most = 0

    def take(self, host: str, rows: object) -> None:
        super().take(host, rows)  # type: ignore[arg-type]  # handed through
        self.most = max(self.most, self.state)


def _most_remembered(client: bytes, server: bytes) -> int:
    oracle = _Watched()
    read(oracle, [Journal.of(client, name="client"), Journal.of(server, name="server")])
    return oracle.most


def _judged_rightly(run: Datagrams, *, miscounted: bool) -> bool:
    """Whether the account of a run matches its faults, and is INVALID if a counter is off by one."""
    link = run.evidence.links.get(("client", "server"))
    if miscounted and link is not None and not link.duplicates:
        more = replace(link, dropped_packets=link.dropped_packets + 1)
        run.evidence = replace(run.evidence, links={("client", "server"): more})
        return _account(run).verdict is Verdict.INVALID
    return _right(run, _account(run))


def _account(run: Datagrams) -> Account:
    journals = [run.client.journal(), run.server.journal()]
    return judge(journals, run.evidence, expect=Expectation(late_after_s=LATE_AFTER_S))


def _right(run: Datagrams, account: Account) -> bool:
    there = account.direction("client", "server")
    late, copies = run.fates.count("late"), sum(run.fates.count(key) for key in ("duplicated", "again"))
    good = not run.causes and not late and not copies
    return (
        account.verdict is (Verdict.HOLDS if good else Verdict.FAILS)
        and account.causes == run.causes
        and (there.late, there.duplicates) == (late, copies)
        and there.delivered + there.late == len(run.arrivals)
        and there.missing == sum(run.causes.values())
    )


if __name__ == "__main__":
    common.run("The oracle: speed, memory, false verdicts", measure)
