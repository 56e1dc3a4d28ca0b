"""One reading of the kernel gives the verdicts of a link and of its rows; no verdict is made up."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

from rich.console import Console

from testbed.evidence.proof import Check, LinkEvidence
from testbed.evidence.verdict import Verdict
from testbed.lab.rows import Held, rows
from testbed.netem import readback
from testbed.report import evidence
from testbed.report.console import print_stack
from testbed.spec.impairment import Impairment

ASKED = Impairment(delay_s=0.01, jitter_s=0.001)
# As the kernel reports the netem that somebody else has put there.
OTHER = {"kind": "netem", "options": {"limit": 1000, "gap": 0, "delay": {"delay": 0.02, "jitter": 0.001}}}


def checks_of(netem: Mapping[str, object] | None) -> dict[str, Check]:
    held = Held(ASKED, netem, readback.differences(ASKED, netem))
    return {row.field: row for row in rows(held, None)}


def test_what_read_back_found_wrong_fails_in_its_row_with_the_same_figures() -> None:
    checks = checks_of(OTHER)
    # 1000 that wait, and 1e6 packets/s for the longest delay, 11 ms.
    assert (checks["limit"].asked, checks["limit"].kernel, checks["limit"].verdict) == (
        "12000 (sized)",
        "1000",
        Verdict.FAILS,
    )
    assert (checks["delay"].asked, checks["delay"].kernel, checks["delay"].verdict) == (
        "10ms 1ms",
        "20ms",
        Verdict.FAILS,
    )
    assert checks["delay"].how == "asked delay 10ms, the kernel reports 20ms"
    assert checks["rate"].verdict == Verdict.FAILS  # the rate that keeps order was not asked, and has no row else


def test_where_there_is_no_netem_every_row_fails() -> None:
    assert {text.verdict for text in checks_of(None).values()} == {Verdict.FAILS}
    assert checks_of(None)["delay"].kernel == "none"


def test_what_a_probe_saw_before_fails_if_the_kernel_holds_another_value_now() -> None:
    held = Held(ASKED, OTHER, readback.differences(ASKED, OTHER))
    probed = [Check(field="delay", asked="10ms ± 1ms", kernel="10ms ± 1ms", seen="10.2 ms", verdict=Verdict.HOLDS)]
    (delay,) = [row for row in rows(held, None, probed) if row.field == "delay"]
    assert (delay.kernel, delay.verdict) == ("20ms", Verdict.FAILS)


def test_what_is_as_asked_is_shown() -> None:
    options = {
        "limit": 12000,
        "gap": 0,
        "delay": {"delay": 0.01, "jitter": 0.001},
        "rate": {"rate": 125_000_000_000},
    }
    checks = checks_of({"kind": "netem", "options": options})
    assert {name: check.verdict for name, check in checks.items()} == {"limit": Verdict.SHOWN, "delay": Verdict.SHOWN}


def test_each_verdict_is_printed_as_it_is() -> None:
    checks = [Check(field=verdict, verdict=verdict) for verdict in (Verdict.HOLDS, Verdict.FAILS, Verdict.SHOWN)]
    _, _, *printed = evidence.lines(LinkEvidence(link="a -> b", network="lan", asked={}, command="", checks=checks))
    assert [line.split()[-1] for line in printed[:3]] == ["holds", "FAILS", "shown"]


def test_a_list_of_hundreds_of_packet_numbers_is_shortened_on_a_terminal() -> None:
    numbers = ", ".join(map(str, range(0, 900, 2)))
    check = Check(field="drop_packets", asked=numbers, seen="450 dropped", verdict=Verdict.HOLDS)
    link = LinkEvidence(link="a -> b", network="lan", asked={}, command="", checks=[check])
    _, _, row = evidence.lines(link)
    assert len(row) < 200
    assert re.fullmatch(r" +drop_packets +0, 2, 4, .*… +— +450 dropped +holds", row)
    assert link.as_json()["checks"][0]["asked"] == numbers, "the results file has all of them"


def test_a_stack_whose_links_are_cut_is_not_said_to_be_whole() -> None:
    def line_of(cuts: int) -> str:
        console = Console(file=io.StringIO(), width=80)
        print_stack(console, run_id="r", engine="host", hosts={}, links=[], cuts=cuts)
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]  # a StringIO

    assert "no link is impaired" in line_of(0)
    assert "2 links are cut, none is impaired" in line_of(2)
